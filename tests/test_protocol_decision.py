"""R1 to R4 and the decision log's table: one test a rule's sentence and a table's cell (design §2).

Real PostgreSQL, real gRPC. What must agree is asked of both sides after each: own rows, decision, staged entities.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tandem.coordinator import driver
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import (
    Fenced,
    LocalTransactionEnded,
    LocalTransactionOpen,
    LocalTransactionOwned,
    LocalTransactionRefused,
    OutcomeUnknown,
    Refused,
    TransactionExpired,
    TransactionReused,
    Unavailable,
)
from tandem.coordinator.handle import Transaction
from tandem.coordinator.tables import decision, grants
from tandem.coordinator.transaction import Outcome, Phase, Standing
from tandem.runtime.database import create_engine
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import LocalTransaction
from tandem.runtime.status import from_rpc_error
from tandem.runtime.times import DAY_S
from tandem.v1 import coordinator_pb2 as pb
from tandem.v1 import transaction_pb2
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own, packed

R = pb.ResolveResult


class Base(DeclarativeBase):
    """The initiator's ORM."""


class Own(Base):
    """The initiator's own row, as an ORM class."""

    __tablename__ = "own"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    note: Mapped[str | None]


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """One house for the module: tests use names and ids of their own."""
    with built(new_database) as house:
        yield house


class Case:
    """One transaction on the toy ledger and one own row, and what became of them."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.id = uuid4()
        self.name = fresh_name()
        self.branches = {"ledger": [entry(self.name)]}
        self.tx: Transaction | None = None

    def insert_own(self, connection: Connection) -> None:
        connection.execute(sa.insert(own).values(id=self.id, note=self.name))

    @property
    def own_row(self) -> bool:
        return self.house.own_rows(self.id) == {self.id}

    @property
    def account(self) -> str | None:
        return self.house.ledger.accounts(self.name).get(self.name)

    @property
    def outcome(self) -> str | None:
        assert self.tx is not None
        return self.house.outcome(self.tx.id)

    def assert_committed(self) -> None:
        assert (self.own_row, self.outcome, self.account) == (True, "committed", "active")

    def assert_nothing(self) -> None:
        """Neither side has anything, and nothing is left in doubt."""
        assert (self.own_row, self.account) == (False, None)
        assert self.outcome in (None, "aborted")


@pytest.fixture
def case(house: House) -> Case:
    return Case(house)


# --- R1 Commit point ----------------------------------------------------------------------------------------------


def test_r1_own_rows_and_decision_commit_together(case: Case) -> None:
    """R1: the decision is in the same local transaction as the own rows; both sides have theirs afterwards."""
    with case.house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        assert case.account == "prepared"
    case.assert_committed()
    assert case.tx.delivered


def test_r1_on_a_session(case: Case) -> None:
    """R1: an ORM Session is flushed by the driver, after the block and before the decision."""
    with Session(case.house.engine) as session:
        with case.house.coordinator.transaction(case.branches, using=session) as case.tx:
            session.add(Own(id=case.id, note=case.name))
        assert not session.in_transaction()
        assert session.get(Own, case.id) is not None
    case.assert_committed()


def test_r1_the_insert_is_plain_and_last(case: Case) -> None:
    """R1: a plain INSERT, never ON CONFLICT, after every other statement and right before COMMIT."""
    statements: list[str] = []

    def note(_c: Any, _cur: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(case.house.engine, "before_cursor_execute", note)
    try:
        with case.house.coordinator.transaction(case.branches) as case.tx:
            case.insert_own(case.tx.connection)
    finally:
        event.remove(case.house.engine, "before_cursor_execute", note)
    begun = next(i for i, s in enumerate(statements) if s.startswith("BEGIN") and "tandem.token" in s)
    local = statements[begun : statements.index("COMMIT", begun) + 1]
    assert [re.split(r"[\s(;]", s)[0] for s in local] == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
    assert local[-2].startswith("INSERT INTO twophase.decision")
    assert "ON CONFLICT" not in local[-2]
    for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "synchronous_commit"):
        assert setting in local[0], "the limits come with it"


def test_r1_an_exception_in_the_block_undoes_both_sides(case: Case) -> None:
    """R1, R3: the block's own exception is raised as it is; neither side keeps anything."""
    with pytest.raises(ZeroDivisionError), case.house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        1 / 0  # noqa: B018
    case.assert_nothing()


def test_r1_a_violation_in_the_block_undoes_both_sides(case: Case) -> None:
    """R1: a unique violation of the own rows rolls everything back and is raised as it is."""
    with pytest.raises(sa.exc.IntegrityError), case.house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        case.insert_own(case.tx.connection)
    case.assert_nothing()


def test_r1_a_deferred_violation_at_commit_undoes_both_sides(house: House, case: Case) -> None:
    """R1, R3: a constraint that only COMMIT checks: the log is read, fenced, and the violation raised."""
    with house.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sa.exc.IntegrityError), house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        case.tx.connection.exec_driver_sql("INSERT INTO late VALUES (1), (1)")
    case.assert_nothing()
    assert case.outcome == "aborted"


@pytest.mark.parametrize("swallow", [False, True], ids=["raised", "swallowed"])
@pytest.mark.parametrize("call", ["commit", "rollback", "close"])
def test_r1_commit_and_rollback_raise_inside_the_block(case: Case, call: str, swallow: bool) -> None:
    """R1: the connection's own commit() and rollback() raise; swallowing that changes nothing of the transaction."""
    if swallow:
        with case.house.coordinator.transaction(case.branches) as case.tx:
            case.insert_own(case.tx.connection)
            with pytest.raises(LocalTransactionOwned):
                getattr(case.tx.connection, call)()
        case.assert_committed()
    else:
        with pytest.raises(LocalTransactionOwned), case.house.coordinator.transaction(case.branches) as case.tx:
            case.insert_own(case.tx.connection)
            getattr(case.tx.connection, call)()
        case.assert_nothing()


