"""The statements on `twophase.prepared_transaction` that Prepare, Commit and Abort are made of.

Each is one statement for a whole batch, with its keys in order (R7), and is built once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.engine import Connection

from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import Held, ResolvedBy, State
from tandem.runtime.database import NOW_MS, ms, seconds
from tandem.runtime.identifiers import DAY_MS, TransactionKey, id_time_ms
from tandem.runtime.records import KEY_COLUMNS, arrays, key_arrays, records
from tandem.runtime.statements import Statement


@dataclass(frozen=True, slots=True)
class New:
    """A row to be. digests: 32 bytes a write; staged: the rows that Commit must publish; ttl_s: seconds."""

    key: TransactionKey
    log_id: UUID
    digests: bytes
    staged: int
    ttl_s: float


@dataclass
class Read:
    """What the database holds for some keys, and its clock in ms since 1970 (R13)."""

    held: dict[TransactionKey, Held] = field(default_factory=dict)
    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """What a transaction was until now. staged: rows; in_doubt_s: seconds prepared, by the database's clock (R13)."""

    staged: int
    in_doubt_s: float


def insert(connection: Connection, new: Sequence[New], *, retention_ms: int) -> set[TransactionKey]:
    """Writes the rows of those whose id is neither expired nor ahead and that aren't there yet; returns these."""
    asked = [
        {
            **row.key.row(),
            "log_id": str(row.log_id),
            "digests": row.digests.hex(),
            "staged": row.staged,
            "ttl_s": row.ttl_s,
            "id_ms": id_time_ms(row.key.transaction_id),
        }
        for row in new
    ]
    return _keys_of(_insert(retention_ms)(connection, arrays("asked", _NEW, asked)))


def bury(
    connection: Connection, keys: Sequence[TransactionKey], by: ResolvedBy, *, retention_ms: int
) -> set[TransactionKey]:
    """A tombstone for each unknown transaction, so that a Prepare that comes late is refused; returns these."""
    asked = [{**key.row(), "id_ms": id_time_ms(key.transaction_id)} for key in keys]
    return _keys_of(connection.execute(_bury(retention_ms), {**arrays("asked", _BURIED, asked), "by": by.value}))


def resolve(
    connection: Connection, keys: Sequence[TransactionKey], state: State, by: ResolvedBy
) -> dict[TransactionKey, Ended]:
    """Ends the prepared ones; what each of these was."""
    rows = _resolve()(connection, {**key_arrays("keys", keys), "to": state.value, "by": by.value})
    return {TransactionKey(row.coordinator, row.transaction_id): Ended(row.staged, row.in_doubt_s) for row in rows}


def confirm(connection: Connection, keys: Sequence[TransactionKey], state: State) -> None:
    """The coordinator's decision agrees with outcomes that an operator has forced: they are finished now (R5)."""
    connection.execute(_confirm(), {**key_arrays("keys", keys), "is": state.value})


def force(connection: Connection, key: TransactionKey, state: State, *, not_before_s: float) -> int | None:
    """Ends a prepared one by an operator's hand; the rows it had staged.

    None if it isn't one, or has not been one for so many seconds: its driver may be at work yet. It is to be confirmed:
    the sweeper asks at once.
    """
    staged: int | None = connection.execute(
        _force(not_before_s), {**key_arrays("keys", [key]), "to": state.value}
    ).scalar_one_or_none()
    return staged


def remove(connection: Connection, keys: Sequence[TransactionKey]) -> None:
    """Forgets them: a no vote is not remembered."""
    connection.execute(_remove(), key_arrays("keys", keys))


def read(connection: Connection, keys: Sequence[TransactionKey]) -> Read:
    """What is held for these keys."""
    found = Read()
    if not keys:
        return found
    for row in connection.execute(_read(), key_arrays("keys", keys)):
        found.now_ms = row.now_ms
        if row.state is not None:
            key = TransactionKey(row.coordinator, row.transaction_id)
            found.held[key] = Held(State(row.state), row.log_id, bytes(row.digests))
    return found


def met(connection: Connection, keys: Sequence[TransactionKey]) -> list[sa.Row[Any]]:
    """The rows of these keys, with their age in s by the database's clock (R13)."""
    return list(connection.execute(_met(), key_arrays("keys", keys)))


# --- the statements ---------------------------------------------------------------------------------------------------

_keys = records("keys", KEY_COLUMNS)
_AGE_S = sa.extract("epoch", sa.func.now() - t.c.prepared_at)
_BURIED = {**KEY_COLUMNS, "id_ms": sa.BigInteger()}
_NEW = {**_BURIED, "log_id": sa.UUID(), "digests": sa.Text(), "staged": sa.Integer(), "ttl_s": sa.Double()}


