"""The rules of the protocol, each quoted by its number: the participant's table cell by cell, then R5 to R17.

Real PostgreSQL, real gRPC, unary and in batches. R1 to R4 and the decision log's table are proved elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct, Value
from prometheus_client import CollectorRegistry
from sqlalchemy import event

from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Refused, TransactionError, TransactionReused, Unavailable
from tandem.coordinator.handle import Transaction
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.tables import decision, log
from tandem.coordinator.transaction import Outcome
from tandem.participant import participant as participant_module
from tandem.participant.names import check_names
from tandem.participant.participant import Participant
from tandem.participant.resolver import Outcome as Answered
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.sweeper import LEASE_S
from tandem.participant.tables import prepared_transaction
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.claims import Peers
from tandem.runtime.database import check_server, explained
from tandem.runtime.digest import transaction_digest, write_digests
from tandem.runtime.errors import ConfigurationError, InvalidRequest, Reason, TandemError
from tandem.runtime.identifiers import Age, TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.server import Server
from tandem.runtime.times import Times
from tandem.v1 import coordinator_pb2, transaction_pb2
from tandem.v1 import participant_pb2 as pb
from tests.support.house import COORDINATOR, House, Member, built, entry, fresh_name, in_threads, member, new_id, own
from tests.support.ledger import Ledger, account
from tests.support.rules import (
    DAY_S,
    LOG,
    OUTCOMES,
    Answer,
    BareServer,
    Crossing,
    HandClock,
    ScriptedCoordinator,
    TamperedParticipant,
    Watching,
    Wire,
    abort_of,
    another_session,
    answer_of,
    asking,
    commit_of,
    counted,
    duration,
    ends,
    eventually,
    failure_of,
    key_of,
    preset,
    raw,
    seeded,
    served,
    sweeper,
)

NewDatabase = Callable[[str], str]
NewMember = Callable[..., Member]
Scripts = tuple[ScriptedCoordinator, ScriptedCoordinator]
Two = tuple[dict[str, TamperedParticipant], dict[str, Member], Coordinator]

CONTRADICTIONS = "tandem_contradictions_total"
OUTCOMES_APPLIED = "tandem_outcomes_total"
EXPIRED_S = 29 * DAY_S + 60
"""An id is expired from retention − 1 day on (R14)."""


@pytest.fixture(scope="module")
def house(new_database: NewDatabase) -> Iterator[House]:
    """The house that most tests share: each uses names and ids of its own."""
    with built(lambda name: preset(new_database(name), deadlock_timeout="50ms")) as house:
        yield house


@pytest.fixture(scope="module")
def new_member(new_database: NewDatabase) -> Iterator[NewMember]:
    """Makes a participant with a database of its own, for tests that count or break things."""
    with contextlib.ExitStack() as closing:

        def make(name: str, coordinators: dict[str, str], times: Times | None = None) -> Member:
            made = member(name, preset(new_database(name), deadlock_timeout="50ms"), coordinators, times or Times())
            closing.callback(made.engine.dispose)
            closing.callback(made.resolver.close)
            closing.callback(lambda: made.server.drain(0))
            return made

        yield make


@pytest.fixture(scope="module")
def alpha() -> Iterator[ScriptedCoordinator]:
    """A coordinator that answers what a test tells it."""
    scripted = ScriptedCoordinator()
    yield scripted
    scripted.stop()


@pytest.fixture(scope="module")
def beta() -> Iterator[ScriptedCoordinator]:
    """Another one."""
    scripted = ScriptedCoordinator()
    yield scripted
    scripted.stop()


@pytest.fixture(scope="module")
def edge(new_member: NewMember, alpha: ScriptedCoordinator, beta: ScriptedCoordinator) -> Member:
    """A participant that believes both."""
    return new_member("edge", {"alpha": alpha.address, "beta": beta.address, COORDINATOR: "127.0.0.1:1"})


@pytest.fixture
def scripts(alpha: ScriptedCoordinator, beta: ScriptedCoordinator) -> Scripts:
    """Both scripted coordinators, forgetful of the test before."""
    for scripted in (alpha, beta):
        scripted.outcome, scripted.error, scripted.answers = OUTCOMES.Value("OUTCOME_ABORTED"), None, -1
        scripted.meanwhile = lambda: None
        scripted.asked.clear()
        scripted.fenced.clear()
    return alpha, beta


@pytest.fixture(params=["unary", "batch"])
def way(request: pytest.FixtureRequest) -> bool:
    """Both ways to ask; True for batches."""
    return bool(request.param == "batch")


def key(transaction_id: UUID, coordinator: str = COORDINATOR) -> TransactionKey:
    return TransactionKey(coordinator, transaction_id)


def prepared(where: Member, *accounts: str, **options: object) -> UUID:
    """A transaction that is prepared there."""
    transaction_id = new_id()
    (answer,) = Wire(where.server.port).ask_all(asking(transaction_id, *accounts, **options))  # type: ignore[arg-type]
    assert answer.ok, answer
    return transaction_id


def due(house: House, *transaction_ids: UUID) -> None:
    """As if recovery's second had passed."""
    with house.engine.begin() as connection:
        connection.execute(
            sa.update(decision)
            .where(decision.c.transaction_id.in_(transaction_ids))
            .values(next_attempt_at=sa.func.now())
        )


def decided_but_undelivered(house: House, coordinator: Coordinator, branches: dict[str, list[str]]) -> Transaction:
    """An initiator that committed and then was gone."""
    tx = coordinator.prepare({name: [entry(a) for a in accounts] for name, accounts in branches.items()})
    with house.engine.begin() as connection:
        connection.execute(tx.decision)  # type: ignore[arg-type]
    return tx


def record(house: House, transaction_id: UUID) -> transaction_pb2.DecisionRecord:
    """The decision, as GetTransaction shows it."""
    return house.stub.GetTransaction(
        coordinator_pb2.CoordinatorServiceGetTransactionRequest(key=key_of(transaction_id)), timeout=10
    ).decision


# --- the participant's table -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """The answer, and what is in the database after it: the row's state and the account's."""

    reason: str
    row: str | None
    account: str | None
    loud: bool = False


OK = ""
TABLE: dict[tuple[str, str], Cell] = {
    # An unknown transaction has no digest that a Prepare could differ from.
    ("unknown", "prepare-same"): Cell(OK, "prepared", "prepared"),
    ("unknown", "commit"): Cell("TRANSACTION_UNKNOWN", None, None, loud=True),
    ("unknown", "abort"): Cell(OK, "aborted", None),
    ("prepared", "prepare-same"): Cell(OK, "prepared", "prepared"),
    ("prepared", "prepare-other"): Cell("TRANSACTION_REUSED", "prepared", "prepared"),
    ("prepared", "commit"): Cell(OK, "committed", "active"),
    ("prepared", "abort"): Cell(OK, "aborted", None),
    ("committed", "prepare-same"): Cell(OK, "committed", "active"),
    ("committed", "prepare-other"): Cell("TRANSACTION_REUSED", "committed", "active"),
    ("committed", "commit"): Cell(OK, "committed", "active"),
    ("committed", "abort"): Cell("ALREADY_COMMITTED", "committed", "active", loud=True),
    ("aborted", "prepare-same"): Cell("TRANSACTION_ABORTED", "aborted", None),
    ("aborted", "prepare-other"): Cell("TRANSACTION_ABORTED", "aborted", None),
    ("aborted", "commit"): Cell("ALREADY_ABORTED", "aborted", None, loud=True),
    ("aborted", "abort"): Cell(OK, "aborted", None),
    # The same state, reached by an Abort that came before its Prepare.
    ("buried", "prepare-same"): Cell("TRANSACTION_ABORTED", "aborted", None),
    ("buried", "prepare-other"): Cell("TRANSACTION_ABORTED", "aborted", None),
    ("buried", "commit"): Cell("ALREADY_ABORTED", "aborted", None, loud=True),
    ("buried", "abort"): Cell(OK, "aborted", None),
    ("expired", "prepare-same"): Cell("TRANSACTION_EXPIRED", None, None),
    ("expired", "prepare-other"): Cell("TRANSACTION_EXPIRED", None, None),
    ("expired", "commit"): Cell("TRANSACTION_EXPIRED", None, None, loud=True),
    ("expired", "abort"): Cell(OK, None, None),
    # R14's other end; the table has no row for it.
    ("ahead", "prepare-same"): Cell("TRANSACTION_AHEAD", None, None),
    ("ahead", "commit"): Cell("TRANSACTION_AHEAD", None, None),
    ("ahead", "abort"): Cell("TRANSACTION_AHEAD", None, None),
}


@pytest.mark.parametrize(("state", "message"), TABLE, ids=[f"{state}-{message}" for state, message in TABLE])
def test_participant_table(house: House, way: bool, state: str, message: str) -> None:
    """The participant's table: "a repeat gets the same answer". And R5: where it says ‡, each call is counted."""
    cell, ledger = TABLE[state, message], house.ledger
    wire = Wire(ledger.server.port, batch=way)
    transaction_id = new_id(age_s={"expired": EXPIRED_S, "ahead": -DAY_S - 600}.get(state, 0))
    name, other = fresh_name(), fresh_name()
    preparing = asking(transaction_id, name)
    brought_there: dict[str, list[pb.PrepareRequest | pb.CommitRequest | pb.AbortRequest]] = {
        "prepared": [preparing],
        "committed": [preparing, commit_of(transaction_id)],
        "aborted": [preparing, abort_of(transaction_id)],
        "buried": [abort_of(transaction_id)],
    }
    for request in brought_there.get(state, []):
        assert Wire(ledger.server.port).ask(request).ok
    before, pages = ledger.row(transaction_id), counted(ledger.registry, CONTRADICTIONS)
    asked = {
        "prepare-same": preparing,
        "prepare-other": asking(transaction_id, other),
        "commit": commit_of(transaction_id),
        "abort": abort_of(transaction_id),
    }[message]

    answer = wire.ask(asked)

    assert answer.reason == cell.reason
    assert answer.code == ("FAILED_PRECONDITION" if cell.reason else "OK")
    if message.startswith("prepare") and answer.ok:
        assert answer.vote == ("ledger", transaction_digest(write_digests(preparing.writes)))
    after = ledger.row(transaction_id)
    assert (after and after.state) == cell.row
    assert ledger.accounts(name, other) == ({name: cell.account} if cell.account else {})
    if before is not None and before.state == cell.row:
        assert after == before, "an answer that changes nothing changes nothing"
    if before is None and after is None:
        assert counted(ledger.registry, CONTRADICTIONS) - pages == cell.loud

    assert wire.ask(asked) == answer
    assert ledger.row(transaction_id) == after
    assert ledger.accounts(name, other) == ({name: cell.account} if cell.account else {})
    assert counted(ledger.registry, CONTRADICTIONS) - pages == 2 * cell.loud


def test_participant_rows(house: House) -> None:
    """What the rows say of a transaction's way: when it is due, who ended it, that it is confirmed."""
    wire, ids = Wire(house.ledger.server.port), [new_id() for _ in range(4)]
    for transaction_id in ids[:3]:
        assert wire.ask(asking(transaction_id, fresh_name(), fresh_name(), ttl_s=600)).ok
    assert wire.ask(commit_of(ids[1])).ok
    assert wire.ask(abort_of(ids[2])).ok
    assert wire.ask(abort_of(ids[3])).ok
    staged, published, discarded, buried = (house.ledger.row(transaction_id) for transaction_id in ids)
    assert (staged.staged, staged.confirmed, staged.log_id, staged.resolved_by) == (2, False, LOG, None)
    assert staged.next_attempt_at == staged.prepared_at + timedelta(seconds=600)
    for row, state, rows in ((published, "committed", 2), (discarded, "aborted", 2), (buried, "aborted", 0)):
        assert (row.state, row.staged, row.confirmed, row.resolved_by) == (state, rows, True, "coordinator")
        assert row.next_attempt_at is None
        assert row.resolved_at is not None


