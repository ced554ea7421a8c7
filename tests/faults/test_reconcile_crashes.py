"""kill -9 of `python -m identity_stub reconcile --repair` at each step of a repair, while people sign up.

Whatever the point: nothing is made twice, what an attempt has left is ended, and the next run makes both sides equal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from lab import processes
from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.profiles.ids import business_id, person_id
from tandem.profiles.v1 import business_pb2
from tests.faults import initiator, nursery
from tests.faults.crash_house import House, identity_client
from tests.support.house import fresh_name

USERS = 30
LOST = 12


@pytest.fixture(scope="module")
def town(town: House) -> House:
    """With accounts of old that have been migrated."""
    identity = town.services["identity"]
    town.command(identity, "seed", "--count", str(USERS))
    town.command(identity, "backfill")
    return town


@pytest.fixture
def lost(house: House) -> list[UUID]:
    """Profiles that a restore has lost, of those that were migrated: the persons' ids."""
    users = house.sql(
        "identity",
        "SELECT user_id FROM identity.users WHERE profile_status = 'active' AND old_full_name IS NOT NULL LIMIT :n",
        n=LOST,
    )
    businesses = house.sql(
        "identity",
        "SELECT business_id FROM identity.businesses"
        " WHERE profile_status = 'active' AND old_legal_name IS NOT NULL LIMIT 3",
    )
    assert (len(users), len(businesses)) == (LOST, 3)
    persons = [person_id(row.user_id) for row in users]
    house.sql("profiles", "DELETE FROM profiles.person WHERE person_id = ANY(:ids)", ids=persons)
    for row in businesses:
        for table in ("business_person", "business"):
            house.sql(
                "profiles", f"DELETE FROM profiles.{table} WHERE business_id = :id", id=business_id(row.business_id)
            )
    return persons


@contextmanager
def traffic(house: House) -> Iterator[list[str]]:
    """Sign-ups and updates meanwhile, as fast as one client can; the businesses that they have made."""
    done: list[str] = []
    stop = threading.Event()

    def busy() -> None:
        with identity_client(house.services["identity"].address) as stub:
            while not stop.is_set():
                token = fresh_name("traffic")
                person, business = initiator.person_of(token), initiator.business_of(token)
                person.person_id = business.business_id = ""
                del business.people[:]
                with suppress(grpc.RpcError):  # what is held up is repeated by clients of the product
                    made = stub.SignUp(
                        identity_pb.SignUpRequest(email=f"{token}@example.org", person=person, business=business),
                        timeout=20,
                    ).business
                    update = identity_pb.UpdateBusinessRequest(
                        business_id=made.business_id,
                        profile=business_pb2.Business(version=1, trade_names=[token]),
                        update_mask=FieldMask(paths=["trade_names"]),
                    )
                    stub.UpdateBusiness(update, timeout=20)
                    done.append(made.business_id)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join(60)


@pytest.mark.parametrize(
    "point",
    [
        "reconcile.before_repair",
        "driver.before_prepare",
        "driver.after_votes",
        "driver.after_insert",
        "driver.after_local_commit",
        "driver.after_commit",
        "reconcile.after_repair",
    ],
)
def test_the_next_run_makes_both_sides_equal_wherever_it_died(house: House, lost: list[UUID], point: str) -> None:
    identity = house.services["identity"]
    with traffic(house) as done:
        house.command(identity, "reconcile", "--repair", point=point)
        house.make_old()  # what has died holds its persons until somebody may push
        house.command(identity, "reconcile", "--repair", "--migrating")
    assert done
    house.settled()
    assert house.split() == []
    there = house.sql(
        "profiles", "SELECT person_id, version FROM profiles.person WHERE person_id = ANY(:ids)", ids=lost
    )
    assert {row.person_id: row.version for row in there} == dict.fromkeys(lost, 1)
    house.command(identity, "reconcile", "--migrating")


def test_a_report_changes_nothing(house: House, lost: list[UUID]) -> None:
    """Exit status 3, and both sides are as they were."""
    identity = house.services["identity"]
    before = _rows(house)
    status = nursery.run(
        identity.module, "reconcile", "--migrating", environment=identity.environment, log=identity.log
    )
    assert status == 3, processes.tail(identity.log)
    assert _rows(house) == before
    house.command(identity, "reconcile", "--repair", "--migrating")


def _rows(house: House) -> list[object]:
    return [
        house.one(database, f"SELECT count(*) || ' ' || coalesce(max(xmin::text::bigint), 0) FROM {table}")
        for database, table in (
            ("identity", "identity.users"),
            ("identity", "identity.businesses"),
            ("identity", "twophase.decision"),
            ("profiles", "profiles.person"),
            ("profiles", "profiles.business"),
            ("profiles", "twophase.prepared_transaction"),
        )
    ]
