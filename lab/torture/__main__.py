"""`python -m lab.torture`: one run, its faults, its figures, its verdict. Exit status 1 if an invariant breaks."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lab import broker, checks, processes
from lab.torture import invariants, report, state
from lab.torture.clients import Client, Stop, World
from lab.torture.designs import NAMES, Design, designs
from lab.torture.history import History
from lab.torture.house import CONTROLS, House
from lab.torture.nemesis import Nemesis
from tandem.runtime.errors import TandemError

OPENING_S = 30.0
"""How long all clients together may take to make each kind of call once, before anything is broken."""

QUIET_S = 60.0
"""How long everything may take to end once nobody breaks anything any more: above the ttl and its sweep."""

console = Console()
if not console.is_terminal:
    console.width = 140


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long clients call and things break.")] = 30.0,
    seed: Annotated[int | None, typer.Option(help="The nemesis' and the clients' plan (default: a new one).")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Concurrent clients.")] = 8,
    design: Annotated[str, typer.Option(help=f"How accounts get their profiles: {', '.join(NAMES)}.")] = NAMES[0],
    control: Annotated[str, typer.Option(help=f"Naive code instead of the product's: {' or '.join(CONTROLS)}.")] = "",
    folder: Annotated[Path | None, typer.Option(help="Where data and logs go (default: a temporary folder).")] = None,
) -> None:
    """Signs up, invites, reads and updates while processes and databases are killed and stopped; judges all answers."""
    if control and control not in CONTROLS:
        raise typer.BadParameter(f"must be {' or '.join(CONTROLS)}", param_hint="--control")
    if design not in NAMES or (control and design != NAMES[0]):
        raise typer.BadParameter(f"must be {', '.join(NAMES)}; with --control {NAMES[0]}", param_hint="--design")
    chosen = designs()[design]
    if chosen.targets.has_broker and os.environ.get(broker.VARIABLE):
        raise typer.BadParameter(f"its broker gets broken: unset {broker.VARIABLE}", param_hint="--design")
    seed = random.randrange(1_000_000) if seed is None else seed
    where = Path(tempfile.mkdtemp(prefix="tandem-torture-")) if folder is None else folder
    where.mkdir(parents=True, exist_ok=True)
    where.chmod(0o755)
    what = f"control group {control}" if control else design
    console.print(f"seed {seed}, {seconds:g} s, {workers} clients, {what}")
    house = House(where, chosen, control=control)
    passed = False
    try:
        passed = _run(house, chosen, seconds, seed, workers, control)
    except (processes.ProcessFailed, TandemError) as error:
        console.print(f"[bold red]The run could not go on.[/] {error}", highlight=False)
    finally:
        house.stop()
        if passed and folder is None:
            shutil.rmtree(where, ignore_errors=True)
        elif not passed:
            console.print(f"Logs and databases are in {where}; repeat it with --seed {seed}.")
    raise typer.Exit(0 if passed else 1)


def _run(house: House, design: Design, seconds: float, seed: int, workers: int, control: str) -> bool:
    databases = house.start()
    history, world, stopping = History(), World(), Stop()
    clients = [Client(number, seed, house.for_clients, world, history, stopping) for number in range(workers)]
    nemesis = Nemesis(house, seed, seconds, history.now, lambda fault: console.print(str(fault), highlight=False))
    for client in clients:
        client.start()
    # So that there is something to judge of each kind, however slow the machine is.
    processes.wait_until(lambda: all(client.opened.is_set() for client in clients), timeout_s=OPENING_S)
    nemesis.start()
    time.sleep(seconds)
    nemesis.stop()
    stopping.set()
    for client in clients:
        client.join()
    for failure in (nemesis.failure, *(client.failure for client in clients)):
        if failure is not None:
            raise failure
    _wait_for_quiet(databases, history)
    if not design.promise.at_once:
        clients[0].last_look()
    calls, faults, now = list(history), sorted(nemesis.faults, key=lambda fault: fault.at), state.read(databases)
    now.letters = house.buried()
    if control == "dual-write":
        judged = invariants.judge(calls, now, faults, protocol=False)
    else:
        judged = design.judge(calls, now, faults)
    report.figures(console, calls, faults, now, design, house.confirmed, seconds)
    report.answers(console, calls)
    report.recoveries(console, calls, faults)
    if now.prepared:
        report.in_doubt(console, now, faults, history.since)
    report.verdicts(console, judged, calls, now, faults)
    return all(verdict.holds for verdict in judged)


def _wait_for_quiet(databases: checks.Databases, history: History) -> None:
    calm = history.now()
    looks: list[bool] = []

    def quiet() -> bool:
        """Twice in a row: a call that its client has given up may still be under way."""
        looks.append(_is_quiet(databases))
        return looks[-2:] == [True, True]

    if processes.wait_until(quiet, timeout_s=QUIET_S, every_s=0.5):
        console.print(f"quiet {history.now() - calm:.1f} s after the last call")
    else:
        console.print(f"[bold red]not quiet {QUIET_S:g} s after the last call[/]")


def _is_quiet(databases: checks.Databases) -> bool:
    """Whether nothing ends by itself any more; what is parked waits for a person, and the judge finds it."""
    waiting = {
        "profiles": (
            "SELECT (SELECT count(*) FROM twophase.prepared_transaction WHERE NOT confirmed AND parked IS NULL)"
            " + (SELECT count(*) FROM profiles.outbox)"
        ),
        "identity": (
            "SELECT (SELECT count(*) FROM twophase.decision WHERE undelivered <> '{}' AND parked = '{}')"
            " + (SELECT count(*) FROM identity.outbox)"
            " + (SELECT count(*) FROM identity.users WHERE profile_status = 'pending')"
            " + (SELECT count(*) FROM identity.businesses WHERE profile_status = 'pending')"
        ),
    }
    return not any(databases.number(side, sql) for side, sql in waiting.items())


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
