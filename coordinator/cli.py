"""The command line of the coordinator process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator import app
from coordinator.config import Settings
from tandem.runtime.config import described, load
from tandem.runtime.database import explained
from tandem.runtime.errors import Reason
from tandem.runtime.telemetry import frames

_SETTINGS = "\n\n".join(
    f"[bold]{escape(variable)}[/] [dim]\\[{escape(default)}][/] {escape(meaning)}"
    for variable, default, meaning in described(Settings)
)

cli = typer.Typer(
    help="The coordinator service: answers for an initiator's decisions, and delivers those that were not "
    "acknowledged. Without a command: serve.",
    epilog=f"Settings, from the environment \\[default]:\n\n{_SETTINGS}",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
log_id = typer.Typer(help="The decision log's own identity.")
cli.add_typer(log_id, name="log-id")


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


@cli.command(help="Bring the decision log to this code's revision. Can be run again, by several at once.")
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print what would be run on an empty database instead.")] = False,
    runtime_role: Annotated[
        str | None,
        typer.Option(help="A database role that gets what a running initiator needs, and may not update an outcome."),
    ] = None,
) -> None:
    """Runs or prints the migrations."""
    with _plainly():
        if sql:
            print(app.migrations_sql(runtime_role=runtime_role))
        else:
            for package, revision in app.migrate(load(Settings), runtime_role=runtime_role):
                print(f"{package} is at revision {revision}")


@cli.command(help="Deliver once, now: bring committed decisions to the participants that are due to be asked.")
def recover() -> None:
    """Prints how many deliveries it made."""
    with _plainly():
        made = app.recover(load(Settings))
        print(f"made {made} deliver{'y' if made == 1 else 'ies'}")


@cli.command(help="Show each setting: its environment variable, its default, its meaning.")
def settings() -> None:
    """Prints a table."""
    table = Table("Variable", "Default", "Meaning")
    table.columns[0].no_wrap = True
    for variable, default_, meaning in described(Settings):
        table.add_row(escape(variable), escape(default_), escape(meaning))
    Console().print(table)


@log_id.command(help="Show the log's id; former ones follow, and are still answered for.")
def show() -> None:
    """Prints a line an id."""
    with _plainly():
        for row in app.log_ids(load(Settings)):
            since = row.since.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            print(f"{row.log_id} {'current, since' if row.current else 'former, from'} {since}")


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
        print(f"coordinator: {error.message}", file=sys.stderr)
        if error.reason is Reason.INTERNAL:
            print(frames(caught), file=sys.stderr)
        raise typer.Exit(2 if error.reason in (Reason.CONFIGURATION, Reason.SCHEMA_UNKNOWN) else 1) from None
