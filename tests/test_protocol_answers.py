"""What the driver and the coordinator's service say where something is out of the ordinary: always what is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tandem.coordinator.decision_log import DecisionLog, Question
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import (
    Fenced,
    LocalTransactionRefused,
    OutcomeUnknown,
    Refused,
    TransactionExpired,
    Unavailable,
)
from tandem.coordinator.handle import Transaction
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.tables import decision
from tandem.coordinator.transaction import Phase
from tandem.runtime.database import create_engine
from tandem.runtime.errors import InvalidRequest, Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.times import Times
from tandem.v1 import coordinator_pb2 as pb
from tandem.v1 import transaction_pb2
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own, packed

DAY_S = 86_400.0


class Base(DeclarativeBase):
    """The initiator's ORM."""


class Own(Base):
    """The initiator's own row, as an ORM class."""

    __tablename__ = "own"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    note: Mapped[str | None]


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """One house for the module."""
    with built(new_database) as house:
        yield house


def test_r1_session_hooks_run_before_the_commit_point(house: House) -> None:
    """R1: what a `before_commit` hook adds commits with the decision, or not at all; nothing is sent after it."""
    first, added = uuid4(), uuid4()
    sent: list[str] = []

    def hook(session: Session) -> None:
        session.add(Own(id=added, note=fresh_name()))

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    with Session(house.engine) as session:
        event.listen(session, "before_commit", hook)
        event.listen(house.engine, "before_cursor_execute", note)
        with house.coordinator.transaction({"ledger": [entry(fresh_name())]}, using=session) as tx:
            session.add(Own(id=first, note=fresh_name()))
        event.remove(house.engine, "before_cursor_execute", note)
    assert tx.delivered
    assert house.own_rows(first, added) == {first, added}
    own_rows = [i for i, statement in enumerate(sent) if statement.startswith("INSERT INTO own")]
    decided = next(i for i, statement in enumerate(sent) if "INSERT INTO twophase.decision" in statement)
    assert own_rows
    assert max(own_rows) < decided
    assert sent[decided + 1] == "COMMIT"


def test_r1_a_failing_session_hook_commits_nothing(house: House) -> None:
    """R1: a hook that raises is the block's failure, not a surprise after the commit point."""
    own_id, name = uuid4(), fresh_name()

    def hook(_: Session) -> None:
        raise ZeroDivisionError

    with Session(house.engine) as session:
        event.listen(session, "before_commit", hook)
        with pytest.raises(ZeroDivisionError):
            with house.coordinator.transaction({"ledger": [entry(name)]}, using=session):
                session.add(Own(id=own_id, note=name))
    assert house.own_rows(own_id) == set()
    assert house.ledger.accounts(name) == {}


@pytest.mark.parametrize("raises", [False, True], ids=["quiet", "raising"])
def test_r2_an_id_that_has_committed_runs_its_block_without_a_trace(house: House, raises: bool) -> None:
    """R2, R3: the repeat of a committed id says committed, though a participant is away; its block changes nothing."""
    name, transaction_id, first, second = fresh_name(), new_id(), uuid4(), uuid4()
    branches = {"ledger": [entry(name)]}
    with house.coordinator.transaction(branches, transaction_id=transaction_id) as tx:
        tx.connection.execute(sa.insert(own).values(id=first))
    away = Coordinator(
        house.engine, name=COORDINATOR, participants={"ledger": "127.0.0.1:1"}, times=Times(prepare_deadline_s=0.3)
    )
    with away.transaction(branches, transaction_id=transaction_id) as again:
        again.connection.execute(sa.insert(own).values(id=second))
        if raises:
            raise ZeroDivisionError
    away.close()
    assert again.phase.value == "committed"
    assert house.own_rows(first, second) == {first}


def test_a_batch_without_a_yes_says_why(house: House) -> None:
    """`transactions([...])` where every vote was no: the connection's absence is explained by the first no."""
    name = fresh_name()
    house.coordinator.execute(new_id(), {"ledger": [entry(name)]})
    with house.coordinator.transactions([{"ledger": [entry(name)]}] * 2) as batch:
        assert len(batch.refused) == 2
        with pytest.raises(Refused):
            _ = batch.connection


