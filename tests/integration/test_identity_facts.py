"""Facts of a business through identity, while it is migrated: who asks there and who asks profiles see the same.

Real PostgreSQL and real gRPC, as a client sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from identity_stub.facts import Facts
from identity_stub.migration.mapping import business_of
from identity_stub.provisioning.saga import Saga
from identity_stub.requests import Kind, Request
from identity_stub.signup import SignUps
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.kafka.config import Cluster
from tandem.profiles import ids as profile_ids
from tandem.profiles.v1 import business_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tandem.runtime.errors import Reason, TandemError
from tests.integration.old_accounts import old_business, old_user
from tests.integration.test_identity_house import Home, address, business, fresh, home, person, refusal, sign_up


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


@pytest.fixture(scope="module")
def profiles(house: Home) -> Iterator[profiles_service_pb2_grpc.ProfilesServiceStub]:
    """What a client that has moved calls."""
    with grpc.insecure_channel(house.profiles_server.address) as channel:
        yield profiles_service_pb2_grpc.ProfilesServiceStub(channel)


Profiles = profiles_service_pb2_grpc.ProfilesServiceStub


def by_identity(house: Home, business_id: UUID) -> pb.Business:
    """What a client sees that has not moved."""
    request = pb.GetBusinessRequest(business_id=str(business_id), with_profile=True)
    return house.stub.GetBusiness(request, timeout=20).business


def by_profiles(profiles: Profiles, business_id: UUID) -> business_pb2.Business:
    request = profiles_pb.GetBusinessRequest(business_id=str(profile_ids.business_id(business_id)))
    return profiles.GetBusiness(request, timeout=20).business


def update(business_id: UUID, version: int, **fields: object) -> pb.UpdateBusinessRequest:
    return pb.UpdateBusinessRequest(
        business_id=str(business_id),
        profile=business_pb2.Business(version=version, **fields),  # type: ignore[arg-type]
        update_mask=FieldMask(paths=list(fields)),
    )


def facts(told: business_pb2.Business) -> business_pb2.Business:
    """Without the version, which the migration gives."""
    only = business_pb2.Business()
    only.CopyFrom(told)
    only.ClearField("version")
    return only


def migrated(house: Home, business_id: UUID, owner: UUID) -> Message:
    """What the backfill sends for it."""
    with house.identity.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT * FROM identity.businesses WHERE business_id = %s", (str(business_id),)
        ).one()
    made = business_of(row, [(owner, "owner")])
    assert isinstance(made, business_pb2.Business)
    return made


# --- reading ------------------------------------------------------------------------------------------------------


def test_the_same_before_during_and_after_its_migration(house: Home, profiles: Profiles) -> None:
    """Old columns until the moment of the commit, profiles from then on: a client can't tell but for the version."""
    owner = old_user(house)
    business_id = old_business(house, owner)
    before = by_identity(house, business_id)
    assert (before.profile.version, before.profile_status) == (0, pb.PROFILE_STATUS_ABSENT)
    assert before.profile.addresses[0].locality == "Leeds"
    assert before.profile.people[0].person_id == str(profile_ids.person_id(owner))

    tx = house.coordinator.prepare({"profiles": [migrated(house, business_id, owner)]})
    during = by_identity(house, business_id)  # prepared, and nobody has decided
    assert during == before
    with house.identity.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE identity.businesses SET profile_status = 'active' WHERE business_id = %s", (str(business_id),)
        )
        assert tx.decision is not None
        connection.execute(tx.decision)
    decided = by_identity(house, business_id)  # and nobody has brought it to profiles
    tx.finish()

    after = by_identity(house, business_id)
    assert (after.profile.version, after.profile_status) == (1, pb.PROFILE_STATUS_ACTIVE)
    assert decided == after
    assert facts(after.profile) == facts(before.profile)
    assert after.profile == by_profiles(profiles, business_id)


def test_facts_only_where_they_are_asked_for(house: Home) -> None:
    """Without with_profile nobody waits for profiles."""
    business_id = old_business(house, old_user(house))
    plain = house.stub.GetBusiness(pb.GetBusinessRequest(business_id=str(business_id)), timeout=20).business
    assert not plain.HasField("profile")
    assert plain.members


