"""Local transactions that are ours: whoever sends what on the connection, it is inside, with our limits."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy as sa
from psycopg2 import extensions, sql
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from tandem.coordinator.local import UsingSession
from tandem.runtime.database import Limits, create_engine
from tandem.runtime.local_transaction import CommitNotConfirmed, LocalTransaction, begin, local_transaction
from tandem.runtime.statements import Statement

LIMITS = Limits(lock_timeout_ms=1_234)
RUNNING = "SELECT current_query() AS query"


@pytest.fixture(scope="module")
def engine(new_database: Callable[[str], str]) -> Iterator[Engine]:
    made = create_engine(new_database("local_transaction"), pool_size=2)
    with made.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE note (note text PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE FUNCTION add(text) RETURNS void LANGUAGE sql AS 'INSERT INTO note VALUES ($1)'"
        )
    yield made
    made.dispose()


@pytest.fixture(autouse=True)
def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE note")


def notes(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT note FROM note ORDER BY note").scalars())


def raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def test_one_message(engine: Engine) -> None:
    """The server is told of both at once, with the limits; and then of the next statement alone."""
    with local_transaction(engine, LIMITS) as connection:
        first = connection.exec_driver_sql(RUNNING).scalar_one()
        assert first.startswith("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT set_config('lock_timeout', '1234', true)")
        assert first.endswith(RUNNING)
        assert connection.exec_driver_sql(RUNNING).scalar_one() == RUNNING
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "1234ms"


def test_nothing_asked(engine: Engine) -> None:
    """Where nothing is asked nothing is sent, and the connection is as it was."""
    with local_transaction(engine) as connection:
        used = raw(connection)
        assert used.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
    assert used.autocommit is False
    assert used.cursor_factory is None


class Adding:
    """Ways of writing a note as the first statement, past SQLAlchemy or through it."""

    @staticmethod
    def sqlalchemy(connection: Connection) -> None:
        connection.execute(sa.text("INSERT INTO note VALUES (:note)"), {"note": "a"})

    @staticmethod
    def many(connection: Connection) -> None:
        connection.execute(sa.text("INSERT INTO note VALUES (:note)"), [{"note": "a"}, {"note": "b"}])

    @staticmethod
    def statement(connection: Connection) -> None:
        Statement(sa.text("INSERT INTO note VALUES (:note)"))(connection, {"note": "a"})

    @staticmethod
    def savepoint(connection: Connection) -> None:
        with connection.begin_nested():
            connection.exec_driver_sql("INSERT INTO note VALUES ('a')")

    @staticmethod
    def cursor(connection: Connection) -> None:
        raw(connection).cursor().execute("INSERT INTO note VALUES (%s)", ("a",))

    @staticmethod
    def percent(connection: Connection) -> None:
        raw(connection).cursor().execute("INSERT INTO note SELECT 'a' WHERE 'a%' LIKE '%'")

    @staticmethod
    def composed(connection: Connection) -> None:
        raw(connection).cursor().execute(sql.SQL("INSERT INTO {} VALUES ('a')").format(sql.Identifier("note")))

    @staticmethod
    def executemany(connection: Connection) -> None:
        raw(connection).cursor().executemany("INSERT INTO note VALUES (%s)", [("a",), ("b",)])

    @staticmethod
    def execute_values(connection: Connection) -> None:
        psycopg2.extras.execute_values(
            raw(connection).cursor(), "INSERT INTO note VALUES %s", [("a",), ("b",)], page_size=1
        )

    @staticmethod
    def callproc(connection: Connection) -> None:
        raw(connection).cursor().callproc("add", ("a",))

    @staticmethod
    def copy_from(connection: Connection) -> None:
        raw(connection).cursor().copy_from(io.StringIO("a\n"), "note")

    @staticmethod
    def copy_expert(connection: Connection) -> None:
        raw(connection).cursor().copy_expert("COPY note FROM STDIN", io.StringIO("a\n"))

    @staticmethod
    def after_copy_to(connection: Connection) -> None:
        cursor = raw(connection).cursor()
        cursor.copy_to(io.StringIO(), "note")
        cursor.execute("INSERT INTO note VALUES ('a')")

    @staticmethod
    def past_our_cursors(connection: Connection) -> None:
        named = raw(connection).cursor(cursor_factory=psycopg2.extras.RealDictCursor)
        named.execute("INSERT INTO note VALUES ('a') RETURNING note")
        assert named.fetchone() == {"note": "a"}


WAYS = [name for name in vars(Adding) if not name.startswith("_")]
OURS = [way for way in WAYS if not way.startswith(("call", "copy", "after", "past"))]
"""Ways in which we ask ourselves, where BEGIN waits for the first statement."""


def left_as_it_was(used: Any) -> bool:
    return (
        used.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
        and used.autocommit is False
        and used.cursor_factory is None
        and used.isolation_level == extensions.ISOLATION_LEVEL_READ_COMMITTED
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lazily", [True, False])
def test_whoever_sends_the_first_statement(engine: Engine, way: str, lazily: bool) -> None:
    """It is inside the local transaction, which is rolled back or committed as a whole, with our limits.

    Where BEGIN waits for it and it goes past our cursors, it is not committed, and that is told.
    """
    add, ours = getattr(Adding, way), way in OURS or not lazily
    for commits in (False, True):
        transaction = begin(engine, LIMITS, lazily=lazily)
        connection = transaction.connection
        used = raw(connection)
        if not ours and way.startswith("after"):
            with pytest.raises(RuntimeError):
                add(connection)
        else:
            add(connection)
        if ours:
            connection.exec_driver_sql("INSERT INTO note VALUES ('z')")
            assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "1234ms"
        if not commits:
            transaction.rollback()
        elif ours:
            transaction.commit()
        else:
            with pytest.raises(CommitNotConfirmed):
                transaction.commit()
        connection.close()
        assert left_as_it_was(used)
        assert (notes(engine)[:1] + notes(engine)[-1:] == ["a", "z"]) is (commits and ours)
        assert bool(notes(engine)) is (commits and ours)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "0"


def test_begun_before_anybody_else_has_it(engine: Engine) -> None:
    """R1: as long as a block's connection is another's, BEGIN has been sent and commit() of the driver does nothing."""
    transaction = begin(engine, LIMITS)
    used = raw(transaction.connection)
    assert used.info.transaction_status == extensions.TRANSACTION_STATUS_INTRANS
    used.cursor(cursor_factory=psycopg2.extras.RealDictCursor).execute("INSERT INTO note VALUES ('a')")
    used.commit()
    assert transaction.intact
    transaction.rollback()
    transaction.connection.close()
    assert notes(engine) == []
    assert left_as_it_was(used)


def test_the_drivers_own_with_block(engine: Engine) -> None:
    """R1: it sends COMMIT, which can't be prevented, but is noticed."""
    transaction = begin(engine, LIMITS)
    with raw(transaction.connection) as used:
        used.cursor(cursor_factory=psycopg2.extras.RealDictCursor).execute("INSERT INTO note VALUES ('a')")
    assert not transaction.intact
    with pytest.raises(CommitNotConfirmed):
        transaction.commit()
    transaction.connection.close()
    assert left_as_it_was(used)