@pytest.mark.parametrize("call", ["commit", "rollback", "close"])
def test_r1_session_commit_and_rollback_raise_inside_the_block(case: Case, call: str) -> None:
    """R1: so do the Session's; afterwards the Session is usable again."""
    with Session(case.house.engine) as session:
        with (
            pytest.raises(LocalTransactionOwned),
            case.house.coordinator.transaction(case.branches, using=session) as case.tx,
        ):
            session.add(Own(id=case.id))
            session.flush()
            getattr(session, call)()
        assert session.get(Own, case.id) is None
        session.rollback()
    case.assert_nothing()


@pytest.mark.parametrize("call", ["commit", "rollback"])
def test_r1_the_transaction_object_behind_our_back(case: Case, call: str) -> None:
    """R1: SQLAlchemy's own Transaction object goes around the guarded methods; it is noticed, never committed."""
    with pytest.raises(LocalTransactionEnded), case.house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        getattr(case.tx.connection.get_transaction(), call)()
    case.assert_nothing()


@pytest.mark.parametrize(
    ("text", "own_row_is_durable"),
    [("COMMIT", True), ("ROLLBACK", False), ("COMMIT; BEGIN", True), ("ROLLBACK; BEGIN", False)],
)
@pytest.mark.parametrize("kind", ["engine", "session"])
def test_r1_sql_text_is_detected(case: Case, kind: str, text: str, own_row_is_durable: bool) -> None:
    """R1: SQL text can't be prevented but is detected (libpq's state, then the token): never committed, counted.

    Own rows may be durable; the error says so by its class.
    """
    before = case.house.coordinator.metrics.ended._value.get()
    with Session(case.house.engine) as session, pytest.raises(LocalTransactionEnded) as raised:
        using = session if kind == "session" else None
        with case.house.coordinator.transaction(case.branches, using=using) as case.tx:
            case.insert_own(case.tx.connection)
            case.tx.connection.exec_driver_sql(text)
    assert raised.value.transaction_id == case.tx.id
    assert case.own_row is own_row_is_durable
    assert case.account is None
    assert case.outcome in (None, "aborted")
    assert case.house.coordinator.metrics.ended._value.get() == before + 1


def test_r1_token_alone_detects_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: where libpq looks healthy, the INSERT itself raises by the token; the fence follows."""
    with pytest.raises(LocalTransactionEnded), case.house.coordinator.transaction(case.branches) as case.tx:
        case.tx.connection.exec_driver_sql("COMMIT; BEGIN")
    assert case.outcome == "aborted", "the INSERT was sent, so only the log could say (R3)"


@pytest.mark.parametrize("kind", ["engine", "session"])
def test_r1_swallowed_integrity_error(case: Case, kind: str) -> None:
    """R1: a block that swallows an IntegrityError leaves a spoilt local transaction: noticed, nothing committed."""
    with Session(case.house.engine) as session, pytest.raises((LocalTransactionEnded, sa.exc.PendingRollbackError)):
        using = session if kind == "session" else None
        with case.house.coordinator.transaction(case.branches, using=using) as case.tx:
            if using is None:
                case.insert_own(case.tx.connection)
                with pytest.raises(sa.exc.IntegrityError):
                    case.insert_own(case.tx.connection)
            else:
                session.add(Own(id=case.id))
                session.flush()
                session.expunge_all()
                session.add(Own(id=case.id))
                with pytest.raises(sa.exc.IntegrityError):
                    session.flush()
    case.assert_nothing()


def test_r1_a_savepoint_inside_is_fine(case: Case) -> None:
    """R1: a savepoint that is over before the block ends may fail and be rolled back."""
    with Session(case.house.engine) as session:
        with case.house.coordinator.transaction(case.branches, using=session) as case.tx:
            session.add(Own(id=case.id))
            with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
                session.execute(sa.insert(Own).values(id=case.id))
    case.assert_committed()


def test_r1_never_inside_a_savepoint(case: Case) -> None:
    """R1: with a savepoint still open the decision is not sent."""
    with pytest.raises(LocalTransactionEnded), case.house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        case.tx.connection.begin_nested()
    case.assert_nothing()


class Interrupt:
    """KeyboardInterrupt right before or after a statement reaches the server."""

    def __init__(self, engine: Engine, when: str, starts: str) -> None:
        self._engine, self._when, self._starts = engine, f"{when}_cursor_execute", starts

    def _raise(self, _c: Any, _cur: Any, statement: str, *_: Any) -> None:
        if statement.startswith(self._starts):
            self.__exit__()
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        event.listen(self._engine, self._when, self._raise)

    def __exit__(self, *_: object) -> None:
        if event.contains(self._engine, self._when, self._raise):
            event.remove(self._engine, self._when, self._raise)


@pytest.mark.parametrize("kind", ["engine", "session"])
@pytest.mark.parametrize(
    ("when", "starts", "committed"),
    [
        ("before", "INSERT INTO twophase.decision", False),
        ("after", "INSERT INTO twophase.decision", False),
        ("before", "COMMIT", False),
        ("after", "COMMIT", True),
    ],
    ids=["before-insert", "after-insert", "before-commit", "after-commit"],
)
def test_r1_r3_keyboard_interrupt(case: Case, kind: str, when: str, starts: str, committed: bool) -> None:
    """R1, R3: an interruption at the INSERT or at COMMIT stays an interruption, and both sides agree."""
    with Session(case.house.engine) as session:
        using = session if kind == "session" else None
        with pytest.raises(KeyboardInterrupt):
            with case.house.coordinator.transaction(case.branches, using=using) as case.tx:
                case.insert_own(case.tx.connection)
                interrupt = Interrupt(case.house.engine, when, starts)
                interrupt.__enter__()
    if committed:
        case.assert_committed()
        assert case.tx.phase is Phase.COMMITTED
    else:
        case.assert_nothing()
        assert case.outcome == "aborted"


def test_r1_autocommit_engine_is_refused(house: House, case: Case) -> None:
    """R1: AUTOCOMMIT can't hold own rows and decision together; refused before any RPC."""
    for engine in (
        house.engine.execution_options(isolation_level="AUTOCOMMIT"),
        sa.create_engine(house.engine.url, isolation_level="AUTOCOMMIT"),
    ):
        with pytest.raises(LocalTransactionRefused), house.coordinator.transaction(case.branches, using=engine):
            pytest.fail("the block must not run")
    assert case.account is None


