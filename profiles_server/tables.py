"""The tables as the statements see them. Their constraints are in `migrations/`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from tandem.kafka.inbox import inbox_table
from tandem.kafka.outbox import outbox_table
from tandem.runtime.migrations import Migrations

SCHEMA = "profiles"

MIGRATIONS = Migrations("profiles_server", schema=SCHEMA, version_table="profiles_version")

PREPARED = "prepared"
ACTIVE = "active"

REGISTRATION_KEY = "business_registration_key"
"""The constraint that makes a registration number unique in its country."""


def _table(name: str, *columns: sa.Column[object]) -> sa.Table:
    return sa.Table(
        name,
        sa.MetaData(),
        *columns,
        sa.Column("coordinator", sa.Text),
        sa.Column("transaction_id", sa.Uuid),
        sa.Column("state", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True)),
        schema=SCHEMA,
    )


person = _table(
    "person",
    sa.Column("person_id", sa.Uuid, primary_key=True),
    sa.Column("given_name", sa.Text),
    sa.Column("middle_name", sa.Text),
    sa.Column("family_name", sa.Text),
    sa.Column("suffix", sa.Text),
    sa.Column("display_name", sa.Text),
    sa.Column("date_of_birth", sa.Date),
    sa.Column("email_addresses", JSONB),
    sa.Column("phone_numbers", JSONB),
    sa.Column("postal_addresses", JSONB),
    sa.Column("nationalities", JSONB),
    sa.Column("tax_identifiers", JSONB),
    sa.Column("version", sa.BigInteger),
)

business = _table(
    "business",
    sa.Column("business_id", sa.Uuid, primary_key=True),
    sa.Column("legal_name", sa.Text),
    sa.Column("trade_names", JSONB),
    sa.Column("entity_type", sa.Text),
    sa.Column("registration_country", sa.Text),
    sa.Column("registration_number", sa.Text),
    sa.Column("incorporation_date", sa.Text),
    sa.Column("industry_scheme", sa.Text),
    sa.Column("industry_code", sa.Text),
    sa.Column("industry_description", sa.Text),
    sa.Column("addresses", JSONB),
    sa.Column("website", sa.Text),
    sa.Column("version", sa.BigInteger),
)

business_person = _table(
    "business_person",
    sa.Column("business_id", sa.Uuid, primary_key=True),
    sa.Column("person_id", sa.Uuid, primary_key=True),
    sa.Column("role", sa.Text, primary_key=True),
)

audit_event = sa.Table(
    "audit_event",
    sa.MetaData(),
    sa.Column("event_id", sa.BigInteger, primary_key=True),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("actor", sa.Text),
    sa.Column("action", sa.Text),
    sa.Column("entity_kind", sa.Text),
    sa.Column("entity_id", sa.Text),
    sa.Column("version", sa.BigInteger),
    sa.Column("coordinator", sa.Text),
    sa.Column("transaction_id", sa.Uuid),
    schema=SCHEMA,
)

inbox = inbox_table(SCHEMA)
outbox = outbox_table(SCHEMA)
