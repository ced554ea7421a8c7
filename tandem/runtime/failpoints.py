"""Places where a test can make a process die, named, and armed by the environment alone.

    TANDEM_FAILPOINTS="driver.after_votes=kill@3,participant.after_stage=kill"

`kill` is kill -9 of the own process; `@n` means at the n-th passing (default: the first). A failpoint fires once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping

VARIABLE = "TANDEM_FAILPOINTS"


class Failpoints:
    """The armed failpoints of a process. Without any, passing one costs a dictionary's `if`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()
        for entry in filter(None, environment.get(VARIABLE, "").split(",")):
            name, _, action = entry.partition("=")
            verb, _, count = action.partition("@")
            if verb != "kill" or (count and not count.isdigit()):
                raise ValueError(f"{VARIABLE}: {entry!r} is not name=kill or name=kill@n")
            self._left[name.strip()] = int(count or 1)

    @property
    def armed(self) -> Mapping[str, int]:
        """The names still armed, with the passings left."""
        return dict(self._left)

    def __call__(self, name: str) -> None:
        """Passes the failpoint `name`."""
        if not self._left:
            return
        with self._lock:
            left = self._left.get(name)
            if left is None:
                return
            self._left[name] = left - 1
            if left > 1:
                return
        os.kill(os.getpid(), signal.SIGKILL)


def _of_this_process() -> Failpoints:
    try:
        return Failpoints(os.environ)
    except ValueError as error:  # ours, without a value of anybody's
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


failpoint = _of_this_process()
"""The process's own failpoints: `failpoint("driver.after_votes")`."""
