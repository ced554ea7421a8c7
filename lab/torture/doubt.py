"""How long transactions stayed in doubt, counted from when somebody could have ended them. Pure.

Due is a decided one at its decision, an undecided one (the initiator never committed) once its ttl is over; neither
before the end of the last fault that overlaps its time in doubt. Both goals are counted from there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lab.torture.faults import Fault, overlapping
from lab.torture.house import CLIENT_WIRES, TTL_S
from lab.torture.state import State

DECIDED_GOAL_S = 2.0
"""p99, from the restart on."""

UNDECIDED_GOAL_S = 2.0
"""Each, from being due."""


@dataclass(frozen=True)
class Ended:
    """A transaction that was ended, `took_s` after it was due.

    early: an undecided one, before it was due. hit: a fault overlapped its doubt. during: it ended while that still
    lasted. What is early or during has no time: its 0 s would only make the others look better.
    """

    decided: bool
    by: str
    took_s: float
    early: bool = False
    hit: bool = False
    during: bool = False

    @property
    def timed(self) -> bool:
        """Whether it was due and nothing was broken any more when it ended."""
        return not (self.early or self.during)


def ended(state: State, faults: Iterable[Fault], since: Callable[[datetime], float]) -> list[Ended]:
    """All of them. since: a database's time as seconds since the run began."""
    concerned = [fault for fault in faults if fault.whom not in CLIENT_WIRES]
    found: list[Ended] = []
    for id_, row in state.prepared.items():
        if not row.voted or row.resolved_at is None:
            continue
        decision = state.decisions.get(id_)
        decided = decision is not None and decision.outcome == "committed"
        due = since(decision.decided_at) if decided and decision else since(row.prepared_at) + TTL_S
        resolved = since(row.resolved_at)
        early = not decided and resolved < due
        met = [] if early else overlapping(concerned, due, resolved)
        due = max([due, *(fault.over for fault in met)])
        took_s, during = max(resolved - due, 0.0), bool(met) and resolved < due
        found.append(Ended(decided, row.resolved_by, took_s, early, bool(met), during))
    return found


def goals(items: Sequence[Ended]) -> list[tuple[str, str, str, str]]:
    """(what, goal, found, whether it is met) of each goal; decided ones count where something was broken."""
    timed = [one for one in items if one.timed]
    decided = [one.took_s for one in timed if one.decided and (one.hit or one.by != "coordinator")]
    undecided = [one.took_s for one in timed if not one.decided]
    rows: list[tuple[str, str, str, str]] = []
    for what, goal_s, times, q, name in (
        ("decided, and met by a fault or ended by another", DECIDED_GOAL_S, decided, 0.99, "p99"),
        ("undecided, from being due", UNDECIDED_GOAL_S, undecided, 1.0, "max"),
    ):
        found = quantile(times, q) if times else None
        met = "none of them" if found is None else "met" if found < goal_s else "NOT met"
        rows.append(
            (f"{what} ({len(times)})", f"{name} < {goal_s:g} s", "" if found is None else f"{found:.3f} s", met)
        )
    return rows


def quantile(times: Sequence[float], q: float) -> float:
    """Of at least one."""
    ordered = sorted(times)
    if len(ordered) == 1 or q >= 1:
        return ordered[-1]
    return statistics.quantiles(ordered, n=100, method="inclusive")[round(q * 100) - 1]
