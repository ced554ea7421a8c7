"""ProfilesService over real gRPC and PostgreSQL: reads, batch reads, updates, and what their errors say."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2
from sqlalchemy.engine import Engine

from profiles_server import tables as t
from tandem.participant.participant import Participant, Yes
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.errors import MAX_VIOLATIONS, Reason, TandemError
from tandem.runtime.status import from_rpc_error, from_status
from tandem.v1 import participant_pb2, transaction_pb2
from tests.integration.profiles_support import (
    BY,
    LOG_ID,
    Client,
    ask,
    business,
    create,
    new_key,
    pack,
    people,
    person,
    registered,
    relation,
    rows,
)

pytest_plugins = ["tests.integration.profiles_fixtures"]


def refused(call: Callable[..., Any], request: object) -> tuple[grpc.StatusCode, TandemError]:
    """The code and the error of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    return caught.value.code(), from_rpc_error(caught.value)


def update_person(changed: person_pb2.Person, *paths: str) -> pb.UpdatePersonRequest:
    return pb.UpdatePersonRequest(person=changed, update_mask=FieldMask(paths=paths))


def update_business(changed: business_pb2.Business, *paths: str) -> pb.UpdateBusinessRequest:
    return pb.UpdateBusinessRequest(business=changed, update_mask=FieldMask(paths=paths))


# --- reads ----------------------------------------------------------------------------------------------------


def test_what_was_created_is_read(profiles_client: Client, profiles_participant: Participant) -> None:
    """One person and one business, as written, with version 1; the people in the order of their ids."""
    ada = person(email_addresses=["ada@example.com"])
    engines = registered(people=people(business_pb2.ROLE_SECRETARY, business_pb2.ROLE_OWNER))
    create(profiles_participant, ada, engines)
    create(profiles_participant, relation(engines.business_id))
    ada.version = engines.version = 1
    assert profiles_client.profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id)).person == ada
    found = profiles_client.profiles.GetBusiness(pb.GetBusinessRequest(business_id=engines.business_id)).business
    assert len(found.people) == 3
    assert list(found.people) == sorted(found.people, key=lambda one: (one.person_id, one.role))
    assert {one.person_id for one in engines.people} < {one.person_id for one in found.people}
    del found.people[:], engines.people[:]
    assert found == engines


def test_an_id_in_capitals_is_the_same_id(profiles_client: Client, profiles_participant: Participant) -> None:
    """The answer has it in its one canonical form."""
    ada = person()
    create(profiles_participant, person(person_id=ada.person_id.upper()))
    found = profiles_client.profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id.upper())).person
    assert found.person_id == ada.person_id


def test_what_is_not_there(profiles_client: Client) -> None:
    """NOT_FOUND, or with allow_missing an empty entity that is not stored."""
    missing = str(uuid4())
    profiles = profiles_client.profiles
    for _ in range(2):
        code, error = refused(profiles.GetPerson, pb.GetPersonRequest(person_id=missing))
        assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.NOT_FOUND)
        code, error = refused(profiles.GetBusiness, pb.GetBusinessRequest(business_id=missing))
        assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, Reason.NOT_FOUND)
        empty = profiles.GetPerson(pb.GetPersonRequest(person_id=missing, allow_missing=True)).person
        assert empty == person_pb2.Person(person_id=missing)
        nothing = profiles.GetBusiness(pb.GetBusinessRequest(business_id=missing, allow_missing=True)).business
        assert nothing == business_pb2.Business(business_id=missing)


def test_a_malformed_id_is_a_violation(profiles_client: Client) -> None:
    """Not an internal error, and not NOT_FOUND."""
    for bad in ("", "1", f"{{{uuid4()}}}", uuid4().hex):
        code, error = refused(profiles_client.profiles.GetPerson, pb.GetPersonRequest(person_id=bad))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in error.violations] == ["person_id"]


