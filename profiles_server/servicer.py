"""ProfilesService: validates, translates, delegates, and nothing else.

What is only prepared is invisible: NOT_FOUND where its coordinator says that it is undecided, IN_DOUBT where it says
nothing (R10).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar
from uuid import UUID

import grpc
import sqlalchemy as sa
from google.rpc import status_pb2

from profiles_server import reading, updating
from profiles_server import tables as t
from profiles_server.resolving import Reader, Resolved
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.auth import caller_of
from tandem.runtime.channel import MAX_MESSAGE_BYTES
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.server import Server, time_left_s
from tandem.runtime.status import ok, to_status

E = TypeVar("E", person_pb2.Person, business_pb2.Business)

MAX_ANSWER_BYTES = MAX_MESSAGE_BYTES * 3 // 4
"""What the entities of one batch may weigh together; the rest is for the statuses. One that doesn't fit is told so."""

LISTED = 1_000
"""Ids on a page, where nobody says how many."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class ProfilesServicer(profiles_service_pb2_grpc.ProfilesServiceServicer):
    """The gRPC face of what profiles stores. updates_create: whether an update with allow_missing may create (R8)."""

    def __init__(self, reader: Reader, *, updates_create: bool = False) -> None:
        self._reader = reader
        self._updates_create = updates_create

    def add_to(self, server: Server) -> None:
        """Adds the service to a server."""
        server.add(
            pb.DESCRIPTOR.services_by_name["ProfilesService"],
            self,
            profiles_service_pb2_grpc.add_ProfilesServiceServicer_to_server,
        )

    # --- persons ----------------------------------------------------------------------------------------------

    def GetPerson(self, request: pb.GetPersonRequest, context: grpc.ServicerContext) -> pb.GetPersonResponse:
        """One person."""
        person_id = UUID(request.person_id)
        person = _one(self._reader.persons([person_id], timeout_s=time_left_s(context)), person_id)
        if person is None:
            if not request.allow_missing:
                raise _not_found("person")
            person = person_pb2.Person(person_id=str(person_id))
        return pb.GetPersonResponse(person=person)

    def BatchGetPersons(
        self, request: pb.BatchGetPersonsRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetPersonsResponse:
        """A person each."""
        ids = _ids("person_ids", request.person_ids)
        found = self._reader.persons(_good(ids), timeout_s=time_left_s(context))
        return pb.BatchGetPersonsResponse(
            results=[
                pb.BatchGetPersonsResult(status=status, person=person)
                for status, person in _answers("person", ids, found)
            ]
        )

    def UpdatePerson(self, request: pb.UpdatePersonRequest, context: grpc.ServicerContext) -> pb.UpdatePersonResponse:
        """Changes a person."""
        changed = updating.update_person(
            updating.Update(
                self._reader,
                _id("person.person_id", request.person.person_id),
                request.person,
                request.update_mask.paths,
                caller_of(context),
                time_left_s(context),
                creates=self._creates(request),
            )
        )
        return pb.UpdatePersonResponse(person=changed)

    def ListPersonIds(
        self, request: pb.ListPersonIdsRequest, context: grpc.ServicerContext
    ) -> pb.ListPersonIdsResponse:
        """A page of ids."""
        ids, token = self._list(t.person, request)
        return pb.ListPersonIdsResponse(person_ids=ids, next_page_token=token)

    # --- businesses -------------------------------------------------------------------------------------------

    def GetBusiness(self, request: pb.GetBusinessRequest, context: grpc.ServicerContext) -> pb.GetBusinessResponse:
        """One business."""
        business_id = UUID(request.business_id)
        business = _one(self._reader.businesses([business_id], timeout_s=time_left_s(context)), business_id)
        if business is None:
            if not request.allow_missing:
                raise _not_found("business")
            business = business_pb2.Business(business_id=str(business_id))
        return pb.GetBusinessResponse(business=business)

    def BatchGetBusinesses(
        self, request: pb.BatchGetBusinessesRequest, context: grpc.ServicerContext
    ) -> pb.BatchGetBusinessesResponse:
        """A business each."""
        ids = _ids("business_ids", request.business_ids)
        found = self._reader.businesses(_good(ids), timeout_s=time_left_s(context))
        return pb.BatchGetBusinessesResponse(
            results=[
                pb.BatchGetBusinessesResult(status=status, business=business)
                for status, business in _answers("business", ids, found)
            ]
        )

    def UpdateBusiness(
        self, request: pb.UpdateBusinessRequest, context: grpc.ServicerContext
    ) -> pb.UpdateBusinessResponse:
        """Changes a business."""
        changed = updating.update_business(
            updating.Update(
                self._reader,
                _id("business.business_id", request.business.business_id),
                request.business,
                request.update_mask.paths,
                caller_of(context),
                time_left_s(context),
                creates=self._creates(request),
            )
        )
        return pb.UpdateBusinessResponse(business=changed)

    def ListBusinessIds(
        self, request: pb.ListBusinessIdsRequest, context: grpc.ServicerContext
    ) -> pb.ListBusinessIdsResponse:
        """A page of ids."""
        ids, token = self._list(t.business, request)
        return pb.ListBusinessIdsResponse(business_ids=ids, next_page_token=token)

    def _list(
        self, table: sa.Table, request: pb.ListPersonIdsRequest | pb.ListBusinessIdsRequest
    ) -> tuple[list[str], str]:
        """Ids, and the token of the next page: the last of them."""
        size = request.page_size or LISTED
        after = UUID(request.page_token) if request.page_token else None
        ids = reading.ids(self._reader.engine, table, coordinator=request.coordinator, after=after, size=size)
        return ids, ids[-1] if len(ids) == size else ""

    def _creates(self, request: pb.UpdatePersonRequest | pb.UpdateBusinessRequest) -> bool:
        """Whether this update creates what is not there. Raises REFUSED where no update may."""
        if request.allow_missing and not self._updates_create:
            raise TandemError(
                "updates create nothing here: a profile comes with its account",
                reason=Reason.REFUSED,
                metadata={"field": "allow_missing"},
            )
        return request.allow_missing


def _id(field: str, text: str) -> UUID:
    """The id, in the one form that the contract allows. Raises InvalidRequest."""
    if not _UUID.fullmatch(text):
        raise InvalidRequest([Violation(field, "must be a valid UUID" if text else "is required", "string.uuid")])
    return UUID(text)


def _ids(field: str, texts: Sequence[str]) -> list[UUID | InvalidRequest]:
    ids: list[UUID | InvalidRequest] = []
    for position, text in enumerate(texts):
        try:
            ids.append(_id(f"{field}[{position}]", text))
        except InvalidRequest as error:
            ids.append(error)
    return ids


def _good(ids: Sequence[UUID | InvalidRequest]) -> list[UUID]:
    return [id_ for id_ in ids if isinstance(id_, UUID)]


def _one(found: Resolved[E], id_: UUID) -> E | None:
    if id_ in found.in_doubt:
        raise found.in_doubt[id_]
    return found.active.get(id_)


def _answers(
    kind: str, ids: Sequence[UUID | InvalidRequest], found: Resolved[E]
) -> Iterator[tuple[status_pb2.Status, E | None]]:
    """A status an id, and the entity where it is OK."""
    left = MAX_ANSWER_BYTES
    for id_ in ids:
        if isinstance(id_, InvalidRequest):
            yield to_status(id_), None
            continue
        if id_ in found.in_doubt:
            yield to_status(found.in_doubt[id_]), None
            continue
        entity = found.active.get(id_)
        if entity is None:
            yield to_status(_not_found(kind)), None
            continue
        left -= entity.ByteSize()
        if left < 0:
            yield to_status(_TOO_MUCH), None
        else:
            yield ok(), entity


def _not_found(kind: str) -> TandemError:
    return TandemError(f"there is no such {kind}", reason=Reason.NOT_FOUND)


_TOO_MUCH = TandemError("the answer would be too large: ask for fewer at once", reason=Reason.OVERLOADED)
