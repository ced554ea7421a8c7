"""The gauges that come from the databases: what they say, to whom, after what, and what they cost."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine, make_url

from lab.proxy import Act, Fault, TcpProxy
from tandem.coordinator import gauges as at_coordinator
from tandem.coordinator import operating as deliveries
from tandem.coordinator.gauges import CoordinatorGauges
from tandem.coordinator.tables import decision
from tandem.participant import gauges as at_participant
from tandem.participant import operating
from tandem.participant.gauges import ParticipantGauges
from tandem.participant.purge import Purge
from tandem.participant.tables import prepared_transaction
from tandem.participant.transaction import State
from tandem.runtime.actions import Operator
from tandem.runtime.database import create_engine
from tandem.runtime.gauges import MAX_COUNTED, gauges_engine
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.process import metrics_page
from tandem.runtime.times import Times
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id
from tests.support.rules import eventually

ME = Operator("ada", "the coordinator is gone")
IN_DOUBT = ("tandem_prepared_transactions", "tandem_unconfirmed_transactions")
MANY = 200_000


@pytest.fixture(scope="module")
def built_house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database, names=("ledger", "other")) as house:
        yield house


@pytest.fixture
def house(built_house: House) -> House:
    """One in which nothing has happened yet."""
    house = built_house
    tables = {house.engine: "decision", house.ledger.engine: "prepared_transaction, twophase.participant_action"}
    for engine, names in tables.items():
        with engine.begin() as connection:
            connection.exec_driver_sql(f"TRUNCATE twophase.{names}")
    return house


def replica(collector: Collector) -> CollectorRegistry:
    """What a process that has just started would show."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