def test_prepared_is_invisible_until_it_is_committed(
    profiles_client: Client, profiles_participant: Participant
) -> None:
    """To reads, batch reads and updates alike; a prepared role is not among a business' people."""
    ada, engines, active = person(), business(), business()
    create(profiles_participant, active)
    asked = ask(ada, engines, relation(active.business_id))
    assert isinstance(profiles_participant.prepare([asked])[0], Yes)
    profiles = profiles_client.profiles
    get_person = pb.GetPersonRequest(person_id=ada.person_id)
    get_business = pb.GetBusinessRequest(business_id=engines.business_id)
    ada.version = engines.version = 1
    assert refused(profiles.GetPerson, get_person)[0] is grpc.StatusCode.NOT_FOUND
    assert refused(profiles.GetBusiness, get_business)[0] is grpc.StatusCode.NOT_FOUND
    for update, request in (
        (profiles.UpdatePerson, update_person(ada, "name")),
        (profiles.UpdateBusiness, update_business(engines, "legal_name")),
    ):
        code, error = refused(update, request)
        assert (code, error.reason, error.retry_after_s) == (grpc.StatusCode.ABORTED, Reason.HELD, 1.0)
    (result,) = profiles.BatchGetPersons(pb.BatchGetPersonsRequest(person_ids=[ada.person_id])).results
    assert result.status.code == code_pb2.NOT_FOUND
    get_active = pb.GetBusinessRequest(business_id=active.business_id)
    assert not profiles.GetBusiness(get_active).business.people
    assert profiles_participant.commit([asked.key], BY) == [None]
    assert profiles.GetPerson(get_person).person == ada
    assert profiles.GetBusiness(get_business).business == engines
    assert len(profiles.GetBusiness(get_active).business.people) == 1


def test_each_of_a_batch_is_answered_by_itself(profiles_client: Client, profiles_participant: Participant) -> None:
    """In the order asked: found, found again, missing, malformed; a bad one never fails its neighbours."""
    ada, engines = person(), business(people=people(business_pb2.ROLE_OWNER))
    create(profiles_participant, ada, engines)
    missing = str(uuid4())
    persons = profiles_client.profiles.BatchGetPersons(
        pb.BatchGetPersonsRequest(person_ids=[ada.person_id, missing, "nonsense", ada.person_id.upper()])
    ).results
    businesses = profiles_client.profiles.BatchGetBusinesses(
        pb.BatchGetBusinessesRequest(business_ids=[engines.business_id, missing, "", engines.business_id])
    ).results
    for results in (persons, businesses):
        codes = [code_pb2.OK, code_pb2.NOT_FOUND, code_pb2.INVALID_ARGUMENT, code_pb2.OK]
        assert [result.status.code for result in results] == codes
    ada.version = engines.version = 1
    assert [result.person for result in persons] == [ada, person_pb2.Person(), person_pb2.Person(), ada]
    assert [result.HasField("business") for result in businesses] == [True, False, False, True]
    assert businesses[0].business == businesses[3].business == engines
    assert [v.field for v in from_status(persons[2].status).violations] == ["person_ids[2]"]
    assert [v.field for v in from_status(businesses[2].status).violations] == ["business_ids[2]"]


def test_a_batch_has_limits(profiles_client: Client) -> None:
    """R16: none and more than a thousand are refused."""
    for count in (0, 1001):
        request = pb.BatchGetPersonsRequest(person_ids=[str(uuid4())] * count)
        assert refused(profiles_client.profiles.BatchGetPersons, request)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_does_not_fit_into_an_answer_is_said(profiles_client: Client, profiles_participant: Participant) -> None:
    """R16: a batch whose entities are too heavy together still answers those that fit."""
    heavy = business(trade_names=[f"{n}" + "x" * 290 for n in range(20)])
    for _ in range(20):
        heavy.addresses.add(region_code="DE", locality="x" * 200, address_lines=["x" * 200] * 5)
    create(profiles_participant, heavy)
    results = profiles_client.profiles.BatchGetBusinesses(
        pb.BatchGetBusinessesRequest(business_ids=[heavy.business_id] * 200)
    ).results
    codes = [result.status.code for result in results]
    assert codes == sorted(codes)
    assert set(codes) == {code_pb2.OK, code_pb2.RESOURCE_EXHAUSTED}


