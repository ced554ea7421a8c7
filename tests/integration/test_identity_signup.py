"""Identity over real gRPC and PostgreSQL: what each call makes on both sides, refuses, and answers when repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.message import Message
from sqlalchemy.engine import Connection

from identity_stub import ids, requests
from identity_stub.provisioning import OwnRows, ProfileExists, T
from identity_stub.provisioning.two_phase import TwoPhase
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import OutcomeUnknown
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles import ids as profile_ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.auth import ANONYMOUS
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error
from tandem.runtime.times import Times
from tests.integration.test_identity_house import (
    Home,
    address,
    business,
    code_of,
    create_user,
    fresh,
    home,
    invitation_of,
    invite,
    person,
    refusal,
    registered,
    sign_up,
)
from tests.support.house import in_threads

Stub = identity_service_pb2_grpc.IdentityServiceStub


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    """Shared by the module; what the tests make has names of its own."""
    with home(new_database) as made:
        yield made
        assert made.balanced(), "a test has left something that only one side knows"


@pytest.fixture
def stub(house: Home) -> Stub:
    return house.stub


# --- what each call makes -----------------------------------------------------------------------------------------


def test_sign_up_makes_both_sides(house: Home, stub: Stub) -> None:
    """One call: user, business and role here; person, business and role there, visible, under names anyone computes."""
    request = sign_up(request_id=fresh())
    answer = stub.SignUp(request)
    user, made = answer.user, answer.business
    assert user.email == request.email
    assert UUID(user.user_id) == ids.user_id(ANONYMOUS, request.request_id)
    assert UUID(user.person_id) == profile_ids.person_id(UUID(user.user_id))
    assert UUID(made.profile_business_id) == profile_ids.business_id(UUID(made.business_id))
    assert [(m.user_id, m.role) for m in made.members] == [(user.user_id, business_pb2.ROLE_OWNER)]
    assert user.create_time == made.create_time
    assert house.person_state(user.person_id) == "active"
    assert house.roles(made.profile_business_id) == {(user.person_id, "owner", "active")}
    assert stub.GetBusiness(pb.GetBusinessRequest(business_id=made.business_id)).business == made


def test_without_a_request_id_every_call_is_a_new_one(house: Home, stub: Stub) -> None:
    """Names are random then, and a repeat is told that the address is taken."""
    request = create_user()
    user = stub.CreateUser(request).user
    assert UUID(user.user_id).version == 4
    assert house.person_state(user.person_id) == "active"
    assert refusal(stub.CreateUser, request).metadata["field"] == "email"


def test_get_user(stub: Stub) -> None:
    """By id and by address, without regard to case; NOT_FOUND for anybody else."""
    user = stub.CreateUser(create_user()).user
    assert stub.GetUser(pb.GetUserRequest(user_id=user.user_id)).user == user
    assert stub.GetUser(pb.GetUserRequest(email=user.email.upper())).user == user
    assert code_of(stub.GetUser, pb.GetUserRequest(user_id=str(uuid4()))) is grpc.StatusCode.NOT_FOUND
    assert code_of(stub.GetUser, pb.GetUserRequest(email=address())) is grpc.StatusCode.NOT_FOUND
    assert code_of(stub.GetBusiness, pb.GetBusinessRequest(business_id=str(uuid4()))) is grpc.StatusCode.NOT_FOUND
    assert code_of(stub.GetUser, pb.GetUserRequest()) is grpc.StatusCode.INVALID_ARGUMENT


def test_create_business(house: Home, stub: Stub) -> None:
    """A further business of a user who is there; NOT_FOUND where the owner is not."""
    user = stub.CreateUser(create_user()).user
    made = stub.CreateBusiness(pb.CreateBusinessRequest(owner_user_id=user.user_id, business=registered())).business
    assert [m.user_id for m in made.members] == [user.user_id]
    assert {(p, s) for p, _, s in house.roles(made.profile_business_id)} == {(user.person_id, "active")}
    told = refusal(stub.CreateBusiness, pb.CreateBusinessRequest(owner_user_id=str(uuid4()), business=registered()))
    assert (told.reason, told.metadata["field"]) == (Reason.NOT_FOUND, "owner_user_id")


def test_invite_and_accept(house: Home, stub: Stub) -> None:
    """An owner invites, the invited becomes a user with the role on both sides, and a member of the business."""
    owner = stub.SignUp(sign_up())
    invitation = invite(stub, owner, role=business_pb2.ROLE_DIRECTOR)
    assert invitation.accepted_by_user_id == ""
    days = (invitation.expire_time.seconds - owner.user.create_time.seconds) / 86400
    assert 13.9 < days < 14.1
    answer = stub.AcceptInvitation(pb.AcceptInvitationRequest(invitation_id=invitation.invitation_id, person=person()))
    assert answer.user.email == invitation.email
    assert [(m.user_id, m.role) for m in answer.business.members] == [
        (owner.user.user_id, business_pb2.ROLE_OWNER),
        (answer.user.user_id, business_pb2.ROLE_DIRECTOR),
    ]
    assert house.person_state(answer.user.person_id) == "active"
    assert {p for p, _, _ in house.roles(owner.business.profile_business_id)} == {
        owner.user.person_id,
        answer.user.person_id,
    }
    # The new director may invite as well.
    assert invite(stub, owner, inviter_user_id=answer.user.user_id).role == business_pb2.ROLE_OFFICER


# --- what is refused ----------------------------------------------------------------------------------------------


def test_taken_address_is_refused_before_any_rpc(house: Home, stub: Stub) -> None:
    """In any case of letters; profiles is not asked."""
    user = stub.CreateUser(create_user()).user
    before = house.count("profiles.person"), prepared(house)
    for told in (
        refusal(stub.CreateUser, create_user(email=user.email.swapcase(), request_id=fresh())),
        refusal(stub.SignUp, sign_up(email=user.email)),
    ):
        assert (told.reason, told.metadata["field"]) == (Reason.ALREADY_EXISTS, "email")
        assert told.retry_after_s is None
    assert (house.count("profiles.person"), prepared(house)) == before


def test_taken_registration_number_is_refused_by_profiles(house: Home, stub: Stub) -> None:
    """The field is named, and nothing of the sign-up stays: its address is free."""
    taken = registered()
    stub.SignUp(sign_up(business=taken))
    request = sign_up(business=taken, request_id=fresh())
    told = refusal(stub.SignUp, request)
    assert (told.reason, told.metadata["field"]) == (Reason.ALREADY_EXISTS, "registration_number")
    assert stub.CreateUser(create_user(email=request.email)).user.email == request.email


def test_shape_is_told_in_the_words_of_the_request(stub: Stub) -> None:
    """Paths are those of the request, for what identity checks and for what only profiles does."""
    wrong = refusal(stub.CreateUser, create_user(person=person_pb2.Person()))
    assert wrong.reason is Reason.INVALID_REQUEST
    assert [v.field for v in wrong.violations] == ["person.name"]
    name = person_pb2.PersonName(display_name="Zebulon", given_name="Zebulon\0")
    assert [v.field for v in refusal(stub.CreateUser, create_user(person=person(name=name))).violations] == [
        "person.name.given_name"
    ]
    nul = business(trade_names=["Zebulon\0"])
    assert [v.field for v in refusal(stub.SignUp, sign_up(business=nul)).violations] == ["business.trade_names[0]"]
    assert refusal(stub.CreateUser, create_user(email="Zebulon")).violations[0].field == "email"
    assert refusal(stub.CreateUser, create_user(request_id="with blank")).violations[0].field == "request_id"


def test_what_is_assigned_can_not_be_given(stub: Stub) -> None:
    """An id, version or member in the request would be lost without a word."""
    member = business_pb2.BusinessRole(person_id=str(uuid4()), role=business_pb2.ROLE_OWNER)
    request = sign_up(
        person=person(person_id=str(uuid4()), version=1), business=business(business_id=str(uuid4()), people=[member])
    )
    assert {v.field for v in refusal(stub.SignUp, request).violations} == {
        "person.person_id",
        "person.version",
        "business.business_id",
        "business.people",
    }


def test_who_may_invite(stub: Stub) -> None:
    """An owner or director of that business; not to an address that has an account, nor to a business that isn't."""
    owner, stranger = stub.SignUp(sign_up()), stub.SignUp(sign_up())
    officer = stub.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_id=invite(stub, owner).invitation_id, person=person())
    )
    for inviter in (stranger.user.user_id, officer.user.user_id, str(uuid4())):
        told = refusal(stub.InviteUser, invitation_of(owner, inviter_user_id=inviter))
        assert told.reason is Reason.NOT_ALLOWED
    nowhere = invitation_of(owner, business_id=str(uuid4()))
    assert refusal(stub.InviteUser, nowhere).metadata["field"] == "business_id"
    taken = invitation_of(owner, email=stranger.user.email)
    assert refusal(stub.InviteUser, taken).metadata["field"] == "email"


