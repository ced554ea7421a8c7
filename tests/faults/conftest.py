"""The house of real processes, for the files that crash it. One that needs another has a fixture of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.crash_house import House, built


@pytest.fixture(scope="module")
def town() -> Iterator[House]:
    """The house of a file."""
    with built() as house:
        yield house


@pytest.fixture
def house(town: House) -> House:
    """The house, whatever a test before may have left."""
    town.heal()
    return town
