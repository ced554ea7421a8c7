"""Engines, local transactions that we own from BEGIN to COMMIT, and what a database's errors mean.

Nothing here knows a table. A driver's message never leaves this module: it carries the values of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url

from tandem.runtime.errors import ConfigurationError, DatabaseError, Reason, TandemError
from tandem.runtime.telemetry import logger
from tandem.runtime.watchdog import watchdog

log = logger("tandem.database")

SERIALIZATION_FAILURES = frozenset({"40001", "40P01"})
UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"
_ISOLATION = {1: "READ COMMITTED", 2: "REPEATABLE READ", 3: "SERIALIZABLE", 4: "READ UNCOMMITTED"}
_FULL = frozenset({"53100", "53200", "53400"})
_AWAY = frozenset({"25006", "53300", "57014", "57P01", "57P02", "57P03", "57P05", "25P03", "57P04"})


@dataclass(frozen=True, slots=True)
class Limits:
    """The waits that one local transaction may have, in ms; and whether its COMMIT waits for the disk (R15)."""

    # Above PostgreSQL's deadlock_timeout (1 s): a deadlock must be told as one (40P01, redone), not to both sides as a
    # lock that did not come free.
    lock_timeout_ms: int = 1_500
    statement_timeout_ms: int = 5_000
    idle_timeout_ms: int = 5_000
    durable: bool = True

    give_up_ms: int | None = None

    @property
    def give_up_s(self) -> float:
        """How long the whole local transaction may take, in s, before the connection is given up.

        Unless it is set, above what the server's own timeouts allow: it is for servers that say nothing at all.
        """
        own = self.statement_timeout_ms + self.idle_timeout_ms + 1_000 if self.give_up_ms is None else self.give_up_ms
        return own / 1000


ASIDE = Limits(lock_timeout_ms=500, statement_timeout_ms=2_000, idle_timeout_ms=2_000, durable=False)
"""For reads, and for what may get lost because it would only be done again: claims, marks, notes."""


def normalised_url(url: str | URL) -> URL:
    """The URL for the psycopg2 driver (SQLAlchemy reads a bare `postgresql://` as psycopg 3)."""
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigurationError("the database URL is not one: postgresql://user@host:port/database is") from None
    if parsed.get_backend_name() != "postgresql":
        raise ConfigurationError(f"a PostgreSQL URL is needed, not {parsed.get_backend_name()!r}")
    return parsed.set(drivername="postgresql+psycopg2")


def create_engine(url: str | URL, *, pool_size: int = 10, pool_timeout_s: float = 2.0, name: str = "tandem") -> Engine:
    """An engine with a bounded pool, READ COMMITTED, and no values in its messages.

    pool_timeout_s: how long a caller waits for a connection before it is told DATABASE_UNAVAILABLE.
    """
    engine = sa.create_engine(
        normalised_url(url),
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        hide_parameters=True,
        use_native_hstore=False,
        connect_args={
            "application_name": name,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 15_000,
        },
    )
    bound_waits(engine)
    return engine


CONNECT_TIMEOUT_S = 5
SET_UP_S = 2.0
"""For what SQLAlchemy asks on a new connection before anybody gets it."""

_WATCHED = "tandem_watched"

_bound: WeakSet[Engine] = WeakSet()


def bound_waits(engine: Engine) -> None:
    """Gives new connections of an Engine a limit to how long they may take to come about (R16). Idempotent.

    From a connection's birth to its first use nobody else watches it. An Engine made with `creator=` connects by its
    owner's own function, which has to limit that by itself.
    """
    if engine in _bound:
        return
    _bound.add(engine)

    def connect(_dialect: object, _record: object, _arguments: object, settings: dict[str, Any]) -> None:
        settings.setdefault("connect_timeout", CONNECT_TIMEOUT_S)  # the owner's own listeners go on

    def born(raw: Any, record: Any) -> None:
        record.info[_WATCHED] = watchdog.watch(raw.fileno(), SET_UP_S)

    def checkout(_raw: object, record: Any, _proxy: object) -> None:
        watched = record.info.pop(_WATCHED, None)
        if watched is not None:
            watchdog.release(watched)

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "connect", born, insert=True)  # before SQLAlchemy's own, which asks the server this and that
    event.listen(engine, "checkout", checkout)


def seconds(count: float | sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
    """So many seconds as an interval."""
    factor = count if isinstance(count, sa.ColumnElement) else sa.literal_column(repr(float(count)), sa.Float())
    return sa.literal_column("interval '1 second'", sa.Interval()).op("*", return_type=sa.Interval())(factor)


NOW_MS: sa.ColumnElement[int] = sa.cast(sa.extract("epoch", sa.func.now()) * sa.literal_column("1000"), sa.BigInteger)
"""The database's clock in ms since 1970 (R13)."""


def ms(count: int) -> sa.ColumnElement[int]:
    """A number of ms, written into the statement."""
    return sa.literal_column(str(int(count)), sa.BigInteger())


