"""Carries out a plan: kill -9 and SIGSTOP of processes and databases, and troubles on their wires, in two lanes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab import processes
from lab.proxy import Act, CallFault, Cue, RpcRelay
from lab.proxy import Fault as WireFault
from lab.torture.faults import Family, Fault
from lab.torture.house import House
from lab.torture.plan import LANES, Step, steps

TROUBLES = {
    "silence": WireFault(Act.SILENCE),
    "replies swallowed": WireFault(Act.SWALLOW),
    "everything 0.3 s late": WireFault(Act.DELAY, seconds=0.3),
}
"""What a wire can be made to do for a while."""

CUTS = 2
"""Connections that are cut at the INSERT of a user."""

FAILED_STARTS = 3
"""So often a process may fail to start while nothing else is broken."""

HOLD_S = 1.0
"""How long a lane waits for a victim that the other has; then it passes the step over."""

AGAIN = 100
"""Messages that are sent once more at a time."""

TICK_S = 0.02


def at_insert_of_a_user(message: bytes) -> bool:
    """Whether identity is about to write a user."""
    return b"INSERT INTO identity.users" in message


class Nemesis:
    """Makes faults from `start` to `stop`. say: called with each, once it is over."""

    def __init__(
        self, house: House, seed: int, run_s: float, now: Callable[[], float], say: Callable[[Fault], None]
    ) -> None:
        self.house = house
        self.now = now
        self.stopping = threading.Event()
        self.faults: list[Fault] = []
        self._say = say
        self._lock = threading.Lock()
        self._victims: dict[str, threading.Lock] = {name: threading.Lock() for name in house.targets.victims}
        self._lanes = [
            _Lane(self, number, steps(seed, number, run_s=run_s, targets=house.targets)) for number in range(LANES)
        ]

    @property
    def failure(self) -> Exception | None:
        """What went wrong with the nemesis itself."""
        return next((lane.failure for lane in self._lanes if lane.failure is not None), None)

    def start(self) -> None:
        """Begins."""
        for lane in self._lanes:
            lane.start()

    def stop(self) -> None:
        """Waits for the faults that are being made; whatever was stopped or killed is back then."""
        self.stopping.set()
        for lane in self._lanes:
            lane.join()

    @contextmanager
    def holding(self, victims: Iterable[str]) -> Iterator[bool]:
        """Nobody else touches them meanwhile; False if another lane has one of them, and keeps it."""
        with ExitStack() as stack:
            for name in sorted(victims):
                if not self._victims[name].acquire(timeout=HOLD_S):
                    yield False
                    return
                stack.callback(self._victims[name].release)
            yield True

    def begin(self, fault: Fault) -> Fault:
        """A fault that is being made."""
        with self._lock:
            self.faults.append(fault)
        return fault

    def end(self, fault: Fault) -> None:
        """Its victim is back."""
        fault.until = self.now()
        self._say(fault)

    def others(self, lane: int) -> bool:
        """Whether another lane has something broken now."""
        with self._lock:
            return any(fault.until is None and fault.lane != lane for fault in self.faults)


class _Lane(threading.Thread):
    """Takes one step after another."""

    def __init__(self, nemesis: Nemesis, number: int, plan: Iterator[Step]) -> None:
        super().__init__(name=f"nemesis-{number}", daemon=True)
        self._nemesis = nemesis
        self._house = nemesis.house
        self._number = number
        self._plan = plan
        self.failure: Exception | None = None

    def run(self) -> None:
        """One step after another."""
        try:
            for step in self._plan:
                if self._nemesis.stopping.wait(step.calm_s):
                    return
                with self._nemesis.holding(step.victims) as held:
                    if held and not self._nemesis.stopping.is_set():
                        self._take(step)
        except Exception as error:  # the run shows it and fails
            self.failure = error

    def _take(self, step: Step) -> None:
        victim = step.victims[0]
        match step.what:
            case "kill":
                self._kill(step.victims)
            case "kill at":
                self._kill_at(step)
            case "pause":
                self._pause(victim, lambda: [self._house.services[victim].pid], step)
            case "pause database":
                self._pause_all(self._house.postmaster(victim), step)
            case "kill database":
                self._kill_database(victim)
            case "kill broker" if self._house.broker_is_durable:
                self._kill_broker(victim)
            case "pause broker" | "kill broker":
                self._pause_all(self._house.broker_pid, step)
            case "redeliver":
                fault = self._begin("messages again to", victim, Family.BROKER)
                fault.what = f"{self._house.again(AGAIN)} {fault.what}"
                self._nemesis.end(fault)
            case "cut":
                fault = self._begin("cut", victim, Family.WIRE)
                self._house.wires[victim].cut()
                self._nemesis.end(fault)
            case "cut at insert":
                self._cut_at_insert(victim, step.seconds)
            case "repeat":
                self._repeat(victim, step.seconds)
            case _:
                self._trouble(victim, step.what, step.seconds)

    # --- processes --------------------------------------------------------------------------------------------

    def _kill(self, names: Sequence[str]) -> None:
        fault = self._begin("kill -9", " and ".join(names), Family.KILL, kills=len(names))
        for name in names:
            self._house.services[name].kill()
        for name in names:
            self._start(name)
        self._nemesis.end(fault)

    def _kill_at(self, step: Step) -> None:
        """Restarts it so that it dies at this point, the so-manieth time that it comes by."""
        point = step.point
        assert point is not None
        itself = point.service == "identity" and point.after  # it is armed once it has left something in doubt
        if not itself:
            self._arm(point.service, point.name, step.passing)
        if point.after and not self._nemesis.stopping.is_set():
            self._arm("identity", point.after, 1)
            self._die("identity", point.after, 3.0, then=f"{point.name}=kill@{step.passing}" if itself else "")
        self._die(point.service, point.name, point.within_s)

    def _arm(self, name: str, point: str, passing: int) -> None:
        service = self._house.services[name]
        fault = self._begin("kill -9 (to arm it)", name, Family.KILL, kills=1)
        service.kill()
        service.failpoints = f"{point}=kill@{passing}"
        self._start(name)
        self._nemesis.end(fault)

    def _die(self, name: str, point: str, within_s: float, *, then: str = "") -> None:
        """Waits for it to die there, and starts it again. then: what it is armed with from now on."""
        service = self._house.services[name]
        began = self._nemesis.now()
        self._wait(lambda: service.died() is not None, within_s)
        passed = service.died() is not None
        waited = f"never passed in {self._nemesis.now() - began:.1f} s"
        what = f"kill -9 at {point} of" if passed else f"kill -9 ({point} was {waited}) of"
        fault = self._begin(what, name, Family.KILL, kills=1)
        if passed:
            fault.at = max(began, fault.at - TICK_S)
        service.kill()
        service.failpoints = then
        self._start(name)
        self._nemesis.end(fault)

    def _start(self, name: str) -> None:
        """As a supervisor does: again and again, since its database may be away. Raises ProcessFailed."""
        failed = 0
        while True:
            try:
                self._house.start_service(name)
                return
            except processes.ProcessFailed:
                service = self._house.services[name]
                if service.failpoints and service.died() == signal.SIGKILL:
                    return  # at what it is armed with, before it could say that it was ready
                failed += not self._nemesis.others(self._number)
                if failed >= FAILED_STARTS:
                    raise

    # --- processes and databases --------------------------------------------------------------------------------

    def _pause_all(self, parent: int, step: Step) -> None:
        """A process and its children, if it is there."""
        if parent:
            self._pause(step.victims[0], lambda: [parent, *_children(parent)], step)

    def _pause(self, name: str, pids: Callable[[], list[int]], step: Step) -> None:
        fault = self._begin(f"SIGSTOP for {step.seconds:g} s", name, step.family)
        stopped: list[int] = []
        try:
            # Who is stopped forks nobody: once the first is, the list ends.
            while new := [pid for pid in pids() if pid not in stopped]:
                first = new[:1] if not stopped else new
                _signal(first, signal.SIGSTOP)
                stopped += first
            self._nemesis.stopping.wait(step.seconds)
        finally:
            _signal(stopped, signal.SIGCONT)
        fault.pause_s = self._nemesis.now() - fault.at
        self._nemesis.end(fault)

    def _kill_database(self, name: str) -> None:
        pid = self._house.postmaster(name)
        if not pid:
            return
        fault = self._begin("kill -9", name, Family.DATABASE, kills=1)
        os.kill(pid, signal.SIGKILL)
        self._house.restart_database(name)
        self._nemesis.end(fault)

    def _kill_broker(self, name: str) -> None:
        fault = self._begin("kill -9", name, Family.BROKER, kills=1)
        self._house.restart_broker()
        self._nemesis.end(fault)

    # --- wires --------------------------------------------------------------------------------------------------

    def _cut_at_insert(self, wire: str, within_s: float) -> None:
        proxy = self._house.wires[wire]
        fault = self._begin("cut at the INSERT of a user", wire, Family.WIRE)
        struck = proxy.struck
        proxy.set(WireFault(Act.CUT, cue=Cue(request=at_insert_of_a_user), times=CUTS))
        self._wait(lambda: proxy.struck >= struck + CUTS, within_s)
        proxy.heal()
        fault.what += f" ({proxy.struck - struck} connections)"
        self._nemesis.end(fault)

    def _repeat(self, wire: str, seconds: float) -> None:
        """Every request arrives twice, and the last one once more in the end."""
        proxy = self._house.wires[wire]
        target = proxy.target
        fault = self._begin(f"each request twice for {seconds:g} s", wire, Family.WIRE)
        with RpcRelay(target) as relay:
            relay.set(CallFault(copies=1, times=None))
            try:
                proxy.target = relay.address
                proxy.cut()
                self._nemesis.stopping.wait(seconds)
            finally:
                proxy.target = target
                proxy.cut()
            if relay.seen:
                relay.again("", timeout_s=1.0)
        self._nemesis.end(fault)

    def _trouble(self, wire: str, trouble: str, seconds: float) -> None:
        fault = self._begin(f"{trouble} for {seconds:g} s", wire, Family.WIRE)
        proxy = self._house.wires[wire]
        proxy.set(TROUBLES[trouble])
        try:
            self._nemesis.stopping.wait(seconds)
        finally:
            proxy.heal()
            proxy.cut()  # what has lost bytes is of no use any more
        self._nemesis.end(fault)

    # --- shared -------------------------------------------------------------------------------------------------

    def _begin(self, what: str, whom: str, family: Family, *, kills: int = 0) -> Fault:
        return self._nemesis.begin(Fault(self._nemesis.now(), what, whom, family, kills, self._number))

    def _wait(self, condition: Callable[[], bool], within_s: float) -> None:
        """Until it holds, or the time is over, or the run."""
        until = self._nemesis.now() + within_s
        while not condition() and self._nemesis.now() < until and not self._nemesis.stopping.wait(TICK_S):
            pass


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
