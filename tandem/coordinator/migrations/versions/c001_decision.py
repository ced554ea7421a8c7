"""The decision log: one row a decision, and the log's own identity."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c001"
down_revision = None


def upgrade() -> None:
    """Creates twophase.decision and twophase.log, with the log's first id (R17)."""
    op.create_table(
        "decision",
        sa.Column("coordinator", sa.Text, primary_key=True),
        sa.Column("transaction_id", sa.Uuid, primary_key=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("participants", postgresql.JSONB, nullable=False, comment="{name: digest in hex}"),
        sa.Column("undelivered", postgresql.ARRAY(sa.Text), nullable=False, comment="who has not acknowledged"),
        sa.Column("parked", postgresql.JSONB, nullable=False, comment="{name: reason}: waits for a person (R5)"),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
        sa.Column("last_error", sa.Text),
        # The INSERT itself says why it must not hold: PostgreSQL checks these in the order of their names.
        sa.CheckConstraint("outcome <> 'ahead'", name="decision_check_ahead"),
        sa.CheckConstraint("outcome <> 'ended'", name="decision_check_ended"),
        sa.CheckConstraint("outcome <> 'expired'", name="decision_check_expired"),
        sa.CheckConstraint("outcome <> 'not_durable'", name="decision_check_not_durable"),
        sa.CheckConstraint("outcome <> 'wrong_log'", name="decision_check_wrong_log"),
        sa.CheckConstraint("outcome IN ('committed', 'aborted')", name="decision_valid_outcome"),
        # What another language's driver has written, too, is what Resolve can read: names, and digests in hex.
        sa.CheckConstraint(
            "jsonb_typeof(participants) = 'object' AND NOT jsonb_path_exists(participants, "
            '\'$.* ? (@.type() != "string" || !(@ like_regex "^[0-9a-f]{64}$"))\')',
            name="decision_valid_participants",
        ),
        schema="twophase",
    )
    op.create_index(
        "decision_undelivered",
        "decision",
        ["next_attempt_at"],
        schema="twophase",
        postgresql_where=sa.text("undelivered <> '{}'"),
    )
    op.create_index(
        "decision_parked",
        "decision",
        ["coordinator", "transaction_id"],
        schema="twophase",
        postgresql_where=sa.text("parked <> '{}'"),
    )
    # R2 for every role, the owner included. It fires only where these columns are named, so marks cost nothing.
    op.execute(
        """
        CREATE FUNCTION twophase.refuse_rewrite() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'a decision is written once' USING ERRCODE = 'restrict_violation'; END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER decision_write_once
        BEFORE UPDATE OF coordinator, transaction_id, outcome, participants, decided_at
        ON twophase.decision FOR EACH ROW EXECUTE FUNCTION twophase.refuse_rewrite()
        """
    )
    op.create_table(
        "log",
        sa.Column("log_id", sa.Uuid, primary_key=True),
        sa.Column("current", sa.Boolean, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        schema="twophase",
    )
    op.create_index(
        "log_one_current", "log", ["current"], unique=True, schema="twophase", postgresql_where=sa.text("current")
    )
    op.create_table(
        "coordinator_action",
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
    op.execute("INSERT INTO twophase.log (log_id, current) VALUES (gen_random_uuid(), true)")


def downgrade() -> None:
    """Refused: decisions are what everything else rests on."""
    raise NotImplementedError("decisions can't be migrated away")
