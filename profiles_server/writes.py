"""One write of a transaction, read and checked without a database: the rows it will stage and the names it claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from profiles_server.checks import check
from profiles_server.mapping import ROLES, Facts, business_facts, person_facts
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import InvalidRequest, Reason, Violation

M = TypeVar("M", bound=Message)


class Claim(NamedTuple):
    """A name that one entity at most can have: the field that says it, and its values."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """The rows of one write, and where in it each claim is made (`people[1]`)."""

    persons: Sequence[Facts] = ()
    businesses: Sequence[Facts] = ()
    roles: Sequence[Facts] = ()
    claims: Mapping[Claim, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows it will stage."""
        return len(self.persons) + len(self.businesses) + len(self.roles)


def read(write: Any) -> Content:
    """The content of a write. Raises InvalidRequest: UNKNOWN_TYPE, MALFORMED_MESSAGE, or what is wrong in it."""
    slash, name = write.type_url.rpartition("/")[1:]
    if slash and name == person_pb2.Person.DESCRIPTOR.full_name:
        return _person(_decoded(person_pb2.Person, write))
    if slash and name == business_pb2.Business.DESCRIPTOR.full_name:
        return _business(_decoded(business_pb2.Business, write))
    if slash and name == business_pb2.BusinessPerson.DESCRIPTOR.full_name:
        return _business_person(_decoded(business_pb2.BusinessPerson, write))
    raise InvalidRequest(
        [Violation("type_url", "must name Person, Business or BusinessPerson of tandem.profiles.v1")],
        reason=Reason.UNKNOWN_TYPE,
    )


def _decoded(kind: type[M], write: Any) -> M:
    try:
        return kind.FromString(write.value)
    except (DecodeError, UnicodeDecodeError):
        raise InvalidRequest(
            [Violation("value", "is not a message of its type: it is cut off, or a text in it is not UTF-8")],
            reason=Reason.MALFORMED_MESSAGE,
        ) from None


def _person(person: person_pb2.Person) -> Content:
    check(person, *_new("person_id", person.person_id, person.version))
    person_id = _canonical(person.person_id)
    return Content(
        persons=[{"person_id": person_id, **person_facts(person)}],
        claims={Claim("person_id", (person_id,)): "person_id"},
    )


def _business(business: business_pb2.Business) -> Content:
    check(business, *_new("business_id", business.business_id, business.version))
    business_id = _canonical(business.business_id)
    facts = business_facts(business)
    claims = {Claim("business_id", (business_id,)): "business_id"}
    if business.registration_number:
        claims[Claim("registration_number", (business.registration_country, business.registration_number))] = (
            "registration_number"
        )
    roles = []
    for position, person in enumerate(business.people):
        role = _role(business_id, person.person_id, person.role)
        claim, path = _role_claim(role), f"people[{position}]"
        if claim in claims:  # the contract's own rule takes an id in capitals for another one
            raise InvalidRequest([Violation(path, "a person holds a role once", "people.unique")])
        claims[claim] = path
        roles.append(role)
    return Content(businesses=[{"business_id": business_id, **facts}], roles=roles, claims=claims)


def _business_person(relation: business_pb2.BusinessPerson) -> Content:
    check(relation)
    role = _role(_canonical(relation.business_id), relation.person_id, relation.role)
    return Content(roles=[role], claims={_role_claim(role): "role"})


def _new(name: str, entity_id: str, version: int) -> list[Violation]:
    """What an entity that is to be created must and must not have."""
    found = []
    if not entity_id:
        found.append(Violation(name, "is required in a write", "required"))
    if version:
        found.append(Violation("version", "must be 0 in a write: the service sets it"))
    return found


def _role(business_id: str, person_id: str, role: int) -> Facts:
    return {"business_id": business_id, "person_id": _canonical(person_id), "role": ROLES.word(role)}


def _role_claim(role: Facts) -> Claim:
    return Claim("role", tuple(str(role[column]) for column in ("business_id", "person_id", "role")))


def _canonical(uuid: str) -> str:
    """In lower case: that is how names are compared. uuid: of a validated message, so it has the usual form."""
    return uuid.lower()
