"""What profiles has, for a reconciliation: ids by pages, entities by ids. By gRPC, the only way there is.

Repeated for as long as it takes profiles to be started again. What a read meets in doubt it resolves (R10), so that an
answer is never about to change by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import grpc

from identity_stub.migration.backfill_accounts import Kind, Profile
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error, from_status

LIST_PAGE = 10_000
GET_PAGE = 1_000
"""The contract's limits (profiles_service.proto)."""

LIST_S = 35.0
GET_S = 10.0
PATIENCE_S = 60.0
DOUBT_S = 30.0
"""In all: how long a run waits for what is in doubt. What is still in doubt then, nobody can say anything of."""

PAUSE_S = 0.5

_AGAIN = frozenset({Reason.UNAVAILABLE, Reason.DEADLINE_PASSED, Reason.OVERLOADED, Reason.DATABASE_UNAVAILABLE})


class Profiles:
    """Reads profiles. coordinator: whose profiles are listed. Thread-safe."""

    def __init__(self, channel: grpc.Channel, coordinator: str) -> None:
        self._stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
        self._coordinator = coordinator
        self._pause = threading.Event()
        self._doubt_left_s = DOUBT_S

    def ids(self, kind: Kind) -> Iterator[Sequence[str]]:
        """The ids of all that the coordinator's transactions have made, in their order, page by page."""
        token = ""
        while True:
            page = self._patiently(lambda token=token: self._list(kind, token))  # type: ignore[misc]
            yield page.business_ids if kind.with_people else page.person_ids
            token = page.next_page_token
            if not token:
                return

    def get(self, kind: Kind, ids: Sequence[UUID]) -> dict[UUID, Profile | None]:
        """Those of these that are there, GET_PAGE ids at most; None for those that are in doubt for too long."""
        found: dict[UUID, Profile | None] = {}
        until = time.monotonic() + PATIENCE_S
        asked, size = list(ids), GET_PAGE
        while asked:
            again: dict[UUID, TandemError] = {}
            for first in range(0, len(asked), size):
                some = asked[first : first + size]
                results = self._patiently(lambda some=some: self._get(kind, some))  # type: ignore[misc]
                for id_, result in zip(some, results, strict=True):
                    if not result.status.code:
                        found[id_] = result.business if kind.with_people else result.person
                    elif (error := from_status(result.status)).reason is not Reason.NOT_FOUND:
                        again[id_] = error
            in_doubt = {id_ for id_, error in again.items() if error.reason is Reason.IN_DOUBT}
            if self._doubt_left_s <= 0:
                found |= dict.fromkeys(in_doubt)
                again = {id_: error for id_, error in again.items() if id_ not in in_doubt}
            self._check([error for id_, error in again.items() if id_ not in in_doubt], until)
            if any(error.reason is Reason.OVERLOADED for error in again.values()):
                size = max(1, size // 4)  # too much for one answer
            elif again:
                self._pause.wait(PAUSE_S)
                self._doubt_left_s -= PAUSE_S if in_doubt else 0.0
            asked = list(again)
        return found

    def _list(self, kind: Kind, token: str) -> Any:
        asked: Any = {"coordinator": self._coordinator, "page_size": LIST_PAGE, "page_token": token}
        if kind.with_people:
            return self._stub.ListBusinessIds(pb.ListBusinessIdsRequest(**asked), timeout=LIST_S)
        return self._stub.ListPersonIds(pb.ListPersonIdsRequest(**asked), timeout=LIST_S)

    def _get(self, kind: Kind, ids: Sequence[UUID]) -> Any:
        texts = list(map(str, ids))
        if kind.with_people:
            return self._stub.BatchGetBusinesses(
                pb.BatchGetBusinessesRequest(business_ids=texts), timeout=GET_S
            ).results
        return self._stub.BatchGetPersons(pb.BatchGetPersonsRequest(person_ids=texts), timeout=GET_S).results

    def _patiently(self, call: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                self._check([from_rpc_error(error)], until)
            self._pause.wait(PAUSE_S)

    def _check(self, errors: Sequence[TandemError], until: float) -> None:
        """Raises the first that no repeat helps with, or any where the time is over."""
        late = time.monotonic() > until
        for error in errors:
            if late or (error.reason not in _AGAIN and error.retry_after_s is None):
                raise error


def fields_that_differ(ours: Profile, theirs: Profile) -> tuple[str, ...]:
    """The names of facts that are not the same; of a person's name its parts."""
    return tuple(_differing(ours, theirs, ""))


_NOT_FACTS = frozenset({"person_id", "business_id", "version", "people"})


def _differing(ours: Any, theirs: Any, parent: str) -> Iterator[str]:
    mine: Mapping[str, Any] = {field.name: value for field, value in ours.ListFields()}
    others: Mapping[str, Any] = {field.name: value for field, value in theirs.ListFields()}
    for name in sorted((mine.keys() | others.keys()) - _NOT_FACTS):
        if name == "name" and name in mine and name in others:
            yield from _differing(mine[name], others[name], "name.")
        elif (name in mine) != (name in others) or mine[name] != others[name]:
            yield parent + name
