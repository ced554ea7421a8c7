"""`python -m lab.compare`: every design through every scenario; prints one table, or JSON, or draws."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from lab.compare.designs import NEEDS, Design, designs
from lab.compare.house import House
from lab.compare.scenarios import SCENARIOS, Options, Row, Scenario
from tandem.runtime.postgres import EmbeddedPostgres

console = Console(stderr=True)

T = TypeVar("T")


def main(
    seconds: Annotated[float, typer.Option(min=1.0, help="Of load in each scenario.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of what is asked for.")] = 1,
    rate: Annotated[float, typer.Option(min=1.0, help="Signups a second.")] = 20.0,
    down: Annotated[float, typer.Option(min=0.1, help="Seconds for which somebody is away.")] = 5.0,
    design: Annotated[list[str] | None, typer.Option(help="Only these designs.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="Only these scenarios.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object a design and scenario, one a line.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draws latency and availability into this PNG.")] = None,
    told: Annotated[Path | None, typer.Option(help="Shows what an earlier run has told with --json.")] = None,
) -> None:
    """Compares the designs of docs/designs.md, and naive dual write, on the same load and the same faults."""
    if told is not None:
        _show([Row(**json.loads(line)) for line in told.read_text().splitlines()], plot, as_table=True)
        return
    chosen = _chosen("design", design, designs())
    scenarios = _chosen("scenario", scenario, SCENARIOS)
    rows = _compared(chosen, scenarios, Options(seconds, seed, rate, down), as_json=as_json)
    _show(rows, plot, as_table=not as_json)


def _compared(
    chosen: dict[str, Design], scenarios: dict[str, Scenario], options: Options, *, as_json: bool
) -> list[Row]:
    """Starts servers and processes of its own, a design after the other."""
    rows: list[Row] = []
    where = Path(tempfile.mkdtemp(prefix="tandem-compare-"))
    where.chmod(0o755)
    servers = {side: EmbeddedPostgres(where / f"postgres-{side}").start() for side in ("identity", "profiles")}
    try:
        for number, one in enumerate(chosen.values()):
            with House(one, where / str(number), servers) as house:
                for place, (name, run) in enumerate(scenarios.items()):
                    began = time.monotonic()
                    rows.append(run(house, options, f"s{place}"))
                    console.print(f"{one.name}, {name}: {time.monotonic() - began:.0f} s")
                    if as_json:
                        print(json.dumps(asdict(rows[-1])), flush=True)
    finally:
        for server in servers.values():
            server.close()
        shutil.rmtree(where, ignore_errors=True)
    return rows


def _show(rows: list[Row], plot: Path | None, *, as_table: bool) -> None:
    if as_table:
        out = Console(width=None if Console().is_terminal else 200)
        out.print(_by_design(rows))
        out.print(_by_scenario(rows))
    if plot is not None:
        from lab.compare.plots import draw

        draw(rows, plot)


def _chosen(kind: str, names: list[str] | None, there_are: dict[str, T]) -> dict[str, T]:
    unknown = sorted(set(names or []) - there_are.keys())
    if unknown:
        raise typer.BadParameter(f"there is no {kind} {', '.join(unknown)}; there are: {', '.join(there_are)}")
    return {name: one for name, one in there_are.items() if not names or name in names}


def _by_design(rows: list[Row]) -> Table:
    """One line a design: its figures without a fault, the worst of it under faults, what it needs."""
    table = Table(
        "design", "signup p50", "p99", "a second", "readable p50", "p99", "max", "saw none", "refused, profiles down",
        "orphans at once", "after quiet", "lost updates", "needs", title_justify="left",
        title="Without a fault: ms, and signups a second. Under all faults: counts; orphans: accounts/profiles",
    )  # fmt: skip
    for name in dict.fromkeys(row.design for row in rows):
        mine = [row for row in rows if row.design == name]
        calm = next((row for row in mine if row.scenario == "none"), Row(name, "none"))
        table.add_row(
            name,
            *(_number(value) for value in (calm.p50_ms, calm.p99_ms, calm.per_second)),
            *(_number(value) for value in (calm.readable_p50_ms, calm.readable_p99_ms, calm.readable_max_ms)),
            str(sum(row.saw_none for row in mine)),
            _share(next((row.refused_share for row in mine if row.scenario == "profiles down"), None)),
            _sum([row.after_fault for row in mine]),
            _sum([row.after_quiet for row in mine]),
            str(sum(row.lost_updates or 0 for row in mine)),
            ", ".join(NEEDS[name]) or "nothing",
        )
    return table


def _by_scenario(rows: list[Row]) -> Table:
    table = Table(
        "scenario", "design", "signups", "p50", "p99", "readable p99", "never", "saw none", "refused",
        "orphans at once", "after quiet", "rejected later", "lost updates", "told to lose", "doubled", "quiet",
        title="Each scenario", title_justify="left",
    )  # fmt: skip
    for row in sorted(rows, key=lambda row: list(SCENARIOS).index(row.scenario)):
        table.add_row(
            row.scenario, row.design, str(row.signups), _number(row.p50_ms), _number(row.p99_ms),
            _number(row.readable_p99_ms), str(row.never_readable), str(row.saw_none), str(row.refused),
            _sum([row.after_fault]), _sum([row.after_quiet]), str(row.rejected_later), _count(row.lost_updates),
            _count(row.told_to_lose), _count(row.doubled), "yes" if row.is_quiet else "no",
        )  # fmt: skip
    return table


def _sum(pairs: list[tuple[int, int] | None]) -> str:
    told = [pair for pair in pairs if pair is not None]
    return f"{sum(pair[0] for pair in told)}/{sum(pair[1] for pair in told)}" if told else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
