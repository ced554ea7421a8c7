"""The command line that every process has: serve by default, its settings explained, one sentence for an error.

Needs the extra `processes` (typer, rich).
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tandem.runtime.actions import Operator
from tandem.runtime.config import NAME_PATTERN, ProcessSettings, described
from tandem.runtime.database import explained
from tandem.runtime.errors import InvalidRequest, Reason, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import frames
from tandem.runtime.telling import at

Key = Annotated[str, typer.Argument(metavar="COORDINATOR/TRANSACTION_ID", help="the transaction")]
Why = Annotated[str, typer.Option("--reason", help="why: it is kept")]
Actor = Annotated[str, typer.Option(help="who: it is kept; not given: your login name, if it is a person's")]
Participant = Annotated[str, typer.Option(help="only those of this participant")]
OfCoordinator = Annotated[str, typer.Option("--coordinator", help="only those of this coordinator")]
OlderThan = Annotated[str, typer.Option(metavar="AGE", help="only those older than this: 90s, 5m, 2h, 3d")]
PageSize = Annotated[int, typer.Option("--limit", min=1, max=1000, help="rows a page")]
PageToken = Annotated[str, typer.Option("--page", metavar="TOKEN", help="the page that the one before has named")]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, with all that is known")]

NOBODY = ("", "root", "tandem", "nobody")
"""Login names that say nothing of who acts; "tandem" is the image's."""

WIDE = 250
"""Columns of a table that goes to a file or a pipe: it has room; a terminal says how much it has."""

_AGE = re.compile(r"(\d{1,9})(s|m|h|d|)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def age_s(text: str) -> float | None:
    """Seconds of an age as it is written on a command line: 90s, 5m, 2h, 3d; None of "". Raises InvalidRequest."""
    if not text:
        return None
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest([Violation("older-than", "is written like 90s, 5m, 2h or 3d")])
    return float(int(match[1]) * _UNITS[match[2]])


def print_json(value: object) -> None:
    """For programs: times in ISO 8601, ids and digests as text."""
    print(json.dumps(value, default=_plain, indent=2))


def _plain(value: object) -> str:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat()
        case bytes() | memoryview():
            return bytes(value).hex()
        case UUID():
            return str(value)
    raise TypeError(type(value).__name__)


def print_page(columns: Sequence[str], rows: Sequence[Sequence[str]], next_page: str) -> None:
    """A page for people, and how to get the next one. The first column is never cut."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    if not rows:
        console.print("none")
        return
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    if next_page:
        console.print(f"There are more: add --page {next_page}", soft_wrap=True)


def print_sentences(sentences: Iterable[str]) -> None:
    """One a line, wrapped by the terminal itself."""
    for sentence in sentences:
        Console(highlight=False).print(escape(sentence), soft_wrap=True)


def recorded(operator: Operator, moment: datetime) -> str:
    """Says that a deed was written down."""
    return f"recorded: {operator.actor}, {at(moment)}, because: {operator.reason}"


def key_of(text: str) -> TransactionKey:
    """A transaction as it is written on a command line and in logs. Raises InvalidRequest."""
    coordinator, _, transaction_id = text.partition("/")
    try:
        if not re.fullmatch(NAME_PATTERN, coordinator):
            raise ValueError("not a coordinator's name")
        return TransactionKey(coordinator, UUID(transaction_id))
    except ValueError:
        raise InvalidRequest([Violation("transaction", "is written as coordinator/transaction_id")]) from None


def operator(actor: str, reason: str) -> Operator:
    """Who acts and why. Raises BadParameter where nobody says who, and the login name does not."""
    return Operator(actor or _login_name(), reason)


def _login_name() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a number without a name
        name = ""
    if name in NOBODY:
        raise typer.BadParameter(
            f"say who you are: the login name ({name or 'none'}) is nobody's", param_hint="--actor"
        )
    return name


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
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as caught:
        error = explained(caught)
        print(f"{name}: {error.message}", file=sys.stderr)
        if error.reason is Reason.INTERNAL:
            print(frames(caught), file=sys.stderr)
        raise typer.Exit(2 if error.reason in (Reason.CONFIGURATION, Reason.SCHEMA_UNKNOWN) else 1) from None