def test_past_the_cursors_is_not_lost_without_a_word(engine: Engine) -> None:
    """Where BEGIN waits: what went past our cursors, and then one of ours."""
    with pytest.raises(RuntimeError), local_transaction(engine) as connection:
        Adding.past_our_cursors(connection)
        Adding.cursor(connection)
    assert notes(engine) == []


class Dicts(extensions.connection):
    """Makes cursors of its own choice, whatever it is asked for."""

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        return super().cursor(*arguments, **{**named, "cursor_factory": psycopg2.extras.DictCursor})


@pytest.mark.parametrize(
    "theirs",
    [
        {"cursor_factory": psycopg2.extras.DictCursor},
        {"connection_factory": psycopg2.extras.DictConnection},
        {"connection_factory": Dicts},
        {"cursor_factory": partial(psycopg2.extras.DictCursor)},
    ],
    ids=["cursor_factory", "DictConnection", "connection_factory", "callable"],
)
@pytest.mark.parametrize("lazily", [True, False])
def test_the_owners_own_cursors(engine: Engine, theirs: dict[str, Any], lazily: bool) -> None:
    """Cursors that the connection's owner has chosen stay so, and what they do is committed."""
    one = sa.create_engine(engine.url, connect_args=theirs, isolation_level="READ COMMITTED", pool_size=1)
    transaction = begin(one, LIMITS, lazily=lazily)
    cursor = raw(transaction.connection).cursor()
    cursor.execute("INSERT INTO note VALUES ('a') RETURNING note")
    assert cursor.fetchone()["note"] == "a"
    transaction.commit()
    transaction.connection.close()
    one.dispose()
    assert notes(engine) == ["a"]


