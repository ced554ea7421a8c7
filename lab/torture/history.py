"""What every call asked for and what it was told. The judge reads nothing else, and the databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Answer(StrEnum):
    """What a client may conclude. UNKNOWN: perhaps it was done."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass
class Call:
    """One call of one client. asked and told: what the judge needs of the request and of the answer; no bodies.

    began, ended: seconds since the run began; ended is None while it runs.
    """

    client: int
    kind: str
    asked: dict[str, str]
    began: float
    ended: float | None = None
    answer: Answer = Answer.UNKNOWN
    reason: str = ""
    told: dict[str, str] = field(default_factory=dict)

    @property
    def over(self) -> float:
        """When it ended; never, while it runs."""
        return float("inf") if self.ended is None else self.ended

    def __str__(self) -> str:
        ended = "…" if self.ended is None else f"{self.ended:.3f}"
        told = f"{self.answer} {self.reason} {self.told}"
        return f"{self.began:.3f}–{ended} s client {self.client}: {self.kind} {self.asked} → {told}"


class History:
    """All calls, in the order in which they began. Thread-safe."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._wall = time.time()

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def since(self, moment: datetime) -> float:
        """A database's time as seconds since the run began: both read the clock of this machine."""
        return moment.timestamp() - self._wall

    def begin(self, client: int, kind: str, **asked: str) -> Call:
        """A call that is about to be made."""
        call = Call(client, kind, asked, self.now())
        with self._lock:
            self._calls.append(call)
        return call

    def end(self, call: Call, answer: Answer, reason: str = "", **told: str) -> None:
        """What it was told."""
        call.answer, call.reason, call.told = answer, reason, told
        call.ended = self.now()

    def __iter__(self) -> Iterator[Call]:
        with self._lock:
            return iter(list(self._calls))

    def __len__(self) -> int:
        return len(self._calls)
