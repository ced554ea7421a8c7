"""Whether an account has its profile, and the facts of accounts from before there were profiles."""

import sqlalchemy as sa
from alembic import op

revision = "i002"
down_revision = "i001"

SCHEMA = "identity"
OLD = {
    "users": (
        "given_name", "middle_name", "family_name", "suffix", "full_name", "birthday", "phone", "street", "city",
        "region", "postal_code", "country",
    ),
    "businesses": (
        "legal_name", "registration_country", "registration_number", "industry", "incorporated", "street", "city",
        "region", "postal_code", "country", "website",
    ),
}  # fmt: skip


def upgrade() -> None:
    """Adds columns with constant defaults, which rewrites no table."""
    for table, facts in OLD.items():
        key = "user_id" if table == "users" else "business_id"
        status = sa.Column("profile_status", sa.Text, nullable=False, server_default="active")
        op.add_column(table, status, schema=SCHEMA)
        op.add_column(
            table,
            sa.Column("profile_reason", sa.Text, comment="why the status is what it is: a reason, never a value"),
            schema=SCHEMA,
        )
        for fact in facts:
            op.add_column(
                table,
                sa.Column(f"old_{fact}", sa.Text, comment="from before there were profiles, as it was typed"),
                schema=SCHEMA,
            )
        op.create_check_constraint(
            f"{table}_profile_status",
            table,
            "profile_status IN ('absent', 'pending', 'active', 'rejected')",
            schema=SCHEMA,
        )
        # Those that somebody has to see to, and who comes next; all others are not in it.
        op.create_index(
            f"{table}_without_profile",
            table,
            ["profile_status", key],
            schema=SCHEMA,
            postgresql_where=sa.text("profile_status <> 'active'"),
        )


def downgrade() -> None:
    """Refused: the accounts are here only."""
    raise NotImplementedError("accounts can't be migrated away")
