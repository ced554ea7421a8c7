"""An identity database as it was before there were profiles: real people and businesses, scaled to any count.

The same seed makes the same accounts, and the first n of them whatever the count. Beyond the files' rows, names are put
together from two persons', and businesses are numbered. On purpose, some facts are missing, some are malformed, and
some are there twice, as in every table that people have typed into for years.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from identity_stub import tables as t
from identity_stub.importing.places import COUNTRIES
from identity_stub.users import ABSENT
from tandem.runtime.database import Limits
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.local_transaction import local_transaction

DATA = Path(__file__).parent.parent / "data"

USERS_PER_BUSINESS = 5
COPIED_AT_ONCE = 2_000
"""Rows in one piece that is handed to COPY."""

_UNHURRIED = Limits(statement_timeout_ms=6 * 3_600_000, idle_timeout_ms=60_000)
"""One COPY a table, however many rows: 100 million take an hour or two."""

_CROWDED = 997
"""Each so manieth business has more people than a profile can be made with, if there are so many users."""
_CROWD = 101

_Row = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Seeded:
    """How many rows were made."""

    users: int
    businesses: int
    members: int


def seed(engine: Engine, count: int, *, seed: int = 1, on_rows: Callable[[int], object] = lambda _: None) -> Seeded:
    """Makes `count` users and a fifth as many businesses with their members, in one local transaction: all or none.

    on_rows: told how many more rows are written. Raises ConfigurationError where this seed's accounts are there.
    """
    source = _Source(seed)
    businesses = count // USERS_PER_BUSINESS
    with local_transaction(engine, _UNHURRIED) as connection:
        first = sa.select(sa.exists().where(t.users.c.user_id == source.user_id(0)))
        if connection.execute(first).scalar_one():
            raise ConfigurationError("this seed's accounts are in the database already: give another --seed")
        raw: Any = connection.connection.cursor()
        old_users = ("user_id", "email", "profile_status", *(f"old_{fact}" for fact in t.OLD_USER_FACTS))
        old_businesses = ("business_id", "profile_status", *(f"old_{fact}" for fact in t.OLD_BUSINESS_FACTS))
        made = [
            _copy(raw, table, columns, rows, on_rows)
            for table, columns, rows in (
                (t.users, old_users, source.users(count)),
                (t.businesses, old_businesses, source.businesses(businesses)),
                (t.members, ("business_id", "user_id", "role"), source.members(businesses, count)),
            )
        ]
        for table in (t.users, t.businesses, t.members):
            connection.execute(sa.text(f"ANALYZE {table.fullname}"))
    return Seeded(*made)


class _Source:
    """The rows of one seed, without end."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._persons = _read(DATA / "persons.csv")
        self._companies = _read(DATA / "businesses.csv")

    def user_id(self, number: int) -> UUID:
        """Of the n-th user: a UUIDv4 for all the world."""
        return self._id("user", number)

    def _id(self, kind: str, number: int) -> UUID:
        digest = blake2b(f"{self._seed}/{kind}/{number}".encode(), digest_size=16).digest()
        return UUID(bytes=digest, version=4)

    def users(self, count: int) -> Iterator[_Row]:
        """user_id, email, profile_status, OLD_USER_FACTS."""
        chance = Random(f"{self._seed}/users")
        before: _Row = ()
        for number in range(count):
            luck = chance.random()
            facts = self._person(number, chance)
            if number and luck < 0.01:
                facts = before  # somebody who has forgotten that there is an account
            before = facts
            yield (str(self.user_id(number)), f"user{number}.{self._seed}@example.org", ABSENT, *facts)

    def _person(self, number: int, chance: Random) -> _Row:
        """OLD_USER_FACTS of a real person, or of one who has the name of two."""
        known = self._persons[number % len(self._persons)]
        other = known if number < len(self._persons) else chance.choice(self._persons)
        given, middle, suffix = known["given_name"], known["middle_name"], known["suffix"]
        family = other["family_name"]
        full = known["full_name"] if other is known else f"{given} {family}"
        birthday, digits = known["birthday"], known["office_phone"].replace("-", "")
        if other is not known:
            digits = f"202{chance.randrange(200, 1_000)}{chance.randrange(10_000):04}"
        street, city, region, postal_code = _office(known["office_address"])
        country: str | None = chance.choice(("US", "US", "us", "USA", "United States"))
        phone = digits and chance.choice(_PHONES)(digits)
        match int(chance.random() * 1_000):
            case n if n < 5:
                given, middle, family, suffix, full = ("",) * 5
            case n if n < 12:
                birthday = chance.choice(("31/02/1970", "1958-13-10", "unknown", "12 May 61"))
            case n if n < 20:
                phone = chance.choice(("ext. 4711", "n/a", "555", "+0 12"))
            case n if n < 25:
                country = chance.choice(("Elsewhere", "", None))
                street = street or "1 Main Street"
            case n if n < 100:
                full = ""
            case n if n < 180:
                birthday = ""
            case n if n < 260:
                phone = ""
            case n if n < 320:
                street, city, region, postal_code, country = ("",) * 4 + (None,)
                phone = phone and f"+1{digits}"
            case n if n < 350:
                given, family = f"  {given}", f"{family} "
        facts = (given, middle, family, suffix, full, birthday, phone, street, city, region, postal_code, country)
        return [fact or None for fact in facts]

    def businesses(self, count: int) -> Iterator[_Row]:
        """business_id, profile_status, OLD_BUSINESS_FACTS."""
        chance = Random(f"{self._seed}/businesses")
        for number in range(count):
            facts = self._business(number, chance)
            yield (str(self._id("business", number)), ABSENT, *(fact or None for fact in facts))

    def _business(self, number: int, chance: Random) -> _Row:
        """OLD_BUSINESS_FACTS of a real company, or of one that is numbered."""
        company = self._companies[number % len(self._companies)]
        generation = number // len(self._companies)
        name = company["Security"] + (f" {generation + 1}" if generation else "")
        register = company["CIK"] + (f"-{self._seed}-{generation}" if generation or self._seed != 1 else "")
        city, _, region = company["Headquarters Location"].partition(";")[0].partition("[")[0].partition(", ")
        industry = f"{company['GICS Sector']}: {company['GICS Sub-Industry']}"
        country, region = (region, "") if region in COUNTRIES else ("US", region)
        registered, incorporated, website = "US", company["Founded"].partition("/")[0], ""
        if chance.random() < 0.5:
            website = f"www.{''.join(filter(str.isalnum, name.lower()))}.example"
            website = website if website.isascii() else ""
        match int(chance.random() * 1_000):
            case n if n < 3:
                name = ""
            case n if n < 8:
                industry = chance.choice(("Misc.", "Retail", "?"))
            case n if n < 13:
                incorporated = chance.choice(("long ago", "19th century", "'85"))
            case n if n < 18:
                registered = ""
            case n if n < 23 and number:  # the same company, entered once more
                register = f"{self._companies[0]['CIK']}" + ("" if self._seed == 1 else f"-{self._seed}-0")
            case n if n < 28:
                website = "see brochure"
            case n if n < 100:
                registered, register = "", ""
            case n if n < 150:
                website = website and f"https://{website}"
            case n if n < 200:
                register = f" {register} "
        return (
            name, registered, register, industry, incorporated, "", city, region, "", country if city else None, website
        )  # fmt: skip

    def members(self, businesses: int, users: int) -> Iterator[_Row]:
        """business_id, user_id, role: an owner each, often somebody else too, and now and then a crowd."""
        chance = Random(f"{self._seed}/members")
        for number in range(businesses):
            business, owner = str(self._id("business", number)), number * USERS_PER_BUSINESS
            yield business, str(self.user_id(owner)), "owner"
            if chance.random() < 0.3:
                yield business, str(self.user_id(owner + 1)), chance.choice(("director", "officer", "shareholder"))
            if number % _CROWDED == _CROWDED - 1 and users > _CROWD:
                for one in range(_CROWD):
                    yield business, str(self.user_id(one)), "beneficial_owner"


