"""What a participant holds, to look at: one transaction or a page of them. Read only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import State
from tandem.runtime import paging
from tandem.runtime.database import ASIDE
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction


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
    older_than_s: float | None = None,
    coordinator: str | None = None,
    size: int = 0,
    token: str = "",
) -> tuple[Sequence[Row[Any]], str]:
    """Rows in the order of their keys, and the next page's token.

    unconfirmed: only those that no decision stands behind yet: prepared, forced, parked.
    older_than_s: only those prepared longer ago, by the database's clock (R13).
    """
    where: list[sa.ColumnElement[bool]] = []
    if state is not None:
        where.append(t.c.state == state.value)
    if unconfirmed or state is State.PREPARED:
        where.append(~t.c.confirmed)  # true of all that are prepared, and lets the partial index find them
    if older_than_s is not None:
        where.append(paging.older_than(t.c.prepared_at, older_than_s))
    if coordinator:
        where.append(t.c.coordinator == coordinator)
    return paging.page(engine, t, where, size=size, token=token)
