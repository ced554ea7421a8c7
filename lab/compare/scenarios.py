"""What is done to a design, one scenario after another, and what each tells."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from identity_stub.client import Identity
from lab import processes
from lab.compare.house import House, Orphans
from lab.compare.load import Load, Told
from lab.torture.doubt import quantile
from tandem.profiles.client import open_profiles
from tandem.profiles.updates import Updates
from tandem.profiles.v1 import person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.errors import TandemError

AT_ONCE = 16
TAKEN_SHARE = 0.1
PAIRS_A_SECOND = 10
DIES_S = 60.0
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Options:
    """seconds: of load in each scenario. rate: signups a second. down_s: how long somebody is away."""

    seconds: float
    seed: int
    rate: float
    down_s: float = 5.0


@dataclass
class Row:
    """What one scenario has told of one design. Times in ms; None where there is nothing to tell.

    away: from when to when somebody was away, in s after the load began. points: (due in s, time in ms, whether it was
    acknowledged) of each signup, for the plots. refused: of those that were due while somebody was away, or of all.
    after_fault, after_quiet: (accounts without a profile, profiles without an account), more than before.
    """

    design: str
    scenario: str
    signups: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    per_second: float | None = None
    readable_p50_ms: float | None = None
    readable_p99_ms: float | None = None
    readable_max_ms: float | None = None
    never_readable: int = 0
    saw_none: int = 0
    refused: int = 0
    after_fault: tuple[int, int] | None = None
    after_quiet: tuple[int, int] | None = None
    rejected_later: int = 0
    lost_updates: int | None = None
    told_to_lose: int | None = None
    doubled: int | None = None
    is_quiet: bool = True
    away: tuple[float, float] | None = None
    points: list[tuple[float, float, bool]] = field(default_factory=list)

    @property
    def refused_share(self) -> float | None:
        """Of the signups that were due while somebody was away: those that were not acknowledged."""
        if self.away is None:
            return None
        due = [ok for due_s, _, ok in self.points if self.away[0] <= due_s <= self.away[1]]
        return sum(not ok for ok in due) / len(due) if due else None


Scenario = Callable[[House, Options, str], Row]


def nothing(house: House, options: Options, name: str) -> Row:
    """No fault: latency at a steady rate; then how many a second AT_ONCE clients get through."""
    # Connections, plans and consumers' partitions are not what is compared.
    Load(house.address, f"{name}w", seed=options.seed, rate=options.rate).run(WARM_UP_S)
    house.quiet()
    row = _loaded(house, options, name, "none")
    load = Load(house.address, f"{name}x", seed=options.seed, rate=None, clients=AT_ONCE)
    told = load.run(options.seconds / 2)
    row.per_second = sum(one.ok for one in told.signed) / told.seconds
    house.quiet()
    return row


def profiles_down(house: House, options: Options, name: str) -> Row:
    """profiles is killed with -9 and started again later."""
    service = house.services["profiles"]

    def fault() -> None:
        service.kill()
        time.sleep(options.down_s)
        service.start()

    return _loaded(house, options, name, "profiles down", fault)


def identity_killed(house: House, options: Options, name: str) -> Row:
    """identity dies of kill -9 between its write on one side and that on the other, and is started again: twice."""
    service = house.services["identity"]

    def start(failpoints: str) -> None:
        service.failpoints = failpoints
        service.start()

    def fault() -> None:
        for number, point in enumerate(house.design.midway):
            if number == 0:
                service.stop()
                start(f"{point}=kill@5")
            if not processes.wait_until(lambda: service.died() is not None, timeout_s=DIES_S, every_s=0.01):
                raise processes.ProcessFailed(f"{service.module} did not die of {point}")
            following = house.design.midway[number + 1 :]
            start(f"{following[0]}=kill@5" if following else "")

    return _loaded(house, options, name, "identity killed", fault)


def broker_down(house: House, options: Options, name: str) -> Row:
    """The broker stands still: it is stopped as a process, with its connections open, and goes on later."""
    if house.broker is None:
        return _loaded(house, options, name, "broker down")

    def fault() -> None:
        pid = house.broker.nodes[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(options.down_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    return _loaded(house, options, name, "broker down", fault)


def profile_rejected(house: House, options: Options, name: str) -> Row:
    """A tenth of the signups ask for a registration number that is taken: is it told at once, or later?"""
    return _loaded(house, options, name, "profile rejected", taken_share=TAKEN_SHARE)


def concurrent_updates(house: House, options: Options, name: str) -> Row:
    """Two clients that have read the same person change the same field, each as the design's clients do."""
    row = Row(house.design.name, "two updates", lost_updates=0, told_to_lose=0)
    pairs = max(3, int(options.seconds * PAIRS_A_SECOND / 2))
    load = Load(house.address, name, seed=options.seed, rate=50.0, clients=4)
    told = load.run(pairs / 50.0 + 0.1)
    house.quiet()
    ids = [one.person_id for one in told.signed if one.ok]
    with open_profiles(house.address["profiles"]) as channel, ThreadPoolExecutor(2) as pool:
        stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
        updates = Updates(stub)
        for person_id in ids:
            read = stub.GetPerson(pb.GetPersonRequest(person_id=person_id, allow_missing=True), timeout=5).person
            if not read.version:
                continue
            row.signups += 1
            barrier = threading.Barrier(2)

            def change(country: str, read: person_pb2.Person = read, barrier: threading.Barrier = barrier) -> bool:
                wanted = person_pb2.Person()
                wanted.CopyFrom(read)
                wanted.nationalities[:] = [country]
                barrier.wait(5)
                try:
                    updates.person(read, wanted, on_conflict=house.design.on_conflict)
                except TandemError:
                    return False
                return True

            told_ok = list(pool.map(change, ("FR", "US")))
            assert row.lost_updates is not None
            assert row.told_to_lose is not None
            row.lost_updates += all(told_ok)  # both were told that it is done, and one field holds one value
            row.told_to_lose += sum(not ok for ok in told_ok)
    return row


