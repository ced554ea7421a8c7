"""The initiator's local transaction, on an Engine or an ORM Session: BEGIN and COMMIT are the driver's (R1).

What can't be right is refused before any RPC; inside the block `commit()` and `rollback()` raise; what SQL text does
behind our back is found out by libpq's state and by the token that the first statement sets.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol
from uuid import UUID
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from tandem.coordinator.errors import (
    LocalTransactionEnded,
    LocalTransactionOpen,
    LocalTransactionOwned,
    LocalTransactionRefused,
)
from tandem.runtime.database import Limits, bound_waits
from tandem.runtime.local_transaction import MAX_DEAD, LocalTransaction, begin, drop, is_dead
from tandem.runtime.telemetry import frames, logger

log = logger("tandem.coordinator.local")


class Using(Protocol):
    """Where the block's local transaction comes from."""

    def check(self) -> None:
        """Raises LocalTransactionRefused, before any RPC, for what can't carry the commit point."""
        ...

    def begin(self, limits: Limits, token: str) -> LocalTransaction:
        """Starts it."""
        ...

    def flush(self) -> None:
        """Sends what an ORM still holds back."""
        ...

    def guard(self, flag: Callable[[], None]) -> Callable[[], None]:
        """Makes commit() and rollback() raise; calls `flag` where one slipped through. Returns what undoes this."""
        ...

    def ended(self, committed: bool) -> None:
        """Lets go of the connection, after the local transaction has ended either way."""
        ...


class LocalBlock:
    """One block's local transaction: `begin`, the user's statements, `decide`, `commit`."""

    def __init__(self, using: Using, limits: Limits, transaction_id: UUID) -> None:
        self._using = using
        self._limits = limits
        self._transaction_id = transaction_id
        self._unguard: Callable[[], None] = _nothing
        self._local: LocalTransaction | None = None
        self._touched = False
        self.token = secrets.token_hex(16)

    def begin(self) -> Connection:
        """Starts it, with limits and token: before anybody else gets the connection (R1)."""
        self._local = self._using.begin(self._limits, self.token)
        self._unguard = self._using.guard(self._touch)
        return self._local.connection

    def _touch(self) -> None:
        self._touched = True

    def _lift_guard(self) -> None:
        self._unguard()
        self._unguard = _nothing

    def finish_block(self) -> None:
        """The block is over: flushes, and makes sure that the local transaction is still the one we began."""
        assert self._local is not None
        connection = self._local.connection
        if not connection.closed and connection.in_nested_transaction():
            raise LocalTransactionEnded("a savepoint is still open", transaction_id=self._transaction_id)
        self._using.flush()
        if self._touched or not self._local.intact:
            raise LocalTransactionEnded(
                "the local transaction was ended inside the block, or a failed statement has spoilt it",
                transaction_id=self._transaction_id,
            )
        self._lift_guard()

    def decide(self, statement: sa.Executable, parameters: Mapping[str, object]) -> None:
        """Sends the deciding INSERT, the local transaction's last statement."""
        assert self._local is not None
        self._local.connection.execute(statement, parameters)

    def commit(self) -> None:
        """Sends COMMIT. Raises CommitNotConfirmed unless the server says COMMIT."""
        assert self._local is not None
        self._local.commit()

    def close(self, *, committed: bool) -> None:
        """Ends whatever is still open and gives the connection back. Never raises."""
        self._lift_guard()
        if self._local is None:
            return
        if not committed:
            self._local.rollback()
        self._using.ended(committed)

    def abandon(self) -> None:
        """After an interruption nobody knows what the connection is doing: throws it away, then closes."""
        self._lift_guard()
        if self._local is not None:
            self._local.abandon()
        self.close(committed=False)


