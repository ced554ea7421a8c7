"""One account's old columns as the Person or Business that they describe, or why they describe none. Pure.

What can be read in one way only is cleaned: blanks, phone numbers, names of countries, a full name from its parts.
Anything else is refused, for somebody to mend: nothing is guessed and nothing is left out without a word. Refusals name
columns and fields, never what stands in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from google.type import date_pb2, postal_address_pb2

from identity_stub.importing.places import COUNTRIES, GICS_SECTORS
from tandem.profiles.ids import business_id, person_id
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import Reason, Violation
from tandem.runtime.validation import violations

MAX_PEOPLE = 100
"""With their roles, of one business: the most that a business can be made with (business.proto)."""

MAX_FIELDS = 8
"""Named in a refusal's text."""

_COUNTRIES = {
    "united states": "US",
    "united states of america": "US",
    "usa": "US",
    **{name.lower(): code for name, code in COUNTRIES.items()},
}
_SECTORS = {name.lower(): code for name, code in GICS_SECTORS.items()}
_ROLES = {name.removeprefix("ROLE_").lower(): value for name, value in business_pb2.Role.items()}

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_YEAR = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?(?:\s*\(.*\))?")
_PHONE_MARKS = re.compile(r"[\s().-]+")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_NANP = re.compile(r"[2-9]\d{2}[2-9]\d{6}")
_NANP_COUNTRIES = frozenset({"US", "CA"})
_SCHEME = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row is no profile yet. violations: of old columns (without `old_`), or of the profile's fields."""

    reason: Reason
    violations: tuple[Violation, ...] = ()

    def __str__(self) -> str:
        """As it is stored and listed: `INVALID_REQUEST: birthday, phone`."""
        fields = list(dict.fromkeys(violation.field for violation in self.violations))
        return self.reason.value + (f": {', '.join(fields[:MAX_FIELDS])}" if fields else "")


def person_of(row: Any) -> person_pb2.Person | Refusal:
    """The Person of a row with user_id and the columns of OLD_USER_FACTS.

    The address to sign in with is identity's own and no part of it. The contract's rules are not asked: `checked`.
    """
    wrong: list[Violation] = []
    given, middle = _text(row.old_given_name), _text(row.old_middle_name)
    family, suffix = _text(row.old_family_name), _text(row.old_suffix)
    shown = _text(row.old_full_name)
    if not shown:
        shown = " ".join(filter(None, (given, middle, family))) + (f", {suffix}" if suffix else "")
    if not (given or family or _text(row.old_full_name)):
        wrong.append(Violation("full_name", "is missing, and so are its parts"))
    country = _country(row.old_country, "country", wrong)
    phone = _phone(row.old_phone, country, wrong)
    address = _address(row, country, wrong)
    person = person_pb2.Person(
        person_id=str(person_id(row.user_id)),
        name=person_pb2.PersonName(
            given_name=given, middle_name=middle, family_name=family, suffix=suffix, display_name=shown
        ),
        date_of_birth=_birthday(row.old_birthday, wrong),
        phone_numbers=[phone] if phone else [],
        postal_addresses=[address] if address else [],
    )
    return Refusal(Reason.INVALID_REQUEST, tuple(wrong)) if wrong else person


def business_of(row: Any, people: Iterable[tuple[UUID, str]] = ()) -> business_pb2.Business | Refusal:
    """The Business of a row with business_id and the columns of OLD_BUSINESS_FACTS. people: (user_id, role) of members.

    Its legal form was never asked for: ENTITY_TYPE_OTHER. The contract's rules are not asked: `checked`.
    """
    wrong: list[Violation] = []
    if not _text(row.old_legal_name):
        wrong.append(Violation("legal_name", "is missing"))
    registered_in = _country(row.old_registration_country, "registration_country", wrong)
    number = "".join((row.old_registration_number or "").split()).upper()
    if number and not _text(row.old_registration_country):
        wrong.append(Violation("registration_country", "is missing, and registration_number is there"))
    if registered_in and not number:
        wrong.append(Violation("registration_number", "is missing, and registration_country is there"))
    roles = sorted((str(person_id(user_id)), _ROLES[role]) for user_id, role in people)
    if len(roles) > MAX_PEOPLE:
        wrong.append(Violation("people", f"are more than the {MAX_PEOPLE} that a business can be made with"))
        roles = []
    address = _address(row, _country(row.old_country, "country", wrong), wrong)
    business = business_pb2.Business(
        business_id=str(business_id(row.business_id)),
        legal_name=_text(row.old_legal_name),
        entity_type=business_pb2.ENTITY_TYPE_OTHER,
        registration_country=registered_in,
        registration_number=number,
        incorporation_date=_incorporated(row.old_incorporated, wrong),
        industry=_industry(row.old_industry, wrong),
        addresses=[address] if address else [],
        website=_website(row.old_website, wrong),
        people=[business_pb2.BusinessRole(person_id=who, role=role) for who, role in roles],
    )
    return Refusal(Reason.INVALID_REQUEST, tuple(wrong)) if wrong else business


