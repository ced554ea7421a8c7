"""The reconciliation: every kind of difference is found, named without values, and put right where that is asked for
and can be; nothing is found where there is nothing, whatever goes on meanwhile.

Real PostgreSQL and real gRPC; what a crash or a restore leaves is left by SQL.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.field_mask_pb2 import FieldMask
from typer.testing import CliRunner

import identity_stub.cli
import profiles_server.cli
from identity_stub.migration import reconcile_profiles
from identity_stub.migration.backfill import Backfill
from identity_stub.migration.backfill_accounts import BUSINESSES
from identity_stub.migration.backfill_batch import Options as BackfillOptions
from identity_stub.migration.conflicts import Existing, Policy
from identity_stub.migration.listed import Listed
from identity_stub.migration.reconcile import Options, Reconciliation
from identity_stub.migration.reconcile_profiles import Profiles
from identity_stub.migration.reconcile_report import Difference, Kind, Report
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.profiles import ids as profile_ids
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import business_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tests.integration.old_accounts import old_business, old_user
from tests.integration.test_identity_house import (
    CANARY,
    Home,
    business,
    create_user,
    fresh,
    home,
    invite,
    person,
    sign_up,
)
from tests.support.house import new_id


@pytest.fixture(scope="module")
def shared(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


@pytest.fixture
def house(shared: Home) -> Home:
    """With nobody in it."""
    with shared.identity.begin() as connection:
        connection.exec_driver_sql("TRUNCATE identity.users, identity.businesses, twophase.decision CASCADE")
    with shared.profiles.begin() as connection:
        connection.exec_driver_sql(
            "TRUNCATE profiles.person, profiles.business, profiles.business_person, twophase.prepared_transaction"
        )
    return shared


@pytest.fixture(scope="module")
def channel(shared: Home) -> Iterator[grpc.Channel]:
    with open_profiles(shared.profiles_server.address) as opened:
        yield opened


def backfilled(house: Home, channel: grpc.Channel) -> None:
    report = Backfill(house.coordinator, Existing(channel), BackfillOptions()).run()
    assert not report.stopped
    assert not report.refused


def reconciled(house: Home, channel: grpc.Channel, **options: object) -> Report:
    options.setdefault("settle_s", 0.0)
    report = Reconciliation(house.coordinator, channel, Options(**options)).run()  # type: ignore[arg-type]
    assert CANARY not in repr(report), "a value in a report"
    return report


def found(report: Report) -> set[tuple[str, str, str, tuple[str, ...]]]:
    return {(one.what, one.kind.value, one.id, one.fields) for one in report.listed}


def at_profiles(house: Home, statement: str, **values: object) -> None:
    with house.profiles.begin() as connection:
        assert connection.execute(sa.text(statement), values).rowcount


def lost(house: Home, *, person_id: UUID | None = None, business_id: UUID | None = None) -> None:
    """As if profiles had been restored from a backup in which it was not yet."""
    if person_id is not None:
        at_profiles(house, "DELETE FROM profiles.person WHERE person_id = :id", id=person_id)
    if business_id is not None:
        at_profiles(house, "DELETE FROM profiles.business_person WHERE business_id = :id", id=business_id)
        at_profiles(house, "DELETE FROM profiles.business WHERE business_id = :id", id=business_id)


def old(house: Home, channel: grpc.Channel, **facts: str | None) -> tuple[UUID, UUID]:
    """A user and a business of old, with their profiles."""
    user_id = old_user(house)
    business_id = old_business(house, user_id, **facts)
    backfilled(house, channel)
    return user_id, business_id


# --- finding ------------------------------------------------------------------------------------------------------


def test_both_sides_are_equal(house: Home, channel: grpc.Channel) -> None:
    """Those who signed up and those who were migrated; before that, those who wait are told by their status."""
    house.stub.SignUp(sign_up(request_id=fresh()), timeout=20)
    user_id = old_user(house)
    old_business(house, user_id)
    before = reconciled(house, channel)
    assert (before.waiting, before.found) == ({"users: absent": 1, "businesses: absent": 1}, {})
    assert before.equal(migrating=True)
    assert not before.equal(migrating=False)
    backfilled(house, channel)
    house.marked()
    after = reconciled(house, channel)
    assert after.equal(migrating=False)
    assert after.compared == {"users": 2, "businesses": 2, "transactions": 3}


def test_what_profiles_lacks_and_what_it_has_beyond(house: Home, channel: grpc.Channel) -> None:
    """Of users, businesses and roles; a business that is missing is told once, without its roles."""
    user_id, business_id = old(house, channel)
    _, with_roles = old(house, channel)
    user = house.stub.CreateUser(create_user(), timeout=20).user
    extra_person, extra_business = str(uuid4()), str(uuid4())
    somebody = str(uuid4())
    extras = [person(person_id=extra_person), business(business_id=extra_business)]
    role = business_pb2.BusinessPerson(
        business_id=str(profile_ids.business_id(with_roles)), person_id=somebody, role=business_pb2.ROLE_DIRECTOR
    )
    with house.coordinator.transaction({"profiles": [*extras, role]}):
        pass
    lost(house, person_id=profile_ids.person_id(user_id), business_id=profile_ids.business_id(business_id))
    lost(house, person_id=UUID(user.person_id))
    house.sql("INSERT INTO identity.members VALUES (:b, :u, 'secretary')", b=with_roles, u=user.user_id)
    report = reconciled(house, channel)
    assert found(report) == {
        ("users", "missing", str(user_id), ()),
        ("users", "missing", user.user_id, ()),
        ("businesses", "missing", str(business_id), ()),
        ("users", "extra", extra_person, ()),
        ("businesses", "extra", extra_business, ()),
        ("roles", "extra", f"{with_roles}/{somebody}/director", ()),
        ("roles", "missing", f"{with_roles}/{user.person_id}/secretary", ()),
    }
    assert not report.equal(migrating=True)


def test_facts_that_differ_are_named(house: Home, channel: grpc.Channel) -> None:
    """By field, a person's name by its parts; never with what stands in it."""
    user_id, business_id = old(house, channel)
    at_profiles(house, "UPDATE profiles.person SET family_name = 'Other', phone_numbers = '[]'")
    at_profiles(house, "UPDATE profiles.business SET industry_code = '55', website = null, entity_type = 'trust'")
    assert found(reconciled(house, channel)) == {
        ("users", "different", str(user_id), ("name.family_name", "phone_numbers")),
        ("businesses", "different", str(business_id), ("entity_type", "industry", "website")),
    }