@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize("first", ["SELECT FROM WHERE", "SELECT 1 / 0"])
def test_a_statement_that_fails_spoils_it(engine: Engine, first: str, lazily: bool) -> None:
    """As in any local transaction: also where it is the first one, and goes with BEGIN."""
    transaction = begin(engine, LIMITS, lazily=lazily)
    with pytest.raises(sa.exc.DBAPIError):
        transaction.connection.exec_driver_sql(first)
    with pytest.raises(CommitNotConfirmed):
        transaction.commit()
    transaction.connection.close()
    assert notes(engine) == []


@pytest.mark.direct
@pytest.mark.parametrize("lifo", [True, False])
@pytest.mark.parametrize("kind", ["engine", "session"])
def test_connections_that_have_died_are_replaced(engine: Engine, lifo: bool, kind: str) -> None:
    """What the server has hung up on while it lay in the pool, however many they are, never gets a statement."""
    some = sa.create_engine(engine.url, pool_size=3, pool_use_lifo=lifo)
    for connection in [some.connect() for _ in range(3)]:
        connection.close()
    with some.connect() as connection:
        name = "pg_stat_activity WHERE datname = current_database()"
        others = "pid <> pg_backend_pid() AND pid NOT IN ({})"
        with engine.connect() as mine:
            keep = mine.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        pids = connection.exec_driver_sql(f"SELECT pid FROM {name} AND {others.format(keep)}").scalars().all()
        pids = [*pids, connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()]
    with engine.begin() as connection:
        for pid in pids:
            connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")  # waits until it is gone
    if kind == "engine":
        transaction = begin(some, LIMITS)
        assert transaction.connection.exec_driver_sql("SELECT 1").scalar_one() == 1
        transaction.rollback()
        transaction.connection.close()
    else:
        with Session(some) as session:
            block = UsingSession(session)
            assert block.begin(LIMITS, "token").connection.exec_driver_sql("SELECT 1").scalar_one() == 1
            block.ended(committed=False)
    some.dispose()


def test_given_up(engine: Engine) -> None:
    """A connection that takes longer than all limits together is shut down; nothing is committed."""
    with pytest.raises(sa.exc.DBAPIError), local_transaction(engine, Limits(give_up_ms=300)) as connection:
        connection.exec_driver_sql("INSERT INTO note VALUES ('a')")
        connection.exec_driver_sql("SELECT pg_sleep(4)")
    assert notes(engine) == []


def test_isolation_of_the_connection(engine: Engine) -> None:
    """None asks for the level that the connection was made with."""
    strict = sa.create_engine(engine.url, isolation_level="SERIALIZABLE")
    transaction = begin(strict, LIMITS)
    assert transaction.connection.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "serializable"
    transaction.commit()
    used = raw(transaction.connection)
    assert used.isolation_level == extensions.ISOLATION_LEVEL_SERIALIZABLE
    transaction.connection.close()
    strict.dispose()


def test_abandoned(engine: Engine) -> None:
    """After an interruption the connection is thrown away, and what it had begun with it."""
    transaction: LocalTransaction = begin(engine, LIMITS)
    transaction.connection.exec_driver_sql("INSERT INTO note VALUES ('a')")
    used = raw(transaction.connection)
    transaction.abandon()
    transaction.connection.close()
    assert used.closed
    assert notes(engine) == []
