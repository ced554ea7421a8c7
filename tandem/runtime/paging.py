"""Pages of transactions in the order of their keys: how a token says where the last page ended."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from tandem.runtime.database import ASIDE, NOW_MS, ms, seconds
from tandem.runtime.errors import InvalidRequest, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction

DEFAULT_SIZE = 100
LONGEST_AGE_S = 1_000 * 366 * 86_400.0
"""A longer one means the same, and PostgreSQL's calendar has a beginning."""

_COORDINATOR = re.compile(r"[a-z][a-z0-9-]{0,62}")


def page(
    engine: Engine, table: sa.Table, where: Sequence[sa.ColumnElement[bool]], *, size: int, token: str
) -> tuple[Sequence[Row[Any]], str]:
    """Up to `size` rows (0: DEFAULT_SIZE) in the order of (coordinator, transaction_id), and the next page's token.

    The token is "" where this was the last page. Raises InvalidRequest for a token that isn't ours.
    """
    size = size or DEFAULT_SIZE
    key = (table.c.coordinator, table.c.transaction_id)
    statement = sa.select(table).where(*where).order_by(*key).limit(size + 1)
    if token:
        after = _read(token)
        statement = statement.where(
            sa.tuple_(*key) > sa.tuple_(sa.literal(after.coordinator), sa.literal(after.transaction_id))
        )
    with local_transaction(engine, ASIDE) as connection:
        rows = connection.execute(statement).all()
    if len(rows) <= size:
        return rows, ""
    last = rows[size - 1]
    return rows[:size], _write(TransactionKey(last.coordinator, last.transaction_id))


def clock(engine: Engine) -> datetime:
    """The database's now: what every age is counted from (R13)."""
    with local_transaction(engine, ASIDE) as connection:
        now: datetime = connection.execute(sa.select(sa.func.now())).scalar_one()
        return now.astimezone(UTC)


def older_than(column: sa.ColumnElement[datetime], age_s: float) -> sa.ColumnElement[bool]:
    """Whether the column's time lies more than so many seconds back, by the database's clock (R13)."""
    return column < sa.func.now() - seconds(min(age_s, LONGEST_AGE_S))


def begun_within(column: sa.ColumnElement[UUID], age_s: float) -> sa.ColumnElement[bool]:
    """Whether the time in a UUIDv7 lies at most so many seconds back, by the database's clock."""
    since_ms = sa.func.greatest(NOW_MS - ms(int(age_s * 1000)), sa.literal_column("0"))
    first = sa.func.lpad(sa.func.to_hex(since_ms), 12, "0").concat("0" * 20)
    return column >= sa.cast(first, sa.Uuid)


def _write(last: TransactionKey) -> str:
    return base64.urlsafe_b64encode(str(last).encode()).decode()


def _read(token: str) -> TransactionKey:
    try:
        coordinator, _, transaction_id = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition("/")
        if not _COORDINATOR.fullmatch(coordinator):
            raise ValueError("not a coordinator's name")
        return TransactionKey(coordinator, UUID(transaction_id))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest([Violation("page_token", "is not a token of this service")]) from error
