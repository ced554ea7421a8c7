"""The two files, row by row: each row becomes a profile, or is rejected with the reason. Pure but for opening a file.

What is cleaned on the way is noted in the row, and nothing is left out without a word. Reasons name columns and never
hold what stands in them: these are facts of people.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Generic, TypeVar

from google.type import date_pb2, postal_address_pb2

from identity_stub.importing.places import COUNTRIES, GICS_SECTORS, US_STATES
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.validation import violations

P = TypeVar("P", person_pb2.Person, business_pb2.Business)

PERSON_COLUMNS = ("bioguide", "given_name", "middle_name", "family_name", "suffix", "full_name", "birthday",
                  "office_address", "office_phone")  # fmt: skip
BUSINESS_COLUMNS = ("Symbol", "Security", "GICS Sector", "GICS Sub-Industry", "Headquarters Location", "CIK", "Founded")

_PHONE = re.compile(r"(\d{3})-(\d{3})-(\d{4})")
_OFFICE = re.compile(r"(?P<line>.+) (?P<city>Washington) (?P<area>DC) (?P<zip>\d{5}(-\d{4})?)")
_FOOTNOTE = re.compile(r"\[\d+\]")
_YEAR = re.compile(r"(\d{4})(?!\d)")


@dataclass(frozen=True, slots=True)
class Row(Generic[P]):
    """One row that can be imported.

    line: of the file, from 1. key: unique in its file. name: as an operator calls it. email: to sign in with; "" for a
    business. profile: without ids. notes: what was cleaned or is missing.
    """

    line: int
    key: str
    name: str
    profile: P
    email: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Row({self.line}: {self.key})"


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that can't be imported, and why."""

    line: int
    reason: str


