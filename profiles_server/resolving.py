"""Reads that resolve what they meet (R10): whoever was acknowledged is found, whoever is undecided is not there yet.

A read looks, asks for the decisions of the prepared rows it met, and where any of them has ended looks again. Every
answer rests on what was asked after the read began; nothing is kept for a later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy.engine import Engine

from profiles_server import reading
from profiles_server.reading import Found
from tandem.participant.resolver import Outcome, Resolver
from tandem.participant.transaction import ResolvedBy
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey

E = TypeVar("E")

MAX_LOOKS = 4
"""Each look may meet transactions that have come meanwhile; after so many it is left at IN_DOUBT."""

RESOLVE_S = 2.0
"""How long a read waits for coordinators in all."""

ENDED = (Outcome.COMMITTED, Outcome.ABORTED)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[E]):
    """What was asked for, by id: each is in one of these or does not exist.

    active: the entities. undecided: not there yet, and perhaps never. in_doubt: nobody can say now, and why.
    """

    active: Mapping[UUID, E]
    undecided: frozenset[UUID]
    in_doubt: Mapping[UUID, TandemError]


class Reader:
    """Reads persons and businesses on the primary. timeout_s of each call: until its caller gives up."""

    def __init__(self, engine: Engine, resolver: Resolver) -> None:
        self.engine = engine
        self._resolver = resolver

    def persons(self, ids: Sequence[UUID], *, timeout_s: float) -> Resolved[person_pb2.Person]:
        """The persons with these ids."""
        return self._read(reading.persons, ids, timeout_s)

    def businesses(self, ids: Sequence[UUID], *, timeout_s: float) -> Resolved[business_pb2.Business]:
        """The businesses with these ids, each with its people."""
        return self._read(reading.businesses, ids, timeout_s)

    def resolve(self, key: TransactionKey, *, timeout_s: float) -> Outcome | TandemError:
        """One transaction that was met elsewhere; COMMITTED and ABORTED are applied."""
        return self._meet({key}, timeout_s)[key]

    def _meet(self, keys: set[TransactionKey], timeout_s: float) -> dict[TransactionKey, Outcome | TandemError]:
        return self._resolver.meet(keys, by=ResolvedBy.READER, timeout_s=min(timeout_s, RESOLVE_S))

    def _read(
        self, read: Callable[[Engine, Sequence[UUID]], Found[E]], ids: Sequence[UUID], timeout_s: float
    ) -> Resolved[E]:
        until = time.monotonic() + min(timeout_s, RESOLVE_S)
        answers: dict[TransactionKey, Outcome | TandemError] = {}
        for _ in range(MAX_LOOKS):
            found = read(self.engine, ids)
            new = {key for keys in found.prepared.values() for key in keys} - answers.keys()
            if not new:
                break
            now = self._meet(new, max(until - time.monotonic(), 0.0))
            answers |= now
            if not any(answer in ENDED for answer in now.values()):
                break
        in_doubt: dict[UUID, TandemError] = {}
        for id_, keys in found.prepared.items():
            doubts = [key for key in sorted(keys) if answers.get(key) is not Outcome.UNDECIDED]
            if doubts:
                in_doubt[id_] = in_doubt_error(doubts[0])
        return Resolved(
            {id_: entity for id_, entity in found.active.items() if id_ not in in_doubt},
            frozenset(found.prepared.keys() - found.active.keys() - in_doubt.keys()),
            in_doubt,
        )


def in_doubt_error(key: TransactionKey) -> TandemError:
    """Nobody can say now what becomes of what was asked for."""
    return TandemError(
        "a transaction that is in doubt concerns this, and its coordinator can't be asked now",
        reason=Reason.IN_DOUBT,
        transaction_id=key.transaction_id,
        retry_after_s=1.0,
        metadata={"coordinator": key.coordinator},
    )
