"""Users, businesses, who is a member of which, invitations, and the requests that made them."""

import sqlalchemy as sa
from alembic import op

revision = "i001"
down_revision = None

SCHEMA = "identity"
ROLES = "'owner', 'director', 'officer', 'shareholder', 'beneficial_owner', 'secretary', 'authorised_signatory'"


def upgrade() -> None:
    """Creates the schema's tables."""
    op.create_table(
        "users",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("email", sa.Text, nullable=False, comment="to sign in with; the only personal data here"),
        _created_at(),
        sa.PrimaryKeyConstraint("user_id", name="users_pkey"),
        schema=SCHEMA,
    )
    op.create_index("users_email_key", "users", [sa.text("lower(email)")], unique=True, schema=SCHEMA)
    op.create_table(
        "businesses",
        sa.Column("business_id", sa.Uuid, nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("business_id", name="businesses_pkey"),
        schema=SCHEMA,
    )
    op.create_table(
        "members",
        _to("businesses.business_id", nullable=False),
        _to("users.user_id", nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("business_id", "user_id", "role", name="members_pkey"),
        sa.CheckConstraint(f"role IN ({ROLES})", name="members_role"),
        schema=SCHEMA,
    )
    op.create_table(
        "invitations",
        sa.Column("invitation_id", sa.Uuid, nullable=False),
        _to("businesses.business_id", nullable=False),
        _to("users.user_id", name="inviter_user_id", nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("now() + interval '14 days'"),
        ),
        _to("users.user_id", name="accepted_by", nullable=True),
        _created_at(),
        sa.PrimaryKeyConstraint("invitation_id", name="invitations_pkey"),
        sa.CheckConstraint(f"role IN ({ROLES})", name="invitations_role"),
        schema=SCHEMA,
    )
    op.create_table(
        "requests",
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False, comment="the client's; one with a blank is ours"),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("content_hash", sa.LargeBinary, nullable=False, comment="SHA-256 of the request without its id"),
        _to("users.user_id", nullable=True),
        _to("businesses.business_id", nullable=True),
        _to("invitations.invitation_id", nullable=True),
        sa.Column("transaction_id", sa.Uuid, comment="null where no other service took part"),
        _created_at(),
        sa.PrimaryKeyConstraint("caller", "request_id", name="requests_pkey"),
        sa.CheckConstraint("octet_length(content_hash) = 32", name="requests_content_hash"),
        schema=SCHEMA,
        comment="written in the same local transaction as what it made: a row here means that it succeeded",
    )
    # For explain, which starts from any of them.
    op.create_index("requests_user", "requests", ["user_id"], schema=SCHEMA)
    op.create_index("requests_transaction", "requests", ["transaction_id"], schema=SCHEMA)


def downgrade() -> None:
    """Refused: the accounts are here only."""
    raise NotImplementedError("accounts can't be migrated away")


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def _to(target: str, *, nullable: bool, name: str | None = None) -> sa.Column[object]:
    """A column that names a row of another table."""
    return sa.Column(name or target.split(".")[1], sa.Uuid, sa.ForeignKey(f"{SCHEMA}.{target}"), nullable=nullable)
