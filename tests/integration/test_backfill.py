"""The backfill over real gRPC and PostgreSQL: everybody gets a profile, or a reason; once, whoever else is at it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from uuid import UUID

import grpc
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

import identity_stub.cli
from identity_stub.migration import backfill_accounts as accounts
from identity_stub.migration import backfill_batch, listed, seeding
from identity_stub.migration.backfill import Backfill
from identity_stub.migration.backfill_accounts import BUSINESSES, KINDS, USERS, Shard
from identity_stub.migration.backfill_batch import Batch
from identity_stub.migration.backfill_report import Options, Report
from identity_stub.migration.conflicts import Existing, Policy
from identity_stub.migration.mapping import Refusal
from identity_stub.users import REJECTED
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Refused
from tandem.profiles import ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import Reason, TandemError
from tests.integration.test_identity_house import CANARY, Home, home, sign_up
from tests.support.house import in_threads
from tests.support.rules import eventually

SEEDED = 400


@pytest.fixture(scope="module")
def town(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


@pytest.fixture
def house(town: Home) -> Home:
    """Without any account or profile."""
    with town.identity.begin() as connection:
        connection.exec_driver_sql("TRUNCATE identity.users CASCADE; TRUNCATE identity.businesses CASCADE")
    with town.profiles.begin() as connection:
        connection.exec_driver_sql("TRUNCATE profiles.person, profiles.business, profiles.business_person")
    return town


def run(house: Home, *, on_progress: Callable[[Report], object] = lambda _: None, **options: object) -> Report:
    with grpc.insecure_channel(house.profiles_server.address) as channel:
        told = Options(**options)  # type: ignore[arg-type]
        report = Backfill(house.coordinator, Existing(channel), told, on_progress=on_progress).run()
    house.marked()
    return report


def counted(house: Home, table: str, status: str) -> int:
    return house.count(f"identity.{table}", "profile_status = :status", status=status)


def expected(house: Home) -> tuple[set[UUID], set[UUID]]:
    """Of the users that wait: those whose columns make a person, and those whose don't."""
    (page,) = accounts.pages(house.identity, USERS, "absent", Shard())
    read = accounts.read(house.identity, USERS, "absent", page)
    wrong = {one.id for one in read if isinstance(one.profile, Refusal)}
    return {one.id for one in read} - wrong, wrong


def users(house: Home, status: str) -> set[UUID]:
    with house.identity.connect() as connection:
        statement = sa.text("SELECT user_id FROM identity.users WHERE profile_status = :status")
        return set(connection.execute(statement, {"status": status}).scalars())


def persons(house: Home) -> set[UUID]:
    with house.profiles.connect() as connection:
        rows = connection.exec_driver_sql("SELECT person_id FROM profiles.person WHERE state = 'active'")
        return set(rows.scalars())


def named(some: set[UUID]) -> set[UUID]:
    return {ids.person_id(user_id) for user_id in some}


def all_there(house: Home) -> None:
    """Whoever is active has a profile, nobody else has, nobody waits, and nothing is in doubt."""
    assert not counted(house, "users", "absent")
    assert not counted(house, "businesses", "absent")
    assert persons(house) == named(users(house, "active"))
    assert house.count("profiles.business", "state = 'active'") == counted(house, "businesses", "active")
    assert house.count("profiles.person") == len(persons(house))
    members = "business_id IN (SELECT business_id FROM identity.businesses WHERE profile_status = 'active')"
    assert house.count("profiles.business_person", "state = 'active'") == house.count("identity.members", members)


def test_everybody_gets_a_profile_or_a_reason(house: Home) -> None:
    seeding.seed(house.identity, SEEDED)
    good, wrong = expected(house)
    report = run(house, batch=50)
    assert users(house, "active") == good
    assert users(house, "rejected") == wrong
    assert wrong, "the seed has made no malformed facts"
    all_there(house)
    assert report.total == report.done == SEEDED + SEEDED // 5
    assert report.created["users"] == len(good)
    assert report.refused.total() == counted(house, "users", "rejected") + counted(house, "businesses", "rejected")
    with house.identity.connect() as connection:
        reasons = connection.exec_driver_sql(
            "SELECT count(*) FROM identity.users WHERE (profile_status = 'rejected') <>"
            " (profile_reason IS NOT NULL AND profile_reason LIKE 'INVALID\\_REQUEST: %%')"
        )
        assert reasons.scalar_one() == 0, "a reason where none belongs, or none where one does"


