"""The first update creates, where updates may (the design update-or-create), over real gRPC and PostgreSQL."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy.engine import Engine

from tandem.participant.participant import Participant
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.server import Server
from tandem.runtime.status import from_rpc_error
from tests.integration.profiles_support import Client, ask, business, create, people, person, registered, rows
from tests.support.rules import OUTCOMES, ScriptedCoordinator

pytest_plugins = ["tests.integration.profiles_fixtures"]

Stub = profiles_service_pb2_grpc.ProfilesServiceStub


@pytest.fixture(scope="module")
def profiles(creating_server: Server) -> Iterator[Stub]:
    with grpc.insecure_channel(creating_server.address) as channel:
        yield profiles_service_pb2_grpc.ProfilesServiceStub(channel)


def first(entity: person_pb2.Person | business_pb2.Business, *paths: str) -> Any:
    """The update that makes it, of all that is set or of `paths`."""
    id_field = "person_id" if isinstance(entity, person_pb2.Person) else "business_id"
    mask = FieldMask(paths=paths or [field.name for field, _ in entity.ListFields() if field.name != id_field])
    if isinstance(entity, person_pb2.Person):
        return pb.UpdatePersonRequest(person=entity, update_mask=mask, allow_missing=True)
    return pb.UpdateBusinessRequest(business=entity, update_mask=mask, allow_missing=True)


def refusal(call: Callable[..., Any], request: object) -> TandemError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    return from_rpc_error(caught.value)


def at_once(count: int, work: Callable[[int], None]) -> Counter[str]:
    """How each of so many calls at the same time has ended: OK or a reason."""
    barrier = threading.Barrier(count)

    def one(number: int) -> str:
        barrier.wait(10)
        try:
            work(number)
        except grpc.RpcError as error:
            return from_rpc_error(error).reason.value
        return "OK"

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(one, range(count)))


def test_the_first_update_makes_a_person(profiles: Stub, profiles_engine: Engine) -> None:
    """An empty one is read, nothing is stored; the first update makes it, version 1, and the audit names who did."""
    ada = person(email_addresses=["ada@example.org"])
    get = pb.GetPersonRequest(person_id=ada.person_id, allow_missing=True)
    assert profiles.GetPerson(get).person == person_pb2.Person(person_id=ada.person_id)
    made = profiles.UpdatePerson(first(ada), timeout=10).person
    assert made.version == 1
    assert profiles.GetPerson(get).person == made
    made.version = 0
    assert made == ada
    with profiles_engine.connect() as connection:
        events = rows(
            connection, "SELECT actor, action, version, coordinator FROM profiles.audit_event WHERE entity_id = :id",
            id=ada.person_id,
        )  # fmt: skip
    assert events == [("anonymous", "created", 1, None)]


def test_the_first_update_makes_a_business_with_its_people(profiles: Stub) -> None:
    """Its people can be named once, by the update that makes it: nobody could add them later."""
    engines = registered(people=people(business_pb2.ROLE_OWNER))
    made = profiles.UpdateBusiness(first(engines), timeout=10).business
    assert made.version == 1
    assert profiles.GetBusiness(pb.GetBusinessRequest(business_id=engines.business_id)).business == made
    assert list(made.people) == list(engines.people)
    made.website = "https://example.org"
    error = refusal(profiles.UpdateBusiness, first(made, "people"))
    assert [violation.field for violation in error.violations] == ["update_mask.paths[0]"]


def test_the_second_update_is_an_ordinary_one(profiles: Stub) -> None:
    """By the version that was read; one that has read nothing is told that it is there."""
    ada = person()
    made = profiles.UpdatePerson(first(ada), timeout=10).person
    error = refusal(profiles.UpdatePerson, first(ada))
    assert (error.reason, error.metadata["current_version"]) == (Reason.VERSION_MISMATCH, "1")
    made.name.given_name = "Augusta"
    assert profiles.UpdatePerson(first(made, "name"), timeout=10).person.version == 2


def test_only_what_the_mask_names_is_made(profiles: Stub) -> None:
    """And what comes of it is validated as a whole: a person without a name can't be made."""
    ada = person(email_addresses=["ada@example.org"])
    error = refusal(profiles.UpdatePerson, first(ada, "email_addresses"))
    assert {violation.field for violation in error.violations} == {"person.name"}
    made = profiles.UpdatePerson(first(ada, "name"), timeout=10).person
    assert not made.email_addresses


