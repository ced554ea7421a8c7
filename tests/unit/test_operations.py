"""docs/operations.md: every command exists as it is written there, every query runs, every alert has its runbook."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy.engine import Engine

from tandem.coordinator.tables import MIGRATIONS as COORDINATOR
from tandem.participant.tables import MIGRATIONS as PARTICIPANT
from tandem.runtime import healthcheck
from tandem.runtime.database import create_engine

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()

COMMANDS = sorted(
    {
        # In a block to the end of the line, in a text to the backtick.
        " ".join(found.split())
        for found in re.findall(r"^ {4}(?:\$ )?(python -m .+)$|`(python -m [^`]+)`", PAGE, re.MULTILINE)
        for found in found
        if found
    }
)
UsageError = typer.BadParameter.__mro__[1]
"""Of the click that typer carries with it."""

QUERIES = re.findall(r"```sql\n(.+?)```", PAGE, re.DOTALL)
ALERTS = dict(re.findall(r"^### (Tandem\w+)\n(.+?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_there_is_something_to_check() -> None:
    """The patterns find what they are meant to."""
    assert len(COMMANDS) > 15
    assert len(QUERIES) == 4


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists(line: str) -> None:
    """Parsed by its own command line, without being run: names, options, what is required, and nothing left over."""
    _, _, module, *arguments = shlex.split(line)
    if module == "tandem.runtime.healthcheck":
        healthcheck.parser().parse_args(arguments)
        return
    command: Any = typer.main.get_command(importlib.import_module(f"{module}.cli").cli)
    while arguments and (commands := getattr(command, "commands", None)):
        command = commands[arguments.pop(0)]
    if not arguments and f"`{line}`" in PAGE and any(parameter.required for parameter in command.params):
        return  # named in a sentence; what it wants is said there
    command.make_context(line, arguments)


@pytest.mark.parametrize(
    "line",
    [
        "python -m coordinator nonsense",
        "python -m coordinator log-id nonsense",
        "python -m coordinator log-id renew --reason x --nonsense",
        "python -m coordinator log-id renew --old-primary-is-gone",
        "python -m coordinator transactions retry",
        "python -m coordinator recover nonsense",
        "python -m tandem.runtime.healthcheck --nonsense host:1",
    ],
)
def test_a_command_that_is_not_there_is_found_out(line: str) -> None:
    """The test above can fail: an unknown name, an unknown option, a missing one, too much."""
    with pytest.raises((KeyError, UsageError, SystemExit)):
        test_every_command_exists(line)


@pytest.fixture(scope="module")
def database(new_database: Callable[[str], str]) -> Iterator[Engine]:
    """Both halves' tables in one."""
    engine = create_engine(new_database("operations"))
    for migrations in (COORDINATOR, PARTICIPANT):
        migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_runs(query: str, database: Engine) -> None:
    """As it is written, and changes nothing."""
    with database.connect() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        assert connection.exec_driver_sql(query.replace("%", "%%")).all() == []


def test_every_runbook_says_the_same_four_things() -> None:
    """What it means, what to look at, what to run, what not to do; and how urgent it is."""
    assert len(ALERTS) == 19
    for name, text in ALERTS.items():
        parts = re.findall(r"^\*\*(Means|Look at|Run|Do not)\*\*: \S", text, re.MULTILINE)
        assert parts == ["Means", "Look at", "Run", "Do not"], name
        assert re.match(r"\n\*(Page|Warning): ", text), name