def test_which_invitations_can_be_accepted(house: Home, stub: Stub) -> None:
    """One that is there, open, and whose address has no account meanwhile."""
    owner = stub.SignUp(sign_up())
    unknown = pb.AcceptInvitationRequest(invitation_id=str(uuid4()), person=person())
    assert refusal(stub.AcceptInvitation, unknown).reason is Reason.NOT_FOUND

    accepted = invite(stub, owner)
    stub.AcceptInvitation(pb.AcceptInvitationRequest(invitation_id=accepted.invitation_id, person=person()))
    told = refusal(
        stub.AcceptInvitation, pb.AcceptInvitationRequest(invitation_id=accepted.invitation_id, person=person())
    )
    assert (told.reason, told.metadata["why"]) == (Reason.REFUSED, "accepted")

    expired = invite(stub, owner)
    house.sql("UPDATE identity.invitations SET expires_at = now() WHERE invitation_id = :i", i=expired.invitation_id)
    told = refusal(
        stub.AcceptInvitation, pb.AcceptInvitationRequest(invitation_id=expired.invitation_id, person=person())
    )
    assert (told.reason, told.metadata["why"]) == (Reason.REFUSED, "expired")

    overtaken = invite(stub, owner)
    stub.CreateUser(create_user(email=overtaken.email))
    told = refusal(
        stub.AcceptInvitation, pb.AcceptInvitationRequest(invitation_id=overtaken.invitation_id, person=person())
    )
    assert (told.reason, told.metadata["field"]) == (Reason.ALREADY_EXISTS, "email")


