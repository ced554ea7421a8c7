"""Events that were taken up, and what has to be told of them (tandem.kafka.inbox, tandem.kafka.outbox)."""

import sqlalchemy as sa
from alembic import op

revision = "f003"
down_revision = "f002"

SCHEMA = "profiles"


def upgrade() -> None:
    """Creates the inbox and the outbox."""
    op.create_table(
        "inbox",
        sa.Column("source", sa.Text, nullable=False, comment="who published the event"),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("outcome", sa.Text, comment="what came of it"),
        sa.Column("reason", sa.Text, comment="why nothing came of it"),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("source", "event_id", name="inbox_pkey"),
        sa.CheckConstraint("outcome IN ('created', 'rejected')", name="inbox_outcome"),
        schema=SCHEMA,
        comment="written in the local transaction that does the work: an event is taken up once",
    )
    op.create_index("inbox_received_at", "inbox", ["received_at"], schema=SCHEMA)
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False, comment="of one key, the oldest goes first and alone"),
        sa.Column("type", sa.Text, nullable=False, comment="full name of the protobuf message"),
        sa.Column("value", sa.LargeBinary, nullable=False, comment="deleted once it is published"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("last_error", sa.Text),
        schema=SCHEMA,
    )
    op.create_index("outbox_due", "outbox", ["next_attempt_at"], schema=SCHEMA)
    op.create_index("outbox_order", "outbox", ["topic", "key", "seq"], schema=SCHEMA)
    # Each row lives for a moment: without this its dead ones would outnumber the others by far.
    op.execute(
        f"ALTER TABLE {SCHEMA}.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)"
    )


def downgrade() -> None:
    """Refused: what was taken up would be taken up again."""
    raise NotImplementedError("the inbox can't be migrated away")
