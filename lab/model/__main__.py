"""`scripts/model`: searches every scenario, or shows what breaks without a rule."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lab.model.scenarios import SCENARIOS
from lab.model.search import Report, search
from lab.model.steps import RULES


def main(
    without: Annotated[list[str] | None, typer.Option(help="A rule to be switched off; may be repeated.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="One of --list; may be repeated.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only list scenarios and rules.")] = False,
) -> None:
    """Tries every order of messages, every loss, repeat and crash. Exit status 1 where a promise can be broken."""
    console = Console(soft_wrap=True)
    if show:
        for name, one in SCENARIOS.items():
            console.print(f"{name:22} {one.title}", highlight=False)
        for rule, instead in RULES.items():
            console.print(f"--without {rule:12} {instead}", highlight=False)
        return
    known = {*RULES, *SCENARIOS}
    for given in (*(without or ()), *(scenario or ())):
        if given not in known:
            raise typer.BadParameter(f"there is no {given}: see --list")
    table = Table("scenario", "states", "transitions", "depth", "seconds", "", box=None)
    found: list[Report] = []
    for name in scenario or SCENARIOS:
        report = search(SCENARIOS[name], frozenset(without or ()))
        table.add_row(
            name,
            f"{report.states:,}",
            f"{report.transitions:,}",
            str(report.depth),
            f"{report.seconds:.1f}",
            "BROKEN" if report.broken else "holds",
        )
        if report.broken:
            found.append(report)
    console.print(table)
    if found:
        shortest = min(found, key=lambda report: len(report.story))
        off = f" without {', '.join(without)}" if without else ""
        console.print(f"\n{shortest.broken}{off} ({shortest.title}):", highlight=False)
        for number, line in enumerate(shortest.story, 1):
            console.print(f"{number:3}  {line}", highlight=False)
        sys.exit(1)


cli = typer.Typer(add_completion=False)
cli.command()(main)

if __name__ == "__main__":
    cli()