class LocalTransaction:
    """One local transaction from BEGIN to COMMIT, on a connection that is ours until it ends.

    The connection runs in the driver's autocommit mode and BEGIN is ours, sent with the first statement in one round
    trip; so COMMIT is ours too, and its answer can be read (R1).
    """

    def __init__(
        self, connection: Connection, limits: Limits, *, isolation: str | None, token: str | None = None
    ) -> None:
        """isolation: None for the level that the connection was made with."""
        self.connection = connection
        self._limits = limits
        self._isolation = isolation
        self._token = token
        self._hand_back: Callable[[], None] = _nothing
        self._watched: int | None = None
        self._open = False
        self.gave_up = False
        """Whether the watchdog has ended it: the server said nothing."""

    def begin(self) -> None:
        """Starts it, with its limits. Raises if this isn't the primary (R15)."""
        raw = self.connection.connection.dbapi_connection
        level, self._hand_back = _take_over(raw)
        self._watched = watchdog.watch(_descriptor(raw), self._limits.give_up_s)
        try:
            row = self.connection.exec_driver_sql(
                _opening(self._limits, self._isolation or _ISOLATION.get(level or 0), self._token)
            ).one()
        except BaseException as error:
            self._open = True  # perhaps: BEGIN may have been obeyed, and what came after it not
            if isinstance(error, Exception):
                self.rollback()
            else:
                self.abandon()
            raise
        self._open = True
        if row.in_recovery:
            self.rollback()
            raise DatabaseError("the database is a replica, not the primary", reason=Reason.DATABASE_UNAVAILABLE)

    @property
    def intact(self) -> bool:
        """Whether libpq is inside an open and healthy transaction."""
        raw = _raw(self.connection)
        return (
            raw is not None
            and raw.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS
            and not raw.closed
        )

    def commit(self) -> None:
        """Commits. Raises CommitNotConfirmed unless libpq was INTRANS and the server said COMMIT (R1)."""
        if not self.intact:
            self.rollback()
            raise CommitNotConfirmed
        result = self.connection.exec_driver_sql("COMMIT")
        self._open = False
        self._let_go()
        if result.context is None or result.context.cursor.statusmessage != "COMMIT":
            raise CommitNotConfirmed

    def rollback(self) -> None:
        """Rolls back, or drops the connection where that can't be done. Never raises."""
        try:
            if self._open:
                self._open = False
                self.connection.exec_driver_sql("ROLLBACK")
        except Exception:  # a hook of the Engine's owner may raise anything, too
            drop(self.connection)
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Throws the connection away: after an interruption nobody knows what it is doing."""
        self._open = False
        drop(self.connection)
        self._let_go()

    def _let_go(self) -> None:
        if self._watched is not None:
            self.gave_up = not watchdog.release(self._watched)
            self._watched = None
        self._hand_back()
        self._hand_back = _nothing


class CommitNotConfirmed(Exception):
    """COMMIT was not sent, or the server did not answer COMMIT."""


@contextmanager
def local_transaction(engine: Engine, limits: Limits | None = None) -> Iterator[Connection]:
    """A local transaction of our own: READ COMMITTED, bounded. Commits at the end, or rolls back.

    limits: durable ones unless others are given (R15).
    """
    transaction = begin(engine, limits or Limits())
    try:
        yield transaction.connection
        transaction.commit()
    except CommitNotConfirmed as error:
        raise DatabaseError(
            "the database did not confirm the commit", reason=Reason.DATABASE_UNAVAILABLE, retry_after_s=1
        ) from error
    except Exception:
        transaction.rollback()
        raise
    except BaseException:
        transaction.abandon()
        raise
    finally:
        transaction.connection.close()


def begin(
    engine: Engine, limits: Limits, *, isolation: str | None = "READ COMMITTED", token: str | None = None
) -> LocalTransaction:
    """A begun local transaction on a connection of its own, which the caller closes.

    isolation: None for the engine's own level. A pooled connection that has died meanwhile is replaced once: nothing
    was sent on it yet.
    """
    for last in (False, True):
        connection = engine.connect()
        transaction = LocalTransaction(connection, limits, isolation=isolation, token=token)
        try:
            transaction.begin()
        except BaseException as error:
            connection.close()
            if last or not has_died(error, transaction):
                raise
        else:
            return transaction
    raise AssertionError("unreachable")


def has_died(error: BaseException, transaction: LocalTransaction) -> bool:
    """Whether a begin failed because the pool's connection had died meanwhile: another may do.

    Not where the server had all the time there is and said nothing.
    """
    return isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated and not transaction.gave_up


@contextmanager
def owned(engine: Engine) -> Iterator[Connection]:
    """A connection in the driver's autocommit mode, for statements that wait for nobody."""
    with engine.connect() as connection:
        _, hand_back = _take_over(connection.connection.dbapi_connection)
        try:
            yield connection
        finally:
            hand_back()


