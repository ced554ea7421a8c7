"""The command line of the coordinator process."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated

import typer

from coordinator import app
from coordinator.config import Settings
from tandem.coordinator import operating
from tandem.coordinator.cli import transactions_cli
from tandem.runtime.cli import Actor, Why, operator, plainly, process_cli
from tandem.runtime.config import load
from tandem.runtime.errors import ConfigurationError

cli = process_cli(
    "coordinator",
    "The coordinator service: answers for an initiator's decisions, and delivers those that were not acknowledged.",
    Settings,
    lambda: app.serve(load(Settings)),
)
log_id = typer.Typer(help="The decision log's own identity.")
cli.add_typer(log_id, name="log-id")
cli.add_typer(
    transactions_cli("coordinator", lambda: app.opened(load(Settings)), lambda: app.sources(load(Settings))),
    name="transactions",
)


@cli.command(help="Bring the decision log to this code's revision. Can be run again, by several at once.")
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print what would be run on an empty database instead.")] = False,
    runtime_role: Annotated[
        str | None,
        typer.Option(help="A database role that gets what a running initiator needs, and may not update an outcome."),
    ] = None,
) -> None:
    """Runs or prints the migrations."""
    with plainly("coordinator"):
        if sql:
            print(app.migrations_sql(runtime_role=runtime_role))
        else:
            for package, revision in app.migrate(load(Settings), runtime_role=runtime_role):
                print(f"{package} is at revision {revision}")


@cli.command(help="Deliver once, now: bring committed decisions to the participants that are due to be asked.")
def recover() -> None:
    """Prints how many deliveries it made."""
    with plainly("coordinator"):
        made = app.recover(load(Settings))
        print(f"made {made} deliver{'y' if made == 1 else 'ies'}")


@cli.command(help="Purge once, now: forget what has been finished for longer than retention.")
def purge() -> None:
    """Prints how many transactions it forgot."""
    with plainly("coordinator"):
        forgot = app.purge(load(Settings))
        print(f"forgot {forgot} transaction{'' if forgot == 1 else 's'}")


@log_id.command(help="Show the log's id; former ones follow, and are still answered for.")
def show() -> None:
    """Prints a line an id."""
    with plainly("coordinator"):
        for row in app.log_ids(load(Settings)):
            since = row.since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            print(f"{row.log_id} {'current, since' if row.current else 'former, from'} {since}")


@log_id.command(help="Renew the log's id after a restore from backup: only once the old primary is surely gone.")
def renew(
    reason: Why,
    old_primary_is_gone: Annotated[
        bool, typer.Option("--old-primary-is-gone", help="You have made sure of it: it can't take a decision any more.")
    ] = False,
    actor: Actor = "",
) -> None:
    """Prints the new id. What was prepared under the former one can no longer commit."""
    with plainly("coordinator"):
        if not old_primary_is_gone:
            raise ConfigurationError(
                "two primaries with one log would decide twice: make sure that the old one is gone, then add "
                "--old-primary-is-gone"
            )
        with app.opened(load(Settings)) as log:
            print(f"{operating.renew_log_id(log.engine, operator(actor, reason))} is the log's id now")