# --- repeated -----------------------------------------------------------------------------------------------------


Making = Callable[[Stub], tuple[Callable[..., Message], Message, Message]]


def _sign_up(stub: Stub) -> tuple[Callable[..., Message], Message, Message]:
    return stub.SignUp, sign_up(), sign_up()


def _create_user(stub: Stub) -> tuple[Callable[..., Message], Message, Message]:
    return stub.CreateUser, create_user(), create_user()


def _create_business(stub: Stub) -> tuple[Callable[..., Message], Message, Message]:
    owner = stub.CreateUser(create_user()).user.user_id
    some = [pb.CreateBusinessRequest(owner_user_id=owner, business=registered()) for _ in range(2)]
    return stub.CreateBusiness, some[0], some[1]


def _invite_user(stub: Stub) -> tuple[Callable[..., Message], Message, Message]:
    owner = stub.SignUp(sign_up())
    return stub.InviteUser, invitation_of(owner), invitation_of(owner)


def _accept_invitation(stub: Stub) -> tuple[Callable[..., Message], Message, Message]:
    owner = stub.SignUp(sign_up())
    some = [pb.AcceptInvitationRequest(invitation_id=invite(stub, owner).invitation_id, person=person()) for _ in "12"]
    return stub.AcceptInvitation, some[0], some[1]


@pytest.mark.parametrize("making", [_sign_up, _create_user, _create_business, _invite_user, _accept_invitation])
def test_a_repeat_gets_the_first_answer(house: Home, stub: Stub, making: Making) -> None:
    """Same id and content: the first answer to the byte, and nothing is made twice, profiles not even asked. Other
    content, or another method: REQUEST_REUSED. A crash between the local commit and the answer looks like this, too.
    """
    method, request, other = making(stub)
    request.request_id = other.request_id = fresh()  # type: ignore[attr-defined]
    first = method(request)
    before = house.count("identity.users"), house.count("identity.businesses"), prepared(house)
    assert method(request) == first
    assert (house.count("identity.users"), house.count("identity.businesses"), prepared(house)) == before
    for told in (
        refusal(method, other),
        refusal(stub.CreateUser, create_user(request_id=request.request_id)),  # type: ignore[attr-defined]
    ):
        assert told.reason is Reason.REQUEST_REUSED
    assert (house.count("identity.users"), house.count("identity.businesses"), prepared(house)) == before


def test_the_first_answer_stays_what_it_was(stub: Stub) -> None:
    """Who joined later, and that the invitation was accepted, is no part of the first answers."""
    signing, inviting = sign_up(request_id=fresh()), pb.InviteUserRequest()
    owner = stub.SignUp(signing)
    inviting.CopyFrom(invitation_of(owner, request_id=fresh()))
    invitation = stub.InviteUser(inviting).invitation
    stub.AcceptInvitation(pb.AcceptInvitationRequest(invitation_id=invitation.invitation_id, person=person()))
    assert stub.SignUp(signing) == owner
    assert stub.InviteUser(inviting).invitation == invitation
    assert len(stub.GetBusiness(pb.GetBusinessRequest(business_id=owner.business.business_id)).business.members) == 2