def test_r4_a_damaged_decision_is_nobody_elses_trouble(house: House) -> None:
    """R4: a row that can't be read fails its own item; the table itself refuses to hold one."""
    good, bad = new_id(), new_id()
    tx_digest = house.coordinator.execute(good, {"ledger": [entry(fresh_name())]}).digests["ledger"]
    house.coordinator.execute(bad, {"ledger": [entry(fresh_name())]})
    this = decision.c.transaction_id == bad
    damage = sa.update(decision).where(this).values(participants={"ledger": "bm90IGhleA=="})
    with house.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # past R2's trigger
        with pytest.raises(sa.exc.IntegrityError, match="decision_valid_participants"), connection.begin_nested():
            connection.execute(damage)
    constraint = "ALTER TABLE twophase.decision DROP CONSTRAINT decision_valid_participants"
    with house.engine.begin() as connection:
        (definition,) = connection.exec_driver_sql(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'decision_valid_participants'"
        ).one()
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql(constraint)
        connection.execute(damage)
    log_id = house.coordinator.log.log_id()
    answers = house.coordinator.log.resolve(
        "ledger",
        [Question(TransactionKey(COORDINATOR, one), log_id, tx_digest) for one in (good, bad)],
        fence=True,
    )
    with house.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.execute(sa.delete(decision).where(this))
        connection.exec_driver_sql(
            "ALTER TABLE twophase.decision ADD CONSTRAINT decision_valid_participants " + definition.replace("%", "%%")
        )
    assert getattr(answers[0], "value", None) == "committed"
    assert isinstance(answers[1], TandemError)


def test_execute_says_committed_though_the_log_went_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: Execute's answer needs no reading after the commit point."""

    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception())

    monkeypatch.setattr(DecisionLog, "get", away)
    response = house.stub.Execute(
        pb.ExecuteRequest(
            key=transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(new_id())),
            branches=[transaction_pb2.Branch(participant="ledger", writes=packed(entry(fresh_name())))],
        ),
        timeout=10,
    )
    assert response.decision.decision == transaction_pb2.DECISION_COMMITTED
    assert [branch.delivered for branch in response.decision.branches] == [True]


def test_r14_expired_at_the_log_only(house: House) -> None:
    """R14: participants that keep longer than the log don't turn "too old" into "nobody knows"."""
    name, own_id = fresh_name(), uuid4()
    short = Coordinator(
        house.engine,
        name=COORDINATOR,
        participants={"ledger": f"127.0.0.1:{house.ledger.server.port}"},
        times=Times(retention_s=4 * DAY_S),
    )
    old = new_id(age_s=3.5 * DAY_S)
    with pytest.raises(TransactionExpired) as raised:
        with short.transaction({"ledger": [entry(name)]}, transaction_id=old) as tx:
            tx.connection.execute(sa.insert(own).values(id=own_id))
    assert raised.value.reason is Reason.TRANSACTION_EXPIRED
    assert house.own_rows(own_id) == set()
    other = new_id(age_s=3.5 * DAY_S)
    with pytest.raises(TransactionExpired):
        short.execute(other, {"ledger": [entry(fresh_name())]})
    assert house.ledger.row(other) is None, "refused before any Prepare"
    short.close()


def test_what_no_message_can_carry_is_refused_at_once(house: House) -> None:
    """R16: not "try again": INVALID_REQUEST that names the branch, before any RPC."""
    write = Struct()
    write.update({"account": fresh_name(), "amount": 1, "note": "x" * 4_000_000})
    with pytest.raises(InvalidRequest) as raised:
        house.coordinator.prepare({"ledger": [write]})
    assert raised.value.violations[0].field == "branches[ledger]"