def test_ids_are_listed_by_pages(profiles_client: Client, profiles_participant: Participant) -> None:
    """All that are active, once each, in their order; by who made them, where that is asked for."""
    ours, theirs, staged = person(), person(), person()
    create(profiles_participant, ours, registered())
    other = ask(theirs, key=new_key("other"))
    assert isinstance(profiles_participant.prepare([other])[0], Yes)
    profiles_participant.commit([other.key], BY)
    hidden = ask(staged)
    profiles_participant.prepare([hidden])

    def listed(coordinator: str) -> list[str]:
        ids: list[str] = []
        token = ""
        while True:
            request = pb.ListPersonIdsRequest(coordinator=coordinator, page_size=2, page_token=token)
            page = profiles_client.profiles.ListPersonIds(request)
            ids += page.person_ids
            token = page.next_page_token
            if not token:
                return ids

    everybody, made_by_other = listed(""), listed("other")
    assert everybody == sorted(set(everybody))
    assert {ours.person_id, theirs.person_id} <= set(everybody)
    assert staged.person_id not in everybody
    assert theirs.person_id in made_by_other
    assert ours.person_id not in made_by_other
    profiles_participant.abort([hidden.key], BY)
    assert profiles_client.profiles.ListBusinessIds(pb.ListBusinessIdsRequest()).business_ids
    for wrong in ({"page_size": 10_001}, {"page_token": "next"}, {"coordinator": "No Name"}):
        request = pb.ListPersonIdsRequest(**wrong)  # type: ignore[arg-type]
        assert refused(profiles_client.profiles.ListPersonIds, request)[0] is grpc.StatusCode.INVALID_ARGUMENT


# --- updates --------------------------------------------------------------------------------------------------


def test_an_update_changes_what_is_named_and_nothing_else(
    profiles_client: Client, profiles_participant: Participant, profiles_engine: Engine
) -> None:
    """Fields of the name one by one, lists as a whole; the version grows; there is an audit event without the facts."""
    ada = person(email_addresses=["ada@example.com"], nationalities=["GB"])
    ada.name.given_name = "Ada"
    create(profiles_participant, ada)
    change = person(person_id=ada.person_id, email_addresses=["augusta@example.com"], version=1)
    change.name.family_name = "King"
    change.name.display_name = "not named, so not taken"
    changed = profiles_client.profiles.UpdatePerson(
        update_person(change, "name.family_name", "email_addresses", "nationalities")
    ).person
    ada.name.family_name = "King"
    ada.email_addresses[:] = ["augusta@example.com"]
    del ada.nationalities[:]
    ada.version = 2
    assert changed == ada
    assert profiles_client.profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id)).person == ada
    with profiles_engine.connect() as connection:
        events = rows(
            connection,
            "SELECT actor, action, entity_kind, version, transaction_id FROM profiles.audit_event "
            "WHERE entity_id = :id AND action = 'updated'",
            id=ada.person_id,
        )
    assert events == [("anonymous", "updated", "person", 2, None)]


def test_a_business_keeps_its_people_through_an_update(
    profiles_client: Client, profiles_participant: Participant
) -> None:
    """Also when it has more of them than one write may give, and when the request has others."""
    engines = registered(people=people(*[business_pb2.ROLE_OWNER] * 100))
    create(profiles_participant, engines)
    create(profiles_participant, relation(engines.business_id))
    change = business(business_id=engines.business_id, legal_name="New", people=people(), version=1)
    change.industry.scheme = business_pb2.Industry.SCHEME_NACE
    change.industry.code = "62.01"
    changed = profiles_client.profiles.UpdateBusiness(
        update_business(change, "legal_name", "industry.scheme", "industry.code")
    ).business
    assert (changed.legal_name, changed.version, len(changed.people)) == ("New", 2, 101)
    assert changed.industry == change.industry
    assert changed.registration_number == engines.registration_number
    found = profiles_client.profiles.GetBusiness(pb.GetBusinessRequest(business_id=engines.business_id)).business
    assert found == changed


