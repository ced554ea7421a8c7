"""The tables as the statements see them. Their constraints are in `migrations/`.

An account holds no facts of the real world: those live in profiles. The address to sign in with is identity's own.
Accounts from before there were profiles still have them in their `old_` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tandem.kafka.outbox import outbox_table
from tandem.runtime.migrations import Migrations

SCHEMA = "identity"

MIGRATIONS = Migrations("identity_stub", schema=SCHEMA, version_table="identity_version")

EMAIL_KEY = "users_email_key"
"""The unique index on lower(email)."""


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(name, sa.MetaData(), *columns, sa.Column("created_at", sa.DateTime(timezone=True)), schema=SCHEMA)


OLD_USER_FACTS = (
    "given_name", "middle_name", "family_name", "suffix", "full_name", "birthday", "phone", "street", "city", "region",
    "postal_code", "country",
)  # fmt: skip
OLD_BUSINESS_FACTS = (
    "legal_name", "registration_country", "registration_number", "industry", "incorporated", "street", "city", "region",
    "postal_code", "country", "website",
)  # fmt: skip
"""What identity kept before there were profiles, as it was typed: missing, malformed and double values among it."""


def _profile_columns(facts: Sequence[str]) -> list[sa.Column[Any]]:
    names = ("profile_status", "profile_reason", *(f"old_{fact}" for fact in facts))
    return [sa.Column(name, sa.Text) for name in names]


users = _table(
    "users",
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("email", sa.Text),
    *_profile_columns(OLD_USER_FACTS),
)

businesses = _table(
    "businesses", sa.Column("business_id", sa.Uuid, primary_key=True), *_profile_columns(OLD_BUSINESS_FACTS)
)

members = _table(
    "members",
    sa.Column("business_id", sa.Uuid, primary_key=True),
    sa.Column("user_id", sa.Uuid, primary_key=True),
    sa.Column("role", sa.Text, primary_key=True),
)

invitations = _table(
    "invitations",
    sa.Column("invitation_id", sa.Uuid, primary_key=True),
    sa.Column("business_id", sa.Uuid),
    sa.Column("inviter_user_id", sa.Uuid),
    sa.Column("email", sa.Text),
    sa.Column("role", sa.Text),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("accepted_by", sa.Uuid),
)

requests = _table(
    "requests",
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("content_hash", sa.LargeBinary),
    sa.Column("user_id", sa.Uuid),
    sa.Column("business_id", sa.Uuid),
    sa.Column("invitation_id", sa.Uuid),
    sa.Column("transaction_id", sa.Uuid),
)

outbox = outbox_table(SCHEMA)
