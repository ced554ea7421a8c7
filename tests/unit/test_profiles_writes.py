"""What profiles accepts as a write of a transaction, and how it says what is wrong, without a database."""

from __future__ import annotations

from uuid import uuid4

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from profiles_server.profiles import ProfilesResource
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import InvalidRequest, Reason
from tandem.v1 import transaction_pb2

ID = "0190a5a0-0000-4000-8000-0000000000ab"
NAME = person_pb2.PersonName(display_name="Ada")


def _any(message: Message) -> Any:
    write = Any()
    write.Pack(message)
    return write


def _business(**fields: object) -> business_pb2.Business:
    return business_pb2.Business(business_id=ID, legal_name="x", entity_type=1, **fields)  # type: ignore[arg-type]


def _role(person_id: str, role: int) -> business_pb2.BusinessRole:
    return business_pb2.BusinessRole(person_id=person_id, role=role)  # type: ignore[arg-type]


def _refused(write: Any) -> tuple[Reason, list[str]]:
    with pytest.raises(InvalidRequest) as caught:
        ProfilesResource().parse(write)
    return caught.value.reason, [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("write", "rows"),
    [
        (person_pb2.Person(person_id=ID, name=NAME), 1),
        (_business(), 1),
        (_business(people=[_role(ID, 1), _role(ID, 2)]), 3),
        (business_pb2.BusinessPerson(business_id=ID, person_id=ID, role=business_pb2.ROLE_OWNER), 1),
    ],
)
def test_the_rows_of_a_write_are_counted(write: Message, rows: int) -> None:
    """Commit must publish exactly as many rows as were promised, so the promise must be exact."""
    assert ProfilesResource().parse(_any(write)).rows == rows


@pytest.mark.parametrize(
    "write",
    [
        Any(),
        Any(type_url="tandem.profiles.v1.Person"),
        Any(type_url="type.googleapis.com/tandem.profiles.v1.Persons"),
        _any(transaction_pb2.TransactionKey()),
    ],
)
def test_an_unknown_type_is_named(write: Any) -> None:
    """A participant never guesses what it is asked to store."""
    assert _refused(write) == (Reason.UNKNOWN_TYPE, ["type_url"])


@pytest.mark.parametrize("value", [b"\xff", b"\x12\x05\x0a\x03ab", b"\x12\x03\x0a\x01\xff"])
def test_bytes_that_are_no_message(value: bytes) -> None:
    """Garbage, a cut-off message and text that is not UTF-8 are refused before anything is promised."""
    write = Any(type_url="type.googleapis.com/tandem.profiles.v1.Person", value=value)
    assert _refused(write) == (Reason.MALFORMED_MESSAGE, ["value"])


@pytest.mark.parametrize(
    ("write", "fields"),
    [
        (person_pb2.Person(name=NAME), ["person_id"]),
        (person_pb2.Person(person_id="1", name=NAME), ["person_id"]),
        (person_pb2.Person(person_id=ID), ["name"]),
        (person_pb2.Person(person_id=ID, name=NAME, version=1), ["version"]),
        (_business(version=3), ["version"]),
        (_business(registration_number="1"), [""]),
        (_business(people=[_role(ID, 1), _role(ID, 1)]), ["people"]),
        (_business(people=[_role(ID, 1), _role(ID.upper(), 1)]), ["people[1]"]),
        (business_pb2.BusinessPerson(business_id=ID, person_id=ID), ["role"]),
        (business_pb2.Business(legal_name="x", entity_type=business_pb2.ENTITY_TYPE_TRUST), ["business_id"]),
    ],
)
def test_what_is_wrong_is_named(write: Message, fields: list[str]) -> None:
    """The contract's rules, and those for a new entity: an id, no version, a role once (however its id is written)."""
    assert _refused(_any(write)) == (Reason.INVALID_REQUEST, fields)


def test_nul_is_refused_wherever_it_is() -> None:
    """PostgreSQL can't store it: found at Prepare, in any text, and named without the text."""
    person = person_pb2.Person(person_id=ID, name=person_pb2.PersonName(display_name="A\0", suffix="\0"))
    person.postal_addresses.add(region_code="DE", locality="x", address_lines=["1", "2\0"])
    person.postal_addresses.add(region_code="DE", locality="\0")
    reason, fields = _refused(_any(person))
    assert reason is Reason.INVALID_REQUEST
    assert fields == [
        "name.suffix",
        "name.display_name",
        "postal_addresses[0].address_lines[1]",
        "postal_addresses[1].locality",
    ]


def test_errors_hold_no_values() -> None:
    """No personal data in any error: neither the sentence nor the violations repeat what was sent."""
    secret = f"secret-{uuid4().hex}"
    person = person_pb2.Person(
        person_id=secret,
        name=person_pb2.PersonName(display_name=secret * 20, given_name=secret + "\0"),
        email_addresses=[secret, secret],
        phone_numbers=[secret],
        nationalities=[secret],
    )
    person.tax_identifiers.add(country=secret, value=secret + "!")
    with pytest.raises(InvalidRequest) as caught:
        ProfilesResource().parse(_any(person))
    assert len(caught.value.violations) > 5
    assert secret not in repr((caught.value.message, caught.value.violations, caught.value.metadata))
