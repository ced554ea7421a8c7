"""An outbox: what is to be published lies in a table first, written in the local transaction that it is the news of.

`relay.py` publishes it, in the order of each key, and deletes it then: rows may hold personal data, and nobody needs
them twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tandem.kafka.messages import TYPE, Outgoing


def outbox_table(schema: str) -> sa.Table:
    """The table of one service, in its schema. A migration makes it (identity_stub's i003 is an example)."""
    now = sa.func.now()
    return sa.Table(
        "outbox",
        sa.MetaData(),
        sa.Column("seq", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False, comment="of one key, the oldest goes first and alone"),
        sa.Column("type", sa.Text, nullable=False, comment="full name of the protobuf message"),
        sa.Column("value", sa.LargeBinary, nullable=False, comment="may be personal: deleted once it is published"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("last_error", sa.Text),
        sa.Index("outbox_due", "next_attempt_at"),
        sa.Index("outbox_order", "topic", "key", "seq"),
        schema=schema,
    )


def add(connection: Connection, table: sa.Table, messages: Sequence[Outgoing]) -> None:
    """Writes messages down, to be published once the caller's local transaction has committed."""
    if messages:
        connection.execute(
            sa.insert(table),
            [{"topic": m.topic, "key": m.key, "type": m.headers[TYPE], "value": m.value} for m in messages],
        )
