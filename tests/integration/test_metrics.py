"""What the processes count by themselves: what each counter says before and after, and what is not counted twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest

from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Unavailable
from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.errors import PAGING, Reason
from tandem.runtime.server import CHECK, Server
from tandem.runtime.times import Times
from tandem.v1 import participant_pb2 as pb
from tests.support.house import COORDINATOR, House, Member, built, entry, fresh_name, member, new_id
from tests.support.ledger import account
from tests.support.rules import OUTCOMES, ScriptedCoordinator, asking, channel_to, counted, eventually, key_of

SERVICE = "tandem.v1.ParticipantService"


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database, names=("ledger",)) as house:
        yield house


# --- how long transactions were in doubt ------------------------------------------------------------------------------


def observed(registry: CollectorRegistry, outcome: str, via: str) -> tuple[float, float]:
    """How many transactions were ended like this, and for how many seconds all of them together were in doubt."""
    return (
        counted(registry, "tandem_in_doubt_seconds_count", outcome=outcome, via=via),
        counted(registry, "tandem_in_doubt_seconds_sum", outcome=outcome, via=via),
    )


def aged(seconds: int) -> sa.TextClause:
    return sa.text(f"now() - interval '{seconds} seconds'")


def test_time_in_doubt_of_a_commit(house: House) -> None:
    """From prepared to applied by the database's clock, once, however often the outcome is brought."""
    before = observed(house.ledger.registry, "committed", "coordinator")
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    house.ledger.set(tx.id, prepared_at=aged(100))
    with house.engine.begin() as connection:
        connection.execute(tx.decision)
    tx.finish()
    assert house.ledger.participant.commit([tx.key], ResolvedBy.COORDINATOR) == [None]
    count, seconds = observed(house.ledger.registry, "committed", "coordinator")
    assert count - before[0] == 1
    assert 100 <= seconds - before[1] < 200


def test_time_in_doubt_of_a_sweep(house: House) -> None:
    """The sweeper's are told from the others; a bucket up to a day holds them."""
    txs = [house.coordinator.prepare({"ledger": [entry(fresh_name())]}) for _ in range(3)]
    before = observed(house.ledger.registry, "aborted", "sweeper")
    for tx in txs:
        house.ledger.set(tx.id, prepared_at=aged(5_000), next_attempt_at=sa.func.now())
    bucket = {"outcome": "aborted", "via": "sweeper"}
    below = counted(house.ledger.registry, "tandem_in_doubt_seconds_bucket", **bucket, le="3600.0")
    assert house.ledger.sweeper.run_once() == 3
    count, seconds = observed(house.ledger.registry, "aborted", "sweeper")
    assert count - before[0] == 3
    assert 15_000 <= seconds - before[1] < 15_600
    assert counted(house.ledger.registry, "tandem_in_doubt_seconds_bucket", **bucket, le="3600.0") == below
    assert counted(house.ledger.registry, "tandem_in_doubt_seconds_bucket", **bucket, le="14400.0") == below + 3