def by_reason(registry: CollectorRegistry, name: str, **labels: str) -> dict[str, float]:
    """Reason → number parked, of a gauge's series with these labels."""
    return {
        sample.labels["reason"]: sample.value
        for family in registry.collect()
        if family.name == name
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


def above_0(counts: dict[str, float]) -> dict[str, float]:
    return {reason: n for reason, n in counts.items() if n}


def parked_there(house: House) -> dict[str, float]:
    """Why the participant has parked how many."""
    registry = replica(ParticipantGauges(house.ledger.engine, [COORDINATOR]))
    return by_reason(registry, "tandem_parked_transactions", coordinator=COORDINATOR)


def parked_deliveries(house: House, participant: str) -> dict[str, float]:
    """Why how many deliveries to the participant are parked."""
    registry = replica(CoordinatorGauges(house.engine, name=COORDINATOR, participants=house.members))
    labels = {"coordinator": COORDINATOR, "participant": participant}
    return by_reason(registry, "tandem_parked_deliveries", **labels)


def in_doubt(house: House) -> dict[str, float]:
    """The participant's three gauges, of which two replicas say the same; parked for whatever reason."""
    pages = []
    for _ in range(2):
        registry = replica(ParticipantGauges(house.ledger.engine, [COORDINATOR]))
        values = {name: registry.get_sample_value(name, {"coordinator": COORDINATOR}) for name in IN_DOUBT}
        parked = sum(by_reason(registry, "tandem_parked_transactions", coordinator=COORDINATOR).values())
        pages.append(values | {"tandem_parked_transactions": parked})
    assert pages[0] == pages[1]
    return {name.split("_")[1]: value for name, value in pages[0].items() if value is not None}


def to_deliver(house: House) -> dict[str, dict[str, float | None]]:
    """The coordinator's gauges, participant by participant; parked for whatever reason."""
    registry = replica(CoordinatorGauges(house.engine, name=COORDINATOR, participants=house.members))
    found: dict[str, dict[str, float | None]] = {}
    for participant in house.members:
        labels = {"coordinator": COORDINATOR, "participant": participant}
        found[participant] = {
            "undelivered": registry.get_sample_value("tandem_undelivered_decisions", labels),
            "parked": sum(by_reason(registry, "tandem_parked_deliveries", **labels).values()),
        }
    return found


def oldest_prepared(house: House) -> float:
    registry = replica(ParticipantGauges(house.ledger.engine, [COORDINATOR]))
    found = registry.get_sample_value("tandem_oldest_prepared_timestamp_seconds")
    assert found is not None
    return found


def oldest_undelivered(house: House, name: str = COORDINATOR) -> float:
    registry = replica(CoordinatorGauges(house.engine, name=name, participants=house.members))
    found = registry.get_sample_value("tandem_oldest_undelivered_timestamp_seconds", {"coordinator": name})
    assert found is not None
    return found


def forced(house: House) -> dict[str, float | None]:
    registry = replica(ParticipantGauges(house.ledger.engine, [COORDINATOR]))
    return {
        outcome: registry.get_sample_value("tandem_heuristic_outcomes_total", {"outcome": outcome})
        for outcome in ("committed", "aborted")
    }


def decided(house: House, *members: str) -> Any:
    """A transaction that is committed, and whose driver died before it told anybody."""
    tx = house.coordinator.prepare({member: [entry(fresh_name())] for member in members})
    with house.engine.begin() as connection:
        connection.execute(tx.decision)
    return tx


def test_prepared_and_its_age(house: House) -> None:
    """One more while it is prepared, none when it has ended; the age is the row's own, by the database's clock."""
    assert in_doubt(house) == {"prepared": 0, "parked": 0, "unconfirmed": 0}
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    assert in_doubt(house) == {"prepared": 1, "parked": 0, "unconfirmed": 0}
    house.ledger.set(tx.id, prepared_at=sa.text("now() - interval '700 seconds'"), next_attempt_at=sa.func.now())
    row: Any = house.ledger.row(tx.id)
    assert oldest_prepared(house) == pytest.approx(row.prepared_at.timestamp())
    tx.finish()
    assert in_doubt(house) == {"prepared": 0, "parked": 0, "unconfirmed": 0}
    assert oldest_prepared(house) > row.prepared_at.timestamp() + 600, "the present time where there is none"


def test_a_long_ttl_is_not_late(house: House) -> None:
    """A transaction whose initiator has asked for a day is in doubt, and tells no age until it is due, was asked for
    (its time is ahead again then), or is parked."""
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    old, ahead = sa.text("now() - interval '700 seconds'"), sa.text("now() + interval '20 hours'")
    house.ledger.set(tx.id, prepared_at=old, next_attempt_at=ahead)
    row: Any = house.ledger.row(tx.id)
    since = row.prepared_at.timestamp()
    assert in_doubt(house)["prepared"] == 1
    assert oldest_prepared(house) > since + 600, "it may take that long"
    house.ledger.set(tx.id, attempts=1)
    assert oldest_prepared(house) == pytest.approx(since)
    house.ledger.set(tx.id, attempts=0, next_attempt_at=sa.func.now())
    assert oldest_prepared(house) == pytest.approx(since)
    house.ledger.set(tx.id, next_attempt_at=None, parked="expired")
    assert oldest_prepared(house) == pytest.approx(since)
    house.ledger.set(tx.id, next_attempt_at=ahead, parked=None)
    tx.finish()


def test_forced_and_parked(house: House) -> None:
    """A forced outcome is unconfirmed, a contradicted one parked too, a closed one neither; the counter stays."""
    assert forced(house) == {"committed": 0, "aborted": 0}
    right = house.left_in_doubt(entry(fresh_name()))
    operating.force(house.ledger.participant, right.key, State.ABORTED, ME, dry_run=True)
    assert forced(house) == {"committed": 0, "aborted": 0}, "a dry run does nothing"
    operating.force(house.ledger.participant, right.key, State.ABORTED, ME)
    assert in_doubt(house) == {"prepared": 0, "parked": 0, "unconfirmed": 1}
    house.ledger.make_due(right.id)
    house.ledger.sweeper.run_once()
    assert in_doubt(house) == {"prepared": 0, "parked": 0, "unconfirmed": 0}, "confirmed by the coordinator"

    wrong = decided(house, "ledger")
    house.ledger.make_old(wrong.id)
    operating.force(house.ledger.participant, wrong.key, State.ABORTED, ME)
    house.ledger.make_due(wrong.id)
    house.ledger.sweeper.run_once()
    assert in_doubt(house) == {"prepared": 0, "parked": 1, "unconfirmed": 1}
    assert above_0(parked_there(house)) == {"ALREADY_ABORTED": 1}
    operating.close(house.ledger.participant, wrong.key, ME)
    assert in_doubt(house) == {"prepared": 0, "parked": 0, "unconfirmed": 0}

    other = house.left_in_doubt(entry(fresh_name()))
    operating.force(house.ledger.participant, other.key, State.COMMITTED, ME)
    assert forced(house) == {"committed": 1, "aborted": 2}
    for tx in (right, wrong):
        with house.ledger.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE twophase.prepared_transaction"
                    " SET transaction_id = :old, resolved_at = now() - interval '40 days' WHERE transaction_id = :id"
                ),
                {"old": new_id(age_s=40 * 86_400), "id": tx.id},
            )
    assert Purge(house.ledger.engine, Times(), house.ledger.metrics).run_once() == 2
    assert forced(house) == {"committed": 1, "aborted": 2}, "what was done by hand is not forgotten with the rows"