def test_a_second_run_finds_nothing_to_do(house: Home) -> None:
    seeding.seed(house.identity, 60)
    first = run(house)
    before = house.count("twophase.decision"), persons(house)
    report = run(house)
    assert (report.total, report.done) == (0, 0)
    assert (house.count("twophase.decision"), persons(house)) == before
    assert first.created["users"] > 0


def test_a_dry_run_tells_the_same_and_writes_nothing(house: Home) -> None:
    seeding.seed(house.identity, 200)
    before = house.count("twophase.decision")
    told = run(house, dry_run=True, batch=30)
    assert counted(house, "users", "absent") == 200
    assert counted(house, "businesses", "absent") == 40
    assert not persons(house)
    assert house.count("twophase.decision") == before
    done = run(house, batch=30)
    assert (told.created, told.refused) == (done.created, done.refused)


def test_refused_accounts_are_listed_and_taken_up_again_once_they_are_mended(house: Home) -> None:
    seeding.seed(house.identity, 300)
    run(house)
    refused = dict(accounts.refused(house.identity, USERS, Shard()))
    assert set(refused) == users(house, "rejected")
    mended = {id_ for id_, reason in refused.items() if reason == "INVALID_REQUEST: birthday"}
    assert mended, "the seed has made no malformed birthday"
    assert run(house).done == 0, "a refused account is not tried again by itself"
    house.sql("UPDATE identity.users SET old_birthday = '1970-01-31' WHERE user_id = ANY(:ids)", ids=list(mended))
    report = run(house, status=REJECTED, kinds=[USERS])
    assert report.created["users"] == len(mended)
    assert users(house, "rejected") == set(refused) - mended
    assert not house.count("identity.users", "profile_status = 'active' AND profile_reason IS NOT NULL")
    all_there(house)


def test_whom_only_profiles_refuses_is_taken_out_and_the_others_come_in(house: Home) -> None:
    """The contract's own rules, which the mapping does not ask: one write of a hundred is named, and goes."""
    seeding.seed(house.identity, 50)
    good, wrong = expected(house)
    odd, older = sorted(good)[3], sorted(good)[17]
    house.sql("UPDATE identity.users SET old_birthday = '1066-10-14' WHERE user_id = :id", id=older)
    house.sql("UPDATE identity.users SET old_full_name = repeat('x', 501) WHERE user_id = :id", id=odd)
    run(house, kinds=[USERS])
    assert users(house, "active") == good - {odd, older}
    assert persons(house) == named(good - {odd, older})
    told = dict(accounts.refused(house.identity, USERS, Shard()))
    assert told[older] == "INVALID_REQUEST: date_of_birth"
    assert told[odd] == "INVALID_REQUEST: name.display_name"
    assert set(told) == wrong | {odd, older}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many profiles were sent in each transaction."""
    sizes: list[int] = []
    creating = Batch._create

    def counting(self: Batch, some: list[UUID], *of: object) -> None:
        sizes.append(len(some))
        creating(self, some, *of)  # type: ignore[arg-type]

    monkeypatch.setattr(Batch, "_create", counting)
    return sizes


def test_all_whom_profiles_refuses_are_taken_out_at_once(house: Home, sent: list[int]) -> None:
    """A refusal names them all, for what is wrong in them: the others are sent twice, however many are taken out."""
    seeding.seed(house.identity, 100)
    good, wrong = expected(house)
    older = sorted(good)[:12]
    house.sql("UPDATE identity.users SET old_birthday = '1066-10-14' WHERE user_id = ANY(:ids)", ids=older)
    run(house, kinds=[USERS])
    assert sent == [len(good), len(good) - len(older)]
    assert users(house, "rejected") == wrong | set(older)


def test_a_number_is_one_of_its_country(house: Home) -> None:
    """Two countries' registers count alike: both come in, and a dry run says so."""
    seeding.seed(house.identity, 100)
    plain_businesses(house, ["A", "A"])
    house.sql(
        "UPDATE identity.businesses SET old_registration_country = 'FR' WHERE business_id ="
        " (SELECT business_id FROM identity.businesses WHERE old_registration_number = 'A' LIMIT 1)"
    )
    told, done = run(house, kinds=[BUSINESSES], dry_run=True), run(house, kinds=[BUSINESSES])
    assert told.created == done.created == {"businesses": 20}
    assert not told.refused
    assert not done.refused


