"""An operator's way out at a participant (R5): ask again or now, force an outcome, close a contradiction.

A forced outcome is heuristic: it may be the wrong one. It is written down with its reason, counted, and stays on the
sweeper's list until the coordinator has answered: agreement confirms it, contradiction parks it and pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from tandem.participant import rows
from tandem.participant.participant import Participant
from tandem.participant.resolver import Outcome, Resolver, in_doubt
from tandem.participant.tables import participant_action
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import ResolvedBy, State
from tandem.runtime.actions import Operator, record
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger

log = logger("tandem.operator")

ASK_S = 3.0
"""For a coordinator that is asked now."""


@dataclass(frozen=True, slots=True)
class Forced:
    """What a force did, or would do.

    staged: how many rows were promised; found: how many were there to be published or discarded. Fewer means that
    somebody has been at the data, and forcing is the way out. at: when it was recorded; None for what was only tried.
    """

    outcome: State
    staged: int
    found: int
    at: datetime | None

    @property
    def done(self) -> bool:
        """Whether it was done, not only tried."""
        return self.at is not None


class _DryRun(Exception):
    pass


def force(
    participant: Participant, key: TransactionKey, outcome: State, operator: Operator, *, dry_run: bool = False
) -> Forced:
    """Ends a prepared transaction by hand, as COMMITTED or ABORTED.

    dry_run: does it all and rolls it back. Raises NOT_FOUND, or INVALID_REQUEST if it has ended already, or if it is so
    young (push_after) that its driver may be at work: to end it now could only split what is about to commit.
    """
    if outcome is State.PREPARED:
        raise InvalidRequest([Violation("outcome", "must be committed or aborted")])
    staged = found = 0
    try:
        with local_transaction(participant.engine) as connection:
            changed = rows.force(connection, key, outcome, not_before_s=participant.times.push_after_s)
            if changed is None:
                raise _unfit(rows.read(connection, [key]), key, participant.times.push_after_s)
            staged = changed
            found = participant.apply(connection, [key], outcome)[key]
            what = f"{found} rows" if found == staged else f"{found} of {staged} rows"
            at = record(connection, participant_action, operator, "force", key, f"{outcome.value}, {what}")
            if dry_run:
                raise _DryRun
    except _DryRun:
        return Forced(outcome, staged, found, at=None)
    participant.metrics.outcomes.labels(outcome.value, ResolvedBy.OPERATOR.value).inc()
    log.error("heuristic outcome", transaction=str(key), outcome=outcome.value, actor=operator.actor)
    return Forced(outcome, staged, found, at=at)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What came of asking now. answer: the coordinator's, or why there is none. at: when that was recorded."""

    answer: Outcome | TandemError
    at: datetime

    @property
    def word(self) -> str:
        """The answer, for `telling.came_of`."""
        return self.answer.reason.value if isinstance(self.answer, TandemError) else self.answer.value


def resolve(
    participant: Participant,
    resolver: Resolver,
    key: TransactionKey,
    operator: Operator,
    *,
    timeout_s: float = ASK_S,
) -> Resolved:
    """Asks the coordinator now, parked or not, and applies what it answers, as the sweeper would.

    Undecided is fenced only once its driver has surely given up (R3). What can't be ended now stays due: the sweeper
    comes back to it. Raises NOT_FOUND, or INVALID_REQUEST if nothing is to be asked.
    """
    at = _due(participant, key, operator, "resolve")
    after_s = participant.times.push_after_s
    with local_transaction(participant.engine) as connection:
        (row,) = rows.met(connection, [key])
    if row.state == State.PREPARED.value:
        met = resolver.meet([key], by=ResolvedBy.SWEEPER, timeout_s=timeout_s, fence_after_s=after_s)
        return Resolved(met[key], at)
    # It was forced, so its driver has given up.
    questions = {key.coordinator: [in_doubt(row)]}
    ((_, _, settled),) = resolver.settle(questions, by=ResolvedBy.SWEEPER, timeout_s=timeout_s)
    return Resolved(settled if isinstance(settled, TandemError) else settled[key], at)


def retry(participant: Participant, key: TransactionKey, operator: Operator) -> datetime:
    """Has the sweeper ask for it as soon as that may be, parked or not: not while its driver may be at work.

    Raises NOT_FOUND, or INVALID_REQUEST if nothing is to be asked.
    """
    return _due(participant, key, operator, "retry")


def _due(participant: Participant, key: TransactionKey, operator: Operator, action: str) -> datetime:
    soonest = rows.soonest(participant.times.push_after_s)
    return _change(participant, key, operator, action, ~t.c.confirmed, parked=None, next_attempt_at=soonest)


def close(participant: Participant, key: TransactionKey, operator: Operator) -> datetime:
    """Ends the asking for a decision: the contradiction was put right by hand, or the coordinator will never answer.

    The outcome stays what it is. Raises NOT_FOUND, or INVALID_REQUEST for what is confirmed, or still prepared: force
    it first.
    """
    forced = sa.and_(t.c.state != State.PREPARED.value, ~t.c.confirmed)
    return _change(participant, key, operator, "close", forced, parked=None, confirmed=True, next_attempt_at=None)


def _change(
    participant: Participant,
    key: TransactionKey,
    operator: Operator,
    action: str,
    where: sa.ColumnElement[bool],
    **values: object,
) -> datetime:
    with local_transaction(participant.engine) as connection:
        changed = connection.execute(
            sa.update(t)
            .where(t.c.coordinator == key.coordinator, t.c.transaction_id == key.transaction_id, where)
            .values(**values)
            .returning(t.c.state)
        ).one_or_none()
        if changed is None:
            raise _ended(rows.read(connection, [key]), key)
        at = record(connection, participant_action, operator, action, key, changed.state)
    log.warning("done by hand", action=action, transaction=str(key), actor=operator.actor)
    return at


def _unfit(read: rows.Read, key: TransactionKey, push_after_s: float) -> TandemError:
    held = read.held.get(key)
    if held is not None and held.state is State.PREPARED:
        young = f"is younger than push_after ({push_after_s:g} s): its driver may be at work yet"
        return InvalidRequest([Violation("transaction", young)])
    return _ended(read, key)


def _ended(read: rows.Read, key: TransactionKey) -> TandemError:
    held = read.held.get(key)
    if held is None:
        return TandemError("nothing is known of this transaction here", reason=Reason.NOT_FOUND)
    return InvalidRequest([Violation("transaction", f"is {held.state.value}: there is nothing of the kind to be done")])