def test_an_attempt_that_died_after_its_votes(house: Home, stub: Stub) -> None:
    """Its prepared rows hold what the repeat needs: ABORTED with RetryInfo, no refusal; once it is ended, success."""
    request = sign_up(request_id=fresh())
    died = house.died_prepared(request)
    told = refusal(stub.SignUp, request)
    assert told.reason is Reason.HELD
    assert told.retry_after_s is not None
    assert 0 < told.retry_after_s <= Times().push_after_s
    assert house.sweep() == 1
    answer = stub.SignUp(request)
    assert house.person_state(answer.user.person_id) == "active"
    assert house.transaction_of(request.request_id) != died


def test_an_attempt_that_died_after_its_local_commit(house: Home) -> None:
    """Decided and undelivered: the repeat is answered from identity alone, profiles being away; recovery delivers."""
    request = sign_up(request_id=fresh())
    first = house.undelivered(request)
    away = Coordinator(house.identity, name="identity", participants={"profiles": "127.0.0.1:1"})
    with house.beside(TwoPhase(away)) as stub:
        assert stub.SignUp(request) == first
    away.close()
    house.sql("UPDATE twophase.decision SET next_attempt_at = now() WHERE undelivered <> '{}'")
    assert house.recovery.run_once() == 1
    assert house.person_state(first.user.person_id) == "active"


def test_profiles_away(house: Home, stub: Stub) -> None:
    """UNAVAILABLE with RetryInfo, nothing is made; the same request succeeds when it is back."""
    request = sign_up(request_id=fresh())
    times = Times(prepare_deadline_s=0.3)
    away = Coordinator(house.identity, name="identity", participants={"profiles": "127.0.0.1:1"}, times=times)
    with house.beside(TwoPhase(away)) as other:
        told = refusal(other.SignUp, request)
    away.close()
    assert told.reason is Reason.UNAVAILABLE
    assert told.retry_after_s
    assert not house.count("identity.users", "lower(email) = lower(:e)", e=request.email)
    assert stub.SignUp(request).user.email == request.email


def test_confirm_in_the_background(house: Home) -> None:
    """The answer comes with the decision; the profile is visible when the background has confirmed."""
    coordinator = Coordinator(house.identity, name="identity", participants={"profiles": house.profiles_server.address})
    provisioning = TwoPhase(coordinator, confirm="background")
    with house.beside(provisioning) as stub:
        user = stub.CreateUser(create_user()).user
        provisioning.close()
        assert house.person_state(user.person_id) == "active"


class Losing:
    """A provisioning whose answers get lost: what it makes is made, and then it raises."""

    profile_status = "active"

    def __init__(self, inner: TwoPhase, error: TandemError, *, makes: bool = True) -> None:
        self._inner = inner
        self._error = error
        self._makes = makes

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        if self._makes:
            self._inner.create(profile, own_rows)
        raise self._error

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "error",
    [
        OutcomeUnknown("the log can't be read", transaction_id=uuid4()),
        TandemError("lost", reason=Reason.UNAVAILABLE, retry_after_s=1),
        ProfileExists("person_id", transaction_id=uuid4()),
        ProfileExists("registration_number", transaction_id=uuid4()),
    ],
    ids=["outcome unknown", "unavailable", "person exists", "number exists"],
)
def test_a_sign_up_that_succeeded_is_never_answered_with_an_error(house: Home, error: TandemError) -> None:
    """Whatever the provisioning says: what the request has made is looked for before it is answered."""
    with house.beside(Losing(TwoPhase(house.coordinator), error)) as stub:
        request = sign_up(request_id=fresh())
        answer = stub.SignUp(request)
        assert house.person_state(answer.user.person_id) == "active"
        assert house.stub.SignUp(request) == answer


