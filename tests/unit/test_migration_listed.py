"""The sets that a migration keeps on disk."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from identity_stub.migration.listed import Listed, Numbers
from tandem.runtime.errors import ConfigurationError
from tests.support.house import in_threads

FIRST, SECOND, THIRD = (UUID(int=n) for n in (1, 2, 3))


def test_a_number_is_whose_has_shown_it_first() -> None:
    """Also within one call; and whoever shows it again keeps it."""
    numbers = Numbers()
    assert numbers.of_others([(FIRST, "US 1"), (SECOND, "US 2"), (THIRD, "US 1")]) == {THIRD}
    assert numbers.of_others([(THIRD, "US 2"), (FIRST, "US 1"), (SECOND, "FR 1")]) == {THIRD}
    assert numbers.of_others([]) == set()
    numbers.close()


def test_of_many_at_once_one_is_first() -> None:
    """A backfill's threads ask at the same time."""
    numbers, some = Numbers(), [f"US {n}" for n in range(2_000)]
    asked = [uuid4() for _ in range(8)]
    lost = in_threads(*(lambda id_=id_: [numbers.of_others([(id_, one)]) for one in some] for id_ in asked))
    for place in range(len(some)):
        assert sum(not answers[place] for answers in lost) == 1  # type: ignore[index]
    numbers.close()


def test_where_there_is_no_room_it_says_what_to_do() -> None:
    """Not SQLite's own words, and no mistake of ours: a backfill stops with it."""
    numbers = Numbers()
    numbers._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(ConfigurationError, match="set TMPDIR"):
        numbers.of_others((uuid4(), f"US {n}") for n in range(10_000))
    numbers.close()
    with Listed() as listed:
        listed._connection.execute("PRAGMA max_page_count = 8")
        with pytest.raises(ConfigurationError, match="set TMPDIR"):
            listed.add(str(uuid4()) for _ in range(10_000))