def test_of_a_business_that_signed_up_profiles_speaks(house: Home, profiles: Profiles) -> None:
    """It has no old columns, and needs none."""
    made = house.stub.SignUp(sign_up(request_id=fresh()), timeout=20).business
    business_id = UUID(made.business_id)
    assert by_identity(house, business_id).profile == by_profiles(profiles, business_id)


def test_malformed_columns_are_left_out(house: Home) -> None:
    """What can't be read is not shown as if it could; the rest is."""
    business_id = old_business(
        house, old_user(house), legal_name=" ", registration_number="77", incorporated="long ago", country="Atlantis"
    )
    told = by_identity(house, business_id).profile
    assert (told.legal_name, told.registration_number, list(told.addresses)) == ("", "", [])
    assert not told.HasField("incorporation_date")
    assert told.website == "https://example.org"


def test_there_is_no_such_business(house: Home) -> None:
    """NOT_FOUND, read or changed."""
    nobody = str(uuid4())
    read = pb.GetBusinessRequest(business_id=nobody, with_profile=True)
    assert refusal(house.stub.GetBusiness, read).reason is Reason.NOT_FOUND
    assert refusal(house.stub.UpdateBusiness, update(UUID(nobody), 0, website="")).reason is Reason.NOT_FOUND


# --- changing -----------------------------------------------------------------------------------------------------


def test_an_update_migrates_and_is_seen_by_both(house: Home, profiles: Profiles) -> None:
    """Version 0 makes the profile of the old columns under the covers; from then on the versions count."""
    owner = old_user(house)
    business_id = old_business(house, owner)
    before = by_identity(house, business_id).profile
    changed = house.stub.UpdateBusiness(update(business_id, 0, trade_names=["Coals"]), timeout=20).business
    assert changed.profile_status == pb.PROFILE_STATUS_ACTIVE
    assert list(changed.profile.trade_names) == ["Coals"]
    expected = facts(before)
    expected.trade_names.append("Coals")
    assert facts(changed.profile) == expected
    assert changed.profile == by_profiles(profiles, business_id) == by_identity(house, business_id).profile

    again = update(business_id, changed.profile.version, website="https://example.com")
    assert house.stub.UpdateBusiness(again, timeout=20).business.profile.version == changed.profile.version + 1
    told = refusal(house.stub.UpdateBusiness, again)
    assert (told.reason, told.metadata["current_version"]) == (
        Reason.VERSION_MISMATCH,
        str(changed.profile.version + 1),
    )


def test_a_backfill_in_between_is_no_change(house: Home, profiles: Profiles) -> None:
    """Who has read the old columns has read what the backfill made of them."""
    owner = old_user(house)
    business_id = old_business(house, owner)
    with house.coordinator.transaction({"profiles": [migrated(house, business_id, owner)]}):
        pass
    house.stub.UpdateBusiness(update(business_id, 0, website=""), timeout=20)
    assert by_profiles(profiles, business_id).website == ""


def test_what_another_service_made_meanwhile_is_not_overwritten(house: Home, profiles: Profiles) -> None:
    """The client has not seen it: it is told to read again."""
    business_id = old_business(house, old_user(house))
    theirs = business(business_id=str(profile_ids.business_id(business_id)))
    with house.coordinator.transaction({"profiles": [theirs]}):
        pass
    told = refusal(house.stub.UpdateBusiness, update(business_id, 0, website=""))
    assert (told.reason, told.metadata["current_version"]) == (Reason.VERSION_MISMATCH, "1")
    assert facts(by_profiles(profiles, business_id)) == theirs


def test_an_update_that_is_refused_has_migrated_all_the_same(house: Home, profiles: Profiles) -> None:
    """The field that is wrong is named as the client knows it."""
    business_id = old_business(house, old_user(house))
    told = refusal(house.stub.UpdateBusiness, update(business_id, 0, website="no website"))
    assert (told.reason, told.violations[0].field) == (Reason.INVALID_REQUEST, "profile.website")
    assert by_profiles(profiles, business_id).version == 1
    house.stub.UpdateBusiness(update(business_id, 1, website=""), timeout=20)


