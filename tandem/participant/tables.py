"""The participant's tables, as the statements see it. Its migrations are in `migrations/`."""

from __future__ import annotations

import sqlalchemy as sa

from tandem.runtime.actions import action_table
from tandem.runtime.migrations import Migrations

SCHEMA = "twophase"

MIGRATIONS = Migrations("tandem.participant", schema=SCHEMA, version_table="participant_version")

_metadata = sa.MetaData()

prepared_transaction = sa.Table(
    "prepared_transaction",
    _metadata,
    sa.Column("coordinator", sa.Text, primary_key=True),
    sa.Column("transaction_id", sa.Uuid, primary_key=True),
    sa.Column("log_id", sa.Uuid),
    sa.Column("digests", sa.LargeBinary),
    sa.Column("staged", sa.Integer),
    sa.Column("state", sa.Text),
    sa.Column("confirmed", sa.Boolean),
    sa.Column("prepared_at", sa.DateTime(timezone=True)),
    sa.Column("resolved_at", sa.DateTime(timezone=True)),
    sa.Column("resolved_by", sa.Text),
    sa.Column("parked", sa.Text),
    sa.Column("attempts", sa.Integer),
    sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
    sa.Column("last_error", sa.Text),
    schema=SCHEMA,
)

participant = sa.Table(
    "participant",
    _metadata,
    sa.Column("one", sa.Boolean, primary_key=True),
    sa.Column("name", sa.Text),
    schema=SCHEMA,
)

participant_action = action_table("participant_action", SCHEMA)
