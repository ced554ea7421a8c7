"""What a judgement is made of: an invariant, how many items it judged, and what breaks it with what belongs to that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

from lab.torture.history import Call

CREATES = ("sign_up", "create_user", "accept")
"""Calls that make a user."""


@dataclass
class Breach:
    """What is wrong. calls, keys (ids as text), transactions: where its history is to be looked for."""

    what: str
    calls: tuple[Call, ...] = ()
    keys: tuple[str, ...] = ()
    transactions: tuple[UUID, ...] = ()

    def __str__(self) -> str:
        return "; ".join((self.what, *map(str, self.calls)))


@dataclass
class Verdict:
    """One invariant. judged: of how many items something was asked at all."""

    name: str
    what: str
    judged: int = 0
    broken: list[Breach] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing breaks it."""
        return not self.broken

    def add(self, what: str, *calls: Call, keys: Iterable[str] = (), transactions: Iterable[UUID] = ()) -> None:
        """Something that breaks it."""
        self.broken.append(Breach(what, calls, tuple(keys), tuple(transactions)))


@dataclass(frozen=True)
class Promise:
    """Where designs differ in what the judge may ask of them.

    at_once: whoever was acknowledged can be read on both sides from then on; else once the account says `active`.
    refused: calls that are refused at once where they ask for what is taken; of others it is heard later. roles: a role
    in a business that was there before reaches profiles. absent: an account may stay without a profile, and says so.
    """

    at_once: bool = True
    refused: tuple[str, ...] = ("sign_up", "create_user")
    roles: bool = True
    absent: bool = False


AT_ONCE = Promise()
"""Two-phase's and the hybrid's."""


def creations(calls: Iterable[Call]) -> dict[str, Call]:
    """Name → the call that asked for this user, and perhaps business. A name is used once."""
    return {call.asked["name"]: call for call in calls if call.kind in CREATES}