def test_of_two_creators_one_wins(profiles: Stub, profiles_engine: Engine) -> None:
    """Eight at once: one makes it, seven are told VERSION_MISMATCH, whether or not a registration stands in the way."""
    name, number = str(uuid4()), uuid4().hex[:12].upper()

    def make(kind: int) -> None:
        if kind % 2:
            profiles.UpdatePerson(first(person(person_id=name, nationalities=["GB"])), timeout=10)
        else:
            profiles.UpdateBusiness(first(registered(number, business_id=name, people=people(1))), timeout=10)

    assert at_once(16, make) == {"OK": 2, "VERSION_MISMATCH": 14}
    with profiles_engine.connect() as connection:
        counted = rows(connection, "SELECT count(*) FROM profiles.business_person WHERE business_id = :id", id=name)
    assert counted == [(1,)]


def test_a_registration_that_another_has(profiles: Stub) -> None:
    """ALREADY_EXISTS, and nothing is made, its people neither."""
    engines = registered()
    profiles.UpdateBusiness(first(engines), timeout=10)
    other = registered(engines.registration_number, people=people(business_pb2.ROLE_OWNER))
    error = refusal(profiles.UpdateBusiness, first(other))
    assert (error.reason, error.metadata["field"]) == (Reason.ALREADY_EXISTS, "registration_number")
    get = pb.GetBusinessRequest(business_id=other.business_id, allow_missing=True)
    assert profiles.GetBusiness(get).business.version == 0


def test_r10_a_first_update_meets_a_prepared_row(
    profiles: Stub, profiles_participant: Participant, profiles_coordinator: ScriptedCoordinator
) -> None:
    """R10: "An Update acts like a reader": undecided → HELD with RetryInfo; aborted → it makes the entity."""
    ada, engines = person(), registered()
    asked = ask(ada, engines)
    profiles_participant.prepare([asked])
    namesake = registered(engines.registration_number)
    for call, request in (
        (profiles.UpdatePerson, first(ada)),
        (profiles.UpdateBusiness, first(engines)),
        (profiles.UpdateBusiness, first(namesake)),
    ):
        error = refusal(call, request)
        assert error.reason is Reason.HELD
        assert error.retry_after_s
    profiles_coordinator.outcome = OUTCOMES.Value("OUTCOME_ABORTED")
    try:
        assert profiles.UpdateBusiness(first(namesake), timeout=10).business.version == 1
        assert profiles.UpdatePerson(first(ada), timeout=10).person.version == 1
    finally:
        profiles_coordinator.outcome = OUTCOMES.Value("OUTCOME_UNDECIDED")


def test_r10_a_first_update_meets_what_was_committed(
    profiles: Stub, profiles_participant: Participant, profiles_coordinator: ScriptedCoordinator
) -> None:
    """Committed → it is rolled forward, and the first update is told that it is there."""
    ada = person()
    profiles_participant.prepare([ask(ada)])
    profiles_coordinator.outcome = OUTCOMES.Value("OUTCOME_COMMITTED")
    try:
        assert refusal(profiles.UpdatePerson, first(ada)).reason is Reason.VERSION_MISMATCH
    finally:
        profiles_coordinator.outcome = OUTCOMES.Value("OUTCOME_UNDECIDED")


def test_a_transaction_meets_what_an_update_has_made(profiles: Stub, profiles_participant: Participant) -> None:
    """A row that no transaction has made refuses one that wants its key, as any active row does (R8)."""
    ada = person()
    profiles.UpdatePerson(first(ada), timeout=10)
    (vote,) = profiles_participant.prepare([ask(ada)])
    assert isinstance(vote, TandemError)
    assert vote.reason is Reason.ALREADY_EXISTS


def test_r8_elsewhere_an_update_creates_nothing(profiles_client: Client, profiles_participant: Participant) -> None:
    """R8: "`allow_missing` creates only in the update-or-create design": refused, what is there or not."""
    for call, entity in (
        (profiles_client.profiles.UpdatePerson, person()),
        (profiles_client.profiles.UpdateBusiness, business()),
    ):
        error = refusal(call, first(entity))
        assert (error.reason, error.metadata["field"]) == (Reason.REFUSED, "allow_missing")
    ada = person()
    create(profiles_participant, ada)
    ada.version = 1
    assert refusal(profiles_client.profiles.UpdatePerson, first(ada, "name")).reason is Reason.REFUSED


def test_without_it_version_0_is_none(profiles: Stub) -> None:
    """Where updates may create, those that do not ask for it still need a version; a version read needs an entity."""
    ada = person()
    request = first(ada, "name")
    request.allow_missing = False
    assert [violation.field for violation in refusal(profiles.UpdatePerson, request).violations] == ["person.version"]
    ada.version = 3
    assert refusal(profiles.UpdatePerson, first(ada, "name")).reason is Reason.NOT_FOUND
