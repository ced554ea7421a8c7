"""What is measured, and against what. Each round runs yardstick and subject one after the other, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.bench import plans, signups
from lab.bench.backfills import Backfills
from lab.bench.house import PROFILES, House
from lab.bench.imports import Imports
from lab.bench.raw import Batched, Raw
from lab.bench.reconciles import Reconciles
from lab.bench.sweeps import DUE, Swept

AT_ONCE = 64
BULK = 256


@dataclass(frozen=True, slots=True)
class Options:
    """rounds: besides a first one that is thrown away. rows: stored in the large table. transactions: for memory."""

    rounds: int = 5
    seconds: float = 4.0
    rows: int = 1_000_000
    transactions: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One line. ratio: value to yardstick. goal: what the ratio (or the value, without a yardstick) must keep to."""

    name: str
    value: float
    unit: str
    yardstick: float | None
    ratio: float | None
    goal: str
    rounds: int

    @property
    def met(self) -> bool | None:
        """Whether the goal is; None where there is none."""
        if not self.goal:
            return None
        comparison, limit = self.goal.split()
        measured = self.value if self.ratio is None else self.ratio
        return measured <= float(limit) if comparison == "≤" else measured >= float(limit)


Take = Callable[[], float]


class Bench:
    """The measurements over one house. `figures(names)` gives those that are asked for, as they come."""

    def __init__(self, house: House, options: Options) -> None:
        self._house = house
        self._options = options
        self._raw = Raw(house)
        self._batched = Batched(house)
        self._awaited = signups.two_phase(house, "wait")
        self._background = signups.two_phase(house, "background")
        self._dual = signups.dual_write(house)
        self._bulk = signups.bulk(house, BULK)
        self._imports = Imports(house)
        self._backfills = Backfills(house)
        self.measures: dict[str, Callable[[], Iterator[Figure]]] = {
            "signup_latency_awaited": self._latency_awaited,
            "signup_latency_background": self._latency_background,
            "signup_two_participants": self._two_participants,
            "signup_wal": self._written_ahead,
            "signup_concurrent_64": self._concurrent,
            "signup_bulk_256": self._in_bulk,
            "import_rate": self._imported,
            "backfill_rate": self._backfilled,
            "reconcile_rate": self._reconciled,
            "unary_prepare_commit_64": self._unary,
            "sweep_10k_small_table": self._sweeps,
            "sweep_10k_large_table": self._sweeps,
            "sweep_rate": self._sweeps,
            "read_person": self._reads,
            "memory_growth": self._memory,
            "signup_concurrent_64_background": self._concurrent,
            "dual_write_latency": self._latency_background,
            "dual_write_64": self._concurrent,
            "raw_statements": self._concurrent,
            "batched_statements": self._in_bulk,
        }

    def close(self) -> None:
        """Removes what it has made."""
        self._raw.close()
        self._batched.close()

    def figures(self, names: list[str]) -> Iterator[Figure]:
        """Those of these names; all without any."""
        asked = dict.fromkeys(self.measures[name] for name in names or self.measures if name in self.measures)
        for measure in asked:
            for figure in measure():
                if not names or figure.name in names:
                    yield figure

    # --- one after the other --------------------------------------------------------------------------------

    def _latency_awaited(self) -> Iterator[Figure]:
        count = 200
        raw, ours = self._rounds(
            lambda: self._raw.latency_ms(count), lambda: statistics.median(signups.latencies_ms(self._awaited, count))
        )
        yield self._against("signup_latency_awaited", ours, "ms", raw, "≤ 2.5")

    def _latency_background(self) -> Iterator[Figure]:
        count = 200
        dual, ours = self._rounds(
            lambda: statistics.median(signups.latencies_ms(self._dual, count)),
            lambda: statistics.median(signups.latencies_ms(self._background, count)),
        )
        yield self._against("signup_latency_background", ours, "ms", dual, "≤ 1.25")
        yield self._alone("dual_write_latency", dual, "ms")

    def _two_participants(self) -> Iterator[Figure]:
        """Asked at once: what a second one adds."""
        count = 200
        both = signups.two_phase(self._house, "wait", ("profiles", "second"))
        one, two = self._rounds(
            lambda: statistics.median(signups.latencies_ms(self._awaited, count)),
            lambda: statistics.median(signups.latencies_ms(both, count)),
        )
        yield self._against("signup_two_participants", two, "ms", one, "")

    def _written_ahead(self) -> Iterator[Figure]:
        """On both servers; a checkpoint first, so that each page is written whole once, as it is in a busy server."""
        count = 500

        def written(work: Callable[[], object]) -> float:
            engines = (self._house.engine, self._house.profiles_engine)
            for engine in engines:
                plans.checkpoint(engine)
            before = [plans.written_ahead(engine) for engine in engines]
            work()
            signups.delivered(self._house)()
            after = [plans.written_ahead(engine) for engine in engines]
            return (sum(after) - sum(before)) / count

        raw, ours = self._rounds(
            lambda: written(lambda: self._raw.latency_ms(count)),
            lambda: written(lambda: signups.latencies_ms(self._awaited, count)),
        )
        yield self._against("signup_wal", ours, "B", raw, "")

    # --- many at once ---------------------------------------------------------------------------------------

    def _concurrent(self) -> Iterator[Figure]:
        seconds, all_delivered = self._options.seconds, signups.delivered(self._house)
        raw, dual, awaited, background = self._rounds(
            self._raw_rate,
            lambda: signups.per_second(self._dual, AT_ONCE, seconds),
            lambda: signups.per_second(self._awaited, AT_ONCE, seconds),
            lambda: signups.per_second(self._background, AT_ONCE, seconds, until_done=all_delivered),
        )
        yield self._against("signup_concurrent_64", awaited, "/s", raw, "≥ 1.0")
        yield self._against("signup_concurrent_64_background", background, "/s", dual, "≥ 1.5")
        yield self._alone("dual_write_64", dual, "/s")
        yield self._alone("raw_statements", raw, "/s")

    def _raw_rate(self) -> float:
        """pgbench's best of three."""
        return max(self._raw.per_second(AT_ONCE, int(1_000 * self._options.seconds)) for _ in range(3))

    def _unary(self) -> Iterator[Figure]:
        both = signups.prepare_and_commit(self._house)
        raw, ours = self._rounds(
            self._raw_rate,
            lambda: signups.per_second(both, AT_ONCE, self._options.seconds),
        )
        yield self._against("unary_prepare_commit_64", ours, "/s", raw, "")

    def _in_bulk(self) -> Iterator[Figure]:
        calls = max(4, int(4 * self._options.seconds))

        def rate(call: Callable[[], object]) -> float:
            began = time.perf_counter()
            for _ in range(calls):
                call()
            return calls * BULK / (time.perf_counter() - began)

        batched, ours = self._rounds(lambda: rate(lambda: self._batched.sign_up(BULK)), lambda: rate(self._bulk))
        yield self._against("signup_bulk_256", ours, "/s", batched, "≥ 0.85")
        yield self._alone("batched_statements", batched, "/s")

    def _imported(self) -> Iterator[Figure]:
        """Persons with a business each, by the import of identity, from its client to the last answer."""
        pairs = int(400 * self._options.seconds)
        (ours,) = self._rounds(lambda: self._imports.per_second(pairs))
        yield self._alone("import_rate", ours, "/s")

    def _backfilled(self) -> Iterator[Figure]:
        """Persons of old accounts, by the command; so many that its first and last batches make no difference."""
        users = int(15_000 * self._options.seconds)
        plain, ours = self._rounds(
            lambda: self._backfills.without_protocol(users), lambda: self._backfills.per_second(users)
        )
        yield self._against("backfill_rate", ours, "/s", plain, "≥ 0.4")

    def _reconciled(self) -> Iterator[Figure]:
        """Migrated persons compared on both sides, all facts of each."""
        users = int(5_000 * self._options.seconds)
        reconciles = Reconciles(self._house, self._backfills)
        reconciles.prepare(users)
        read, ours = [], []
        for round_ in range(self._options.rounds + 1):
            taken = reconciles.merely_read(users), reconciles.per_second(users)
            if round_:
                read.append(taken[0])
                ours.append(taken[1])
        yield self._against("reconcile_rate", ours, "/s", read, "")

    def _reads(self) -> Iterator[Figure]:
        def take() -> float:
            return signups.per_second(signups.read_person(self._house), AT_ONCE, self._options.seconds)

        (ours,) = self._rounds(take)
        yield self._alone("read_person", ours, "/s")

    # --- sweeps ---------------------------------------------------------------------------------------------

    def _sweeps(self) -> Iterator[Figure]:
        swept = Swept(self._house)
        try:
            times: dict[int, list[float]] = {}
            for stored in (0, self._options.rows):
                swept.store(stored)
                times[stored] = [swept.seconds() for _ in range(self._options.rounds + 1)][1:]
        finally:
            swept.close()
            signups.empty(self._house)
        small, large = times[0], times[self._options.rows]
        yield self._alone("sweep_10k_small_table", small, "s")
        yield self._against("sweep_10k_large_table", large, "s", small, "≤ 1.2")
        yield self._alone("sweep_rate", [DUE / took for took in small], "/s", "≥ 10000")

    # --- memory ---------------------------------------------------------------------------------------------

    def _memory(self) -> Iterator[Figure]:
        """Of profiles, from the first tenth of the transactions on."""
        pid, total = self._house.pid(PROFILES), self._options.transactions
        done = 0
        resident: list[float] = []
        for until in (total // 10, total):
            while done < until:
                self._bulk()
                done += BULK
            resident.append(_resident_mib(pid))
        signups.empty(self._house)
        first, last = resident
        yield Figure("memory_growth", last, "MiB", first, last / first, "≤ 1.05", 1)

    # --- shared ---------------------------------------------------------------------------------------------

    def _rounds(self, *takes: Take) -> list[list[float]]:
        """So many of each, in turns, after one of each to warm up."""
        taken: list[list[float]] = [[] for _ in takes]
        for round_ in range(self._options.rounds + 1):
            signups.empty(self._house)
            for mine, take in zip(taken, takes, strict=True):
                value = take()
                if round_:
                    mine.append(value)
        return taken

    def _against(self, name: str, ours: list[float], unit: str, yardstick: list[float], goal: str) -> Figure:
        value, other = statistics.median(ours), statistics.median(yardstick)
        return Figure(name, value, unit, other, value / other, goal, len(ours))

    def _alone(self, name: str, ours: list[float], unit: str, goal: str = "") -> Figure:
        return Figure(name, statistics.median(ours), unit, None, None, goal, len(ours))


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")
