"""R14: "Only finished rows, when both the row and the id are older than retention", in bounded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine

from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.coordinator.purge import FINISHED as DECIDED
from tandem.coordinator.purge import Purge as DecisionPurge
from tandem.coordinator.tables import MIGRATIONS as COORDINATOR_MIGRATIONS
from tandem.coordinator.tables import decision
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.purge import FINISHED as ENDED
from tandem.participant.purge import Purge as ParticipantPurge
from tandem.participant.tables import MIGRATIONS as PARTICIPANT_MIGRATIONS
from tandem.participant.tables import prepared_transaction
from tandem.runtime import purge
from tandem.runtime.database import create_engine
from tandem.runtime.times import DAY_S, Times
from tests.support.house import new_id

TIMES = Times()
OLD_S = TIMES.retention_s + 3_600.0
YOUNG_S = TIMES.retention_s - 3_600.0


@pytest.fixture
def engine(new_database: Callable[[str], str]) -> Iterator[Engine]:
    """A database with the tables of both halves, for one test."""
    made = create_engine(new_database("purge"))
    COORDINATOR_MIGRATIONS.upgrade(made)
    PARTICIPANT_MIGRATIONS.upgrade(made)
    yield made
    made.dispose()


def ago(seconds: float) -> sa.ColumnElement[object]:
    return sa.func.now() - timedelta(seconds=seconds)


def transaction(
    engine: Engine, *, id_s: float = OLD_S, row_s: float = OLD_S, name: str = "one", **values: object
) -> UUID:
    """A participant's row whose id and end are so old; committed and confirmed unless values say otherwise."""
    made = {
        "coordinator": name, "transaction_id": new_id(age_s=id_s), "log_id": uuid4(), "digests": b"", "staged": 0,
        "state": "committed", "confirmed": True, "resolved_at": ago(row_s), **values,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.insert(prepared_transaction).values(**made))
    return UUID(str(made["transaction_id"]))


def decided(engine: Engine, *, id_s: float = OLD_S, row_s: float = OLD_S, name: str = "one", **values: object) -> UUID:
    """A decision, likewise; committed and acknowledged by everybody unless values say otherwise."""
    made = {
        "coordinator": name, "transaction_id": new_id(age_s=id_s), "outcome": "committed", "participants": {},
        "undelivered": [], "parked": {}, "decided_at": ago(row_s), **values,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.insert(decision).values(**made))
    return UUID(str(made["transaction_id"]))


def left(engine: Engine, table: sa.Table) -> set[UUID]:
    with engine.connect() as connection:
        return set(connection.execute(sa.select(table.c.transaction_id)).scalars())


def test_r14_what_a_participant_forgets(engine: Engine) -> None:
    """ "at a participant: committed or aborted, and confirmed by the coordinator"."""
    for values in ({}, {"state": "aborted"}, {"name": "another"}):
        transaction(engine, **values)  # type: ignore[arg-type]
    kept = {
        transaction(engine, row_s=YOUNG_S),
        transaction(engine, id_s=YOUNG_S),
        transaction(engine, id_s=0, row_s=0),
        transaction(engine, state="prepared", confirmed=False, resolved_at=None),
        transaction(engine, confirmed=False),
        transaction(engine, state="aborted", confirmed=False),
        transaction(engine, parked="expired"),
    }
    metrics = ParticipantMetrics(CollectorRegistry())
    assert ParticipantPurge(engine, TIMES, metrics).run_once() == 3
    assert left(engine, prepared_transaction) == kept
    assert metrics.purged._value.get() == 3
    assert ParticipantPurge(engine, TIMES, metrics).run_once() == 0


def test_r14_what_a_decision_log_forgets(engine: Engine) -> None:
    """ "finished: aborted; or committed and acknowledged by every participant. … parked … are never finished"."""
    for values in ({}, {"outcome": "aborted"}, {"name": "another"}):
        decided(engine, **values)  # type: ignore[arg-type]
    kept = {
        decided(engine, row_s=YOUNG_S),
        decided(engine, id_s=YOUNG_S),
        decided(engine, undelivered=["profiles"]),
        decided(engine, parked={"profiles": "TRANSACTION_UNKNOWN"}),
    }
    metrics = CoordinatorMetrics(CollectorRegistry())
    assert DecisionPurge(engine, TIMES, metrics).run_once() == 3
    assert left(engine, decision) == kept


@pytest.mark.parametrize(("batch", "max_batches", "purged"), [(3, 100, 10), (3, 2, 5), (10, 100, 10), (1, 4, 4)])
def test_r14_in_bounded_batches(engine: Engine, batch: int, max_batches: int, purged: int) -> None:
    """R16: so many rows a statement, so many statements a run; unfinished rows among them are no obstacle."""
    stuck = set()
    for number in range(10):
        transaction(engine, name=f"c{number % 2}")
        stuck.add(transaction(engine, name=f"c{number % 2}", confirmed=False))
    done = purge.purge(
        engine, prepared_transaction, finished=ENDED, finished_at=prepared_transaction.c.resolved_at,
        retention_ms=TIMES.retention_ms, batch=batch, max_batches=max_batches,
    )  # fmt: skip
    assert done == purged
    assert stuck <= left(engine, prepared_transaction)
    assert len(left(engine, prepared_transaction)) == 20 - purged


def test_r14_a_held_row_is_left(engine: Engine) -> None:
    """Somebody sits on a row: it is left for the next run, and nobody waits for it."""
    held, _ = decided(engine), decided(engine)
    with engine.begin() as connection:
        connection.execute(sa.select(decision).where(decision.c.transaction_id == held).with_for_update())
        assert DecisionPurge(engine, TIMES, CoordinatorMetrics(CollectorRegistry())).run_once() == 1
    assert left(engine, decision) == {held}
    assert DecisionPurge(engine, TIMES, CoordinatorMetrics(CollectorRegistry())).run_once() == 1


@pytest.mark.parametrize(("table", "finished", "at"), [
    (decision, DECIDED, "decided_at"), (prepared_transaction, ENDED, "resolved_at"),
])  # fmt: skip
def test_r14_a_purge_walks_the_key(engine: Engine, table: sa.Table, finished: sa.ColumnElement[bool], at: str) -> None:
    """ "batched, indexed, bounded": among 20,000 young rows it reads the key's beginning, not the table."""
    columns = {
        "decision": "'committed', '{}', '{}', '{}'",
        "prepared_transaction": "'committed', true, '', 0",
    }[table.name]  # fmt: skip
    names = {"decision": "outcome, participants, undelivered, parked",
             "prepared_transaction": "state, confirmed, digests, staged"}[table.name]  # fmt: skip
    with engine.begin() as connection:
        # UUIDv7s of the last day.
        connection.exec_driver_sql(
            f"INSERT INTO twophase.{table.name} (coordinator, transaction_id, {at}, {names}) "
            "SELECT 'one', (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - i), 12, '0') "
            f"|| '7000800000000000' || lpad(to_hex(i), 4, '0'))::uuid, now() - interval '40 days', {columns} "
            "FROM generate_series(1, 20000) i"
        )
        connection.exec_driver_sql(f"ANALYZE twophase.{table.name}")
        statement = purge._old(table, "one", finished, table.c[at], TIMES.retention_ms, 1000)
        asked = sa.select(statement).params(after=UUID(int=0)).compile(engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {asked}").scalars())
    assert f"Index Scan using {table.name}_pkey" in plan, plan
    assert "Seq Scan" not in plan, plan


def test_retention_is_at_least_four_days() -> None:
    """R14: "default 30 days, at least 4"."""
    assert TIMES.retention_s == 30 * DAY_S