def test_an_unreachable_database_under_an_id_of_the_callers(house: House) -> None:
    """R3: whatever is asked first of it: an earlier call may have committed, so nobody says that it has not."""
    nowhere = sa.create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/nothing", connect_args={"connect_timeout": 1})
    coordinator = Coordinator(nowhere, name=COORDINATOR, participants={"ledger": "127.0.0.1:1"})
    given = new_id()
    for call in (
        lambda: coordinator.execute(given, {"ledger": [entry("x")]}),
        lambda: coordinator.prepare({"ledger": [entry("x")]}, transaction_id=given),
        lambda: coordinator.transaction({"ledger": [entry("x")]}, transaction_id=given).__enter__(),
    ):
        with pytest.raises(OutcomeUnknown) as raised:
            call()
        assert raised.value.transaction_id == given
    with pytest.raises(Unavailable):
        coordinator.prepare({"ledger": [entry("x")]})
    coordinator.close()


def test_each_transaction_is_counted_once(house: House) -> None:
    """However often finish() is repeated."""

    def count() -> float:
        value = house.coordinator.metrics.registry.get_sample_value(
            "tandem_transactions_total", {"outcome": "COMMITTED"}
        )
        return value or 0.0

    before = count()
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    assert tx.decision is not None
    with house.engine.begin() as connection:
        connection.execute(tx.decision)
    for _ in range(3):
        tx.finish()
    assert count() == before + 1


