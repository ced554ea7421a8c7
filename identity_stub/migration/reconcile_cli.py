"""The command `reconcile`. Its exit status says whether both sides are equal."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from identity_stub import app
from identity_stub.config import Settings
from identity_stub.migration.cli import bar
from identity_stub.migration.conflicts import Policy
from identity_stub.migration.reconcile import PARTS, Options, Reconciliation
from identity_stub.migration.reconcile_accounts import AT_ONCE, total
from identity_stub.migration.reconcile_report import MAX_LISTED, Report
from tandem.runtime.cli import age_s, plainly, print_json
from tandem.runtime.config import load
from tandem.runtime.errors import InvalidRequest, Violation
from tandem.runtime.process import spared_collector
from tandem.runtime.telemetry import configure_logging

NOT_EQUAL = 3
"""Exit status; 1 and 2 say that it could not be found out."""


def add_to(cli: typer.Typer) -> None:
    """Adds the command."""
    cli.command(
        help="Compare all accounts with their profiles, and the decisions with what participants hold. Exit status:"
        f" 0 where both sides are equal, {NOT_EQUAL} where not, 1 or 2 where it could not be found out."
    )(reconcile)


def reconcile(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be; else nothing is changed.")] = False,
    different: Annotated[
        Policy, typer.Option(help="With --repair, facts that differ: keep those of profiles, or write ours there.")
    ] = Policy.KEEP,
    migrating: Annotated[
        bool, typer.Option("--migrating", help="Accounts that wait for their profile are no difference.")
    ] = False,
    only: Annotated[str, typer.Option(metavar="|".join(PARTS), help="Not the others.")] = "",
    begun_within: Annotated[
        str, typer.Option(metavar="AGE", help="Only transactions begun so lately: 5m, 2h, 3d. Default: all kept.")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, max=MAX_LISTED, help="Differences that are listed.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Runs the reconciliation."""
    with plainly("identity_stub"):
        if only and only not in PARTS:
            raise InvalidRequest([Violation("only", f"must be one of {', '.join(PARTS)}")])
        options = Options(
            parts=(only,) if only else PARTS,
            repair=repair,
            policy=different,
            within_s=age_s(begun_within),
            listed=limit,
        )
        settings = load(Settings)
        configure_logging("identity-reconcile", level="WARNING", json=settings.log_json)
        with (
            app.initiator(settings, connections=AT_ONCE + 4) as (coordinator, channel),
            spared_collector(),
            bar("comparing") as told,
        ):
            of = total(coordinator.engine, options.parts)
            run = Reconciliation(
                coordinator,
                channel,
                options,
                on_progress=lambda report: told(sum(report.compared[part] for part in PARTS[:-1]), of),
            )
            report = run.run()
        equal = report.equal(migrating=migrating)
        if as_json:
            print_json({"equal": equal, **report.plain()})
        else:
            _print(report, equal=equal, migrating=migrating)
    if not equal:
        raise typer.Exit(NOT_EQUAL)


def _print(report: Report, *, equal: bool, migrating: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for one in report.listed:
        fields = f" ({', '.join(one.fields)})" if one.fields else ""
        left = f" [not repaired: {one.left}]" if one.left else ""
        print(f"{one.what}\t{one.kind}\t{one.id}{fields}{' [repaired]' if one.repaired else left}")  # tabs, for cut
    if len(report.listed) < sum(report.found.values()):
        console.print(f"… and {sum(report.found.values()) - len(report.listed):,} more: --limit")
    compared = ", ".join(f"{count:,} {what}" for what, count in report.compared.items())
    rate = f", {sum(report.compared.values()) / report.seconds:,.0f} a second" if report.seconds else ""
    console.print(f"compared: {compared or 'nothing'}, in {report.seconds:,.1f} s{rate}")
    for name, count in sorted(report.found.items()):
        done = f", {report.repaired[name]:,} of them repaired" if report.repaired[name] else ""
        console.print(f"{name}: {count:,}{done}")
    for title, counts in (("", report.fields), ("not repaired: ", report.left)):
        for name, count in sorted(counts.items()):
            console.print(escape(f"  {title}{name}: {count:,}"))
    for name, count in sorted(report.waiting.items()):
        counts_not = ", no difference while migrating" if migrating else ""
        console.print(f"without a profile, {name}: {count:,}{counts_not}")
    console.print("Both sides are equal." if equal else "Both sides are NOT equal.")
