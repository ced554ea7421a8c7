"""Gathers one transaction's story: its row of the decision log, what operators did, what each participant holds.

Reads only. What is told of it is in `runtime/telling.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.engine import Row

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.participants import Participants
from tandem.coordinator.tables import coordinator_action
from tandem.runtime import actions, telling
from tandem.runtime.errors import InvalidRequest, TandemError, Violation
from tandem.runtime.identifiers import DAY_MS, TransactionKey, id_time_ms
from tandem.runtime.paging import clock
from tandem.runtime.telling import Action, BothSides, Branch, Decision, at, took
from tandem.v1 import transaction_pb2

T = TypeVar("T")

ASK_S = 2.0
"""For the participants' answers: all are asked at once."""

MAX_ASKED_AT_ONCE = 16

LAST_MS = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp()) * 1000
"""The end of Python's calendar, nearly."""


class Event(NamedTuple):
    """Something on the time line. to_come: it has not happened yet."""

    at: datetime
    whose: str
    what: str
    to_come: bool = False


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of one transaction.

    now: the database's clock (R13). began_at: the id's own time. expired: that is longer ago than decisions are kept.
    """

    key: TransactionKey
    now: datetime
    began_at: datetime
    expired: bool
    decision: Decision | None
    branches: Sequence[Branch]
    actions: Sequence[Action]

    def sentences(self) -> list[str]:
        """The story, told: what the state means, what comes next and when."""
        both = BothSides(self.now, self.decision, self.branches)
        by_hand = [action.sentence() for action in self.actions]
        return [*self._beginning(), *both.sides(), *by_hand, *both.left()]

    def _beginning(self) -> Iterator[str]:
        yield f"{self.key} began at {at(self.began_at)} by the initiator's clock."
        decision = self.decision
        if decision is None:
            yield telling.without_decision(self.expired)
        elif decision.outcome == "committed":
            after = took(decision.decided_at - self.began_at)
            yield (
                f"It was decided at {at(decision.decided_at)}, {after} after it began: committed, in the initiator's "
                "local commit. A decision is written once: nobody can change it."
            )
        else:
            yield telling.decided_aborted(decision)

    def events(self) -> list[Event]:
        """The time line. Each time is by the clock of the one who is named with it."""
        found = [Event(self.began_at, "the initiator", "began")]
        decision = self.decision
        if decision is not None:
            found.append(Event(decision.decided_at, "the decision log", f"decided: {decision.outcome}"))
            if decision.next_attempt_at is not None:
                tried = f" after {decision.attempts} attempts, the last: {decision.last_error}"
                then = tried if decision.last_error else ""
                found.append(Event(decision.next_attempt_at, "recovery", f"delivers{then}", to_come=True))
        found += [
            Event(action.at, action.actor, f"{action.action} ({action.detail}): {action.reason}")
            for action in self.actions
        ]
        for branch in self.branches:
            found += _events_at(branch)
        return sorted(found, key=lambda event: (event.to_come, event.at))


def _events_at(b: Branch) -> Iterator[Event]:
    if b.prepared_at is not None and not b.tombstone:
        yield Event(b.prepared_at, b.participant, f"prepared: {b.rows} row{'' if b.rows == 1 else 's'} staged")
    if b.resolved_at is not None:
        how = "aborted before anything was staged" if b.tombstone else b.state
        by = telling.BROUGHT_BY.get(b.resolved_by, "somebody unknown")
        yield Event(b.resolved_at, b.participant, f"{how}, by {by}")
    if b.asks_at is not None:
        tried = f" (asked {b.asked} times; the last answer: {b.last_answer})" if b.asked and b.last_answer else ""
        yield Event(b.asks_at, b.participant, f"its sweeper asks for the decision{tried}", to_come=True)


def gather(
    decision_log: DecisionLog,
    participants: Participants,
    key: TransactionKey,
    *,
    timeout_s: float = ASK_S,
) -> Story:
    """The story of one transaction; of an unknown one, too. Asks the participants that its decision names, else all.

    Raises InvalidRequest for an id whose own time is none.
    """
    began_ms = id_time_ms(key.transaction_id)
    if key.transaction_id.version != 7 or began_ms > LAST_MS:
        raise InvalidRequest([Violation("transaction", "has an id that is no UUIDv7 of our time")])
    now = clock(decision_log.engine)
    row = decision_log.get(key)
    names = sorted(set(row.participants) if row is not None and row.participants else participants.names)

    def ask(name: str) -> Branch:
        return _branch(participants, name, key, row, timeout_s)

    return Story(
        key,
        now,
        datetime.fromtimestamp(began_ms / 1000, UTC),
        expired=int(now.timestamp() * 1000) - began_ms > decision_log.times.retention_ms - DAY_MS,
        decision=None if row is None else decision_of(row),
        branches=each(names, ask),
        actions=actions.of(decision_log.engine, coordinator_action, key),
    )


def each(names: Sequence[str], ask: Callable[[str], T]) -> list[T]:
    """Asks all at once, so that all together take no longer than the slowest."""
    if len(names) < 2:
        return [ask(name) for name in names]
    with ThreadPoolExecutor(min(len(names), MAX_ASKED_AT_ONCE), thread_name_prefix="story") as pool:
        return list(pool.map(ask, names))


def decision_of(row: Row[Any]) -> Decision:
    """A row of the decision log."""
    due = row.next_attempt_at if row.undelivered else None
    return Decision(
        row.outcome,
        row.decided_at.astimezone(UTC),
        row.attempts,
        due.astimezone(UTC) if due else None,
        row.last_error or "",
    )


def _branch(
    participants: Participants, name: str, key: TransactionKey, row: Row[Any] | None, timeout_s: float
) -> Branch:
    """What one participant holds, beside what the log says of it."""
    log: dict[str, Any] = {"participant": name}
    if row is not None and name in row.participants:
        parked = row.parked.get(name, "")
        log |= {"listed": True, "parked": parked, "acknowledged": name not in row.undelivered and not parked}
    if name not in participants.names:
        return Branch(**log, trouble="it is not in the configuration")
    try:
        held = participants.get(name, key, timeout_s=timeout_s)
    except TandemError as error:
        return Branch(**log, trouble=error.reason.value)
    return Branch(**log) if held is None else Branch(**log, **held_there(held))


def held_there(held: transaction_pb2.PreparedTransaction) -> dict[str, Any]:
    """A participant's answer as fields of a Branch."""
    state = transaction_pb2.TransactionState.Name(held.state).removeprefix("TRANSACTION_STATE_").lower()
    by = transaction_pb2.ResolvedBy.Name(held.resolved_by).removeprefix("RESOLVED_BY_").lower()
    return {
        "state": state,
        "tombstone": not held.digest,
        "rows": held.staged,
        "confirmed": held.confirmed,
        "prepared_at": _time(held, "prepare_time"),
        "resolved_at": _time(held, "resolve_time"),
        "resolved_by": "" if by == "unspecified" else by,
        "asks_at": _time(held, "next_attempt_time"),
        "parked_there": held.parked,
        "asked": held.attempts,
        "last_answer": held.last_error,
    }


def _time(held: transaction_pb2.PreparedTransaction, field: str) -> datetime | None:
    moment: datetime = getattr(held, field).ToDatetime(tzinfo=UTC)
    return moment if held.HasField(field) else None  # type: ignore[arg-type]
