"""How an account here and its profile over there come into being together.

One module a design; this is the face they all stand behind, and all that the use cases know of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from sqlalchemy.engine import Connection

from tandem.runtime.errors import Reason, TandemError

T = TypeVar("T")

OwnRows = Callable[[Connection, UUID | None], T]
"""Writes identity's rows on the connection; the UUID names the attempt, for profiles too, where it has a name. It may
raise to give up."""

OwnRowsOfMany = Callable[[Connection, Sequence[tuple[int, UUID | None]]], Sequence[T]]
"""The same for many at once: (place among what was asked for, name of the attempt) of each; a result for each."""


class Provisioning(Protocol):
    """One design. profile_status: what the accounts that are made begin with, as `users.User` has it."""

    profile_status: str

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        """Makes the profile's entities and identity's own rows; what `own_rows` returned.

        profile: the field of the request that each entity comes from ("person") → the entity: a Person, Business or
        BusinessPerson, with its id. own_rows: called once at most, in a local transaction without any RPC in it.
        Raises ProfileExists or another TandemError, whose violations name fields of the request, and whatever
        `own_rows` raised, database errors included. Unless it carries OUTCOME_UNKNOWN, nothing was made then.
        """
        ...

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        """`create` for each, with one local transaction for all that are accepted: what became of each, in order.

        profiles: up to a few hundred; no two of them want the same key. own_rows: called once at most, for those that
        are accepted. Raises what hits the batch as a whole, as `create` does: unless it carries OUTCOME_UNKNOWN,
        nothing was made then.
        """
        ...

    def close(self) -> None:
        """Ends what runs in the background."""
        ...


class ProfileExists(TandemError):
    """Profiles has an entity with this key already. field: "registration_number", "person_id", …"""

    def __init__(self, field: str, *, transaction_id: UUID | None) -> None:
        super().__init__(
            f"there is a profile with this {field} already",
            reason=Reason.ALREADY_EXISTS,
            transaction_id=transaction_id,
            metadata={"field": field},
        )
        self.field = field