class UsingEngine:
    """A connection of its own from an Engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def check(self) -> None:
        """Refuses AUTOCOMMIT."""
        _check_engine(self._engine)

    def begin(self, limits: Limits, token: str) -> LocalTransaction:
        """On a fresh connection."""
        local = begin(self._engine, limits, token=token)
        self._connection = local.connection
        return local

    def flush(self) -> None:
        """Nothing is held back."""

    def guard(self, flag: Callable[[], None]) -> Callable[[], None]:
        """On the connection."""
        assert self._connection is not None
        return _guard_connection(self._connection, flag)

    def ended(self, committed: bool) -> None:
        """Returns the connection to the pool."""
        if self._connection is None:
            return
        try:
            self._connection.close()
        except Exception as error:  # a hook of the Engine's owner can't change what has been committed, or not
            log.warning("a hook of the Engine failed after the local transaction", exception=frames(error))
            drop(self._connection)


class UsingSession:
    """The connection of an ORM Session, flushed and ended by the driver."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._connection: Connection | None = None

    def check(self) -> None:
        """Refuses an open local transaction, `twophase`, a Connection, several engines, AUTOCOMMIT."""
        session = self._session
        if session.in_transaction():
            raise LocalTransactionOpen(
                "the Session has a local transaction open (a read opens one): commit or roll back before the block"
            )
        if not session.autobegin:
            raise LocalTransactionRefused("a Session with autobegin=False can't carry the commit point: we begin it")
        if session.twophase:
            raise LocalTransactionRefused("a Session with twophase=True can't carry the commit point")
        if type(session).get_bind is not Session.get_bind:
            raise LocalTransactionRefused("a Session that routes by its own get_bind() can't carry the commit point")
        binds = {id(bind): bind for bind in _binds(session)}
        if len(binds) != 1:
            raise LocalTransactionRefused(
                f"the Session must be bound to one Engine, not to {len(binds)}: the decision is one local commit"
            )
        (bind,) = binds.values()
        if not isinstance(bind, Engine):
            raise LocalTransactionRefused("the Session is bound to a Connection: bind it to the Engine")
        _check_engine(bind)

    def begin(self, limits: Limits, token: str) -> LocalTransaction:
        """On the Session's own connection; one that has died in the pool is replaced."""
        try:
            connection = self._session.connection()
            for _ in range(MAX_DEAD):
                if not is_dead(connection):
                    break
                connection.invalidate()
                self._session.rollback()
                connection = self._session.connection()
            self._connection = connection
            return LocalTransaction(connection, limits, token=token)
        except BaseException:
            self._session.rollback()  # also where no connection was to be had: the Session has begun by then
            raise

    def flush(self) -> None:
        """What Session.commit() does before it commits: `before_commit` hooks, and flushes until nothing is pending.

        All of it now, so that the Session has nothing more to send after the commit point.
        """
        transaction = self._session.get_transaction()
        if transaction is not None:
            transaction._prepare_impl()

    def guard(self, flag: Callable[[], None]) -> Callable[[], None]:
        """On the Session and on its connection."""
        assert self._connection is not None
        names = ("commit", "rollback", "close", "reset")
        for name in names:
            setattr(self._session, name, _raiser(f"Session.{name}"))
        unguard_connection = _guard_connection(self._connection, flag)

        def undo() -> None:
            unguard_connection()
            for name in names:
                self._session.__dict__.pop(name, None)

        return undo

    def ended(self, committed: bool) -> None:
        """Tells the Session what has happened; its own COMMIT or ROLLBACK sends nothing in autocommit mode."""
        try:
            if committed:
                self._session.commit()
            else:
                self._session.rollback()
        except Exception as error:  # the local transaction has ended; a hook of the Session's owner can't change that
            log.warning("a hook of the Session failed after the local transaction", exception=frames(error))
            self._session.invalidate()


def using(source: Engine | Session) -> Using:
    """The local transaction's source for what the caller has given."""
    if isinstance(source, Session):
        return UsingSession(source)
    if isinstance(source, Engine):
        return UsingEngine(source)
    if isinstance(source, Connection) and source.in_transaction():
        raise LocalTransactionOpen("the Connection has a local transaction open: give the Engine or a Session")
    raise LocalTransactionRefused(f"`using` takes an Engine or an ORM Session, not a {type(source).__name__}")


def _nothing() -> None:
    """Nothing to undo."""


def _check_engine(engine: Engine) -> None:
    if engine.dialect.name != "postgresql" or engine.dialect.driver != "psycopg2":
        raise LocalTransactionRefused("the Engine must be PostgreSQL by psycopg2 (postgresql+psycopg2://…)")
    if engine.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise LocalTransactionRefused("the Engine is in AUTOCOMMIT: own rows and decision must commit together")
    if engine in _carries:
        return
    bound_waits(engine)
    with engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        if raw.autocommit:
            raise LocalTransactionRefused("the Engine is in AUTOCOMMIT: own rows and decision must commit together")
    # What goes around the guarded methods (a Transaction object's own commit, a Session's failed flush) comes by here.
    for happening in ("commit", "rollback"):
        event.listen(engine, happening, _touched)
    _carries.add(engine)


_carries: WeakSet[Engine] = WeakSet()
"""Engines that were looked at, and are listened to: once, since all their connections are made in one way."""


def _binds(session: Session) -> list[Any]:
    """Every Engine or Connection that the Session may use."""
    return [bind for bind in (session.bind, *session.binds.values()) if bind is not None]


def _raiser(call: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise LocalTransactionOwned(call)

    return refuse


def _guard_connection(connection: Connection, flag: Callable[[], None]) -> Callable[[], None]:
    names = ("commit", "rollback", "close", "detach")
    for name in names:
        setattr(connection, name, _raiser(f"Connection.{name}"))
    _guarded[connection] = flag

    def undo() -> None:
        del _guarded[connection]
        for name in names:
            connection.__dict__.pop(name, None)

    return undo


_guarded: dict[Connection, Callable[[], None]] = {}
"""Connections of blocks that are under way."""


def _touched(connection: Connection) -> None:
    flag = _guarded.get(connection)
    if flag is not None:
        flag()
