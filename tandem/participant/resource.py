"""What a service plugs in to become a participant (X/Open XA calls it the resource manager).

Everything happens on the connection that is given: the participant owns the local transaction. `stage` is called once
for many transactions; all statements should be set-based.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.any_pb2 import Any
from sqlalchemy.engine import Connection

from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey


@dataclass(frozen=True, slots=True)
class Write:
    """One write that a resource has read and found well-formed.

    rows: how many rows it will stage. content: whatever the resource wants to see again in `stage`.
    """

    rows: int
    content: object


@dataclass(frozen=True, slots=True)
class Staging:
    """One transaction that is to be staged: all its writes or none."""

    key: TransactionKey
    writes: Sequence[Write]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Every row of the transaction is staged, and nothing can make its Commit fail (R6)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A no vote: what stands in the way. An active row that holds a unique key: ALREADY_EXISTS."""

    error: TandemError


@dataclass(frozen=True, slots=True)
class HeldBy:
    """Another prepared transaction holds what this one needs: nobody can know yet (R8, R10)."""

    key: TransactionKey


Staged = Accepted | Refused | HeldBy


class Resource(Protocol):
    """The plug. Four functions; none of them opens or ends a local transaction."""

    def parse(self, write: Any) -> Write:
        """Reads one write. Raises InvalidRequest (UNKNOWN_TYPE for a type it doesn't know; protobuf's own DecodeError
        may pass); touches no database."""
        ...

    def stage(self, connection: Connection, stagings: Sequence[Staging]) -> Sequence[Staged]:
        """Stages rows as prepared and invisible; an answer a staging. Rows of those not Accepted may be left behind:
        the participant discards them."""
        ...

    def publish(self, connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
        """Makes the prepared rows of these transactions active; how many there were of each."""
        ...

    def discard(self, connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
        """Deletes the prepared rows of these transactions; how many there were of each."""
        ...
