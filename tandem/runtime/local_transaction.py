"""Local transactions that are ours from BEGIN to COMMIT, with limits, on a connection nobody else uses meanwhile."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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

MAX_DEAD = 200
"""Dead connections that are discarded for one that lives: as many as a pool has."""


class CommitNotConfirmed(Exception):
    """COMMIT was not sent, or the server did not answer COMMIT."""


class _State(Enum):
    UNSENT = auto()
    OPEN = auto()
    OVER = auto()


class LocalTransaction:
    """One local transaction from BEGIN to COMMIT, on a connection that is ours until it ends.

    BEGIN is ours, and the connection is in the driver's autocommit mode; so COMMIT is ours, too, and its answer can be
    read (R1).
    """

    def __init__(
        self,
        connection: Connection,
        limits: Limits,
        *,
        isolation: str | None = None,
        token: str | None = None,
        lazily: bool = False,
    ) -> None:
        """Begins it, with its limits. Raises if this isn't the primary (R15).

        isolation: None for the level that the connection was made with. token: see `deciding.insert_in_block`.
        lazily: BEGIN goes in one message with the first statement, which spares a round trip. Only where nobody but us
        has the connection, one thread, and asks by cursors that the connection makes.
        """
        self.connection = connection
        self._limits = limits
        self._isolation = isolation
        self._token = token
        self._state = _State.UNSENT
        self._undo: list[Callable[[], None]] = []
        raw: Any = connection.connection.dbapi_connection
        self._raw = raw
        watched = watchdog.watch(raw.fileno(), limits.give_up_s)
        self._undo.append(lambda: _ignored(watchdog.release(watched)))
        if lazily and _with_cursors(raw, self, self._undo):
            return
        try:
            with self.opening() as opening:
                connection.exec_driver_sql(opening)
        except BaseException as error:
            if isinstance(error, Exception):
                self.rollback()
            else:
                self.abandon()
            raise

    @property
    def unsent(self) -> bool:
        """Whether BEGIN has still to be sent."""
        return self._state is _State.UNSENT

    @contextmanager
    def opening(self) -> Iterator[str]:
        """BEGIN and the limits, for whoever sends them, alone or before a statement in the same message."""
        level = self._raw.isolation_level
        _take_over(self._raw, self._undo)
        isolation = self._isolation or _ISOLATION.get(level or 0)
        begin = f"BEGIN ISOLATION LEVEL {isolation}; " if isolation else "BEGIN; "
        self._state = _State.OPEN  # perhaps: BEGIN may be obeyed, and what comes after it not
        yield begin + _settings(self._limits, self._token)

    @property
    def intact(self) -> bool:
        """Whether libpq is inside an open and healthy transaction, or not in one yet."""
        raw = _raw(self.connection)
        if raw is None or raw is not self._raw or raw.closed:
            return False
        expected = extensions.TRANSACTION_STATUS_IDLE if self.unsent else extensions.TRANSACTION_STATUS_INTRANS
        return bool(raw.info.transaction_status == expected)

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
        if self.local_transaction.unsent:
            if isinstance(query, str):
                with self._opening() as opening:
                    return super().execute(opening + query, vars)
            self._open()
        return super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> Any:
        if self.local_transaction.unsent:
            self._open()
        return super().executemany(query, vars_list)

    def _open(self) -> None:
        with self._opening() as opening:
            extensions.cursor(self.connection).execute(opening)

    def _opening(self) -> AbstractContextManager[str]:
        if self.connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE:
            raise RuntimeError("something was asked past the cursors of a local transaction: it would be lost")
        return self.local_transaction.opening()


@cache
def _opening(base: type[extensions.cursor]) -> type[_OpeningCursor]:
    """The same with what the connection's owner has its cursors do."""
    if base is extensions.cursor:
        return _OpeningCursor
    return type("_OpeningCursor", (_OpeningCursor, base), {})


def _with_cursors(raw: Any, transaction: LocalTransaction, undo: list[Callable[[], None]]) -> bool:
    """Has the connection make cursors that open the transaction; False if its owner has it make others all the same."""
    theirs = raw.cursor_factory
    base: Any = type(raw.cursor())

    def make(*arguments: Any, **named: Any) -> _OpeningCursor:
        cursor = _opening(base)(*arguments, **named)
        cursor.local_transaction = transaction
        return cursor

    def hand_back() -> None:
        raw.cursor_factory = theirs

    undo.append(hand_back)
    raw.cursor_factory = make
    if isinstance(raw.cursor(), _OpeningCursor):
        return True
    hand_back()
    return False


@contextmanager
def local_transaction(engine: Engine, limits: Limits | None = None) -> Iterator[Connection]:
    """A local transaction of our own: READ COMMITTED, bounded. Commits at the end, or rolls back.

    limits: durable ones unless others are given (R15).
    """
    transaction = begin(engine, limits or Limits(), isolation="READ COMMITTED", lazily=True)
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
    engine: Engine, limits: Limits, *, isolation: str | None = None, token: str | None = None, lazily: bool = False
) -> LocalTransaction:
    """A local transaction on a connection of its own, which the caller closes."""
    connection = engine.connect()
    try:
        for _ in range(MAX_DEAD):
            if not is_dead(connection):
                break
            connection.invalidate()  # the next use takes another one
        return LocalTransaction(connection, limits, isolation=isolation, token=token, lazily=lazily)
    except BaseException:
        connection.close()
        raise


def is_dead(connection: Connection) -> bool:
    """Whether a pooled connection died meanwhile: its server has hung up, or has something to say unasked.

    A server that was restarted has hung up on all of them: the next one may be dead, too.
    """
    waiting = select.poll()
    waiting.register(connection.connection.dbapi_connection.fileno(), select.POLLIN)  # type: ignore[union-attr]
    return bool(waiting.poll(0))


@contextmanager
def owned(engine: Engine) -> Iterator[Connection]:
    """A connection in the driver's autocommit mode, for statements that wait for nobody."""
    with engine.connect() as connection:
        undo: list[Callable[[], None]] = []
        try:
            _take_over(connection.connection.dbapi_connection, undo)
            yield connection
        finally:
            for one in undo:
                one()


def _take_over(raw: Any, undo: list[Callable[[], None]]) -> None:
    """Turns the driver's autocommit mode on; adds what undoes this.

    By hand, with the level out of the way meanwhile: SQLAlchemy's own option makes psycopg2 tell the server about the
    level when it goes back, one more round trip after each COMMIT, that nobody watches.
    """
    level = raw.isolation_level

    def hand_back() -> None:
        if raw.closed:
            return
        try:
            raw.autocommit = False
            raw.isolation_level = level
        except psycopg2.Error:
            raw.close()  # it is not as its pool expects it, and nobody shall get it so

    undo.append(hand_back)
    raw.rollback()
    raw.isolation_level = None
    raw.autocommit = True


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