def test_after_the_first_change_profiles_is_right(house: Home, channel: grpc.Channel) -> None:
    """An update is no difference; nor is what another service made first and a backfill kept."""
    user_id, business_id = old(house, channel)
    stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
    changed = person(person_id=str(profile_ids.person_id(user_id)), version=1)
    stub.UpdatePerson(profiles_pb.UpdatePersonRequest(person=changed, update_mask=FieldMask(paths=["name"])))
    request = pb.UpdateBusinessRequest(
        business_id=str(business_id), profile=business_pb2.Business(version=1), update_mask=FieldMask(paths=["website"])
    )
    house.stub.UpdateBusiness(request, timeout=20)
    kept = old_user(house)
    with house.coordinator.transaction({"profiles": [person(person_id=str(profile_ids.person_id(kept)))]}):
        pass
    at_profiles(house, "UPDATE profiles.person SET coordinator = 'billing' WHERE person_id = :id",
                id=profile_ids.person_id(kept))  # fmt: skip
    assert reconciled(house, channel).fields == {"users: different: profile_status": 1}
    backfilled(house, channel)
    assert reconciled(house, channel).equal(migrating=False)


def test_commits_that_one_side_lacks(house: Home, channel: grpc.Channel) -> None:
    """The decision log beside the participant's rows: missing, extra, another content, another outcome, unfinished."""
    made = [house.stub.CreateUser(create_user(request_id=fresh()), timeout=20) for _ in range(6)]
    assert made
    house.marked()
    with house.identity.connect() as connection:
        ids = list(connection.execute(sa.text("SELECT transaction_id FROM twophase.decision ORDER BY 1")).scalars())
    missing, extra, aborted_here, digest, outcome, unfinished = ids
    table = "twophase.prepared_transaction"
    at_profiles(house, f"DELETE FROM {table} WHERE transaction_id = :id", id=missing)
    house.sql("DELETE FROM twophase.decision WHERE transaction_id = :id", id=extra)
    house.sql("DELETE FROM twophase.decision WHERE transaction_id = :id", id=aborted_here)
    house.sql(
        "INSERT INTO twophase.decision (coordinator, transaction_id, outcome, participants, undelivered, parked)"
        " VALUES ('identity', :id, 'aborted', '{}', '{}', '{}')",
        id=aborted_here,
    )
    at_profiles(house, f"UPDATE {table} SET digests = :d WHERE transaction_id = :id", id=digest, d=bytes(32))
    at_profiles(house, f"UPDATE {table} SET state = 'aborted' WHERE transaction_id = :id", id=outcome)
    at_profiles(
        house, f"UPDATE {table} SET state = 'prepared', confirmed = false WHERE transaction_id = :id", id=unfinished
    )
    report = reconciled(house, channel, parts=("transactions",))
    assert found(report) == {
        ("transactions", "missing", f"profiles identity/{missing}", ()),
        ("transactions", "extra", f"profiles identity/{extra}", ("undecided",)),
        ("transactions", "extra", f"profiles identity/{aborted_here}", ("aborted",)),
        ("transactions", "different", f"profiles identity/{digest}", ("digest",)),
        ("transactions", "different", f"profiles identity/{outcome}", ("outcome",)),
        ("transactions", "unfinished", f"profiles identity/{unfinished}", ()),
    }
    assert reconciled(house, channel, parts=("transactions",), within_s=0.0).equal(migrating=False)