@pytest.mark.parametrize("making", [_sign_up, _create_user, _accept_invitation])
def test_the_other_attempt_commits_between_two_looks(
    stub: Stub, making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request isn't there yet, then its address is taken: by itself, which is a success and no refusal."""
    method, request, _ = making(stub)
    request.request_id = fresh()  # type: ignore[attr-defined]
    first = method(request)
    look, looks = requests.first_answer, []

    def too_early(connection: Connection, named: requests.Request) -> requests.Made | None:
        looks.append(named)
        return None if len(looks) == 1 else look(connection, named)

    monkeypatch.setattr(requests, "first_answer", too_early)
    assert method(request) == first
    assert len(looks) == 2


def test_what_is_told_where_nothing_was_made(house: Home) -> None:
    """An id of the request's own that exists means: an earlier attempt is being finished. A number means: refused."""
    inner = TwoPhase(house.coordinator)
    for field in ("person_id", "business_id", "role"):
        with house.beside(Losing(inner, ProfileExists(field, transaction_id=uuid4()), makes=False)) as stub:
            told = refusal(stub.SignUp, sign_up(request_id=fresh()))
            assert (told.reason, bool(told.retry_after_s)) == (Reason.HELD, True)
    lost = OutcomeUnknown("the log can't be read", transaction_id=uuid4())
    with house.beside(Losing(inner, lost, makes=False)) as stub:
        told = refusal(stub.SignUp, sign_up(request_id=fresh()))
        assert (told.reason, bool(told.retry_after_s)) == (Reason.OUTCOME_UNKNOWN, True)


# --- at once ------------------------------------------------------------------------------------------------------


def test_the_same_request_twice_at_once(house: Home, stub: Stub) -> None:
    """Each of 20 times: the same answer for both, or for one, and RetryInfo for the other; it is made once."""
    for _ in range(20):
        request = sign_up(request_id=fresh())
        answers = in_threads(*[lambda r=request: attempt(stub, r)] * 2)
        made = [answer for answer in answers if isinstance(answer, pb.SignUpResponse)]
        waits = [answer for answer in answers if isinstance(answer, TandemError)]
        assert made
        assert all(answer == made[0] for answer in made)
        assert all(error.retry_after_s and error.reason is Reason.HELD for error in waits), waits
        assert len(made) + len(waits) == 2
        assert stub.SignUp(request) == made[0]
        assert house.count("identity.users", "email = :e", e=request.email) == 1


def test_two_requests_for_one_address_at_once(house: Home, stub: Stub) -> None:
    """Exactly one wins; the other is told that the address is taken, and its person is gone without a trace."""
    for _ in range(10):
        email = address()
        requests = [sign_up(email=email, request_id=fresh()) for _ in range(3)]
        answers = in_threads(*[lambda r=request: attempt(stub, r) for request in requests])
        errors = [answer for answer in answers if isinstance(answer, TandemError)]
        assert len(errors) == 2, answers
        assert {(e.reason, e.metadata.get("field")) for e in errors} == {(Reason.ALREADY_EXISTS, "email")}
    assert house.balanced()


def test_two_requests_for_one_registration_at_once(house: Home, stub: Stub) -> None:
    """One wins. The other is refused, or told to ask again while nobody can know who wins; then it is refused."""
    for _ in range(10):
        taken = registered()
        requests = [sign_up(business=taken, request_id=fresh()) for _ in range(2)]
        answers = in_threads(*[lambda r=request: attempt(stub, r) for request in requests])
        made = [answer for answer in answers if isinstance(answer, pb.SignUpResponse)]
        assert len(made) <= 1
        final = [attempt(stub, request) for request in requests]
        assert sum(isinstance(answer, pb.SignUpResponse) for answer in final) == 1
        (lost,) = [answer for answer in final if isinstance(answer, TandemError)]
        assert lost.metadata["field"] == "registration_number"
    assert house.balanced()


def test_one_invitation_accepted_twice_at_once(house: Home, stub: Stub) -> None:
    """By two requests: one user comes of it, the other is told so."""
    owner = stub.SignUp(sign_up())
    for _ in range(5):
        invitation_id = invite(stub, owner).invitation_id
        requests = [
            pb.AcceptInvitationRequest(request_id=fresh(), invitation_id=invitation_id, person=person()) for _ in "12"
        ]
        answers = in_threads(*[lambda r=r: attempt(stub, r) for r in requests])
        (lost,) = [answer for answer in answers if isinstance(answer, TandemError)]
        assert (lost.reason, lost.metadata["why"]) == (Reason.REFUSED, "accepted")
    assert house.balanced()


# --- helpers ------------------------------------------------------------------------------------------------------


def attempt(stub: Stub, request: Message) -> object:
    """The answer, or the error as a value."""
    method = {"SignUpRequest": stub.SignUp, "AcceptInvitationRequest": stub.AcceptInvitation}[request.DESCRIPTOR.name]
    try:
        return method(request, timeout=20)
    except grpc.RpcError as error:
        return from_rpc_error(error)


def prepared(house: Home) -> int:
    """How many transactions profiles has ever been asked to prepare."""
    with house.profiles.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM twophase.prepared_transaction").scalar_one())
