"""Draws how long signups take without a fault, and who was served around each fault, into one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from lab.compare.scenarios import Row

BIN_S = 0.5


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the picture of what was measured."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    faults = list(dict.fromkeys(row.scenario for row in rows if row.away))
    figure, axes = pyplot.subplots(1, 1 + len(faults), figsize=(5 * (1 + len(faults)), 4.5), layout="constrained")
    panels = [axes] if not faults else list(axes)
    for row in rows:
        if row.scenario == "none":
            times = sorted(ms for _, ms, ok in row.points if ok)
            panels[0].plot(times, [100 * (i + 1) / len(times) for i in range(len(times))], label=row.design)
    panels[0].set(title="signups answered within, no fault", xlabel="ms", xscale="log", ylabel="%", ylim=(0, 101))
    panels[0].legend()
    for panel, fault in zip(panels[1:], faults, strict=True):
        for row in rows:
            if row.scenario == fault:
                panel.plot(*_availability(row), label=row.design, drawstyle="steps-post", alpha=0.8)
                if row.away:
                    panel.axvspan(*row.away, color="lightgrey", alpha=0.2, zorder=0)
        panel.set(title=f"{fault}: signups acknowledged", xlabel="due, s", ylabel="%", ylim=(-3, 103))
        panel.legend()
    figure.savefig(path, dpi=110)


def _availability(row: Row) -> tuple[list[float], list[float]]:
    """(begin of each bin in s, % of the signups due in it that were acknowledged)."""
    bins: dict[int, list[bool]] = {}
    for due_s, _, ok in row.points:
        bins.setdefault(int(due_s / BIN_S), []).append(ok)
    times = sorted(bins)
    return [BIN_S * one for one in times], [100 * sum(bins[one]) / len(bins[one]) for one in times]
