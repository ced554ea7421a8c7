"""An inbox: which events were taken up, and what came of them, written in the local transaction that does the work.

An event that comes again finds its row and is not done again. A row is kept for longer than any message can come again:
retention, which must be above that of the topics, dead letters included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Engine

from tandem.runtime.database import seconds
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.purge import BATCH, LIMITS, MAX_BATCHES
from tandem.runtime.records import Columns, arrays, records

_ROWS: Columns = {"source": sa.Text(), "event_id": sa.UUID()}
_OUTCOMES: Columns = {**_ROWS, "outcome": sa.Text(), "reason": sa.Text()}


def inbox_table(schema: str) -> sa.Table:
    """The table of one service, in its schema. A migration makes it (profiles_server's f003 is an example)."""
    return sa.Table(
        "inbox",
        sa.MetaData(),
        sa.Column("source", sa.Text, primary_key=True, comment="who published the event"),
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("outcome", sa.Text, comment="what came of it"),
        sa.Column("reason", sa.Text, comment="why nothing came of it"),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Index("inbox_received_at", "received_at"),
        schema=schema,
    )


def take(connection: Connection, table: sa.Table, events: Sequence[TransactionKey]) -> set[TransactionKey]:
    """Those that nobody has taken up; they are the caller's now, if its local transaction commits.

    events: (source, event id) of each, none twice. Waits for another that is taking one up.
    """
    asked = records("asked", _ROWS)
    statement = (
        insert(table)
        .from_select(list(_ROWS), sa.select(asked).order_by(asked.c.source, asked.c.event_id))
        .on_conflict_do_nothing()
        .returning(table.c.source, table.c.event_id)
    )
    rows = connection.execute(statement, arrays("asked", _ROWS, [_row(event) for event in events]))
    return {TransactionKey(row.source, row.event_id) for row in rows}


def settle(connection: Connection, table: sa.Table, outcomes: Mapping[TransactionKey, tuple[str, str | None]]) -> None:
    """What came of those that were taken: (outcome, reason)."""
    if not outcomes:
        return
    asked = records("asked", _OUTCOMES)
    rows = [{**_row(event), "outcome": what, "reason": why} for event, (what, why) in outcomes.items()]
    connection.execute(
        sa.update(table).where(*_these(table, asked)).values(outcome=asked.c.outcome, reason=asked.c.reason),
        arrays("asked", _OUTCOMES, rows),
    )


def put_back(connection: Connection, table: sa.Table, events: Sequence[TransactionKey]) -> None:
    """Those can't be done now, and come again."""
    if events:
        asked = records("asked", _ROWS)
        connection.execute(
            sa.delete(table).where(*_these(table, asked)), arrays("asked", _ROWS, [_row(event) for event in events])
        )


class Purge:
    """`run_once()` forgets what was taken up before retention. Any number of them may run."""

    def __init__(self, engine: Engine, table: sa.Table, *, retention_ms: int) -> None:
        self._engine = engine
        old = sa.func.now() - seconds(retention_ms / 1000)
        keys = [table.c.source, table.c.event_id]
        oldest = sa.select(*keys).where(table.c.received_at < old).order_by(table.c.received_at).limit(BATCH)
        taken = oldest.with_for_update(skip_locked=True).cte("old")
        self._statement = sa.delete(table).where(*_these(table, taken))

    def run_once(self) -> int:
        """How many were forgotten. Raises only if the own database can't serve."""
        forgotten = 0
        for _ in range(MAX_BATCHES):
            with local_transaction(self._engine, LIMITS) as connection:
                count = connection.execute(self._statement).rowcount
            failpoint("purge.after_commit")
            forgotten += count
            if count < BATCH:
                break
        return forgotten


def _row(event: TransactionKey) -> dict[str, str]:
    return {"source": event.coordinator, "event_id": str(event.transaction_id)}


def _these(table: sa.Table, asked: sa.FromClause) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.source == asked.c.source, table.c.event_id == asked.c.event_id
