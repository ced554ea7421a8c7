"""`python -m lab.bench [NAME …]`: measures, prints a table, or a JSON object a line, or draws."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lab.bench import signups
from lab.bench.house import House
from lab.bench.measures import AT_ONCE, BULK, Bench, Figure, Options
from lab.bench.plans import of_signups
from lab.bench.sweeps import Swept
from lab.bench.where import looked_at
from tandem.runtime.telemetry import configure_logging

console = Console()
if not console.is_terminal:
    console.width = 140


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which figures (default: all but memory_growth).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of each; the median is told.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each measurement of many at once.")] = 4.0,
    rows: Annotated[int, typer.Option(min=0, help="Finished transactions in the large table.")] = 1_000_000,
    transactions: Annotated[int, typer.Option(min=10_000, help="Of memory_growth.")] = 1_000_000,
    profiles: Annotated[int, typer.Option(min=1, max=8, help="Profiles processes.")] = 1,
    plans: Annotated[bool, typer.Option("--plans", help="Prints the plans among --rows, and nothing else.")] = False,
    shares: Annotated[bool, typer.Option("--where", help="Prints where the time goes, and nothing else.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draws throughput, latency, sweeps into this PNG.")] = None,
) -> None:
    """Starts servers and processes of its own and measures, each figure beside its yardstick."""
    configure_logging("bench", level="WARNING")
    where = Path(tempfile.mkdtemp(prefix="tandem-bench-"))
    where.chmod(0o755)
    options = Options(rounds=rounds, seconds=seconds, rows=rows, transactions=transactions)
    try:
        with House(where, profiles=profiles) as house:
            if plot is not None:
                from lab.bench.plots import draw

                draw(house, plot, seconds=seconds)
                return
            if plans:
                _print_plans(house, rows)
                return
            if shares:
                _print_where(house, int(seconds * rounds))
                return
            bench = Bench(house, options)
            unknown = sorted(set(names or []) - bench.measures.keys())
            if unknown:
                raise typer.BadParameter(f"there is no {', '.join(unknown)}; there are {', '.join(bench.measures)}")
            table = Table("figure", "value", "yardstick", "ratio", "goal", "", title="Medians", title_justify="left")
            for figure in bench.figures(names or [name for name in bench.measures if name != "memory_growth"]):
                if as_json:
                    print(json.dumps(asdict(figure)), flush=True)
                else:
                    table.add_row(*_cells(figure))
            bench.close()
            if not as_json:
                console.print(table)
    finally:
        shutil.rmtree(where, ignore_errors=True)


def _print_plans(house: House, rows: int) -> None:
    swept = Swept(house)
    swept.store(rows)
    for count in (1, 64):
        print(f"== Prepare and Commit of {count} among {rows:,} ==")
        for plan in of_signups(swept.participant, count):
            print(plan, end="\n\n")
    swept.close()


def _print_where(house: House, seconds: int) -> None:
    """Needs leave to look into processes: root, or ptrace for one's own."""
    loads = {
        "one signup after the other, awaited": (signups.two_phase(house, "wait"), 1),
        "64 at once, awaited": (signups.two_phase(house, "wait"), AT_ONCE),
        "64 at once, background": (signups.two_phase(house, "background"), AT_ONCE),
        f"{BULK} a call": (signups.bulk(house, BULK), 1),
    }
    for title, (sign_up, threads) in loads.items():
        signups.load(sign_up, threads, 2.0)
        found = looked_at(house, sign_up, threads, seconds)
        table = Table("whose code", *found, title=title, title_justify="left")
        for name in dict.fromkeys(name for some in found.values() for name in some):
            table.add_row(name, *(f"{some.get(name, 0.0):.1%}" for some in found.values()))
        console.print(table)


def _cells(figure: Figure) -> tuple[str, ...]:
    met = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[figure.met]
    return (
        figure.name,
        _number(figure.value) + f" {figure.unit}",
        "" if figure.yardstick is None else _number(figure.yardstick) + f" {figure.unit}",
        "" if figure.ratio is None else f"{figure.ratio:.2f} ×",
        figure.goal,
        met,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
