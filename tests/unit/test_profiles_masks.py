"""Field masks: what an update may name, and what of the new entity gets into the old one."""

from __future__ import annotations

import pytest

from profiles_server.masks import Mask, merged
from tandem.profiles.v1 import business_pb2, person_pb2

MASK = Mask(frozenset({"person_id", "version"}), nested="name")


@pytest.mark.parametrize(
    "path", ["name", "name.suffix", "name.display_name", "date_of_birth", "email_addresses", "tax_identifiers"]
)
def test_fields_that_may_be_named(path: str) -> None:
    """Top-level fields, and those of the name."""
    assert MASK.wrong(person_pb2.Person(), [path]) == []


@pytest.mark.parametrize(
    "path",
    [
        *["", "*", ".", "name.", ".suffix", "name.nickname", "name.suffix.x", "displayName", "person_id", "version"],
        *["date_of_birth.year", "email_addresses.x", "person_id.x", "postal_addresses.locality", "name suffix"],
    ],
)
def test_fields_that_may_not_be_named(path: str) -> None:
    """Anything else is an error that names its position and not what was sent."""
    (violation,) = MASK.wrong(person_pb2.Person(), [path])
    assert violation.field == "update_mask.paths[0]"
    assert not path.strip(".*") or path not in violation.description


def test_only_what_is_named_is_taken() -> None:
    """Lists are replaced, what is not set in the new entity is cleared, everything else stays."""
    current = person_pb2.Person(
        name=person_pb2.PersonName(given_name="Ada", suffix="I", display_name="Ada I"),
        email_addresses=["a@example.com"],
        phone_numbers=["+491234567"],
        nationalities=["GB"],
        version=3,
    )
    current.date_of_birth.year = 1815
    new = person_pb2.Person(
        name=person_pb2.PersonName(given_name="Augusta", family_name="King"),
        email_addresses=["b@example.com", "c@example.com"],
        version=9,
    )
    result = merged(
        current, new, ["name.given_name", "name.suffix", "email_addresses", "phone_numbers", "date_of_birth"]
    )
    assert result == person_pb2.Person(
        name=person_pb2.PersonName(given_name="Augusta", display_name="Ada I"),
        email_addresses=["b@example.com", "c@example.com"],
        nationalities=["GB"],
        version=3,
    )
    assert current.email_addresses == ["a@example.com"]


def test_the_whole_and_a_part_of_it_may_both_be_named() -> None:
    """In either order, and more than once: the result is the new one's."""
    current = person_pb2.Person(name=person_pb2.PersonName(given_name="Ada", display_name="Ada"))
    new = person_pb2.Person(name=person_pb2.PersonName(display_name="Augusta"))
    for paths in (["name", "name.given_name", "name"], ["name.display_name", "name"]):
        assert merged(current, new, paths).name == new.name


def test_clearing_a_part_of_what_is_not_there_changes_nothing() -> None:
    """An absent industry does not come into being, half empty, by clearing its description."""
    assert not merged(business_pb2.Business(), business_pb2.Business(), ["industry.description"]).HasField("industry")
    new = business_pb2.Business(industry=business_pb2.Industry(code="1"))
    assert merged(business_pb2.Business(), new, ["industry.code"]).industry.code == "1"
    assert not merged(new, business_pb2.Business(), ["industry"]).HasField("industry")
