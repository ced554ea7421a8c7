"""Breaks one thing after another, by a seeded plan: kill -9 and SIGSTOP of processes and databases, and their wires."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import processes
from lab.proxy import Act
from lab.proxy import Fault as WireFault
from lab.torture.house import House

CALM_S = (0.1, 1.0)
"""Between two faults."""

PAUSES_S = (0.2, 1.0, 3.0, 9.0, 13.0)
"""Short ones, and ones that outlast each of the protocol's times: deadlines, push_after, the ttl."""


POINTS = {
    "identity": ("driver.before_prepare", "driver.after_votes", "driver.after_insert", "driver.after_local_commit",
                 "driver.after_commit"),
    "profiles": ("participant.after_stage", "participant.after_prepare", "participant.before_publish",
                 "participant.after_commit"),
}  # fmt: skip
"""Where a process can be made to die, rather than anywhere."""

TROUBLES = {
    "silence": WireFault(Act.SILENCE),
    "replies swallowed": WireFault(Act.SWALLOW),
    "everything 0.3 s late": WireFault(Act.DELAY, seconds=0.3),
}
"""What a wire can be made to do."""

AT_A_POINT_S = 3.0
"""How long a process may live that is to die at a point."""


@dataclass
class Fault:
    """What was done to whom, when (s since the run began), and how long it took until it was back."""

    at: float
    what: str
    whom: str
    killed: bool
    back_after_s: float | None = None

    def __str__(self) -> str:
        back = "" if self.back_after_s is None else f", back after {self.back_after_s:.2f} s"
        return f"{self.at:7.2f} s  {self.what} {self.whom}{back}"


class Nemesis(threading.Thread):
    """Makes faults until `stop`. say: called with each, once it is over."""

    def __init__(self, house: House, seed: int, now: Callable[[], float], say: Callable[[Fault], None]) -> None:
        super().__init__(name="nemesis", daemon=True)
        self._house = house
        self._random = random.Random(seed)
        self._now = now
        self._say = say
        self._stopping = threading.Event()
        self.faults: list[Fault] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        """One fault after another."""
        try:
            while not self._stopping.wait(self._random.uniform(*CALM_S)):
                self._one()
        except Exception as error:  # the run shows it and fails
            self.failure = error

    def stop(self) -> None:
        """Waits for the fault that is being made; whatever was stopped or killed is back then."""
        self._stopping.set()
        self.join()

    def _one(self) -> None:
        chance = self._random
        services, databases = list(self._house.services), list(self._house.databases)
        kinds = {"kill at": 6, "kill": 4, "kill two": 2, "pause": 4, "kill database": 2, "pause database": 2,
                 "cut": 2, "trouble on a wire": 4}  # fmt: skip
        match chance.choices(list(kinds), list(kinds.values()))[0]:
            case "kill at":
                name = chance.choice(sorted(POINTS))
                self._kill_at(name, chance.choice(POINTS[name]), chance.randrange(1, 20))
            case "kill":
                self._kill([chance.choice(services)])
            case "kill two":
                self._kill(chance.sample(services, 2))
            case "pause":
                self._pause(chance.choice(services), _pid_of_service, chance.choice(PAUSES_S))
            case "kill database":
                self._kill_database(chance.choice(databases))
            case "cut":
                self._cut(chance.choice(sorted(self._house.wires)))
            case "trouble on a wire":
                trouble = chance.choice(sorted(TROUBLES))
                self._trouble(chance.choice(sorted(self._house.wires)), trouble, chance.choice(PAUSES_S))
            case _:
                self._pause(chance.choice(databases), _pids_of_database, chance.choice(PAUSES_S))

    def _kill(self, names: Sequence[str]) -> None:
        fault = self._begin("kill -9", " and ".join(names), killed=True)
        for name in names:
            self._house.services[name].kill()
        started = time.monotonic()
        for name in names:
            self._house.services[name].start()
        self._end(fault, started)

    def _kill_at(self, name: str, point: str, passing: int) -> None:
        """Restarts it so that it dies at this point, the so-manieth time that it comes by."""
        service = self._house.services[name]
        service.kill()
        service.failpoints = f"{point}=kill@{passing}"
        service.start()
        fault = self._begin(f"kill -9 at {point} of", name, killed=True)
        processes.wait_until(lambda: service.died() is not None, timeout_s=AT_A_POINT_S, every_s=0.02)
        service.kill()
        fault.at, started = self._now(), time.monotonic()
        service.failpoints = ""
        service.start()
        self._end(fault, started)

    def _kill_database(self, name: str) -> None:
        pid = self._house.postmaster(name)
        if not pid:
            return
        fault = self._begin("kill -9", f"PostgreSQL of {name}", killed=True)
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self._house.restart_database(name)
        self._end(fault, started)

    def _cut(self, wire: str) -> None:
        fault = self._begin("cut", wire, killed=False)
        self._house.wires[wire].cut()
        self._end(fault, None)

    def _trouble(self, wire: str, trouble: str, seconds: float) -> None:
        fault = self._begin(f"{trouble} for {seconds:g} s", wire, killed=False)
        proxy = self._house.wires[wire]
        proxy.set(TROUBLES[trouble])
        try:
            self._stopping.wait(seconds)
        finally:
            proxy.heal()
            proxy.cut()  # what has lost bytes is of no use any more
        self._end(fault, None)

    def _pause(self, name: str, pids: Callable[[House, str], list[int]], seconds: float) -> None:
        stopped = pids(self._house, name)
        what = "PostgreSQL of " if pids is _pids_of_database else ""
        fault = self._begin(f"SIGSTOP for {seconds:g} s", what + name, killed=False)
        _signal(stopped, signal.SIGSTOP)
        try:
            self._stopping.wait(seconds)
        finally:
            _signal(stopped, signal.SIGCONT)
        self._end(fault, None)

    def _begin(self, what: str, whom: str, *, killed: bool) -> Fault:
        fault = Fault(self._now(), what, whom, killed)
        self.faults.append(fault)
        return fault

    def _end(self, fault: Fault, started: float | None) -> None:
        if started is not None:
            fault.back_after_s = time.monotonic() - started
        self._say(fault)


def _pid_of_service(house: House, name: str) -> list[int]:
    return [house.services[name].pid]


def _pids_of_database(house: House, name: str) -> list[int]:
    """The postmaster and all its children, as they are now."""
    postmaster = house.postmaster(name)
    return [postmaster, *_children(postmaster)] if postmaster else []


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
