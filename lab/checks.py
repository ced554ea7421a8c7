"""Whether both sides agree, asked by SQL of both databases; nothing of the product is used to answer.

The ids are recomputed here from the documented rule, so that a mistake in the library would show.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import psycopg2
import psycopg2.extras

NAMESPACE_IDENTITY = UUID("29fbfd81-bb26-4392-8aaf-c6ab198878ae")
"""As documented in tandem/profiles/ids.py; copied, so that a change there would show."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold: what, whether it does, and what was found."""

    what: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Ended:
    """How a transaction that was interrupted by a kill has ended."""

    transaction_id: UUID
    decision: str
    state: str
    by: str
    after_s: float | None


class Databases:
    """The two databases, by plain psycopg2."""

    def __init__(self, identity_url: str, profiles_url: str) -> None:
        self._urls = {"identity": _bare(identity_url), "profiles": _bare(profiles_url)}

    def rows(self, database: str, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """All rows of one statement, on a connection of its own."""
        connection = psycopg2.connect(self._urls[database], connect_timeout=5)
        try:
            psycopg2.extras.register_uuid(conn_or_curs=connection)  # type: ignore[no-untyped-call]
            with connection, connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall()
        finally:
            connection.close()

    def number(self, database: str, sql: str, *parameters: object) -> int:
        """The one number that a statement answers."""
        return int(str(self.rows(database, sql, *parameters)[0][0]))

    def in_doubt(self) -> int:
        """Transactions prepared at profiles."""
        return self.number(
            "profiles", "SELECT count(*) FROM twophase.prepared_transaction WHERE state = 'prepared' OR NOT confirmed"
        )

    def undelivered(self) -> int:
        """Decisions that a participant has not acknowledged, parked ones included."""
        return self.number(
            "identity", "SELECT count(*) FROM twophase.decision WHERE undelivered <> '{}' OR parked <> '{}'"
        )

    def open_transactions(self) -> set[UUID]:
        """Whatever is not finished now, on either side."""
        prepared = self.rows(
            "profiles", "SELECT transaction_id FROM twophase.prepared_transaction WHERE state = 'prepared'"
        )
        undelivered = self.rows("identity", "SELECT transaction_id FROM twophase.decision WHERE undelivered <> '{}'")
        return {row[0] for row in (*prepared, *undelivered) if isinstance(row[0], UUID)}

    def ended(self, ids: Iterable[UUID]) -> dict[UUID, Ended]:
        """How each has ended: what the log holds, what profiles did, who brought it, how long after Prepare."""
        wanted = list(ids)
        decisions = _pairs(
            self.rows(
                "identity",
                "SELECT transaction_id, outcome FROM twophase.decision WHERE transaction_id = ANY(%s)",
                wanted,
            )
        )
        found: dict[UUID, Ended] = {}
        for transaction_id, state, by, prepared_at, resolved_at in self.rows(
            "profiles",
            "SELECT transaction_id, state, resolved_by, prepared_at, resolved_at FROM twophase.prepared_transaction"
            " WHERE transaction_id = ANY(%s)",
            wanted,
        ):
            assert isinstance(transaction_id, UUID)
            after_s = None
            if isinstance(resolved_at, datetime) and isinstance(prepared_at, datetime):
                after_s = (resolved_at - prepared_at).total_seconds()
            decision = str(decisions.get(transaction_id, "none"))
            found[transaction_id] = Ended(transaction_id, decision, str(state), str(by or ""), after_s)
        for transaction_id in wanted:
            found.setdefault(
                transaction_id, Ended(transaction_id, str(decisions.get(transaction_id, "none")), "unknown", "", None)
            )
        return found


def _pairs(rows: list[tuple[object, ...]]) -> dict[object, object]:
    return {row[0]: row[1] for row in rows}


def uuid5(namespace: UUID, name: str) -> UUID:
    """RFC 9562's name-based UUID by SHA-1, written out."""
    digest = bytearray(hashlib.sha1(namespace.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return UUID(bytes=bytes(digest))


NAMESPACE_IDENTITY_BUSINESS = uuid5(NAMESPACE_IDENTITY, "business")


@dataclass(frozen=True)
class Expected:
    """What must exist in the end, read from the files by themselves.

    duplicates: companies whose CIK another before them has.
    """

    emails: list[str]
    registrations: list[str]
    duplicates: list[str]


def expected(persons: Path, businesses: Path) -> Expected:
    """What the two files ask for."""
    with persons.open(newline="", encoding="utf-8") as file:
        emails = [f"{row['bioguide'].lower()}@example.org" for row in csv.DictReader(file)]
    first: dict[str, str] = {}
    duplicates: list[str] = []
    with businesses.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["CIK"] in first:
                duplicates += [row["Security"]]
            first.setdefault(row["CIK"], row["Security"])
    return Expected(sorted(emails), sorted(first), sorted(duplicates))


def all_checks(databases: Databases, wanted: Expected) -> list[Check]:
    """Every check of the demo, in the order in which a doubter would ask."""
    users = {row[0]: str(row[1]) for row in databases.rows("identity", "SELECT user_id, email FROM identity.users")}
    businesses = {row[0] for row in databases.rows("identity", "SELECT business_id FROM identity.businesses")}
    members = {
        tuple(row) for row in databases.rows("identity", "SELECT business_id, user_id, role FROM identity.members")
    }
    persons = {
        tuple(row) for row in databases.rows("profiles", "SELECT person_id, state, version FROM profiles.person")
    }
    entities = {
        row[0]: tuple(row[1:])
        for row in databases.rows(
            "profiles",
            "SELECT business_id, state, version, registration_country, registration_number FROM profiles.business",
        )
    }
    roles = {
        tuple(row)
        for row in databases.rows(
            "profiles", "SELECT business_id, person_id, role, state FROM profiles.business_person"
        )
    }
    person_of = {user_id: uuid5(NAMESPACE_IDENTITY, str(user_id)) for user_id in users}
    entity_of = {business_id: uuid5(NAMESPACE_IDENTITY_BUSINESS, str(business_id)) for business_id in businesses}
    should_be_roles = {
        (entity_of[business_id], person_of[user_id], role, "active") for business_id, user_id, role in members
    }
    owners = [business_id for business_id, _, role in members if role == "owner"]
    registrations = [entity[3] for entity in entities.values() if entity[2] == "US"]
    return [
        _equal("every person of the file has a user", sorted(users.values()), wanted.emails),
        _equal(
            "every user has its active Person, and no other Person exists",
            persons,
            {(person_id, "active", 1) for person_id in person_of.values()},
        ),
        _equal(
            "every business has its active Business, and no other exists",
            {(business_id, *entity[:2]) for business_id, entity in entities.items()},
            {(business_id, "active", 1) for business_id in entity_of.values()},
        ),
        _equal("every company of the file is there once", sorted(map(str, registrations)), wanted.registrations),
        _equal("every business has one owner", sorted(map(str, owners)), sorted(map(str, businesses))),
        _equal("every owner has the role in profiles, and no other role exists", roles, should_be_roles),
        _equal(
            "each thing that exists was committed",
            _strangers(databases),
            0,
        ),
        _equal("nothing is prepared", databases.in_doubt(), 0),
        _equal("nothing is undelivered or parked", databases.undelivered(), 0),
    ]


def _strangers(databases: Databases) -> int:
    """Entities whose transaction the log does not hold as committed."""
    committed = {
        row[0]
        for row in databases.rows(
            "identity", "SELECT transaction_id FROM twophase.decision WHERE outcome = 'committed'"
        )
    }
    named = databases.rows(
        "profiles",
        "SELECT transaction_id FROM profiles.person UNION ALL SELECT transaction_id FROM profiles.business"
        " UNION ALL SELECT transaction_id FROM profiles.business_person",
    )
    return sum(1 for row in named if row[0] not in committed)


def _equal(what: str, found: Collection[object] | int, wanted: Collection[object] | int) -> Check:
    if isinstance(found, int) or isinstance(wanted, int):
        return Check(what, found == wanted, str(found))
    if found == wanted:
        return Check(what, True, str(len(found)))
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    return Check(what, False, f"{len(found)}, of which {len(missing)} are missing and {len(extra)} should not be")


def _bare(url: str) -> str:
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)
