"""Any sequence of calls, valid or not, against a reference made from the participant's table (design §2).

Hypothesis chooses the calls: few ids of two coordinators, few names, two logs, ids that have expired or lie ahead, rows
that grow old, batches, sweeps, an operator's hand, purges. After each call the answers are those of the table, and the
database holds what the reference says and nothing else. A failing sequence is shrunk, and printed with what repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tandem.participant import operating
from tandem.participant.participant import Ask, HeldByAnother, Participant, Yes
from tandem.participant.purge import Purge
from tandem.participant.tables import prepared_transaction
from tandem.participant.transaction import ResolvedBy, State
from tandem.runtime.actions import Operator
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.times import DAY_S, Times
from tests.support.house import COORDINATOR, Member, entry, member, new_id, packed
from tests.support.ledger import account
from tests.support.rules import OUTCOMES, ScriptedCoordinator

NAMES = ("ada", "grace", "mary", "edith")
LOGS = (uuid4(), uuid4())
SECOND = "second initiator"
FULL = bool(os.environ.get("TANDEM_FULL"))

FRESH = 4
EXPIRED, AHEAD, TWIN, OTHER = range(FRESH, FRESH + 4)
"""After the fresh ones: an id that has expired, one from the future, the first one's at a second coordinator that is
believed, and another of that coordinator's."""

names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple)
slots = st.integers(0, OTHER)
"""Which of a run's ids."""
ANSWERS = ("COMMITTED", "ABORTED", "UNDECIDED", "IN_PROGRESS", "WRONG_LOG", "EXPIRED")
often = st.sampled_from([True, True, False])
"""Whether a call is to be one that can do something."""
outcomes = st.sampled_from([State.COMMITTED, State.ABORTED])
drivers = st.sampled_from([by for by in ResolvedBy if by is not ResolvedBy.OPERATOR])
operator = Operator("hypothesis", "to see what happens")


@dataclass
class Reference:
    """What the table says of one transaction; the columns of its row, where there is one."""

    state: str = "unknown"
    content: tuple[tuple[str, ...], UUID] | None = None
    confirmed: bool = False
    by: str | None = None
    parked: str | None = None
    old: bool = False
    """It was prepared push_after ago."""
    forgettable: bool = False
    """It ended more than retention ago."""

    @property
    def row(self) -> tuple[str, bool, str | None, str | None, int]:
        """state, confirmed, resolved_by, parked, staged."""
        return self.state, self.confirmed, self.by, self.parked, len(self.content[0]) if self.content else 0

    def ends(self, state: str, by: str, *, confirmed: bool = True) -> None:
        self.state, self.by, self.confirmed, self.parked = state, by, confirmed, None