def test_undelivered_and_its_age(house: House) -> None:
    """One for each participant that has not acknowledged; none after recovery."""
    nothing: dict[str, float | None] = {"undelivered": 0, "parked": 0}
    assert to_deliver(house) == {"ledger": nothing, "other": nothing}
    tx = decided(house, "ledger", "other")
    house.coordinator.log.delivered({"other": [tx.key]})
    assert to_deliver(house) == {"ledger": {"undelivered": 1, "parked": 0}, "other": nothing}
    row = house.coordinator.log.get(tx.key)
    assert row is not None
    assert oldest_undelivered(house) == pytest.approx(row.decided_at.timestamp())
    assert oldest_undelivered(house, "another") > row.decided_at.timestamp(), "whose decisions are in the same log"
    house.coordinator.log.retry_now(tx.key)
    house.recovery.run_once()
    assert to_deliver(house) == {"ledger": nothing, "other": nothing}
    assert oldest_undelivered(house) > row.decided_at.timestamp()


def test_parked_deliveries(house: House) -> None:
    """A delivery that contradicts is parked at its participant until a person closes it."""
    tx = decided(house, "ledger")
    with house.ledger.engine.begin() as connection:
        connection.execute(sa.delete(prepared_transaction).where(prepared_transaction.c.transaction_id == tx.id))
    house.coordinator.log.retry_now(tx.key)
    house.recovery.run_once()
    assert to_deliver(house)["ledger"] == {"undelivered": 0, "parked": 1}
    assert above_0(parked_deliveries(house, "ledger")) == {"TRANSACTION_UNKNOWN": 1}
    assert to_deliver(house)["other"] == {"undelivered": 0, "parked": 0}
    deliveries.close(house.coordinator.log, tx.key, "ledger", ME)
    assert to_deliver(house)["ledger"] == {"undelivered": 0, "parked": 0}


def test_parked_by_reason(house: House) -> None:
    """Each reason that parks has its number from the start, 0; what a row says beyond them is "other"."""
    contradictions = {"TRANSACTION_UNKNOWN", "ALREADY_COMMITTED", "ALREADY_ABORTED", "PUBLISHED_NOT_STAGED"}
    assert parked_there(house) == dict.fromkeys({*contradictions, "expired", "other"}, 0)
    nothing = dict.fromkeys({*contradictions, "TRANSACTION_EXPIRED", "other"}, 0)
    assert parked_deliveries(house, "ledger") == parked_deliveries(house, "other") == nothing

    for reason in ("expired", "expired", "PUBLISHED_NOT_STAGED", "of a later version"):
        tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
        house.ledger.set(tx.id, parked=reason, next_attempt_at=None)
    assert above_0(parked_there(house)) == {"expired": 2, "PUBLISHED_NOT_STAGED": 1, "other": 1}

    for reasons in (
        {"ledger": "TRANSACTION_EXPIRED", "other": "ALREADY_ABORTED"},
        {"ledger": "TRANSACTION_EXPIRED"},
        {"ledger": "of a later version"},
    ):
        tx = decided(house, "ledger", "other")
        for participant, reason in reasons.items():
            house.coordinator.log.park(participant, {tx.key: reason})
    assert above_0(parked_deliveries(house, "ledger")) == {"TRANSACTION_EXPIRED": 2, "other": 1}
    assert above_0(parked_deliveries(house, "other")) == {"ALREADY_ABORTED": 1}


@pytest.mark.parametrize("collector", [
    lambda engine: ParticipantGauges(engine, [COORDINATOR]),
    lambda engine: CoordinatorGauges(engine, name=COORDINATOR, participants=["ledger"]),
])  # fmt: skip
def test_a_database_that_is_away(collector: Callable[[Engine], Collector]) -> None:
    """No gauge at all, and the rest of the page is still there: an alert can see the absence."""
    registry = replica(collector(create_engine("postgresql://nobody@127.0.0.1:1/nowhere")))
    Counter("something_else", "Counted by the process.", registry=registry)
    page = generate_latest(registry)
    assert b"something_else_total 0.0" in page
    assert b"tandem_" not in page