def test_r3_a_hook_that_breaks_at_commit_hides_nothing(house: House) -> None:
    """R3, R12: the server has said COMMIT, then the Engine owner's hook raises, at ROLLBACK too: told as committed."""
    engine, name, own_id = create_engine(house.url, pool_size=2), fresh_name(), uuid4()
    breaking: list[bool] = []

    def hook(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO own"):
            breaking.append(True)
        if breaking and statement in ("COMMIT", "ROLLBACK"):
            raise RuntimeError("a broken hook")

    event.listen(engine, "after_cursor_execute", hook)
    with house.coordinator.transaction({"ledger": [entry(name)]}, using=engine) as tx:
        tx.connection.execute(sa.insert(own).values(id=own_id))
    assert tx.delivered
    assert house.own_rows(own_id) == {own_id}
    assert house.ledger.accounts(name) == {name: "active"}
    engine.dispose()


def test_r2_a_committed_id_whose_block_finds_no_connection(house: House) -> None:
    """R3: it is committed, but this call can't go through its block: never an answer that says "failed"."""
    name, transaction_id = fresh_name(), new_id()
    house.coordinator.execute(transaction_id, {"ledger": [entry(name)]})
    narrow = create_engine(house.url, pool_size=1, pool_timeout_s=0.2)
    away = Coordinator(
        house.engine, name=COORDINATOR, participants={"ledger": "127.0.0.1:1"}, times=Times(prepare_deadline_s=0.3)
    )
    repeat = away.transaction({"ledger": [entry(name)]}, transaction_id=transaction_id, using=narrow)
    with narrow.connect(), pytest.raises(OutcomeUnknown):
        repeat.__enter__()
    away.close()
    narrow.dispose()


def test_r1_a_session_that_got_no_connection_can_be_used_again(house: House) -> None:
    """Unavailable says "repeat": the same Session must take it."""
    narrow = create_engine(house.url, pool_size=1, pool_timeout_s=0.2)
    with Session(narrow) as session:
        with house.coordinator.transaction({"ledger": [entry(fresh_name())]}, using=session):
            pass
        with narrow.connect(), pytest.raises(Unavailable):
            with house.coordinator.transaction({"ledger": [entry(fresh_name())]}, using=session):
                pytest.fail("without a connection no block runs")
        with house.coordinator.transaction({"ledger": [entry(fresh_name())]}, using=session) as tx:
            pass
        assert tx.delivered
    narrow.dispose()


def test_an_id_that_is_used_up_is_not_worth_a_repeat(house: House) -> None:
    """RetryInfo only where a retry helps: under an id of the caller's that was fenced, only a new id does."""
    away = Coordinator(
        house.engine, name=COORDINATOR, participants={"ledger": "127.0.0.1:1"}, times=Times(prepare_deadline_s=0.3)
    )
    given = new_id()
    for raises in (Unavailable, Fenced):
        with pytest.raises(raises) as raised:
            away.execute(given, {"ledger": [entry("x")]})
        assert raised.value.retry_after_s is None
        assert raised.value.metadata["repeat_with"] == "a new transaction_id"
    with pytest.raises(Unavailable) as raised:
        with away.transaction({"ledger": [entry("x")]}):
            pytest.fail("nobody voted")
    assert raised.value.retry_after_s, "a repeat of the request makes a new id"
    away.close()


@pytest.mark.parametrize("given", [uuid4(), "nonsense"], ids=["version 4", "no UUID"])
def test_r14_an_id_without_a_time_is_refused_before_anything_is_sent(house: House, given: UUID) -> None:
    """R14: not "outcome unknown" of what can never have been."""
    for call in (
        lambda: house.coordinator.execute(given, {"ledger": [entry("x")]}),
        lambda: house.coordinator.prepare({"ledger": [entry("x")]}, transaction_id=given),
        lambda: house.coordinator.transaction({"ledger": [entry("x")]}, transaction_id=given).__enter__(),
    ):
        with pytest.raises(InvalidRequest) as raised:
            call()
        assert raised.value.violations[0].field == "transaction_id"


def test_r11_coordinators_that_share_a_database_deliver_their_own(house: House) -> None:
    """R11, R17: another coordinator's decisions are neither delivered nor parked, nor do they keep it from starting."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    with house.engine.begin() as connection:
        connection.execute(tx.decision)
        connection.execute(sa.update(decision).values(next_attempt_at=sa.func.now()))
    billing = Coordinator(house.engine, name="billing", participants={"ledger": f"127.0.0.1:{house.other.server.port}"})
    assert Recovery(billing).run_once() == 0
    assert billing.log.unknown_participants("billing", ["somebody"]) == set()
    assert billing.log.unknown_participants(COORDINATOR, ["somebody"]) == {"ledger"}
    assert house.recovery.run_once() >= 1
    assert house.ledger.accounts(name) == {name: "active"}
    billing.close()


def test_r4_many_stalled_ids_hold_up_nobody(house: House) -> None:
    """R4: "a stalled id holds up nobody": a dozen of them in one Resolve, and each other id gets its answer."""
    branches = [{"ledger": [entry(fresh_name())]} for _ in range(32)]
    txs = [house.coordinator.prepare(branch) for branch in branches]
    stalled, healthy = txs[:12], txs[12:]
    with ExitStack() as stack:
        for tx in stalled:
            connection = stack.enter_context(house.engine.connect())
            stack.enter_context(connection.begin())
            connection.execute(tx.decision)
        answers = house.coordinator.log.resolve(
            "ledger", [Question(tx.key, tx.log_id, tx.digests["ledger"]) for tx in txs], fence=True
        )
        assert [getattr(answer, "value", None) for answer in answers] == (
            ["in_progress"] * len(stalled) + ["aborted"] * len(healthy)
        )
    assert {tx.finish().value for tx in txs} <= {"committed", "aborted"}


def test_r15_a_block_can_not_make_the_decision_lossy(house: House) -> None:
    """R15: "decisions … follow a durable commit": what the block turns off is found out by the INSERT itself."""
    name, own_id = fresh_name(), uuid4()
    with pytest.raises(LocalTransactionRefused) as raised:
        with house.coordinator.transaction({"ledger": [entry(name)]}) as tx:
            tx.connection.execute(sa.insert(own).values(id=own_id))
            tx.connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
    assert raised.value.reason is Reason.NOT_DURABLE
    assert house.own_rows(own_id) == set()
    assert house.ledger.accounts(name) == {}


def test_r12_an_interruption_after_the_commit_leaves_no_connection_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: Ctrl-C between the server's COMMIT and our own tidying up: the connection goes back, `finish()` tells."""
    engine, name = create_engine(house.url, pool_size=1, pool_timeout_s=0.5), fresh_name()
    interrupted = []

    def become(tx: Transaction, phase: Phase) -> None:
        if phase is Phase.COMMITTED and not interrupted:
            interrupted.append(tx)
            raise KeyboardInterrupt
        tx.phase = phase

    monkeypatch.setattr(Transaction, "become", become)
    with pytest.raises(KeyboardInterrupt):
        with house.coordinator.transaction({"ledger": [entry(name)]}, using=engine):
            pass
    with engine.connect():
        pass
    assert interrupted[0].finish().value == "committed"
    assert house.ledger.accounts(name) == {name: "active"}
    engine.dispose()
