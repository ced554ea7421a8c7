"""The import of real people and businesses through identity's own process, rows renamed so that no two collide."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import identity_stub
from identity_stub.importing import Plan, Row, plan, read_businesses, read_persons, run_import
from identity_stub.importing.reading import BusinessRow, PersonRow
from lab.bench.house import House

DATA = Path(identity_stub.__file__).parent / "data"
CLIENTS = 8


class Imports:
    """Imports over one house; each takes rows of its own."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._persons = [row for row in read_persons(DATA / "persons.csv") if isinstance(row, Row)]
        self._businesses = [row for row in read_businesses(DATA / "businesses.csv") if isinstance(row, Row)]
        self._numbers = count()

    def per_second(self, pairs: int) -> float:
        """So many signups of a person with a business, by CLIENTS at once, until every answer is there."""
        self._empty()
        result = run_import(self._house.identity_address, self._plan(pairs), clients=CLIENTS)
        assert (result.users, result.businesses) == (pairs, pairs), (result.refused[:3], result.failed[:3])
        return pairs / result.seconds

    def _plan(self, pairs: int) -> Plan:
        renamed = [self._renamed(next(self._numbers)) for _ in range(pairs)]
        return plan([person for person, _ in renamed], [business for _, business in renamed])

    def _renamed(self, number: int) -> tuple[PersonRow, BusinessRow]:
        """The files' rows in turn, the keys, the address and the registration number being new ones each time."""
        person = self._persons[number % len(self._persons)]
        business = self._businesses[number % len(self._businesses)]
        profile = type(business.profile)()
        profile.CopyFrom(business.profile)
        profile.registration_number = f"{number}-{business.profile.registration_number}"
        return (
            replace(person, key=f"{person.key}-{number}", email=f"{number}.{person.email}"),
            replace(business, key=f"{business.key}-{number}", profile=profile),
        )

    def _empty(self) -> None:
        """What an import leaves beyond what `signups.empty` knows."""
        with self._house.engine.begin() as connection:
            connection.exec_driver_sql(
                "TRUNCATE identity.users, identity.businesses, identity.members, identity.invitations,"
                " identity.requests"
            )
        with self._house.profiles_engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE profiles.business, profiles.business_person")
