"""The command line of the profiles process."""

from __future__ import annotations

from typing import Annotated

import typer

from profiles_server import app
from profiles_server.config import Settings
from tandem.kafka.cli import dead_letters_cli
from tandem.participant.cli import transactions_cli
from tandem.runtime.cli import plainly, process_cli
from tandem.runtime.config import load

cli = process_cli(
    "profiles_server",
    "Persons and businesses: the participant that stages, publishes and serves them.",
    Settings,
    lambda: app.serve(load(Settings)),
)
cli.add_typer(transactions_cli("profiles_server", lambda: app.opened(load(Settings))), name="transactions")
cli.add_typer(dead_letters_cli("profiles_server", lambda: app.graveyard(load(Settings))), name="dead-letters")


@cli.command(help="Bring the database to this code's revisions. Can be run again, by several at once.")
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print what would be run on an empty database instead.")] = False,
) -> None:
    """Runs or prints the migrations."""
    with plainly("profiles_server"):
        if sql:
            print(app.migrations_sql())
        else:
            for package, revision in app.migrate(load(Settings)):
                print(f"{package} is at revision {revision}")


@cli.command(help="Sweep once, now: ask for the decisions that are due and apply them.")
def sweep() -> None:
    """Prints how many transactions it ended."""
    with plainly("profiles_server"):
        ended = app.sweep(load(Settings))
        print(f"ended {ended} transaction{'' if ended == 1 else 's'}")


@cli.command(help="Purge once, now: forget what has been finished for longer than retention.")
def purge() -> None:
    """Prints how many transactions it forgot."""
    with plainly("profiles_server"):
        forgot = app.purge(load(Settings))
        print(f"forgot {forgot} transaction{'' if forgot == 1 else 's'}")
