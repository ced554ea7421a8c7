"""How a client changes a profile that somebody else may be changing, too.

    read   = profiles.GetPerson(allow_missing)           version 0: there is none yet
    wanted = read, with what the person at the screen has changed
    Updates(stub).person(read, wanted, on_conflict=OnConflict.MERGE)

Only what differs between the two is sent, with the version that was read (optimistic locking). Where that version is no
longer the newest, the race is lost, and the caller has said what then: fail, merge field by field, or overwrite.
Profiles itself never merges: only the client knows what its user has seen.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error

E = TypeVar("E", person_pb2.Person, business_pb2.Business)

MAX_ATTEMPTS = 5
TIMEOUT_S = 5.0
"""For one update, its repeats and the reads between them included."""

PAUSE_S = 0.05

_PERHAPS_MADE = frozenset(
    {Reason.UNAVAILABLE, Reason.DEADLINE_PASSED, Reason.OUTCOME_UNKNOWN, Reason.DATABASE_UNAVAILABLE, Reason.INTERNAL}
)
"""Nobody has said whether the update was made."""

_AGAIN = frozenset({Reason.HELD, Reason.IN_PROGRESS, Reason.IN_DOUBT, Reason.OVERLOADED}) | _PERHAPS_MADE

_NESTED = frozenset({"name", "industry"})
"""Fields whose own fields are compared, sent and merged one by one."""


class OnConflict(Enum):
    """What becomes of an update whose version is no longer the newest.

    FAIL: VERSION_MISMATCH is raised; whoever is at the screen decides. MERGE: it is repeated on what is there now, if
    nobody else has changed the same fields to other values; else Conflicting. OVERWRITE: it is repeated whatever is
    there; fields that it does not name keep what others have written.
    """

    FAIL = "fail"
    MERGE = "merge"
    OVERWRITE = "overwrite"


class Conflicting(TandemError):
    """Somebody else has set the same fields to other values. paths: which; current: the entity as it is now."""

    def __init__(self, paths: Sequence[str], current: Message) -> None:
        super().__init__(
            "somebody else has changed the same fields meanwhile",
            reason=Reason.VERSION_MISMATCH,
            metadata={"paths": ",".join(paths)},
        )
        self.paths = list(paths)
        self.current = current


@dataclass(frozen=True, slots=True)
class _Kind(Generic[E]):
    """What differs between persons and businesses. get(id, timeout); send(entity, paths, creates, timeout)."""

    id_field: str
    get: Callable[[str, float], E]
    send: Callable[[E, Sequence[str], bool, float], E]


class Updates:
    """Updates by `stub`, whose channel does not repeat updates by itself (`tandem.profiles.client.open_profiles`).

    attempts: of one update, at most; timeout_s: for all of them together. Thread-safe.
    """

    def __init__(
        self,
        stub: profiles_service_pb2_grpc.ProfilesServiceStub,
        *,
        attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._person: _Kind[person_pb2.Person] = _Kind(
            "person_id",
            lambda id_, s: stub.GetPerson(pb.GetPersonRequest(person_id=id_, allow_missing=True), timeout=s).person,
            lambda entity, paths, creates, s: stub.UpdatePerson(_of_person(entity, paths, creates), timeout=s).person,
        )
        self._business: _Kind[business_pb2.Business] = _Kind(
            "business_id",
            lambda id_, s: (
                stub.GetBusiness(pb.GetBusinessRequest(business_id=id_, allow_missing=True), timeout=s).business
            ),
            lambda entity, paths, creates, s: (
                stub.UpdateBusiness(_of_business(entity, paths, creates), timeout=s).business
            ),
        )

    def person(
        self, read: person_pb2.Person, wanted: person_pb2.Person, *, on_conflict: OnConflict
    ) -> person_pb2.Person:
        """The person as it is after that. read: as Get answered it, version 0 for one that is not there yet.

        Raises VERSION_MISMATCH, Conflicting, or another TandemError; after one that may pass (UNAVAILABLE, …) the
        update may have been made.
        """
        return self._update(self._person, read, wanted, on_conflict)

    def business(
        self, read: business_pb2.Business, wanted: business_pb2.Business, *, on_conflict: OnConflict
    ) -> business_pb2.Business:
        """The business, likewise. Its people can be set only where this makes it."""
        return self._update(self._business, read, wanted, on_conflict)

    def _update(self, kind: _Kind[E], read: E, wanted: E, on_conflict: OnConflict) -> E:
        until = time.monotonic() + self._timeout_s
        entity_id: str = getattr(read, kind.id_field)
        paths, version = differing(read, wanted), read.version
        for attempt in range(1, self._attempts + 1):
            if not paths:
                return read
            request = type(wanted)()
            request.CopyFrom(wanted)
            setattr(request, kind.id_field, entity_id)
            request.version = version
            try:
                return _told(lambda s: kind.send(request, paths, version == 0, s), until)  # noqa: B023, it is called here
            except TandemError as caught:
                error = caught
            lost = error.reason is Reason.VERSION_MISMATCH
            if attempt == self._attempts or not (lost or error.reason in _AGAIN):
                raise error
            if not lost:
                _pause(error, until)
            current = _told(lambda s: kind.get(entity_id, s), until)
            if current.version == version:
                continue  # it was not made
            left = [path for path in paths if not same(current, wanted, path)]
            if not left and error.reason in _PERHAPS_MADE:
                return current  # made by an attempt whose answer was lost
            if on_conflict is OnConflict.FAIL:
                raise error if lost else _changed(current)
            if on_conflict is OnConflict.MERGE:
                conflicts = [path for path in left if not same(current, read, path)]
                if conflicts:
                    raise Conflicting(conflicts, current)
            if "people" in left and current.version:
                raise Conflicting(["people"], current)
            paths, version, read = left, current.version, current
        raise AssertionError("unreachable")


def first_person(person: person_pb2.Person) -> pb.UpdatePersonRequest:
    """The update that makes this person, of all that is set in it."""
    return _of_person(person, differing(person_pb2.Person(), person), True)


def first_business(business: business_pb2.Business) -> pb.UpdateBusinessRequest:
    """The update that makes this business, likewise, its people included."""
    return _of_business(business, differing(business_pb2.Business(), business), True)


def differing(read: E, wanted: E) -> list[str]:
    """The paths of a field mask that turn one into the other; all top-level where there was nothing yet."""
    paths: list[str] = []
    for field in read.DESCRIPTOR.fields:
        name = field.name
        if name in ("person_id", "business_id", "version") or same(read, wanted, name):
            continue
        nested = field.message_type.fields if name in _NESTED and field.message_type and read.version else []
        parts = [f"{name}.{part.name}" for part in nested if not same(read, wanted, f"{name}.{part.name}")]
        paths += parts if parts and wanted.HasField(name) else [name]  # type: ignore[arg-type]
    return paths


def same(one: E, other: E, path: str) -> bool:
    """Whether both hold the same under this path of a field mask."""
    return bool(_at(one, path) == _at(other, path))


def _at(entity: Message, path: str) -> Any:
    value: Any = entity
    for part in path.split("."):
        value = getattr(value, part)
    return value if isinstance(value, str | int | Message) else list(value)


def _of_person(person: person_pb2.Person, paths: Sequence[str], creates: bool) -> pb.UpdatePersonRequest:
    return pb.UpdatePersonRequest(person=person, update_mask=FieldMask(paths=paths), allow_missing=creates)


def _of_business(business: business_pb2.Business, paths: Sequence[str], creates: bool) -> pb.UpdateBusinessRequest:
    return pb.UpdateBusinessRequest(business=business, update_mask=FieldMask(paths=paths), allow_missing=creates)


def _told(call: Callable[[float], E], until: float) -> E:
    """What the call answers. Raises the TandemError that it ended with."""
    try:
        return call(max(0.001, until - time.monotonic()))
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def _pause(error: TandemError, until: float) -> None:
    """Before a repeat. Raises the error where there is no time for one."""
    wait_s = max(error.retry_after_s or 0.0, PAUSE_S) * random.uniform(1.0, 1.25)
    if time.monotonic() + wait_s > until:
        raise error
    time.sleep(wait_s)


def _changed(current: person_pb2.Person | business_pb2.Business) -> TandemError:
    return TandemError(
        "it was changed meanwhile: read it again",
        reason=Reason.VERSION_MISMATCH,
        metadata={"current_version": str(current.version)},
    )
