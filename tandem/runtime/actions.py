"""What operators did by hand: who, when, what, why. A row is written with the deed itself, or neither is."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tandem.runtime.errors import InvalidRequest, Violation
from tandem.runtime.identifiers import TransactionKey

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why: both are kept. Raises InvalidRequest where either is missing or too long."""

    actor: str
    reason: str

    def __post_init__(self) -> None:
        wrong = [
            Violation(name, f"must have 1 to {MAX_REASON} characters")
            for name, text in (("actor", self.actor), ("reason", self.reason))
            if not 1 <= len(text.strip()) <= MAX_REASON
        ]
        if wrong:
            raise InvalidRequest(wrong)


def action_table(name: str, schema: str) -> sa.Table:
    """The table of one half, as its statements see it."""
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("action_id", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("actor", sa.Text),
        sa.Column("action", sa.Text),
        sa.Column("coordinator", sa.Text),
        sa.Column("transaction_id", sa.Uuid),
        sa.Column("detail", sa.Text),
        sa.Column("reason", sa.Text),
        schema=schema,
    )


def record(
    connection: Connection, table: sa.Table, operator: Operator, action: str, key: TransactionKey | None, detail: str
) -> None:
    """Writes down one deed, in the local transaction that does it."""
    connection.execute(
        sa.insert(table).values(
            actor=operator.actor,
            action=action,
            coordinator=key and key.coordinator,
            transaction_id=key and key.transaction_id,
            detail=detail,
            reason=operator.reason,
        )
    )
