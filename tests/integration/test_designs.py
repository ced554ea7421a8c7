"""What every design keeps, and what each promises besides: one contract, over real gRPC, PostgreSQL and a broker.

`Promise` is the difference between the designs, written down; docs/designs.md says the same in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from prometheus_client import CollectorRegistry

from identity_stub import tables as identity_tables
from identity_stub.provisioning import Provisioning
from identity_stub.provisioning.hybrid import Hybrid
from identity_stub.provisioning.saga import Saga
from identity_stub.provisioning.two_phase import TwoPhase
from identity_stub.provisioning.update_or_create import UpdateOrCreate
from identity_stub.settling import Settling, SettlingMetrics
from lab.broker import Broker
from lab.proxy import Act, Fault, TcpProxy
from profiles_server import tables as profiles_tables
from profiles_server.creating import Creating
from profiles_server.profiles import ProfilesResource
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.recovery import Recovery
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.kafka import decisions
from tandem.kafka.relay import Relay
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.transaction import ResolvedBy
from tandem.profiles.topics import REQUESTED, settled
from tandem.profiles.updates import OnConflict, Updates
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2, profiles_service_pb2_grpc
from tandem.runtime.errors import Reason
from tandem.runtime.times import Times
from tests.integration.test_identity_house import (
    Home,
    address,
    business,
    create_user,
    fresh,
    home,
    invite,
    participant_of,
    person,
    refusal,
    registered,
    sign_up,
)
from tests.support.house import in_threads
from tests.support.kafka import Line, Running, line
from tests.support.rules import eventually

ABSENT, PENDING, ACTIVE, REJECTED = (
    pb.PROFILE_STATUS_ABSENT,
    pb.PROFILE_STATUS_PENDING,
    pb.PROFILE_STATUS_ACTIVE,
    pb.PROFILE_STATUS_REJECTED,
)


@dataclass(frozen=True)
class Promise:
    """What a design promises beyond the contract.

    together: an account is never seen without its profile, nor the other way round. refuses: whatever profiles refuses
    is refused to the caller, and no account is made. alone: accounts are made while profiles is down. catches_up: their
    profiles come by themselves when it is back. roles: a role in an older business reaches profiles, too.
    """

    together: bool
    refuses: bool
    alone: bool
    catches_up: bool
    roles: bool


@dataclass
class Bench:
    """One design under test."""

    design: str
    promise: Promise
    house: Home
    stub: identity_service_pb2_grpc.IdentityServiceStub
    wire: TcpProxy
    messaging: Messaging | None
    _profiles: profiles_service_pb2_grpc.ProfilesServiceStub = field(repr=False)

    @contextmanager
    def without_profiles(self) -> Iterator[None]:
        """Identity can't reach profiles, and profiles takes up no message."""
        self.wire.set(Fault(Act.CUT))
        try:
            with ExitStack() as stack:
                if self.messaging is not None:
                    stack.enter_context(self.messaging.profiles.paused())
                yield
        finally:
            self.wire.heal()

    def user(self, user_id: str) -> pb.User:
        return self.stub.GetUser(pb.GetUserRequest(user_id=user_id), timeout=20).user

    def person(self, person_id: str) -> person_pb2.Person:
        """As a reader sees it; version 0 where there is none."""
        request = profiles_service_pb2.GetPersonRequest(person_id=person_id, allow_missing=True)
        return self._profiles.GetPerson(request, timeout=20).person

    def business(self, entity_id: str) -> business_pb2.Business:
        request = profiles_service_pb2.GetBusinessRequest(business_id=entity_id, allow_missing=True)
        return self._profiles.GetBusiness(request, timeout=20).business

    @property
    def updates(self) -> Updates:
        return Updates(self._profiles)

    def quiet(self, answer: pb.SignUpResponse | pb.CreateUserResponse) -> None:
        """Waits until nothing is on its way any more, neither news nor a decision. No reader brings it about."""
        eventually(lambda: self.user(answer.user.user_id).profile_status is not PENDING)
        self.house.marked()
        eventually(lambda: self.house.person_state(answer.user.person_id) != "prepared")


@dataclass
class Messaging:
    """What runs between the services over a broker. profiles: that part of it which is down with profiles."""

    line: Line
    profiles: Running


@dataclass
class Site:
    """What a design is built from. target: profiles, over the wire. stack: ends what it needs besides."""

    house: Home
    target: str
    stack: ExitStack
    messaging: Messaging | None

    def coordinator(self, commits: decisions.PublishedCommits | None = None) -> Coordinator:
        return Coordinator(
            self.house.identity, name="identity", participants={"profiles": self.target}, commits=commits
        )

    @property
    def line(self) -> Line:
        assert self.messaging is not None
        return self.messaging.line


