"""Real processes: started, waited for, killed with -9, restarted, stopped. Knows nothing of what they do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 30.0


class ProcessFailed(Exception):
    """A process did not do what it was started for; the text says what to look at."""


_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 for a server that keeps it over restarts: nobody listens on it now.

    Below those that the system hands out by itself, or a client's connection could take it while the server is down.
    """
    for _ in range(100):
        port = random.randrange(10_000, _first_handed_out())
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
    raise ProcessFailed("no free port of 127.0.0.1 was found")


def _first_handed_out() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:  # not Linux: the range that IANA gives
        return 49_152


@dataclass(eq=False)
class Service:
    """One of the product's processes: `python -m <module>`, its settings, its log file.

    address: host:port of its gRPC server, the same over restarts. failpoints: what the next start is armed
    with. metrics: host:port of its metrics page, once it runs.
    """

    module: str
    address: str
    environment: Mapping[str, str]
    folder: Path
    failpoints: str = ""
    metrics: str = ""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """Everything it has written to standard error, over all its starts."""
        return self.folder / f"{self.module}.log"

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it says that it is ready. Raises ProcessFailed with the end of its log."""
        # A crash of the interpreter itself says in the log what each thread was at.
        own = {"TANDEM_FAILPOINTS": self.failpoints, "PYTHONFAULTHANDLER": "1"}
        environment = {**os.environ, **self.environment, **own}
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            self._hear(stdout)

    def _hear(self, stdout: IO[str]) -> None:
        """Waits until it says that it is ready."""
        watchdog = threading.Timer(START_S, self.kill)
        watchdog.start()
        try:
            line = stdout.readline()
        finally:
            watchdog.cancel()
        if not line.startswith("ready "):
            self.kill()
            raise ProcessFailed(f"{self.module} did not start; the end of {self.log}:\n{tail(self.log)}")
        self.metrics = line.rstrip().rpartition("metrics=")[2]

    def died(self) -> int | None:
        """The signal that ended it, or 0 for an exit of its own; None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        return None if code is None else max(0, -code)

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(STOP_S)

    def stop(self) -> None:
        """SIGTERM, and waits for the drain; kill -9 if it takes too long."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()


class Keeper(threading.Thread):
    """Restarts services that die, each time armed with the next of its failpoints.

    on_death: called with the service after it died and before it is started again.
    """

    def __init__(self, services: Mapping[Service, Sequence[str]], on_death: Callable[[Service], None]) -> None:
        super().__init__(name="keeper", daemon=True)
        self._next = {id(service): list(failpoints) for service, failpoints in services.items()}
        self._services = list(services)
        self._on_death = on_death
        self._stopping = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        """Watches until `stop`."""
        while not self._stopping.wait(0.01):
            for service in self._services:
                if service.died() is None:
                    continue
                try:
                    self._on_death(service)
                    following = self._next[id(service)]
                    service.failpoints = following.pop(0) if following else ""
                    service.start()
                except Exception as error:  # shown by the demo, which looks at it
                    self.failure = error
                    return

    def stop(self) -> None:
        """Ends the watch."""
        self._stopping.set()
        self.join(START_S)


def run(module: str, *arguments: str, environment: Mapping[str, str], timeout_s: float = START_S) -> str:
    """`python -m module arguments` to its end; what it printed. Raises ProcessFailed with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessFailed(
            f"python -m {module} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout


def tail(path: Path, lines: int = 15) -> str:
    """The end of a file."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def wait_until(condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.1) -> bool:
    """Whether the condition came true in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every_s)
    return True
