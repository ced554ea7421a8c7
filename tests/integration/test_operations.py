"""What an operator does at a participant from afar, over real gRPC: with the token, as by command, and not without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tandem.participant.tables import participant_action
from tandem.runtime.auth import bearer
from tandem.runtime.channel import open_channel
from tandem.v1 import coordinator_pb2, operations_pb2_grpc, transaction_pb2
from tandem.v1 import operations_pb2 as pb
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own
from tests.support.rules import counted

TOKEN = "canary-operator-token"
WITH = (bearer(TOKEN),)
COMMITTED = transaction_pb2.TRANSACTION_STATE_COMMITTED
ABORTED = transaction_pb2.TRANSACTION_STATE_ABORTED
Stub = operations_pb2_grpc.ParticipantOperationsServiceStub


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """`ledger` takes orders, `other` is not configured to."""
    with built(new_database, tokens={"ledger": TOKEN}) as house:
        yield house


@pytest.fixture
def stub(house: House) -> Iterator[Stub]:
    with open_channel(f"127.0.0.1:{house.ledger.server.port}") as channel:
        yield Stub(channel)


def forcing(tx_id: object, outcome: Any = ABORTED, **fields: Any) -> pb.ForceTransactionRequest:
    given = {"actor": "ada", "reason": "the initiator's database is gone for good", **fields}
    return pb.ForceTransactionRequest(key=key(tx_id), outcome=outcome, **given)


def resolving(tx_id: object) -> pb.ResolveNowRequest:
    return pb.ResolveNowRequest(key=key(tx_id), actor="ada", reason="the user waits")


def key(tx_id: object) -> transaction_pb2.TransactionKey:
    return transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(tx_id))


def allowed(call: Any, request: Any) -> Any:
    return call(request, timeout=10, metadata=WITH)


def refused(call: Any, request: Any, metadata: Any = WITH) -> tuple[grpc.StatusCode, str, str]:
    """(code, reason, message) of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10, metadata=metadata)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    if status is not None:
        assert status.details[0].Unpack(info)
        assert info.domain == "tandem"
    assert TOKEN not in str(caught.value)
    return caught.value.code(), info.reason, caught.value.details()  # type: ignore[attr-defined]


def deeds(house: House, tx_id: Any) -> list[tuple[Any, ...]]:
    """(action, actor, detail, reason, seconds ago) of each."""
    t = participant_action.c
    ago_s = sa.extract("epoch", sa.func.now() - t.at)
    with house.ledger.engine.connect() as connection:
        statement = sa.select(t.action, t.actor, t.detail, t.reason, ago_s).where(t.transaction_id == tx_id)
        return [tuple(row) for row in connection.execute(statement.order_by(t.action_id))]


def decide(house: House, tx: Any) -> None:
    with house.engine.begin() as connection:
        connection.execute(sa.insert(own).values(id=tx.id))
        connection.execute(tx.decision)


