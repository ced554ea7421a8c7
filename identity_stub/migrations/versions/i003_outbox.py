"""What a saga has to tell profiles, until the broker has it (tandem.kafka.outbox)."""

import sqlalchemy as sa
from alembic import op

revision = "i003"
down_revision = "i002"

SCHEMA = "identity"


def upgrade() -> None:
    """Creates the outbox."""
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False, comment="of one key, the oldest goes first and alone"),
        sa.Column("type", sa.Text, nullable=False, comment="full name of the protobuf message"),
        sa.Column("value", sa.LargeBinary, nullable=False, comment="may be personal: deleted once it is published"),
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
    """Refused: what waits in it would be lost."""
    raise NotImplementedError("the outbox can't be migrated away")