def test_what_either_side_may_have_forgotten_is_not_compared(house: Home, channel: grpc.Channel) -> None:
    """R14: an expired id that one side has purged is no difference."""
    house.sql(
        "INSERT INTO twophase.decision (coordinator, transaction_id, outcome, participants, undelivered, parked)"
        " VALUES ('identity', :id, 'committed', jsonb_build_object('profiles', repeat('0', 64)), '{}', '{}')",
        id=new_id(age_s=29.5 * 86_400),
    )
    assert reconciled(house, channel).equal(migrating=False)


def test_what_is_under_way_is_waited_for(house: Home, channel: grpc.Channel) -> None:
    """A commit that nobody has delivered yet is no difference once it is."""
    house.undelivered(sign_up(request_id=fresh()))
    threading.Timer(0.3, house.recovery.run_once).start()
    with house.identity.begin() as connection:
        connection.exec_driver_sql("UPDATE twophase.decision SET next_attempt_at = now()")
    assert reconciled(house, channel, parts=("transactions",), settle_s=20.0).equal(migrating=False)


def test_nothing_is_found_where_there_is_nothing(house: Home, channel: grpc.Channel) -> None:
    """While people sign up, are invited, and change their facts, and a backfill runs: no false alarm."""
    stop = threading.Event()
    failures: list[Exception] = []

    def busy() -> None:
        try:
            while not stop.is_set():
                made = house.stub.SignUp(sign_up(request_id=fresh()), timeout=20)
                invitation = invite(house.stub, made, role=business_pb2.ROLE_DIRECTOR)
                house.stub.AcceptInvitation(
                    pb.AcceptInvitationRequest(invitation_id=invitation.invitation_id, person=person()),
                    timeout=20,
                )
                business_id = old_business(house, old_user(house))
                update = pb.UpdateBusinessRequest(
                    business_id=str(business_id),
                    profile=business_pb2.Business(trade_names=["Coals"]),
                    update_mask=FieldMask(paths=["trade_names"]),
                )
                house.stub.UpdateBusiness(update, timeout=20)
                backfilled(house, channel)
        except Exception as error:  # shown by the test
            failures.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    reports = [reconciled(house, channel, settle_s=10.0) for _ in range(12)]
    stop.set()
    thread.join(60)
    assert not failures
    assert [report.listed for report in reports] == [[]] * len(reports)
    assert reports[-1].compared["users"] > reports[0].compared["users"]


