"""What operators did by hand: who, when, what, why. A row is written with the deed itself, or neither is."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tandem.runtime.database import ASIDE
from tandem.runtime.errors import InvalidRequest, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telling import Action

MAX_REASON = 500
NOT_SHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of a character, and ends of lines and paragraphs."""

MAX_SHOWN = 100
"""Actions that are shown of one transaction: the latest."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why: both are kept, and shown on terminals.

    Raises InvalidRequest where either is missing, too long, or has more than one line or another control character.
    """

    actor: str
    reason: str

    def __post_init__(self) -> None:
        wrong = [
            Violation(name, f"must have 1 to {MAX_REASON} characters")
            for name, text in (("actor", self.actor), ("reason", self.reason))
            if not 1 <= len(text.strip()) <= MAX_REASON
        ]
        wrong += [
            Violation(name, "must be one line without control characters")
            for name, text in (("actor", self.actor), ("reason", self.reason))
            if any(unicodedata.category(character) in NOT_SHOWN for character in text)
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
) -> datetime:
    """Writes down one deed, in the local transaction that does it; when that is, by the database's clock."""
    statement = (
        sa.insert(table)
        .values(
            actor=operator.actor,
            action=action,
            coordinator=key and key.coordinator,
            transaction_id=key and key.transaction_id,
            detail=detail,
            reason=operator.reason,
        )
        .returning(table.c.at)
    )
    at: datetime = connection.execute(statement).scalar_one()
    return at.astimezone(UTC)


def of(engine: Engine, table: sa.Table, key: TransactionKey) -> list[Action]:
    """What was done by hand about one transaction, the oldest first; MAX_SHOWN at most."""
    statement = (
        sa.select(table)
        .where(table.c.coordinator == key.coordinator, table.c.transaction_id == key.transaction_id)
        .order_by(table.c.action_id.desc())
        .limit(MAX_SHOWN)
    )
    with local_transaction(engine, ASIDE) as connection:
        rows = connection.execute(statement).all()
    return [Action(row.at.astimezone(UTC), row.actor, row.action, row.detail, row.reason) for row in reversed(rows)]