def test_an_update_of_an_old_version_is_aborted(profiles_client: Client, profiles_participant: Participant) -> None:
    """The optimistic lock: nothing is overwritten unseen, and the error says which version there is."""
    ada = person()
    create(profiles_participant, ada)
    ada.version = 1
    request = update_person(ada, "name")
    assert profiles_client.profiles.UpdatePerson(request).person.version == 2
    code, error = refused(profiles_client.profiles.UpdatePerson, request)
    assert (code, error.reason) == (grpc.StatusCode.ABORTED, Reason.VERSION_MISMATCH)
    assert error.metadata == {"current_version": "2"}


def test_of_many_updates_at_once_one_wins(profiles_client: Client, profiles_participant: Participant) -> None:
    """Eight clients that read the same version: one version more, seven told so, in whatever order they come."""
    ada = person()
    create(profiles_participant, ada)
    barrier = threading.Barrier(8)

    def change(number: int) -> grpc.StatusCode:
        mine = person(person_id=ada.person_id, version=1)
        mine.name.given_name = str(number)
        barrier.wait(10)
        try:
            profiles_client.profiles.UpdatePerson(update_person(mine, "name.given_name"), timeout=10)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(8) as threads:
        codes = sorted(code.name for code in threads.map(change, range(8)))
    assert codes == ["ABORTED"] * 7 + ["OK"]
    found = profiles_client.profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id)).person
    assert found.version == 2


@pytest.mark.parametrize(
    ("paths", "field"),
    [
        (["person_id"], "update_mask.paths[0]"),
        (["version"], "update_mask.paths[0]"),
        (["name", "people"], "update_mask.paths[1]"),
        (["name.nickname"], "update_mask.paths[0]"),
        (["*"], "update_mask.paths[0]"),
        ([], "update_mask"),
        (["name"] * 51, "update_mask"),
    ],
)
def test_what_may_not_be_named(
    profiles_client: Client, profiles_participant: Participant, paths: list[str], field: str
) -> None:
    """Identity, version and what does not exist are violations; nothing is changed."""
    ada = person()
    create(profiles_participant, ada)
    code, error = refused(
        profiles_client.profiles.UpdatePerson, update_person(person(person_id=ada.person_id, version=1), *paths)
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]
    assert profiles_client.profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id)).person.version == 1


@pytest.mark.parametrize("path", ["business_id", "people", "version", "industry.sector", "name"])
def test_what_may_not_be_named_of_a_business(profiles_client: Client, path: str) -> None:
    """Roles are given by transactions, not here."""
    code, error = refused(profiles_client.profiles.UpdateBusiness, update_business(business(version=1), path))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["update_mask.paths[0]"]


def test_an_update_needs_an_id_a_version_and_a_mask(profiles_client: Client) -> None:
    """Each is a violation of its own field, also in a request with nothing in it."""
    profiles = profiles_client.profiles
    cases: list[tuple[Callable[..., Any], object, str]] = [
        (profiles.UpdatePerson, pb.UpdatePersonRequest(), "update_mask"),
        (profiles.UpdatePerson, update_person(person_pb2.Person(version=1), "name"), "person.person_id"),
        (profiles.UpdatePerson, update_person(person(person_id="x", version=1), "name"), "person.person_id"),
        (profiles.UpdatePerson, update_person(person(), "name"), "person.version"),
        (profiles.UpdatePerson, update_person(person(version=-1), "name"), "person.version"),
        (profiles.UpdateBusiness, update_business(business(version=0), "website"), "business.version"),
        (profiles.UpdateBusiness, update_business(business_pb2.Business(), "website"), "business.business_id"),
    ]
    for call, request, field in cases:
        code, error = refused(call, request)
        assert (code, [violation.field for violation in error.violations]) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            [field],
        )


def test_an_update_of_nobody(profiles_client: Client) -> None:
    """NOT_FOUND: an update never creates."""
    profiles = profiles_client.profiles
    assert refused(profiles.UpdatePerson, update_person(person(version=1), "name"))[0] is grpc.StatusCode.NOT_FOUND
    request = update_business(business(version=1), "legal_name")
    assert refused(profiles.UpdateBusiness, request)[0] is grpc.StatusCode.NOT_FOUND


