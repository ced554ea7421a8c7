"""Local transactions that are ours from BEGIN to COMMIT, with limits, on a connection nobody else uses meanwhile."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from functools import cache
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy.engine import Connection, Engine

from tandem.runtime.database import REPLICA, Limits
from tandem.runtime.errors import DatabaseError, Reason
from tandem.runtime.watchdog import watchdog

_ISOLATION = {1: "READ COMMITTED", 2: "REPEATABLE READ", 3: "SERIALIZABLE", 4: "READ UNCOMMITTED"}
_IDLE, _INTRANS = extensions.TRANSACTION_STATUS_IDLE, extensions.TRANSACTION_STATUS_INTRANS


class CommitNotConfirmed(Exception):
    """COMMIT was not sent, or the server did not answer COMMIT."""


class _State(Enum):
    UNSENT = auto()
    OPEN = auto()
    OVER = auto()


class LocalTransaction:
    """One local transaction from BEGIN to COMMIT, on a connection that is ours until it ends.

    BEGIN is ours and goes in one message with the first statement: the connection's own cursors see to that, whoever
    uses them. From then on the connection is in the driver's autocommit mode; so COMMIT is ours, too, and its answer
    can be read (R1). Until then it is as its owner made it: what goes past those cursors is in one of psycopg2's.
    """

    def __init__(
        self, connection: Connection, limits: Limits, *, isolation: str | None = None, token: str | None = None
    ) -> None:
        """isolation: None for the level that the connection was made with. token: see `deciding.insert_in_block`."""
        self.connection = connection
        self._limits = limits
        self._isolation = isolation
        self._token = token
        self._state = _State.UNSENT
        self._spoilt = False
        self._undo: list[Callable[[], None]] = []
        raw: Any = connection.connection.dbapi_connection
        self._raw = raw
        watched = watchdog.watch(raw.fileno(), limits.give_up_s)
        self._undo.append(lambda: _ignored(watchdog.release(watched)))
        self._undo.append(_with_cursors(raw, self))

    @property
    def unsent(self) -> bool:
        """Whether BEGIN has still to be sent."""
        return self._state is _State.UNSENT

    @contextmanager
    def opening(self) -> Iterator[str]:
        """What has to go before the first statement, in the same message; sent when the block ends."""
        raw = self._raw
        begin, hand_back = "", _nothing
        if raw.info.transaction_status == _IDLE:  # else psycopg2 has begun it, for a cursor that isn't ours
            level, hand_back = _take_over(raw)
            isolation = self._isolation or _ISOLATION.get(level or 0)
            begin = f"BEGIN ISOLATION LEVEL {isolation}; " if isolation else "BEGIN; "
        self._state = _State.OPEN
        try:
            yield begin + _settings(self._limits, self._token)
        finally:
            if not raw.closed and raw.info.transaction_status == _IDLE:
                # Nothing of the message was obeyed, since it can't be parsed; or it ended what it began. What comes
                # next must not commit by itself: it is in a transaction, too, but in one that is never committed.
                hand_back()
                self._state = _State.UNSENT
                self._spoilt = True
            else:
                self._undo.append(hand_back)

    @property
    def intact(self) -> bool:
        """Whether libpq is inside an open and healthy transaction, or not in one yet."""
        raw = _raw(self.connection)
        return (
            raw is not None
            and raw is self._raw
            and not raw.closed
            and not self._spoilt
            and (raw.info.transaction_status == _INTRANS or (self.unsent and raw.info.transaction_status == _IDLE))
        )

    def commit(self) -> None:
        """Commits. Raises CommitNotConfirmed unless libpq was INTRANS and the server said COMMIT (R1)."""
        if not self.intact:
            self.rollback()
            raise CommitNotConfirmed
        if self.unsent:  # nothing was asked: there is nothing to commit
            self.rollback()
            return
        result = self.connection.exec_driver_sql("COMMIT")
        self._end()
        if result.context is None or result.context.cursor.statusmessage != "COMMIT":
            raise CommitNotConfirmed

    def rollback(self) -> None:
        """Rolls back, or drops the connection where that can't be done. Never raises."""
        was, self._state = self._state, _State.OVER
        try:
            if was is _State.OPEN:
                self.connection.exec_driver_sql("ROLLBACK")
            elif was is _State.UNSENT and not self._raw.closed:
                self._raw.rollback()  # what went past our cursors
        except Exception:  # a hook of the Engine's owner may raise anything, too
            drop(self.connection)
        finally:
            self._end()

    def abandon(self) -> None:
        """Throws the connection away: after an interruption nobody knows what it is doing."""
        self._state = _State.OVER
        drop(self.connection)
        self._end()

    def _end(self) -> None:
        """Leaves the connection as its owner made it."""
        self._state = _State.OVER
        while self._undo:
            self._undo.pop()()


