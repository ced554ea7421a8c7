"""What the tests of profiles share: transactions to ask for and entities to write. Fixtures: profiles_fixtures."""

from __future__ import annotations

import random
from dataclasses import dataclass
from uuid import UUID, uuid4

import sqlalchemy as sa
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.type import date_pb2, postal_address_pb2
from sqlalchemy.engine import Connection
from uuid_utils.compat import uuid7

from profiles_server.profiles import ProfilesResource
from tandem.participant.participant import Ask, Participant
from tandem.participant.resource import Staging
from tandem.participant.transaction import ResolvedBy
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.runtime.identifiers import TransactionKey
from tandem.v1 import participant_pb2_grpc

LOG_ID = UUID("0190a5a0-0000-4000-8000-000000000000")
RESOURCE = ProfilesResource()
BY = ResolvedBy.COORDINATOR


@dataclass(frozen=True)
class Client:
    """Stubs of a server that really listens."""

    profiles: profiles_service_pb2_grpc.ProfilesServiceStub
    participant: participant_pb2_grpc.ParticipantServiceStub


# --- transactions ---------------------------------------------------------------------------------------------


def new_key(coordinator: str = "identity") -> TransactionKey:
    return TransactionKey(coordinator, uuid7())


def pack(message: Message) -> Any:
    write = Any()
    write.Pack(message)
    return write


def ask(*writes: Message, key: TransactionKey | None = None) -> Ask:
    """A Prepare of these writes."""
    return Ask(key or new_key(), LOG_ID, ttl_s=60, driver_deadline_s=7, writes=[pack(write) for write in writes])


def staging(*writes: Message, key: TransactionKey | None = None) -> Staging:
    """What the resource is given for these writes."""
    return Staging(key or new_key(), [RESOURCE.parse(pack(write)) for write in writes])


def create(participant: Participant, *writes: Message) -> TransactionKey:
    """One whole transaction."""
    asked = ask(*writes)
    (vote,) = participant.prepare([asked])
    assert not isinstance(vote, Exception), vote
    assert participant.commit([asked.key], BY) == [None]
    return asked.key


def rows(connection: Connection, statement: str, **values: object) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.execute(sa.text(statement), values)]


# --- entities -------------------------------------------------------------------------------------------------


def person(**fields: object) -> person_pb2.Person:
    """A small valid person with an id of its own."""
    fields.setdefault("person_id", str(uuid4()))
    fields.setdefault("name", person_pb2.PersonName(display_name="Ada Lovelace"))
    return person_pb2.Person(**fields)  # type: ignore[arg-type]


def business(**fields: object) -> business_pb2.Business:
    """A small valid business with an id of its own, without a registration."""
    fields.setdefault("business_id", str(uuid4()))
    fields.setdefault("legal_name", "Analytical Engines Ltd")
    fields.setdefault("entity_type", business_pb2.ENTITY_TYPE_CORPORATION)
    return business_pb2.Business(**fields)  # type: ignore[arg-type]


def registered(number: str | None = None, **fields: object) -> business_pb2.Business:
    """A business with a registration number, a random one by default."""
    return business(registration_country="GB", registration_number=number or uuid4().hex[:12].upper(), **fields)


def people(*roles: business_pb2.Role.ValueType) -> list[business_pb2.BusinessRole]:
    """Somebody for each role."""
    return [business_pb2.BusinessRole(person_id=str(uuid4()), role=role) for role in roles]


def relation(business_id: str, **fields: object) -> business_pb2.BusinessPerson:
    """An owner of the business."""
    fields.setdefault("person_id", str(uuid4()))
    fields.setdefault("role", business_pb2.ROLE_OWNER)
    return business_pb2.BusinessPerson(business_id=business_id, **fields)  # type: ignore[arg-type]


_SCRIPTS = [
    "aZ09 -'",
    "ÄßñŁø",
    "Ωλ",
    "Жи",
    "אב",
    "عر",
    "日本語",
    "한글",
    "👩‍🚀🇩🇪",
    "e\u0301\u200d",
    '"\\{}[]%s:',
]


