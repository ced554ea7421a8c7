"""Persons, businesses, who is what to a business, and the audit of all changes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "f001"
down_revision = None

SCHEMA = "profiles"


def upgrade() -> None:
    """Creates the schema's tables."""
    op.create_table(
        "person",
        sa.Column("person_id", sa.Uuid, primary_key=True),
        sa.Column("given_name", sa.Text),
        sa.Column("middle_name", sa.Text),
        sa.Column("family_name", sa.Text),
        sa.Column("suffix", sa.Text),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("date_of_birth", sa.Date),
        _many("email_addresses"),
        _many("phone_numbers"),
        _many("postal_addresses"),
        _many("nationalities"),
        _many("tax_identifiers"),
        *_transactional("person", versioned=True),
        schema=SCHEMA,
    )
    op.create_table(
        "business",
        sa.Column("business_id", sa.Uuid, primary_key=True),
        sa.Column("legal_name", sa.Text, nullable=False),
        _many("trade_names"),
        sa.Column("entity_type", sa.Text, nullable=False),
        sa.Column("registration_country", sa.Text),
        sa.Column("registration_number", sa.Text),
        sa.Column("incorporation_date", sa.Text, comment="YYYY, YYYY-MM or YYYY-MM-DD: as much as is known"),
        sa.Column("industry_scheme", sa.Text, comment="null: no industry"),
        sa.Column("industry_code", sa.Text),
        sa.Column("industry_description", sa.Text),
        _many("addresses"),
        sa.Column("website", sa.Text),
        *_transactional("business", versioned=True),
        sa.CheckConstraint(
            "(registration_country IS NULL) = (registration_number IS NULL)", name="business_registration_whole"
        ),
        sa.CheckConstraint(
            "incorporation_date ~ '^[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?$'", name="business_incorporation_date"
        ),
        # Prepared rows count as well: the number is reserved by the vote (R6).
        sa.UniqueConstraint("registration_country", "registration_number", name="business_registration_key"),
        schema=SCHEMA,
    )
    op.create_table(
        "business_person",
        sa.Column("business_id", sa.Uuid, sa.ForeignKey(f"{SCHEMA}.business.business_id"), primary_key=True),
        sa.Column("person_id", sa.Uuid, primary_key=True, comment="a name, not checked"),
        sa.Column("role", sa.Text, primary_key=True),
        *_transactional("business_person", versioned=False),
        schema=SCHEMA,
    )
    for table in ("person", "business", "business_person"):
        # Commit and Abort find their rows by it, whatever else is stored.
        op.create_index(
            f"{table}_prepared",
            table,
            ["coordinator", "transaction_id"],
            schema=SCHEMA,
            postgresql_where=sa.text("state = 'prepared'"),
        )
    op.create_table(
        "audit_event",
        sa.Column("event_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("actor", sa.Text, nullable=False, comment="a caller, or coordinator:<name> for a transaction"),
        sa.Column("action", sa.Text, nullable=False, comment="created or updated"),
        sa.Column("entity_kind", sa.Text, nullable=False, comment="person, business or business_person"),
        sa.Column("entity_id", sa.Text, nullable=False, comment="a role's: business/person/role"),
        sa.Column("version", sa.BigInteger, comment="the one that the action made; a role has none"),
        sa.Column("coordinator", sa.Text, comment="with transaction_id: null where it was no transaction"),
        sa.Column("transaction_id", sa.Uuid),
        schema=SCHEMA,
        comment="append-only; no personal data",
    )
    op.execute(
        f"""CREATE FUNCTION {SCHEMA}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'audit_event is append-only'; END $$"""
    )
    op.execute(
        f"""CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {SCHEMA}.audit_event
        FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse_change()"""
    )


def downgrade() -> None:
    """Refused: this is the only place where these facts are."""
    raise NotImplementedError("the one home of these facts can't be migrated away")


def _many(name: str) -> sa.Column[object]:
    """A repeated field: an array, empty where there is nothing."""
    return sa.Column(name, JSONB, nullable=False, server_default="[]")


def _transactional(table: str, *, versioned: bool) -> list[sa.schema.SchemaItem]:
    """What makes a row one that a transaction stages and publishes."""
    items: list[sa.schema.SchemaItem] = [
        sa.Column("coordinator", sa.Text, nullable=False, comment="with transaction_id: who created it"),
        sa.Column("transaction_id", sa.Uuid, nullable=False),
        sa.Column("state", sa.Text, nullable=False, comment="prepared: staged and invisible"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("state IN ('prepared', 'active')", name=f"{table}_state"),
    ]
    if versioned:
        items.insert(3, sa.Column("version", sa.BigInteger, nullable=False, server_default="1"))
    return items
