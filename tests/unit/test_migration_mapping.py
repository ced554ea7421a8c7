"""What old columns become: what is cleaned, what is refused, and by which names of columns."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from identity_stub.migration.conflicts import Policy, differing, roles_lacking, to_write
from identity_stub.migration.mapping import Refusal, business_of, checked, person_of
from identity_stub.migration.seeding import _Source
from identity_stub.tables import OLD_BUSINESS_FACTS, OLD_USER_FACTS
from tandem.profiles import ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import Reason, Violation

ID = UUID("0190a5a0-0000-7000-8000-000000000001")
PERSON = {
    "given_name": " Amy ", "middle_name": "Jean", "family_name": "Klobuchar", "full_name": "Amy  Klobuchar",
    "birthday": "1960-05-25", "phone": "(202) 224-3244", "street": "425 Dirksen", "city": "Washington", "region": "DC",
    "postal_code": "20510", "country": "United States",
}  # fmt: skip
BUSINESS = {
    "legal_name": "Accenture", "registration_country": "ie", "registration_number": " 14-67 373 ",
    "industry": "Information Technology: IT Consulting", "incorporated": "2013 (1888)", "city": "Dublin",
    "country": "Ireland", "website": "www.accenture.com",
}  # fmt: skip


def person(**facts: str | None) -> person_pb2.Person | Refusal:
    told = {**PERSON, **facts}
    return checked(  # type: ignore[return-value]
        person_of(SimpleNamespace(user_id=ID, **{f"old_{fact}": told.get(fact) for fact in OLD_USER_FACTS}))
    )


def business(people: tuple[tuple[UUID, str], ...] = (), **facts: str | None) -> business_pb2.Business | Refusal:
    told = {**BUSINESS, **facts}
    row = SimpleNamespace(business_id=ID, **{f"old_{fact}": told.get(fact) for fact in OLD_BUSINESS_FACTS})
    return checked(business_of(row, people))  # type: ignore[return-value]


def columns(refusal: object) -> list[str]:
    assert isinstance(refusal, Refusal), refusal
    assert refusal.reason is Reason.INVALID_REQUEST
    return [violation.field for violation in refusal.violations]


def test_a_person_with_everything_is_cleaned_and_named_by_its_user() -> None:
    found = person()
    assert isinstance(found, person_pb2.Person)
    assert found.person_id == str(ids.person_id(ID))
    assert (found.name.given_name, found.name.display_name) == ("Amy", "Amy Klobuchar")
    assert list(found.phone_numbers) == ["+12022243244"]
    assert (found.date_of_birth.year, found.date_of_birth.month, found.date_of_birth.day) == (1960, 5, 25)
    (address,) = found.postal_addresses
    assert (address.region_code, address.locality, list(address.address_lines)) == ("US", "Washington", ["425 Dirksen"])


def test_a_full_name_is_put_together_from_its_parts() -> None:
    found = person(full_name="", suffix="Jr.")
    assert isinstance(found, person_pb2.Person)
    assert found.name.display_name == "Amy Jean Klobuchar, Jr."


@pytest.mark.parametrize("missing", ["birthday", "phone", "middle_name", "region"])
def test_a_missing_fact_is_no_refusal(missing: str) -> None:
    assert isinstance(person(**{missing: None}), person_pb2.Person)


@pytest.mark.parametrize(
    ("facts", "wrong"),
    [
        ({"birthday": "31/02/1970"}, ["birthday"]),
        ({"birthday": "1970-02-31"}, ["birthday"]),
        ({"phone": "ext. 4711"}, ["phone"]),
        ({"phone": "2022243244", "country": "Ireland"}, ["phone"]),
        ({"given_name": "", "family_name": None, "full_name": " "}, ["full_name"]),
        ({"country": "Elsewhere"}, ["country", "phone"]),
        ({"country": None, "phone": "+353 1 646 2000"}, ["country"]),
        ({"street": None, "city": ""}, ["city"]),
        ({"birthday": "1492-10-12"}, ["date_of_birth"]),
    ],
)
def test_a_malformed_fact_is_refused_by_the_name_of_its_column(facts: dict[str, str | None], wrong: list[str]) -> None:
    assert columns(person(**facts)) == wrong


def test_a_refusal_is_told_without_what_was_typed() -> None:
    refusal = person(birthday="Zebulon", phone="Zebulon")
    assert str(refusal) == "INVALID_REQUEST: phone, birthday"
    assert "Zebulon" not in repr(refusal)


def test_a_business_with_everything_is_cleaned_and_has_its_people() -> None:
    owner, director = uuid4(), uuid4()
    found = business(((owner, "owner"), (director, "director")))
    assert isinstance(found, business_pb2.Business)
    assert found.business_id == str(ids.business_id(ID))
    assert (found.registration_country, found.registration_number) == ("IE", "14-67373")
    assert (found.incorporation_date.year, found.incorporation_date.month) == (2013, 0)
    assert (found.industry.code, found.industry.description) == ("45", "IT Consulting")
    assert found.website == "https://www.accenture.com"
    assert {(one.person_id, one.role) for one in found.people} == {
        (str(ids.person_id(owner)), business_pb2.ROLE_OWNER),
        (str(ids.person_id(director)), business_pb2.ROLE_DIRECTOR),
    }


@pytest.mark.parametrize(
    ("facts", "wrong"),
    [
        ({"legal_name": None}, ["legal_name"]),
        ({"registration_country": ""}, ["registration_country"]),
        ({"registration_number": None}, ["registration_number"]),
        ({"industry": "Misc."}, ["industry"]),
        ({"incorporated": "long ago"}, ["incorporated"]),
        ({"website": "see brochure"}, ["website"]),
        ({"incorporated": "2013-13"}, ["incorporation_date"]),
    ],
)
def test_a_malformed_fact_of_a_business_is_refused(facts: dict[str, str | None], wrong: list[str]) -> None:
    assert columns(business(**facts)) == wrong


def test_a_business_with_more_people_than_it_can_be_made_with_is_refused() -> None:
    assert isinstance(business(tuple((uuid4(), "officer") for _ in range(100))), business_pb2.Business)
    assert columns(business(tuple((uuid4(), "officer") for _ in range(101)))) == ["people"]


def test_a_refusal_names_each_field_once_and_not_too_many() -> None:
    violations = tuple(Violation(f"field{n // 2}", "is wrong") for n in range(40))
    told = str(Refusal(Reason.INVALID_REQUEST, violations))
    assert told.startswith("INVALID_REQUEST: field0, field1, ")
    assert told.count("field") == 8


# --- conflicts --------------------------------------------------------------------------------------------------------


def two() -> tuple[person_pb2.Person, person_pb2.Person]:
    """Ours and theirs: another given name, another phone, a birthday that only we know, a suffix that only they do."""
    ours, theirs = person(), person(given_name="Amelia", phone="+353 1 646 2000", birthday=None, suffix="Jr.")
    assert isinstance(ours, person_pb2.Person)
    assert isinstance(theirs, person_pb2.Person)
    return ours, theirs


def test_what_differs_is_what_identity_knew() -> None:
    assert differing(*two()) == ["name.given_name", "date_of_birth", "phone_numbers"]


@pytest.mark.parametrize(
    ("policy", "written"),
    [
        (Policy.KEEP, []),
        (Policy.OVERWRITE, ["name.given_name", "date_of_birth", "phone_numbers"]),
        (Policy.MERGE, ["date_of_birth"]),
    ],
)
def test_each_policy_writes_its_fields(policy: Policy, written: list[str]) -> None:
    assert to_write(policy, *two()) == written


def test_a_legal_form_is_never_touched_and_lacking_roles_are_found() -> None:
    owner, director = uuid4(), uuid4()
    ours = business(((owner, "owner"), (director, "director")))
    theirs = business(((owner, "owner"),))
    assert isinstance(ours, business_pb2.Business)
    assert isinstance(theirs, business_pb2.Business)
    theirs.entity_type = business_pb2.ENTITY_TYPE_CORPORATION
    assert differing(ours, theirs) == []
    (lacking,) = roles_lacking(ours, theirs)
    assert (lacking.person_id, lacking.role) == (str(ids.person_id(director)), business_pb2.ROLE_DIRECTOR)


# --- the seed ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_accounts_whatever_the_count() -> None:
    assert list(_Source(7).users(600))[:300] == list(_Source(7).users(300))
    assert list(_Source(7).businesses(60))[:30] == list(_Source(7).businesses(30))
    assert list(_Source(7).members(60, 300))[:30] == list(_Source(7).members(30, 300))[:30]
    assert list(_Source(7).users(9)) != list(_Source(8).users(9))


def test_the_seed_has_missing_and_malformed_and_double_facts_but_mostly_good_ones() -> None:
    names = ("user_id", "email", "profile_status", *(f"old_{fact}" for fact in OLD_USER_FACTS))
    rows = list(_Source(1).users(3_000))
    made = [person_of(SimpleNamespace(**dict(zip(names, (UUID(row[0]), *row[1:]), strict=True)))) for row in rows]
    refused = [one for one in made if isinstance(one, Refusal)]
    assert 0.01 < len(refused) / len(made) < 0.06
    assert {field for one in refused for field in columns(one)} >= {"birthday", "phone", "country", "full_name"}
    assert len({tuple(row[3:]) for row in rows}) < len(rows), "nobody is there twice"
    assert any(not one.HasField("date_of_birth") for one in made if isinstance(one, person_pb2.Person))