@cache
def _insert(retention_ms: int) -> Statement:
    asked = records("asked", _NEW)
    values: dict[str, sa.ColumnElement[Any]] = {
        "log_id": asked.c.log_id,
        "digests": sa.func.decode(asked.c.digests, "hex"),
        "staged": asked.c.staged,
        "state": sa.literal(State.PREPARED.value),
        "confirmed": sa.false(),
        "next_attempt_at": sa.func.now() + seconds(asked.c.ttl_s),
    }
    return Statement(_new(asked, values, retention_ms), *KEY_COLUMNS)


@cache
def _bury(retention_ms: int) -> sa.Insert:
    asked = records("asked", _BURIED)
    values: dict[str, sa.ColumnElement[Any]] = {
        "digests": sa.literal(b"", sa.LargeBinary),
        "staged": sa.literal(0),
        "state": sa.literal(State.ABORTED.value),
        "confirmed": sa.true(),
        "resolved_at": sa.func.now(),
        "resolved_by": sa.bindparam("by", type_=sa.Text),
    }
    return _new(asked, values, retention_ms)


def _new(asked: sa.TableValuedAlias, values: dict[str, sa.ColumnElement[Any]], retention_ms: int) -> sa.Insert:
    """INSERT … SELECT of what isn't there; `identifiers.age` decides inside the statement that writes (R14)."""
    oldest, newest = NOW_MS - ms(retention_ms - DAY_MS), NOW_MS + ms(DAY_MS)
    chosen = (
        sa.select(asked.c.coordinator, asked.c.transaction_id, *values.values())
        .where(asked.c.id_ms.between(oldest, newest))
        .order_by(asked.c.coordinator, asked.c.transaction_id)
    )
    return (
        pg_insert(t)
        .from_select([*KEY_COLUMNS, *values], chosen)
        .on_conflict_do_nothing()
        .returning(t.c.coordinator, t.c.transaction_id)
    )


@cache
def _resolve() -> Statement:
    locked = (
        sa.select(t.c.coordinator, t.c.transaction_id)
        .join(_keys, sa.and_(*_same(_keys)))
        .where(t.c.state == State.PREPARED.value)
        .order_by(t.c.coordinator, t.c.transaction_id)
        .with_for_update(of=t)
        .cte("locked")
    )
    ended = (
        sa.update(t)
        .where(*_same(locked), t.c.state == State.PREPARED.value)
        .values(
            state=sa.bindparam("to", type_=sa.Text),
            confirmed=True,
            resolved_at=sa.func.now(),
            resolved_by=sa.bindparam("by", type_=sa.Text),
            parked=None,
            next_attempt_at=None,
            last_error=None,
        )
        .returning(t.c.coordinator, t.c.transaction_id, t.c.staged, sa.cast(_AGE_S, sa.Double))
    )
    return Statement(ended, *KEY_COLUMNS, "staged", "in_doubt_s")


@cache
def _confirm() -> sa.Executable:
    return (
        sa.update(t)
        .where(*_same(_keys), t.c.state == sa.bindparam("is", type_=sa.Text), ~t.c.confirmed)
        .values(confirmed=True, parked=None, next_attempt_at=None, last_error=None)
    )


def soonest(not_before_s: float) -> sa.ColumnElement[Any]:
    """Now, or once it has been prepared for so many seconds: to ask is to fence, and its driver may be at work yet."""
    return sa.func.greatest(sa.func.now(), t.c.prepared_at + seconds(not_before_s))


@cache
def _force(not_before_s: float) -> sa.Executable:
    return (
        sa.update(t)
        .where(
            *_same(_keys),
            t.c.state == State.PREPARED.value,
            t.c.prepared_at <= sa.func.now() - seconds(not_before_s),
        )
        .values(
            state=sa.bindparam("to", type_=sa.Text),
            resolved_at=sa.func.now(),
            resolved_by=ResolvedBy.OPERATOR.value,
            parked=None,
            next_attempt_at=sa.func.now(),
            last_error=None,
        )
        .returning(t.c.staged)
    )


@cache
def _remove() -> sa.Executable:
    return sa.delete(t).where(*_same(_keys))


@cache
def _read() -> sa.Executable:
    return sa.select(
        _keys.c.coordinator, _keys.c.transaction_id, t.c.state, t.c.log_id, t.c.digests, NOW_MS.label("now_ms")
    ).select_from(_keys.outerjoin(t, sa.and_(*_same(_keys))))


@cache
def _met() -> sa.Executable:
    return sa.select(t, _AGE_S.label("age_s")).join(_keys, sa.and_(*_same(_keys)))


def _same(keys: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.c.coordinator == keys.c.coordinator, t.c.transaction_id == keys.c.transaction_id)


def _keys_of(rows: Iterable[Any]) -> set[TransactionKey]:
    return {TransactionKey(row.coordinator, row.transaction_id) for row in rows}
