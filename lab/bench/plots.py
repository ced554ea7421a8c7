"""Draws throughput and latency over concurrency, and the time of a sweep over what is stored, into one PNG."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

from lab.bench import signups
from lab.bench.house import CONNECTIONS, House
from lab.bench.sweeps import DUE, Swept

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STORED = (0, 100_000, 300_000, 1_000_000)


def draw(house: House, path: Path, *, seconds: float) -> None:
    """Measures, and writes the picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = {
        "awaited": signups.two_phase(house, "wait"),
        "background": signups.two_phase(house, "background"),
        "dual write": signups.dual_write(house),
    }
    figure, (rates, latencies, sweeps) = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for name, sign_up in ways.items():
        signups.empty(house)
        signups.load(sign_up, 16, 1.0)
        taken = [signups.load(sign_up, threads, seconds) for threads in CONCURRENCIES]
        signups.delivered(house)()
        rates.plot(CONCURRENCIES, [rate for rate, _ in taken], marker="o", label=name)
        latencies.plot(CONCURRENCIES, [statistics.median(times) for _, times in taken], marker="o", label=name)
    rates.set(title="signups a second", xscale="log", xlabel="at the same time", ylim=(0, None))
    latencies.set(title="median of a signup, ms", xscale="log", yscale="log", xlabel="at the same time")
    rates.axvline(CONNECTIONS, color="lightgrey", zorder=0)
    swept = Swept(house)
    times = []
    for stored in STORED:
        swept.store(stored)
        times.append(statistics.median(swept.seconds() for _ in range(4)))
    swept.close()
    sweeps.plot([stored + DUE for stored in STORED], times, marker="o")
    sweeps.set(title=f"a sweep of {DUE:,}, s", xscale="log", xlabel="transactions stored", ylim=(0, None))
    rates.legend()
    latencies.legend()
    figure.savefig(path, dpi=120)
