"""The command line that every process has: serve by default, its settings explained, one sentence for an error.

Needs the extra `processes` (typer, rich).
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tandem.runtime.actions import Operator
from tandem.runtime.config import ProcessSettings, described
from tandem.runtime.database import explained
from tandem.runtime.errors import InvalidRequest, Reason, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import frames

Key = Annotated[str, typer.Argument(metavar="COORDINATOR/TRANSACTION_ID", help="the transaction")]
Why = Annotated[str, typer.Option("--reason", help="why: it is kept")]
Actor = Annotated[str, typer.Option(help="who: it is kept; not given: your login name")]


def key_of(text: str) -> TransactionKey:
    """A transaction as it is written on a command line and in logs. Raises InvalidRequest."""
    coordinator, _, transaction_id = text.partition("/")
    try:
        return TransactionKey(coordinator, UUID(transaction_id))
    except ValueError:
        raise InvalidRequest([Violation("transaction", "is written as coordinator/transaction_id")]) from None


def operator(actor: str, reason: str) -> Operator:
    """Who acts and why."""
    return Operator(actor or getpass.getuser(), reason)


def process_cli(name: str, what: str, kind: type[ProcessSettings], serve: Callable[[], None]) -> typer.Typer:
    """A command line with `serve` (also without a command) and `settings`; the process adds its own commands.

    name: of the program, in error sentences. what: a sentence or two for `--help`.
    """
    explained_settings = "\n\n".join(
        f"[bold]{escape(variable)}[/] [dim]\\[{escape(default)}][/] {escape(meaning)}"
        for variable, default, meaning in described(kind)
    )
    cli = typer.Typer(
        help=f"{what} Without a command: serve.",
        epilog=f"Settings, from the environment \\[default]:\n\n{explained_settings}",
        add_completion=False,
        rich_markup_mode="rich",
        # Its tracebacks show local variables, and those hold persons.
        pretty_exceptions_enable=False,
    )

    @cli.command("serve", help="Serve until SIGTERM or SIGINT; then finish what runs and stop.")
    def serve_command() -> None:
        with plainly(name):
            serve()

    @cli.callback(invoke_without_command=True)
    def default(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            serve_command()

    @cli.command(help="Show each setting: its environment variable, its default, its meaning.")
    def settings() -> None:
        table = Table("Variable", "Default", "Meaning")
        table.columns[0].no_wrap = True
        for row in described(kind):
            table.add_row(*map(escape, row))
        Console().print(table)

    return cli


@contextmanager
def plainly(name: str) -> Iterator[None]:
    """One sentence instead of a traceback: exit code 2 for what a person must set right, 1 for anything else."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except typer.Exit:
        raise
    except Exception as caught:
        error = explained(caught)
        print(f"{name}: {error.message}", file=sys.stderr)
        if error.reason is Reason.INTERNAL:
            print(frames(caught), file=sys.stderr)
        raise typer.Exit(2 if error.reason in (Reason.CONFIGURATION, Reason.SCHEMA_UNKNOWN) else 1) from None
