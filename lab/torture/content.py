"""What clients write, derived from a name that is used once; and the rows that must come of it, written out again.

A mix-up of two persons or businesses shows in every column.
"""

from __future__ import annotations

import zlib

from google.type import date_pb2, postal_address_pb2

from tandem.profiles.v1 import business_pb2, person_pb2

PERSON_COLUMNS = (
    "given_name", "middle_name", "family_name", "suffix", "display_name", "date_of_birth::text", "email_addresses",
    "phone_numbers", "postal_addresses", "nationalities", "tax_identifiers",
)  # fmt: skip
"""Whatever a client can set."""

BUSINESS_COLUMNS = (
    "legal_name", "trade_names", "entity_type", "registration_country", "registration_number", "incorporation_date",
    "industry_scheme", "industry_code", "industry_description", "addresses", "website",
)  # fmt: skip


def person(name: str, email: str) -> person_pb2.Person:
    """Whom this name asks for."""
    return person_pb2.Person(
        name=person_pb2.PersonName(given_name=name, family_name=f"Of {name}", display_name=name),
        date_of_birth=date_pb2.Date(year=1980, month=2, day=_day(name)),
        email_addresses=[email],
        phone_numbers=[_phone(name)],
        postal_addresses=[postal_address_pb2.PostalAddress(region_code="GB", address_lines=[f"1 {name} Street"])],
        nationalities=["GB"],
        tax_identifiers=[
            person_pb2.TaxIdentifier(type=person_pb2.TaxIdentifier.TYPE_NATIONAL_ID, country="GB", value=f"T {name}")
        ],
    )


def person_row(name: str, email: str) -> dict[str, object]:
    """The columns of that person until the first update."""
    return {
        "given_name": name,
        "middle_name": None,
        "family_name": f"Of {name}",
        "suffix": None,
        "display_name": name,
        "date_of_birth": f"1980-02-{_day(name):02}",
        "email_addresses": [email],
        "phone_numbers": [_phone(name)],
        "postal_addresses": [{"region_code": "GB", "address_lines": [f"1 {name} Street"]}],
        "nationalities": ["GB"],
        "tax_identifiers": [{"type": "national_id", "country": "GB", "value": f"T {name}"}],
    }


def business(name: str, registration: str) -> business_pb2.Business:
    """Which business this name asks for."""
    return business_pb2.Business(
        legal_name=f"{name} Ltd",
        trade_names=[name],
        entity_type=business_pb2.ENTITY_TYPE_CORPORATION,
        registration_country="GB",
        registration_number=registration,
        incorporation_date=date_pb2.Date(year=2001, month=3),
        industry=business_pb2.Industry(
            scheme=business_pb2.Industry.SCHEME_ISIC, code="64", description=f"what {name} does"
        ),
        addresses=[postal_address_pb2.PostalAddress(region_code="GB", address_lines=[f"2 {name} Street"])],
        website=f"https://{name}.example.org",
    )


def business_row(name: str, registration: str) -> dict[str, object]:
    """The columns of that business until the first update."""
    return {
        "legal_name": f"{name} Ltd",
        "trade_names": [name],
        "entity_type": "corporation",
        "registration_country": "GB",
        "registration_number": registration,
        "incorporation_date": "2001-03",
        "industry_scheme": "isic",
        "industry_code": "64",
        "industry_description": f"what {name} does",
        "addresses": [{"region_code": "GB", "address_lines": [f"2 {name} Street"]}],
        "website": f"https://{name}.example.org",
    }


def _day(name: str) -> int:
    return 1 + zlib.crc32(name.encode()) % 28


def _phone(name: str) -> str:
    return f"+44{zlib.crc32(name.encode()):010}"
