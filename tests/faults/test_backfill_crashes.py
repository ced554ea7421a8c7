"""kill -9 of `python -m identity_stub backfill` at each of its steps, and of what it talks to.

Whatever the point: each account that is marked has its profile and no other has one, and the next run brings the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import sqlalchemy as sa

from identity_stub.migration import backfill_accounts as accounts
from identity_stub.migration import seeding
from identity_stub.migration.backfill_accounts import BUSINESSES, KINDS, USERS, WHOLE
from identity_stub.migration.mapping import Refusal
from tandem.profiles import ids
from tandem.runtime.database import create_engine
from tests.faults import initiator
from tests.faults.crash_house import House, eventually

USERS_SEEDED = 40
_seeds = itertools.count(100)

SMALL_BATCH = 7
SMALL = ("backfill", "--batch", str(SMALL_BATCH), "--threads", "2")

Found = tuple[set[UUID], set[UUID]]


class Old:
    """Old accounts in the house: all of them are seen to at the end of a test."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.engine: sa.Engine = create_engine(house.services["identity"].environment["IDENTITY_DATABASE_URL"])
        made = seeding.seed(self.engine, USERS_SEEDED, seed=next(_seeds))
        assert (made.users, made.businesses) == (USERS_SEEDED, USERS_SEEDED // 5)
        # A whole batch that is refused, and some of another, whatever the seed has.
        self.set_first("users", "old_birthday = 'unknown'", SMALL_BATCH)
        self.set_first("businesses", "old_incorporated = 'long ago'")
        self.mine: dict[str, set[UUID]] = {}
        self.wrong: dict[str, set[UUID]] = {}
        for name, kind in KINDS.items():
            (page,) = accounts.pages(self.engine, kind, "absent", WHOLE)
            read = accounts.read(self.engine, kind, "absent", page)
            self.mine[name] = set(page)
            self.wrong[name] = {one.id for one in read if isinstance(one.profile, Refusal)}

    def set_first(self, table: str, what: str, count: int = 1) -> None:
        key = KINDS[table].key.name
        self.house.sql(
            "identity",
            f"UPDATE identity.{table} SET {what} WHERE {key} IN (SELECT {key} FROM identity.{table}"
            f" WHERE profile_status = 'absent' ORDER BY {key} LIMIT {count})",
        )

    def waiting(self, table: str = "users") -> int:
        return int(self.house.one("identity", f"SELECT count(*) FROM identity.{table} WHERE profile_status = 'absent'"))

    def both(self, table: str, profile: str, name: Callable[[UUID], UUID]) -> Found:
        """The profiles of the accounts that are marked, and those that are there."""
        mine = self.mine[table]
        rows = self.house.sql(
            "identity", f"SELECT {KINDS[table].key.name} FROM identity.{table} WHERE profile_status = 'active'"
        )
        marked = {name(row[0]) for row in rows if row[0] in mine}
        stored = self.house.sql("profiles", f"SELECT {profile}_id FROM profiles.{profile} WHERE state = 'active'")
        return marked, {row[0] for row in stored} & {name(id_) for id_ in mine}

    def unequal(self) -> list[str]:
        """What is left, and where the sides differ, though every ttl has run out: that of a Prepare too which arrives
        only now, since one thread of a run may die while another's is on the way."""
        self.house.make_due(unclaimed=True)
        found = self.house.unfinished() + self.house.split()
        for table, profile, name in (("users", "person", ids.person_id), ("businesses", "business", ids.business_id)):
            marked, stored = self.both(table, profile, name)
            found += [f"{each} is marked, but there is no {profile}" for each in marked - stored]
            found += [f"there is a {profile} {each}, but nothing is marked" for each in stored - marked]
        return found

    def done_or_not(self) -> None:
        """In the end, who is marked has a profile, and who is not has none."""
        eventually(lambda: not self.unequal(), lambda: f"still unequal: {self.unequal()}")

    def all_there(self) -> None:
        """Nobody waits; only those are refused that have to be, and those that took another's number."""
        self.done_or_not()
        for name, kind in ((USERS.name, USERS), (BUSINESSES.name, BUSINESSES)):
            assert self.waiting(name) == 0
            refused = {id_: why for id_, why in accounts.refused(self.engine, kind, WHOLE) if id_ in self.mine[name]}
            assert self.wrong[name] <= set(refused)
            new = {reason for id_, reason in refused.items() if id_ not in self.wrong[name]}
            assert new <= {"ALREADY_EXISTS: registration_number"}

    def run(self, point: str = "", *more: str) -> None:
        self.house.command(self.house.services["identity"], *SMALL, *more, point=point)


@pytest.fixture
def old(house: House) -> Old:
    return Old(house)


AT_EACH_STEP = (
    "backfill.before_batch",
    "backfill.after_read",
    "backfill.before_refusal",
    "backfill.after_refusal",
    "driver.before_prepare",
    "driver.after_block",
    "driver.after_votes",
    "driver.after_insert",
    "driver.after_local_commit",
    "driver.after_commit",
    "backfill.after_batch",
)


@pytest.mark.parametrize("point", AT_EACH_STEP)
def test_a_batch_is_done_or_not_wherever_it_dies_and_the_next_run_brings_the_rest(old: Old, point: str) -> None:
    old.run(point)
    assert old.waiting() > 0, "it died too late to leave anything"
    old.done_or_not()
    old.run()
    old.all_there()


@pytest.mark.parametrize("point", ["driver.after_votes", "driver.after_local_commit"])
def test_the_next_run_needs_no_sweep(old: Old, point: str) -> None:
    """It meets what the dead one has left prepared, and has it ended itself (R10)."""
    old.run(point, "--threads", "1")
    old.house.make_old()
    old.run()
    old.all_there()


@pytest.mark.parametrize("policy", ["overwrite", "merge"])
def test_a_conflict_is_seen_to_once_wherever_it_dies(old: Old, policy: str) -> None:
    """After the profile was changed and before the account was marked: the next run finds nothing left to change."""
    (page,) = accounts.pages(old.engine, USERS, "absent", WHOLE)
    user_id = next(id_ for id_ in page if id_ not in old.wrong["users"])
    old.house.sql(
        "identity",
        "UPDATE identity.users SET old_full_name = 'Ours', old_birthday = '1970-01-31' WHERE user_id = :id",
        id=user_id,
    )
    token, person_id = f"foreign-{user_id}", ids.person_id(user_id)
    assert old.house.initiate(token, initiator.Kind.PERSON, ["profiles"]).ok
    old.house.sql(
        "profiles",
        "UPDATE profiles.person SET person_id = :new WHERE person_id = :old",
        new=person_id,
        old=UUID(initiator.person_of(token).person_id),
    )
    old.run("backfill.after_update", "--conflicts", policy, "--threads", "1")
    (row,) = old.house.sql("profiles", "SELECT * FROM profiles.person WHERE person_id = :id", id=person_id)
    assert (str(row.date_of_birth), row.version) == ("1970-01-31", 2)
    assert (row.display_name == "Ours") is (policy == "overwrite")
    old.run("", "--conflicts", policy)
    (again,) = old.house.sql("profiles", "SELECT * FROM profiles.person WHERE person_id = :id", id=person_id)
    assert again == row
    old.all_there()


def test_two_runs_survive_the_death_of_one_of_them(old: Old) -> None:
    """One takes its time, so that the other, however slowly it starts, finds something to die of."""
    with ThreadPoolExecutor(2) as pool:
        dying = pool.submit(old.run, "driver.after_votes")
        living = pool.submit(old.run, "", "--rate", "10")
        eventually(dying.done, "it has come by its failpoint")
        old.house.make_due()
        dying.result()
        living.result()
    old.all_there()


def test_a_run_survives_the_death_of_profiles(old: Old) -> None:
    """Killed when it has staged the first batch; started again at once, it answers the repeat."""
    profiles = old.house.services["profiles"]
    old.house.arm(profiles, "participant.after_prepare")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(old.run)
        old.house.died_at_it(profiles)
        old.house.restart(profiles)
        running.result()
    old.all_there()


def test_a_run_survives_the_death_of_its_database(old: Old) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(old.run, "", "--rate", "30")
        eventually(lambda: old.waiting() < USERS_SEEDED, "it has begun")
        old.house.kill_server("identity-pg")
        old.house.server_is_back("identity-pg")
        running.result()
    old.all_there()
