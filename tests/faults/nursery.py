"""Processes that start in a tenth of the time: forked from one that has imported everything and done nothing yet.

Each is a process of its own all the same, runs what `python -m module` runs, and dies of kill -9. (Nine tenths of a
start are imports; tests/e2e starts processes the ordinary way.)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from lab.processes import ROOT, START_S, STOP_S, ProcessFailed, Service, tail
from tandem.runtime import failpoints

_nursery = multiprocessing.get_context("forkserver")
_nursery.set_forkserver_preload([
    "alembic.command",
    "coordinator.cli",
    "identity_stub.cli",
    "profiles_server.cli",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "tests.faults.nursery",
    "xmlrpc.server",
])  # fmt: skip


def _live(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: str, said: Connection) -> None:
    """`python -m module arguments`, in a process that was just forked."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull) as nothing, open(log, "a") as errors:
        for mine, standard in ((nothing.fileno(), 0), (said.fileno(), 1), (errors.fileno(), 2)):
            os.dup2(mine, standard)
    said.close()
    # What was imported before has read the environment of before.
    failpoints.failpoint._left.update(failpoints.Failpoints(os.environ).armed)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _begin(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> tuple[BaseProcess, Connection]:
    hears, says = _nursery.Pipe(duplex=False)
    with says:
        process = _nursery.Process(target=_live, args=(module, arguments, environment, str(log), says))
        process.start()
    return process, hears


def run(module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> int:
    """`python -m module arguments` to its end: its exit status, or minus the signal. What it says goes to the log."""
    process, hears = _begin(module, arguments, {**os.environ, **environment}, log)
    with hears:
        process.join(START_S)
        if process.exitcode is None:
            process.kill()
            raise ProcessFailed(f"{module} {arguments} does not end; the end of {log}:\n{tail(log)}")
    return process.exitcode


@dataclass(eq=False)
class Child(Service):
    """A service out of the nursery; started the ordinary way where the linker is told something by its environment."""

    _child: BaseProcess | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        if self._child is None:
            return super().pid
        assert self._child.pid is not None
        return self._child.pid

    def start(self) -> None:
        if "LD_PRELOAD" in self.environment:
            self._child = None
            super().start()
            return
        environment = {**os.environ, **self.environment, "TANDEM_FAILPOINTS": self.failpoints}
        self._child, hears = _begin(self.module, (), environment, self.log)
        with hears, open(hears.fileno(), closefd=False) as stdout:
            self._hear(stdout)

    def died(self) -> int | None:
        if self._child is None:
            return super().died()
        code = self._child.exitcode
        return None if code is None else max(0, -code)

    def kill(self) -> None:
        if self._child is None:
            super().kill()
        else:
            self._child.kill()
            self._child.join(STOP_S)

    def stop(self) -> None:
        if self._child is None:
            super().stop()
        elif self.died() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._child.join(STOP_S)
            self.kill()
