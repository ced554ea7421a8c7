"""`python -m lab.torture`: one run, its faults, its figures, its verdict. Exit status 1 if an invariant breaks."""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lab import checks, processes
from lab.torture import invariants
from lab.torture.clients import Client, World
from lab.torture.history import Answer, History
from lab.torture.house import CONTROLS, TTL_S, House
from lab.torture.nemesis import Fault, Nemesis
from tandem.runtime.errors import TandemError

QUIET_S = 60.0
"""How long everything may take to end once nobody breaks anything any more: above the ttl and its sweep."""

SHOWN = 20
"""Of what breaks an invariant."""

console = Console()
if not console.is_terminal:
    console.width = 140


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long clients call and things break.")] = 30.0,
    seed: Annotated[int | None, typer.Option(help="The nemesis' and the clients' plan (default: a new one).")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Concurrent clients.")] = 8,
    control: Annotated[str, typer.Option(help=f"Naive code instead of the product's: {' or '.join(CONTROLS)}.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Where data and logs go (default: a temporary folder).")] = None,
) -> None:
    """Signs up, invites, reads and updates while processes and databases are killed and stopped; judges all answers."""
    if control and control not in CONTROLS:
        raise typer.BadParameter(f"must be {' or '.join(CONTROLS)}", param_hint="--control")
    seed = random.randrange(1_000_000) if seed is None else seed
    where = Path(tempfile.mkdtemp(prefix="tandem-torture-")) if folder is None else folder
    where.mkdir(parents=True, exist_ok=True)
    where.chmod(0o755)
    console.print(f"seed {seed}, {seconds:g} s, {workers} clients{f', control group {control}' if control else ''}")
    house = House(where, control=control)
    passed = False
    try:
        passed = _run(house, seconds, seed, workers, control)
    except (processes.ProcessFailed, TandemError) as error:
        console.print(f"[bold red]The run could not go on.[/] {error}", highlight=False)
    finally:
        house.stop()
        if passed and folder is None:
            shutil.rmtree(where, ignore_errors=True)
        elif not passed:
            console.print(f"Logs and databases are in {where}; repeat it with --seed {seed}.")
    raise typer.Exit(0 if passed else 1)


def _run(house: House, seconds: float, seed: int, workers: int, control: str) -> bool:
    databases = house.start()
    history, world, stopping = History(), World(), threading.Event()
    clients = [Client(number, seed, house.address, world, history, stopping) for number in range(workers)]
    nemesis = Nemesis(house, seed, history.now, lambda fault: console.print(str(fault), highlight=False))
    for thread in (*clients, nemesis):
        thread.start()
    time.sleep(seconds)
    nemesis.stop()
    stopping.set()
    for client in clients:
        client.join()
    for failure in (nemesis.failure, *(client.failure for client in clients)):
        if failure is not None:
            raise failure
    calm = history.now()
    processes.wait_until(lambda: _is_quiet(databases), timeout_s=QUIET_S, every_s=0.5)
    console.print(f"quiet {history.now() - calm:.1f} s after the last call")
    state = invariants.read(databases)
    verdicts = invariants.judge(history, state, databases, protocol=control != "dual-write")
    _figures(history, nemesis.faults, databases, state, seconds)
    _verdicts(verdicts)
    return all(verdict.holds for verdict in verdicts)


def _is_quiet(databases: checks.Databases) -> bool:
    """Whether nothing ends by itself any more; what is parked waits for a person, and the judge finds it."""
    waiting = "SELECT count(*) FROM twophase.{} AND parked {}"
    return not databases.number(
        "profiles", waiting.format("prepared_transaction WHERE NOT confirmed", "IS NULL")
    ) and not databases.number("identity", waiting.format("decision WHERE undelivered <> '{}'", "= '{}'"))


def _figures(
    history: History, faults: Sequence[Fault], databases: checks.Databases, state: invariants.State, seconds: float
) -> None:
    calls = list(history)
    kills = sum(fault.killed for fault in faults)
    table = Table(title="The run", show_header=False, title_justify="left")
    table.add_row("faults, kills among them", f"{len(faults)}, {kills}")
    for answer in Answer:
        table.add_row(f"calls {answer}", str(sum(call.answer is answer for call in calls)))
    acknowledged = [call for call in calls if call.answer is Answer.OK and call.kind in invariants.CREATES]
    table.add_row("signups acknowledged", f"{len(acknowledged)}, {len(acknowledged) / seconds:.1f} a second")
    recoveries = _recoveries(faults, [call.ended for call in acknowledged if call.ended is not None])
    table.add_row("from a kill to the next signup that is acknowledged", _spread(recoveries))
    table.add_row("orphans", f"{state.orphans}, {1_000 * state.orphans / max(kills, 1):.0f} per 1,000 kills")
    console.print(table)
    doubt = Table("ended by", "decision", "transactions", "p50", "p99", "max", title="Time in doubt, from being due",
                  title_justify="left")  # fmt: skip
    for (decision, by), times in sorted(_in_doubt(databases).items()):
        doubt.add_row(by, decision, str(len(times)), *(f"{_quantile(times, q):.3f} s" for q in (0.5, 0.99, 1.0)))
    console.print(doubt)


def _in_doubt(databases: checks.Databases) -> dict[tuple[str, str], list[float]]:
    """(decision, by whom) → seconds from being due: a commit from its decision on, an abort once its ttl is over."""
    decided = {
        row[0]: row[1] for row in databases.rows("identity", "SELECT transaction_id, decided_at FROM twophase.decision")
    }
    times: dict[tuple[str, str], list[float]] = {}
    for transaction_id, state, by, prepared_at, resolved_at in databases.rows(
        "profiles",
        "SELECT transaction_id, state, resolved_by, prepared_at, resolved_at FROM twophase.prepared_transaction"
        " WHERE state <> 'prepared' AND log_id IS NOT NULL",
    ):
        assert isinstance(prepared_at, datetime)
        assert isinstance(resolved_at, datetime)
        since = decided.get(transaction_id)
        if state == "committed" and isinstance(since, datetime):
            took = (resolved_at - since).total_seconds()
        else:
            took = (resolved_at - prepared_at).total_seconds() - TTL_S
        times.setdefault((str(state), str(by)), []).append(max(took, 0.0))
    return times


def _recoveries(faults: Sequence[Fault], acknowledged: Sequence[float]) -> list[float]:
    return [
        min(later) - fault.at
        for fault in faults
        if fault.killed and (later := [ended for ended in acknowledged if ended > fault.at])
    ]


def _spread(times: Sequence[float]) -> str:
    if not times:
        return "no kill"
    return f"p50 {_quantile(times, 0.5):.2f} s, p99 {_quantile(times, 0.99):.2f} s, max {max(times):.2f} s"


def _quantile(times: Sequence[float], q: float) -> float:
    ordered = sorted(times)
    if len(ordered) == 1 or q >= 1:
        return ordered[-1]
    return statistics.quantiles(ordered, n=100, method="inclusive")[round(q * 100) - 1]


def _verdicts(verdicts: Sequence[invariants.Verdict]) -> None:
    table = Table("", "what must hold", "", title="Judged by SQL on both databases", title_justify="left")
    for verdict in verdicts:
        mark = "[green]holds[/]" if verdict.holds else f"[bold red]broken {len(verdict.broken)} times[/]"
        table.add_row(verdict.name, verdict.what, mark)
    console.print(table)
    for verdict in verdicts:
        for broken in verdict.broken[:SHOWN]:
            console.print(f"  {verdict.name}: {broken}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
