"""Tests that need what not every machine has: skipped there, failed where the run says that it must be had.

TANDEM_REQUIRE lists what must be had, as CI does (.ci/run): "pooler clocks disk prometheus chromium java".
"""

from __future__ import annotations

import os

import pytest

REQUIRE = "TANDEM_REQUIRE"


def is_required(what: str) -> bool:
    """Whether this run must not go without it."""
    return what in os.environ.get(REQUIRE, "").split()


FULL = bool(os.environ.get("TANDEM_FULL"))

SLOW = pytest.mark.skipif(not FULL, reason="takes long: scripts/test --full runs it")
"""A mark for what would make every run much longer."""


def needs(what: str, is_there: bool, reason: str) -> pytest.MarkDecorator:
    """A mark: skips where it isn't there. Where it is required nothing is skipped: the tests fail for want of it."""
    return pytest.mark.skipif(not is_there and not is_required(what), reason=reason)


def do_without(what: str, reason: str) -> None:
    """Skips the running test, or fails it where it is required."""
    if is_required(what):
        pytest.fail(f"{reason}, and {REQUIRE} says that {what} must be had")
    pytest.skip(reason)
