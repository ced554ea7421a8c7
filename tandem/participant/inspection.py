"""What a participant holds, to look at: one transaction, a page of them, what is told of one. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import State
from tandem.runtime import paging
from tandem.runtime.database import ASIDE
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telling import Branch


def get(engine: Engine, key: TransactionKey) -> Row[Any] | None:
    """The row of one transaction."""
    with local_transaction(engine, ASIDE) as connection:
        return connection.execute(
            sa.select(t).where(t.c.coordinator == key.coordinator, t.c.transaction_id == key.transaction_id)
        ).one_or_none()


def page(
    engine: Engine,
    *,
    state: State | None = None,
    unconfirmed: bool = False,
    parked: bool = False,
    older_than_s: float | None = None,
    begun_within_s: float | None = None,
    coordinator: str | None = None,
    size: int = 0,
    token: str = "",
) -> tuple[Sequence[Row[Any]], str]:
    """Rows in the order of their keys, and the next page's token.

    unconfirmed: only those that no decision stands behind yet: prepared, forced, parked.
    parked: only those that wait for a person.
    older_than_s: only those prepared longer ago, by the database's clock (R13).
    begun_within_s: only those begun at most so long ago, by the time in their id: a range of the key.
    """
    where: list[sa.ColumnElement[bool]] = []
    if state is not None:
        where.append(t.c.state == state.value)
    if unconfirmed or parked or state is State.PREPARED:
        where.append(~t.c.confirmed)  # true of all that are prepared, and lets the partial index find them
    if parked:
        where.append(t.c.parked.is_not(None))
    if older_than_s is not None:
        where.append(paging.older_than(t.c.prepared_at, older_than_s))
    if begun_within_s is not None:
        where.append(paging.begun_within(t.c.transaction_id, begun_within_s))
    if coordinator:
        where.append(t.c.coordinator == coordinator)
    return paging.page(engine, t, where, size=size, token=token)


def branch(row: Row[Any], participant: str) -> Branch:
    """A row as what is told of it."""
    return Branch(
        participant,
        state=row.state,
        tombstone=not row.digests,
        rows=row.staged,
        confirmed=row.confirmed,
        prepared_at=_utc(row.prepared_at),
        resolved_at=_utc(row.resolved_at),
        resolved_by=row.resolved_by or "",
        asks_at=_utc(row.next_attempt_at),
        parked_there=row.parked or "",
        asked=row.attempts,
        last_answer=row.last_error or "",
    )


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else at.astimezone(UTC)