def test_r1_autocommit_session_is_refused(house: House, case: Case) -> None:
    """R1: nor by way of a Session."""
    engine = house.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        with pytest.raises(LocalTransactionRefused), house.coordinator.transaction(case.branches, using=session):
            pytest.fail("the block must not run")


def test_r1_open_local_transaction_is_refused(house: House, case: Case) -> None:
    """R1: a Session that has so much as read has a local transaction open; no RPC is sent."""
    with Session(house.engine) as session:
        session.get(Own, uuid4())
        with pytest.raises(LocalTransactionOpen), house.coordinator.transaction(case.branches, using=session):
            pytest.fail("the block must not run")
        session.rollback()
        with house.coordinator.transaction(case.branches, using=session):
            pass
    assert case.account == "active"


def test_r1_connection_in_a_transaction_is_refused(house: House, case: Case) -> None:
    """R1: a Connection already in a local transaction, and a Connection at all."""
    with house.engine.connect() as connection:
        with pytest.raises(LocalTransactionRefused):
            house.coordinator.transaction(case.branches, using=connection).__enter__()  # type: ignore[arg-type]
        connection.execute(sa.select(1))
        with pytest.raises(LocalTransactionOpen):
            house.coordinator.transaction(case.branches, using=connection).__enter__()  # type: ignore[arg-type]
    assert case.account is None


def test_r1_unsuitable_sessions_are_refused(house: House, case: Case) -> None:
    """R1: twophase, not begun by itself, bound to a Connection, bound to several engines."""
    other = create_engine(house.url)
    with house.engine.connect() as connection:
        for session in (
            Session(house.engine, twophase=True),
            Session(house.engine, autobegin=False),
            Session(connection),
            Session(house.engine, binds={Own: other}),
            Session(),
        ):
            with pytest.raises(LocalTransactionRefused):
                house.coordinator.transaction(case.branches, using=session).__enter__()
            session.close()
    other.dispose()
    assert case.account is None


