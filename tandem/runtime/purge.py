"""How finished transactions are forgotten (R14): in batches, along the primary key, and never an unfinished one.

An id is a UUIDv7, so the oldest rows are the first of the key: no index is needed for this, and a run costs what it
deletes. A row goes when it has been finished for longer than retention, and its id is older than that too; by then
every message about that id is refused as expired, so nothing can ask for what is gone.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tandem.runtime.database import NOW_MS, Limits, ms
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction

BATCH = 1_000
MAX_BATCHES = 200
"""In one run; what is left waits for the next (R16)."""

LIMITS = Limits(lock_timeout_ms=500, durable=False)
"""A purge that a crash undoes is done again."""

_FIRST = UUID(int=0)


def purge(
    engine: Engine,
    table: sa.Table,
    *,
    finished: sa.ColumnElement[bool],
    finished_at: sa.ColumnElement[object],
    retention_ms: int,
    batch: int = BATCH,
    max_batches: int = MAX_BATCHES,
) -> int:
    """Deletes what is `finished` since before retention; how many rows.

    table: with the columns coordinator and transaction_id as its key. Rows that somebody holds are left for the next
    run. Raises a database error.
    """
    deleted = 0
    coordinator = ""
    while max_batches > 0:
        with local_transaction(engine, LIMITS) as connection:
            following: str | None = connection.execute(
                sa.select(sa.func.min(table.c.coordinator)).where(table.c.coordinator > coordinator)
            ).scalar_one()
        if following is None:
            break
        coordinator, after = following, _FIRST
        old = _old(table, coordinator, finished, finished_at, retention_ms, batch)
        while max_batches > 0:
            max_batches -= 1
            with local_transaction(engine, LIMITS) as connection:
                count, after = _delete(connection, table, old, coordinator, after)
                failpoint("purge.before_commit")
            failpoint("purge.after_commit")
            deleted += count
            if count < batch:
                break
    return deleted


def _old(
    table: sa.Table,
    coordinator: str,
    finished: sa.ColumnElement[bool],
    finished_at: sa.ColumnElement[object],
    retention_ms: int,
    batch: int,
) -> sa.CTE:
    hexadecimal = sa.func.lpad(sa.func.to_hex(NOW_MS - ms(retention_ms)), 12, "0")
    oldest_kept = sa.cast(sa.func.rpad(hexadecimal, 32, "0"), sa.Uuid)
    return (
        sa.select(table.c.transaction_id)
        .where(
            table.c.coordinator == coordinator,
            table.c.transaction_id > sa.bindparam("after", type_=sa.Uuid),
            table.c.transaction_id < oldest_kept,
            finished_at < sa.func.now() - ms(retention_ms) * sa.literal_column("interval '1 millisecond'"),
            finished,
        )
        .order_by(table.c.transaction_id)
        .limit(batch)
        .with_for_update(skip_locked=True)
        .cte("old")
    )


def _delete(connection: Connection, table: sa.Table, old: sa.CTE, coordinator: str, after: UUID) -> tuple[int, UUID]:
    """One batch: how many rows, and the last id of them."""
    statement = (
        sa.delete(table)
        .where(table.c.coordinator == coordinator, table.c.transaction_id == old.c.transaction_id)
        .returning(table.c.transaction_id)
    )
    ids = connection.execute(statement, {"after": after}).scalars().all()
    return len(ids), max(ids, default=after)