def _two_phase(site: Site) -> Provisioning:
    return TwoPhase(site.coordinator())


def _hybrid(site: Site) -> Provisioning:
    coordinator = site.coordinator(decisions.PublishedCommits(site.line.cluster, site.line.publisher))
    site.stack.enter_context(Running(Recovery(coordinator).run_once))
    return Hybrid(coordinator)


def _saga(site: Site) -> Provisioning:
    return Saga(site.house.identity, site.line.cluster, source="identity")


def _update_or_create(site: Site) -> Provisioning:
    return UpdateOrCreate(site.house.identity, site.target)


Build = Callable[[Site], Provisioning]

DESIGNS: dict[str, tuple[Build, Promise]] = {
    "two-phase": (_two_phase, Promise(together=True, refuses=True, alone=False, catches_up=False, roles=True)),
    "hybrid": (_hybrid, Promise(together=True, refuses=True, alone=False, catches_up=False, roles=True)),
    "saga": (_saga, Promise(together=False, refuses=False, alone=True, catches_up=True, roles=True)),
    "update-or-create": (
        _update_or_create,
        Promise(together=False, refuses=False, alone=True, catches_up=False, roles=False),
    ),
}
"""Design → how it is built before a house, and what it promises."""


Works = list[Callable[[], object]]
WAIT_S = 0.1


def _commits(house: Home, on: Line) -> tuple[Works, Works]:
    """The decisions come to profiles; identity's part is the driver's, and recovery's."""
    participant = participant_of(house.profiles, Times(), ParticipantMetrics(CollectorRegistry()))
    handle = decisions.committing(lambda keys: participant.commit(keys, ResolvedBy.COORDINATOR))
    commits = on.consumer(decisions.topic(on.cluster, "profiles"), handle, group="profiles.commits")
    return [partial(commits.run_once, WAIT_S)], []


def _events(house: Home, on: Line) -> tuple[Works, Works]:
    """What is asked for goes to profiles, and comes back as what came of it."""
    creating = Creating(house.profiles, ProfilesResource(), on.cluster)
    settling = Settling(house.identity, SettlingMetrics(CollectorRegistry()), source="identity")
    requested = on.consumer(on.cluster.topic(*REQUESTED), creating, group="profiles.requested")
    answers = on.consumer(on.cluster.topic(*settled("identity")), settling, group="identity")
    asking = Relay(house.identity, identity_tables.outbox, on.publisher, on.metrics)
    telling = Relay(house.profiles, profiles_tables.outbox, on.publisher, on.metrics)
    return (
        [partial(requested.run_once, WAIT_S), telling.run_once],
        [asking.run_once, partial(answers.run_once, WAIT_S)],
    )


MESSAGES = {"hybrid": _commits, "saga": _events}
"""Design → what it has done all the time, in profiles' process and in identity's."""


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


@pytest.fixture(scope="module", params=DESIGNS)
def design(request: pytest.FixtureRequest) -> str:
    """One after the other: consumers that idle are dear with the broker that tests have, which never lets them wait."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def messaging(house: Home, design: str, broker: Broker) -> Iterator[Messaging]:
    """Each part in a thread, as in its process; one for all tests of a design, since groups take time to gather."""
    with line(broker, partitions=1) as on:  # one: what was asked for before has come before
        theirs, ours = MESSAGES[design](house, on)
        with Running(*theirs) as profiles, Running(*ours):
            yield Messaging(on, profiles)


@pytest.fixture
def bench(request: pytest.FixtureRequest, house: Home, design: str) -> Iterator[Bench]:
    build, promise = DESIGNS[design]
    # The others must pass without a broker.
    messaging: Messaging | None = request.getfixturevalue("messaging") if design in MESSAGES else None
    with (
        TcpProxy(house.profiles_server.address) as wire,
        grpc.insecure_channel(house.profiles_server.address) as direct,
    ):
        with ExitStack() as stack:
            provisioning = build(Site(house, wire.address, stack, messaging))
            stub = stack.enter_context(house.beside(provisioning))
            profiles = profiles_service_pb2_grpc.ProfilesServiceStub(direct)
            yield Bench(design, promise, house, stub, wire, messaging, profiles)
        provisioning.close()


# --- what every design keeps --------------------------------------------------------------------------------------


def test_a_signup_has_its_profile_in_the_end(bench: Bench) -> None:
    """Its person, its business and the owner's role, under the names that anybody can compute."""
    request = sign_up(request_id=fresh())
    answer = bench.stub.SignUp(request, timeout=20)
    bench.quiet(answer)
    found = bench.business(answer.business.profile_business_id)
    assert found.legal_name == request.business.legal_name
    assert [(one.person_id, one.role) for one in found.people] == [(answer.user.person_id, business_pb2.ROLE_OWNER)]
    assert bench.person(answer.user.person_id).name == request.person.name
    assert bench.user(answer.user.user_id).profile_status == ACTIVE
    account = bench.stub.GetBusiness(pb.GetBusinessRequest(business_id=answer.business.business_id)).business
    assert account.profile_status == ACTIVE


