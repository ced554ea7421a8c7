"""What a reconciliation has found. Ids, kinds and names of fields; never what stands in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

MAX_LISTED = 10_000
"""Differences that are kept to be listed; all are counted."""


class Kind(StrEnum):
    """How two sides differ."""

    MISSING = "missing"  # here, and not at the other service
    EXTRA = "extra"  # at the other service, and nothing here stands behind it
    DIFFERENT = "different"  # on both sides, with other facts
    UNFINISHED = "unfinished"  # under way for longer than it was waited for


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing on which the two sides do not agree.

    what: users, businesses, roles, or transactions. id: the account's; of what is extra the profile's own; of a role
    business/person/role, of a transaction participant, coordinator and id. fields: those that differ, or why it counts.
    repaired: whether it is no difference any more. left: why it was not repaired, where that was tried.
    """

    what: str
    kind: Kind
    id: str
    fields: tuple[str, ...] = ()
    repaired: bool = False
    left: str = ""

    def mended(self) -> Difference:
        """The same, put right."""
        return replace(self, repaired=True, left="")

    def kept(self, why: str) -> Difference:
        """The same, tried in vain."""
        return replace(self, left=why)


@dataclass(slots=True)
class Report:
    """What was compared and what was found.

    compared: how many of what; their sum is the progress. waiting: accounts without a profile that say so themselves,
    by what and status. listed: the first `at_most` differences; repaired ones among them.
    """

    at_most: int = MAX_LISTED
    compared: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    listed: list[Difference] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, differences: Sequence[Difference]) -> None:
        """Counts them, and keeps as many as are to be listed."""
        for one in differences:
            name = f"{one.what}: {one.kind.value}"
            self.found[name] += 1
            for of in one.fields:
                self.fields[f"{name}: {of}"] += 1
            if one.repaired:
                self.repaired[name] += 1
            elif one.left:
                self.left[f"{name}: {one.left}"] += 1
            if len(self.listed) < self.at_most:
                self.listed.append(one)

    def equal(self, *, migrating: bool) -> bool:
        """Whether both sides say the same now. migrating: accounts that wait for their profile are no difference."""
        return self.found == self.repaired and (migrating or not self.waiting)

    def plain(self) -> Mapping[str, object]:
        """For programs."""
        return {
            "compared": dict(self.compared),
            "waiting": dict(self.waiting),
            "found": dict(self.found),
            "fields": dict(self.fields),
            "repaired": dict(self.repaired),
            "left": dict(self.left),
            "listed": [
                {"what": d.what, "kind": d.kind.value, "id": d.id, "fields": d.fields, "repaired": d.repaired,
                 "left": d.left}
                for d in self.listed
            ],
            "seconds": round(self.seconds, 1),
        }  # fmt: skip
