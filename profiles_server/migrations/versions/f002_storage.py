"""How the rows lie: each is staged, published once, and updated now and then."""

from alembic import op

revision = "f002"
down_revision = "f001"

STAGED = ("person", "business", "business_person")
UPDATED = ("person", "business")


def upgrade() -> None:
    """Vacuum by so many rows; room on the page for an update; no statistics that would mislead the planner."""
    for table in STAGED:
        op.execute(
            f"ALTER TABLE profiles.{table} SET (autovacuum_vacuum_scale_factor = 0.02,"
            " autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_insert_scale_factor = 0.02,"
            " autovacuum_vacuum_insert_threshold = 10000, autovacuum_analyze_scale_factor = 0.02,"
            " autovacuum_analyze_threshold = 10000)"
        )
        # A sample says that no row is prepared, and a plan made for none reads all that are for each that is asked for.
        op.execute(f"ALTER TABLE profiles.{table} ALTER COLUMN state SET STATISTICS 0")
        # What was sampled before goes, too; only PostgreSQL 18 can be asked to.
        op.execute(
            f"""DO $$ BEGIN
                IF to_regprocedure('pg_clear_attribute_stats(text, text, text, boolean)') IS NOT NULL THEN
                    PERFORM pg_clear_attribute_stats('profiles', '{table}', 'state', false);
                ELSE
                    ALTER TABLE profiles.{table} ALTER COLUMN state TYPE text;
                END IF;
            END $$"""
        )
    for table in UPDATED:
        # An update changes no indexed column: with room on its page it is HOT, and touches no index.
        op.execute(f"ALTER TABLE profiles.{table} SET (fillfactor = 90)")


def downgrade() -> None:
    """Refused: this is the only place where these facts are."""
    raise NotImplementedError("the one home of these facts can't be migrated away")
