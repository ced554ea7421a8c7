"""Four sweepers and four recoveries at once, and real processes side by side, over the same databases (R11).

Nobody may run alone by chance: each worker's first claim waits for the others', and none goes on before all have made
theirs. So each of them holds a part of what is due while the others work.
"""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.engine import Row

from lab.processes import Service
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.tables import decision
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.sweeper import Sweeper
from tandem.participant.tables import prepared_transaction
from tests.faults.crash_house import ABORTED, COMMITTED, EVER, eventually
from tests.faults.crash_house import House as CrashHouse
from tests.faults.crash_house import built as crash_built
from tests.faults.initiator import Kind
from tests.support.house import COORDINATOR, House, Member, built, entry, fresh_name, in_threads, own
from tests.support.ledger import Ledger

REPLICAS = 4
BATCH = 5
MANY = 60
"""Transactions: three times what the first claims of all replicas take."""


class Meeting:
    """Where the replicas wait for each other around their first claims; what each of them has claimed."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(REPLICAS)
        self.claims: dict[int, list[object]] = {}

    def around(self, who: object, claim: Callable[[], Sequence[Row[Any]]]) -> Sequence[Row[Any]]:
        first = id(who) not in self.claims
        mine = self.claims.setdefault(id(who), [])
        if first:
            self._barrier.wait(30)
        rows = claim()
        mine.extend(row.transaction_id for row in rows)
        if first:
            self._barrier.wait(30)
        return rows


class MeetingSweeper(Sweeper):
    meeting: Meeting

    def _claim(self, *args: Any, **options: Any) -> Sequence[Row[Any]]:
        return self.meeting.around(self, lambda: super(MeetingSweeper, self)._claim(*args, **options))


class MeetingRecovery(Recovery):
    meeting: Meeting

    def _claim(self, *args: Any, **options: Any) -> Sequence[Row[Any]]:
        return self.meeting.around(self, lambda: super(MeetingRecovery, self)._claim(*args, **options))


@pytest.fixture
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """A house of one participant."""
    with built(new_database, names=["ledger"]) as made:
        yield made


def left(house: House, *, decided: int, undecided: int) -> dict[str, str]:
    """Leaves transactions in doubt, and due for sweepers and recoveries; what each account's state is to become."""
    wanted = {}
    for number in range(decided + undecided):
        name = fresh_name()
        tx = house.coordinator.prepare({"ledger": [entry(name)]})
        if number < decided:
            with house.engine.begin() as connection:
                connection.execute(sa.insert(own).values(id=tx.id))
                connection.execute(tx.decision)
            wanted[name] = "active"
    for engine, table in ((house.engine, decision), (house.ledger.engine, prepared_transaction)):
        with engine.begin() as connection:
            connection.execute(sa.update(table).values(next_attempt_at=sa.func.now()))
    return wanted


def replica(where: Member, house: House, stack: ExitStack) -> tuple[MeetingSweeper, CollectorRegistry]:
    """A sweeper of a participant that runs twice: with connections, questions and counters of its own."""
    registry = CollectorRegistry()
    coordinators = {COORDINATOR: f"127.0.0.1:{house.server.port}"}
    metrics = ParticipantMetrics(registry)
    participant = Participant(
        where.engine, name=where.name, resource=Ledger(), coordinators=coordinators, times=house.times, metrics=metrics
    )
    resolver = Resolver(participant, coordinators)
    stack.callback(resolver.close)
    return MeetingSweeper(where.engine, resolver, metrics, batch=BATCH), registry


def held_apart(claims: dict[int, list[object]]) -> None:
    """All have claimed, all together everything, and none what another has."""
    assert len(claims) == REPLICAS
    assert all(len(mine) >= BATCH for mine in claims.values())
    everything = [key for mine in claims.values() for key in mine]
    assert len(everything) == len(set(everything)) == MANY


