"""The cases of a row of the crash table: which are run, and what is known of the table (docs/protocol.md)."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TypeVar

import pytest

from lab.processes import ROOT
from tests.faults.initiator import Kind

FULL = bool(os.environ.get("TANDEM_FULL"))

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True)
class Case:
    """A point of a row, what is written, at how many participants; and who is let end it, where several may."""

    point: str
    kind: Kind
    participants: int
    ender: str

    def __str__(self) -> str:
        by = f"-{self.ender}" if self.ender else ""
        return f"{self.point}{by}-{self.kind}-{self.participants}"


@dataclass
class Row:
    """A row of the table as it is tried. text: its four cells, which the test quotes."""

    choices: Sequence[Sequence[object]]
    made: Sequence[Case]
    text: str = ""

    @property
    def missing(self) -> set[frozenset[tuple[int, object]]]:
        """The pairs of choices that no case has."""
        every = pairs_of(product(*self.choices))
        return every - pairs_of((case.point, case.kind, case.participants, case.ender) for case in self.made)


@dataclass
class Rows:
    """The rows that a file tries."""

    of: dict[str, Row] = field(default_factory=dict)

    def cases(self, crash: str, *points: str, enders: Sequence[str] = ("",)) -> Callable[[F], F]:
        """Makes a test the one of a row: crash is its first cell. By default every pair of point, kind, number of
        participants and ender is met; TANDEM_FULL=1 runs all combinations."""
        choices: list[list[object]] = [list(points), list(Kind), [1, 2], list(enders)]
        chosen = list(product(*choices)) if FULL else pairwise(choices, seed=len(self.of))
        made = [Case(*values) for values in chosen]  # type: ignore[arg-type]

        def of_row(test: F) -> F:
            self.of[crash] = Row(choices, made, " ".join((test.__doc__ or "").split()))
            marked: F = pytest.mark.parametrize("case", made, ids=str)(test)
            return marked

        return of_row


def pairs_of(cases: Iterable[tuple[object, ...]]) -> set[frozenset[tuple[int, object]]]:
    """Every pair of (place, value) in any of these."""
    return {frozenset(pair) for values in cases for pair in combinations(enumerate(values), 2)}


def pairwise(choices: Sequence[Sequence[object]], *, seed: int) -> list[tuple[object, ...]]:
    """Few combinations that contain every pair of values: again and again the one that has most of those still
    missing. The same seed gives the same ones."""
    candidates = list(product(*choices))
    random.Random(seed).shuffle(candidates)
    pairs = {values: pairs_of([values]) for values in candidates}
    missing = pairs_of(candidates)
    chosen = []
    while missing:
        best = max(candidates, key=lambda values: len(pairs[values] & missing))
        missing -= pairs[best]
        chosen.append(best)
    places = {values: place for place, values in enumerate(product(*choices))}
    return sorted(chosen, key=places.__getitem__)


def documented() -> dict[str, str]:
    """The crash table of docs/protocol.md: its first cell → the whole row."""
    section = (ROOT / "docs" / "protocol.md").read_text().partition("\n## Crashes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \|$", section, re.MULTILINE)[1:]
    return {row.partition(" | ")[0]: row for row in rows}