def test_malformed_columns_are_mended_by_the_update_or_named(house: Home, profiles: Profiles) -> None:
    """What the update replaces need not make sense; anything else is not left out without a word."""
    business_id = old_business(house, old_user(house), legal_name=None, incorporated="long ago")
    told = refusal(house.stub.UpdateBusiness, update(business_id, 0, legal_name="Coal & Co"))
    assert (told.reason, [v.field for v in told.violations]) == (
        Reason.INVALID_REQUEST,
        ["profile.incorporation_date"],
    )
    mended = update(business_id, 0, legal_name="Coal & Co", incorporation_date={"year": 1901})
    house.stub.UpdateBusiness(mended, timeout=20)
    found = by_profiles(profiles, business_id)
    assert (found.legal_name, found.incorporation_date.year) == ("Coal & Co", 1901)


def test_a_mask_that_names_what_is_assigned(house: Home) -> None:
    """Ids, versions and roles are not to be changed here."""
    business_id = old_business(house, old_user(house))
    request = update(business_id, 0, website="")
    request.update_mask.paths[:] = ["people"]
    told = refusal(house.stub.UpdateBusiness, request)
    assert (told.reason, told.violations[0].field) == (Reason.INVALID_REQUEST, "update_mask.paths[0]")


def test_a_registration_that_is_taken(house: Home) -> None:
    """ALREADY_EXISTS, whether it comes from the old columns or from the update."""
    registered = {"registration_country": "GB", "registration_number": uuid4().hex[:12].upper()}
    first, second, third = (old_business(house, old_user(house)) for _ in range(3))
    house.stub.UpdateBusiness(update(first, 0, **registered), timeout=20)
    told = refusal(house.stub.UpdateBusiness, update(second, 0, **registered))
    assert (told.reason, told.metadata["field"]) == (Reason.ALREADY_EXISTS, "registration_number")
    house.sql(
        "UPDATE identity.businesses SET old_registration_country = 'GB', old_registration_number = :n"
        " WHERE business_id = :id",
        n=registered["registration_number"],
        id=third,
    )
    told = refusal(house.stub.UpdateBusiness, update(third, 0, website=""))
    assert (told.reason, told.metadata["field"]) == (Reason.ALREADY_EXISTS, "registration_number")
    assert by_identity(house, third).profile_status == pb.PROFILE_STATUS_ABSENT


def test_a_profile_that_was_lost_is_made_again(house: Home, profiles: Profiles) -> None:
    """After a restore of profiles from a backup: the old columns speak again, and version 0 makes it anew."""
    business_id = old_business(house, old_user(house))
    version = house.stub.UpdateBusiness(update(business_id, 0, website=""), timeout=20).business.profile.version
    with house.profiles.begin() as connection:
        for table in ("business_person", "business"):
            connection.exec_driver_sql(
                f"DELETE FROM profiles.{table} WHERE business_id = %s", (str(profile_ids.business_id(business_id)),)
            )
    told = refusal(house.stub.UpdateBusiness, update(business_id, version, trade_names=["Coals"]))
    assert (told.reason, told.metadata["current_version"]) == (Reason.VERSION_MISMATCH, "0")
    assert by_identity(house, business_id).profile.version == 0
    house.stub.UpdateBusiness(update(business_id, 0, trade_names=["Coals"]), timeout=20)
    assert list(by_profiles(profiles, business_id).trade_names) == ["Coals"]


def test_without_profiles_nothing_old_is_told_as_new(new_database: Callable[[str], str]) -> None:
    """UNAVAILABLE: the old columns of what has been changed since would be wrong."""
    with home(new_database) as house:
        business_id = old_business(house, old_user(house))
        house.stub.UpdateBusiness(update(business_id, 0, website=""), timeout=20)
        house.profiles_server.drain(0)
        request = pb.GetBusinessRequest(business_id=str(business_id), with_profile=True)
        assert refusal(house.stub.GetBusiness, request).reason in (Reason.UNAVAILABLE, Reason.DEADLINE_PASSED)


# --- invitations --------------------------------------------------------------------------------------------------