def test_four_sweepers_at_once(house: House) -> None:
    """R11: "any number of replicas": four sweepers hold claims at the same time, each ends what it holds, and together
    they end each transaction exactly once."""
    wanted = left(house, decided=MANY // 2, undecided=MANY // 2)
    MeetingSweeper.meeting = meeting = Meeting()
    with ExitStack() as stack:
        replicas = [replica(house.ledger, house, stack) for _ in range(REPLICAS)]
        ended = in_threads(*(sweeper.run_once for sweeper, _ in replicas))
    held_apart(meeting.claims)
    assert sum(ended) == MANY  # type: ignore[arg-type]
    assert all(isinstance(count, int) and count >= BATCH for count in ended), ended
    applied = [
        sum(registry.get_sample_value("tandem_outcomes_total", {"outcome": outcome, "via": "sweeper"}) or 0
            for outcome in (COMMITTED, ABORTED))
        for _, registry in replicas
    ]  # fmt: skip
    assert applied == ended, "each has applied what it says, and no row was changed twice"
    assert house.ledger.accounts(*wanted) == wanted
    with house.ledger.engine.connect() as connection:
        t = prepared_transaction.c
        rows = connection.execute(sa.select(t.state, t.attempts, sa.func.count()).group_by(t.state, t.attempts)).all()
    assert sorted(map(tuple, rows)) == [(ABORTED, 1, MANY // 2), (COMMITTED, 1, MANY // 2)]


def test_four_recoveries_at_once(house: House) -> None:
    """R11: the same of recovery: four hold claims at the same time, and each delivery is made exactly once."""
    wanted = left(house, decided=MANY, undecided=0)
    MeetingRecovery.meeting = meeting = Meeting()
    replicas = [MeetingRecovery(house.another_coordinator(), batch=BATCH) for _ in range(REPLICAS)]
    made = in_threads(*(recovery.run_once for recovery in replicas))
    held_apart(meeting.claims)
    assert sum(made) == MANY  # type: ignore[arg-type]
    assert all(isinstance(count, int) and count >= BATCH for count in made), made
    assert house.ledger.accounts(*wanted) == wanted
    outcomes = {"outcome": COMMITTED, "via": "recovery"}
    assert house.ledger.registry.get_sample_value("tandem_outcomes_total", outcomes) == MANY
    with house.engine.connect() as connection:
        undelivered = sa.select(decision.c.undelivered, decision.c.attempts).distinct()
        assert connection.execute(undelivered).all() == [([], 1)]


# --- processes --------------------------------------------------------------------------------------------------------

EACH_ROUND = 6
ROUNDS = 20


def metric(service: Service, name: str, **labels: str) -> int:
    """The sum of what its metrics page says, over the labels that are not given."""
    with urllib.request.urlopen(f"http://{service.metrics}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return int(
        sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    )


def two_of(house: CrashHouse, name: str, **settings: str) -> list[Service]:
    """The service and a replica of it, with other settings and a metrics page each."""
    first = house.services[name]
    second = house.another(name)
    for service in (first, second):
        service.environment = {**service.environment, **settings}
        house.restart(service)
    return [first, second]


def due_for_both(house: CrashHouse, database: str, table: str, which: str) -> None:
    """Makes these rows due when both replicas' claims wait for them, so that neither is first by its clock's phase."""
    due = f"UPDATE {table} SET next_attempt_at = now() WHERE {which}"
    with house.locked(database, f"LOCK TABLE {table} IN SHARE MODE; {due}", commits=True) as waiter:
        waiter(many=2)


def test_two_profiles_processes_and_two_coordinators() -> None:
    """R11: two profiles processes sweep one database and two coordinator processes recover one log. All four end
    something, and together they end each transaction exactly once."""
    with crash_built() as house:
        page = "127.0.0.1:0"
        sweepers = two_of(house, "profiles", PROFILES_SWEEP_BATCH="2", PROFILES_METRICS_LISTEN=page)
        recoveries = two_of(house, "coordinator", COORDINATOR_RECOVERY_BATCH="2", COORDINATOR_METRICS_LISTEN=page)
        left = decided = 0

        def applied() -> list[int]:
            return [metric(service, "tandem_outcomes_total", via="sweeper") for service in sweepers]

        def delivered() -> list[int]:
            return [metric(service, "tandem_recovered_total") for service in recoveries]

        def reach(counted: Callable[[], list[int]], many: int) -> None:
            eventually(lambda: sum(counted()) >= many, lambda: f"{counted()} of {many}")

        for _ in range(ROUNDS):
            for number in range(2 * EACH_ROUND):
                house.leave(fresh_name("t").replace("-", ""), Kind.PERSON, ["profiles"], decided=number % 2 == 0)
            left += 2 * EACH_ROUND
            decided += EACH_ROUND
            due_for_both(house, "profiles", "twophase.prepared_transaction", "NOT confirmed")
            reach(applied, left)
            due_for_both(house, "identity", "twophase.decision", "undelivered <> '{}'")
            reach(delivered, decided)
            if min(applied()) > 0 and min(delivered()) > 0:
                break
        house.settled()
        print(f"{left} transactions; swept {applied()}, recovered {delivered()}")
        assert min(applied()) > 0
        assert min(delivered()) > 0
        assert (sum(applied()), sum(delivered())) == (left, decided)
        assert sum(metric(service, "tandem_sweep_claimed_total") for service in sweepers) == left
        stories = house.stories(EVER)
        assert sum(story.by == {"sweeper"} for story in stories.values()) == left
        assert sum(story.decision == COMMITTED for story in stories.values()) == decided + 1, "and the owner"
