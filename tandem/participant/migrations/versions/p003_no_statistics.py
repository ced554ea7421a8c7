"""No statistics that would mislead the planner."""

from alembic import op

revision = "p003"
down_revision = "p002"


def upgrade() -> None:
    """A sample says that no row is prepared, and a plan made for none compares each row in doubt with each key."""
    op.execute("ALTER TABLE twophase.prepared_transaction ALTER COLUMN state SET STATISTICS 0")
    # What was sampled before goes, too; only PostgreSQL 18 can be asked to.
    op.execute(
        """DO $$ BEGIN
            IF to_regprocedure('pg_clear_attribute_stats(text, text, text, boolean)') IS NOT NULL THEN
                PERFORM pg_clear_attribute_stats('twophase', 'prepared_transaction', 'state', false);
            ELSE
                ALTER TABLE twophase.prepared_transaction ALTER COLUMN state TYPE text;
            END IF;
        END $$"""
    )


def downgrade() -> None:
    """Refused: the rows are promises."""
    raise NotImplementedError("a participant's promises can't be migrated away")
