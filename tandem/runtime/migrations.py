"""Alembic, run the same way for every package: its own `migrations` folder, its own version table.

A package's `migrations/env.py` is two lines: `from tandem.runtime.migrations import run_env; run_env()`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from tandem.runtime.database import LOCK_NOT_AVAILABLE, sqlstate
from tandem.runtime.errors import ConfigurationError, DatabaseError, Reason

LOCK_TIMEOUT_MS = 3_000
"""For whoever uses the tables: while a migration waits for one of them, all who come later wait behind it (R16)."""


@dataclass(frozen=True, slots=True)
class Migrations:
    """One package's migrations.

    package: where the `migrations` folder lies ("tandem.participant").
    schema: where its tables and its version table lie; made if it isn't there.
    version_table: holds the revision; one a package, so that two packages can share a schema.
    """

    package: str
    schema: str
    version_table: str

    def _config(self, connection: Connection | None = None, output: io.StringIO | None = None) -> alembic.config.Config:
        config = alembic.config.Config(output_buffer=output)
        config.set_main_option("script_location", str(self.folder).replace("%", "%%"))
        config.attributes.update(connection=connection, migrations=self)
        return config

    @property
    def folder(self) -> Path:
        """Where the scripts lie."""
        return Path(str(resources.files(self.package))) / "migrations"

    @property
    def head(self) -> str:
        """The revision that this code knows."""
        head = ScriptDirectory(str(self.folder)).get_current_head()
        assert head is not None, f"{self.package} has no migrations"
        return head

    def revision(self, engine: Engine) -> str | None:
        """The revision of the database; None where nothing is there yet."""
        with engine.connect() as connection:
            return MigrationContext.configure(
                connection, opts={"version_table": self.version_table, "version_table_schema": self.schema}
            ).get_current_revision()

    def upgrade(self, engine: Engine, to: str = "head") -> None:
        """Brings the database up to this code's revision, in one local transaction; safe to run twice or by two.

        to: an earlier revision, for those who try how an upgrade goes. Raises DatabaseError, having changed nothing, if
        somebody uses the tables in a way that it can't go on beside.
        """
        try:
            self._upgrade(engine, to)
        except sa.exc.OperationalError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            raise DatabaseError(
                f"another session uses the tables of {self.package}: nothing was changed in them; run it again",
                reason=Reason.IN_PROGRESS,
            ) from error

    def _upgrade(self, engine: Engine, to: str) -> None:
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(self.schema, if_not_exists=True))
            # Two that migrate at once take turns; the table is this package's own, so nobody else waits.
            connection.execute(
                sa.text(
                    f"CREATE TABLE IF NOT EXISTS {self.schema}.{self.version_table}"
                    " (version_num varchar(32) NOT NULL PRIMARY KEY)"
                )
            )
            connection.execute(sa.text(f"LOCK TABLE {self.schema}.{self.version_table} IN ACCESS EXCLUSIVE MODE"))
            connection.execute(sa.text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            alembic.command.upgrade(self._config(connection), to)

    def sql(self) -> str:
        """What `upgrade` would run on an empty database, as SQL text."""
        output = io.StringIO()
        alembic.command.upgrade(self._config(output=output), "head", sql=True)
        return f"CREATE SCHEMA IF NOT EXISTS {self.schema};\n\n{output.getvalue()}"

    def check(self, engine: Engine, *, command: str) -> None:
        """Raises ConfigurationError unless the database has exactly this code's revision.

        command: what to run to bring it there.
        """
        current = self.revision(engine)
        if current == self.head:
            return
        known = {script.revision for script in ScriptDirectory(str(self.folder)).walk_revisions()}
        if current is None or current in known:
            found = "no tables" if current is None else f"revision {current}"
            raise ConfigurationError(
                f"the database has {found} of {self.package}, this code needs revision {self.head}: run `{command}`",
                reason=Reason.SCHEMA_UNKNOWN,
            )
        raise ConfigurationError(
            f"the database has revision {current} of {self.package}, which this code (revision {self.head}) does not "
            "know: deploy the code that made it, or a newer one",
            reason=Reason.SCHEMA_UNKNOWN,
        )


def run_env() -> None:
    """The body of every `env.py`."""
    migrations: Migrations = context.config.attributes["migrations"]
    connection: Connection | None = context.config.attributes["connection"]
    options: dict[str, Any] = {
        "version_table": migrations.version_table,
        "version_table_schema": migrations.schema,
        "target_metadata": None,
    }
    if connection is None:
        context.configure(
            dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **options
        )
    else:
        context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()