class Table(RuleBasedStateMachine):
    """One run: ids and names of its own."""

    where: Member
    script: ScriptedCoordinator

    @initialize()
    def begin(self) -> None:
        self.participant: Participant = self.where.participant
        self.purge = Purge(self.where.engine, Times(), self.where.metrics)
        self.run = uuid4().hex[:8]
        ids = [new_id() for _ in range(FRESH)] + [new_id(age_s=29 * DAY_S + 60), new_id(age_s=-DAY_S - 3600)]
        self.keys = [TransactionKey(COORDINATOR, id_) for id_ in ids]
        self.keys += [TransactionKey(SECOND, ids[0]), TransactionKey(SECOND, new_id())]
        self.of = [Reference() for _ in self.keys]
        self.expired = {EXPIRED}
        self.kept: set[str] = set()
        """Names whose transactions were forgotten: the entities stay."""

    def teardown(self) -> None:
        """What a run has left would be swept by the next one."""
        with self.where.engine.begin() as connection:
            connection.execute(sa.delete(prepared_transaction))
            connection.execute(sa.delete(account))

    # --- the calls ----------------------------------------------------------------------------------------------

    @rule(slot=slots, wanted=names, log=st.sampled_from(LOGS), fitting=often)
    def prepare(self, slot: int, wanted: tuple[str, ...], log: UUID, fitting: bool) -> None:
        """One Prepare."""
        slot = self._where(slot, lambda known: known.state == "unknown", fitting)
        self._prepare([(slot, wanted)], log)

    @rule(some=st.lists(st.tuples(slots, names), min_size=2, max_size=5), log=st.sampled_from(LOGS))
    def prepare_many(self, some: list[tuple[int, tuple[str, ...]]], log: UUID) -> None:
        """A batch, whose transactions may want the same names, and may be asked for twice."""
        self._prepare(some, log)

    @rule(slot=slots, ttl_s=st.sampled_from([60, 8, 0]), deadline_s=st.sampled_from([7, 8, 60]))
    def prepare_in_bad_time(self, slot: int, ttl_s: int, deadline_s: int) -> None:
        """A ttl that is not above push_after, or a driver's deadline that is not below it, is refused for any id."""
        if (ttl_s, deadline_s) != (60, 7):
            ask = replace(self._ask(slot, ("ada",), LOGS[0]), ttl_s=ttl_s, driver_deadline_s=deadline_s)
            assert [told(answer) for answer in self.participant.prepare([ask])] == ["INVALID_REQUEST"]

    @rule(some=st.lists(slots, min_size=1, max_size=5), by=drivers)
    def commit(self, some: list[int], by: ResolvedBy) -> None:
        """A batch of Commits, perhaps with repeats."""
        expected = [self._ended(slot, "committed", by) for slot in some]
        assert self._end(some, self.participant.commit, by) == expected

    @rule(some=st.lists(slots, min_size=1, max_size=5), by=drivers)
    def abort(self, some: list[int], by: ResolvedBy) -> None:
        """A batch of Aborts, perhaps with repeats."""
        expected = [self._ended(slot, "aborted", by) for slot in some]
        assert self._end(some, self.participant.abort, by) == expected

    @rule(slot=slots)
    def stranger(self, slot: int) -> None:
        """A coordinator that is not believed: nothing happens, whatever it asks."""
        key = TransactionKey("stranger", self.keys[slot].transaction_id)
        ask = Ask(key, LOGS[0], 60, 7, packed(entry("x")))
        assert [told(answer) for answer in self.participant.prepare([ask])] == ["COORDINATOR_UNKNOWN"]
        assert [told(answer) for answer in self.participant.commit([key], ResolvedBy.READER)] == ["COORDINATOR_UNKNOWN"]

    @rule(slot=slots)
    def nothing_to_write(self, slot: int) -> None:
        """A Prepare without writes is no transaction."""
        ask = replace(self._ask(slot, (), LOGS[0]), writes=[])
        assert [told(answer) for answer in self.participant.prepare([ask])] == ["INVALID_REQUEST"]

    # --- time, the sweeper, an operator ---------------------------------------------------------------------------

    @rule(answer=st.sampled_from(ANSWERS), slot=slots, wanted=names)
    def sweep(self, answer: str, slot: int, wanted: tuple[str, ...]) -> None:
        """All that is in doubt is due, perhaps one more, and the coordinators give this answer (R9)."""
        self._prepare([(self._where(slot, lambda known: known.state == "unknown", True), wanted)], LOGS[0])
        with self.where.engine.begin() as connection:
            connection.execute(sa.update(prepared_transaction).values(next_attempt_at=sa.func.now()))
        self.script.outcome = OUTCOMES.Value(f"OUTCOME_{answer}")
        ended = 0
        for known in self.of:
            if known.state == "unknown" or known.confirmed or known.parked:
                continue
            match answer:
                case "COMMITTED" | "ABORTED" if known.state == "prepared":
                    known.ends(answer.lower(), "sweeper")
                    ended += 1
                case "COMMITTED" | "ABORTED" if known.state == answer.lower():
                    known.confirmed = True
                    ended += 1
                case "COMMITTED" | "ABORTED":
                    known.parked = f"ALREADY_{known.state.upper()}"
                case "EXPIRED":
                    known.parked = "expired"
        assert self.where.sweeper.run_once() == ended

    @rule(slot=slots, outcome=outcomes, dry_run=st.booleans(), fitting=often)
    def force(self, slot: int, outcome: State, dry_run: bool, fitting: bool) -> None:
        """An operator ends what is in doubt; it is to be confirmed (R5)."""
        slot = self._where(slot, lambda known: known.state == "prepared", fitting)
        known = self.of[slot]
        expected = {"unknown": "NOT_FOUND", "prepared": "OK"}.get(known.state, "INVALID_REQUEST")
        key = self.keys[slot]
        force = partial(operating.force, self.participant, key, outcome, operator, dry_run=dry_run)
        if expected == "OK" and not known.old:
            assert done(force) == "INVALID_REQUEST", "its driver may be at work yet"
            self.where.make_old(key.transaction_id, coordinator=key.coordinator)
            known.old = True
        assert done(force) == expected
        if expected == "OK" and not dry_run:
            known.ends(outcome.value, "operator", confirmed=False)

    @rule(slot=slots, fitting=often)
    def close(self, slot: int, fitting: bool) -> None:
        """An operator ends the asking about what was forced."""
        slot = self._where(slot, lambda known: known.by == "operator" and not known.confirmed, fitting)
        known = self.of[slot]
        may = known.state in ("committed", "aborted") and not known.confirmed
        expected = "NOT_FOUND" if known.state == "unknown" else "OK" if may else "INVALID_REQUEST"
        assert done(lambda: operating.close(self.participant, self.keys[slot], operator)) == expected
        if may:
            known.confirmed, known.parked = True, None

    @rule(slot=slots, fitting=often)
    def retry(self, slot: int, fitting: bool) -> None:
        """An operator has what is parked asked for again."""
        slot = self._where(slot, lambda known: known.parked is not None, fitting)
        known = self.of[slot]
        expected = "NOT_FOUND" if known.state == "unknown" else "INVALID_REQUEST" if known.confirmed else "OK"
        assert done(lambda: operating.retry(self.participant, self.keys[slot], operator)) == expected
        if expected == "OK":
            known.parked = None

    @rule(slot=slots, days=st.sampled_from([29.1, 31]), finished=often)
    def grows_old(self, slot: int, days: float, finished: bool) -> None:
        """Time passes for one transaction that is known here: its id expires, though it has a row."""
        slot = self._where(slot, lambda known: known.state in ("committed", "aborted"), finished)
        known, old = self.of[slot], self.keys[slot]
        if known.state == "unknown" or slot in self.expired:
            return
        key = self.keys[slot] = TransactionKey(old.coordinator, new_id(age_s=days * DAY_S))
        self.expired.add(slot)
        known.forgettable = days > 30 and known.state != "prepared"
        t = prepared_transaction.c
        with self.where.engine.begin() as connection:
            connection.execute(
                sa.update(prepared_transaction)
                .where(t.coordinator == old.coordinator, t.transaction_id == old.transaction_id)
                .values(
                    transaction_id=key.transaction_id, resolved_at=t.resolved_at - sa.text(f"interval '{days} days'")
                )
            )
            connection.execute(
                sa.update(account)
                .where(account.c.coordinator == old.coordinator, account.c.transaction_id == old.transaction_id)
                .values(transaction_id=key.transaction_id)
            )

    @rule(slot=slots, outcome=outcomes, by=drivers)
    def end(self, slot: int, outcome: State, by: ResolvedBy) -> None:
        """What is prepared ends."""
        slot = self._where(slot, lambda known: known.state == "prepared", True)
        (self.commit if outcome is State.COMMITTED else self.abort)([slot], by)

    @rule()
    def purges(self) -> None:
        """Finished rows are forgotten when they and their ids are old enough; their entities stay (R14)."""
        forgotten = 0
        for slot, known in enumerate(self.of):
            if known.forgettable and known.state in ("committed", "aborted") and known.confirmed and not known.parked:
                if known.state == "committed" and known.content:
                    self.kept |= set(known.content[0])
                self.of[slot] = Reference()
                forgotten += 1
        assert self.purge.run_once() == forgotten

    # --- the reference --------------------------------------------------------------------------------------------

    def _prepare(self, some: Sequence[tuple[int, tuple[str, ...]]], log: UUID) -> None:
        """A batch of Prepares. Who gets a name that several want is not laid down: that one of them does, is."""
        answers = self.participant.prepare([self._ask(slot, wanted, log) for slot, wanted in some])
        expected = [self._known(slot, wanted, log) for slot, wanted in some]
        seen: set[int] = set()
        lost: list[tuple[set[str], Yes | TandemError]] = []
        won: list[str] = []
        for (slot, wanted), answer, known in zip(some, answers, expected, strict=True):
            if slot in seen:
                known = "DUPLICATE_IN_BATCH"
            seen.add(slot)
            if known is not None:
                assert told(answer) == known
            elif isinstance(answer, Yes):
                self.of[slot] = Reference("prepared", (wanted, log))
                won += wanted
            else:
                lost.append((set(wanted), answer))
        assert len(won) == len(set(won)), "a name has one holder"
        for wanted_names, answer in lost:
            assert isinstance(answer, HeldByAnother)
            holder = self.of[self.keys.index(answer.holder)]
            assert holder.state == "prepared"
            assert holder.content is not None
            assert wanted_names & set(holder.content[0]), "it is in nobody's way"

    def _known(self, slot: int, wanted: tuple[str, ...], log: UUID) -> str | None:
        """The answer to a Prepare; None where only others of its batch can be in its way."""
        known = self.of[slot]
        if known.state == "aborted":
            return "TRANSACTION_ABORTED"
        if known.state != "unknown":
            return "OK" if known.content == (wanted, log) else "TRANSACTION_REUSED"
        if slot in self.expired:
            return "TRANSACTION_EXPIRED"
        if slot == AHEAD:
            return "TRANSACTION_AHEAD"
        holders = {state for name, state in self._accounts().items() if name in wanted}
        if holders:
            return "ALREADY_EXISTS" if "active" in holders else "HELD"
        return None

    def _ended(self, slot: int, to: str, by: ResolvedBy) -> str:
        """The answer to a Commit or an Abort, and what it does."""
        known = self.of[slot]
        if known.state == "prepared":
            known.ends(to, by.value)
        elif known.state == to and not known.confirmed:
            known.confirmed, known.parked = True, None
        elif known.state == "unknown":
            if slot == AHEAD:
                return "TRANSACTION_AHEAD"
            if slot in self.expired:
                return "TRANSACTION_EXPIRED" if to == "committed" else "OK"
            if to == "committed":
                return "TRANSACTION_UNKNOWN"
            known.ends("aborted", by.value)
        return "OK" if known.state == to else f"ALREADY_{known.state.upper()}"

    def _accounts(self) -> dict[str, str]:
        """name → state of every entity that there should be."""
        there = dict.fromkeys(self.kept, "active")
        for known in self.of:
            if known.state in ("prepared", "committed") and known.content:
                there |= dict.fromkeys(known.content[0], "active" if known.state == "committed" else "prepared")
        return there

    @invariant()
    def the_database_agrees(self) -> None:
        """Its rows are the reference's, with who ended them and whether they are confirmed: no more, no fewer."""
        if not hasattr(self, "of"):
            return
        with self.where.engine.connect() as connection:
            t = prepared_transaction.c
            rows = {
                TransactionKey(row.coordinator, row.transaction_id): tuple(row[2:])
                for row in connection.execute(
                    sa.select(t.coordinator, t.transaction_id, t.state, t.confirmed, t.resolved_by, t.parked, t.staged)
                )
            }
            accounts = dict(connection.execute(sa.select(account.c.name, account.c.state)).all())
        there = zip(self.keys, self.of, strict=True)
        assert rows == {key: known.row for key, known in there if known.state != "unknown"}
        assert accounts == {f"{self.run}-{name}": state for name, state in self._accounts().items()}

    # --- shared ---------------------------------------------------------------------------------------------------

    def _where(self, slot: int, fits: Callable[[Reference], bool], fitting: bool) -> int:
        """If it is to be a fitting one, and there is any that has not expired: the slot of such a one."""
        some = [each for each, known in enumerate(self.of) if fits(known) and each not in self.expired | {AHEAD}]
        return some[slot % len(some)] if fitting and some else slot

    def _ask(self, slot: int, wanted: tuple[str, ...], log: UUID) -> Ask:
        return Ask(self.keys[slot], log, 60, 7, packed(*(entry(f"{self.run}-{name}") for name in wanted)))

    def _end(
        self,
        some: list[int],
        call: Callable[[Sequence[TransactionKey], ResolvedBy], Sequence[TandemError | None]],
        by: ResolvedBy,
    ) -> list[str]:
        return [told(answer) for answer in call([self.keys[slot] for slot in some], by)]


def told(answer: Yes | TandemError | None) -> str:
    """The reason, or OK."""
    return answer.reason.value if isinstance(answer, TandemError) else "OK"


def done(work: Callable[[], object]) -> str:
    """The same of what raises."""
    try:
        work()
    except TandemError as error:
        return told(error)
    return "OK"


@pytest.fixture(scope="module")
def coordinators() -> Iterator[ScriptedCoordinator]:
    """Who answers for both coordinators."""
    script = ScriptedCoordinator()
    yield script
    script.stop()


@pytest.fixture(scope="module")
def ledger(new_database: Callable[[str], str], coordinators: ScriptedCoordinator) -> Iterator[Member]:
    """A participant of its own."""
    believed = dict.fromkeys([COORDINATOR, SECOND], coordinators.address)
    made = member("ledger", new_database("properties"), believed, Times())
    yield made
    made.server.drain(0)
    made.resolver.close()
    made.engine.dispose()


def test_any_sequence_of_calls(ledger: Member, coordinators: ScriptedCoordinator) -> None:
    """80 sequences of up to forty calls; a thousand with --full."""
    made = type("TableOf", (Table,), {"where": ledger, "script": coordinators})
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=1_000 if FULL else 80,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