ORDERS: dict[str, tuple[list[str], str | None]] = {
    "prepare,commit,prepare,commit": ([OK, OK, OK, OK], "active"),
    "abort,prepare,abort,commit": ([OK, "TRANSACTION_ABORTED", OK, "ALREADY_ABORTED"], None),
    "prepare,abort,prepare,abort": ([OK, OK, "TRANSACTION_ABORTED", OK], None),
    "commit,prepare,commit,abort": (["TRANSACTION_UNKNOWN", OK, OK, "ALREADY_COMMITTED"], "active"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_participant_table_any_order(house: House, order: str) -> None:
    """The table: "in any order, any number of times": late and doubled messages end nothing twice, revive nothing."""
    wire, transaction_id, name = Wire(house.ledger.server.port), new_id(), fresh_name()
    requests = {
        "prepare": asking(transaction_id, name),
        "commit": commit_of(transaction_id),
        "abort": abort_of(transaction_id),
    }
    answers = [wire.ask(requests[message]).reason for message in order.split(",")]
    assert (answers, house.ledger.accounts(name).get(name)) == ORDERS[order]


# --- R5 contradictions are loud --------------------------------------------------------------------------------------


def lose(where: Member, tx: Transaction, names: Sequence[str]) -> None:
    """The participant's database has lost the transaction, as after a restore."""
    with where.engine.begin() as connection:
        connection.execute(sa.delete(account).where(account.c.name.in_(names)))
        connection.execute(sa.delete(prepared_transaction).where(prepared_transaction.c.transaction_id == tx.id))


@pytest.mark.parametrize("reason", ["TRANSACTION_UNKNOWN", "ALREADY_ABORTED", "TRANSACTION_EXPIRED"])
def test_r5_a_contradicted_delivery_is_parked(house: House, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """R5: "a distinct reason, a counter that pages, and that participant's delivery is parked".

    Parked, recovery leaves it alone; the other participant gets its Commit; RetryNow takes it up again.
    """
    name, other = fresh_name(), fresh_name()
    transaction_id = new_id(age_s=5 * DAY_S)
    tx = house.coordinator.prepare({"ledger": [entry(name)], "other": [entry(other)]}, transaction_id=transaction_id)
    with house.engine.begin() as connection:
        connection.execute(tx.decision)  # type: ignore[arg-type]
    lose(house.ledger, tx, [name])
    if reason == "ALREADY_ABORTED":
        assert Wire(house.ledger.server.port).ask(abort_of(tx.id)).ok
    if reason == "TRANSACTION_EXPIRED":
        monkeypatch.setattr(house.ledger.participant, "times", Times(retention_s=4 * DAY_S))
    pages = counted(house.registry, CONTRADICTIONS, reason=reason)
    theirs = counted(house.ledger.registry, CONTRADICTIONS, reason=reason)

    assert tx.finish() is Outcome.COMMITTED
    assert tx.undelivered == ("ledger",)
    assert counted(house.registry, CONTRADICTIONS, reason=reason) == pages + 1
    assert counted(house.ledger.registry, CONTRADICTIONS, reason=reason) == theirs + 1

    def branches() -> dict[str, tuple[bool, str]]:
        return {branch.participant: (branch.delivered, branch.parked) for branch in record(house, tx.id).branches}

    eventually(lambda: branches() == {"ledger": (False, reason), "other": (True, "")})
    assert house.other.accounts(other) == {other: "active"}
    listed = house.stub.ListTransactions(
        coordinator_pb2.CoordinatorServiceListTransactionsRequest(undelivered=True, page_size=1000), timeout=10
    )
    (shown,) = (each for each in listed.decisions if each.key.transaction_id == str(tx.id))
    assert [branch.parked for branch in shown.branches] == [reason, ""]

    due(house, tx.id)
    _recovery(house.coordinator).run_once()
    assert record(house, tx.id).attempts == 0
    assert counted(house.ledger.registry, CONTRADICTIONS, reason=reason) == theirs + 1

    # A person puts the participant right, and asks for another attempt.
    monkeypatch.undo()
    lose(house.ledger, tx, [name])
    assert Wire(house.ledger.server.port).ask(asking(tx.id, name, log_id=tx.log_id)).ok
    retried = house.stub.RetryNow(coordinator_pb2.RetryNowRequest(key=key_of(tx.id)), timeout=10).decision
    assert [branch.parked for branch in retried.branches] == ["", ""]
    assert retried.HasField("next_attempt_time")
    _recovery(house.coordinator).run_once()
    assert [branch.delivered for branch in record(house, tx.id).branches] == [True, True]
    assert house.ledger.accounts(name) == {name: "active"}
    assert house.ledger.row(tx.id).resolved_by == "recovery"


def test_r5_recovery_parks_too(house: House) -> None:
    """R5: a contradiction that recovery meets is parked as well, at once, and counted."""
    name = fresh_name()
    tx = decided_but_undelivered(house, house.coordinator, {"ledger": [name]})
    lose(house.ledger, tx, [name])
    pages = counted(house.registry, CONTRADICTIONS, reason="TRANSACTION_UNKNOWN")
    for _ in range(3):
        due(house, tx.id)
        Recovery(house.coordinator).run_once()
    assert record(house, tx.id).branches[0].parked == "TRANSACTION_UNKNOWN"
    assert record(house, tx.id).attempts == 1
    assert record(house, tx.id).last_error == "TRANSACTION_UNKNOWN"
    assert counted(house.registry, CONTRADICTIONS, reason="TRANSACTION_UNKNOWN") == pages + 1


def test_r5_an_abort_can_be_contradicted(house: House) -> None:
    """R5: ALREADY_COMMITTED ‡: a participant that was made to publish by force pages at both ends."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    assert Wire(house.ledger.server.port).ask(commit_of(tx.id)).ok
    pages = [
        counted(each, CONTRADICTIONS, reason="ALREADY_COMMITTED") for each in (house.registry, house.ledger.registry)
    ]
    assert tx.finish() is Outcome.ABORTED
    assert [
        counted(each, CONTRADICTIONS, reason="ALREADY_COMMITTED") for each in (house.registry, house.ledger.registry)
    ] == [page + 1 for page in pages]
    assert house.ledger.accounts(name) == {name: "active"}


# --- R6 a yes vote is a promise --------------------------------------------------------------------------------------


def test_r6_commit_succeeds_whatever_happens_in_between(house: House, way: bool) -> None:
    """R6: "Whatever could make Commit fail is checked and reserved at Prepare"."""
    ledger, wire = house.ledger, Wire(house.ledger.server.port, batch=way)
    name, second = fresh_name(), fresh_name()
    transaction_id = prepared(ledger, name, second)

    competing = wire.ask(asking(new_id(), fresh_name(), second))
    assert (competing.code, competing.reason) == ("ABORTED", "HELD")
    assert competing.retry_after_s is not None
    assert competing.about["held_by_transaction_id"] == str(transaction_id)
    assert wire.ask(asking(transaction_id, fresh_name())).reason == "TRANSACTION_REUSED"
    assert wire.ask(asking(transaction_id, name, second)).ok
    # It is long overdue, nobody can be asked about it, and the participant's process is another one by now.
    ledger.set(transaction_id, prepared_at=sa.func.now() - timedelta(days=10), next_attempt_at=sa.func.now())
    sweeper(ledger).run_once()
    reborn = Participant(
        ledger.engine,
        name="ledger",
        resource=Ledger(),
        coordinators=[COORDINATOR],
        times=house.times,
        metrics=ledger.metrics,
    )
    with served(ParticipantServicer(reborn, ledger.resolver)) as server:
        again = Wire(server.port, batch=way)
        assert again.ask(asking(transaction_id, name, second)).vote == (
            "ledger",
            transaction_digest(write_digests(asking(transaction_id, name, second).writes)),
        )
        assert again.ask(commit_of(transaction_id)).ok
    assert ledger.accounts(name, second) == {name: "active", second: "active"}
    assert wire.ask(asking(new_id(), second)).reason == "ALREADY_EXISTS"


@contextmanager
def misled(house: House, port: int, **options: object) -> Iterator[Coordinator]:
    """A coordinator that believes the participant called `ledger` to be at this port."""
    coordinator = Coordinator(
        house.engine,
        name=COORDINATOR,
        participants={"ledger": f"127.0.0.1:{port}"},
        **options,  # type: ignore[arg-type]
    )
    try:
        yield coordinator
    finally:
        coordinator.close()


def refused_before_the_block(
    coordinator: Coordinator, branches: dict[str, list[str]], **options: object
) -> TransactionError:
    """Runs a transaction whose votes must not suffice; the block must not be entered."""
    asked = {name: [entry(a) for a in accounts] for name, accounts in branches.items()}
    with pytest.raises(TransactionError) as caught, coordinator.transaction(asked, **options):  # type: ignore[arg-type]
        raise AssertionError("the block was entered")
    return caught.value


def test_r6_a_vote_under_another_name_does_not_count(house: House) -> None:
    """R6: the vote "counts only if both are what the decision will store": here the target is another participant."""
    name = fresh_name()
    with misled(house, house.other.server.port) as coordinator:
        error = refused_before_the_block(coordinator, {"ledger": [name]})
    assert isinstance(error, Refused)
    assert error.reasons["ledger"].reason is Reason.WRONG_VOTE
    assert error.transaction_id is not None
    assert house.outcome(error.transaction_id) is None
    # "Abort goes to every participant that was sent a Prepare", to a wrong one, too.
    assert house.other.row(error.transaction_id).state == "aborted"
    assert house.other.accounts(name) == {}


def test_r6_a_vote_with_another_digest_does_not_count(house: House) -> None:
    """R6: "The vote returns the participant's own name and digest, and counts only if both …"."""
    name, tampered = fresh_name(), TamperedParticipant(house.ledger.participant, house.ledger.resolver)

    def spoil(response: pb.BatchPrepareResponse) -> pb.BatchPrepareResponse:
        response.results[0].response.digest = bytes(32)
        return response

    tampered.after_prepare = spoil
    with served(tampered) as server, misled(house, server.port) as coordinator:
        error = refused_before_the_block(coordinator, {"ledger": [name]})
    assert isinstance(error, Refused)
    assert error.reasons["ledger"].reason is Reason.WRONG_VOTE
    assert error.transaction_id is not None
    assert house.outcome(error.transaction_id) is None
    assert house.ledger.row(error.transaction_id).state == "aborted"
    assert house.ledger.accounts(name) == {}


def test_r6_reused_names_the_writes_that_differ(house: House, way: bool) -> None:
    """R6: "TRANSACTION_REUSED names the writes that differ": changed, missing and added ones."""
    a, b, c = fresh_name(), fresh_name(), fresh_name()
    transaction_id, wire = prepared(house.ledger, a, b, c), Wire(house.ledger.server.port, batch=way)
    for accounts, differing in (((a, "x", c), "1"), ((a, b), "2"), ((b, a, c, "y"), "0,1,3")):
        answer = wire.ask(asking(transaction_id, *accounts))
        assert (answer.reason, answer.about["writes"]) == ("TRANSACTION_REUSED", differing)
        assert answer.about["transaction_id"] == str(transaction_id)
    assert wire.ask(asking(transaction_id, a, b, c, amount=2)).about["writes"] == "0,1,2"


def test_r6_many_that_differ_are_counted(house: House, way: bool) -> None:
    """R6, R16: whoever has a thousand others is told of twenty: an error must fit what clients read."""
    names, others = [fresh_name() for _ in range(1_000)], [fresh_name() for _ in range(1_000)]
    transaction_id, wire = prepared(house.ledger, *names), Wire(house.ledger.server.port, batch=way)
    answer = wire.ask(asking(transaction_id, *others))
    assert (answer.reason, answer.about["writes"]) == ("TRANSACTION_REUSED", ",".join(map(str, range(20))))


def test_r6_another_log_is_another_transaction(house: House, way: bool) -> None:
    """R6: "Same digest under another log_id: TRANSACTION_REUSED"."""
    name = fresh_name()
    transaction_id, wire = prepared(house.ledger, name), Wire(house.ledger.server.port, batch=way)
    answer = wire.ask(asking(transaction_id, name, log_id=uuid4()))
    assert (answer.reason, answer.about["writes"]) == ("TRANSACTION_REUSED", "")
    assert wire.ask(commit_of(transaction_id)).ok
    assert wire.ask(asking(transaction_id, name, log_id=uuid4())).reason == "TRANSACTION_REUSED"


def test_r6_reused_never_leads_to_an_abort(house: House) -> None:
    """R6: TRANSACTION_REUSED "never leads to an Abort": the first one under this id goes on undisturbed."""
    name, other, second = fresh_name(), fresh_name(), fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]}, transaction_id=new_id())
    error = refused_before_the_block(
        house.another_coordinator(), {"ledger": [other], "other": [second]}, transaction_id=tx.id
    )
    assert isinstance(error, TransactionReused)
    assert error.metadata["writes"] == "0"
    assert house.ledger.row(tx.id).state == "prepared"
    assert house.outcome(tx.id) is None, "nothing may be fenced either"
    with house.engine.begin() as connection:
        connection.execute(tx.decision)  # type: ignore[arg-type]
    assert tx.finish() is Outcome.COMMITTED
    assert house.ledger.accounts(name, other) == {name: "active"}
    # What the impostor staged elsewhere is no part of the decision: its sweeper finds out.
    assert house.other.accounts(second) == {second: "prepared"}
    house.other.make_due(tx.id)
    sweeper(house.other).run_once()
    assert house.other.accounts(second) == {}


def test_r6_reused_with_very_much_else_never_leads_to_an_abort(house: House) -> None:
    """R6: the same where a thousand writes differ: its error must not be lost on the way for its size."""
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name()) for _ in range(1_000)]}, transaction_id=new_id())
    others = {"ledger": [fresh_name() for _ in range(1_000)]}
    for _ in range(5):  # gRPC refuses such an error by chance
        error = refused_before_the_block(house.another_coordinator(), others, transaction_id=tx.id)
        assert isinstance(error, TransactionReused)
        assert house.ledger.row(tx.id).state == "prepared"
        assert house.outcome(tx.id) is None
    house.ledger.make_due(tx.id)
    sweeper(house.ledger).run_once()


def test_r6_no_writes_is_no_transaction(house: House, way: bool) -> None:
    """R6: "No writes: INVALID_ARGUMENT", at the participant and at the driver."""
    transaction_id = new_id()
    answer = Wire(house.ledger.server.port, batch=way).ask(asking(transaction_id))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert answer.fields == ("requests[1].writes" if way else "writes",)
    assert house.ledger.row(transaction_id) is None
    for branches in ({}, {"ledger": []}, {"ledger": [entry(fresh_name())], "other": []}):
        with pytest.raises(InvalidRequest):
            house.coordinator.prepare(branches)


@pytest.mark.parametrize("own_id", [True, False], ids=["id of its own", "id given"])
def test_r6_abort_goes_to_everyone_who_was_asked(house: House, own_id: bool) -> None:
    """R6: "Abort goes to every participant that was sent a Prepare", to the one that voted no, too."""
    name, taken = fresh_name(), fresh_name()
    assert Wire(house.other.server.port).ask(commit_of(prepared(house.other, taken))).ok
    given = {} if own_id else {"transaction_id": new_id()}
    error = refused_before_the_block(house.coordinator, {"ledger": [name], "other": [taken]}, **given)
    assert error.transaction_id is not None
    assert house.ledger.accounts(name) == {}
    assert house.other.accounts(taken) == {taken: "active"}
    assert house.ledger.row(error.transaction_id).state == "aborted"
    assert house.other.row(error.transaction_id).state == "aborted"


def test_r6_abort_goes_to_those_whose_vote_was_lost(house: House) -> None:
    """R6: a participant that staged and whose answer never came was sent a Prepare, too."""
    name, tampered = fresh_name(), TamperedParticipant(house.ledger.participant, house.ledger.resolver)

    def lose_vote(_: pb.BatchPrepareResponse) -> pb.BatchPrepareResponse:
        raise TandemError("the answer is lost", reason=Reason.UNAVAILABLE)

    tampered.after_prepare = lose_vote
    with served(tampered) as server, misled(house, server.port, times=Times(prepare_deadline_s=0.3)) as coordinator:
        error = refused_before_the_block(coordinator, {"ledger": [name]})
    assert isinstance(error, Unavailable)
    assert house.ledger.row(error.transaction_id).state == "aborted"
    assert house.ledger.accounts(name) == {}


# --- R7 statements ---------------------------------------------------------------------------------------------------


@contextmanager
def crossing(house: House, where: Member) -> Iterator[tuple[Crossing, Wire]]:
    """The participant over a plug whose batches deadlock."""
    plug = Crossing()
    participant = Participant(
        where.engine,
        name=where.name,
        resource=plug,
        coordinators=[COORDINATOR],
        times=house.times,
        metrics=where.metrics,
    )
    with served(ParticipantServicer(participant, where.resolver), workers=8) as server:
        yield plug, Wire(server.port)


@contextmanager
def deadlocks_of(where: Member) -> Iterator[list[str]]:
    """The deadlocks that its engine is told of, as they come."""
    seen: list[str] = []

    def note(context: sa.engine.ExceptionContext) -> None:
        if getattr(context.original_exception, "pgcode", "") == "40P01":
            seen.append("40P01")

    event.listen(where.engine, "handle_error", note)
    try:
        yield seen
    finally:
        event.remove(where.engine, "handle_error", note)


def test_r7_a_deadlock_is_redone(house: House) -> None:
    """R7: "a batch that meets 40P01 … is redone whole": one batch gets everything, the other learns why not."""
    x, y = fresh_name(), fresh_name()
    with crossing(house, house.ledger) as (_, wire), deadlocks_of(house.ledger) as deadlocks:
        batches = [[asking(new_id(), x), asking(new_id(), y)], [asking(new_id(), y), asking(new_id(), x)]]
        answers = in_threads(*(lambda batch=batch: wire.ask_all(*batch) for batch in batches))
    assert deadlocks, "the two batches never met"
    assert sorted(sorted(answer.code for answer in some) for some in answers) == [["ABORTED", "ABORTED"], ["OK", "OK"]]
    assert house.ledger.accounts(x, y) == {x: "prepared", y: "prepared"}


def test_r7_batches_in_opposite_orders(house: House) -> None:
    """R7: "two unique keys have no common order". Whatever deadlocks: nothing published twice, nothing lost."""
    rng, ledger = seeded(), house.ledger
    with crossing(house, ledger) as (plug, wire), deadlocks_of(ledger) as deadlocks:
        for _ in range(8):
            plug.meet.reset()
            names = [fresh_name() for _ in range(8)]
            wanted = {new_id(): rng.sample(names, rng.randint(1, 3)) for _ in range(12)}
            ids = list(wanted)
            rng.shuffle(ids)
            halves = (ids[:6], ids[6:])
            batches = [[asking(i, *wanted[i]) for i in half] for half in halves]
            votes = in_threads(*(lambda batch=batch: wire.ask_all(*batch) for batch in batches))
            answers = dict(zip(ids, [answer for some in votes for answer in some], strict=True))
            yes = {transaction_id for transaction_id, answer in answers.items() if answer.ok}
            assert {a.reason for a in answers.values()} <= {"", "HELD", "IN_PROGRESS", "DATABASE_UNAVAILABLE"}
            assert yes
            held = [name for transaction_id in yes for name in wanted[transaction_id]]
            assert sorted(held) == sorted(set(held)), "two promises of one account"
            assert ledger.accounts(*names) == dict.fromkeys(held, "prepared"), "staged rows are those of the promises"

            published = counted(ledger.registry, OUTCOMES_APPLIED, outcome="committed", via="coordinator")
            there, back = sorted(yes), sorted(yes, reverse=True)
            acks = in_threads(
                *(lambda order=order: wire.ask_all(*map(commit_of, order)) for order in (there, back, there, back))
            )
            assert {answer.code for some in acks for answer in some} == {"OK"}
            now = counted(ledger.registry, OUTCOMES_APPLIED, outcome="committed", via="coordinator")
            assert now == published + len(yes)
            assert ledger.accounts(*names) == dict.fromkeys(held, "active")
            assert all(ledger.row(i) is None for i in set(ids) - yes), "a no vote is not remembered"
    assert deadlocks


@pytest.mark.parametrize("message", ["commit", "abort"])
def test_r7_published_must_be_what_was_staged(house: House, message: str) -> None:
    """R7: "published ≠ staged → roll back and page"; the batch's other items succeed. An Abort is to leave nothing, so
    it goes through, and pages too."""
    ledger, wire = house.ledger, Wire(house.ledger.server.port, batch=True)
    kept, lost = fresh_name(), fresh_name()
    transaction_id = prepared(ledger, kept, lost)
    with ledger.engine.begin() as connection:
        row = connection.execute(sa.delete(account).where(account.c.name == lost).returning(account)).one()
    request = {"commit": commit_of, "abort": abort_of}[message](transaction_id)
    pages = counted(ledger.registry, CONTRADICTIONS, reason="PUBLISHED_NOT_STAGED")
    before = ledger.row(transaction_id)

    answer = wire.ask(request)
    assert counted(ledger.registry, CONTRADICTIONS, reason="PUBLISHED_NOT_STAGED") == pages + 1
    if message == "abort":
        assert answer.ok
        assert ledger.accounts(kept, lost) == {}
        return
    assert (answer.code, answer.reason) == ("INTERNAL", "PUBLISHED_NOT_STAGED")
    assert ledger.row(transaction_id) == before, "rolled back"
    assert ledger.accounts(kept, lost) == {kept: "prepared"}

    with ledger.engine.begin() as connection:
        connection.execute(sa.insert(account).values(row._asdict()))
    assert wire.ask(request).ok
    assert ledger.accounts(kept, lost) == {kept: "active", lost: "active"}


def test_r7_a_row_that_another_is_writing_is_in_progress(house: House, way: bool) -> None:
    """R7: "no row read back → IN_PROGRESS": a Prepare behind somebody's uncommitted row waits, but not for ever."""
    ledger, wire, transaction_id, name = house.ledger, Wire(house.ledger.server.port, batch=way), new_id(), fresh_name()
    insert = (
        "INSERT INTO twophase.prepared_transaction (coordinator, transaction_id, digests, staged, state, confirmed)"
        " VALUES (:coordinator, :transaction_id, '', 0, 'aborted', true)"
    )
    with another_session(ledger.engine, insert, coordinator=COORDINATOR, transaction_id=str(transaction_id)):
        started = time.monotonic()
        answer = wire.ask(asking(transaction_id, name))
        assert (answer.code, answer.reason) == ("UNAVAILABLE", "IN_PROGRESS")
        assert answer.retry_after_s is not None
        assert time.monotonic() - started < 5
        assert ledger.accounts(name) == {}
    assert wire.ask(asking(transaction_id, name)).ok


@pytest.mark.parametrize("account_name", ["zero\0byte", "no amount"])
def test_r7_a_plugs_mistake_fails_one_item(house: House, way: bool, account_name: str) -> None:
    """R7 and design §3, "a refused item never fails its neighbours": not even one that the plug did not foresee."""
    transaction_id, wire = new_id(), Wire(house.ledger.server.port, batch=way)
    request = asking(transaction_id)
    write = Struct(fields={"account": Value(string_value=account_name)})
    if account_name != "no amount":
        write.update({"amount": 1})
    request.writes.add().Pack(write)
    answer = wire.ask(request)
    assert (answer.code, answer.reason) == ("INTERNAL", "INTERNAL")
    assert house.ledger.row(transaction_id) is None


@pytest.mark.parametrize("message", ["prepare", "commit", "abort"])
def test_r7_no_row_read_back(house: House, message: str) -> None:
    """R7: "no row read back → IN_PROGRESS": what came or went between the two statements is asked for again."""
    ledger, wire, transaction_id, name = house.ledger, Wire(house.ledger.server.port), new_id(), fresh_name()
    preparing = asking(transaction_id, name)
    request = {"prepare": preparing, "commit": commit_of(transaction_id), "abort": abort_of(transaction_id)}[message]
    if message == "prepare":
        assert wire.ask(preparing).ok
    meddled = []

    def meddle(conn: object, cursor: object, statement: str, *_: object) -> None:
        """In a session of its own, once, before the statement that comes after the row's UPDATE or INSERT."""
        second = {"prepare": "SELECT keys", "commit": "SELECT keys", "abort": "INSERT INTO twophase.prepared"}[message]
        if meddled or not statement.startswith(second):
            return
        meddled.append(statement)
        if message == "prepare":
            with ledger.engine.begin() as connection:
                t = prepared_transaction
                connection.execute(sa.delete(t).where(t.c.transaction_id == transaction_id))
        else:
            assert wire.ask(preparing).ok

    event.listen(ledger.engine, "before_cursor_execute", meddle)
    try:
        answer = wire.ask(request)
    finally:
        event.remove(ledger.engine, "before_cursor_execute", meddle)
    assert meddled
    assert (answer.code, answer.reason) == ("UNAVAILABLE", "IN_PROGRESS")
    if message != "prepare":
        assert ledger.accounts(name) == {name: "prepared"}
        assert wire.ask(request).ok


# --- R8 a transaction only creates -----------------------------------------------------------------------------------


def test_r8_who_holds_a_unique_key(house: House, way: bool) -> None:
    """R8: "A unique key held by an active row: Refused; by a prepared one: HeldBy", with a hint when to come again."""
    wire, active, held = Wire(house.ledger.server.port, batch=way), fresh_name(), fresh_name()
    assert wire.ask(commit_of(prepared(house.ledger, active))).ok
    holder = prepared(house.ledger, held)
    for name, code, reason in ((active, "ALREADY_EXISTS", "ALREADY_EXISTS"), (held, "ABORTED", "HELD")):
        transaction_id = new_id()
        answer = wire.ask(asking(transaction_id, name))
        assert (answer.code, answer.reason) == (code, reason)
        assert (answer.retry_after_s is not None) == (reason == "HELD")
        assert answer.about["transaction_id"] == str(transaction_id)
        assert house.ledger.row(transaction_id) is None, "a no vote is not remembered"
    assert wire.ask(abort_of(holder)).ok
    assert wire.ask(asking(new_id(), held)).ok


@pytest.mark.parametrize("holder", ["active", "prepared"])
def test_r8_all_writes_or_none(house: House, way: bool, holder: str) -> None:
    """R8: of a transaction that is refused nothing stays staged, wherever among its writes the trouble is."""
    wire, taken = Wire(house.ledger.server.port, batch=way), fresh_name()
    held_by = prepared(house.ledger, taken)
    if holder == "active":
        assert wire.ask(commit_of(held_by)).ok
    for position in range(3):
        names = [fresh_name() for _ in range(3)]
        asked = [*names[:position], taken, *names[position:]]
        assert wire.ask(asking(new_id(), *asked)).reason == ("ALREADY_EXISTS" if holder == "active" else "HELD")
        assert house.ledger.accounts(*names) == {}
        assert wire.ask(asking(new_id(), *names)).ok, "nothing may be left in the way"


def test_r8_a_refused_item_frees_its_neighbours(house: House) -> None:
    """R8 and R7: neighbours in a batch succeed, also those that wanted what the refused one wanted."""
    wire, taken, wanted, second, free = Wire(house.ledger.server.port), *(fresh_name() for _ in range(4))
    assert wire.ask(commit_of(prepared(house.ledger, taken))).ok
    ids = sorted(new_id() for _ in range(5))
    answers = wire.ask_all(
        asking(ids[0], wanted, second, taken),  # refused, and the first to insert all that the others want
        asking(ids[1], wanted),
        asking(ids[2], second, wanted),  # in the way of its neighbour before it, who was first
        asking(ids[3], free),
        asking(ids[4], free),  # in the way of one that is accepted
    )
    assert [answer.reason for answer in answers] == ["ALREADY_EXISTS", "", "HELD", "", "HELD"]
    assert answers[2].about["held_by_transaction_id"] == str(ids[1])
    assert house.ledger.accounts(wanted, second, free) == {wanted: "prepared", free: "prepared"}
    assert [house.ledger.row(i) is not None for i in ids] == [False, True, False, True, False]
    assert wire.ask_all(commit_of(ids[1]), commit_of(ids[3])) == [Answer("OK"), Answer("OK")]


# --- R9 a timer never decides ----------------------------------------------------------------------------------------


def overdue(where: Member, name: str, coordinator: str = "alpha") -> UUID:
    """Prepared ten days ago and due ever since."""
    transaction_id = prepared(where, name, coordinator=coordinator)
    long_ago = sa.func.now() - timedelta(days=10)
    where.set(transaction_id, prepared_at=long_ago, next_attempt_at=long_ago)
    return transaction_id


@pytest.mark.parametrize(
    "answered",
    ["UNDECIDED", "IN_PROGRESS", "WRONG_LOG", "UNSPECIFIED", "error for it", "error for all", "too few", "down"],
)
def test_r9_nothing_but_aborted_deletes(edge: Member, scripts: Scripts, answered: str) -> None:
    """R9: "deletes a prepared entity … only after ABORTED was answered. … Anything else leaves it, counts it and tries
    again"."""
    alpha, name = scripts[0], fresh_name()
    transaction_id = overdue(edge, name)
    reason = answered
    if answered == "error for it":
        alpha.outcome, reason = TandemError("no", reason=Reason.DATABASE_UNAVAILABLE), "DATABASE_UNAVAILABLE"
    elif answered == "error for all":
        alpha.error, reason = TandemError("no", reason=Reason.NOT_ALLOWED), "NOT_ALLOWED"
    elif answered == "too few":
        alpha.answers, reason = 0, "INTERNAL"
    elif answered == "down":
        alpha.stop()
        reason = "UNAVAILABLE"
    else:
        alpha.outcome = OUTCOMES.Value(f"OUTCOME_{answered}")
        reason = "INTERNAL" if answered == "UNSPECIFIED" else answered
    counter = counted(edge.registry, "tandem_sweep_errors_total", reason=reason)

    assert sweeper(edge).run_once() == 0
    row = edge.row(transaction_id)
    assert (row.state, row.confirmed, row.parked, row.attempts, row.last_error) == ("prepared", False, None, 1, reason)
    assert edge.accounts(name) == {name: "prepared"}
    assert counted(edge.registry, "tandem_sweep_errors_total", reason=reason) == counter + 1

    alpha.outcome, alpha.error, alpha.answers = OUTCOMES.Value("OUTCOME_ABORTED"), None, -1
    if answered == "down":
        alpha.start()

    def ended() -> int:
        edge.make_due(transaction_id)
        return sweeper(edge).run_once()

    assert eventually(ended) == 1  # after an outage the channel takes up to a second to connect again
    assert edge.accounts(name) == {}
    assert (edge.row(transaction_id).state, edge.row(transaction_id).resolved_by) == ("aborted", "sweeper")


def test_r9_committed_rolls_forward(edge: Member, scripts: Scripts) -> None:
    """R9: "COMMITTED rolls it forward", however old it is."""
    scripts[0].outcome, name = OUTCOMES.Value("OUTCOME_COMMITTED"), fresh_name()
    transaction_id = overdue(edge, name)
    assert sweeper(edge).run_once() == 1
    row = edge.row(transaction_id)
    assert (row.state, row.resolved_by, row.confirmed, row.next_attempt_at) == ("committed", "sweeper", True, None)
    assert edge.accounts(name) == {name: "active"}


def test_r9_expired_waits_for_a_person(edge: Member, scripts: Scripts) -> None:
    """R9 and the decision log's table, last row: EXPIRED is no ABORTED. Parked, seen, and left alone."""
    alpha, name = scripts[0], fresh_name()
    alpha.outcome = OUTCOMES.Value("OUTCOME_EXPIRED")
    transaction_id = overdue(edge, name)
    assert sweeper(edge).run_once() == 0
    shown = edge.stub.GetTransaction(
        pb.ParticipantServiceGetTransactionRequest(key=key_of(transaction_id, "alpha")), timeout=10
    ).transaction
    assert shown.state == transaction_pb2.TRANSACTION_STATE_PREPARED
    assert shown.parked
    assert not shown.HasField("next_attempt_time")
    edge.make_due(transaction_id)
    alpha.outcome = OUTCOMES.Value("OUTCOME_ABORTED")
    assert sweeper(edge).run_once() == 0
    assert len(alpha.asked) == 1
    assert edge.accounts(name) == {name: "prepared"}


def test_r9_a_commit_followed_by_a_crash(house: House) -> None:
    """R9: "Deleting by age alone loses the profile of a user whose commit was followed by a crash": this doesn't."""
    name, second = fresh_name(), fresh_name()
    committed = decided_but_undelivered(house, house.coordinator, {"ledger": [name]})
    crashed = house.coordinator.prepare({"ledger": [entry(second)]})
    for tx in (committed, crashed):
        house.ledger.set(tx.id, prepared_at=sa.func.now() - timedelta(days=10), next_attempt_at=sa.func.now())
    sweeper(house.ledger).run_once()
    assert house.ledger.accounts(name, second) == {name: "active"}
    assert house.outcome(crashed.id) == "aborted", "fenced before it was discarded"
    assert house.ledger.row(committed.id).resolved_by == house.ledger.row(crashed.id).resolved_by == "sweeper"


def test_r9_a_decision_being_written_is_waited_for(house: House) -> None:
    """R9 and R4, for real: while the initiator's local transaction is open, nothing may be concluded."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    house.ledger.make_due(tx.id)
    with house.engine.connect() as connection:
        connection.execute(tx.decision)  # type: ignore[arg-type]
        sweeper(house.ledger).run_once()
        assert house.ledger.row(tx.id).last_error == "IN_PROGRESS"
        connection.commit()
    house.ledger.make_due(tx.id)
    sweeper(house.ledger).run_once()
    assert house.ledger.accounts(name) == {name: "active"}


def test_r9_another_log_decides_nothing(house: House) -> None:
    """R9 and R17, for real: prepared under a log that the coordinator doesn't know: neither ended nor fenced."""
    name = fresh_name()
    transaction_id = prepared(house.ledger, name, log_id=uuid4())
    house.ledger.make_due(transaction_id)
    sweeper(house.ledger).run_once()
    assert house.ledger.row(transaction_id).last_error == "WRONG_LOG"
    assert house.ledger.accounts(name) == {name: "prepared"}
    assert house.outcome(transaction_id) is None


def test_r9_expired_for_real(house: House, new_member: NewMember) -> None:
    """R9: a participant that keeps more than its coordinator: the id is expired there, so it is parked, not fenced."""
    address = f"127.0.0.1:{house.server.port}"
    patient = new_member("patient", {COORDINATOR: address}, Times(retention_s=60 * DAY_S))
    name, transaction_id = fresh_name(), new_id(age_s=EXPIRED_S)
    preparing = asking(transaction_id, name, log_id=house.coordinator.log.log_id())
    assert Wire(patient.server.port).ask(preparing).ok
    patient.make_due(transaction_id)
    assert sweeper(patient).run_once() == 0
    assert patient.row(transaction_id).parked == "expired"
    assert house.outcome(transaction_id) is None
    assert patient.accounts(name) == {name: "prepared"}


# --- R10: whoever meets a prepared row resolves it --------------------------------------------------------------------


def holder_of(edge: Member, name: str, *, age_s: float = 0.0) -> UUID:
    """A prepared transaction of alpha's that holds this name, prepared so long ago."""
    transaction_id = new_id()
    assert Wire(edge.server.port).ask(asking(transaction_id, name, coordinator="alpha")).ok
    edge.set(transaction_id, prepared_at=sa.func.now() - timedelta(seconds=age_s))
    return transaction_id


@pytest.mark.parametrize(
    ("outcome", "age_s", "fenced", "code", "reason", "state"),
    [
        ("ABORTED", 0, False, "OK", "", "aborted"),
        ("COMMITTED", 0, False, "ALREADY_EXISTS", "ALREADY_EXISTS", "committed"),
        ("UNDECIDED", 0, False, "ABORTED", "HELD", "prepared"),
        ("IN_PROGRESS", 0, False, "ABORTED", "HELD", "prepared"),
        ("WRONG_LOG", 0, False, "ABORTED", "HELD", "prepared"),
        ("EXPIRED", 9, True, "ABORTED", "HELD", "prepared"),
        ("ABORTED", 9, True, "OK", "", "aborted"),
        ("COMMITTED", 9, True, "ALREADY_EXISTS", "ALREADY_EXISTS", "committed"),
    ],
)  # fmt: skip
def test_r10_a_new_prepare_pushes(
    edge: Member,
    scripts: Scripts,
    way: bool,
    outcome: str,
    age_s: float,
    fenced: bool,
    code: str,
    reason: str,
    state: str,
) -> None:
    """R10: "a new Prepare that needs what another holds … asks (with a fence if the holder is older than push_after,
    else without), and stages again: aborted → goes on; committed → roll forward, ALREADY_EXISTS; else → no vote"."""
    alpha, _ = scripts
    name = fresh_name()
    holder = holder_of(edge, name, age_s=age_s)
    alpha.outcome = OUTCOMES.Value(f"OUTCOME_{outcome}")
    votes = counted(edge.registry, "tandem_votes_total")
    answer = Wire(edge.server.port, batch=way).ask(asking(new_id(), name, coordinator="alpha"))
    assert (answer.code, answer.reason) == (code, reason)
    assert (answer.retry_after_s is not None) == (reason == "HELD")
    assert (alpha.asked, alpha.fenced) == ([[str(holder)]], [fenced])
    row = edge.row(holder)
    assert row is not None
    assert (row.state, row.resolved_by) == (state, None if state == "prepared" else "push")
    assert counted(edge.registry, "tandem_votes_total") == votes + (3 if way else 1), (
        "one vote, however often it staged"
    )


def test_r10_behind_one_holder_there_may_be_another(edge: Member, scripts: Scripts) -> None:
    """A transaction of two writes, each held by a dead one: both are pushed aside, and its batch's neighbour is left
    alone."""
    alpha, beta = scripts
    names = [fresh_name(), fresh_name()]
    holders = [holder_of(edge, name, age_s=60) for name in names]
    neighbour = fresh_name()
    answers = Wire(edge.server.port).ask_all(
        asking(new_id(), *names, coordinator="alpha"), asking(new_id(), neighbour, coordinator="beta")
    )
    assert [answer.ok for answer in answers] == [True, True]
    assert sorted(id_ for ids in alpha.asked for id_ in ids) == sorted(map(str, holders))
    assert beta.asked == []


def test_r10_a_push_is_bounded(edge: Member, scripts: Scripts) -> None:
    """Nobody answers, or too late: a no vote in time, with a time to retry after."""
    alpha, _ = scripts
    name = fresh_name()
    holder_of(edge, name, age_s=60)
    going_on = threading.Event()
    alpha.meanwhile = lambda: going_on.wait(10)
    started = time.monotonic()
    try:
        answer = Wire(edge.server.port).ask(asking(new_id(), name, coordinator="alpha"))
    finally:
        going_on.set()
    assert (answer.code, answer.reason, answer.retry_after_s) == ("ABORTED", "HELD", 1.0)
    assert time.monotonic() - started < Times().prepare_deadline_s
    alpha.stop()
    try:
        assert Wire(edge.server.port).ask(asking(new_id(), name, coordinator="alpha")).reason == "HELD"
    finally:
        alpha.start()


def test_r10_coordinators_are_asked_at_once(edge: Member, scripts: Scripts) -> None:
    """One that hangs takes nothing from the time of the others, and their votes are given."""
    alpha, beta = scripts
    going_on = threading.Event()
    alpha.meanwhile = lambda: going_on.wait(10)
    names = [fresh_name(), fresh_name()]
    held = [holder_of(edge, names[0], age_s=60), new_id()]
    assert Wire(edge.server.port).ask(asking(held[1], names[1], coordinator="beta")).ok
    edge.set(held[1], prepared_at=sa.func.now() - timedelta(seconds=60))
    try:
        stuck, free = Wire(edge.server.port).ask_all(*(asking(new_id(), name, coordinator="beta") for name in names))
    finally:
        going_on.set()
    assert (stuck.reason, free.ok) == ("HELD", True)
    assert beta.fenced == [True]


def test_r10_a_database_that_fails_meanwhile_takes_no_votes(
    edge: Member, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The yes votes of the batch are durable: they are told, whatever becomes of the pushing."""
    name = fresh_name()
    holder_of(edge, name)

    def gone(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("", None, Exception())

    monkeypatch.setattr(edge.resolver, "meet", gone)
    yes, no = Wire(edge.server.port).ask_all(
        asking(new_id(), fresh_name(), coordinator="alpha"), asking(new_id(), name, coordinator="alpha")
    )
    assert (yes.ok, no.reason) == (True, "HELD")


def test_r16_a_thousand_questions_a_call(edge: Member, scripts: Scripts) -> None:
    """Whoever meets more transactions than one Resolve may ask for asks in several."""
    alpha, _ = scripts
    keys = [key(new_id(), "alpha") for _ in range(1_001)]
    requests = [asking(one.transaction_id, fresh_name(), coordinator="alpha") for one in keys]
    for some in (requests[:1000], requests[1000:]):
        assert all(answer.ok for answer in Wire(edge.server.port).ask_all(*some))
    met = edge.resolver.meet(keys, by=ResolvedBy.READER, timeout_s=10)
    assert {str(outcome) for outcome in met.values()} == {"aborted"}
    assert sorted(map(len, alpha.asked)) == [1, 1000]


def test_r7_a_few_locked_rows_cost_their_neighbours_nothing(edge: Member, scripts: Scripts) -> None:
    """Four of forty are locked, longer than a call may last: the others are ended by the first call."""
    ids = sorted(new_id() for _ in range(40))
    wire = Wire(edge.server.port)
    assert all(answer.ok for answer in wire.ask_all(*(asking(i, fresh_name(), coordinator="alpha") for i in ids)))
    lock = "SELECT FROM twophase.prepared_transaction WHERE transaction_id = ANY(:ids) FOR UPDATE"
    with another_session(edge.engine, lock, ids=ids[:4]):
        answers = wire.ask_all(*(commit_of(i, "alpha") for i in ids))
        assert [answer.reason for answer in answers] == ["IN_PROGRESS"] * 4 + [""] * 36
    assert all(answer.ok for answer in wire.ask_all(*(commit_of(i, "alpha") for i in ids)))


def test_r9_an_answer_that_nobody_knows_yet(edge: Member, scripts: Scripts) -> None:
    """A newer coordinator's outcome: it changes nothing, and the sweep goes on with the others."""
    alpha, beta = scripts
    alpha.outcome = 99
    odd, plain = overdue(edge, fresh_name()), overdue(edge, fresh_name(), "beta")
    sweeper(edge).run_once()
    rows = [edge.row(odd), edge.row(plain)]
    assert [row is not None and row.state for row in rows] == ["prepared", "aborted"]
    assert beta.asked


def test_r11_a_slow_coordinator_gets_smaller_batches(edge: Member, scripts: Scripts) -> None:
    """One that copes with two questions a call is asked for two: what is due is ended all the same."""
    alpha, _ = scripts
    ids = [overdue(edge, fresh_name()) for _ in range(16)]

    def too_much() -> None:
        if len(alpha.asked[-1]) > 2:
            raise TandemError("too slow", reason=Reason.DEADLINE_PASSED)

    alpha.meanwhile = too_much
    clock = HandClock()
    worker = sweeper(edge, clock=clock)
    for _ in range(20):
        worker.run_once()
        clock.now += 1.5
    rows = [edge.row(i) for i in ids]
    assert {row.state for row in rows if row is not None} == {"aborted"}


def test_r10_a_driver_at_work_is_not_fenced(house: House) -> None:
    """R10 and R3 together, with a real log: a competitor of a young transaction waits, that of an old one fences it."""
    name = fresh_name()
    young = house.coordinator.prepare({"ledger": [entry(name)]})
    with pytest.raises(Unavailable) as caught:
        house.coordinator.prepare({"ledger": [entry(name)]})
    assert caught.value.metadata["reasons"] == "HELD"
    assert house.outcome(young.id) is None
    house.ledger.set(young.id, prepared_at=sa.func.now() - timedelta(seconds=house.times.push_after_s + 1))
    winner = house.coordinator.prepare({"ledger": [entry(name)]})
    assert house.outcome(young.id) == "aborted"
    with pytest.raises(sa.exc.IntegrityError), house.engine.begin() as connection:
        connection.execute(young.decision)  # type: ignore[arg-type]
    with house.engine.begin() as connection:
        connection.execute(winner.decision)  # type: ignore[arg-type]
    assert winner.finish() is Outcome.COMMITTED
    assert young.finish() is Outcome.ABORTED
    assert house.ledger.accounts(name) == {name: "active"}


# --- R11 drivers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(house: House, new_member: NewMember) -> Iterator[tuple[Member, Coordinator]]:
    """A participant and its coordinator, in the house's log, that nobody else sweeps or recovers."""
    made = new_member("crowd", {COORDINATOR: f"127.0.0.1:{house.server.port}"})
    coordinator = Coordinator(
        house.engine, name=COORDINATOR, participants={"crowd": f"127.0.0.1:{made.server.port}"}, log_engine=house.engine
    )
    yield made, coordinator
    coordinator.close()


def test_r11_many_sweepers_end_each_once(house: House, crowd: tuple[Member, Coordinator]) -> None:
    """R11: claims are disjoint, so "any number of replicas" ends each transaction exactly once."""
    where, coordinator = crowd
    names = [fresh_name() for _ in range(40)]
    committed = [decided_but_undelivered(house, coordinator, {"crowd": [name]}) for name in names[:20]]
    crashed = [coordinator.prepare({"crowd": [entry(name)]}) for name in names[20:]]
    for tx in (*committed, *crashed):
        where.make_due(tx.id)
    sweepers = [sweeper(where, batch=3) for _ in range(4)]
    ended = in_threads(*(each.run_once for each in sweepers))
    assert sum(ended) == 40  # type: ignore[arg-type]
    assert counted(where.registry, "tandem_sweep_claimed_total") == 40
    assert counted(where.registry, OUTCOMES_APPLIED, outcome="committed", via="sweeper") == 20
    assert counted(where.registry, OUTCOMES_APPLIED, outcome="aborted", via="sweeper") == 20
    assert where.accounts(*names) == dict.fromkeys(names[:20], "active")
    assert sum(each.run_once() for each in sweepers) == 0
    due(house, *(tx.id for tx in committed))
    Recovery(coordinator).run_once()


def test_r11_many_recoveries_deliver_each_once(house: House, crowd: tuple[Member, Coordinator]) -> None:
    """R11: the same for recovery: each decision is delivered once, marked, and never again."""
    where, coordinator = crowd
    names = [fresh_name() for _ in range(30)]
    txs = [decided_but_undelivered(house, coordinator, {"crowd": [name]}) for name in names]
    recoveries = [Recovery(coordinator, batch=4) for _ in range(4)]
    before = counted(where.registry, OUTCOMES_APPLIED, outcome="committed", via="recovery")
    row = coordinator.log.get(txs[0].key)
    assert row.next_attempt_at == row.decided_at + timedelta(seconds=1), "the first second is the driver's own"
    due(house, *(tx.id for tx in txs))
    assert sum(in_threads(*(each.run_once for each in recoveries))) == 30  # type: ignore[arg-type]
    assert counted(where.registry, OUTCOMES_APPLIED, outcome="committed", via="recovery") == before + 30
    assert where.accounts(*names) == dict.fromkeys(names, "active")
    assert all(branch.delivered for tx in txs for branch in record(house, tx.id).branches)
    due(house, *(tx.id for tx in txs))
    assert sum(each.run_once() for each in recoveries) == 0


def test_r11_a_claim_is_a_short_lease(edge: Member, scripts: Scripts) -> None:
    """R11: the claim "moves next_attempt_at by a short lease": nobody else takes the row meanwhile, anyone after it."""
    alpha, name = scripts[0], fresh_name()
    alpha.outcome = OUTCOMES.Value("OUTCOME_UNDECIDED")
    transaction_id = overdue(edge, name)
    before = datetime.now(UTC)
    assert sweeper(edge).run_once() == 0
    row = edge.row(transaction_id)
    assert before < row.next_attempt_at <= datetime.now(UTC) + timedelta(seconds=LEASE_S)
    assert row.attempts == 1
    assert sweeper(edge).run_once() == 0
    assert alpha.asked == [[str(transaction_id)]]
    edge.make_due(transaction_id)  # the lease has run out
    sweeper(edge).run_once()
    assert alpha.asked == [[str(transaction_id)]] * 2
    assert Wire(edge.server.port).ask(abort_of(transaction_id, "alpha")).ok


def test_r11_a_locked_row_blocks_no_other(edge: Member, scripts: Scripts) -> None:
    """R11: "one bad row never blocks the others": one that somebody sits on is skipped, and taken up when it's free."""
    ids = [overdue(edge, fresh_name()) for _ in range(4)]
    lock = "SELECT FROM twophase.prepared_transaction WHERE transaction_id = :id FOR UPDATE"
    with another_session(edge.engine, lock, id=str(ids[0])):
        started = time.monotonic()
        assert sweeper(edge).run_once() == 3
        assert time.monotonic() - started < 3
    assert edge.row(ids[0]).state == "prepared"
    assert sweeper(edge).run_once() == 1


def test_r11_a_row_locked_after_the_claim(edge: Member, scripts: Scripts) -> None:
    """R11 and R16: the same where it is locked while the coordinator is asked: the sweep ends in bounded time."""
    alpha, _ = scripts
    ids = [overdue(edge, fresh_name()) for _ in range(3)]
    lock = "SELECT FROM twophase.prepared_transaction WHERE transaction_id = :id FOR UPDATE"
    with contextlib.ExitStack() as stack:
        alpha.meanwhile = lambda: stack.enter_context(another_session(edge.engine, lock, id=str(ids[1])))
        done: list[object] = []
        worker = sweeper(edge)
        in_time = ends(lambda: done.append(worker.run_once()), within_s=8, release=stack.close)
    assert in_time, "the sweep hung on a row that somebody else holds"
    assert done == [2]
    assert edge.row(ids[1]).state == "prepared"
    alpha.meanwhile = lambda: None
    edge.make_due(ids[1])
    assert sweeper(edge).run_once() == 1


def test_r11_a_spoilt_row_blocks_no_other(edge: Member, scripts: Scripts) -> None:
    """R11: one that can't be applied (published ≠ staged) is counted and parked; its neighbours are ended."""
    scripts[0].outcome = OUTCOMES.Value("OUTCOME_COMMITTED")
    names = [fresh_name() for _ in range(4)]
    ids = [overdue(edge, name) for name in names]
    with edge.engine.begin() as connection:
        row = connection.execute(sa.delete(account).where(account.c.name == names[0]).returning(account)).one()
    assert sweeper(edge).run_once() == 3
    assert edge.accounts(*names) == dict.fromkeys(names[1:], "active")
    assert (edge.row(ids[0]).state, edge.row(ids[0]).last_error) == ("prepared", "PUBLISHED_NOT_STAGED")
    with edge.engine.begin() as connection:
        connection.execute(sa.insert(account).values(row._asdict()))
    assert edge.row(ids[0]).parked == "PUBLISHED_NOT_STAGED"
    edge.set(ids[0], parked=None, next_attempt_at=sa.func.now())
    assert sweeper(edge).run_once() == 1


def test_r11_back_off_is_per_peer(edge: Member, scripts: Scripts) -> None:
    """R11: "a failing peer gets one probe a second, and its first success makes all its rows due"; others go on."""
    alpha, _ = scripts
    alpha.error = TandemError("no", reason=Reason.NOT_ALLOWED)
    names = [fresh_name() for _ in range(5)]
    waiting = [overdue(edge, name) for name in names]
    healthy = [overdue(edge, fresh_name(), "beta") for _ in range(3)]
    clock = HandClock()
    worker = sweeper(edge, clock=clock)

    assert worker.run_once() == 3
    assert {edge.row(i).state for i in healthy} == {"aborted"}
    assert len(alpha.asked) == 1
    for _ in range(3):  # within the second: not once more, while the other's are ended as ever
        clock.now += 0.3
        overdue(edge, fresh_name(), "beta")
        assert worker.run_once() == 1
    assert len(alpha.asked) == 1
    for probes in (2, 3, 4):  # one a second, one row each, although the rows' leases still run
        clock.now += 1.0
        overdue(edge, fresh_name(), "beta")
        assert worker.run_once() == 1
        assert worker.run_once() == 0
        assert len(alpha.asked) == probes
        assert len(alpha.asked[-1]) == 1
    assert edge.accounts(*names) == dict.fromkeys(names, "prepared")

    alpha.error = None
    clock.now += 1.0
    assert worker.run_once() == 5
    assert edge.accounts(*names) == {}
    assert {edge.row(i).state for i in waiting} == {"aborted"}


def test_r11_healthy_peers_come_first(edge: Member, scripts: Scripts) -> None:
    """R11: a peer that hangs makes nobody wait: what others decided is applied before it is probed."""
    alpha, _ = scripts
    clock = HandClock()
    worker = sweeper(edge, clock=clock)
    alpha.error = TandemError("no", reason=Reason.NOT_ALLOWED)
    waiting = overdue(edge, fresh_name())
    worker.run_once()
    name = fresh_name()
    overdue(edge, name, "beta")
    seen: list[dict[str, str]] = []
    alpha.error, alpha.meanwhile = None, lambda: seen.append(edge.accounts(name))
    clock.now += 1.0
    assert worker.run_once() == 2
    assert seen == [{}]
    assert edge.row(waiting).state == "aborted"


def test_r11_a_peer_that_hangs_holds_up_no_other(edge: Member, scripts: Scripts) -> None:
    """R11: what is due of several coordinators is asked for at once: one's answer is applied while another hangs."""
    alpha, _ = scripts
    waiting, name = overdue(edge, fresh_name()), fresh_name()
    overdue(edge, name, "beta")
    alpha.meanwhile = lambda: eventually(lambda: edge.accounts(name) == {})
    assert sweeper(edge).run_once() == 2
    assert edge.row(waiting).state == "aborted"


def test_r10_readers_that_wait_for_one_coordinator_are_few(edge: Member, scripts: Scripts) -> None:
    """R10, R16: "no answer" is said soon of a coordinator that many wait for already, so that workers stay free."""
    alpha, _ = scripts
    transaction_id = overdue(edge, fresh_name())
    key = TransactionKey("alpha", transaction_id)
    seen: list[object] = []

    def meet() -> object:
        return edge.resolver.meet({key}, by=ResolvedBy.READER, timeout_s=2.0)[key]

    alpha.meanwhile = lambda: seen.append(meet()) if not seen else None
    edge.resolver._turns["alpha"] = threading.BoundedSemaphore(1)
    assert meet() is Answered.ABORTED
    assert [error.reason for error in seen if isinstance(error, TandemError)] == [Reason.UNAVAILABLE]
    assert meet() is Answered.ABORTED, "a turn is given back"


@pytest.fixture(scope="module")
def two(house: House, new_member: NewMember) -> Iterator[Two]:
    """Two participants that can be made to fail, and a coordinator of theirs alone."""
    with contextlib.ExitStack() as closing:
        members = {
            name: new_member(name, {COORDINATOR: f"127.0.0.1:{house.server.port}"}) for name in ("left", "right")
        }
        tampered = {name: TamperedParticipant(each.participant, each.resolver) for name, each in members.items()}
        targets = {name: f"127.0.0.1:{closing.enter_context(served(each)).port}" for name, each in tampered.items()}
        coordinator = Coordinator(house.engine, name=COORDINATOR, participants=targets)
        closing.callback(coordinator.close)
        yield tampered, members, coordinator


def _recovery(coordinator: Coordinator, clock: HandClock | None = None) -> Recovery:
    made = Recovery(coordinator)
    if clock is not None:
        made._peers = Peers(clock)
    return made


def test_r11_recovery_backs_off_per_peer(house: House, two: Two) -> None:
    """R11, the same for recovery: a participant that fails is probed once a second; the other gets its Commits."""
    tampered, members, coordinator = two
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise TandemError("no", reason=Reason.NOT_ALLOWED)

    tampered["left"].before_commit = fail
    names = [fresh_name() for _ in range(4)]
    txs = [decided_but_undelivered(house, coordinator, {"left": [name], "right": [name]}) for name in names]
    due(house, *(tx.id for tx in txs))
    clock = HandClock()
    worker = _recovery(coordinator, clock)
    assert worker.run_once() == 4
    assert members["right"].accounts(*names) == dict.fromkeys(names, "active")
    assert len(calls) == 1
    clock.now += 0.9
    assert worker.run_once() == 0
    assert len(calls) == 1
    for probes in (2, 3):
        clock.now += 1.0
        assert worker.run_once() == worker.run_once() == 0
        assert len(calls) == probes
    tampered["left"].before_commit = lambda: None
    clock.now += 1.0
    assert worker.run_once() == 4
    assert members["left"].accounts(*names) == dict.fromkeys(names, "active")
    assert all(branch.delivered for tx in txs for branch in record(house, tx.id).branches)


def test_r11_one_contradiction_is_no_failing_peer(house: House, two: Two) -> None:
    """R11: "one bad row never blocks the others": a participant that says no to one Commit does answer."""
    _, members, coordinator = two
    names = [fresh_name(), fresh_name()]
    first, second = (decided_but_undelivered(house, coordinator, {"left": [name]}) for name in names)
    lose(members["left"], first, names[:1])
    worker = _recovery(coordinator, HandClock())
    due(house, first.id)
    assert worker.run_once() == 0
    due(house, second.id)
    assert worker.run_once() == 1
    assert members["left"].accounts(*names) == {names[1]: "active"}


# --- R12 after the commit point nothing raises -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fragile(house: House, new_member: NewMember) -> Iterator[tuple[Member, Coordinator]]:
    """A participant that tests may stop, and a coordinator of its own."""
    made = new_member("fragile", {COORDINATOR: f"127.0.0.1:{house.server.port}"})
    port = made.server.port
    coordinator = Coordinator(
        house.engine,
        name=COORDINATOR,
        participants={"fragile": f"127.0.0.1:{port}", "other": f"127.0.0.1:{house.other.server.port}"},
    )
    yield made, coordinator
    coordinator.close()


@contextmanager
def stopped(where: Member) -> Iterator[None]:
    """Its server is gone, and back at the same address afterwards."""
    port = where.server.port
    where.server.drain(0)
    try:
        yield
    finally:
        where.server = Server(f"127.0.0.1:{port}", workers=16)
        ParticipantServicer(where.participant, where.resolver).add_to(where.server)
        where.server.start()


def test_r12_a_participant_that_is_gone_when_commit_comes(
    house: House, fragile: tuple[Member, Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: "Delivery failures are reported (tx.delivered), not thrown"; recovery delivers when it is back."""
    monkeypatch.setattr("tandem.coordinator.driver.CONFIRM_S", 0.5)
    where, coordinator = fragile
    name, other, user = fresh_name(), fresh_name(), uuid4()
    with contextlib.ExitStack() as outage:
        with coordinator.transaction({"fragile": [entry(name)], "other": [entry(other)]}) as tx:
            tx.connection.execute(sa.insert(own).values(id=user))
            outage.enter_context(stopped(where))
        assert house.outcome(tx.id) == "committed"
        assert house.own_rows(user) == {user}
        assert (tx.delivered, tx.undelivered) == (False, ("fragile",))
        assert house.other.accounts(other) == {other: "active"}
        assert where.accounts(name) == {name: "prepared"}
    worker = _recovery(coordinator)

    def recovered() -> bool:
        due(house, tx.id)
        worker.run_once()
        return all(branch.delivered for branch in record(house, tx.id).branches)

    eventually(recovered)
    assert where.accounts(name) == {name: "active"}
    assert where.row(tx.id).resolved_by == "recovery"


@pytest.mark.parametrize("answered", ["an error", "too few answers", "IN_PROGRESS for ever"])
def test_r12_a_participant_that_answers_nonsense(house: House, answered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: whatever a participant answers to Commit, the block returns and the decision stays undelivered."""
    monkeypatch.setattr("tandem.coordinator.driver.CONFIRM_S", 0.3)
    tampered = TamperedParticipant(house.ledger.participant, house.ledger.resolver)

    def spoil(response: pb.BatchCommitResponse) -> pb.BatchCommitResponse:
        if answered == "too few answers":
            return pb.BatchCommitResponse()
        raise TandemError("no", reason=Reason.INTERNAL if answered == "an error" else Reason.IN_PROGRESS)

    tampered.after_commit = spoil
    with served(tampered) as server, misled(house, server.port) as coordinator:
        with coordinator.transactions([{"ledger": [entry(fresh_name())]} for _ in range(2)]) as batch:
            pass
    for tx in batch.transactions:
        assert not tx.delivered
        assert not record(house, tx.id).branches[0].delivered
    due(house, *(tx.id for tx in batch.transactions))
    _recovery(house.coordinator).run_once()
    for tx in batch.transactions:
        assert record(house, tx.id).branches[0].delivered


def test_r12_a_mark_that_cannot_be_written(house: House) -> None:
    """R12 and R16: somebody sits on the decision's row: the block returns all the same, in bounded time."""
    tampered, name = TamperedParticipant(house.ledger.participant, house.ledger.resolver), fresh_name()
    lock = "SELECT FROM twophase.decision WHERE transaction_id = :id FOR UPDATE"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(tampered))
        coordinator = stack.enter_context(misled(house, server.port))
        transaction_id = new_id()
        holding = contextlib.ExitStack()
        tampered.before_commit = lambda: holding.enter_context(
            another_session(house.engine, lock, id=str(transaction_id))
        )
        outcome: list[object] = []

        def run() -> None:
            with coordinator.transaction({"ledger": [entry(name)]}, transaction_id=transaction_id) as tx:
                pass
            outcome.append(tx.phase.value)

        assert ends(run, within_s=8, release=holding.close), "the block hung on the mark"
    assert outcome == ["committed"]
    assert house.ledger.accounts(name) == {name: "active"}


def test_r12_background_confirm(house: House) -> None:
    """R12: confirm="background" returns before the participants know; they soon do."""
    name = fresh_name()
    with house.coordinator.transaction({"ledger": [entry(name)]}, confirm="background") as tx:
        pass
    assert house.outcome(tx.id) == "committed"
    eventually(lambda: tx.delivered)
    assert house.ledger.accounts(name) == {name: "active"}


def test_r12_a_full_background_queue_drops(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: "A full background queue drops: recovery has it"."""
    monkeypatch.setattr("tandem.coordinator.delivery.QUEUE_LIMIT", 1)
    monkeypatch.setattr("tandem.coordinator.delivery.BACKGROUND_S", 30.0)
    tampered = TamperedParticipant(house.ledger.participant, house.ledger.resolver)
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(20)

    tampered.before_commit = hold
    names, registry = [fresh_name() for _ in range(5)], CollectorRegistry()
    with served(tampered) as server, misled(house, server.port, registry=registry) as coordinator:
        with coordinator.transaction({"ledger": [entry(names[0])]}, confirm="background") as first:
            pass
        assert entered.wait(10)
        many = [{"ledger": [entry(name)]} for name in names[1:]]
        with coordinator.transactions(many, confirm="background") as batch:
            pass
        assert counted(registry, "tandem_background_confirms_dropped_total") == 3
        go_on.set()
        eventually(lambda: first.delivered and batch.transactions[0].delivered)
    dropped = batch.transactions[1:]
    assert not any(tx.delivered for tx in dropped)
    assert {house.outcome(tx.id) for tx in dropped} == {"committed"}
    due(house, *(tx.id for tx in dropped))
    _recovery(house.coordinator).run_once()
    assert house.ledger.accounts(*names) == dict.fromkeys(names, "active")


def test_r12_what_waits_is_confirmed_before_the_end(house: House) -> None:
    """R12: a process that stops in the ordinary way confirms what its background has still to do."""
    tampered = TamperedParticipant(house.ledger.participant, house.ledger.resolver)
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(20)

    tampered.before_commit = hold
    names = [fresh_name() for _ in range(4)]
    with served(tampered) as server, misled(house, server.port) as coordinator:
        with coordinator.transaction({"ledger": [entry(names[0])]}, confirm="background"):
            pass
        assert entered.wait(10)
        with coordinator.transactions([{"ledger": [entry(name)]} for name in names[1:]], confirm="background") as batch:
            pass
        assert not any(tx.delivered for tx in batch.transactions)
        closing = threading.Thread(target=coordinator.close)
        closing.start()
        go_on.set()
        closing.join(20)
        assert not closing.is_alive()
        assert all(tx.delivered for tx in batch.transactions)
    assert house.ledger.accounts(*names) == dict.fromkeys(names, "active")


def test_r12_no_thread_to_confirm_in(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: a process that may start no more threads has committed all the same: recovery delivers."""

    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "confirm":
            raise RuntimeError("can't start new thread")
        start(thread)

    name, registry = fresh_name(), CollectorRegistry()
    with misled(house, house.ledger.server.port, registry=registry) as coordinator:
        with coordinator.transaction({"ledger": [entry(name)]}, confirm="background") as tx:
            monkeypatch.setattr(threading.Thread, "start", fail)
        monkeypatch.undo()
        assert not tx.delivered
        assert counted(registry, "tandem_background_confirms_dropped_total") == 1
        due(house, tx.id)
        _recovery(coordinator).run_once()
    assert house.ledger.accounts(name) == {name: "active"}


# --- R13 one clock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-400, 400])
def test_r13_ages_come_from_the_database(
    house: House, crowd: tuple[Member, Coordinator], monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """R13: "Ages come from one database's now()": a process whose clock is a year off sweeps and refuses the same."""
    real = time.time

    def off() -> float:
        """For our own code; gRPC reckons its deadlines by this clock, too."""
        ours = sys._getframe(1).f_globals["__name__"].startswith("tandem.")
        return real() + days * DAY_S * ours

    monkeypatch.setattr(time, "time", off)
    where, coordinator = crowd
    wire, names = Wire(where.server.port), [fresh_name() for _ in range(3)]
    is_due, is_not = prepared(where, names[0], log_id=uuid4()), prepared(where, names[1], log_id=uuid4(), ttl_s=60)
    where.make_due(is_due)
    sweeper(where).run_once()
    assert (where.row(is_due).attempts, where.row(is_not).attempts) == (1, 0)
    tx = decided_but_undelivered(house, coordinator, {"crowd": [names[2]]})
    with house.engine.begin() as connection:
        soon = sa.func.now() + timedelta(hours=1)
        connection.execute(sa.update(decision).where(decision.c.transaction_id == tx.id).values(next_attempt_at=soon))
    assert _recovery(coordinator).run_once() == 0
    due(house, tx.id)
    assert _recovery(coordinator).run_once() == 1
    assert wire.ask(asking(new_id(age_s=EXPIRED_S), fresh_name())).reason == "TRANSACTION_EXPIRED"
    assert wire.ask(asking(new_id(age_s=EXPIRED_S - 600), fresh_name())).ok
    listed = where.stub.ListTransactions(
        pb.ParticipantServiceListTransactionsRequest(older_than=duration(3_600), page_size=1000), timeout=10
    )
    assert str(is_not) not in {shown.key.transaction_id for shown in listed.transactions}
    assert wire.ask_all(abort_of(is_due), abort_of(is_not)) == [Answer("OK"), Answer("OK")]


# --- R14 ids that are too old, or ahead: the table above has the answers ---------------------------------------------


@pytest.mark.parametrize(
    ("age_s", "reason"),
    [
        (29 * DAY_S - 60, OK),
        (29 * DAY_S + 60, "TRANSACTION_EXPIRED"),
        (400 * DAY_S, "TRANSACTION_EXPIRED"),
        (-DAY_S + 60, OK),
        (-DAY_S - 60, "TRANSACTION_AHEAD"),
        (-400 * DAY_S, "TRANSACTION_AHEAD"),
    ],
)
def test_r14_where_the_line_is(house: House, way: bool, age_s: float, reason: str) -> None:
    """R14: "Expired ids, and ids more than a day ahead, are refused"; expiry is "retention − 1 day"."""
    wire, name = Wire(house.ledger.server.port, batch=way), fresh_name()
    transaction_id = new_id(age_s=age_s)
    assert wire.ask(asking(transaction_id, name)).reason == reason
    assert (house.ledger.row(transaction_id) is not None) == (reason == OK)
    assert house.ledger.accounts(name) == ({} if reason else {name: "prepared"})


def test_r14_what_was_promised_is_kept(house: House) -> None:
    """R14 and R6: an id that expires while its transaction is prepared is still committed: a promise has no end."""
    wire, names = Wire(house.ledger.server.port), [fresh_name(), fresh_name()]
    for name, request in zip(names, (commit_of, abort_of), strict=True):
        transaction_id, old = prepared(house.ledger, name), new_id(age_s=EXPIRED_S)
        with house.ledger.engine.begin() as connection:
            for table in (prepared_transaction, account):
                connection.execute(
                    sa.update(table).where(table.c.transaction_id == transaction_id).values(transaction_id=old)
                )
        assert wire.ask(asking(old, name)).ok
        assert wire.ask(request(old)).ok
    assert house.ledger.accounts(*names) == {names[0]: "active"}


@pytest.mark.parametrize("age_s", [EXPIRED_S, -DAY_S - 600], ids=["expired", "ahead"])
def test_r14_the_statement_decides(house: House, monkeypatch: pytest.MonkeyPatch, age_s: float) -> None:
    """R14: "decided in the statement that would write": were Python's check wrong, still nothing would be written."""
    monkeypatch.setattr(participant_module, "age", lambda *_, **__: Age.FINE)
    wire, transaction_id, name = Wire(house.ledger.server.port), new_id(age_s=age_s), fresh_name()
    for request in (asking(transaction_id, name), commit_of(transaction_id), abort_of(transaction_id)):
        assert not wire.ask(request).ok
        assert house.ledger.row(transaction_id) is None
    assert house.ledger.accounts(name) == {}


# --- R15 durable -----------------------------------------------------------------------------------------------------


@pytest.mark.direct
@pytest.mark.parametrize(("configured", "kept"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
def test_r15_votes_and_acks_are_durable(house: House, new_database: NewDatabase, configured: str, kept: str) -> None:
    """R15: "raises synchronous_commit from off to on in its first statement (stronger settings are kept)"."""
    made = member("durable", preset(new_database("durable"), synchronous_commit=configured), {}, Times())
    plug = Watching("synchronous_commit")
    participant = Participant(
        made.engine, name="durable", resource=plug, coordinators=[COORDINATOR], times=Times(), metrics=made.metrics
    )
    with made.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == configured
    try:
        with served(ParticipantServicer(participant, made.resolver)) as server:
            wire, ids = Wire(server.port), [new_id(), new_id()]
            for transaction_id, end in zip(ids, (commit_of, abort_of), strict=True):
                assert wire.ask(asking(transaction_id, fresh_name())).ok
                assert wire.ask(end(transaction_id)).ok
    finally:
        made.server.drain(0)
        made.resolver.close()
        made.engine.dispose()
    assert plug.seen == [("stage", kept), ("publish", kept), ("stage", kept), ("discard", kept)]


def test_r15_a_server_that_cannot_keep_a_promise(postgres: EmbeddedPostgres) -> None:
    """R15: "a service refuses to start on fsync=off", and on a replica, which can't be written to either."""
    bare = BareServer(postgres.bin)
    try:
        with bare.running("fsync=off") as engine, pytest.raises(ConfigurationError, match="fsync=off"):
            check_server(engine)
        with bare.running() as engine:
            check_server(engine)
            with local_transaction(engine) as connection:
                assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        bare.become_replica()
        with bare.running() as engine:
            with pytest.raises(ConfigurationError, match="replica"):
                check_server(engine)
            # One that became a replica while the service ran: no local transaction begins there.
            for statement in ("SELECT 1", "INSERT INTO t VALUES (1)"):
                with pytest.raises(sa.exc.DBAPIError) as caught, local_transaction(engine) as connection:
                    connection.exec_driver_sql(statement)
                assert explained(caught.value).reason is Reason.DATABASE_UNAVAILABLE
                assert "replica" in explained(caught.value).message
    finally:
        bare.remove()


# --- R16 bounded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 1000, 1001, 10_000])
@pytest.mark.parametrize("message", ["prepare", "commit", "abort"])
def test_r16_batches(house: House, message: str, count: int) -> None:
    """R16: "Every batch … has a limit": 1 to 1000; beyond it the call is refused and nothing of it is done."""
    stub, port = Wire(house.ledger.server.port).stub, house.ledger.server.port
    ids = [new_id() for _ in range(count)]
    call: Callable[[], object]
    match message:
        case "prepare":
            asked = pb.BatchPrepareRequest(requests=[asking(i, f"bulk-{i}") for i in ids])
            call = lambda: [r.status for r in stub.BatchPrepare(asked, timeout=30).results]  # noqa: E731
        case "commit":
            if count in (1, 1000):
                assert all(answer.ok for answer in Wire(port).ask_all(*(asking(i, f"bulk-{i}") for i in ids)))
            call = lambda: stub.BatchCommit(pb.BatchCommitRequest(requests=map(commit_of, ids)), timeout=30).results  # noqa: E731
        case _:
            call = lambda: stub.BatchAbort(pb.BatchAbortRequest(requests=map(abort_of, ids)), timeout=30).results  # noqa: E731
    if count in (1, 1000):
        assert [status.code for status in call()] == [0] * count  # type: ignore[attr-defined]
        return
    answer = failure_of(call)
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("requests",))
    assert all(house.ledger.row(i) is None for i in ids[:3])


@pytest.mark.parametrize("count", [0, 1000, 1001])
def test_r16_resolve(house: House, count: int) -> None:
    """R16: the same for the questions of a Resolve."""
    request = coordinator_pb2.ResolveRequest(participant="ledger")
    for _ in range(count):
        request.items.add(key=key_of(new_id()), log_id=str(house.coordinator.log.log_id()), digest=bytes(32))
    if count == 1000:
        results = house.stub.Resolve(request, timeout=20).results
        assert {result.outcome for result in results} == {coordinator_pb2.ResolveResult.OUTCOME_UNDECIDED}
        return
    answer = failure_of(lambda: house.stub.Resolve(request, timeout=20))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("items",))


@pytest.mark.parametrize("count", [0, 1001])
def test_r16_many_transactions_of_one_call(house: House, count: int) -> None:
    """R16: the driver's own batches are bounded, too."""
    many = [{"ledger": [entry(fresh_name())]} for _ in range(count)]
    with pytest.raises(InvalidRequest), house.coordinator.transactions(many):
        raise AssertionError("entered")


@pytest.mark.parametrize("writes", [1000, 1001])
def test_r16_writes(house: House, way: bool, writes: int) -> None:
    """R16: a transaction has at most 1,000 writes at a participant."""
    wire, names = Wire(house.ledger.server.port, batch=way), [fresh_name() for _ in range(writes)]
    answer = wire.ask(asking(new_id(), *names))
    assert (answer.code, answer.fields) == (
        ("OK", ()) if writes == 1000 else ("INVALID_ARGUMENT", ("requests[1].writes" if way else "writes",))
    )
    assert len(house.ledger.accounts(*names)) == (1000 if writes == 1000 else 0)


def test_r16_messages(house: House) -> None:
    """R16: "Every … message … has a limit": 20 MB are told what the limit is; just below 4 MiB is read and judged."""

    def blob(size: int) -> pb.PrepareRequest:
        request = asking(new_id())
        request.writes.add(type_url="type.googleapis.com/nobody.Knows", value=bytes(size))
        return request

    stub = Wire(house.ledger.server.port).stub
    answer = failure_of(lambda: stub.Prepare(blob(20_000_000), timeout=20))
    assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Prepare(blob(30_000_000), timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure_of(lambda: stub.Prepare(blob(4 * 1024 * 1024 - 1_000), timeout=20)).reason == "UNKNOWN_TYPE"


@pytest.mark.parametrize("size", [-1, 1001])
def test_r16_pages(house: House, size: int) -> None:
    """R16: "Every … page … has a limit"."""
    theirs = pb.ParticipantServiceListTransactionsRequest(page_size=size)
    ours = coordinator_pb2.CoordinatorServiceListTransactionsRequest(page_size=size)
    for call in (lambda: house.ledger.stub.ListTransactions(theirs), lambda: house.stub.ListTransactions(ours)):
        answer = failure_of(call)
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("page_size",))


def test_r16_calls_at_once(house: House) -> None:
    """R16: "Every … queue … has a limit": with one worker and one place to wait, a third call is turned away."""
    entered, go_on = threading.Event(), threading.Event()
    tampered = TamperedParticipant(house.ledger.participant, house.ledger.resolver)

    def hold() -> None:
        entered.set()
        assert go_on.wait(20)

    tampered.before_commit = hold
    with served(tampered, workers=1, queue=1) as server:
        stub = Wire(server.port).stub
        request = pb.BatchCommitRequest(requests=[commit_of(prepared(house.ledger, fresh_name()))])
        running = stub.BatchCommit.future(request, timeout=20)
        assert entered.wait(10)
        waiting = stub.BatchCommit.future(request, timeout=20)
        # The second call must have come in before the third: the server counts it as soon as it has.
        eventually(lambda: server._pool.full)
        started = time.monotonic()
        turned_away = failure_of(lambda: stub.BatchCommit(request, timeout=20))
        assert (turned_away.code, turned_away.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert turned_away.retry_after_s is not None
        assert time.monotonic() - started < 5
        go_on.set()
        assert [call.result().results[0].code for call in (running, waiting)] == [0, 0]
        assert stub.BatchCommit(request, timeout=20).results[0].code == 0, "there is room again"


# --- R17 right log ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restored(new_database: NewDatabase) -> Iterator[House]:
    """A house whose log a test may renew."""
    with built(new_database, names=("ledger",)) as house:
        yield house


def renew(house: House) -> UUID:
    """What the command does after a restore: a new current id; former ones are kept."""
    renewed = uuid4()
    with house.engine.begin() as connection:
        connection.execute(sa.update(log).values(current=False))
        connection.execute(sa.insert(log).values(log_id=renewed, current=True))
    return renewed


def test_r17_a_renewed_log(restored: House) -> None:
    """R17: "former ids are kept and still answered"; a decision under a former one is refused, and the driver learns
    the new one by it."""
    house, names, user = restored, [fresh_name() for _ in range(4)], uuid4()
    former = house.coordinator.log.log_id()
    committed = decided_but_undelivered(house, house.coordinator, {"ledger": [names[0]]})
    in_doubt = house.coordinator.prepare({"ledger": [entry(names[1])]})
    renewed = renew(house)

    with pytest.raises(Unavailable) as caught:
        with house.coordinator.transaction({"ledger": [entry(names[2])]}) as tx:
            tx.connection.execute(sa.insert(own).values(id=user))
    assert caught.value.retry_after_s is not None
    assert house.own_rows(user) == set()
    assert house.outcome(tx.id) == "aborted"
    assert house.ledger.row(tx.id).log_id == former
    assert house.ledger.accounts(names[2]) == {}

    with house.coordinator.transaction({"ledger": [entry(names[3])]}) as tx:
        tx.connection.execute(sa.insert(own).values(id=user))
    assert house.ledger.row(tx.id).log_id == renewed
    assert house.own_rows(user) == {user}

    for waiting in (committed, in_doubt):
        house.ledger.make_due(waiting.id)
    assert sweeper(house.ledger).run_once() == 2
    assert house.ledger.accounts(*names) == {names[0]: "active", names[3]: "active"}


def test_r17_the_three_calls_learn_of_a_renewed_log(restored: House) -> None:
    """R17: the same where the initiator sends the INSERT by itself."""
    house, names = restored, [fresh_name(), fresh_name()]
    tx = house.coordinator.prepare({"ledger": [entry(names[0])]})
    renewed = renew(house)
    with pytest.raises(sa.exc.IntegrityError, match="decision_check_wrong_log"), house.engine.begin() as connection:
        connection.execute(tx.decision)  # type: ignore[arg-type]
    assert tx.finish() is Outcome.ABORTED
    again = house.coordinator.prepare({"ledger": [entry(names[1])]})
    assert again.log_id == renewed
    assert again.finish() is Outcome.ABORTED


@pytest.mark.parametrize("fence", [True, False], ids=["fence", "no fence"])
def test_r17_an_unknown_log(house: House, fence: bool) -> None:
    """R17 and R4: "an unknown log_id → WRONG_LOG, nothing written", while the batch's other items are answered."""
    ids = [new_id(), new_id()]
    request = coordinator_pb2.ResolveRequest(participant="ledger", fence=fence)
    for transaction_id, log_id in zip(ids, (uuid4(), house.coordinator.log.log_id()), strict=True):
        request.items.add(key=key_of(transaction_id), log_id=str(log_id), digest=bytes(32))
    results = house.stub.Resolve(request, timeout=10).results
    answered = [coordinator_pb2.ResolveResult.Outcome.Name(result.outcome) for result in results]
    assert answered == ["OUTCOME_WRONG_LOG", "OUTCOME_ABORTED" if fence else "OUTCOME_UNDECIDED"]
    assert [house.outcome(transaction_id) for transaction_id in ids] == [None, "aborted" if fence else None]


def test_r17_names_may_not_leave_the_configuration(restored: House) -> None:
    """R17: "Names that appear in prepared or undelivered rows may not leave the configuration", parked ones neither."""
    house, name = restored, fresh_name()
    unknown = partial(house.coordinator.log.unknown_participants, house.coordinator.name)
    assert unknown([]) == set()
    tx = decided_but_undelivered(house, house.coordinator, {"ledger": [name]})
    assert unknown([]) == unknown(["another"]) == {"ledger"}
    assert unknown(["another", "ledger"]) == set()
    lose(house.ledger, tx, [name])
    assert tx.finish() is Outcome.COMMITTED
    assert record(house, tx.id).branches[0].parked == "TRANSACTION_UNKNOWN"
    assert unknown([]) == {"ledger"}, "a parked delivery waits for a person, under this name"
    assert Wire(house.ledger.server.port).ask(asking(tx.id, name, log_id=tx.log_id)).ok
    house.stub.RetryNow(coordinator_pb2.RetryNowRequest(key=key_of(tx.id)), timeout=10)
    assert _recovery(house.coordinator).run_once() == 1
    assert unknown([]) == set()


def test_r17_a_participant_keeps_its_name(restored: House) -> None:
    """R17, and R4's "not listed in the decision → ABORTED for that asker": the name is written down at the first
    start, and another one is refused; so is a configuration without the coordinator of something in doubt."""
    house, engine, name = restored, restored.ledger.engine, fresh_name()
    for _ in range(2):
        check_names(engine, name="ledger", coordinators=[COORDINATOR])
    with pytest.raises(ConfigurationError, match="belongs to the participant 'ledger', not to 'accounts'"):
        check_names(engine, name="accounts", coordinators=[COORDINATOR])
    check_names(engine, name="ledger", coordinators=[])
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    with pytest.raises(ConfigurationError, match=f"transactions of {COORDINATOR} are in doubt here"):
        check_names(engine, name="ledger", coordinators=["another"])
    assert tx.finish() is Outcome.ABORTED
    check_names(engine, name="ledger", coordinators=["another"])


# --- looking ---------------------------------------------------------------------------------------------------------


def pages(call: Callable[[str], tuple[Sequence[str], str]]) -> list[Sequence[str]]:
    """All pages, by their tokens."""
    found, token = [], ""
    while True:
        some, token = call(token)
        found.append(some)
        if not token:
            return found
        assert len(found) < 100


def test_get_transaction_of_a_participant(house: House) -> None:
    """GetTransaction shows a transaction as it stands; NOT_FOUND where nothing is known."""
    name = fresh_name()
    transaction_id = prepared(house.ledger, name)
    asked = pb.ParticipantServiceGetTransactionRequest(key=key_of(transaction_id))
    shown = house.ledger.stub.GetTransaction(asked).transaction
    assert (shown.key, shown.log_id) == (key_of(transaction_id), str(LOG))
    assert shown.state == transaction_pb2.TRANSACTION_STATE_PREPARED
    assert shown.digest == transaction_digest(write_digests(asking(transaction_id, name).writes))
    assert (shown.writes, shown.staged, shown.confirmed) == (1, 1, False)
    assert abs(shown.prepare_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    assert not shown.HasField("resolve_time")
    assert Wire(house.ledger.server.port).ask(commit_of(transaction_id)).ok
    shown = house.ledger.stub.GetTransaction(asked).transaction
    assert (shown.state, shown.confirmed) == (transaction_pb2.TRANSACTION_STATE_COMMITTED, True)
    assert shown.resolved_by == transaction_pb2.RESOLVED_BY_COORDINATOR
    assert shown.HasField("resolve_time")
    buried = new_id()
    assert Wire(house.ledger.server.port).ask(abort_of(buried)).ok
    shown = house.ledger.stub.GetTransaction(pb.ParticipantServiceGetTransactionRequest(key=key_of(buried))).transaction
    assert (shown.state, shown.digest, shown.writes, shown.log_id) == (
        transaction_pb2.TRANSACTION_STATE_ABORTED, b"", 0, "",
    )  # fmt: skip
    answer = failure_of(
        lambda: house.ledger.stub.GetTransaction(pb.ParticipantServiceGetTransactionRequest(key=key_of(new_id())))
    )
    assert (answer.code, answer.reason) == ("NOT_FOUND", "NOT_FOUND")


def test_list_transactions_of_a_participant(edge: Member, new_member: NewMember) -> None:
    """ListTransactions: in the order of the names, page by page, filtered by state, age and coordinator."""
    where = new_member("listed", {COORDINATOR: "127.0.0.1:1", "second": "127.0.0.1:1"})
    wire = Wire(where.server.port)
    ids = [prepared(where, fresh_name()) for _ in range(7)]
    elsewhere = prepared(where, fresh_name(), coordinator="second")
    assert wire.ask_all(*map(commit_of, ids[:2]))
    assert wire.ask_all(*map(abort_of, ids[2:4]))
    for transaction_id in (ids[0], ids[6]):
        where.set(transaction_id, prepared_at=sa.func.now() - timedelta(hours=1))

    def listed(size: int = 0, **filters: object) -> list[list[UUID]]:
        def call(token: str) -> tuple[Sequence[str], str]:
            page = where.stub.ListTransactions(
                pb.ParticipantServiceListTransactionsRequest(page_size=size, page_token=token, **filters),  # type: ignore[arg-type]
                timeout=10,
            )
            return [shown.key.transaction_id for shown in page.transactions], page.next_page_token

        return [[UUID(each) for each in page] for page in pages(call)]

    assert listed() == [[*ids, elsewhere]]
    assert listed(3) == [ids[:3], ids[3:6], [ids[6], elsewhere]]
    assert listed(4) == [ids[:4], [*ids[4:], elsewhere]], "a last page that is full has no token"
    assert listed(1) == [[each] for each in (*ids, elsewhere)]
    assert listed(state=transaction_pb2.TRANSACTION_STATE_PREPARED) == [[*ids[4:], elsewhere]]
    assert listed(1, state=transaction_pb2.TRANSACTION_STATE_COMMITTED) == [[ids[0]], [ids[1]]]
    assert listed(state=transaction_pb2.TRANSACTION_STATE_ABORTED) == [ids[2:4]]
    assert listed(coordinator="second") == [[elsewhere]]
    assert listed(coordinator="third") == [[]]
    assert listed(older_than=duration(1800)) == [[ids[0], ids[6]]]
    assert listed(older_than=duration(1800), state=transaction_pb2.TRANSACTION_STATE_PREPARED) == [[ids[6]]]
    assert listed(older_than=duration(0)) == [[*ids, elsewhere]]
    assert listed(begun_within=duration(3_600)) == [[*ids, elsewhere]]
    assert listed(begun_within=duration(3_000_000_000), coordinator="second") == [[elsewhere]]
    assert listed(begun_within=duration(0)) == [[]]
    assert listed(older_than=duration(3_000_000_000)) == [[]]
    for too_long in (Duration(seconds=300_000_000_000), Duration(seconds=2**62)):
        request = pb.ParticipantServiceListTransactionsRequest(older_than=too_long)
        answer = failure_of(lambda request=request: edge.stub.ListTransactions(request, timeout=10))  # type: ignore[misc]
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("older_than",))


def test_list_transactions_of_a_coordinator(restored: House) -> None:
    """The same at the coordinator: by decision, by what is undelivered, by age."""
    house = restored
    with house.coordinator.transactions([{"ledger": [entry(fresh_name())]} for _ in range(3)]) as batch:
        pass
    committed = sorted(tx.id for tx in batch.transactions)
    waiting = decided_but_undelivered(house, house.coordinator, {"ledger": [fresh_name()]}).id
    fenced = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    assert fenced.finish() is Outcome.ABORTED

    def listed(size: int = 0, **filters: object) -> list[list[UUID]]:
        def call(token: str) -> tuple[Sequence[str], str]:
            page = house.stub.ListTransactions(
                coordinator_pb2.CoordinatorServiceListTransactionsRequest(
                    page_size=size, page_token=token, **filters,  # type: ignore[arg-type]
                ),
                timeout=10,
            )  # fmt: skip
            return [shown.key.transaction_id for shown in page.decisions], page.next_page_token

        return [[UUID(each) for each in page] for page in pages(call)]

    every = [*committed, waiting, fenced.id]
    assert listed() == [every]
    assert listed(2) == [every[:2], every[2:4], every[4:]]
    assert listed(decision=transaction_pb2.DECISION_ABORTED) == [[fenced.id]]
    assert listed(2, decision=transaction_pb2.DECISION_COMMITTED) == [every[:2], every[2:4]]
    eventually(lambda: listed(undelivered=True) == [[waiting]])  # marks are written by and by
    assert listed(coordinator="nobody") == [[]]
    assert listed(older_than=duration(3600)) == [[]]
    assert listed(older_than=duration(3_000_000_000)) == [[]]
    for too_long in (Duration(seconds=300_000_000_000), Duration(seconds=2**62)):
        request = coordinator_pb2.CoordinatorServiceListTransactionsRequest(older_than=too_long)
        answer = failure_of(lambda request=request: restored.stub.ListTransactions(request, timeout=10))  # type: ignore[misc]
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("older_than",))
    assert record(house, waiting).HasField("next_attempt_time")
    assert not record(house, committed[0]).HasField("next_attempt_time")
    unknown = coordinator_pb2.CoordinatorServiceGetTransactionRequest(key=key_of(new_id()))
    assert failure_of(lambda: house.stub.GetTransaction(unknown)).code == "NOT_FOUND"
    nothing = coordinator_pb2.RetryNowRequest(key=key_of(new_id()))
    assert failure_of(lambda: house.stub.RetryNow(nothing)).code == "NOT_FOUND"


@pytest.mark.parametrize("token", ["nonsense", "AAAA", "aW5pdGlhdG9yL25vLXV1aWQ=", "nul", "ü"])
def test_a_foreign_page_token(house: House, token: str) -> None:
    """A token that no page gave is INVALID_ARGUMENT, whatever is in it."""
    if token == "nul":
        token = base64.urlsafe_b64encode(f"a\0b/{new_id()}".encode()).decode()
    theirs = pb.ParticipantServiceListTransactionsRequest(page_token=token)
    ours = coordinator_pb2.CoordinatorServiceListTransactionsRequest(page_token=token)
    for call in (lambda: house.ledger.stub.ListTransactions(theirs), lambda: house.stub.ListTransactions(ours)):
        answer = failure_of(call)
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("page_token",))


# --- bad input -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A request that is wrong, the field that must be named, and the reason."""

    request: pb.PrepareRequest | pb.CommitRequest | pb.AbortRequest
    fields: tuple[str, ...]
    reason: str = "INVALID_REQUEST"


def _with_any(type_url: str, value: bytes) -> pb.PrepareRequest:
    request = asking(new_id(), fresh_name())
    request.writes.append(AnyMessage(type_url=type_url, value=value))
    return request


STRUCT = "type.googleapis.com/google.protobuf.Struct"
UNNAMED = pb.AbortRequest(resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR)
BAD: dict[str, Bad] = {
    "id is no UUID": Bad(asking("nonsense", "a"), ("key.transaction_id",)),
    "id is version 4": Bad(asking(str(uuid4()), "a"), ("key.transaction_id",)),
    "id in capitals": Bad(asking(str(new_id()).upper(), "a"), ("key.transaction_id",)),
    "id with a line feed": Bad(asking(f"{new_id()}\n", "a"), ("key.transaction_id",)),
    "id empty": Bad(commit_of(""), ("key.transaction_id",)),
    "key missing": Bad(UNNAMED, ("key",)),
    "coordinator's name malformed": Bad(commit_of(new_id(), "Not A Name"), ("key.coordinator",)),
    "coordinator unknown, Prepare": Bad(
        asking(new_id(), "a", coordinator="stranger"), ("key.coordinator",), "COORDINATOR_UNKNOWN"
    ),
    "coordinator unknown, Commit": Bad(commit_of(new_id(), "stranger"), ("key.coordinator",), "COORDINATOR_UNKNOWN"),
    "coordinator unknown, Abort": Bad(abort_of(new_id(), "stranger"), ("key.coordinator",), "COORDINATOR_UNKNOWN"),
    "log_id is no UUID": Bad(asking(new_id(), "a", log_id="nonsense"), ("log_id",)),
    "log_id empty": Bad(asking(new_id(), "a", log_id=""), ("log_id",)),
    "ttl missing": Bad(asking(new_id(), "a", ttl_s=None), ("ttl",)),
    "ttl below 10 s": Bad(asking(new_id(), "a", ttl_s=9.999), ("ttl",)),
    "ttl above a day": Bad(asking(new_id(), "a", ttl_s=DAY_S + 0.001), ("ttl",)),
    "ttl negative": Bad(asking(new_id(), "a", ttl_s=-60), ("ttl",)),
    "driver_deadline missing": Bad(asking(new_id(), "a", driver_deadline_s=None), ("driver_deadline",)),
    "driver_deadline zero": Bad(asking(new_id(), "a", driver_deadline_s=0), ("driver_deadline",)),
    "driver_deadline not below push_after": Bad(asking(new_id(), "a", driver_deadline_s=8), ("driver_deadline",)),
    "type unknown": Bad(_with_any("type.googleapis.com/nobody.Knows", b""), ("writes[1].type_url",), "UNKNOWN_TYPE"),
    "type known, but not here": Bad(
        _with_any("type.googleapis.com/google.protobuf.Empty", Empty().SerializeToString()),
        ("writes[1].type_url",),
        "UNKNOWN_TYPE",
    ),
    "type missing": Bad(_with_any("", b""), ("writes[1].type_url",), "UNKNOWN_TYPE"),
    "write cut off": Bad(_with_any(STRUCT, b"\x0a\x20abc"), ("writes[1].value",), "MALFORMED_MESSAGE"),
    "write not UTF-8": Bad(_with_any(STRUCT, b"\x0a\x04\x0a\x02\xff\xfe"), ("writes[1].value",), "MALFORMED_MESSAGE"),
    "write refused by the plug": Bad(_with_any(STRUCT, entry("").SerializeToString()), ("writes[1].value",)),
    "resolved_by missing": Bad(pb.CommitRequest(key=key_of(new_id())), ("resolved_by",)),
    "resolved_by not a coordinator's": Bad(
        pb.AbortRequest(key=key_of(new_id()), resolved_by=transaction_pb2.RESOLVED_BY_OPERATOR), ("resolved_by",)
    ),
    "resolved_by undefined": Bad(pb.AbortRequest(key=key_of(new_id()), resolved_by=99), ("resolved_by",)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", BAD, ids=list(BAD))
def test_bad_input(house: House, way: bool, what: str) -> None:
    """What is wrong with a request is said by field; in a batch the field's path begins with its place, and the
    neighbours fare well."""
    bad = BAD[what]
    answer = Wire(house.ledger.server.port, batch=way).ask(bad.request)
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", bad.reason)
    assert answer.fields == tuple(f"requests[1].{field}" if way else field for field in bad.fields)


def test_bad_input_times_of_the_participant(new_member: NewMember, way: bool) -> None:
    """Design, Times: "the participant refuses a deadline that is not below its push_after, or a ttl that is not above
    it": its own push_after, not the initiator's."""
    slow = new_member("slow", {COORDINATOR: "127.0.0.1:1"}, Times(push_after_s=20))
    wire, place = Wire(slow.server.port, batch=way), "requests[1]." if way else ""
    for options, field in (
        ({"ttl_s": 15.0}, "ttl"),
        ({"ttl_s": 20.0}, "ttl"),
        ({"driver_deadline_s": 20.0}, "driver_deadline"),
    ):
        answer = wire.ask(asking(new_id(), fresh_name(), **options))  # type: ignore[arg-type]
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (place + field,))
    assert wire.ask(asking(new_id(), fresh_name(), ttl_s=20.001, driver_deadline_s=19.999)).ok


@pytest.mark.parametrize("message", ["prepare", "commit", "abort"])
def test_bad_input_twice_in_a_batch(house: House, message: str) -> None:
    """A transaction that stands in a batch twice: the first is worked on, the second told so."""
    wire, transaction_id, other, name = Wire(house.ledger.server.port), new_id(), new_id(), fresh_name()
    make = {"prepare": lambda i: asking(i, name if i == transaction_id else fresh_name()), "commit": commit_of,
            "abort": abort_of}[message]  # fmt: skip
    if message == "commit":
        assert wire.ask_all(asking(transaction_id, name), asking(other, fresh_name()))
    first, second, third = wire.ask_all(make(transaction_id), make(transaction_id), make(other))
    assert first.ok
    assert third.ok
    assert (second.code, second.reason, second.fields) == (
        "INVALID_ARGUMENT", "DUPLICATE_IN_BATCH", ("requests[1].key",),
    )  # fmt: skip


@pytest.mark.parametrize("call", ["Prepare", "BatchPrepare", "Commit", "BatchAbort", "GetTransaction"])
@pytest.mark.parametrize("what", ["not UTF-8", "cut off", "another wire type"])
def test_bad_input_bytes(house: House, call: str, what: str) -> None:
    """Bytes that are no message of their type: INVALID_ARGUMENT, MALFORMED_MESSAGE, and the server lives."""
    garbage = {
        "not UTF-8": b"\x0a\x04\x0a\x02\xff\xfe",  # field 1, in it field 1, in it no UTF-8
        "cut off": b"\x0a\x20abc",
        "another wire type": b"\x0b",
    }[what]
    if call.startswith("Batch"):
        garbage = b"\x0a" + bytes([len(garbage)]) + garbage if what == "not UTF-8" else garbage
    answer = failure_of(lambda: raw(house.ledger.server.port, f"/tandem.v1.ParticipantService/{call}", garbage))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert Wire(house.ledger.server.port).ask(asking(new_id(), fresh_name())).ok


def test_bad_input_to_resolve(house: House) -> None:
    """Resolve: each question is judged by itself."""
    log_id, digest = str(house.coordinator.log.log_id()), bytes(32)
    good = new_id()
    request = coordinator_pb2.ResolveRequest(participant="ledger", fence=True)
    request.items.add(key=key_of("nonsense"), log_id=log_id, digest=digest)
    request.items.add(key=key_of(uuid4()), log_id=log_id, digest=digest)
    request.items.add(key=key_of(new_id(), "stranger"), log_id=log_id, digest=digest)
    request.items.add(key=key_of(new_id()), log_id="nonsense", digest=digest)
    request.items.add(key=key_of(new_id()), log_id=log_id, digest=b"short")
    request.items.add(key=key_of(good), log_id=log_id, digest=digest)
    request.items.add(key=key_of(good), log_id=log_id, digest=digest)
    *wrong, answered, twice = house.stub.Resolve(request, timeout=10).results
    told = [answer_of(result.status) for result in (*wrong, twice)]
    assert [(answer.code, answer.fields) for answer in told] == [
        ("INVALID_ARGUMENT", (f"items[{place}].{field}",))
        for place, field in enumerate(
            ("key.transaction_id", "key.transaction_id", "key.coordinator", "log_id", "digest")
        )
    ] + [("INVALID_ARGUMENT", ("items[6].key",))]
    assert [told[2].reason, told[5].reason] == ["COORDINATOR_UNKNOWN", "DUPLICATE_IN_BATCH"]
    assert answered.outcome == coordinator_pb2.ResolveResult.OUTCOME_ABORTED
    nobody = coordinator_pb2.ResolveRequest(participant="Not A Name", items=request.items[:1])
    assert failure_of(lambda: house.stub.Resolve(nobody, timeout=10)).fields == ("participant",)


def test_bad_input_to_the_driver(house: House) -> None:
    """What an initiator gets wrong is refused before any participant is asked."""
    with pytest.raises(InvalidRequest) as caught:
        house.coordinator.prepare({"ledger": [entry(fresh_name())], "nobody": [entry(fresh_name())]})
    assert caught.value.reason is Reason.PARTICIPANT_UNKNOWN
    name = fresh_name()
    error = refused_before_the_block(house.coordinator, {"ledger": [name]}, ttl_s=5)
    assert isinstance(error, Refused)
    assert [violation.field for violation in error.reasons["ledger"].violations] == ["ttl"]