def test_whoever_was_told_active_can_be_read(bench: Bench) -> None:
    """An answer that says so is true at once, in any design."""
    answer = bench.stub.SignUp(sign_up(request_id=fresh()), timeout=20)
    if answer.user.profile_status == ACTIVE:
        assert bench.person(answer.user.person_id).version == 1
    if answer.business.profile_status == ACTIVE:
        assert bench.business(answer.business.profile_business_id).version == 1
    assert bench.promise.together <= (answer.user.profile_status == ACTIVE)
    bench.quiet(answer)


def test_a_repeat_is_no_second_signup(bench: Bench) -> None:
    """Five at the same time with one request id: one account, one profile, one answer."""
    request = sign_up(request_id=fresh(), business=registered())

    def call() -> object:
        while True:
            try:
                return bench.stub.SignUp(request, timeout=20)
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)

    answers = in_threads(*[call] * 5)
    assert all(isinstance(answer, pb.SignUpResponse) for answer in answers), answers
    (user_id,) = {answer.user.user_id for answer in answers}  # type: ignore[attr-defined]
    bench.quiet(answers[0])  # type: ignore[arg-type]
    assert bench.house.count("identity.users", "email = :email", email=request.email) == 1
    assert bench.user(user_id).profile_status == ACTIVE


def test_an_address_that_is_taken_leaves_no_profile(bench: Bench) -> None:
    """Refused by identity itself: there is nothing to be cleaned up on the other side."""
    email = address()
    bench.quiet(bench.stub.CreateUser(create_user(email=email), timeout=20))
    before = bench.house.count("profiles.person")
    assert refusal(bench.stub.CreateUser, create_user(email=email)).reason is Reason.ALREADY_EXISTS
    bench.quiet(bench.stub.CreateUser(create_user(), timeout=20))  # what was asked for before it has come by now, too
    assert bench.house.count("profiles.person") == before + 1


def test_one_address_wanted_by_several_at_once(bench: Bench) -> None:
    """One gets it. What was under way for the others when the local commit refused them leaves no profile either."""
    bench.quiet(bench.stub.CreateUser(create_user(), timeout=20))
    before = bench.house.count("profiles.person")
    email = address()

    def call() -> object:
        return bench.stub.CreateUser(create_user(email=email), timeout=20)

    answers = in_threads(*[call] * 4)
    assert sum(isinstance(answer, pb.CreateUserResponse) for answer in answers) == 1, answers
    bench.quiet(bench.stub.CreateUser(create_user(), timeout=20))
    eventually(lambda: bench.house.count("profiles.person") == before + 2)


def test_many_at_once(bench: Bench) -> None:
    """Each has its own profile in the end, and each repeat finds it."""
    requests = [sign_up(request_id=fresh()) for _ in range(20)]
    batch = pb.BatchSignUpRequest(requests=requests)
    answer = bench.stub.BatchSignUp(batch, timeout=60)
    assert [one.status.code for one in answer.results] == [0] * 20
    for one in answer.results:
        bench.quiet(one.response)
        assert bench.person(one.response.user.person_id).version == 1
        assert len(bench.business(one.response.business.profile_business_id).people) == 1
    again = bench.stub.BatchSignUp(batch, timeout=60)
    assert [one.response.user.user_id for one in again.results] == [one.response.user.user_id for one in answer.results]


# --- what each promises besides -----------------------------------------------------------------------------------


