"""BEGIN goes in one message with the first statement, however that is sent; what goes past our cursors is safe, too."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy as sa
from psycopg2 import extensions, sql
from sqlalchemy.engine import Connection, Engine

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


@pytest.mark.parametrize("way", WAYS)
def test_whoever_sends_the_first_statement(engine: Engine, way: str) -> None:
    """It is inside the local transaction, which is rolled back or committed as a whole, with our limits."""
    add = getattr(Adding, way)
    with pytest.raises(ZeroDivisionError), local_transaction(engine, LIMITS) as connection:
        add(connection)
        1 / 0  # noqa: B018
    assert notes(engine) == []
    with local_transaction(engine, LIMITS) as connection:
        add(connection)
        connection.exec_driver_sql("INSERT INTO note VALUES ('z')")
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "1234ms"
        used = raw(connection)
    assert used.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
    assert notes(engine)[0] == "a"
    assert notes(engine)[-1] == "z"
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "0"


def test_the_owners_own_cursors(engine: Engine) -> None:
    """Cursors of a class that the connection's owner has chosen stay of that class."""
    theirs = sa.create_engine(
        engine.url, connect_args={"cursor_factory": psycopg2.extras.DictCursor}, isolation_level="READ COMMITTED"
    )
    with local_transaction(theirs) as connection:
        cursor = raw(connection).cursor()
        cursor.execute(RUNNING)
        assert cursor.fetchone()["query"].startswith("BEGIN")
    theirs.dispose()


@pytest.mark.parametrize("first", ["SELECT FROM WHERE", "COMMIT", "ROLLBACK"])
def test_what_never_began_is_never_committed(engine: Engine, first: str) -> None:
    """A first statement that can't be parsed, or that ends what it began: what comes next does not commit by itself."""
    transaction = begin(engine, LIMITS)
    connection = transaction.connection
    try:
        connection.exec_driver_sql(first)
    except sa.exc.ProgrammingError:
        assert "FROM" in first
    connection.exec_driver_sql("INSERT INTO note VALUES ('a')")
    raw(connection).cursor(cursor_factory=extensions.cursor).execute("INSERT INTO note VALUES ('b')")
    assert not transaction.intact
    with pytest.raises(CommitNotConfirmed):
        transaction.commit()
    used = raw(connection)
    connection.close()
    assert used.autocommit is False
    assert notes(engine) == []


def test_a_statement_that_fails_spoils_it(engine: Engine) -> None:
    """As in any local transaction: also where it is the first one, and goes with BEGIN."""
    transaction = begin(engine, LIMITS)
    with pytest.raises(sa.exc.DataError):
        transaction.connection.exec_driver_sql("SELECT 1 / 0")
    with pytest.raises(sa.exc.InternalError):
        transaction.connection.exec_driver_sql("INSERT INTO note VALUES ('a')")
    with pytest.raises(CommitNotConfirmed):
        transaction.commit()
    transaction.connection.close()
    assert notes(engine) == []


@pytest.mark.direct
def test_a_connection_that_has_died_is_replaced(engine: Engine) -> None:
    """One that the server has hung up on while it lay in the pool never gets a statement."""
    one = create_engine(engine.url, pool_size=1)
    with one.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with engine.begin() as connection:
        # Waits until the session is gone.
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
    with local_transaction(one) as connection:
        assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() != pid
    one.dispose()


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