def delivered_twice(house: House, options: Options, name: str) -> Row:
    """Each request is sent twice at once, and once more in reverse order; so is each message of a broker."""
    before = house.orphans()
    load = Load(house.address, name, seed=options.seed, rate=options.rate, twice=True)
    told = load.run(options.seconds / 2)
    house.quiet()
    with Identity(house.address["identity"]) as identity:
        for request in reversed(load.requests):
            try:
                identity.once(identity.stub.SignUp, request, timeout_s=5.0)
            except TandemError:
                continue
    if house.broker is not None:
        from lab.compare.redelivery import redeliver

        redeliver(house.broker.servers)
    row = _row(house, "delivered twice", told)
    row.is_quiet = house.quiet()
    row.after_quiet = _pair(house.orphans() - before)
    row.doubled = max(0, house.accounts(f"{name}-") - len(load.requests))
    return row


SCENARIOS: dict[str, Scenario] = {
    "none": nothing,
    "profiles down": profiles_down,
    "identity killed": identity_killed,
    "broker down": broker_down,
    "profile rejected": profile_rejected,
    "two updates": concurrent_updates,
    "delivered twice": delivered_twice,
}


def _loaded(
    house: House,
    options: Options,
    name: str,
    scenario: str,
    fault: Callable[[], None] | None = None,
    *,
    taken_share: float = 0.0,
) -> Row:
    """Load at a steady rate, a fault in it, and then quiet."""
    before = house.orphans()
    at_once: Orphans | None = None
    away = (0.0, 0.0)
    load = Load(house.address, name, seed=options.seed, rate=options.rate, taken_share=taken_share)

    def meanwhile() -> None:
        nonlocal at_once, away
        assert fault is not None
        began = time.monotonic()
        time.sleep(options.seconds / 3)
        from_s = time.monotonic() - began
        fault()
        away = (from_s, time.monotonic() - began)
        at_once = house.orphans()

    told = load.run(options.seconds, None if fault is None else meanwhile)
    row = _row(house, scenario, told)
    row.is_quiet = house.quiet()
    now = house.orphans() - before
    row.after_quiet, row.rejected_later = _pair(now), now.rejected
    if at_once is not None:
        row.after_fault, row.away = _pair(at_once - before), away
        row.refused = sum(not one.ok and away[0] <= one.due_s <= away[1] for one in told.signed)
    return row


def _row(house: House, scenario: str, told: Told) -> Row:
    times = [1e3 * (one.done_s - one.due_s) for one in told.signed if one.ok]
    readable = [1e3 * one.readable_s for one in told.looked if one.readable_s is not None]
    return Row(
        house.design.name,
        scenario,
        signups=len(told.signed),
        p50_ms=_quantile(times, 0.5),
        p99_ms=_quantile(times, 0.99),
        per_second=len(times) / told.seconds,
        readable_p50_ms=_quantile(readable, 0.5),
        readable_p99_ms=_quantile(readable, 0.99),
        readable_max_ms=max(readable, default=None),
        never_readable=sum(one.readable_s is None for one in told.looked),
        saw_none=sum(one.was_missing for one in told.looked),
        refused=sum(not one.ok for one in told.signed),
        points=sorted((one.due_s, 1e3 * (one.done_s - one.due_s), one.ok) for one in told.signed),
    )


def _pair(orphans: Orphans) -> tuple[int, int]:
    return orphans.accounts, orphans.profiles


def _quantile(values: list[float], share: float) -> float | None:
    return quantile(values, share) if values else None