def test_what_profiles_refuses(bench: Bench) -> None:
    """A registration that another business has. `refuses`: to the caller, and there is no account; else: `rejected`."""
    taken = registered()
    bench.quiet(bench.stub.SignUp(sign_up(request_id=fresh(), business=taken), timeout=20))
    request = sign_up(request_id=fresh(), business=taken)
    if bench.promise.refuses:
        error = refusal(bench.stub.SignUp, request)
        assert (error.reason, error.metadata["field"]) == (Reason.ALREADY_EXISTS, "registration_number")
        assert not bench.house.count("identity.users", "email = :email", email=request.email)
        return
    answer = bench.stub.SignUp(request, timeout=20)
    bench.quiet(answer)
    account = bench.stub.GetBusiness(pb.GetBusinessRequest(business_id=answer.business.business_id)).business
    assert (account.profile_status, account.profile_reason) == (REJECTED, "ALREADY_EXISTS")
    assert bench.business(answer.business.profile_business_id).version == 0


def test_while_profiles_is_down(bench: Bench) -> None:
    """`alone`: the account is made; else it is refused with RetryInfo, and nothing is made on either side."""
    request = sign_up(request_id=fresh())
    persons = bench.house.count("profiles.person")
    with bench.without_profiles():
        if not bench.promise.alone:
            error = refusal(bench.stub.SignUp, request)
            assert error.retry_after_s, error
            assert not bench.house.count("identity.users", "email = :email", email=request.email)
            assert bench.house.count("profiles.person") == persons
        else:
            answer = bench.stub.SignUp(request, timeout=20)
            assert answer.user.profile_status == (PENDING if bench.promise.catches_up else ABSENT)
            assert bench.person(answer.user.person_id).version == 0
    if bench.promise.catches_up:  # it is back, and nobody asks again
        bench.quiet(answer)
        assert bench.person(answer.user.person_id).version == 1
    repeated = bench.stub.SignUp(request, timeout=20)  # the same request ends well
    if not bench.promise.alone or bench.promise.catches_up:
        bench.quiet(repeated)
        assert bench.person(repeated.user.person_id).version == 1
        assert bench.house.count("profiles.person") == persons + 1
        return
    # Nobody makes it but the next update, by whoever holds the facts.
    assert repeated.user.profile_status == ABSENT
    nobody = bench.person(repeated.user.person_id)
    assert nobody == person_pb2.Person(person_id=repeated.user.person_id)
    made = bench.updates.person(nobody, person(person_id=nobody.person_id), on_conflict=OnConflict.MERGE)
    assert made.version == 1


def test_a_role_in_an_older_business(bench: Bench) -> None:
    """`roles`: it is in profiles, too; else in identity only, and the person is made all the same."""
    owner = bench.stub.SignUp(sign_up(request_id=fresh(), business=business()), timeout=20)
    bench.quiet(owner)
    invitation = invite(bench.stub, owner, role=business_pb2.ROLE_DIRECTOR)
    answer = bench.stub.AcceptInvitation(
        pb.AcceptInvitationRequest(request_id=fresh(), invitation_id=invitation.invitation_id, person=person()),
        timeout=20,
    )
    eventually(lambda: bench.person(answer.user.person_id).version == 1)
    people = {one.person_id for one in bench.business(owner.business.profile_business_id).people}
    assert (answer.user.person_id in people) is bench.promise.roles
    assert len(answer.business.members) == 2


def test_together(bench: Bench) -> None:
    """`together`: the account is never there without its profile, however the local commit ends; else it is first."""
    request = create_user(request_id=fresh())
    with bench.without_profiles():
        try:
            bench.stub.CreateUser(request, timeout=20)
        except grpc.RpcError:
            assert bench.promise.together or not bench.promise.alone
    accounts = bench.house.count("identity.users", "email = :email", email=request.email)
    assert accounts == (0 if bench.promise.together else 1)


def test_two_concurrent_updates_lose_nothing(bench: Bench) -> None:
    """Profiles is the same in every design: of two that have read the same version, one is told that it lost."""
    answer = bench.stub.SignUp(sign_up(request_id=fresh()), timeout=20)
    bench.quiet(answer)
    read = bench.person(answer.user.person_id)
    first, second = person_pb2.Person(), person_pb2.Person()
    for one, paths in ((first, ["GB"]), (second, ["FR"])):
        one.CopyFrom(read)
        one.nationalities.extend(paths)
    stub = bench._profiles
    mask = FieldMask(paths=["nationalities"])
    stub.UpdatePerson(profiles_service_pb2.UpdatePersonRequest(person=first, update_mask=mask), timeout=20)
    lost = profiles_service_pb2.UpdatePersonRequest(person=second, update_mask=mask)
    assert refusal(stub.UpdatePerson, lost).reason is Reason.VERSION_MISMATCH
    assert bench.person(read.person_id).nationalities == ["GB"]