def _take_over(raw: Any) -> tuple[int | None, Callable[[], None]]:
    """Turns the driver's autocommit mode on; returns the isolation level that was set, and what undoes all this.

    By hand, with the level out of the way meanwhile: SQLAlchemy's own option makes psycopg2 tell the server about the
    level when it goes back, one more round trip after each COMMIT, that nobody watches.
    """
    level = raw.isolation_level
    raw.rollback()
    raw.isolation_level = None
    raw.autocommit = True

    def undo() -> None:
        if raw.closed:
            return
        try:
            raw.autocommit = False
            raw.isolation_level = level
        except psycopg2.Error:
            raw.close()  # it is not as its pool expects it, and nobody shall get it so

    return level, undo


def _descriptor(raw: Any) -> int:
    descriptor: int = raw.fileno()
    return descriptor


def _nothing() -> None:
    """Nothing to undo."""


def drop(connection: Connection) -> None:
    """Throws the connection away: whatever is open on it ends with it. Never raises."""
    raw = _raw(connection)
    if raw is None:
        return
    try:
        connection.invalidate()
    except Exception:  # a hook of the Engine's owner
        raw.close()


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of a database error, if it came from the server."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return original.pgcode if isinstance(original, psycopg2.Error) else None


def constraint(error: BaseException | None) -> str | None:
    """The name of the constraint that a statement violated."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return original.diag.constraint_name if isinstance(original, psycopg2.Error) else None


def is_serialization_failure(error: BaseException) -> bool:
    """40001 or 40P01: the same statements may succeed when they are sent again (R7)."""
    return sqlstate(error) in SERIALIZATION_FAILURES


def explained(error: Exception) -> TandemError:
    """A database error in our own words: which kind it is, and nothing that it carried."""
    if isinstance(error, TandemError):
        return error
    state = sqlstate(error)
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseError(
            "no database connection was free in time", reason=Reason.DATABASE_UNAVAILABLE, retry_after_s=1
        )
    if state == LOCK_NOT_AVAILABLE:
        return DatabaseError(
            "another local transaction holds the row: ask again", reason=Reason.IN_PROGRESS, retry_after_s=0.2
        )
    if state in _FULL:
        return DatabaseError("the database is out of space or memory", reason=Reason.DATABASE_FULL, retry_after_s=5)
    if state in _AWAY or state in SERIALIZATION_FAILURES or (state or "").startswith("08"):
        return DatabaseError(
            f"the database can't serve now (SQLSTATE {state})", reason=Reason.DATABASE_UNAVAILABLE, retry_after_s=1
        )
    if state is None and isinstance(
        error, (sa.exc.OperationalError, sa.exc.InterfaceError, psycopg2.OperationalError, psycopg2.InterfaceError)
    ):
        return DatabaseError("the database can't be reached", reason=Reason.DATABASE_UNAVAILABLE, retry_after_s=1)
    return TandemError(f"unexpected {type(error).__name__}" + (f" (SQLSTATE {state})" if state else ""))


def check_server(engine: Engine) -> None:
    """Refuses a server that can't keep a promise: fsync off, or not the primary (R15)."""
    try:
        with owned(engine) as connection:
            row = connection.exec_driver_sql(
                "SELECT current_setting('fsync') AS fsync, pg_is_in_recovery() AS in_recovery,"
                " current_setting('log_min_error_statement') AS statements"
            ).one()
    except sa.exc.SQLAlchemyError as error:
        raise ConfigurationError(f"{explained(error).message}: check the database URL and the server") from error
    if row.fsync != "on":
        raise ConfigurationError("the database runs with fsync=off: a vote would not survive a crash; turn it on")
    if row.statements not in ("panic", "fatal"):
        log.warning(
            "the database server may write facts of people into its log: a statement that fails there is logged whole",
            log_min_error_statement=row.statements,
            mend="log_min_error_statement=panic",
        )
    if row.in_recovery:
        raise ConfigurationError("the database is a replica: give the URL of the primary")


def _opening(limits: Limits, isolation: str | None, token: str | None) -> str:
    settings = {
        "lock_timeout": f"'{int(limits.lock_timeout_ms)}'",
        "statement_timeout": f"'{int(limits.statement_timeout_ms)}'",
        "idle_in_transaction_session_timeout": f"'{int(limits.idle_timeout_ms)}'",
        # R15: raised from off to on; anything stronger is kept.
        "synchronous_commit": "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
        "ELSE current_setting('synchronous_commit') END"
        if limits.durable
        else "'off'",
    }
    if token is not None:
        settings["tandem.token"] = f"'{token}'"
    chosen = ", ".join(f"set_config('{name}', {value}, true)" for name, value in settings.items())
    level = f" ISOLATION LEVEL {isolation}" if isolation else ""
    return f"BEGIN{level}; SELECT {chosen}, pg_is_in_recovery() AS in_recovery"


def _raw(connection: Connection) -> Any | None:
    if connection.closed or connection.invalidated:
        return None
    return connection.connection.dbapi_connection