def test_what_nobody_can_decide_stops_nothing(
    new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile in doubt while the coordinator is away is told as such, and all others are compared."""
    monkeypatch.setattr(reconcile_profiles, "DOUBT_S", 0.5)
    with home(new_database) as house, open_profiles(house.profiles_server.address) as channel:
        in_doubt, missing = old_user(house, status="active"), old_user(house, status="active")
        house.coordinator.prepare({"profiles": [person(person_id=str(profile_ids.person_id(in_doubt)))]})
        house.server.drain(0)
        assert found(reconciled(house, channel)) == {
            ("users", "unfinished", str(in_doubt), ("in_doubt",)),
            ("users", "missing", str(missing), ()),
        }


# --- putting right ------------------------------------------------------------------------------------------------


def test_what_is_missing_is_made_again(house: Home, channel: grpc.Channel) -> None:
    """From the old columns, with its people; then both sides are equal."""
    user_id, business_id = old(house, channel)
    lost(house, person_id=profile_ids.person_id(user_id), business_id=profile_ids.business_id(business_id))
    _, with_roles = old(house, channel)
    at_profiles(
        house, "DELETE FROM profiles.business_person WHERE business_id = :id", id=profile_ids.business_id(with_roles)
    )
    only_told = reconciled(house, channel)
    assert len(only_told.listed) == 3
    assert not only_told.repaired
    report = reconciled(house, channel, repair=True)
    assert report.repaired == {"users: missing": 1, "businesses: missing": 1, "roles: missing": 1}
    assert report.equal(migrating=False)
    house.marked()
    again = reconciled(house, channel)
    assert (again.listed, again.equal(migrating=False)) == ([], True)
    assert house.balanced()


def test_what_has_no_facts_here_is_listed(house: Home, channel: grpc.Channel) -> None:
    """Who signed up has none; who is malformed has none that can be used; a number may be taken. Others are made."""
    user = house.stub.CreateUser(create_user(), timeout=20).user
    lost(house, person_id=UUID(user.person_id))
    malformed = old_user(house, status="active", birthday="long ago")
    number = {"registration_country": "GB", "registration_number": "77"}
    good = old_user(house, status="active")
    old_business(house, good, status="active", **number)
    taken = old_business(house, good, status="active", **number)
    first, second = sorted((taken, house_business(house, number, but=taken)))
    report = reconciled(house, channel, repair=True)
    left = {(one.what, one.id): one.left for one in report.listed if not one.repaired}
    assert left.pop(("users", user.user_id)) == "no facts here"
    assert left.pop(("users", str(malformed))) == "INVALID_REQUEST: birthday"
    ((what, id_), why) = left.popitem()
    assert (what, why) == ("businesses", "ALREADY_EXISTS: registration_number")
    assert UUID(id_) in (first, second)
    assert not left
    assert report.repaired == {"users: missing": 1, "businesses: missing": 1}
    assert not report.equal(migrating=True)


def house_business(house: Home, number: dict[str, str], *, but: UUID) -> UUID:
    with house.identity.connect() as connection:
        found: UUID = connection.execute(
            sa.text(
                "SELECT business_id FROM identity.businesses WHERE old_registration_number = :n AND business_id <> :b"
            ),
            {"n": number["registration_number"], "b": but},
        ).scalar_one()
        return found


def test_a_status_that_is_behind_is_brought_up_to_date(house: Home, channel: grpc.Channel) -> None:
    """Profiles has the person, and the account did not know."""
    user_id = old_user(house)
    with house.coordinator.transaction({"profiles": [person(person_id=str(profile_ids.person_id(user_id)))]}):
        pass
    at_profiles(house, "UPDATE profiles.person SET version = 2")
    assert reconciled(house, channel, repair=True).repaired == {"users: different": 1}
    assert reconciled(house, channel).equal(migrating=False)


def test_facts_that_differ_go_by_the_policy(house: Home, channel: grpc.Channel) -> None:
    """Kept unless it is said otherwise: profiles is their home."""
    old(house, channel)
    at_profiles(house, "UPDATE profiles.person SET family_name = 'Other'")
    kept = reconciled(house, channel, repair=True)
    assert (kept.repaired, kept.equal(migrating=False)) == ({}, False)
    written = reconciled(house, channel, repair=True, policy=Policy.OVERWRITE)
    assert (written.repaired, written.equal(migrating=False)) == ({"users: different": 1}, True)
    assert house.count("profiles.person", "family_name = 'Pike' AND version = 2") == 1
    assert reconciled(house, channel).equal(migrating=False)


def test_what_is_extra_is_never_touched(house: Home, channel: grpc.Channel) -> None:
    """Whoever repairs can't know whether it is identity that has lost something."""
    with house.coordinator.transaction({"profiles": [person(person_id=str(uuid4()))]}):
        pass
    report = reconciled(house, channel, repair=True, policy=Policy.OVERWRITE)
    assert (report.found, report.repaired) == ({"users: extra": 1}, {})
    assert house.count("profiles.person") == 1


def test_two_repairs_at_once(house: Home, channel: grpc.Channel) -> None:
    """Each is made once, and both runs say that all is well."""
    users = [old_user(house, status="active") for _ in range(250)]
    reports: list[Report] = []
    threads = [
        threading.Thread(target=lambda: reports.append(reconciled(house, channel, repair=True, parts=("users",))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [report.equal(migrating=False) for report in reports] == [True, True]
    assert house.count("profiles.person", "state = 'active' AND version = 1") == len(users)


def test_what_an_attempt_has_left_in_doubt_gives_way(house: Home, channel: grpc.Channel) -> None:
    """A repair that died after the votes holds the person: it is waited for, or pushed aside, and then made."""
    user_id = old_user(house, status="active")
    died = house.coordinator.prepare({"profiles": [person(person_id=str(profile_ids.person_id(user_id)))]})
    with house.profiles.begin() as connection:
        connection.exec_driver_sql("UPDATE twophase.prepared_transaction SET prepared_at = now() - interval '1 minute'")
    report = reconciled(house, channel, repair=True, parts=("users",))
    assert report.equal(migrating=False)
    assert house.person_state(str(profile_ids.person_id(user_id))) == "active"
    assert house.count("twophase.decision", "transaction_id = :id AND outcome = 'aborted'", id=died.id) == 1


BACKED_UP = ("twophase.prepared_transaction", "profiles.person", "profiles.business", "profiles.business_person")


def test_after_a_restore_of_profiles(house: Home, channel: grpc.Channel) -> None:
    """What was committed since the backup is found on both roads; old accounts are made again, others are listed."""
    old(house, channel)
    with house.profiles.begin() as connection:
        for table in BACKED_UP:
            connection.exec_driver_sql(f"CREATE TABLE backup_{table.replace('.', '_')} AS TABLE {table}")
    _, migrated_later = old(house, channel)
    signed_up = house.stub.SignUp(sign_up(request_id=fresh()), timeout=20)
    house.marked()
    with house.profiles.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {', '.join(BACKED_UP)}")
        for table in BACKED_UP:
            connection.exec_driver_sql(f"INSERT INTO {table} TABLE backup_{table.replace('.', '_')}")
            connection.exec_driver_sql(f"DROP TABLE backup_{table.replace('.', '_')}")
    told = reconciled(house, channel)
    assert told.found == {"users: missing": 2, "businesses: missing": 2, "transactions: missing": 3}
    report = reconciled(house, channel, repair=True)
    assert report.repaired == {"users: missing": 1, "businesses: missing": 1}
    assert report.left == {"users: missing: no facts here": 1, "businesses: missing: no facts here": 1}
    assert house.roles(str(profile_ids.business_id(migrated_later)))
    again = pb.UpdateBusinessRequest(
        business_id=signed_up.business.business_id,
        profile=business(),
        update_mask=FieldMask(paths=["legal_name", "entity_type"]),
    )
    house.stub.UpdateBusiness(again, timeout=20)  # its owner says it once more
    house.marked()
    assert reconciled(house, channel, within_s=0.0).found == {"users: missing": 1}


# --- deleting what is extra, at profiles --------------------------------------------------------------------------


def delete_extra(house: Home, listed: str, *arguments: str) -> tuple[int, str]:
    """The command of profiles, given what reconcile has printed."""
    environment = {
        "PROFILES_DATABASE_URL": house.profiles.url.render_as_string(hide_password=False),
        "PROFILES_COORDINATORS": f"identity={house.server.address}",
    }
    arguments = ("delete-extra", "-", "--coordinator", "identity", "--actor", "ann", "--reason", "T-1", *arguments)
    result = CliRunner().invoke(profiles_server.cli.cli, arguments, env=environment, input=listed)
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    return result.exit_code, result.output


def test_what_is_extra_is_deleted_by_hand_with_a_reason(house: Home, channel: grpc.Channel) -> None:
    """By whoever owns profiles, from the reconciliation's own list; each is recorded; then both sides are equal."""
    _, business_id = old(house, channel)
    role = business_pb2.BusinessPerson(
        business_id=str(profile_ids.business_id(business_id)), person_id=str(uuid4()), role=business_pb2.ROLE_DIRECTOR
    )
    people = [business_pb2.BusinessRole(person_id=str(uuid4()), role=business_pb2.ROLE_OWNER)]
    with house.coordinator.transaction(
        {"profiles": [person(person_id=str(uuid4())), business(business_id=str(uuid4()), people=people), role]}
    ):
        pass
    theirs = str(uuid4())
    with house.coordinator.transaction({"profiles": [person(person_id=theirs)]}):
        pass
    at_profiles(house, "UPDATE profiles.person SET coordinator = 'billing' WHERE person_id = :id", id=theirs)
    house.marked()
    listed = run(house)[1] + f"users\textra\t{theirs}\ntransactions\textra\tprofiles identity/{uuid4()}\n"
    status, said = delete_extra(house, listed, "--dry-run")
    assert (status, said.splitlines()[-1]) == (0, "1 not there, 3 would be deleted")
    assert run(house)[0] == 3
    status, said = delete_extra(house, listed)
    assert (status, said.splitlines()[-1]) == (0, "3 deleted, 1 not there")
    assert run(house)[0] == 0
    assert house.person_state(theirs) == "active"
    with house.profiles.connect() as connection:
        recorded = connection.execute(
            sa.text("SELECT actor, reason, split_part(detail, ' ', 1) FROM twophase.participant_action ORDER BY 3")
        ).all()
        audited = connection.execute(
            sa.text("SELECT entity_kind FROM profiles.audit_event WHERE action = 'deleted' ORDER BY 1")
        ).scalars()
        assert recorded == [("ann", "T-1", kind) for kind in ("business", "business_person", "person")]
        assert list(audited) == ["business", "business_person", "business_person", "person"]


def test_a_business_that_is_just_getting_a_role_is_left(house: Home) -> None:
    """The vote is a promise: what is prepared keeps its business."""
    extra = str(uuid4())
    with house.coordinator.transaction({"profiles": [business(business_id=extra)]}):
        pass
    role = business_pb2.BusinessPerson(business_id=extra, person_id=str(uuid4()), role=business_pb2.ROLE_OWNER)
    tx = house.coordinator.prepare({"profiles": [role]})
    listed = f"businesses\textra\t{extra}\n"
    status, said = delete_extra(house, listed)
    assert (status, "just being made" in said) == (1, True)
    with house.identity.begin() as connection:
        assert tx.decision is not None
        connection.execute(tx.decision)
    tx.finish()
    assert len(house.roles(extra)) == 1
    assert delete_extra(house, listed)[1].endswith("1 deleted\n")


def test_a_list_that_is_none_deletes_nothing(house: Home) -> None:
    """One line that can't be read stops it before anything is done."""
    with house.coordinator.transaction({"profiles": [person(person_id=str(uuid4()))]}):
        pass
    (one,) = [line for line in run(house)[1].splitlines() if "\textra\t" in line]
    status, said = delete_extra(house, f"{one}\nusers\textra\tsomebody\n")
    assert (status, "line 2" in said) == (1, True)
    assert delete_extra(house, "users\tmissing\tx\n") == (0, "nothing in it is extra\n")
    assert house.count("profiles.person") == 1


# --- the parts it stands on ---------------------------------------------------------------------------------------


def test_more_than_one_answer_can_hold(house: Home, channel: grpc.Channel) -> None:
    """Heavy businesses are asked for in smaller portions."""
    heavy = [f"{n}" + "x" * 290 for n in range(20)]
    ids = [str(uuid4()) for _ in range(90)]
    for first in range(0, 90, 30):
        writes = []
        for id_ in ids[first : first + 30]:
            one = business(business_id=id_, trade_names=heavy)
            for _ in range(20):
                one.addresses.add(region_code="DE", locality="x" * 200, address_lines=["x" * 200] * 5)
            writes.append(one)
        with house.coordinator.transaction({"profiles": writes}):
            pass
    asked = [UUID(id_) for id_ in ids] + [uuid4()]
    assert {str(id_) for id_ in Profiles(channel, "identity").get(BUSINESSES, asked)} == set(ids)


def test_the_set_on_disk() -> None:
    """What was put in and not taken out, in order, however often it is put in."""
    ids = sorted(uuid4() for _ in range(2_500))
    with Listed() as listed:
        listed.add(map(str, ids))
        listed.add(map(str, ids[:10]))
        assert listed.take([ids[0], ids[7], uuid4()]) == {ids[0], ids[7]}
        assert listed.take([ids[0]]) == set()
        assert [id_ for page in listed.rest() for id_ in page] == [*ids[1:7], *ids[8:]]


def test_a_long_report_keeps_what_it_is_told_to() -> None:
    """All are counted, few are kept: memory is flat whatever is wrong."""
    report = Report(at_most=3)
    report.add([Difference("users", Kind.MISSING, str(n)) for n in range(1_000)])
    assert (len(report.listed), report.found) == (3, {"users: missing": 1_000})


# --- the command --------------------------------------------------------------------------------------------------


def run(house: Home, *arguments: str) -> tuple[int, str]:
    """The command's exit status and what it prints."""
    environment = {
        "IDENTITY_DATABASE_URL": house.identity.url.render_as_string(hide_password=False),
        "IDENTITY_PARTICIPANTS": f"profiles={house.profiles_server.address}",
    }
    result = CliRunner().invoke(identity_stub.cli.cli, ["reconcile", *arguments], env=environment)
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    assert CANARY not in result.output
    return result.exit_code, result.output


def test_the_exit_status_says_whether_both_sides_are_equal(house: Home, channel: grpc.Channel) -> None:
    """0 and 3; and 1 where it could not be found out."""
    user_id = old_user(house)
    old_business(house, user_id)
    assert run(house)[0] == 3
    assert run(house, "--migrating")[0] == 0
    backfilled(house, channel)
    house.marked()
    status, said = run(house)
    assert (status, said.splitlines()[-1]) == (0, "Both sides are equal.")
    lost(house, person_id=profile_ids.person_id(user_id))
    status, said = run(house)
    assert status == 3
    assert f"users\tmissing\t{user_id}" in said
    status, said = run(house, "--json", "--repair")
    told = json.loads(said[said.index("{") :])
    assert (status, told["equal"], told["repaired"]) == (0, True, {"users: missing": 1})
    assert run(house, "--only", "users")[0] == 0
    assert run(house, "--only", "nothing")[0] == 1
    house.sql("ALTER TABLE identity.members RENAME TO members_away")
    assert run(house)[0] == 1
    house.sql("ALTER TABLE identity.members_away RENAME TO members")
