"""What is told of single transactions: nothing is formatted where nobody listens, and many don't flood the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import structlog
from structlog.testing import LogCapture

from tandem.runtime.telemetry import FEW, debugging, step, unusual


class Unsayable:
    """A name that must not be formatted."""

    def __str__(self) -> str:
        raise AssertionError("formatted, though nobody listens")


@pytest.fixture
def at() -> Iterator[Callable[[int], tuple[object, LogCapture]]]:
    """Sets the level of "tandem"; gives a logger and what it was told."""
    levels = logging.getLogger("tandem")
    before = levels.level

    def begin(level: int) -> tuple[object, LogCapture]:
        levels.setLevel(level)
        capture = LogCapture()
        wrapper = structlog.make_filtering_bound_logger(level)
        return structlog.wrap_logger(None, [capture], wrapper_class=wrapper), capture

    yield begin
    levels.setLevel(before)


def test_nothing_is_formatted_for_nobody(at: Callable[[int], tuple[object, LogCapture]]) -> None:
    """The ordinary path at INFO, and everything at WARNING."""
    log, capture = at(logging.INFO)
    step(log, "prepared", [Unsayable()])
    log, silent = at(logging.WARNING)
    unusual(log, "swept", [Unsayable()])
    assert not debugging()
    assert capture.entries == silent.entries == []


def test_a_line_each_of_a_few(at: Callable[[int], tuple[object, LogCapture]]) -> None:
    """By name."""
    log, capture = at(logging.INFO)
    unusual(log, "swept", [f"c/{number}" for number in range(FEW)], by="sweeper")
    assert [entry["transaction"] for entry in capture.entries] == [f"c/{number}" for number in range(FEW)]
    assert {entry["by"] for entry in capture.entries} == {"sweeper"}


@pytest.mark.parametrize(("level", "named"), [(logging.INFO, 0), (logging.DEBUG, FEW + 1)])
def test_a_line_of_many(level: int, named: int, at: Callable[[int], tuple[object, LogCapture]]) -> None:
    """How many there were; their names at DEBUG."""
    log, capture = at(level)
    unusual(log, "swept", [f"c/{number}" for number in range(FEW + 1)])
    assert capture.entries[0]["transactions"] == FEW + 1
    assert sum("transaction" in entry for entry in capture.entries) == named
    unusual(log, "swept", [])
    assert len(capture.entries) == 1 + named
