"""The decision log's tables, as the statements see them. Their migrations are in `migrations/`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from tandem.runtime.actions import action_table
from tandem.runtime.migrations import Migrations

SCHEMA = "twophase"

MIGRATIONS = Migrations("tandem.coordinator", schema=SCHEMA, version_table="coordinator_version")

_metadata = sa.MetaData()

decision = sa.Table(
    "decision",
    _metadata,
    sa.Column("coordinator", sa.Text, primary_key=True),
    sa.Column("transaction_id", sa.Uuid, primary_key=True),
    sa.Column("outcome", sa.Text),
    sa.Column("participants", JSONB),
    sa.Column("undelivered", ARRAY(sa.Text)),
    sa.Column("parked", JSONB),
    sa.Column("decided_at", sa.DateTime(timezone=True)),
    sa.Column("attempts", sa.Integer),
    sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
    sa.Column("last_error", sa.Text),
    schema=SCHEMA,
)

log = sa.Table(
    "log",
    _metadata,
    sa.Column("log_id", sa.Uuid, primary_key=True),
    sa.Column("current", sa.Boolean),
    sa.Column("since", sa.DateTime(timezone=True)),
    schema=SCHEMA,
)

coordinator_action = action_table("coordinator_action", SCHEMA)


def grants(role: str) -> list[str]:
    """The SQL that gives a runtime role what it needs and no more: it may not update an outcome (R2)."""
    name = '"' + role.replace('"', '""') + '"'
    return [
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {name}",
        f"GRANT SELECT, INSERT, DELETE ON {SCHEMA}.decision TO {name}",
        f"GRANT UPDATE (undelivered, parked, attempts, next_attempt_at, last_error) ON {SCHEMA}.decision TO {name}",
        f"GRANT SELECT, INSERT ON {SCHEMA}.coordinator_action TO {name}",
        f"GRANT SELECT ON {SCHEMA}.log, {SCHEMA}.{MIGRATIONS.version_table} TO {name}",
    ]
