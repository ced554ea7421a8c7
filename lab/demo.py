"""The demo: real people and businesses signed up across two services, while processes are killed with -9.

scripts/demo            imports, kills, checks, prints a table; exit status 0 only if every check holds
scripts/demo --keep     leaves everything running and says what to try
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from identity_stub import importing
from lab import checks, processes
from lab.processes import Keeper, ProcessFailed, Service
from tandem.runtime.errors import TandemError
from tandem.runtime.postgres import EmbeddedPostgres

TTL_S = 10
CLIENTS = 8
QUIET_S = 60.0
DATA = processes.ROOT / "identity_stub" / "data"

KILLS = {
    "driver.after_votes=kill@3": "after the votes, before its local commit",
    "driver.after_local_commit=kill@40": "after its local commit, before Commit",
    "driver.after_commit=kill@40": "after Commit, before its mark",
    "participant.after_stage=kill@30": "while it stages",
}
"""Failpoint → what the process was doing when it died.

The first strikes a batch. Clients whose batch got no answer go on one by one, so that the others strike single calls.
"""

console = Console()
if not console.is_terminal:
    console.width = 110  # a file or a pipe has room; a terminal says how much it has


@dataclass
class Kill:
    """One death: of whom, doing what, and what was open right after it."""

    module: str
    doing: str
    open_then: set[UUID] = field(default_factory=set)


class House:
    """One PostgreSQL server with two databases, and the three processes."""

    def __init__(self, folder: Path, *, with_console: bool = False) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder / "postgres")
        ports = {module: processes.free_port() for module in ("profiles_server", "coordinator", "identity_stub")}
        address = {module: f"127.0.0.1:{port}" for module, port in ports.items()}
        shared = {"TTL_S": str(TTL_S), "DATA_FOLDER": str(folder / "postgres"), "METRICS_LISTEN": "127.0.0.1:0"}
        self.profiles = self._service(
            "profiles_server",
            address["profiles_server"],
            "PROFILES_",
            {**shared, "COORDINATORS": f"identity={address['coordinator']}", "SWEEP_INTERVAL_S": "1"},
        )
        participants = f"profiles={address['profiles_server']}"
        self.console = f"127.0.0.1:{processes.free_port()}" if with_console else ""
        console = {"CONSOLE_LISTEN": self.console} if with_console else {}
        self.coordinator = self._service(
            "coordinator", address["coordinator"], "COORDINATOR_", {**shared, **console, "PARTICIPANTS": participants}
        )
        self.identity = self._service(
            "identity_stub", address["identity_stub"], "IDENTITY_", {**shared, "PARTICIPANTS": participants}
        )
        self.services = (self.profiles, self.coordinator, self.identity)

    def _service(self, module: str, address: str, prefix: str, settings: dict[str, str]) -> Service:
        environment = {prefix + name: value for name, value in {**settings, "LISTEN": address}.items()}
        return Service(module, address, environment, self.folder)

    def start(self) -> checks.Databases:
        """Everything, from nothing: PostgreSQL, the tables, the processes."""
        self.postgres.start()
        databases = checks.Databases(self.postgres.database_url("identity"), self.postgres.database_url("profiles"))
        for service in (self.profiles, self.identity):
            processes.run(service.module, "migrate", environment=service.environment)
        for service in self.services:
            service.start()
        return databases

    def stop(self) -> None:
        """Everything, in the other order."""
        for service in reversed(self.services):
            service.stop()
        self.postgres.close()


def main(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and print what to try.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where data and logs go (default: a new temporary folder).")
    ] = None,
) -> None:
    """Signs up 537 people and 503 companies while processes are killed with -9, and checks that nothing was split."""
    where = _folder(folder)
    house = House(where, with_console=keep)
    passed = False
    try:
        passed = _run(house)
        if keep:
            _say_what_to_try(house)
            _wait_for_interrupt()
    except (ProcessFailed, TandemError) as error:
        console.print(f"[bold red]The demo could not go on.[/] {error}", highlight=False)
    finally:
        house.stop()
        if not passed:
            console.print(
                f"Logs of all processes are in {where}. Run scripts/demo again; if it fails again, look there first."
            )
        elif folder is None:
            _remove(where)
    raise typer.Exit(0 if passed else 1)


def _run(house: House) -> bool:
    console.print(f"Starting PostgreSQL, profiles, coordinator and identity; ttl {TTL_S} s, data in {house.folder}")
    started = time.monotonic()
    databases = house.start()
    console.print(f"Running after {time.monotonic() - started:.1f} s.")

    kills: list[Kill] = []
    wanted = checks.expected(DATA / "persons.csv", DATA / "businesses.csv")
    result = _import(house, databases, kills)
    quiet = processes.wait_until(lambda: databases.in_doubt() == 0 and databases.undelivered() == 0, timeout_s=QUIET_S)
    if not quiet:
        console.print(f"[red]Still not quiet after {QUIET_S:.0f} s.[/]")
    ended = databases.ended(set().union(*(kill.open_then for kill in kills)))
    found = checks.all_checks(databases, wanted)
    found += [
        checks.Check("refused are the second share classes, and nothing else",
                     sorted(name for name, _ in result.refused) == wanted.duplicates, str(len(result.refused))),
        checks.Check("every call was answered in the end", not result.failed and not result.left,
                     f"{len(result.failed)} failed, {result.left} left"),
        checks.Check("processes were killed with -9", len(kills) == len(KILLS), f"{len(kills)} of {len(KILLS)}"),
    ]  # fmt: skip
    _report(result, kills, ended, found, wanted)
    return all(check.holds for check in found)


def _import(house: House, databases: checks.Databases, kills: list[Kill]) -> importing.Result:
    """The import, with the failpoints armed: identity dies three times, profiles once."""
    plan = importing.plan(
        importing.read_persons(DATA / "persons.csv"), importing.read_businesses(DATA / "businesses.csv")
    )
    points = list(KILLS)

    def on_death(service: Service) -> None:
        died = service.died()
        if died != signal.SIGKILL:
            how = f"by signal {died}" if died else "by itself"
            raise ProcessFailed(f"{service.module} ended {how}; the end of its log:\n{processes.tail(service.log)}")
        kills.append(Kill(service.module, KILLS[service.failpoints], databases.open_transactions()))

    house.identity.stop()
    house.profiles.stop()
    for service, failpoint in ((house.identity, points[0]), (house.profiles, points[3])):
        service.failpoints = failpoint
        service.start()
    keeper = Keeper({house.identity: points[1:3], house.profiles: [], house.coordinator: []}, on_death)
    keeper.start()
    try:
        with Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        ) as progress:
            task = progress.add_task(f"{CLIENTS} clients sign up", total=len(plan.jobs), note="")

            def on_done(_: importing.Done) -> None:
                died = len(kills)
                progress.update(task, advance=1, note=f"{died} killed with -9" if died else "")

            result = importing.run_import(house.identity.address, plan, clients=CLIENTS, on_done=on_done)
    finally:
        keeper.stop()
    if keeper.failure is not None:
        raise ProcessFailed(f"a process could not be restarted: {keeper.failure}")
    return result


def _report(
    result: importing.Result,
    kills: Sequence[Kill],
    ended: dict[UUID, checks.Ended],
    found: Sequence[checks.Check],
    wanted: checks.Expected,
) -> None:
    signups = Table(title="Signups", show_header=False, title_justify="left")
    signups.add_row("people in the file, users now", f"{len(wanted.emails)}, {result.users}")
    companies = len(wanted.registrations) + len(wanted.duplicates)
    signups.add_row("companies in the file, businesses now", f"{companies}, {result.businesses}")
    signups.add_row("rows that can't be a profile", str(len(result.rejected)))
    signups.add_row("refused as duplicates", str(len(result.refused)))
    signups.add_row("calls repeated by clients", str(result.retries))
    signups.add_row("time, throughput", f"{result.seconds:.1f} s, {result.done / result.seconds:.0f} a second")
    console.print(signups)
    for file, row in result.rejected:
        console.print(f"  {file}, line {row.line}: {row.reason}", highlight=False)
    for name, what in result.refused:
        console.print(f"  refused: {name} ({what} exists already)", highlight=False)
    for name, reason in result.failed:
        console.print(f"  [red]failed[/]: {name} ({reason})", highlight=False)

    table = Table(title="kill -9, and how what was open then has ended", title_justify="left")
    table.add_column("killed", max_width=34)
    for column in ("open", "ended", "by whom", "after Prepare"):
        table.add_column(column)
    for kill in kills:
        about = (f"{kill.module}, {kill.doing}", str(len(kill.open_then)))
        for ending in _endings(kill, ended) or [("nothing was open", "", "")]:
            table.add_row(*about, *ending)
            about = ("", "")
    console.print(table)

    verdict = Table(title="Checked by SQL on both databases", title_justify="left")
    for column in ("what must hold", "found", ""):
        verdict.add_column(column)
    for check in found:
        mark = "[green]holds[/]" if check.holds else "[bold red]does not hold[/]"
        verdict.add_row(check.what, check.found, mark)
    console.print(verdict)


def _endings(kill: Kill, ended: dict[UUID, checks.Ended]) -> list[tuple[str, str, str]]:
    """(how, by whom, after how long) of what was open at a kill, alike ones together."""
    groups: dict[tuple[str, str], list[float]] = {}
    for transaction_id in kill.open_then:
        ending = ended[transaction_id]
        groups.setdefault((ending.state, ending.by), []).append(ending.after_s or 0.0)
    return [
        (f"{len(times)} {state}", by or "nobody yet", _span(times)) for (state, by), times in sorted(groups.items())
    ]


def _span(times: Sequence[float]) -> str:
    low, high = min(times), max(times)
    return f"{low:.2f} s" if high - low < 0.005 else f"{low:.2f} to {high:.2f} s"


def _say_what_to_try(house: House) -> None:
    data = house.folder / "postgres"
    console.print("\nStill running:")
    for service in house.services:
        console.print(
            f"  {service.module:16} {service.address:22} metrics: http://{service.metrics}/metrics",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"  {'the console':16} http://{house.console}   # in doubt, undelivered, each transaction's story")
    console.print(f"\nIn {processes.ROOT}, try:", highlight=False)
    for command in (
        f"IDENTITY_DATA_FOLDER={data} IDENTITY_PARTICIPANTS=profiles={house.profiles.address}"
        " .venv/bin/python -m identity_stub explain c000127@example.org",
        ".venv/bin/python -m identity_stub sign-up --help",
        f"kill -9 {house.profiles.pid}   # and see what the other two say in {house.folder}",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    console.print("\nCtrl-C ends everything.")


def _wait_for_interrupt() -> None:
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()


def _folder(named: Path | None) -> Path:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        return named.resolve()
    made = Path(tempfile.mkdtemp(prefix="tandem-demo-"))
    # PostgreSQL refuses to run as root: as root, an unprivileged user must be able to come by here.
    made.chmod(0o755 if os.geteuid() == 0 else 0o700)
    return made


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