def test_the_changed_entity_is_checked_as_a_whole(profiles_client: Client, profiles_participant: Participant) -> None:
    """Rules over several fields, rules of fields, and NUL: named below the entity, without the value."""
    ada, engines = person(), business()
    create(profiles_participant, ada, engines)
    ada.version = engines.version = 1
    profiles = profiles_client.profiles

    def fields(call: Callable[..., Any], request: object) -> list[str]:
        code, error = refused(call, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "secret" not in repr((error.message, error.violations, error.metadata))
        return [violation.field for violation in error.violations]

    engines.registration_country = "GB"
    assert fields(profiles.UpdateBusiness, update_business(engines, "registration_country")) == ["business"]
    ada.email_addresses[:] = ["secret"]
    assert fields(profiles.UpdatePerson, update_person(ada, "email_addresses")) == ["person.email_addresses[0]"]
    ada.name.suffix = "secret\0"
    assert fields(profiles.UpdatePerson, update_person(ada, "name.suffix")) == ["person.name.suffix"]
    nameless = person_pb2.Person(person_id=ada.person_id, version=1)
    assert fields(profiles.UpdatePerson, update_person(nameless, "name")) == ["person.name"]
    assert set(fields(profiles.UpdatePerson, update_person(nameless, "name.display_name"))) == {
        "person.name.display_name"
    }
    engines.website = "secret"
    assert fields(profiles.UpdateBusiness, update_business(engines, "website")) == ["business.website"]


def test_a_registration_can_be_taken_once(profiles_client: Client, profiles_participant: Participant) -> None:
    """By an update as by a transaction: ALREADY_EXISTS if an active business has it, ABORTED with a delay while a
    prepared one does, free again when that one is aborted."""
    taken, mine = registered(), business()
    create(profiles_participant, taken, mine)
    mine.version = 1
    mine.registration_country, mine.registration_number = "GB", taken.registration_number
    request = update_business(mine, "registration_country", "registration_number")
    code, error = refused(profiles_client.profiles.UpdateBusiness, request)
    assert (code, error.metadata) == (grpc.StatusCode.ALREADY_EXISTS, {"field": "registration_number"})
    assert taken.registration_number not in repr((error.message, error.metadata))

    held = ask(registered(number := uuid4().hex[:10].upper()))
    assert isinstance(profiles_participant.prepare([held])[0], Yes)
    mine.registration_number = number
    request = update_business(mine, "registration_country", "registration_number")
    code, error = refused(profiles_client.profiles.UpdateBusiness, request)
    assert (code, error.reason, error.retry_after_s) == (grpc.StatusCode.ABORTED, Reason.HELD, 1.0)
    assert error.metadata["held_by_transaction_id"] == str(held.key.transaction_id)
    assert profiles_participant.abort([held.key], BY) == [None]
    assert profiles_client.profiles.UpdateBusiness(request).business.version == 2
    assert isinstance(profiles_participant.prepare([ask(registered(number))])[0], TandemError)


# --- the participant's face -----------------------------------------------------------------------------------


def prepare(*writes: Any) -> participant_pb2.PrepareRequest:
    key = new_key()
    return participant_pb2.PrepareRequest(
        key=transaction_pb2.TransactionKey(coordinator=key.coordinator, transaction_id=str(key.transaction_id)),
        log_id=str(LOG_ID),
        ttl=Duration(seconds=60),
        driver_deadline=Duration(seconds=7),
        writes=writes,
    )


def test_what_is_wrong_with_a_write_comes_with_its_position(profiles_client: Client) -> None:
    """An unknown type, bytes that are no message, and a broken rule, each with the path of its field in the request."""
    good, unknown = pack(person()), pack(transaction_pb2.TransactionKey())
    garbage = pack(person())
    garbage.value = b"\xff\xff"
    wrong = pack(person_pb2.Person(name=person_pb2.PersonName(display_name="\0")))
    for write, reason, fields in (
        (unknown, Reason.UNKNOWN_TYPE, ["writes[1].type_url"]),
        (garbage, Reason.MALFORMED_MESSAGE, ["writes[1].value"]),
        (wrong, Reason.INVALID_REQUEST, ["writes[1].person_id", "writes[1].name.display_name"]),
    ):
        code, error = refused(profiles_client.participant.Prepare, prepare(good, write))
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert [violation.field for violation in error.violations] == fields


def test_all_that_is_wrong_is_told_for_the_reason_of_the_first(profiles_client: Client) -> None:
    """Not one write a call; and what is wrong for another reason is told the next time."""
    unknown, wrong = pack(transaction_pb2.TransactionKey()), pack(person(person_id="no id"))
    for writes, reason, fields in (
        ([unknown, pack(person()), unknown], Reason.UNKNOWN_TYPE, ["writes[0].type_url", "writes[2].type_url"]),
        ([unknown, wrong], Reason.UNKNOWN_TYPE, ["writes[0].type_url"]),
        ([wrong, unknown, wrong], Reason.INVALID_REQUEST, ["writes[0].person_id", "writes[2].person_id"]),
    ):
        code, error = refused(profiles_client.participant.Prepare, prepare(*writes))
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert [violation.field for violation in error.violations] == fields


def test_so_much_is_told_that_a_trailer_holds_it(profiles_client: Client) -> None:
    """R16: of each write that is named all that is wrong with it."""
    wrong = pack(person(person_id="no id", nationalities=["XX", "YY"]))
    _, error = refused(profiles_client.participant.Prepare, prepare(*[wrong] * (MAX_VIOLATIONS + 5)))
    told = Counter(violation.field.partition(".")[0] for violation in error.violations)
    assert told == {f"writes[{n}]": 3 for n in range(MAX_VIOLATIONS // 3)}
    _, error = refused(
        profiles_client.participant.Prepare, prepare(*[pack(person(person_id="no id"))] * (MAX_VIOLATIONS + 5))
    )
    assert len(error.violations) == MAX_VIOLATIONS


def test_a_refusal_over_the_wire(profiles_client: Client, profiles_participant: Participant) -> None:
    """The unary call and an item of a batch say the same: the code, the field, the write, and no value."""
    taken = registered()
    create(profiles_participant, taken)
    request = prepare(pack(person()), pack(registered(taken.registration_number)))
    code, error = refused(profiles_client.participant.Prepare, request)
    assert (code, error.metadata) == (grpc.StatusCode.ALREADY_EXISTS, {"field": "registration_number", "write": "1"})
    assert taken.registration_number not in error.message
    batch = participant_pb2.BatchPrepareRequest(requests=[prepare(pack(person())), request])
    results = profiles_client.participant.BatchPrepare(batch).results
    assert [result.status.code for result in results] == [code_pb2.OK, code_pb2.ALREADY_EXISTS]
    assert from_status(results[1].status).metadata == error.metadata


def test_an_update_leaves_other_columns_alone(
    profiles_client: Client, profiles_participant: Participant, profiles_engine: Engine
) -> None:
    """What a newer version of the service keeps in a column that the mask does not name survives an older one."""
    firm = business()
    create(profiles_participant, firm)
    newer = [{"region_code": "CH", "locality": "Bern", "a_field_of_later": "kept"}]
    with profiles_engine.begin() as connection:
        connection.execute(
            sa.update(t.business).where(t.business.c.business_id == firm.business_id).values(addresses=newer)
        )
    changed = business_pb2.Business(business_id=firm.business_id, version=1, website="https://example.org")
    answer = profiles_client.profiles.UpdateBusiness(update_business(changed, "website"), timeout=10)
    assert (answer.business.version, answer.business.website) == (2, "https://example.org")
    with profiles_engine.begin() as connection:
        (row,) = rows(
            connection, "SELECT addresses FROM profiles.business WHERE business_id = :id", id=firm.business_id
        )
    assert row == (newer,)
