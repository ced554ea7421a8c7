"""The life of a process: start, say where it listens, wait for SIGTERM or SIGINT, drain."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from tandem.runtime.failpoints import failpoint
from tandem.runtime.telemetry import logger

log = logger("tandem.process")


def run_until_signal(stop: Callable[[], None]) -> None:
    """Blocks until SIGTERM or SIGINT, then calls `stop` once. A second signal ends the process at once."""
    asked = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        if asked.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    if failpoint.armed:
        log.warning("failpoints are armed", failpoints=sorted(failpoint.armed))
    asked.wait()
    log.info("draining")
    stop()
    log.info("stopped")