_PHONES: Sequence[Callable[[str], str]] = (
    lambda digits: f"{digits[:3]}-{digits[3:6]}-{digits[6:]}",
    lambda digits: f"({digits[:3]}) {digits[3:6]}-{digits[6:]}",
    lambda digits: f"+1 {digits[:3]} {digits[3:6]} {digits[6:]}",
    lambda digits: f"001{digits}",
    lambda digits: digits,
)


def _office(text: str) -> tuple[str, str, str, str]:
    """Street, city, region and postal code of `511 Hart Senate Office Building Washington DC 20510`."""
    street, found, rest = text.partition(" Washington DC ")
    return (street, "Washington", "DC", rest) if found else (text, "", "", "")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- COPY -----------------------------------------------------------------------------------------------------


def _copy(
    cursor: Any, table: sa.Table, columns: Sequence[str], rows: Iterator[_Row], on_rows: Callable[[int], object]
) -> int:
    """Writes the rows as they come; how many there were."""
    stream = _Stream(rows, on_rows)
    cursor.copy_expert(f"COPY {table.fullname} ({', '.join(columns)}) FROM STDIN", stream, size=1 << 16)
    return stream.count


class _Stream(io.RawIOBase):
    """Rows in COPY's text format, made as they are read."""

    def __init__(self, rows: Iterator[_Row], on_rows: Callable[[int], object]) -> None:
        self._rows = rows
        self._on_rows = on_rows
        self._left = b""
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; b"" at the end."""
        if not self._left:
            some = list(islice(self._rows, COPIED_AT_ONCE))
            self._left = "".join("\t".join(map(_cell, row)) + "\n" for row in some).encode()
            self.count += len(some)
            self._on_rows(len(some))
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _cell(value: str | None) -> str:
    if value is None:
        return "\\N"
    if "\\" in value or "\t" in value or "\n" in value or "\r" in value:
        value = value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return value
