"""A fault as the judge and the figures see it: what was done to whom, and from when to when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """What is broken."""

    KILL = "process kill"
    DATABASE = "database"
    WIRE = "wire"
    PAUSE = "pause"
    BROKER = "broker"


@dataclass
class Fault:
    """at, until: seconds since the run began; until is when the victim was back, None while it isn't.

    kills: how many kill -9. pause_s: how long a process was stopped.
    """

    at: float
    what: str
    whom: str
    family: Family
    kills: int = 0
    lane: int = 0
    until: float | None = None
    pause_s: float = 0.0

    @property
    def over(self) -> float:
        """When the victim was back; never, while it isn't."""
        return float("inf") if self.until is None else self.until

    def overlaps(self, began: float, ended: float) -> bool:
        """Whether it lasted at some time between these."""
        return self.at <= ended and self.over >= began

    def __str__(self) -> str:
        back = "" if self.until is None else f", back after {self.until - self.at:.2f} s"
        return f"{self.at:7.2f} s  {self.what} {self.whom}{back}"


def overlapping(faults: Iterable[Fault], began: float, ended: float) -> list[Fault]:
    """Those that lasted at some time between these."""
    return [fault for fault in faults if fault.overlaps(began, ended)]