def test_r1_a_session_is_let_go_where_begin_failed(house: House, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: whatever stopped it, the Session is not left on a connection whose rollback undoes nothing."""

    def fails(*_: object, **__: object) -> None:
        raise TandemError("the database is a replica, not the primary", reason=Reason.DATABASE_UNAVAILABLE)

    house.coordinator.log.log_id()  # known from here on: the block's is the only local transaction
    with Session(house.engine) as session:
        with monkeypatch.context() as patched:
            patched.setattr(LocalTransaction, "__init__", fails)
            with pytest.raises(Unavailable), house.coordinator.transaction(case.branches, using=session):
                pytest.fail("the block must not run")
        assert not session.in_transaction()
        own_id = uuid4()
        session.add(Own(id=own_id, note="undone"))
        session.flush()
        session.rollback()
    assert house.own_rows(own_id) == set()


def test_r12_a_hook_of_the_pool_changes_nothing(house: House, case: Case) -> None:
    """R12: what the Engine's owner does when a connection comes back can't make a commit look failed."""
    engine = create_engine(house.url, pool_size=1)
    raised: list[bool] = []

    with house.coordinator.transaction(case.branches, using=engine) as case.tx:
        case.insert_own(case.tx.connection)

        @event.listens_for(engine, "checkin")
        def fails(*_: object) -> None:
            raised.append(True)
            raise ZeroDivisionError

    assert raised
    case.assert_committed()
    event.remove(engine, "checkin", fails)
    engine.dispose()


def test_r3_whatever_stops_the_reading_is_an_unknown_outcome(
    house: House, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: no file descriptor left, no memory: the caller is told that nobody knows, and can ask again."""
    monkeypatch.setattr(driver, "SETTLE_S", 0.2)

    def no_descriptor(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched, pytest.raises(OutcomeUnknown):
        with house.coordinator.transaction(case.branches) as case.tx:
            case.insert_own(case.tx.connection)
            patched.setattr(house.coordinator.log, "look", no_descriptor)
            patched.setattr(LocalTransaction, "commit", no_descriptor)
    assert case.account == "prepared"
    assert case.tx.finish() is Outcome.ABORTED


def test_r1_the_initiators_isolation_level_is_kept(house: House, case: Case) -> None:
    """R1: the driver sends BEGIN, but with the isolation level that the engine was made with."""
    engine = sa.create_engine(house.engine.url, isolation_level="SERIALIZABLE")
    for using in (engine, Session(engine)):
        mine = Case(house)
        with house.coordinator.transaction(mine.branches, using=using) as mine.tx:
            connection = mine.tx.connection
            assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "serializable"
            mine.insert_own(connection)
        mine.assert_committed()
    engine.dispose()


def test_r1_the_connection_is_as_before_afterwards(house: House) -> None:
    """R1: the pool gets its connection back in the engine's own mode, without our settings."""
    engine = create_engine(house.url, pool_size=1)
    case = Case(house)
    with house.coordinator.transaction(case.branches, using=engine) as case.tx:
        case.insert_own(case.tx.connection)
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection.autocommit is False
        assert connection.exec_driver_sql("SELECT current_setting('tandem.token', true)").scalar() in (None, "")
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
    engine.dispose()


@pytest.mark.direct
def test_r1_a_stale_pooled_connection_is_replaced(house: House) -> None:
    """R1: a connection that died in the pool is replaced before anything was sent on it."""
    engine = create_engine(house.url, pool_size=1)
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with house.engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
    for using in (engine, Session(engine)):
        case = Case(house)
        with house.coordinator.transaction(case.branches, using=using) as case.tx:
            case.insert_own(case.tx.connection)
        case.assert_committed()
    engine.dispose()


def test_r1_a_block_that_takes_too_long_gives_up(house: House) -> None:
    """R1, times: past the driver's deadline the decision is not sent any more."""
    from tandem.runtime.times import Times

    coordinator = house.another_coordinator(times=Times(prepare_deadline_s=1.0, block_timeout_s=0.05))
    case = Case(house)
    with pytest.raises(Unavailable), coordinator.transaction(case.branches) as case.tx:
        started = time.monotonic()
        while time.monotonic() - started < 1.1:
            time.sleep(0.01)
            case.tx.connection.exec_driver_sql("SELECT 1")
    case.assert_nothing()


def test_r1_three_calls_of_any_driver(house: House, case: Case) -> None:
    """R1: prepare; own rows and the decision by a driver of the caller's own (here bare psycopg2); finish."""
    import psycopg2

    case.tx = house.coordinator.prepare(case.branches)
    text, parameters = case.tx.decision_sql()
    connection = psycopg2.connect(house.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO own (id, note) VALUES (%s, %s)", (str(case.id), case.name))
        cursor.execute(text, parameters)
    connection.close()
    assert case.tx.finish() is Outcome.COMMITTED
    case.assert_committed()
    assert case.tx.finish() is Outcome.COMMITTED, "finish() can be repeated"


def test_r1_three_calls_given_up(house: House, case: Case) -> None:
    """R3: finish() without a decision fences, and only then aborts."""
    case.tx = house.coordinator.prepare(case.branches)
    assert case.account == "prepared"
    assert case.tx.finish() is Outcome.ABORTED
    case.assert_nothing()
    with pytest.raises(sa.exc.IntegrityError), house.engine.begin() as connection:
        case.insert_own(connection)
        connection.execute(case.tx.decision)
    case.assert_nothing()


def test_r1_many_with_one_local_commit(house: House) -> None:
    """`transactions([...])`: all decisions or none; a refused vote takes only its own transaction out."""
    taken = Case(house)
    with house.coordinator.transaction(taken.branches) as taken.tx:
        pass
    cases = [Case(house) for _ in range(5)]
    many = [case.branches for case in cases] + [taken.branches]
    with house.coordinator.transactions(many) as batch:
        assert [tx.error.reason for tx in batch.refused if tx.error] == [Reason.ALREADY_EXISTS]
        for case, tx in zip(cases, batch.accepted, strict=True):
            case.tx = tx
            case.insert_own(batch.connection)
    for case in cases:
        case.assert_committed()
    again = [Case(house) for _ in range(5)]
    with pytest.raises(ZeroDivisionError), house.coordinator.transactions([c.branches for c in again]) as batch:
        for case, tx in zip(again, batch.accepted, strict=True):
            case.tx = tx
            case.insert_own(batch.connection)
        1 / 0  # noqa: B018
    for case in again:
        case.assert_nothing()


# --- R2 Write-once --------------------------------------------------------------------------------------------------


def test_r2_first_insert_wins(house: House, case: Case) -> None:
    """R2: a second row for the same transaction can't be."""
    with house.coordinator.transaction(case.branches) as case.tx:
        pass
    key = case.tx.key
    assert house.coordinator.log.look([key], fence=True)[key].outcome is Outcome.COMMITTED  # type: ignore[union-attr]
    with pytest.raises(sa.exc.IntegrityError), house.engine.begin() as connection:
        connection.execute(
            sa.insert(decision).values(
                coordinator=key.coordinator,
                transaction_id=key.transaction_id,
                outcome="aborted",
                participants={},
                undelivered=[],
                parked={},
            )
        )
    assert case.outcome == "committed"


def test_r2_not_even_the_owner_updates_an_outcome(house: House, case: Case) -> None:
    """R2: an UPDATE that names `outcome` is refused by the database, for every role."""
    with house.coordinator.transaction(case.branches) as case.tx:
        pass
    with pytest.raises(sa.exc.IntegrityError), house.engine.begin() as connection:
        connection.execute(sa.update(decision).values(outcome="aborted"))
    assert case.outcome == "committed"


@pytest.mark.direct
def test_r2_the_runtime_role_may_not_update_outcome(house: House, case: Case) -> None:
    """R2: the grants give a runtime role everything it needs and not that; it can drive whole transactions."""
    role = fresh_name("role").replace("-", "_")
    with house.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        connection.exec_driver_sql(f"GRANT INSERT, SELECT ON own TO {role}")
        for statement in grants(role):
            connection.exec_driver_sql(statement)
    engine = create_engine(house.engine.url.set(username=role))
    coordinator = house.another_coordinator(engine=engine)
    with coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
    case.assert_committed()
    assert case.tx.delivered
    coordinator.log.look([TransactionKey(COORDINATOR, new_id())], fence=True)
    for column in ("outcome", "participants", "decided_at"):
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"), engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE twophase.decision SET {column} = {column}")
    engine.dispose()


def test_r2_the_row_stores_names_and_digests(house: House) -> None:
    """R2: each participant's name with the digest of what it was asked to stage."""
    name = fresh_name()
    branches = {"ledger": [entry(name)], "other": [entry(name, 2)]}
    with house.coordinator.transaction(branches) as tx:
        pass
    row = house.coordinator.log.get(tx.key)
    assert row is not None
    assert row.participants == {n: d.hex() for n, d in tx.digests.items()}
    held = house.ledger.row(tx.id)
    assert held is not None
    from tandem.runtime.digest import transaction_digest

    assert transaction_digest(bytes(held.digests)).hex() == row.participants["ledger"]


# --- R3 Presumed abort, but read it ----------------------------------------------------------------------------------


def test_r3_before_the_decision_nothing_is_logged(house: House, case: Case) -> None:
    """R3: with an id of its own and no INSERT sent, the driver aborts without writing anything."""
    with pytest.raises(ZeroDivisionError), house.coordinator.transaction(case.branches) as case.tx:
        1 / 0  # noqa: B018
    assert case.outcome is None
    row = house.ledger.row(case.tx.id)
    assert row is not None
    assert row.state == "aborted"


def test_r3_a_given_id_is_fenced_before_abort(house: House, case: Case) -> None:
    """R3: an id that others may drive, too, is fenced first: Abort follows only `aborted` read from the log."""
    given = new_id()
    with (
        pytest.raises(ZeroDivisionError),
        house.coordinator.transaction(case.branches, transaction_id=given) as case.tx,
    ):
        1 / 0  # noqa: B018
    assert case.outcome == "aborted"
    case.assert_nothing()


def test_r3_a_refused_vote_with_a_given_id_is_fenced(house: House, case: Case) -> None:
    """R3: the same where a participant votes no."""
    with house.coordinator.transaction(case.branches):
        pass
    given = new_id()
    other = fresh_name()
    with pytest.raises(Refused):
        house.coordinator.transaction({**case.branches, "other": [entry(other)]}, transaction_id=given).__enter__()
    assert house.outcome(given) == "aborted"
    assert house.other.accounts(other) == {}


class Unreachable:
    """A decision log that can't be read for a while: its engine leads nowhere."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._log = coordinator.log
        self._engine = coordinator.log.engine

    def __enter__(self) -> None:
        self._log.engine = create_engine("postgresql://nobody@127.0.0.1:1/none")

    def __exit__(self, *_: object) -> None:
        self._log.engine = self._engine


@pytest.mark.parametrize("after_commit", [False, True], ids=["undecided", "committed"])
def test_r3_log_unreachable_is_outcome_unknown(house: House, case: Case, after_commit: bool) -> None:
    """R3: nobody can read the log: OutcomeUnknown, neither Commit nor Abort is sent; finish() finds out later."""
    coordinator = house.another_coordinator()
    coordinator.log.log_id()
    starts = "COMMIT"
    engine = house.engine

    def cut(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(starts):
            event.remove(engine, "after_cursor_execute" if after_commit else "before_cursor_execute", cut)
            raise sa.exc.OperationalError(statement, None, Exception("the connection broke"))

    with Unreachable(coordinator):
        with pytest.raises(OutcomeUnknown) as raised, coordinator.transaction(case.branches) as case.tx:
            case.insert_own(case.tx.connection)
            event.listen(engine, "after_cursor_execute" if after_commit else "before_cursor_execute", cut)
        assert raised.value.transaction_id == case.tx.id
        assert case.account == "prepared", "neither Commit nor Abort was sent"
        with pytest.raises(OutcomeUnknown):
            case.tx.finish()
    assert case.tx.finish() is (Outcome.COMMITTED if after_commit else Outcome.ABORTED)
    if after_commit:
        case.assert_committed()
    else:
        case.assert_nothing()


@pytest.mark.direct
def test_r3_log_not_writable_is_outcome_unknown(house: House, case: Case) -> None:
    """R3: a log that can be read and not fenced says nothing of an undecided transaction."""
    case.tx = house.coordinator.prepare(case.branches)
    database = house.engine.url.database
    with house.engine.begin() as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    house.engine.dispose()
    try:
        with pytest.raises(OutcomeUnknown):
            case.tx.finish()
        assert case.account == "prepared"
    finally:
        with house.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
        house.engine.dispose()
    assert case.tx.finish() is Outcome.ABORTED


def test_r3_in_progress_is_outcome_unknown(house: House, case: Case) -> None:
    """R3: a decision that is being written elsewhere can't be fenced: OutcomeUnknown; then what was committed."""
    case.tx = house.coordinator.prepare(case.branches)
    with house.engine.connect() as connection:
        case.insert_own(connection)
        connection.execute(case.tx.decision)
        with pytest.raises(OutcomeUnknown):
            case.tx.finish()
        assert case.account == "prepared"
        connection.commit()
    assert case.tx.finish() is Outcome.COMMITTED
    case.assert_committed()


def test_r3_expired_is_outcome_unknown(house: House) -> None:
    """R3: an id that is too old for a fence: nothing is concluded, nothing is sent."""
    key = TransactionKey(COORDINATOR, new_id(age_s=29.5 * DAY_S))
    tx = Transaction(key, {"ledger": packed(entry("x"))}, log_id=uuid4(), own_id=False, finish=house.coordinator.finish)
    with pytest.raises(OutcomeUnknown):
        tx.finish()
    assert house.outcome(key.transaction_id) is None
    assert house.ledger.row(key.transaction_id) is None, "no Abort was sent"


def test_r3_serialization_failure_at_the_insert(house: House) -> None:
    """R3: 40001 at COMMIT goes to the log like everything else; the caller is told that a repeat helps."""
    engine = sa.create_engine(house.engine.url, isolation_level="SERIALIZABLE")
    with house.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS doctors (id int PRIMARY KEY, on_call bool)")
        connection.exec_driver_sql("INSERT INTO doctors VALUES (1, true), (2, true) ON CONFLICT DO NOTHING")
    case = Case(house)
    with pytest.raises(Unavailable), house.coordinator.transaction(case.branches, using=engine) as case.tx:
        case.insert_own(case.tx.connection)
        case.tx.connection.exec_driver_sql("SELECT count(*) FROM doctors WHERE on_call")
        with engine.begin() as rival:
            rival.exec_driver_sql("SELECT count(*) FROM doctors WHERE on_call")
            case.tx.connection.exec_driver_sql("UPDATE doctors SET on_call = false WHERE id = 1")
            rival.exec_driver_sql("UPDATE doctors SET on_call = false WHERE id = 2")
    case.assert_nothing()
    engine.dispose()


def test_r3_connection_lost_in_the_block(house: House, case: Case) -> None:
    """R3: the server ends the session under the block; nothing is committed anywhere."""
    with pytest.raises(sa.exc.DBAPIError), house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        pid = case.tx.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with house.engine.begin() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
        case.tx.connection.exec_driver_sql("SELECT 1")
    case.assert_nothing()


def test_r3_connection_lost_before_the_insert(house: House, case: Case) -> None:
    """R3: the same, found out by the deciding INSERT itself: read, fenced, and a repeat helps."""
    with pytest.raises(Unavailable), house.coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        pid = case.tx.connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with house.engine.begin() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
    case.assert_nothing()
    assert case.outcome == "aborted"


# --- R4 and the table of the decision log -----------------------------------------------------------------------------


def resolve(
    house: House,
    key: TransactionKey,
    *,
    fence: bool,
    asker: str = "ledger",
    digest: bytes = b"\0" * 32,
    log_id: UUID | None = None,
) -> pb.ResolveResult:
    """Resolve, over the wire, as a participant asks it."""
    return resolve_many(house, [(key, digest, log_id)], fence=fence, asker=asker)[0]


def resolve_many(
    house: House, items: list[tuple[TransactionKey, bytes, UUID | None]], *, fence: bool, asker: str = "ledger"
) -> list[pb.ResolveResult]:
    request = pb.ResolveRequest(participant=asker, fence=fence)
    for key, digest, log_id in items:
        request.items.add(
            key=transaction_pb2.TransactionKey(coordinator=key.coordinator, transaction_id=str(key.transaction_id)),
            log_id=str(log_id or house.coordinator.log.log_id()),
            digest=digest,
        )
    return list(house.stub.Resolve(request, timeout=10).results)


@pytest.fixture
def committed(house: House, case: Case) -> Transaction:
    """The row `committed`."""
    with house.coordinator.transaction(case.branches, transaction_id=new_id()) as tx:
        pass
    return tx


@pytest.fixture
def aborted(house: House) -> TransactionKey:
    """The row `aborted`."""
    key = TransactionKey(COORDINATOR, new_id())
    assert house.coordinator.log.look([key], fence=True)[key].outcome is Outcome.ABORTED  # type: ignore[union-attr]
    return key


def test_table_no_row_decide(house: House, case: Case) -> None:
    """no row × decide commit → insert."""
    with house.coordinator.transaction(case.branches, transaction_id=new_id()) as case.tx:
        case.insert_own(case.tx.connection)
    case.assert_committed()


def test_table_no_row_resolve(house: House) -> None:
    """no row × Resolve → UNDECIDED, and nothing is written."""
    key = TransactionKey(COORDINATOR, new_id())
    assert resolve(house, key, fence=False).outcome == R.OUTCOME_UNDECIDED
    assert house.outcome(key.transaction_id) is None


def test_table_no_row_fence(house: House) -> None:
    """no row × Resolve with fence → `aborted` is written; ABORTED, now and ever after."""
    key = TransactionKey(COORDINATOR, new_id())
    assert resolve(house, key, fence=True).outcome == R.OUTCOME_ABORTED
    assert house.outcome(key.transaction_id) == "aborted"
    assert resolve(house, key, fence=False).outcome == R.OUTCOME_ABORTED


def test_table_committed_decide_same_content(house: House, case: Case, committed: Transaction) -> None:
    """committed × decide, same content → committed: a repeat is told so and makes nothing twice."""
    with house.coordinator.transaction(case.branches, transaction_id=committed.id) as tx:
        pass
    assert tx.phase is Phase.COMMITTED
    house.coordinator.execute(committed.id, case.branches)


def test_table_committed_decide_other_content(house: House, case: Case, committed: Transaction) -> None:
    """committed × decide, other content → TRANSACTION_REUSED, and the first stays as it is."""
    other = {"ledger": [entry(fresh_name())]}
    with pytest.raises(TransactionReused):
        house.coordinator.execute(committed.id, other)
    with pytest.raises(TransactionReused):
        house.coordinator.transaction(other, transaction_id=committed.id).__enter__()
    # At another participant nothing stands in the way of staging: the INSERT meets the row.
    elsewhere = fresh_name()
    with (
        pytest.raises(TransactionReused),
        house.coordinator.transaction({"other": [entry(elsewhere)]}, transaction_id=committed.id),
    ):
        pass
    assert house.outcome(committed.id) == "committed"
    assert case.account == "active"
    assert house.other.accounts(elsewhere) == {elsewhere: "prepared"}, "never leads to an Abort (R6)"
    house.other.make_due(committed.id)
    house.other.sweeper.run_once()
    assert house.other.accounts(elsewhere) == {}, "not listed in the decision → ABORTED for that asker (R4)"
    assert case.account == "active"


@pytest.mark.parametrize("fence", [False, True], ids=["resolve", "fence"])
def test_table_committed_resolve(house: House, committed: Transaction, fence: bool) -> None:
    """committed × Resolve, with fence or without → COMMITTED."""
    answer = resolve(house, committed.key, fence=fence, digest=committed.digests["ledger"])
    assert answer.outcome == R.OUTCOME_COMMITTED


def test_table_aborted_decide(house: House, case: Case, aborted: TransactionKey) -> None:
    """aborted × decide → Fenced; own rows and staged rows are gone."""
    with (
        pytest.raises(Fenced),
        house.coordinator.transaction(case.branches, transaction_id=aborted.transaction_id) as case.tx,
    ):
        case.insert_own(case.tx.connection)
    case.assert_nothing()
    with pytest.raises(Fenced):
        house.coordinator.execute(aborted.transaction_id, case.branches)


@pytest.mark.parametrize("fence", [False, True], ids=["resolve", "fence"])
def test_table_aborted_resolve(house: House, aborted: TransactionKey, fence: bool) -> None:
    """aborted × Resolve, with fence or without → ABORTED."""
    assert resolve(house, aborted, fence=fence).outcome == R.OUTCOME_ABORTED


def test_table_expired_decide(house: House, case: Case) -> None:
    """no row, id expired × decide → TRANSACTION_EXPIRED, by the participant and by the INSERT itself."""
    old = new_id(age_s=29.5 * DAY_S)
    with pytest.raises(TransactionExpired):
        house.coordinator.transaction(case.branches, transaction_id=old).__enter__()
    for age_s, constraint in ((29.5 * DAY_S, "decision_check_expired"), (-1.5 * DAY_S, "decision_check_ahead")):
        key = TransactionKey(COORDINATOR, new_id(age_s=age_s))
        tx = Transaction(key, {"ledger": packed(entry("x"))}, log_id=house.coordinator.log.log_id(), own_id=False,
                         finish=house.coordinator.finish)  # fmt: skip
        with pytest.raises(sa.exc.IntegrityError) as raised, house.engine.begin() as connection:
            connection.execute(house.coordinator.log.decide([tx.deciding], log_id=tx.log_id))
        assert raised.value.orig.diag.constraint_name == constraint  # type: ignore[union-attr]
    assert case.account is None


@pytest.mark.parametrize("fence", [False, True], ids=["resolve", "fence"])
def test_table_expired_resolve(house: House, fence: bool) -> None:
    """no row, id expired × Resolve → EXPIRED, and nothing is written."""
    key = TransactionKey(COORDINATOR, new_id(age_s=29.5 * DAY_S))
    assert resolve(house, key, fence=fence).outcome == R.OUTCOME_EXPIRED
    assert house.outcome(key.transaction_id) is None


def test_r14_ahead_is_refused_by_resolve(house: House) -> None:
    """R14: an id more than a day ahead can't be fenced: it could be prepared again later."""
    key = TransactionKey(COORDINATOR, new_id(age_s=-1.5 * DAY_S))
    answer = resolve(house, key, fence=True)
    assert answer.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert house.outcome(key.transaction_id) is None


def test_r4_not_listed_is_told_aborted(house: House, committed: Transaction) -> None:
    """R4: a participant that the decision does not list is told ABORTED, although the transaction committed."""
    answer = resolve(house, committed.key, fence=True, asker="other", digest=committed.digests["ledger"])
    assert answer.outcome == R.OUTCOME_ABORTED


def test_r4_another_digest_is_told_aborted(house: House, committed: Transaction) -> None:
    """R4: so is one that has staged something else."""
    answer = resolve(house, committed.key, fence=True, digest=b"\1" * 32)
    assert answer.outcome == R.OUTCOME_ABORTED


def test_r4_unknown_log_writes_nothing(house: House, committed: Transaction) -> None:
    """R4: an unknown log_id → WRONG_LOG, and nothing is written, even with fence."""
    key = TransactionKey(COORDINATOR, new_id())
    stranger = uuid4()
    answers = resolve_many(
        house,
        [(key, b"\0" * 32, stranger), (committed.key, committed.digests["ledger"], None)],
        fence=True,
    )
    assert [a.outcome for a in answers] == [R.OUTCOME_WRONG_LOG, R.OUTCOME_COMMITTED]
    assert house.outcome(key.transaction_id) is None


def test_r4_a_stalled_initiator_holds_up_nobody(house: House) -> None:
    """R4: its id is IN_PROGRESS after a short lock_timeout; the others of the batch are fenced within the budget."""
    keys = [TransactionKey(COORDINATOR, new_id()) for _ in range(20)]
    stalled = house.coordinator.prepare({"ledger": [entry(fresh_name())]}, transaction_id=keys[7].transaction_id)
    with house.engine.connect() as connection:
        connection.execute(stalled.decision)
        started = time.monotonic()
        answers = resolve_many(house, [(key, b"\0" * 32, None) for key in keys], fence=True)
        took_s = time.monotonic() - started
        connection.commit()
    expected = [R.OUTCOME_ABORTED] * 20
    expected[7] = R.OUTCOME_IN_PROGRESS
    assert [answer.outcome for answer in answers] == expected
    assert took_s < 5
    assert stalled.finish() is Outcome.COMMITTED


def test_r4_waits_for_a_committing_initiator(house: House) -> None:
    """R4: where the initiator commits within the lock_timeout, the fence sees COMMITTED."""
    import threading

    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    with house.engine.connect() as connection:
        connection.execute(tx.decision)
        timer = threading.Timer(0.1, connection.commit)
        timer.start()
        answer = resolve(house, tx.key, fence=True, digest=tx.digests["ledger"])
        timer.join()
    assert answer.outcome == R.OUTCOME_COMMITTED
    assert tx.finish() is Outcome.COMMITTED


@pytest.mark.direct
def test_r4_a_stalled_block_is_ended_by_the_server(house: House) -> None:
    """R4: idle_in_transaction_session_timeout bounds an initiator that stalls between INSERT and COMMIT."""
    from tandem.runtime.times import Times

    coordinator = house.another_coordinator(times=Times(prepare_deadline_s=1.0, block_timeout_s=0.2))
    case = Case(house)
    with pytest.raises(sa.exc.DBAPIError), coordinator.transaction(case.branches) as case.tx:
        case.insert_own(case.tx.connection)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not _gone(house, case.tx.connection):
            time.sleep(0.02)
        case.tx.connection.exec_driver_sql("SELECT 1")
    case.assert_nothing()


def _gone(house: House, connection: Connection) -> bool:
    """Whether the server has ended the connection's session."""
    raw: Any = connection.connection.dbapi_connection
    with house.engine.connect() as other:
        found = other.exec_driver_sql(
            f"SELECT count(*) FROM pg_stat_activity WHERE pid = {raw.info.backend_pid}"
        ).scalar_one()
    return int(found) == 0


def test_r4_malformed_items_are_answered_one_by_one(house: House, committed: Transaction) -> None:
    """R4, bad input: each item by itself, its neighbours succeed."""
    request = pb.ResolveRequest(participant="ledger", fence=True)
    good = transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(committed.id))
    log_id = str(house.coordinator.log.log_id())
    request.items.add(key=good, log_id=log_id, digest=committed.digests["ledger"])
    request.items.add(key=good, log_id=log_id, digest=committed.digests["ledger"])
    request.items.add(
        key=transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(uuid4())),
        log_id=log_id,
        digest=b"\0" * 32,
    )
    request.items.add(
        key=transaction_pb2.TransactionKey(coordinator="somebody-else", transaction_id=str(new_id())),
        log_id=log_id,
        digest=b"\0" * 32,
    )
    request.items.add(key=good, log_id="nonsense", digest=b"short")
    results = house.stub.Resolve(request, timeout=10).results
    assert results[0].outcome == R.OUTCOME_COMMITTED
    assert [r.status.code for r in results[1:]] == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 4


