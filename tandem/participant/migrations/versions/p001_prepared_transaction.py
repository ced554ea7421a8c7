"""The participant's tables: one row a transaction, its own name, and what operators did."""

import sqlalchemy as sa
from alembic import op

revision = "p001"
down_revision = None


def upgrade() -> None:
    """Creates twophase.prepared_transaction, twophase.participant and twophase.participant_action."""
    op.create_table(
        "prepared_transaction",
        sa.Column("coordinator", sa.Text, primary_key=True),
        sa.Column("transaction_id", sa.Uuid, primary_key=True),
        sa.Column("log_id", sa.Uuid, comment="the initiator's decision log; null where an Abort came first"),
        sa.Column("digests", sa.LargeBinary, nullable=False, comment="32 bytes a write"),
        sa.Column("staged", sa.Integer, nullable=False, comment="rows staged: Commit must publish as many"),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("confirmed", sa.Boolean, nullable=False, comment="the coordinator's own decision stands behind it"),
        sa.Column("prepared_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("resolved_at", sa.DateTime(timezone=True)),
        sa.Column("resolved_by", sa.Text),
        sa.Column("parked", sa.Text, comment="why it waits for a person"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), comment="all that the sweeper looks at"),
        sa.Column("last_error", sa.Text),
        sa.CheckConstraint("state IN ('prepared', 'committed', 'aborted')", name="prepared_transaction_state"),
        sa.CheckConstraint("state <> 'prepared' OR NOT confirmed", name="prepared_transaction_confirmed"),
        schema="twophase",
    )
    op.create_table(
        "participant",
        sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.true(), comment="at most one row"),
        sa.Column("name", sa.Text, nullable=False, comment="under which this participant votes, for ever"),
        sa.CheckConstraint("one", name="participant_one"),
        schema="twophase",
    )
    op.create_table(
        "participant_action",
        sa.Column("action_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("actor", sa.Text, nullable=False, comment="who did it"),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("coordinator", sa.Text),
        sa.Column("transaction_id", sa.Uuid),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False, comment="why, in the operator's words"),
        schema="twophase",
    )
    # A sweep costs what is due, not what is stored.
    op.create_index(
        "prepared_transaction_due",
        "prepared_transaction",
        ["next_attempt_at"],
        schema="twophase",
        postgresql_where=sa.text("NOT confirmed"),
    )


def downgrade() -> None:
    """Refused: the rows are promises."""
    raise NotImplementedError("a participant's promises can't be migrated away")