def test_who_has_a_profile_is_told_from_whose_number_is_taken(house: Home) -> None:
    """In one batch: the former are conflicts, and not refused with the latter."""
    taken = [f"T{n}" for n in range(5)]
    seeding.seed(house.identity, 60)
    plain_businesses(house, taken)
    run(house)
    seeding.seed(house.identity, 100, seed=2)
    plain_businesses(house, [*taken, *(f"O{n}" for n in range(6))])
    (page,) = accounts.pages(house.identity, BUSINESSES, "absent", Shard())
    made = [
        one.profile
        for one in accounts.read(house.identity, BUSINESSES, "absent", page)
        if isinstance(one.profile, business_pb2.Business) and one.profile.registration_number.startswith("O")
    ]
    with house.coordinator.transaction({"profiles": made}):
        pass
    report = run(house, kinds=[BUSINESSES])
    assert report.conflicts == {"kept": 6}
    assert report.refused == {"ALREADY_EXISTS: registration_number": 5}
    assert report.created["businesses"] == 9
    run(house)
    all_there(house)


def test_nobody_is_lost_where_a_batch_is_split_and_then_tried_again(
    house: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malformed accounts, double numbers and a participant that is away at first, all in one batch."""
    seeding.seed(house.identity, 100)
    plain_businesses(house, ["A", "A", "B"])
    house.sql(
        "UPDATE identity.businesses SET old_incorporated = 'long ago' WHERE business_id IN"
        " (SELECT business_id FROM identity.businesses WHERE old_registration_number IS NULL LIMIT 4)"
    )
    creating, away = Batch._create, [True, True, True]

    def at_last(self: Batch, *of: object) -> None:
        if away:
            away.pop()
            raise TandemError("not now", reason=Reason.UNAVAILABLE)
        creating(self, *of)  # type: ignore[arg-type]

    monkeypatch.setattr(Batch, "_create", at_last)
    report = run(house, kinds=[BUSINESSES])
    assert report.refused == {"INVALID_REQUEST: incorporated": 4, "ALREADY_EXISTS: registration_number": 1}
    assert (report.created["businesses"], report.done, report.retries) == (15, 20, 3)
    run(house)
    all_there(house)


def test_a_reason_is_never_cut_off(house: Home, sent: list[int]) -> None:
    """Twenty violations are told at once, and of each account all or nothing: what is stored says all that is wrong."""
    seeding.seed(house.identity, 100)
    good, _ = expected(house)
    odd = sorted(good)[:8]
    house.sql(
        "UPDATE identity.users SET old_birthday = '1066-10-14', old_full_name = repeat('x', 501),"
        " old_given_name = repeat('y', 201) WHERE user_id = ANY(:ids)",
        ids=odd,
    )
    run(house, kinds=[USERS])
    told = dict(accounts.refused(house.identity, USERS, Shard()))
    assert {told[id_] for id_ in odd} == {"INVALID_REQUEST: name.given_name, name.display_name, date_of_birth"}
    assert sent == [len(good), len(good) - 6, len(good) - 8]


def plain_businesses(house: Home, numbers: Sequence[str]) -> None:
    """All that wait: nothing malformed, and as many with a number as there are numbers."""
    house.sql(
        "UPDATE identity.businesses SET old_legal_name = 'One', old_registration_country = NULL, old_industry = NULL,"
        " old_incorporated = NULL, old_website = NULL, old_registration_number = NULL"
        " WHERE profile_status = 'absent'"
    )
    house.sql(
        "UPDATE identity.businesses b SET old_registration_country = 'US', old_registration_number = given.number"
        " FROM unnest(:numbers) WITH ORDINALITY AS given (number, n), (SELECT business_id, row_number() OVER () AS n"
        " FROM identity.businesses WHERE profile_status = 'absent') AS waiting"
        " WHERE waiting.n = given.n AND b.business_id = waiting.business_id",
        numbers=list(numbers),
    )


def test_all_whose_numbers_are_taken_are_taken_out_at_once(house: Home, sent: list[int]) -> None:
    taken = [f"T{n}" for n in range(9)]
    seeding.seed(house.identity, 60)
    plain_businesses(house, taken)
    run(house)
    seeding.seed(house.identity, 100, seed=2)
    plain_businesses(house, taken)
    sent.clear()
    report = run(house, kinds=[BUSINESSES])
    assert sent == [20, 11]
    assert report.refused == {"ALREADY_EXISTS: registration_number": 9}
    run(house)
    all_there(house)


def test_a_refusal_that_names_nobody_is_found_by_halves(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A participant of an older release says only that a number is taken, of whatever was sent."""
    seeding.seed(house.identity, 100)
    plain_businesses(house, ["T"])
    run(house)
    seeding.seed(house.identity, 100, seed=2)
    plain_businesses(house, ["T"])
    creating = Batch._create

    def silent(self: Batch, *of: object) -> None:
        try:
            creating(self, *of)  # type: ignore[arg-type]
        except Refused as error:
            assert error.transaction_id is not None
            told = TandemError("taken", reason=error.reason, metadata={"field": error.metadata["field"]})
            raise Refused({"profiles": told}, transaction_id=error.transaction_id) from None

    monkeypatch.setattr(Batch, "_create", silent)
    report = run(house, kinds=[BUSINESSES])
    assert report.refused == {"ALREADY_EXISTS": 1}
    assert report.created["businesses"] == 19
    run(house)
    all_there(house)


def test_those_with_a_number_that_another_has_shown_are_tried_by_themselves(house: Home, sent: list[int]) -> None:
    """Else their refusal has all the others sent again. A dry run foresees it."""
    seeding.seed(house.identity, 100)
    plain_businesses(house, ["A", "B", "C", "A", "A", "B"])
    told = run(house, kinds=[BUSINESSES], dry_run=True)
    assert sent == []
    report = run(house, kinds=[BUSINESSES])
    assert sent == [17, 3]
    assert told.refused == report.refused == {"ALREADY_EXISTS: registration_number": 3}
    assert told.created == report.created == {"businesses": 17}


def test_who_is_first_with_a_number_and_is_refused_does_not_keep_it(house: Home) -> None:
    """The second of them comes in, in the same run."""
    seeding.seed(house.identity, 100)
    plain_businesses(house, ["A", "A"])
    with house.identity.connect() as connection:
        first = connection.exec_driver_sql(
            "SELECT min(business_id::text) FROM identity.businesses WHERE old_registration_number = 'A'"
        ).scalar_one()
    house.sql(
        "UPDATE identity.businesses SET old_legal_name = repeat('x', 301) WHERE business_id::text = :id", id=first
    )
    report = run(house, kinds=[BUSINESSES])
    assert report.refused == {"INVALID_REQUEST: legal_name": 1}
    assert report.created["businesses"] == 19


def test_what_is_too_much_for_one_transaction_is_sent_in_halves(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """R16: a transaction stages so many rows at most, and businesses bring their people."""
    monkeypatch.setattr("tandem.participant.participant.MAX_ROWS", 15)
    seeding.seed(house.identity, 100)
    good, _ = expected(house)
    report = run(house)
    assert report.created["users"] == len(good)
    assert not any("TOO_LARGE" in reason for reason in report.refused)
    all_there(house)


def test_of_two_with_one_registration_number_one_comes_in(house: Home) -> None:
    """Whether they meet in one batch or in two."""
    seeding.seed(house.identity, 100)
    run(house, kinds=[USERS])
    house.sql(
        "UPDATE identity.businesses SET old_legal_name = 'One', old_registration_country = 'US', old_industry = NULL,"
        " old_incorporated = NULL, old_website = NULL, old_registration_number = '4711'"
    )
    run(house, batch=7, kinds=[BUSINESSES])
    assert house.count("profiles.business") == counted(house, "businesses", "active") == 1
    reasons = {reason for _, reason in accounts.refused(house.identity, BUSINESSES, Shard())}
    assert reasons == {"ALREADY_EXISTS: registration_number"}
    all_there(house)


def test_a_business_with_too_many_people_is_refused_alone(house: Home) -> None:
    seeding.seed(house.identity, 120)
    house.sql(
        "INSERT INTO identity.members (business_id, user_id, role) SELECT b.business_id, u.user_id, 'shareholder'"
        " FROM (SELECT business_id FROM identity.businesses ORDER BY old_legal_name LIMIT 1) b, identity.users u"
        " ON CONFLICT DO NOTHING"
    )
    run(house)
    reasons = [reason for _, reason in accounts.refused(house.identity, BUSINESSES, Shard())]
    assert [reason for reason in reasons if "people" in reason] == ["INVALID_REQUEST: people"]
    all_there(house)


def test_two_runs_at_once_make_everybody_once(house: Home) -> None:
    seeding.seed(house.identity, SEEDED)
    good, wrong = expected(house)
    other = Coordinator(house.identity, name="identity", participants={"profiles": house.profiles_server.address})
    with grpc.insecure_channel(house.profiles_server.address) as channel:
        second = Backfill(other, Existing(channel), Options(batch=20))
        reports = in_threads(lambda: run(house, batch=20), second.run)
    other.close()
    first_report, second_report = reports
    assert isinstance(first_report, Report), first_report
    assert isinstance(second_report, Report), second_report
    assert not first_report.stopped
    assert not second_report.stopped
    assert first_report.created["users"] + second_report.created["users"] <= len(good)
    assert first_report.conflicts.total() == second_report.conflicts.total() == 0, "each takes the other for a stranger"
    assert (users(house, "active"), users(house, "rejected")) == (good, wrong)
    house.marked()
    all_there(house)


def test_shards_are_all_of_it_and_have_nothing_in_common(house: Home) -> None:
    seeding.seed(house.identity, SEEDED)
    shards = [Shard(i, 3) for i in (1, 2, 3)]
    pages = [{id_ for page in accounts.pages(house.identity, USERS, "absent", one) for id_ in page} for one in shards]
    assert sum(map(len, pages)) == len(set().union(*pages)) == SEEDED
    assert min(map(len, pages)) > SEEDED / 6
    reports = in_threads(*(lambda one=one: run(house, shard=one, batch=20) for one in shards))
    assert all(isinstance(report, Report) and not report.elsewhere for report in reports), reports
    all_there(house)


def test_signups_go_on_meanwhile(house: Home) -> None:
    seeding.seed(house.identity, SEEDED)
    requests = [sign_up() for _ in range(20)]
    begun: list[bool] = []

    def others() -> list[object]:
        eventually(lambda: begun)
        return [house.stub.SignUp(request, timeout=20) for request in requests]

    report, answers = in_threads(lambda: run(house, batch=10, on_progress=lambda _: begun.append(True)), others)
    assert isinstance(report, Report), report
    assert isinstance(answers, list), answers
    assert report.created["users"] < counted(house, "users", "active"), "who signs up is no old account"
    house.marked()
    all_there(house)


def test_an_attempt_that_died_prepared_is_waited_for(house: Home) -> None:
    """As if a backfill had been killed after the votes: its rows are held until a sweep has asked what became of it."""
    seeding.seed(house.identity, 20)
    good, _ = expected(house)
    dead = [one.profile for one in accounts.read(house.identity, USERS, "absent", sorted(good)[:5])]
    house.coordinator.prepare({"profiles": dead})
    swept: list[int] = []

    def sweep_once(report: Report) -> None:
        if report.retries and not swept:
            swept.append(house.sweep())

    report = run(house, on_progress=sweep_once)
    assert swept == [1]
    assert report.created["users"] == len(good)
    all_there(house)


def test_it_gives_up_where_profiles_is_not_there_and_loses_nothing(house: Home) -> None:
    seeding.seed(house.identity, 30)
    nowhere = Coordinator(house.identity, name="identity", participants={"profiles": "127.0.0.1:1"})
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        report = Backfill(nowhere, Existing(channel), Options(patience_s=0.1)).run()
    nowhere.close()
    assert report.stopped.startswith("UNAVAILABLE")
    assert report.created.total() == 0
    assert users(house, "active") == set()
    run(house)
    all_there(house)


def test_what_is_wrong_with_the_backfill_itself_is_no_account_s_fault(house: Home) -> None:
    """Profiles knows no coordinator of this name: it stops, and nobody is marked."""
    seeding.seed(house.identity, 30)
    _, wrong = expected(house)
    stranger = Coordinator(house.identity, name="stranger", participants={"profiles": house.profiles_server.address})
    with grpc.insecure_channel(house.profiles_server.address) as channel:
        report = Backfill(stranger, Existing(channel), Options(kinds=[USERS])).run()
    stranger.close()
    assert report.stopped.startswith("COORDINATOR_UNKNOWN")
    assert users(house, "rejected") == wrong
    assert users(house, "active") == set()


# --- conflicts --------------------------------------------------------------------------------------------------------


def foreign(house: Home) -> tuple[UUID, UUID]:
    """A user and a business whose profiles another service has made: with another name, and facts of its own."""
    seeding.seed(house.identity, 100)
    good, _ = expected(house)
    with house.identity.connect() as connection:
        business_id = connection.exec_driver_sql("SELECT business_id FROM identity.businesses LIMIT 1").scalar_one()
    user_id = min(good)
    house.sql(
        "UPDATE identity.users SET old_given_name = 'Amy', old_full_name = 'Amy Ours', old_birthday = '1970-01-31',"
        " old_phone = '+12025550123' WHERE user_id = :id",
        id=user_id,
    )
    house.sql(
        "UPDATE identity.businesses SET old_legal_name = 'Ours Ltd', old_website = 'ours.example', old_industry = NULL,"
        " old_registration_number = NULL, old_registration_country = NULL, old_incorporated = '1999'"
        " WHERE business_id = :id",
        id=business_id,
    )
    writes = [
        person_pb2.Person(
            person_id=str(ids.person_id(user_id)),
            name=person_pb2.PersonName(display_name="Amy Theirs"),
            phone_numbers=["+35316462000"],
            nationalities=["IE"],
        ),
        business_pb2.Business(
            business_id=str(ids.business_id(business_id)),
            legal_name="Theirs Ltd",
            entity_type=business_pb2.ENTITY_TYPE_TRUST,
        ),
    ]
    with house.coordinator.transaction({"profiles": writes}):
        pass
    return user_id, business_id


@pytest.mark.parametrize(
    ("policy", "name", "phone", "born", "business", "done", "version"),
    [
        (Policy.KEEP, "Amy Theirs", "+35316462000", None, "Theirs Ltd", "kept", 1),
        (Policy.OVERWRITE, "Amy Ours", "+12025550123", "1970-01-31", "Ours Ltd", "overwritten", 2),
        (Policy.MERGE, "Amy Theirs", "+35316462000", "1970-01-31", "Theirs Ltd", "merged", 2),
    ],
)
def test_a_conflict_follows_the_policy(
    house: Home, policy: Policy, name: str, phone: str, born: str | None, business: str, done: str, version: int
) -> None:
    user_id, business_id = foreign(house)
    report = run(house, policy=policy)
    assert report.conflicts == {done: 2}
    assert report.fields["phone_numbers"] == report.fields["name.display_name"] == report.fields["legal_name"] == 1
    with house.profiles.connect() as connection:
        row = connection.execute(
            sa.text("SELECT * FROM profiles.person WHERE person_id = :id"), {"id": ids.person_id(user_id)}
        ).one()
        company = connection.execute(
            sa.text("SELECT * FROM profiles.business WHERE business_id = :id"), {"id": ids.business_id(business_id)}
        ).one()
    assert (row.display_name, row.phone_numbers, str(row.date_of_birth or "")) == (name, [phone], born or "")
    assert (row.nationalities, row.version) == (["IE"], version)
    assert (company.legal_name, company.entity_type) == (business, "trust")
    assert company.website == (None if policy is Policy.KEEP else "https://ours.example")
    assert user_id in users(house, "active")
    all_there(house)  # with the roles that the other service did not know


def test_a_dry_run_tells_of_conflicts(house: Home) -> None:
    foreign(house)
    report = run(house, dry_run=True, policy=Policy.MERGE)
    assert report.conflicts == {"merged": 2}
    assert report.fields["legal_name"] == 1


# --- limits -----------------------------------------------------------------------------------------------------------


def test_what_is_read_ahead_has_a_limit(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is flat: however many wait, only a page of ids and a few batches are held."""
    monkeypatch.setattr(accounts, "PAGE", 40)
    seeding.seed(house.identity, SEEDED)
    held: list[int] = []
    reading = accounts.read

    def counting(*arguments: object) -> list[accounts.Account]:
        held.append(1)
        return reading(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backfill_batch.accounts, "read", counting)
    yielded: list[int] = []
    pages = accounts.pages

    def watching(*arguments: object) -> Iterator[list[UUID]]:
        for page in pages(*arguments):  # type: ignore[arg-type]
            yielded.append(len(page))
            # Batches of 10: what was given out before this page, less what may wait or run, has been begun.
            assert len(page) <= 40
            assert sum(yielded[:-1]) / 10 - len(held) <= 2 * 2
            yield page

    monkeypatch.setattr("identity_stub.migration.backfill.accounts.pages", watching)
    run(house, batch=10, threads=2)
    assert sum(yielded) == SEEDED + SEEDED // 5
    all_there(house)


@pytest.mark.parametrize("stops", [False, True], ids=["to the end", "until it is stopped"])
def test_its_temporary_file_is_gone_when_it_ends(house: Home, monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    seeding.seed(house.identity, 60)
    opened, opening = [], listed._opened

    def noting(table: str) -> sqlite3.Connection:
        opened.append(opening(table))
        return opened[-1]

    def stop(report: Report) -> None:
        if stops:
            raise KeyboardInterrupt

    monkeypatch.setattr(listed, "_opened", noting)
    with pytest.raises(KeyboardInterrupt) if stops else nullcontext():
        run(house, on_progress=stop)
    (connection,) = opened
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_rate_is_kept(house: Home) -> None:
    """By the clock that it waits on: 40 accounts by ten at 50 a second can't be over before three waits of 0.2 s."""
    seeding.seed(house.identity, 40)
    report = run(house, kinds=[USERS], batch=10, rate=50.0)
    assert report.seconds >= 0.6


# --- the command line -------------------------------------------------------------------------------------------------


def command(house: Home, *arguments: str) -> str:
    told = {
        "IDENTITY_DATABASE_URL": house.identity.url.render_as_string(hide_password=False),
        "IDENTITY_PARTICIPANTS": f"profiles={house.profiles_server.address}",
    }
    result = CliRunner().invoke(identity_stub.cli.cli, list(arguments), env=told)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_seed_backfill_list_and_report(house: Home) -> None:
    assert "100 users, 20 businesses" in command(house, "seed", "--count", "100", "--seed", "5")
    assert "would be given their profile" in command(house, "backfill", "--dry-run")
    house.sql(
        "UPDATE identity.users SET old_birthday = :wrong WHERE user_id = (SELECT min(user_id::text)::uuid"
        " FROM identity.users)",
        wrong=CANARY,
    )
    report = json.loads(command(house, "backfill", "--json", "--only", "users"))
    assert report["created"]["users"] == counted(house, "users", "active")
    command(house, "backfill", "--shard", "1/2")
    command(house, "backfill", "--shard", "2/2")
    house.marked()
    all_there(house)
    listed = [line.split("\t") for line in command(house, "backfill", "--refused").splitlines() if "\t" in line]
    assert {UUID(id_) for kind, id_, _ in listed if kind == "users"} == users(house, "rejected")
    assert {kind for kind, _, _ in listed} <= set(KINDS)
    assert CANARY not in str(listed)
    command(house, "backfill", "--retry-refused")


def test_a_seed_is_sown_once(house: Home) -> None:
    command(house, "seed", "--count", "5", "--seed", "9")
    told = {"IDENTITY_DATABASE_URL": house.identity.url.render_as_string(hide_password=False)}
    again = CliRunner().invoke(identity_stub.cli.cli, ["seed", "--count", "5", "--seed", "9"], env=told)
    assert again.exit_code == 2
    assert counted(house, "users", "absent") == 5
