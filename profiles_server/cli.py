"""The command line of the profiles process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from profiles_server import app
from profiles_server.config import Settings
from tandem.runtime.config import described, load
from tandem.runtime.database import explained
from tandem.runtime.errors import Reason
from tandem.runtime.telemetry import frames

_SETTINGS = "\n\n".join(
    f"[bold]{escape(variable)}[/] [dim]\\[{escape(default)}][/] {escape(meaning)}"
    for variable, default, meaning in described(Settings)
)

cli = typer.Typer(
    help="Persons and businesses: the participant that stages, publishes and serves them. Without a command: serve.",
    epilog=f"Settings, from the environment \\[default]:\n\n{_SETTINGS}",
    add_completion=False,
    rich_markup_mode="rich",
    # Its tracebacks show local variables, and those hold persons.
    pretty_exceptions_enable=False,
)


@cli.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Serves, where no command is given."""
    if context.invoked_subcommand is None:
        serve()


@cli.command(help="Serve until SIGTERM or SIGINT; then finish what runs and stop.")
def serve() -> None:
    """Runs the process."""
    with _plainly():
        app.serve(load(Settings))


@cli.command(help="Bring the database to this code's revisions. Can be run again, by several at once.")
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print what would be run on an empty database instead.")] = False,
) -> None:
    """Runs or prints the migrations."""
    with _plainly():
        if sql:
            print(app.migrations_sql())
        else:
            for package, revision in app.migrate(load(Settings)):
                print(f"{package} is at revision {revision}")


@cli.command(help="Sweep once, now: ask for the decisions that are due and apply them.")
def sweep() -> None:
    """Prints how many transactions it ended."""
    with _plainly():
        ended = app.sweep(load(Settings))
        print(f"ended {ended} transaction{'' if ended == 1 else 's'}")


@cli.command(help="Show each setting: its environment variable, its default, its meaning.")
def settings() -> None:
    """Prints a table."""
    table = Table("Variable", "Default", "Meaning")
    table.columns[0].no_wrap = True
    for variable, default_, meaning in described(Settings):
        table.add_row(escape(variable), escape(default_), escape(meaning))
    Console().print(table)


@contextmanager
def _plainly() -> Iterator[None]:
    """One sentence instead of a traceback: exit code 2 for what a person must set right, 1 for anything else."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as caught:
        error = explained(caught)
        print(f"profiles_server: {error.message}", file=sys.stderr)
        if error.reason is Reason.INTERNAL:
            print(frames(caught), file=sys.stderr)
        raise typer.Exit(2 if error.reason in (Reason.CONFIGURATION, Reason.SCHEMA_UNKNOWN) else 1) from None