def random_person(chance: random.Random) -> person_pb2.Person:
    """Any valid person: every field is sometimes set and sometimes not, in all scripts."""
    maybe = _maybe(chance)
    return person_pb2.Person(
        person_id=str(UUID(int=chance.getrandbits(128), version=4)),
        name=person_pb2.PersonName(
            given_name=maybe(_text(chance, 200), ""),
            middle_name=maybe(_text(chance, 200), ""),
            family_name=maybe(_text(chance, 200), ""),
            suffix=maybe(_text(chance, 50), ""),
            display_name="x" + _text(chance, 499),
        ),
        date_of_birth=maybe(
            date_pb2.Date(year=chance.randint(1850, 2020), month=chance.randint(1, 12), day=chance.randint(1, 28)), None
        ),
        email_addresses=[f"ada+{n}@{chance.choice('ab')}.example" for n in range(chance.randint(0, 10))],
        phone_numbers=[f"+4930{chance.randint(100, 999)}{n}" for n in range(chance.randint(0, 10))],
        postal_addresses=[_address(chance) for _ in range(chance.randint(0, 10))],
        nationalities=chance.sample(["DE", "FR", "GB", "US", "JP"], chance.randint(0, 5)),
        tax_identifiers=[
            person_pb2.TaxIdentifier(type=kind, country=chance.choice(["DE", "US"]), value="12-34 5/6.7aZ")
            for kind in chance.sample(person_pb2.TaxIdentifier.Type.values()[1:], chance.randint(0, 5))
        ],
    )


def random_business(chance: random.Random) -> business_pb2.Business:
    """Any valid business, likewise, with its people."""
    maybe = _maybe(chance)
    is_registered = chance.random() < 0.5
    month = maybe(chance.randint(1, 12), 0)
    people = {
        (str(UUID(int=chance.getrandbits(128), version=4)), role)
        for role in chance.sample(business_pb2.Role.values()[1:], chance.randint(0, 7))
    }
    return business_pb2.Business(
        business_id=str(UUID(int=chance.getrandbits(128), version=4)),
        legal_name="x" + _text(chance, 299),
        trade_names=["x" + str(n) + _text(chance, 200) for n in range(chance.randint(0, 20))],
        entity_type=chance.choice(business_pb2.EntityType.values()[1:]),
        registration_country="DE" if is_registered else "",
        registration_number=f"HRB-{chance.getrandbits(80):X}" if is_registered else "",
        incorporation_date=maybe(
            date_pb2.Date(
                year=chance.randint(1500, 2020), month=month, day=maybe(chance.randint(1, 28), 0) if month else 0
            ),
            None,
        ),
        industry=maybe(
            business_pb2.Industry(
                scheme=chance.choice(business_pb2.Industry.Scheme.values()[1:]),
                code="62.01",
                description=maybe(_text(chance, 300), ""),
            ),
            None,
        ),
        addresses=[_address(chance) for _ in range(chance.randint(0, 20))],
        website=maybe("https://example.com/%C3%A4?a=b#c", ""),
        people=[business_pb2.BusinessRole(person_id=id_, role=role) for id_, role in sorted(people)],
    )


def _maybe(chance: random.Random):  # type: ignore[no-untyped-def]
    return lambda value, otherwise: value if chance.random() < 0.7 else otherwise


def _text(chance: random.Random, at_most: int) -> str:
    alphabet = chance.choice(_SCRIPTS)
    return "".join(chance.choices(alphabet, k=chance.choice([0, 1, 7, at_most])))


def _address(chance: random.Random) -> postal_address_pb2.PostalAddress:
    maybe = _maybe(chance)
    return postal_address_pb2.PostalAddress(
        region_code="CH",
        language_code=maybe("de-CH", ""),
        postal_code=maybe("8000", ""),
        sorting_code=maybe("CEDEX 7", ""),
        administrative_area=maybe(_text(chance, 200), ""),
        locality="x" + _text(chance, 199),
        sublocality=maybe(_text(chance, 200), ""),
        address_lines=["x" + _text(chance, 199) for _ in range(chance.randint(0, 5))],
        recipients=[_text(chance, 200) for _ in range(chance.randint(0, 5))],
        organization=maybe(_text(chance, 200), ""),
    )
