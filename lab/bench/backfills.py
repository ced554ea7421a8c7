"""The backfill of persons by its own command, and the same rows by psycopg2's execute_values without any protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import psycopg2.extras
from google.protobuf.json_format import MessageToDict
from sqlalchemy.engine import make_url

from identity_stub.migration import backfill_accounts as accounts
from identity_stub.migration import seeding
from identity_stub.migration.backfill_accounts import USERS, WHOLE
from identity_stub.users import ABSENT
from lab import processes
from lab.bench.house import House
from tandem.profiles.v1 import person_pb2

TOGETHER = 1_000
"""Rows in one statement and one local transaction of the yardstick, ten times as many as in one of the product's."""


class Backfills:
    """Backfills over one house; each of accounts of its own."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._seeds = count(1)
        self._environment = next(one.environment for one in house.services if one.module == "identity_stub")

    def per_second(self, users: int) -> float:
        """Accounts a second, from the first that is read to the last acknowledgement."""
        self._seeded(users)
        said = processes.run(
            "identity_stub", "backfill", "--json", "--only", "users", environment=self._environment, timeout_s=600.0
        )
        report = json.loads(said)
        assert report["done"] == users, report
        return float(report["created"]["users"] / report["seconds"])

    def without_protocol(self, users: int) -> float:
        """The same rows a second: persons into profiles' own table, marks onto the accounts. Mapped beforehand."""
        self._seeded(users)
        engine = self._house.engine
        pages = list(accounts.pages(engine, USERS, ABSENT, WHOLE))
        read = [one for page in pages for one in accounts.read(engine, USERS, ABSENT, page)]
        rows = [(one.id, _row(one.profile)) for one in read if isinstance(one.profile, person_pb2.Person)]
        connections = {name: self._connected(name) for name in self._house.databases}
        began = time.perf_counter()
        for first in range(0, len(rows), TOGETHER):
            some = rows[first : first + TOGETHER]
            with connections["profiles"] as connection, connection.cursor() as cursor:
                _insert(cursor, [row for _, row in some])
            with connections["identity"] as connection, connection.cursor() as cursor:
                _mark(cursor, [id_ for id_, _ in some])
        took = time.perf_counter() - began
        for connection in connections.values():
            connection.close()
        return len(rows) / took

    def _connected(self, name: str) -> Any:
        url = make_url(self._house.databases[name].database_url(name)).set(drivername="postgresql")
        connection = psycopg2.connect(url.render_as_string(hide_password=False))
        psycopg2.extras.register_uuid(conn_or_curs=connection)  # type: ignore[no-untyped-call]
        return connection

    def _seeded(self, users: int) -> None:
        """Old accounts, and nobody else."""
        with self._house.engine.begin() as connection:
            connection.exec_driver_sql(
                "TRUNCATE identity.users, identity.businesses, identity.members, identity.invitations,"
                " identity.requests"
            )
        with self._house.profiles_engine.begin() as connection:
            connection.exec_driver_sql("TRUNCATE profiles.person, profiles.business, profiles.business_person")
        seed = next(self._seeds)
        made = seeding.seed(self._house.engine, users, seed=seed)
        assert made.users == users
        with self._house.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE identity.businesses SET profile_status = 'active'")


def _row(person: person_pb2.Person) -> tuple[object, ...]:
    """As profiles stores it."""
    born = person.date_of_birth
    addresses = [MessageToDict(one, preserving_proto_field_name=True) for one in person.postal_addresses]
    return (
        person.person_id, person.name.given_name or None, person.name.middle_name or None,
        person.name.family_name or None, person.name.suffix or None, person.name.display_name,
        f"{born.year}-{born.month}-{born.day}" if born.year else None, json.dumps(list(person.phone_numbers)),
        json.dumps(addresses), "bench", uuid4(), "active",
    )  # fmt: skip


def _insert(cursor: Any, rows: Sequence[tuple[object, ...]]) -> None:
    psycopg2.extras.execute_values(
        cursor,
        "INSERT INTO profiles.person (person_id, given_name, middle_name, family_name, suffix, display_name,"
        " date_of_birth, phone_numbers, postal_addresses, coordinator, transaction_id, state) VALUES %s",
        rows,
        page_size=TOGETHER,
    )


def _mark(cursor: Any, ids: Sequence[UUID]) -> None:
    psycopg2.extras.execute_values(
        cursor,
        "UPDATE identity.users SET profile_status = 'active' FROM (VALUES %s) AS given (id)"
        " WHERE user_id = given.id AND profile_status = 'absent'",
        [(id_,) for id_ in ids],
        page_size=TOGETHER,
    )