class _OpeningCursor(extensions.cursor):
    """A cursor that opens its local transaction, if nobody has yet: in one message with what it is asked to execute."""

    local_transaction: LocalTransaction

    def execute(self, query: Any, vars: Any = None) -> Any:  # noqa: A002  # psycopg2's name for it
        if not self.local_transaction.unsent:
            return super().execute(query, vars)
        if isinstance(query, str) and self.name is None:
            with self.local_transaction.opening() as opening:
                return super().execute(opening + query, vars)
        self._open()
        return super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> Any:
        self._open()
        return super().executemany(query, vars_list)

    def callproc(self, procname: Any, parameters: Any = None) -> Any:
        self._open()
        return super().callproc(procname, parameters)

    def copy_expert(self, *arguments: Any, **named: Any) -> Any:
        self._open()
        return super().copy_expert(*arguments, **named)

    def copy_from(self, *arguments: Any, **named: Any) -> Any:
        self._open()
        return super().copy_from(*arguments, **named)

    def copy_to(self, *arguments: Any, **named: Any) -> Any:
        self._open()
        return super().copy_to(*arguments, **named)

    def _open(self) -> None:
        if self.local_transaction.unsent:
            with self.local_transaction.opening() as opening:
                extensions.cursor(self.connection).execute(opening)


@cache
def _opening(base: type[extensions.cursor]) -> type[_OpeningCursor]:
    """The same with what the connection's owner has its cursors do."""
    if base is extensions.cursor:
        return _OpeningCursor
    return type("_OpeningCursor", (_OpeningCursor, base), {})


def _with_cursors(raw: Any, transaction: LocalTransaction) -> Callable[[], None]:
    """Has the connection make cursors that open the transaction; returns what undoes this."""
    theirs = raw.cursor_factory

    def make(*arguments: Any, **named: Any) -> _OpeningCursor:
        cursor = _opening(theirs or extensions.cursor)(*arguments, **named)
        cursor.local_transaction = transaction
        return cursor

    def undo() -> None:
        raw.cursor_factory = theirs

    raw.cursor_factory = make
    return undo


@contextmanager
def local_transaction(engine: Engine, limits: Limits | None = None) -> Iterator[Connection]:
    """A local transaction of our own: READ COMMITTED, bounded. Commits at the end, or rolls back.

    limits: durable ones unless others are given (R15).
    """
    transaction = begin(engine, limits or Limits(), isolation="READ COMMITTED")
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
    engine: Engine, limits: Limits, *, isolation: str | None = None, token: str | None = None
) -> LocalTransaction:
    """A local transaction on a connection of its own, which the caller closes."""
    connection = engine.connect()
    try:
        if hung_up(connection):
            connection.invalidate()  # and the next use makes a new one
        return LocalTransaction(connection, limits, isolation=isolation, token=token)
    except BaseException:
        connection.close()
        raise


def hung_up(connection: Connection) -> bool:
    """Whether a pooled connection has died meanwhile: its server has hung up, or has something to say unasked."""
    waiting = select.poll()
    waiting.register(connection.connection.dbapi_connection.fileno(), select.POLLIN)  # type: ignore[union-attr]
    return bool(waiting.poll(0))


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


def _settings(limits: Limits, token: str | None) -> str:
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
    # R15: on a replica the server refuses a level of this name, and with it all that comes after it in the message.
    primary = f"CASE WHEN pg_is_in_recovery() THEN set_config('transaction_isolation', '{REPLICA}', true) END"
    return f"SELECT {chosen}, {primary}; "


def drop(connection: Connection) -> None:
    """Throws the connection away: whatever is open on it ends with it. Never raises."""
    raw = _raw(connection)
    if raw is None:
        return
    try:
        connection.invalidate()
    except Exception:  # a hook of the Engine's owner
        raw.close()


def _raw(connection: Connection) -> Any | None:
    if connection.closed or connection.invalidated:
        return None
    return connection.connection.dbapi_connection


def _ignored(_: object) -> None:
    """What release says does not matter: whoever was given up has had an error of the driver's."""


def _nothing() -> None:
    """Nothing to undo."""