def scraped(address: str) -> str:
    """As Prometheus does it, with the patience of `scrape_timeout`."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=4) as page:
        return str(page.read().decode())


@pytest.mark.parametrize("cold", [False, True], ids=["a connection that was used", "a new connection"])
def test_a_database_that_says_nothing(house: House, postgres: EmbeddedPostgres, cold: bool) -> None:
    """It takes its own gauges from the page, and nothing else: the page is there before a scrape gives up."""
    url = make_url(postgres.tcp_url(str(house.ledger.engine.url.database)))
    registry = CollectorRegistry()
    Counter("something_else", "Counted by the process.", registry=registry)
    with ExitStack() as stack:
        proxy = stack.enter_context(TcpProxy(f"{url.host}:{url.port}"))
        through = url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable", "gssencmode": "disable"})
        engine = gauges_engine(through, name="test-gauges")
        stack.callback(engine.dispose)
        registry.register(ParticipantGauges(engine, [COORDINATOR]))
        address = metrics_page("127.0.0.1:0", registry, stack, service="test", ready=lambda: True)
        if not cold:
            assert IN_DOUBT[0] in scraped(address)
        proxy.set(Fault(Act.SILENCE))
        page = scraped(address)
        assert "something_else_total 0.0" in page
        assert IN_DOUBT[0] not in page
        proxy.heal()
        eventually(lambda: IN_DOUBT[0] in scraped(address))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def scanned(engine: Engine, statement: sa.Executable, table: sa.Table) -> list[tuple[str, str]]:
    """How the plan reads the table: (node, index)."""
    compiled = statement.compile(engine, compile_kwargs={"literal_binds": True})
    with engine.connect() as connection:
        (plan,) = connection.exec_driver_sql("EXPLAIN (FORMAT JSON) " + str(compiled).replace("%", "%%")).scalar_one()
    found = list(nodes(plan["Plan"]))
    indexes = [node for node in found if "Index Name" in node]
    whole = [node for node in found if node["Node Type"] == "Seq Scan" and node["Relation Name"] == table.name]
    return [(node["Node Type"], node.get("Index Name", "")) for node in (*indexes, *whole)]


def filled(engine: Engine, table: str, columns: str, values: str, many: int = MANY) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO twophase.{table} (coordinator, transaction_id, {columns})"
            f" SELECT '{COORDINATOR}', gen_random_uuid(), {values} FROM generate_series(1, {many})"
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM ANALYZE twophase.{table}")


PREPARED = "digests, staged, state, confirmed, resolved_at, resolved_by, next_attempt_at, parked, prepared_at"


def test_they_cost_what_is_left_to_do(house: House) -> None:
    """Among 200,000 finished transactions, each is read by a partial index: never by looking at all of them."""
    values = "'', 1, 'committed', true, now(), 'coordinator', NULL, NULL, now()"
    filled(house.ledger.engine, "prepared_transaction", PREPARED, values)
    filled(house.engine, "decision", "outcome, participants, undelivered, parked", "'committed', '{}', '{}', '{}'")
    tx = decided(house, "ledger")
    due = "prepared_transaction_due"
    plan = scanned(house.ledger.engine, at_participant._IN_DOUBT, prepared_transaction)
    assert {index for _, index in plan} == {due}, plan
    for statement, index in (
        (at_coordinator._undelivered(COORDINATOR), "decision_undelivered"),
        (at_coordinator._parked(COORDINATOR), "decision_parked"),
    ):
        plan = scanned(house.engine, statement, decision)
        assert [found for _, found in plan] == [index], plan
    assert in_doubt(house)["prepared"] == 1
    assert to_deliver(house)["ledger"]["undelivered"] == 1
    tx.finish()


def test_a_flood_is_counted_up_to_a_limit(house: House) -> None:
    """A scrape costs a bounded time: the number stays at the limit, what is parked and what is oldest is still seen."""
    waiting = "'', 1, 'prepared', false, NULL, NULL, now() + interval '60 s', NULL, now()"
    filled(house.ledger.engine, "prepared_transaction", PREPARED, waiting, MAX_COUNTED + 50)
    old = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    house.ledger.set(old.id, prepared_at=sa.text("now() - interval '700 seconds'"), next_attempt_at=sa.func.now())
    parked = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    house.ledger.set(parked.id, parked="expired", next_attempt_at=None)
    assert in_doubt(house) == {"prepared": MAX_COUNTED + 1, "parked": 1, "unconfirmed": 0}
    row: Any = house.ledger.row(old.id)
    assert oldest_prepared(house) == pytest.approx(row.prepared_at.timestamp())

    undelivered = "'committed', '{}', '{ledger}', '{}', now()"
    columns = "outcome, participants, undelivered, parked, next_attempt_at"
    filled(house.engine, "decision", columns, undelivered, MAX_COUNTED + 50)
    assert to_deliver(house)["ledger"] == {"undelivered": MAX_COUNTED, "parked": 0}
