"""What is done where another service has made an account's profile first, by a declared policy.

keep       what profiles has stays
overwrite  what identity knew replaces what profiles has, field by field
merge      what identity knew goes where profiles has nothing

No policy clears a field: what identity never asked for is no fact. A business's legal form was never asked for, so
it is never touched. Roles are no facts of the business: those that lack are given, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.rpc import status_pb2

from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.errors import Reason
from tandem.runtime.status import from_rpc_error, from_status

Profile = person_pb2.Person | business_pb2.Business

CALL_S = 10.0
MAX_READ = 1_000
"""Ids in one BatchGet (profiles_service.proto)."""

_NOT_FACTS = frozenset({"person_id", "business_id", "version", "people", "entity_type"})
_BY_PART = frozenset({"name"})
"""Whose fields are facts of their own; all others go as a whole."""


class Policy(StrEnum):
    """See above."""

    KEEP = "keep"
    OVERWRITE = "overwrite"
    MERGE = "merge"

    @property
    def done(self) -> str:
        """What a conflict was, by this policy."""
        return {Policy.KEEP: "kept", Policy.OVERWRITE: "overwritten", Policy.MERGE: "merged"}[self]


def differing(ours: Profile, theirs: Profile) -> list[str]:
    """The paths of fields that identity knew and that profiles has otherwise, or not at all."""
    return [path for path in _known(ours) if _value(ours, path) != _value(theirs, path)]


def to_write(policy: Policy, ours: Profile, theirs: Profile) -> list[str]:
    """Those of them that the policy has written."""
    match policy:
        case Policy.KEEP:
            return []
        case Policy.OVERWRITE:
            return differing(ours, theirs)
        case Policy.MERGE:
            return [path for path in differing(ours, theirs) if not _value(theirs, path)]


def roles_lacking(ours: business_pb2.Business, theirs: business_pb2.Business) -> list[business_pb2.BusinessPerson]:
    """What gives the business the roles that it has in identity only."""
    has = {(one.person_id, one.role) for one in theirs.people}
    return [
        business_pb2.BusinessPerson(business_id=ours.business_id, person_id=one.person_id, role=one.role)
        for one in ours.people
        if (one.person_id, one.role) not in has
    ]


def _known(profile: Message) -> list[str]:
    """The paths of all facts that are set."""
    paths = []
    for field, value in profile.ListFields():
        if field.name in _BY_PART:
            paths += [f"{field.name}.{part.name}" for part, _ in value.ListFields()]
        elif field.name not in _NOT_FACTS:
            paths.append(field.name)
    return paths


def _value(profile: Message, path: str) -> object:
    """Of a set field; None, "" or nothing in it where it is not set."""
    message = profile
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    if name in {field.name for field, _ in message.ListFields()}:
        value = getattr(message, name)
        return value if isinstance(value, (str, int, Message)) else list(value)
    return None


# --- profiles, by gRPC ----------------------------------------------------------------------------------------


class Existing:
    """The profiles that are there, by their ids: read, and changed by the version that was read."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)

    def of(self, ours: Sequence[Profile]) -> dict[str, Profile]:
        """id → what profiles has under it, of at most MAX_READ. Raises TandemError: an answer for each, or none."""
        persons = [one.person_id for one in ours if isinstance(one, person_pb2.Person)]
        businesses = [one.business_id for one in ours if isinstance(one, business_pb2.Business)]
        answers: list[tuple[str, status_pb2.Status, Profile]] = []
        try:
            if persons:
                told = self._stub.BatchGetPersons(pb.BatchGetPersonsRequest(person_ids=persons), timeout=CALL_S)
                answers += ((i, one.status, one.person) for i, one in zip(persons, told.results, strict=True))
            if businesses:
                asked = pb.BatchGetBusinessesRequest(business_ids=businesses)
                of = self._stub.BatchGetBusinesses(asked, timeout=CALL_S).results
                answers += ((i, one.status, one.business) for i, one in zip(businesses, of, strict=True))
        except grpc.RpcError as failed:
            raise from_rpc_error(failed) from None
        found: dict[str, Profile] = {}
        for id_, status, profile in answers:
            if not status.code:
                found[id_] = profile
            elif (error := from_status(status)).reason is not Reason.NOT_FOUND:
                raise error
        return found

    def write(self, ours: Profile, theirs: Profile, paths: Sequence[str]) -> None:
        """Sets the fields at the paths. Raises TandemError: VERSION_MISMATCH where it was changed since it was read."""
        new = type(ours)()
        new.CopyFrom(ours)  # type: ignore[arg-type]
        new.version = theirs.version
        mask = FieldMask(paths=paths)
        try:
            if isinstance(new, person_pb2.Person):
                self._stub.UpdatePerson(pb.UpdatePersonRequest(person=new, update_mask=mask), timeout=CALL_S)
            else:
                self._stub.UpdateBusiness(pb.UpdateBusinessRequest(business=new, update_mask=mask), timeout=CALL_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