def test_execute_commits_and_repeats(house: House) -> None:
    """Execute: the same driver with an empty block; a repeat with the same content gets the same answer (R2)."""
    name = fresh_name()
    request = pb.ExecuteRequest(
        key=transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(new_id())),
        branches=[
            transaction_pb2.Branch(participant=participant, writes=packed(entry(name)))
            for participant in ("ledger", "other")
        ],
    )
    for _ in range(3):
        response = house.stub.Execute(request, timeout=10)
        assert response.decision.decision == transaction_pb2.DECISION_COMMITTED
    assert house.ledger.accounts(name) == house.other.accounts(name) == {name: "active"}
    other = pb.ExecuteRequest()
    other.CopyFrom(request)
    del other.branches[1]
    with pytest.raises(grpc.RpcError) as raised:
        house.stub.Execute(other, timeout=10)
    assert from_rpc_error(raised.value).reason is Reason.TRANSACTION_REUSED


def test_execute_refused_stays_refused(house: House) -> None:
    """Execute: a refused one is aborted for good; its repeat says so."""
    name = fresh_name()
    house.coordinator.execute(new_id(), {"ledger": [entry(name)]})
    key = transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(new_id()))
    request = pb.ExecuteRequest(
        key=key, branches=[transaction_pb2.Branch(participant="ledger", writes=packed(entry(name)))]
    )
    reasons = []
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as raised:
            house.stub.Execute(request, timeout=10)
        reasons.append(from_rpc_error(raised.value).reason)
    assert reasons == [Reason.ALREADY_EXISTS, Reason.FENCED]
    assert house.outcome(UUID(key.transaction_id)) == "aborted"


def test_look_is_the_same_by_any_standing(house: House) -> None:
    """The pure side: Standing names exactly the answers that Resolve has for ids without a row."""
    names = [value.name for value in R.DESCRIPTOR.enum_types_by_name["Outcome"].values]
    assert {s.name for s in Standing} - {"AHEAD"} <= {name.removeprefix("OUTCOME_") for name in names}
