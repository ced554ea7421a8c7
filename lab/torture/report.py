"""What a run prints when it is over: its figures, and its verdict with the history that offends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table

from lab.torture import doubt, eventual, evidence
from lab.torture.designs import Design
from lab.torture.faults import Family, Fault
from lab.torture.history import Answer, Call
from lab.torture.state import State
from lab.torture.verdict import CREATES, Verdict

SHOWN = 5
"""Of what breaks one invariant."""


def figures(
    console: Console, calls: Sequence[Call], faults: Sequence[Fault], state: State, design: Design,
    confirms: Sequence[str], seconds: float,
) -> None:  # fmt: skip
    """Faults, throughput, orphans. confirms: how identity was told to confirm, at each start where it was."""
    kills = sum(fault.kills for fault in faults)
    table = Table(title="The run", show_header=False, title_justify="left")
    table.add_row("faults, kills among them", f"{len(faults)}, {kills}")
    for family in design.targets.families:
        some = [fault for fault in faults if fault.family is family]
        table.add_row(f"faults: {family}", str(len(some)))
    longest = max((fault.pause_s for fault in faults if fault.family is Family.PAUSE), default=0.0)
    table.add_row("longest pause of a process", f"{longest:.1f} s")
    acknowledged = [call for call in calls if call.answer is Answer.OK and call.kind in CREATES]
    table.add_row("signups acknowledged", f"{len(acknowledged)}, {len(acknowledged) / seconds:.1f} a second")
    if confirms:
        started = f"{len(confirms)}, {list(confirms).count('background')}"
        table.add_row("starts of identity, confirming in the background", started)
    standings = eventual.standings(state)
    table.add_row("accounts", ", ".join(f"{count} {status}" for status, count in sorted(standings.items())))
    orphans = state.orphans if design.promise.at_once else eventual.orphans(state, design.promise)
    table.add_row("orphans", f"{orphans}, {1_000 * orphans / max(kills, 1):.0f} per 1,000 kills")
    console.print(table)


def answers(console: Console, calls: Sequence[Call]) -> None:
    """Kind of call × answer, with the reasons."""
    counted: dict[tuple[str, Answer], Counter[str]] = defaultdict(Counter)
    for call in calls:
        counted[call.kind, call.answer][call.reason] += 1
    table = Table("call", "answer", "times", "reasons", title="What clients were told", title_justify="left")
    for (kind, answer), reasons in sorted(counted.items()):
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()) if reason)
        table.add_row(kind, str(answer), str(reasons.total()), why)
    console.print(table)


def recoveries(console: Console, calls: Sequence[Call], faults: Sequence[Fault]) -> None:
    """After each restart: how long until a signup was acknowledged that began after it."""
    table = Table(
        "at", "after", "back after", "first acknowledged", title="From each restart to a signup that began after it",
        title_justify="left",
    )  # fmt: skip
    times = [time for fault in faults if (time := recovery_s(calls, fault)) is not None]
    for fault in faults:
        if fault.kills and fault.until is not None:
            took = recovery_s(calls, fault)
            after = "none in the run" if took is None else f"{took:.2f} s"
            table.add_row(f"{fault.at:.2f} s", f"{fault.what} {fault.whom}", f"{fault.until - fault.at:.2f} s", after)
    if times:
        spread = (f"{name} {doubt.quantile(times, q):.2f} s" for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)))
        table.add_row("", f"all {len(times)}", "", ", ".join(spread))
    console.print(table)


def recovery_s(calls: Sequence[Call], fault: Fault) -> float | None:
    """From the end of a fault with a kill to the first acknowledgement of a signup that began after it; None: never."""
    if not fault.kills or fault.until is None:
        return None
    told = [
        call.over for call in calls if call.kind in CREATES and call.answer is Answer.OK and call.began >= fault.until
    ]
    return min(told) - fault.until if told else None


def in_doubt(console: Console, state: State, faults: Sequence[Fault], since: Callable[[datetime], float]) -> None:
    """Time in doubt by decision and by who ended it, and the goals."""
    items = doubt.ended(state, faults, since)
    table = Table(
        "decision", "ended by", "transactions", "before due", "in a fault", "p50", "p99", "max",
        title="Time in doubt, from being due and from the end of the last fault", title_justify="left",
    )  # fmt: skip
    groups: dict[tuple[str, str], list[doubt.Ended]] = defaultdict(list)
    for item in items:
        groups["decided" if item.decided else "undecided", item.by].append(item)
    for (decision, by), some in sorted(groups.items()):
        times = [item.took_s for item in some if item.timed]
        spread = [f"{doubt.quantile(times, q):.3f} s" for q in (0.5, 0.99, 1.0)] if times else ["", "", ""]
        early, during = sum(item.early for item in some), sum(item.during for item in some)
        table.add_row(decision, by, str(len(some)), str(early), str(during), *spread)
    console.print(table)
    aims = Table("time in doubt", "goal", "found", "", title="Goals", title_justify="left")
    for row in doubt.goals(items):
        aims.add_row(*row)
    console.print(aims)


def verdicts(
    console: Console, judged: Sequence[Verdict], calls: Sequence[Call], state: State, faults: Sequence[Fault]
) -> None:
    """Each invariant; and what breaks it, with the history that belongs to that."""
    table = Table("", "what must hold", "", "judged", title="Judged by SQL on both databases", title_justify="left")
    for verdict in judged:
        mark = "[green]holds[/]" if verdict.holds else f"[bold red]broken {len(verdict.broken)} times[/]"
        table.add_row(verdict.name, verdict.what, mark, str(verdict.judged))
    console.print(table)
    for verdict in judged:
        for breach in verdict.broken[:SHOWN]:
            for line in (f"  {verdict.name}: {breach.what}", *evidence.of(breach, calls, state, faults)):
                console.print(line, highlight=False, soft_wrap=True, markup=False)