class _Unfit(Exception):
    """Why a row can't be a profile."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


PersonRow = Row[person_pb2.Person]
BusinessRow = Row[business_pb2.Business]


def read_persons(path: Path | str) -> list[PersonRow | Rejected]:
    """The rows of a file with PERSON_COLUMNS, in its order."""
    return list(_read(Path(path), PERSON_COLUMNS, "bioguide", person_of))


def read_businesses(path: Path | str) -> list[BusinessRow | Rejected]:
    """The rows of a file with BUSINESS_COLUMNS, in its order. Share classes of one company are rows of their own."""
    return list(_read(Path(path), BUSINESS_COLUMNS, "Symbol", business_of))


def _read(
    path: Path, columns: Sequence[str], key: str, translate: Callable[[int, Mapping[str, str]], Row[P]]
) -> Iterator[Row[P] | Rejected]:
    """Raises ConfigurationError where the file as a whole can't be read."""
    try:
        # What is no UTF-8 becomes lone surrogates, by which its row is known.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = file.readlines()
    except OSError as error:
        raise ConfigurationError(f"{path.name} can't be read: {error.strerror}") from None
    records = _records(lines)
    header = next(records, (1, []))[1]
    if isinstance(header, str):
        raise ConfigurationError(f"{path.name} is not a CSV file in UTF-8: its header {header}")
    missing = [column for column in columns if column not in header]
    if missing:
        raise ConfigurationError(f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    first_of: dict[str, int] = {}
    for line, cells in records:
        if isinstance(cells, str):
            yield Rejected(line, cells)
        elif len(cells) != len(header):
            yield Rejected(line, "has more or fewer cells than the header")
        else:
            yield _row(line, dict(zip(header, cells, strict=True)), key, first_of, translate)


def _records(lines: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    """(line, from 1; the cells, or why there are none) of each record that is not empty. A record may have many lines.

    One that can't be read takes its first line only: what follows may be well.
    """
    at = 0
    while at < len(lines):
        reader = csv.reader(lines[at:], strict=True)
        before = 0
        try:
            for cells in reader:
                if cells:
                    yield at + before + 1, _readable(cells)
                before = reader.line_num
            return
        except csv.Error:
            yield at + before + 1, "is no row of a CSV file: its quotation marks don't match, or a cell is too long"
            at += before + 1


def _readable(cells: list[str]) -> list[str] | str:
    text = "".join(cells)
    if any("\udc80" <= character <= "\udcff" for character in text):
        return "is not in UTF-8"
    return "holds a NUL character" if "\0" in text else cells


def _row(
    line: int,
    cells: Mapping[str, str],
    key: str,
    first_of: dict[str, int],
    translate: Callable[[int, Mapping[str, str]], Row[P]],
) -> Row[P] | Rejected:
    cells = {column: cell.strip() for column, cell in cells.items()}
    first = first_of.setdefault(cells[key], line)
    if first != line:
        return Rejected(line, f"{key} is the same as in line {first}")
    try:
        row = translate(line, cells)
    except _Unfit as unfit:
        return Rejected(line, unfit.reason)
    wrong = [f"{v.field}: {v.description}" for v in violations(row.profile)]
    return Rejected(line, "; ".join(wrong)) if wrong else row


# --- persons ------------------------------------------------------------------------------------------------------


def person_of(line: int, cells: Mapping[str, str]) -> PersonRow:
    """A member of Congress. Raises _Unfit."""
    bioguide = cells["bioguide"]
    if not re.fullmatch(r"[A-Z]\d{6}", bioguide):
        raise _Unfit("bioguide must be a letter and six digits")
    notes = []
    parts = [cells[part] for part in ("given_name", "middle_name", "family_name", "suffix")]
    name = person_pb2.PersonName(
        given_name=parts[0],
        middle_name=parts[1],
        family_name=parts[2],
        suffix=parts[3],
        display_name=cells["full_name"],
    )
    if not name.display_name:
        name.display_name = " ".join(filter(None, parts[:3])) + (f", {parts[3]}" if parts[3] else "")
        notes.append("full_name composed of its parts")
    email = f"{bioguide.lower()}@example.org"
    person = person_pb2.Person(
        name=name, date_of_birth=_birthday(cells["birthday"]), email_addresses=[email], nationalities=["US"]
    )
    if cells["office_phone"]:
        person.phone_numbers.append(_phone(cells["office_phone"]))
    else:
        notes.append("no office_phone")
    if cells["office_address"]:
        person.postal_addresses.append(_office(cells["office_address"], notes))
    else:
        notes.append("no office_address")
    return Row(line, bioguide, name.display_name, person, email, tuple(notes))


def _birthday(text: str) -> date_pb2.Date | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise _Unfit("birthday must be a date like 1990-12-31") from None
    return date_pb2.Date(year=day.year, month=day.month, day=day.day)


def _phone(text: str) -> str:
    match = _PHONE.fullmatch(text)
    if match is None:
        raise _Unfit("office_phone must be like 202-555-0123")
    return "+1" + "".join(match.groups())


def _office(text: str, notes: list[str]) -> postal_address_pb2.PostalAddress:
    match = _OFFICE.fullmatch(text)
    if match is None:
        notes.append("office_address kept as one line")
        return postal_address_pb2.PostalAddress(region_code="US", address_lines=[text])
    return postal_address_pb2.PostalAddress(
        region_code="US",
        administrative_area=match["area"],
        locality=match["city"],
        postal_code=match["zip"],
        address_lines=[match["line"]],
    )


# --- businesses ---------------------------------------------------------------------------------------------------


def business_of(line: int, cells: Mapping[str, str]) -> BusinessRow:
    """A listed company. The ticker is a name of its share, not of the company: it is left out. Raises _Unfit."""
    if not cells["CIK"].isdecimal():
        raise _Unfit("CIK must be a number")
    code = GICS_SECTORS.get(cells["GICS Sector"])
    if code is None:
        raise _Unfit("GICS Sector is none of the eleven")
    notes: list[str] = []
    business = business_pb2.Business(
        legal_name=cells["Security"],
        entity_type=business_pb2.ENTITY_TYPE_CORPORATION,
        registration_country="US",
        registration_number=cells["CIK"],
        incorporation_date=_founded(cells["Founded"], notes),
        industry=business_pb2.Industry(
            scheme=business_pb2.Industry.SCHEME_GICS, code=code, description=cells["GICS Sub-Industry"]
        ),
        addresses=_headquarters(cells["Headquarters Location"], notes),
    )
    return Row(line, cells["Symbol"], cells["Security"], business, notes=tuple(notes))


def _founded(text: str, notes: list[str]) -> date_pb2.Date | None:
    """The first year: `2013 (1888)` is of 2013, with predecessors."""
    if not text:
        notes.append("no Founded")
        return None
    match = _YEAR.match(text)
    if match is None:
        raise _Unfit("Founded must begin with a year")
    if match.end() != len(text):
        notes.append("Founded: only its first year is kept")
    return date_pb2.Date(year=int(match[1]))


def _headquarters(text: str, notes: list[str]) -> list[postal_address_pb2.PostalAddress]:
    """Each place of `City, State; City, Country`; none where the file says so."""
    if text.lower() in ("", "none"):
        notes.append("no Headquarters Location")
        return []
    cleaned = _FOOTNOTE.sub("", text)
    if cleaned != text:
        notes.append("Headquarters Location: footnotes left out")
    return [_place(place.strip()) for place in cleaned.split(";")]


def _place(text: str) -> postal_address_pb2.PostalAddress:
    *parts, last = (part.strip() for part in text.split(","))
    if last in US_STATES:
        where = postal_address_pb2.PostalAddress(region_code="US", administrative_area=US_STATES[last])
    elif last in COUNTRIES:
        where = postal_address_pb2.PostalAddress(region_code=COUNTRIES[last])
        if len(parts) > 1:
            where.administrative_area = parts.pop()
    else:
        raise _Unfit("Headquarters Location must end with a state of the US or a known country")
    # A city that is a state of its own (Singapore) has no further part.
    where.locality = ", ".join(parts) or last
    return where
