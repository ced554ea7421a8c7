"""The commands of the migration: `seed` and `backfill`."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from identity_stub import app
from identity_stub.config import Settings
from identity_stub.migration import backfill_accounts as accounts
from identity_stub.migration import seeding
from identity_stub.migration.backfill import MAX_THREADS, Backfill
from identity_stub.migration.backfill_accounts import KINDS, Kind, Shard
from identity_stub.migration.backfill_report import BATCH, MAX_BATCH, Options, Report
from identity_stub.migration.conflicts import Existing, Policy
from identity_stub.users import ABSENT, REJECTED
from tandem.runtime.cli import plainly, print_json
from tandem.runtime.config import load
from tandem.runtime.errors import InvalidRequest, Violation
from tandem.runtime.process import spared_collector
from tandem.runtime.telemetry import configure_logging

TOLD_EVERY_S = 10.0
"""Where there is no terminal, progress is a line now and then."""

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


def add_to(cli: typer.Typer) -> None:
    """Adds the commands."""
    cli.command(help="Make accounts as they were before there were profiles. All or none; for demos and tests.")(seed)
    cli.command(
        help="Give all accounts from before there were profiles their profile. Can be killed, run again, run by many."
    )(backfill)


def seed(
    count: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="Users; a fifth as many businesses.")],
    seed: Annotated[int, typer.Option(min=1, help="Another one makes other accounts.")] = 1,
) -> None:
    """Fills the database with old accounts."""
    with plainly("identity_stub"), app.database(load(Settings)) as engine, bar("seeding") as told:
        done = Counter[str]()

        def on_rows(rows: int) -> None:
            done["rows"] += rows
            told(done["rows"], None)

        made = seeding.seed(engine, count, seed=seed, on_rows=on_rows)
    print(f"{made.users:,} users, {made.businesses:,} businesses, {made.members:,} members are in, none with a profile")


def backfill(
    shard: Annotated[str, typer.Option(metavar="I/N", help="The i-th of n equal parts, i from 1.")] = "1/1",
    only: Annotated[str, typer.Option(metavar="|".join(KINDS), help="Not the others.")] = "",
    conflicts: Annotated[Policy, typer.Option(help="Where another service has made the profile.")] = Policy.KEEP,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Accounts a second at most.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Accounts in one transaction.")] = BATCH,
    threads: Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="Batches at the same time.")] = 4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; tell what would be.")] = False,
    retry_refused: Annotated[bool, typer.Option("--retry-refused", help="Those refused before, now mended.")] = False,
    refused: Annotated[bool, typer.Option("--refused", help="List those refused, with the reasons.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Runs the backfill. Exit code 1 where it was stopped before its end; running it again goes on."""
    with plainly("identity_stub"):
        options = Options(
            kinds=_kinds(only),
            status=REJECTED if retry_refused else ABSENT,
            shard=_shard(shard),
            policy=conflicts,
            batch=batch,
            threads=threads,
            rate=rate,
            dry_run=dry_run,
        )
        settings = load(Settings)
        configure_logging("identity-backfill", level="WARNING", json=settings.log_json)
        if refused:
            _list_refused(settings, options)
            return
        with (
            app.initiator(settings, connections=2 * threads + 4) as (coordinator, channel),
            spared_collector(),
            bar("rehearsing" if dry_run else "backfilling") as told,
        ):
            run = Backfill(
                coordinator, Existing(channel), options, on_progress=lambda report: told(report.done, report.total)
            )
            report = run.run()
        if as_json:
            print_json({**report.as_dict(), "dry_run": dry_run})
        else:
            _print(report, dry_run=dry_run)
    if report.stopped:
        raise typer.Exit(1)


def _kinds(only: str) -> tuple[Kind, ...]:
    if not only:
        return tuple(KINDS.values())
    if only not in KINDS:
        raise InvalidRequest([Violation("only", f"must be one of {', '.join(KINDS)}")])
    return (KINDS[only],)


def _shard(text: str) -> Shard:
    match = _SHARD.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InvalidRequest([Violation("shard", "is written like 2/8: the second of eight parts")])
    return Shard(int(match[1]), int(match[2]))


def _list_refused(settings: Settings, options: Options) -> None:
    """A line each, tabs between: which kind, which account, why."""
    with app.database(settings) as engine:
        for kind in options.kinds:
            for id_, reason in accounts.refused(engine, kind, options.shard):
                print(kind.name, id_, reason, sep="\t")


def _print(report: Report, *, dry_run: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    would = "would be " if dry_run else ""
    made = " and ".join(f"{count:,} {kind}" for kind, count in sorted(report.created.items(), reverse=True) if count)
    rate = f"{report.done / report.seconds:,.0f} a second" if report.seconds else ""
    console.print(f"{made or 'none'} {would}given their profile, {report.seconds:,.1f} s, {rate}")
    for reason, count in report.refused.most_common():
        console.print(f"{would}refused: {count:,}: {escape(reason)}")
    for what, count in report.conflicts.most_common():
        console.print(f"{would}{what}: {count:,} whose profile another service had made")
    for name, count in report.fields.most_common():
        console.print(f"  of these, {count:,} with another {escape(name)}")
    if report.elsewhere:
        console.print(f"{report.elsewhere:,} had been seen to when their turn came")
    if report.retries:
        console.print(f"{report.retries:,} attempts were repeated")
    if report.refused and not dry_run:
        console.print("List them with --refused; once mended, take them up with --retry-refused.")
    if report.stopped:
        left = max(0, report.total - report.done)
        console.print(f"stopped with {left:,} left: {escape(report.stopped)}. Run the same again to go on.")


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows how many are done of how many, the rate and the time left: a bar, or lines where there is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(),
        TextColumn("left:"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None, rate="")

        def show(done: int, total: int | None) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else "")

        yield show


def _lines(what: str) -> Callable[[int, int | None], None]:
    began = last = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < TOLD_EVERY_S:
            return
        last = now
        rate = done / (now - began)
        of = f" of {total:,}, {max(0, total - done) / rate:,.0f} s left" if total and rate else ""
        print(f"{what}: {done:,}{of}, {rate:,.0f} a second", file=sys.stderr, flush=True)

    return show