def test_what_was_not_ended_is_not_observed(house: House) -> None:
    """The local commit did not come about, since not all is there to be published: nothing is counted but the page."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    with house.ledger.engine.begin() as connection:
        connection.execute(sa.delete(account).where(account.c.name == name))
    registry = house.ledger.registry
    before = observed(registry, "committed", "recovery"), counted(registry, "tandem_outcomes_total", via="recovery")
    pages = counted(registry, "tandem_contradictions_total", reason="PUBLISHED_NOT_STAGED")
    (answer,) = house.ledger.participant.commit([tx.key], ResolvedBy.RECOVERY)
    assert answer is not None
    assert (
        observed(registry, "committed", "recovery"),
        counted(registry, "tandem_outcomes_total", via="recovery"),
    ) == before
    assert counted(registry, "tandem_contradictions_total", reason="PUBLISHED_NOT_STAGED") == pages + 1
    tx.finish()


def test_contradictions_are_there_before_the_first() -> None:
    """With 0: a counter that begins with 1 is no increase, and no alert would see it."""
    for metrics in (ParticipantMetrics, CoordinatorMetrics):
        metrics(registry := CollectorRegistry())
        values = {r: registry.get_sample_value("tandem_contradictions_total", {"reason": r.value}) for r in PAGING}
        assert values == dict.fromkeys(PAGING, 0.0)


# --- a coordinator that can't be asked --------------------------------------------------------------------------------


@pytest.fixture
def orphan(new_database: Callable[[str], str]) -> Iterator[tuple[Member, ScriptedCoordinator]]:
    """A participant, and a coordinator that does what it is told."""
    scripted = ScriptedCoordinator()
    made = member("orphan", new_database("orphan"), {COORDINATOR: scripted.address}, Times())
    yield made, scripted
    made.server.drain(0)
    made.resolver.close()
    scripted.stop()
    made.engine.dispose()


def failures(where: Member, reason: Reason) -> float | None:
    labels = {"coordinator": COORDINATOR, "reason": reason.value}
    return where.registry.get_sample_value("tandem_resolve_failures_total", labels)


def test_a_coordinator_that_does_not_answer(orphan: tuple[Member, ScriptedCoordinator]) -> None:
    """Each question that got no answer is counted by its reason; an answer is no failure, whatever it says."""
    where, scripted = orphan
    assert failures(where, Reason.UNAVAILABLE) == 0, "there from the start"
    where.stub.Prepare(asking(new_id(), fresh_name()), timeout=10)
    scripted.stop()
    sweeper = Sweeper(where.engine, where.resolver, where.metrics)
    _make_due(where)
    assert sweeper.run_once() == 0
    assert (failures(where, Reason.UNAVAILABLE) or 0) + (failures(where, Reason.DEADLINE_PASSED) or 0) == 1
    scripted.start()
    _make_due(where)
    eventually(lambda: Sweeper(where.engine, where.resolver, where.metrics).run_once() == 1)
    told = counted(where.registry, "tandem_resolve_failures_total")
    where.stub.Prepare(asking(new_id(), fresh_name()), timeout=10)
    scripted.outcome = OUTCOMES.Value("OUTCOME_WRONG_LOG")
    _make_due(where)
    asked = len(scripted.asked)
    assert Sweeper(where.engine, where.resolver, where.metrics).run_once() == 0
    assert len(scripted.asked) == asked + 1
    assert counted(where.registry, "tandem_resolve_failures_total") == told


def _make_due(where: Member) -> None:
    with where.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE twophase.prepared_transaction SET next_attempt_at = now() WHERE NOT confirmed"
        )


# --- RPCs -------------------------------------------------------------------------------------------------------------


def handled(registry: CollectorRegistry, method: str, code: str, *, side: str = "server") -> float | None:
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": method, "grpc_code": code}
    return registry.get_sample_value(f"grpc_{side}_handled_total", labels)


def rpc(registry: CollectorRegistry, method: str, what: str) -> float | None:
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": method}
    return registry.get_sample_value(f"grpc_server_{what}", labels)


def test_calls_by_method_and_code(house: House) -> None:
    """Good ones, and those that validation refuses before a servicer sees them; each one is started and timed, too."""
    registry = house.ledger.registry
    method = "GetTransaction"
    before = [handled(registry, method, code) or 0 for code in ("NOT_FOUND", "INVALID_ARGUMENT")]
    started, timed = rpc(registry, method, "started_total"), rpc(registry, method, "handling_seconds_count")
    assert None not in (started, timed), "there before the first call"
    stub = house.ledger.stub
    missing = pb.ParticipantServiceGetTransactionRequest(key=key_of("01a20330-7c65-7c65-8c65-7c657c657c65"))
    for request in (missing, pb.ParticipantServiceGetTransactionRequest()):
        with pytest.raises(grpc.RpcError):
            stub.GetTransaction(request, timeout=10)
    with pytest.raises(grpc.RpcError):
        channel_to(house.ledger.server.port).unary_unary(f"/{SERVICE}/{method}")(b"\xff", timeout=10)
    after = [handled(registry, method, code) or 0 for code in ("NOT_FOUND", "INVALID_ARGUMENT")]
    assert [after[0] - before[0], after[1] - before[1]] == [1, 2]
    assert rpc(registry, method, "started_total") == (started or 0) + 3
    assert rpc(registry, method, "handling_seconds_count") == (timed or 0) + 3
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    ok = handled(registry, method, "OK") or 0
    stub.GetTransaction(pb.ParticipantServiceGetTransactionRequest(key=key_of(tx.id)), timeout=10)
    assert handled(registry, method, "OK") == ok + 1
    tx.finish()


@contextmanager
def small(servicer: ParticipantServicer) -> Iterator[tuple[Server, CollectorRegistry]]:
    """A server with one worker and no queue."""
    registry = CollectorRegistry()
    server = Server("127.0.0.1:0", workers=1, queue=0, registry=registry)
    servicer.add_to(server)
    server.start()
    try:
        yield server, registry
    finally:
        server.drain(0)


class Stuck(ParticipantServicer):
    """Its GetTransaction takes as long as the test likes, and then fails in a way that nobody foresaw."""

    def __init__(self, participant: Participant, resolver: Resolver) -> None:
        super().__init__(participant, resolver)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def GetTransaction(
        self, request: pb.ParticipantServiceGetTransactionRequest, context: grpc.ServicerContext
    ) -> pb.ParticipantServiceGetTransactionResponse:
        self.entered.set()
        self.go_on.wait(20)
        raise ZeroDivisionError


def test_calls_that_are_turned_away_or_fail(house: House) -> None:
    """RESOURCE_EXHAUSTED for the one beyond the limit, INTERNAL for the one with a bug; both are 0 before."""
    servicer = Stuck(house.ledger.participant, house.ledger.resolver)
    with small(servicer) as (server, registry), grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetTransaction")
        request = pb.ParticipantServiceGetTransactionRequest(key=key_of("01a20330-7c65-7c65-8c65-7c657c657c65"))
        method = "GetTransaction"
        codes = ("OK", "RESOURCE_EXHAUSTED", "INTERNAL")
        assert [handled(registry, method, code) for code in codes] == [0, 0, 0]
        first = call.future(request.SerializeToString(), timeout=30)
        assert servicer.entered.wait(20)
        load = {"tandem_rpc_pending": 1, "tandem_rpc_pending_limit": 1}
        assert {name: registry.get_sample_value(name, {"pool": "rpc"}) for name in load} == load
        with pytest.raises(grpc.RpcError):
            call(request.SerializeToString(), timeout=10)
        assert [handled(registry, method, code) for code in codes] == [0, 1, 0]
        servicer.go_on.set()
        assert first.code() is grpc.StatusCode.INTERNAL
        assert [handled(registry, method, code) for code in codes] == [0, 1, 1]
        assert rpc(registry, method, "started_total") == rpc(registry, method, "handling_seconds_count") == 2


def test_health_is_not_counted(house: House) -> None:
    """Neither when it is answered nor when too many ask for it at once."""
    servicer = ParticipantServicer(house.ledger.participant, house.ledger.resolver)
    with small(servicer) as (server, registry), grpc.insecure_channel(server.address) as channel:
        check, request = health_pb2_grpc.HealthStub(channel).Check, health_pb2.HealthCheckRequest()
        assert check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        server._reserved[CHECK].limit = 0
        with pytest.raises(grpc.RpcError) as caught:
            check(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        page = generate_latest(registry).decode()
        assert SERVICE in page
        assert "grpc.health" not in page


def test_calls_that_the_coordinator_makes(house: House) -> None:
    """Each attempt at a participant, by its code."""
    registry = CollectorRegistry()
    target = f"127.0.0.1:{house.ledger.server.port}"
    coordinator = Coordinator(house.engine, name=COORDINATOR, participants={"ledger": target}, registry=registry)
    with coordinator.transaction({"ledger": [entry(fresh_name())]}):
        pass
    assert [handled(registry, method, "OK", side="client") for method in ("Prepare", "Commit")] == [1, 1]
    coordinator.close()

    registry = CollectorRegistry()
    times = Times(prepare_deadline_s=0.5)
    gone = {"ledger": "127.0.0.1:1"}
    coordinator = Coordinator(house.engine, name=COORDINATOR, participants=gone, times=times, registry=registry)
    with pytest.raises(Unavailable), coordinator.transaction({"ledger": [entry(fresh_name())]}):
        pytest.fail("the block must not run")
    assert handled(registry, "Prepare", "OK", side="client") is None
    assert counted(registry, "grpc_client_handled_total") > 0
    coordinator.close()
