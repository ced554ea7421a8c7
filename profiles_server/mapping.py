"""Messages to rows and back, without loss. Fields that the contract does not know are dropped, as protobuf servers do.

A row's facts are JSON values, so that they can be parameters of a whole batch (`tandem.runtime.records`); text that
is not set is null, never "". Enums are stored as words without their prefix: ROLE_OWNER is `owner`. A word that
this code doesn't know, stored by a newer one, is read as not set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any
from uuid import UUID

from google.type import date_pb2, postal_address_pb2
from sqlalchemy.engine import Row

from tandem.profiles.v1 import business_pb2, person_pb2

Facts = dict[str, object]
"""Columns of a row and their JSON values."""


class Words:
    """The values of an enum as words."""

    def __init__(self, items: Iterable[tuple[str, int]], prefix: str) -> None:
        self._words = {int(value): name.removeprefix(prefix).lower() for name, value in items if value}
        self._values = {word: value for value, word in self._words.items()}

    def word(self, value: int) -> str | None:
        """None for 0, which is not set."""
        return self._words.get(value)

    def value(self, word: str | None) -> int:
        """0 for None and for a word of a newer version."""
        return self._values.get(word or "", 0)


ROLES = Words(business_pb2.Role.items(), "ROLE_")
_ENTITY_TYPES = Words(business_pb2.EntityType.items(), "ENTITY_TYPE_")
_SCHEMES = Words(business_pb2.Industry.Scheme.items(), "SCHEME_")
_TAX_TYPES = Words(person_pb2.TaxIdentifier.Type.items(), "TYPE_")

_ADDRESS_FIELDS = frozenset(postal_address_pb2.PostalAddress.DESCRIPTOR.fields_by_name)

# --- persons --------------------------------------------------------------------------------------------------


def person_facts(person: person_pb2.Person) -> Facts:
    """The columns of a valid person, without its id and version."""
    return {
        "given_name": person.name.given_name or None,
        "middle_name": person.name.middle_name or None,
        "family_name": person.name.family_name or None,
        "suffix": person.name.suffix or None,
        "display_name": person.name.display_name,
        "date_of_birth": _iso(person.date_of_birth) if person.HasField("date_of_birth") else None,
        "email_addresses": list(person.email_addresses),
        "phone_numbers": list(person.phone_numbers),
        "postal_addresses": _addresses(person.postal_addresses),
        "nationalities": list(person.nationalities),
        "tax_identifiers": [
            {"type": _TAX_TYPES.word(t.type), "country": t.country, "value": t.value} for t in person.tax_identifiers
        ],
    }


def person_of(row: Row[Any]) -> person_pb2.Person:
    """The person of a row."""
    return person_pb2.Person(
        person_id=str(row.person_id),
        name=person_pb2.PersonName(
            given_name=row.given_name or "",
            middle_name=row.middle_name or "",
            family_name=row.family_name or "",
            suffix=row.suffix or "",
            display_name=row.display_name,
        ),
        date_of_birth=_date(row.date_of_birth.isoformat()) if isinstance(row.date_of_birth, date) else None,
        email_addresses=row.email_addresses,
        phone_numbers=row.phone_numbers,
        postal_addresses=_addresses_of(row.postal_addresses),
        nationalities=row.nationalities,
        tax_identifiers=[
            person_pb2.TaxIdentifier(type=_TAX_TYPES.value(t["type"]), country=t["country"], value=t["value"])  # type: ignore[arg-type]
            for t in row.tax_identifiers
        ],
        version=row.version,
    )


# --- businesses -----------------------------------------------------------------------------------------------


def business_facts(business: business_pb2.Business) -> Facts:
    """The columns of a valid business, without its id, version and people."""
    industry = business.industry if business.HasField("industry") else None
    return {
        "legal_name": business.legal_name,
        "trade_names": list(business.trade_names),
        "entity_type": _ENTITY_TYPES.word(business.entity_type),
        "registration_country": business.registration_country or None,
        "registration_number": business.registration_number or None,
        "incorporation_date": _iso(business.incorporation_date) if business.HasField("incorporation_date") else None,
        "industry_scheme": _SCHEMES.word(industry.scheme) if industry else None,
        "industry_code": industry.code if industry else None,
        "industry_description": industry.description or None if industry else None,
        "addresses": _addresses(business.addresses),
        "website": business.website or None,
    }


def business_of(row: Row[Any], people: Iterable[tuple[UUID | str, str]] = ()) -> business_pb2.Business:
    """The business of a row, with the person_id and role of each of its people, in the order of both."""
    industry = None
    if row.industry_scheme is not None:
        industry = business_pb2.Industry(
            scheme=_SCHEMES.value(row.industry_scheme),  # type: ignore[arg-type]
            code=row.industry_code or "",
            description=row.industry_description or "",
        )
    return business_pb2.Business(
        business_id=str(row.business_id),
        legal_name=row.legal_name,
        trade_names=row.trade_names,
        entity_type=_ENTITY_TYPES.value(row.entity_type),  # type: ignore[arg-type]
        registration_country=row.registration_country or "",
        registration_number=row.registration_number or "",
        incorporation_date=_date(row.incorporation_date) if row.incorporation_date else None,
        industry=industry,
        addresses=_addresses_of(row.addresses),
        website=row.website or "",
        people=[
            business_pb2.BusinessRole(person_id=person_id, role=role)  # type: ignore[arg-type]
            for person_id, role in sorted((str(person_id), ROLES.value(role)) for person_id, role in people)
        ],
        version=row.version,
    )


# --- parts ----------------------------------------------------------------------------------------------------


def _iso(day: date_pb2.Date) -> str:
    """YYYY, YYYY-MM or YYYY-MM-DD: as much as is set."""
    parts = [f"{day.year:04}", f"{day.month:02}" if day.month else "", f"{day.day:02}" if day.day else ""]
    return "-".join(filter(None, parts))


def _date(iso: str) -> date_pb2.Date:
    year, month, day = (*map(int, iso.split("-")), 0, 0)[:3]
    return date_pb2.Date(year=year, month=month, day=day)


def _addresses(addresses: Iterable[postal_address_pb2.PostalAddress]) -> list[dict[str, object]]:
    """Only what is set, by the names of the contract."""
    return [
        {field.name: value if isinstance(value, (str, int)) else list(value) for field, value in address.ListFields()}
        for address in addresses
    ]


def _addresses_of(stored: Sequence[dict[str, Any]]) -> list[postal_address_pb2.PostalAddress]:
    return [
        postal_address_pb2.PostalAddress(**{name: value for name, value in one.items() if name in _ADDRESS_FIELDS})
        for one in stored
    ]