def test_without_a_token_in_the_configuration_there_is_no_service(house: House) -> None:
    """Whatever a call carries: nobody can be let in by mistake."""
    tx = house.coordinator.prepare({"other": [entry(fresh_name())]})
    with open_channel(f"127.0.0.1:{house.other.server.port}") as channel:
        stub = Stub(channel)
        for metadata in ((), (bearer(TOKEN),), (bearer(""),)):
            for call, request in ((stub.ForceTransaction, forcing(tx.id)), (stub.ResolveNow, resolving(tx.id))):
                assert refused(call, request, metadata)[0] is grpc.StatusCode.UNIMPLEMENTED
    row: Any = house.other.row(tx.id)
    assert row.state == "prepared"
    tx.finish()


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (bearer(""),),
        (bearer(TOKEN[:-1]),),
        (bearer(f"{TOKEN}x"),),
        (bearer(TOKEN.upper()),),
        (bearer(TOKEN), bearer("another-operator-token")),
        (("x-authorization", f"Bearer {TOKEN}"),),
    ],
)
def test_without_the_token_nothing_is_done(house: House, stub: Stub, metadata: Any) -> None:
    """UNAUTHENTICATED, whether it is missing or wrong; nothing is changed, asked or recorded."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    before = house.ledger.row(tx.id)
    for call, request in ((stub.ForceTransaction, forcing(tx.id)), (stub.ResolveNow, resolving(tx.id))):
        code, reason, said = refused(call, request, metadata)
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert said == "the operator's token is missing or wrong"
    assert house.ledger.row(tx.id) == before
    assert house.ledger.accounts(name) == {name: "prepared"}
    assert deeds(house, tx.id) == []
    tx.finish()


@pytest.mark.parametrize(("outcome", "word"), [(COMMITTED, "committed"), (ABORTED, "aborted")])
def test_a_transaction_is_forced(house: House, stub: Stub, outcome: Any, word: str) -> None:
    """A dry run tells the same and changes nothing; then it is done, counted, and recorded with who, why and when."""
    name = fresh_name()
    tx = house.left_in_doubt(entry(name), entry(fresh_name()))
    before = house.ledger.row(tx.id)
    dry = allowed(stub.ForceTransaction, forcing(tx.id, outcome, dry_run=True))
    assert (dry.staged, dry.found, dry.HasField("record_time")) == (2, 2, False)
    assert dry.transaction.state == transaction_pb2.TRANSACTION_STATE_PREPARED
    assert house.ledger.row(tx.id) == before
    assert house.ledger.accounts(name) == {name: "prepared"}
    assert deeds(house, tx.id) == []

    counter = counted(house.ledger.registry, "tandem_outcomes_total", outcome=word, via="operator")
    done = allowed(stub.ForceTransaction, forcing(tx.id, outcome))
    assert (done.staged, done.found) == (2, 2)
    assert (done.transaction.state, done.transaction.confirmed) == (outcome, False)
    assert done.transaction.resolved_by == transaction_pb2.RESOLVED_BY_OPERATOR
    assert house.ledger.accounts(name) == ({name: "active"} if word == "committed" else {})
    assert counted(house.ledger.registry, "tandem_outcomes_total", outcome=word, via="operator") == counter + 1
    ((action, actor, detail, reason, ago_s),) = deeds(house, tx.id)
    assert (action, actor, detail) == ("force", "ada", f"{word}, 2 rows")
    assert reason == "the initiator's database is gone for good"
    assert done.HasField("record_time")
    assert 0 <= ago_s < 600

    code, reason, said = refused(stub.ForceTransaction, forcing(tx.id, outcome))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert f"is {word}: there is nothing of the kind to be done" in said
    assert len(deeds(house, tx.id)) == 1


def test_what_is_not_in_doubt_is_not_forced(house: House, stub: Stub) -> None:
    """Unknown, finished, or no outcome at all; a name and a reason are never optional."""
    unknown = new_id()
    assert refused(stub.ForceTransaction, forcing(unknown))[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert refused(stub.ResolveNow, resolving(unknown))[:2] == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    finished = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    finished.finish()
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    for call, request in (
        (stub.ForceTransaction, forcing(finished.id, COMMITTED)),
        (stub.ForceTransaction, forcing(finished.id, ABORTED, dry_run=True)),
        (stub.ResolveNow, resolving(finished.id)),
        (stub.ForceTransaction, forcing(tx.id, transaction_pb2.TRANSACTION_STATE_PREPARED)),
        (stub.ForceTransaction, forcing(tx.id, transaction_pb2.TRANSACTION_STATE_UNSPECIFIED)),
        (stub.ForceTransaction, forcing(tx.id)),  # it is young: its driver may be at work
        (stub.ForceTransaction, forcing(tx.id, actor="")),
        (stub.ForceTransaction, forcing(tx.id, reason="no")),
    ):
        assert refused(call, request)[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert deeds(house, finished.id) == deeds(house, tx.id) == []
    row: Any = house.ledger.row(tx.id)
    assert row.state == "prepared"
    tx.finish()


@pytest.mark.parametrize(("outcome", "reason"), [(COMMITTED, "ALREADY_COMMITTED"), (ABORTED, "ALREADY_ABORTED")])
def test_r5_a_forced_outcome_that_the_decision_contradicts_is_loud(
    house: House, stub: Stub, outcome: Any, reason: str
) -> None:
    """ "agreement confirms it, contradiction parks it and pages": forced from afar like by command."""
    house.ledger.sweeper.run_once()  # what other tests have forced is due, too
    tx = house.left_in_doubt(entry(fresh_name()))
    if outcome == ABORTED:
        decide(house, tx)
    allowed(stub.ForceTransaction, forcing(tx.id, outcome))
    before = counted(house.ledger.registry, "tandem_contradictions_total", reason=reason)
    house.ledger.make_due(tx.id)
    house.ledger.sweeper.run_once()
    assert counted(house.ledger.registry, "tandem_contradictions_total", reason=reason) == before + 1
    row: Any = house.ledger.row(tx.id)
    assert (row.confirmed, row.parked) == (False, reason)


def test_a_decision_is_asked_for_now(house: House, stub: Stub) -> None:
    """Committed: published, and recorded. Undecided: left, since its driver may be at work; later it is fenced."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    decide(house, tx)
    house.ledger.set(tx.id, parked="expired", next_attempt_at=None)
    answer = allowed(stub.ResolveNow, resolving(tx.id))
    assert answer.result.status.code == 0
    assert answer.result.outcome == coordinator_pb2.ResolveResult.OUTCOME_COMMITTED
    assert (answer.transaction.state, answer.transaction.confirmed) == (COMMITTED, True)
    assert house.ledger.accounts(name) == {name: "active"}
    assert [deed[:4] for deed in deeds(house, tx.id)] == [("resolve", "ada", "prepared", "the user waits")]

    young = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    answer = allowed(stub.ResolveNow, resolving(young.id))
    assert answer.result.outcome == coordinator_pb2.ResolveResult.OUTCOME_UNDECIDED
    assert answer.transaction.state == transaction_pb2.TRANSACTION_STATE_PREPARED
    assert house.outcome(young.id) is None, "it was not fenced (R3)"
    longer_ago = sa.func.now() - timedelta(seconds=house.times.push_after_s + 1)
    house.ledger.set(young.id, prepared_at=longer_ago)
    answer = allowed(stub.ResolveNow, resolving(young.id))
    assert (answer.result.outcome, answer.transaction.state) == (coordinator_pb2.ResolveResult.OUTCOME_ABORTED, ABORTED)
    assert house.outcome(young.id) == "aborted"


def test_a_coordinator_that_does_not_answer(new_database: Callable[[str], str]) -> None:
    """Why it could not be ended is said in the answer; it stays in doubt."""
    with built(new_database, names=("ledger",), tokens={"ledger": TOKEN}) as house:
        tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
        house.server.drain(0)
        with open_channel(f"127.0.0.1:{house.ledger.server.port}") as channel:
            answer = allowed(Stub(channel).ResolveNow, resolving(tx.id))
        assert answer.result.status.code in (grpc.StatusCode.UNAVAILABLE.value[0], 4)
        assert answer.result.outcome == coordinator_pb2.ResolveResult.OUTCOME_UNSPECIFIED
        assert answer.transaction.state == transaction_pb2.TRANSACTION_STATE_PREPARED


def test_nothing_is_begun_that_nobody_waits_for(house: House, stub: Stub) -> None:
    """A deed whose answer would come too late is not done at all."""
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    with pytest.raises(grpc.RpcError) as caught:
        stub.ForceTransaction(forcing(tx.id), timeout=0.4, metadata=WITH)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    assert deeds(house, tx.id) == []
    row: Any = house.ledger.row(tx.id)
    assert row.state == "prepared"
    tx.finish()
