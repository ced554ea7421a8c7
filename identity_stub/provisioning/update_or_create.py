"""Update-or-create: the account first, with the names of its profile; the profile is made by its first update.

A signup carries the facts, so identity sends that first update itself, once, after its local commit. Whatever comes of
it, the account is there: `absent` where it has failed, and then whoever updates the profile next makes it; `rejected`
where no repeat could help. Nothing here is atomic, and nothing has to be cleaned up.

Not made: a role in a business that is there already, since an update can't add people. Identity's own rows have it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message
from sqlalchemy.engine import Engine

from identity_stub import users
from identity_stub.provisioning import OwnRows, OwnRowsOfMany
from identity_stub.requests import Made
from tandem.profiles.client import open_profiles
from tandem.profiles.updates import first_business, first_person
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.status import from_rpc_error
from tandem.runtime.telemetry import logger

T = TypeVar("T")

log = logger("identity.update_or_create")

UPDATE_S = 2.0
"""How long a first update may take; the account is there already, so nobody waits longer."""

MANY_S = 5.0
"""How long the first updates of a batch are begun."""

AT_ONCE = 16
"""Signups of a batch whose first updates are under way at the same time."""

_FOR_GOOD = frozenset({Reason.ALREADY_EXISTS, Reason.INVALID_REQUEST})

Standing = Mapping[str, tuple[str, str]]
"""Field of the request ("person", "business") → its profile's status and reason."""


class UpdateOrCreate:
    """Needs nobody to answer: the own database is enough. target: profiles, whose updates create."""

    profile_status = users.ABSENT

    def __init__(self, engine: Engine, target: str) -> None:
        self._engine = engine
        self._channel = open_profiles(target)
        self._stub = profiles_service_pb2_grpc.ProfilesServiceStub(self._channel)

    def __repr__(self) -> str:
        return "UpdateOrCreate()"

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        """Commits the own rows, then sends the first updates. See `Provisioning.create`; profiles refuses nothing."""
        with local_transaction(self._engine) as connection:
            made = own_rows(connection, None)
        failpoint("update_or_create.after_local_commit")
        (told,) = self._provide([profile], [made])
        return told

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        """Likewise, with one local commit for all. See `Provisioning.create_many`."""
        with local_transaction(self._engine) as connection:
            made = own_rows(connection, [(place, None) for place in range(len(profiles))])
        failpoint("update_or_create.after_local_commit")
        return [*self._provide(profiles, made)]

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _provide(self, profiles: Sequence[Mapping[str, Message]], made: Sequence[T]) -> list[T]:
        """What was made, with what became of its profiles; identity's rows say so, too."""
        standings: list[Standing] = []
        until = time.monotonic() + MANY_S
        for first in range(0, len(profiles), AT_ONCE):
            some = profiles[first : first + AT_ONCE]
            standings += self._update(some) if time.monotonic() < until else [{} for _ in some]
        told = [_with(one, standing) for one, standing in zip(made, standings, strict=True)]
        try:
            with local_transaction(self._engine) as connection:
                for standing, one in zip(standings, told, strict=True):
                    if isinstance(one, Made):
                        users.settle(
                            connection,
                            user=one.user if "person" in standing else None,
                            business=one.business if "business" in standing else None,
                        )
        except Exception as error:  # the accounts are there: their answer must not be an error
            log.warning("statuses not stored", exception=type(error).__name__)
        return told

    def _update(self, profiles: Sequence[Mapping[str, Message]]) -> list[Standing]:
        """Sends the first updates of some, all at once."""
        begun = [
            {
                field: self._begin(entity)
                for field, entity in profile.items()
                if isinstance(entity, person_pb2.Person | business_pb2.Business)
            }
            for profile in profiles
        ]
        return [{field: _standing(call) for field, call in calls.items()} for calls in begun]

    def _begin(self, entity: person_pb2.Person | business_pb2.Business) -> grpc.Future[Any]:
        if isinstance(entity, person_pb2.Person):
            return self._stub.UpdatePerson.future(first_person(entity), timeout=UPDATE_S)
        return self._stub.UpdateBusiness.future(first_business(entity), timeout=UPDATE_S)


def _standing(call: grpc.Future[Any]) -> tuple[str, str]:
    """What became of the profile whose first update this is."""
    try:
        call.result()
    except grpc.RpcError as caught:
        error = from_rpc_error(caught)
    else:
        return users.ACTIVE, ""
    if error.reason is Reason.VERSION_MISMATCH:
        return users.ACTIVE, ""  # somebody was faster: it is there
    if error.reason is Reason.REFUSED:
        log.error("profiles creates nothing by updates: see PROFILES_UPDATES_CREATE")
    return (users.REJECTED if error.reason in _FOR_GOOD else users.ABSENT), error.reason.value


def _with(made: T, standing: Standing) -> T:
    if not isinstance(made, Made):
        return made
    user, business = made.user, made.business
    if user is not None and "person" in standing:
        user = replace(user, profile_status=standing["person"][0], profile_reason=standing["person"][1])
    if business is not None and "business" in standing:
        business = replace(business, profile_status=standing["business"][0], profile_reason=standing["business"][1])
    return cast(T, replace(made, user=user, business=business))
