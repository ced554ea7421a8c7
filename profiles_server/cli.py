"""The command line of the profiles process."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from profiles_server import app, deleting
from profiles_server.config import Settings
from tandem.kafka.cli import dead_letters_cli
from tandem.participant.cli import transactions_cli
from tandem.runtime.cli import Actor, Why, operator, plainly, process_cli
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


@cli.command("delete-extra", help="Delete what a reconciliation calls extra. For good: look at the list before.")
def delete_extra(
    listed: Annotated[typer.FileText, typer.Argument(metavar="FILE", help="What reconcile has printed; - reads it.")],
    coordinator: Annotated[str, typer.Option(help="Whose: only what its transactions have made.")],
    reason: Why,
    actor: Actor = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it all, and take it back.")] = False,
) -> None:
    """Prints what became of each, and how many."""
    with plainly("profiles_server"):
        by = operator(actor, reason)
        extras = list(deleting.read(listed))
        done = Counter[str]()
        with app.opened(load(Settings)) as (participant, _):
            for extra in extras:
                there = deleting.delete(
                    participant.engine, extra, coordinator=coordinator, operator=by, dry_run=dry_run
                )
                word = ("would be deleted" if dry_run else "deleted") if there else "not there"
                done[word] += 1
                print(f"{extra}\t{word}")
        print(", ".join(f"{count} {word}" for word, count in sorted(done.items())) or "nothing in it is extra")
