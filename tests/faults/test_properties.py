"""Any sequence of calls, valid or not, against a reference made from the participant's table (design §2).

Hypothesis chooses the calls: few ids, few names, two logs, ids that have expired, batches. After each call the answers
are those of the table, and the database holds what the reference says and nothing else. A failing sequence is shrunk,
and printed with what repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tandem.participant.participant import Ask, Participant, Yes
from tandem.participant.tables import prepared_transaction
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.times import DAY_S, Times
from tests.support.house import COORDINATOR, Member, entry, member, new_id, packed
from tests.support.ledger import account

NAMES = ("ada", "grace", "mary")
LOGS = (uuid4(), uuid4())
FULL = bool(os.environ.get("TANDEM_FULL"))

names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple)
slots = st.integers(0, 4)
"""Which of a run's ids: the last one has expired."""


@dataclass
class Reference:
    """What the table says of one transaction."""

    state: str = "unknown"
    content: tuple[tuple[str, ...], UUID] | None = None


class Table(RuleBasedStateMachine):
    """One run: ids and names of its own."""

    where: Member

    @initialize()
    def begin(self) -> None:
        self.participant: Participant = self.where.participant
        self.run = uuid4().hex[:8]
        self.ids = [new_id() for _ in range(4)] + [new_id(age_s=29 * DAY_S + 60)]
        self.of = {id_: Reference() for id_ in self.ids}

    # --- the calls ----------------------------------------------------------------------------------------------

    @rule(slot=slots, wanted=names, log=st.sampled_from(LOGS))
    def prepare(self, slot: int, wanted: tuple[str, ...], log: UUID) -> None:
        """One Prepare."""
        expected = self._prepared(self.ids[slot], wanted, log)
        (answer,) = self.participant.prepare([self._ask(self.ids[slot], wanted, log)])
        assert told(answer) == expected

    @rule(some=st.lists(slots, min_size=2, max_size=5, unique=True), log=st.sampled_from(LOGS))
    def prepare_many(self, some: list[int], log: UUID) -> None:
        """A batch, each with a name of its own, so that none is in another's way."""
        batch = [(self.ids[slot], (f"own-{slot}",), log) for slot in some]
        expected = [self._prepared(*one) for one in batch]
        assert [told(answer) for answer in self.participant.prepare([self._ask(*one) for one in batch])] == expected

    @rule(some=st.lists(slots, min_size=1, max_size=5))
    def commit(self, some: list[int]) -> None:
        """A batch of Commits, perhaps with repeats."""
        expected = self._ended(some, "committed", "TRANSACTION_UNKNOWN", "ALREADY_ABORTED")
        assert self._end(some, self.participant.commit) == expected

    @rule(some=st.lists(slots, min_size=1, max_size=5))
    def abort(self, some: list[int]) -> None:
        """A batch of Aborts, perhaps with repeats."""
        expected = self._ended(some, "aborted", "OK", "ALREADY_COMMITTED")
        assert self._end(some, self.participant.abort) == expected

    @rule(slot=slots)
    def stranger(self, slot: int) -> None:
        """A coordinator that is not believed: nothing happens, whatever it asks."""
        key = TransactionKey("stranger", self.ids[slot])
        ask = Ask(key, LOGS[0], 60, 7, packed(entry("x")))
        assert [told(answer) for answer in self.participant.prepare([ask])] == ["COORDINATOR_UNKNOWN"]
        assert [told(answer) for answer in self.participant.commit([key], ResolvedBy.READER)] == ["COORDINATOR_UNKNOWN"]

    @rule(slot=slots)
    def nothing_to_write(self, slot: int) -> None:
        """A Prepare without writes is no transaction."""
        ask = Ask(TransactionKey(COORDINATOR, self.ids[slot]), LOGS[0], 60, 7, [])
        assert [told(answer) for answer in self.participant.prepare([ask])] == ["INVALID_REQUEST"]

    # --- the reference --------------------------------------------------------------------------------------------

    def _prepared(self, id_: UUID, wanted: tuple[str, ...], log: UUID) -> str:
        known = self.of[id_]
        if known.state == "aborted":
            return "TRANSACTION_ABORTED"
        if known.state != "unknown":
            return "OK" if known.content == (wanted, log) else "TRANSACTION_REUSED"
        if self._expired(id_):
            return "TRANSACTION_EXPIRED"
        holders = {
            other.state for other in self.of.values() if other.content and set(other.content[0]) & set(wanted)
            and other.state in ("prepared", "committed")
        }  # fmt: skip
        if holders:
            return "ALREADY_EXISTS" if "committed" in holders else "HELD"
        known.state, known.content = "prepared", (wanted, log)
        return "OK"

    def _ended(self, some: list[int], to: str, unknown: str, other: str) -> list[str]:
        answers = {}
        for slot in some:
            known, expired = self.of[self.ids[slot]], self._expired(self.ids[slot])
            if known.state == "prepared" or (known.state == "unknown" and to == "aborted" and not expired):
                known.state = to
            if known.state == "unknown":
                answers[slot] = "TRANSACTION_EXPIRED" if expired and to == "committed" else unknown
            else:
                answers[slot] = "OK" if known.state == to else other
        return [answers[slot] for slot in some]

    def _expired(self, id_: UUID) -> bool:
        return id_ == self.ids[-1]

    @invariant()
    def the_database_agrees(self) -> None:
        """Its rows are the reference's: no more, no fewer."""
        if not hasattr(self, "of"):
            return
        with self.where.engine.connect() as connection:
            t = prepared_transaction.c
            states = dict(
                connection.execute(sa.select(t.transaction_id, t.state).where(t.transaction_id.in_(self.ids))).all()
            )
            accounts = dict(
                connection.execute(
                    sa.select(account.c.name, account.c.state).where(account.c.name.like(f"{self.run}-%"))
                ).all()
            )
        assert states == {id_: known.state for id_, known in self.of.items() if known.state != "unknown"}
        assert accounts == {
            f"{self.run}-{name}": "active" if known.state == "committed" else "prepared"
            for known in self.of.values()
            if known.state in ("prepared", "committed") and known.content
            for name in known.content[0]
        }

    # --- shared ---------------------------------------------------------------------------------------------------

    def _ask(self, id_: UUID, wanted: tuple[str, ...], log: UUID) -> Ask:
        writes = packed(*(entry(f"{self.run}-{name}") for name in wanted))
        return Ask(TransactionKey(COORDINATOR, id_), log, 60, 7, writes)

    def _end(
        self, some: list[int], call: Callable[[Sequence[TransactionKey], ResolvedBy], Sequence[TandemError | None]]
    ) -> list[str]:
        keys = [TransactionKey(COORDINATOR, self.ids[slot]) for slot in some]
        return [told(answer) for answer in call(keys, ResolvedBy.COORDINATOR)]


def told(answer: Yes | TandemError | None) -> str:
    """The reason, or OK."""
    return answer.reason.value if isinstance(answer, TandemError) else "OK"


@pytest.fixture(scope="module")
def ledger(new_database: Callable[[str], str]) -> Member:
    """A participant of its own."""
    return member("ledger", new_database("properties"), {COORDINATOR: "127.0.0.1:1"}, Times())


def test_any_sequence_of_calls(ledger: Member) -> None:
    """150 sequences of up to forty calls; a thousand with --full."""
    made = type("TableOf", (Table,), {"where": ledger})
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=1_000 if FULL else 150,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    ledger.server.drain(0)
    ledger.resolver.close()
    ledger.engine.dispose()
