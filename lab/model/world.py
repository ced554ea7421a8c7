"""What the model knows: who takes part (a Scenario), and all that can differ between two moments (a World).

Everything is a small integer or a short string, so that a world is cheap to compare: a scenario has up to a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

from tandem.coordinator.transaction import Phase

NOTHING = -2
ABORTED = -1
"""Of a row of the decision log, and of a fate; any other number is the driver whose transaction is committed."""

FRESH, EXPIRING, OLD = 0, 1, 2
"""An id's age: fine for all; fine or expired, as clocks differ; expired for all, and old enough to be purged."""


@dataclass(frozen=True)
class Driver:
    """An attempt to commit a transaction. writes: participant → content, one letter. own_id: nobody else has the id."""

    transaction: int
    writes: Mapping[int, str]
    own_id: bool = True

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """As the decision lists them."""
        return {name(p): content.encode() for p, content in self.writes.items()}


@dataclass(frozen=True)
class Scenario:
    """Who takes part.

    same_entity: whether the transactions want the same entity, of which there can be one. reads: for each reader the
    (transaction, participant) that it looks for, again and again. ages: whether ids grow old and rows are purged.
    """

    title: str
    drivers: Sequence[Driver]
    same_entity: bool = False
    reads: Sequence[tuple[int, int]] = ()
    ages: bool = False

    def without(self, rules: frozenset[str]) -> Scenario:
        """The same where a rule about names is switched off."""
        if "names" not in rules:
            return self
        drivers = [replace(driver, transaction=0) for driver in self.drivers]
        return replace(self, drivers=drivers, reads=[(0, p) for _, p in self.reads])

    @cached_property
    def transactions(self) -> int:
        """How many there are."""
        return 1 + max(driver.transaction for driver in self.drivers)

    @cached_property
    def participants(self) -> int:
        """How many there are."""
        return 1 + max(p for driver in self.drivers for p in driver.writes)

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(transaction, participant) in the order of `World.parts`."""
        return [(t, p) for t in range(self.transactions) for p in range(self.participants)]

    @cached_property
    def messages(self) -> dict[tuple[object, ...], int]:
        """A bit for each message that can ever be sent."""
        sent: list[tuple[object, ...]] = []
        for d, driver in enumerate(self.drivers):
            sent += [("prepare", d, p) for p in driver.writes]
            sent += [("yes", driver.transaction, p, content) for p, content in driver.writes.items()]
        for t, p in self.places:
            sent += [("commit", t, p), ("abort", t, p), ("ack", t, p), ("expired", t, p)]
        return {message: 1 << n for n, message in enumerate(dict.fromkeys(sent))}

    def start(self) -> World:
        """Every Prepare is on its way: whether and when it arrives is open."""
        net = sum(bit for message, bit in self.messages.items() if message[0] == "prepare")
        nothing = (NOTHING,) * self.transactions
        return World(
            log=nothing,
            undelivered=(0,) * self.transactions,
            pending=(-1,) * self.transactions,
            fate=nothing,
            parts=("",) * len(self.places),
            parked=0,
            drivers=(Phase.NEW,) * len(self.drivers),
            own=0,
            net=net,
            ages=(FRESH,) * self.transactions,
            readers=("",) * len(self.reads),
        )

    def asks(self, net: int) -> Iterator[tuple[int, int, str]]:
        """Each (transaction, participant, content) that was ever promised: its votes, and questions about it, are
        under way for ever."""
        for message, bit in self.messages.items():
            if message[0] == "yes" and net & bit:
                yield message[1:]  # type: ignore[misc]


class World(NamedTuple):
    """A moment.

    log: the decision log's row of each transaction. undelivered: of a committed one, a bit for each participant.
    pending: the uncommitted INSERT that holds a transaction's key: 2 × driver, + 1 once COMMIT was sent; -1 for none.
    fate: what was decided first, for ever (the log's row can be purged).
    parts: what each participant holds: "" or a letter for its state, then the content: "pA", "cA", "a".
    parked: a bit for each part. own: a bit for each driver whose own rows are there.
    net: a bit for each message that was ever sent. None is ever taken away: it may arrive now, later, twice, or never.
    readers: each "", or "look", "ask", "told committed" or "told aborted", and whether the transaction was acknowledged
    before this read began ("1" or "0").
    """

    log: tuple[int, ...]
    undelivered: tuple[int, ...]
    pending: tuple[int, ...]
    fate: tuple[int, ...]
    parts: tuple[str, ...]
    parked: int
    drivers: tuple[Phase, ...]
    own: int
    net: int
    ages: tuple[int, ...]
    readers: tuple[str, ...]


T = TypeVar("T")


def put(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    """The same with another value there."""
    return (*values[:at], value, *values[at + 1 :])


def name(p: int) -> str:
    """A participant's configured name."""
    return f"participant {p + 1}"
