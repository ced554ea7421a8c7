"""Engines, the limits of local transactions, and what a database's errors mean.

Nothing here knows a table. A driver's message never leaves this module: it carries the values of the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url

from tandem.runtime.errors import ConfigurationError, DatabaseError, Reason, TandemError
from tandem.runtime.telemetry import logger
from tandem.runtime.watchdog import watchdog

log = logger("tandem.database")

SERIALIZATION_FAILURES = frozenset({"40001", "40P01"})
UNIQUE_VIOLATION = "23505"
LOCK_NOT_AVAILABLE = "55P03"
REPLICA = "tandem: this is a replica"
"""What a server says that is one (R15)."""

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


CONNECT_TIMEOUT_S = 5
SET_UP_S = 2.0
"""For what SQLAlchemy asks on a new connection before anybody gets it."""


def create_engine(
    url: str | URL,
    *,
    pool_size: int = 10,
    pool_timeout_s: float = 2.0,
    connect_timeout_s: int = CONNECT_TIMEOUT_S,
    name: str = "tandem",
) -> Engine:
    """An engine with a bounded pool, READ COMMITTED, and no values in its messages.

    pool_timeout_s: how long a caller waits for a connection before it is told DATABASE_UNAVAILABLE.
    connect_timeout_s: how long a new connection may take, 2 at least.
    """
    engine = sa.create_engine(
        normalised_url(url),
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        pool_use_lifo=True,  # a few warm sessions, not all of them in turn
        hide_parameters=True,
        use_native_hstore=False,
        connect_args={
            "application_name": name,
            "connect_timeout": connect_timeout_s,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 2,
            "tcp_user_timeout": 15_000,
        },
    )
    bound_waits(engine)
    return engine


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


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of a database error, if it came from the server."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return original.pgcode if isinstance(original, psycopg2.Error) else None


def constraint(error: BaseException | None) -> str | None:
    """The name of the constraint that a statement violated."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return original.diag.constraint_name if isinstance(original, psycopg2.Error) else None


def _message(error: Exception) -> str:
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return (original.diag.message_primary or "") if isinstance(original, psycopg2.Error) else ""


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
    if state == "22023" and REPLICA in _message(error):
        return DatabaseError("the database is a replica, not the primary", reason=Reason.DATABASE_UNAVAILABLE)
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
        with engine.connect() as connection:
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