def accept(house: Home, business_id: UUID, inviter: UUID) -> pb.AcceptInvitationRequest:
    """Somebody new, invited to the business."""
    invited = house.stub.InviteUser(
        pb.InviteUserRequest(
            business_id=str(business_id), inviter_user_id=str(inviter), email=address(), role=business_pb2.ROLE_DIRECTOR
        ),
        timeout=20,
    )
    return pb.AcceptInvitationRequest(invitation_id=invited.invitation.invitation_id, person=person())


def test_who_accepts_an_invitation_migrates_the_business(house: Home, profiles: Profiles) -> None:
    """Nobody has to wait for the backfill: business, person and role in one transaction."""
    owner = old_user(house)
    business_id = old_business(house, owner)
    before = by_identity(house, business_id).profile
    made = house.stub.AcceptInvitation(accept(house, business_id, owner), timeout=20)
    assert made.business.profile_status == pb.PROFILE_STATUS_ACTIVE
    after = by_profiles(profiles, business_id)
    assert {one.person_id for one in after.people} == {before.people[0].person_id, made.user.person_id}
    again = house.stub.AcceptInvitation(accept(house, business_id, owner), timeout=20)  # as ever
    assert again.user.person_id in {one.person_id for one in by_profiles(profiles, business_id).people}
    del before.people[:], after.people[:]
    assert facts(after) == before


def test_a_malformed_business_is_mended_before_it_grows(house: Home) -> None:
    """Who is invited can't mend it: nothing is made, and no value is told."""
    owner = old_user(house)
    business_id = old_business(house, owner, incorporated="long ago")
    request = accept(house, business_id, owner)
    told = refusal(house.stub.AcceptInvitation, request)
    assert (told.reason, told.metadata["why"]) == (Reason.REFUSED, "business")
    mended = update(business_id, 0, incorporation_date={"year": 1901})
    house.stub.UpdateBusiness(mended, timeout=20)
    house.stub.AcceptInvitation(request, timeout=20)


# --- designs whose accounts come first ------------------------------------------------------------------------------


def test_where_accounts_come_first_an_old_business_needs_the_backfill(house: Home) -> None:
    """No local commit could say that it has its profile: until then its facts stay, and nobody joins it."""
    owner = old_user(house)
    business_id = old_business(house, owner)
    asked = pb.InviteUserRequest(
        business_id=str(business_id), inviter_user_id=str(owner), email=address(), role=business_pb2.ROLE_OFFICER
    )
    invitation = house.stub.InviteUser(asked, timeout=20).invitation
    saga = Saga(house.identity, Cluster("127.0.0.1:1"), source="identity")
    accepted = Request("tests", fresh("accept"), Kind.ACCEPT_INVITATION, bytes(32))
    with closing(Facts(house.identity, saga, house.profiles_server.address)) as told:
        for refused in (
            lambda: told.update(business_id, business_pb2.Business(legal_name="New"), ["legal_name"], timeout_s=20),
            lambda: SignUps(house.identity, saga).accept_invitation(
                accepted, invitation_id=UUID(invitation.invitation_id), person=person()
            ),
        ):
            with pytest.raises(TandemError) as raised:
                refused()
            assert raised.value.reason is Reason.REFUSED
            assert "backfill" in raised.value.message
        there = UUID(house.stub.SignUp(sign_up(), timeout=20).business.business_id)
        with pytest.raises(TandemError) as raised:
            told.update(there, business_pb2.Business(legal_name="New"), ["legal_name"], timeout_s=20)
        assert (raised.value.reason, raised.value.metadata["current_version"]) == (Reason.VERSION_MISMATCH, "1")
        with house.identity.begin() as connection:
            marked = "UPDATE identity.businesses SET profile_status = 'pending' WHERE business_id = %s"
            connection.exec_driver_sql(marked, (str(business_id),))
        with pytest.raises(TandemError) as raised:
            told.update(business_id, business_pb2.Business(legal_name="New"), ["legal_name"], timeout_s=20)
        assert raised.value.reason is Reason.IN_PROGRESS
    with house.identity.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM identity.outbox").scalar_one() == 0