def checked(
    profile: person_pb2.Person | business_pb2.Business | Refusal,
) -> person_pb2.Person | business_pb2.Business | Refusal:
    """The same, or what its contract has against it. Profiles does this again: it is for those who do not ask it."""
    if isinstance(profile, Refusal):
        return profile
    found = violations(profile)
    return Refusal(Reason.INVALID_REQUEST, tuple(found)) if found else profile


# --- parts ----------------------------------------------------------------------------------------------------


def _text(typed: str | None) -> str:
    """Without blanks around it and with single ones in it."""
    return " ".join(typed.split()) if typed else ""


def _country(typed: str | None, column: str, wrong: list[Violation]) -> str:
    """ISO 3166-1 alpha-2; "" for none."""
    text = _text(typed)
    if not text:
        return ""
    code = _COUNTRIES.get(text.lower().removeprefix("the "), text.upper())
    if len(code) == 2 and code.isascii() and code.isalpha():
        return code
    wrong.append(Violation(column, "must be an ISO 3166 code or a known country's name"))
    return ""


def _birthday(typed: str | None, wrong: list[Violation]) -> date_pb2.Date | None:
    text = _text(typed)
    if not text:
        return None
    if _DAY.fullmatch(text):
        try:
            day = date.fromisoformat(text)
        except ValueError:
            pass
        else:
            return date_pb2.Date(year=day.year, month=day.month, day=day.day)
    wrong.append(Violation("birthday", "must be a date like 1990-12-31"))
    return None


def _phone(typed: str | None, country: str, wrong: list[Violation]) -> str:
    """In E.164 form. Ten digits are a number of the US or Canada if the account is there."""
    number = _PHONE_MARKS.sub("", typed or "")
    if not number:
        return ""
    if number.startswith("00"):
        number = f"+{number[2:]}"
    elif country in _NANP_COUNTRIES and _NANP.fullmatch(number):
        number = f"+1{number}"
    if _E164.fullmatch(number):
        return number
    wrong.append(Violation("phone", "must be an international number, or one of ten digits in the US or Canada"))
    return ""


def _address(row: Any, country: str, wrong: list[Violation]) -> postal_address_pb2.PostalAddress | None:
    """The address; None where there is no more of it than a country."""
    street, city = _text(row.old_street), _text(row.old_city)
    region, postal_code = _text(row.old_region), _text(row.old_postal_code)
    if not (street or city or region or postal_code):
        return None
    if not _text(row.old_country):
        wrong.append(Violation("country", "is missing, and the rest of the address is there"))
    if not (street or city):
        wrong.append(Violation("city", "is missing, as is the street, and the rest of the address is there"))
    return postal_address_pb2.PostalAddress(
        region_code=country,
        administrative_area=region,
        locality=city,
        postal_code=postal_code,
        address_lines=[street] if street else [],
    )


def _incorporated(typed: str | None, wrong: list[Violation]) -> date_pb2.Date | None:
    """A year, a year and month, or a date; `2013 (1888)` is of 2013, with predecessors."""
    text = _text(typed)
    if not text:
        return None
    match = _YEAR.fullmatch(text)
    if match is None:
        wrong.append(Violation("incorporated", "must be a year, a year and month, or a date like 1990-12-31"))
        return None
    return date_pb2.Date(year=int(match[1]), month=int(match[2] or 0), day=int(match[3] or 0))


def _industry(typed: str | None, wrong: list[Violation]) -> business_pb2.Industry | None:
    """`Sector` or `Sector: what it does in words`, the sector one of GICS."""
    sector, _, words = _text(typed).partition(":")
    if not sector:
        return None
    code = _SECTORS.get(sector.strip().lower())
    if code is None:
        wrong.append(Violation("industry", "must begin with one of the eleven sectors of GICS"))
        return None
    return business_pb2.Industry(scheme=business_pb2.Industry.SCHEME_GICS, code=code, description=words.strip())


def _website(typed: str | None, wrong: list[Violation]) -> str:
    """An absolute URI; one without a scheme is taken for https."""
    text = (typed or "").strip()
    if not text:
        return ""
    if any(character.isspace() for character in text) or "." not in text:
        wrong.append(Violation("website", "must be an address in the web"))
        return ""
    return text if _SCHEME.match(text) else f"https://{text}"
