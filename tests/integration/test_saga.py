"""The saga from end to end: gRPC, PostgreSQL, a broker. What a screen sees, what is made once, refused later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from uuid_utils.compat import uuid7

from identity_stub import tables as identity_tables
from identity_stub.explain import Sources, explain
from identity_stub.gauges import AccountGauges
from identity_stub.provisioning.saga import Saga
from identity_stub.settling import Settling, SettlingMetrics
from lab.broker import Broker
from profiles_server import tables as profiles_tables
from profiles_server.creating import Creating
from profiles_server.profiles import ProfilesResource
from tandem.coordinator.participants import Participants
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.kafka import dead_letters
from tandem.kafka.consumer import Consumer
from tandem.kafka.gauges import OutboxGauges
from tandem.kafka.messages import TYPE, Outgoing, outgoing
from tandem.kafka.reading import read_all
from tandem.kafka.relay import Relay
from tandem.profiles.topics import REQUESTED, settled
from tandem.profiles.v1 import business_pb2, events_pb2, person_pb2
from tests.integration.test_identity_house import (
    Home,
    business,
    create_user,
    fresh,
    home,
    invite,
    person,
    registered,
    sign_up,
)
from tests.support.kafka import Line, line, run_until
from tests.support.rules import eventually

ACTIVE, PENDING, REJECTED = pb.PROFILE_STATUS_ACTIVE, pb.PROFILE_STATUS_PENDING, pb.PROFILE_STATUS_REJECTED


@dataclass
class Stage:
    """Both services with what runs between them, each step called by the test."""

    home: Home
    line: Line
    stub: identity_service_pb2_grpc.IdentityServiceStub
    asking: Relay
    creating: Consumer
    telling: Relay
    settling: Consumer
    registry: CollectorRegistry

    @property
    def requested(self) -> str:
        return self.line.cluster.topic(*REQUESTED)

    def user(self, user_id: str) -> pb.User:
        return self.stub.GetUser(pb.GetUserRequest(user_id=user_id)).user

    def business(self, business_id: str) -> pb.Business:
        return self.stub.GetBusiness(pb.GetBusinessRequest(business_id=business_id)).business

    def run(self, *, until: Callable[[], object]) -> None:
        """All four, until that is true."""

        def once() -> object:
            self.asking.run_once()
            self.creating.run_once(0.1)
            self.telling.run_once()
            self.settling.run_once(0.1)
            return until()

        eventually(once)

    def create(self, *, until: Callable[[], object]) -> None:
        """As far as profiles."""
        self.asking.run_once()
        run_until(self.creating, until)

    def inbox(self, outcome: str) -> int:
        return self.home.count("profiles.inbox", "outcome = :outcome", outcome=outcome)

    def events(self) -> list[bytes]:
        """What was asked, as it was published."""
        return [m.value for m in read_all(self.line.cluster, self.requested)]

    def publish(self, *messages: Outgoing) -> None:
        assert self.line.publisher.publish(messages, until=time.monotonic() + 10) == [None] * len(messages)


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


@pytest.fixture(scope="module")
def stage(house: Home, broker: Broker) -> Iterator[Stage]:
    """Shared by the module; what the tests make has names of its own."""
    with line(broker) as made:
        registry = CollectorRegistry()
        settling = Settling(house.identity, SettlingMetrics(registry), source="identity")
        creating = Creating(house.profiles, ProfilesResource(), made.cluster)
        with house.beside(Saga(house.identity, made.cluster, source="identity")) as stub:
            yield Stage(
                house,
                made,
                stub,
                Relay(house.identity, identity_tables.outbox, made.publisher, made.metrics),
                made.consumer(made.cluster.topic(*REQUESTED), creating, group="profiles.requested"),
                Relay(house.profiles, profiles_tables.outbox, made.publisher, made.metrics),
                made.consumer(made.cluster.topic(*settled("identity")), settling, group="identity"),
                registry,
            )


def test_the_account_is_there_at_once_and_says_that_its_profile_is_on_its_way(stage: Stage) -> None:
    """SignUp needs no profiles: pending until the news has come, then active, with what two-phase makes, too."""
    request = sign_up(request_id=fresh())
    answer = stage.stub.SignUp(request)
    assert answer.user.profile_status == answer.business.profile_status == PENDING
    assert stage.user(answer.user.user_id).profile_status == PENDING
    assert stage.home.person_state(answer.user.person_id) is None
    assert stage.stub.SignUp(request) == answer
    stage.run(until=lambda: stage.user(answer.user.user_id).profile_status == ACTIVE)
    assert stage.business(answer.business.business_id).profile_status == ACTIVE
    assert stage.home.person_state(answer.user.person_id) == "active"
    assert stage.home.roles(answer.business.profile_business_id) == {(answer.user.person_id, "owner", "active")}
    assert stage.home.count("profiles.audit_event", "entity_id = :id", id=answer.user.person_id) == 1
    assert stage.home.count("identity.outbox") == stage.home.count("profiles.outbox") == 0
    assert stage.stub.SignUp(request).user.profile_status == ACTIVE


def test_a_refusal_comes_back_and_marks_the_account(stage: Stage) -> None:
    """A registration number that is taken: both accounts show rejected and why, profiles has neither entity."""
    first = stage.stub.SignUp(sign_up())
    taken = stage.stub.SignUp(sign_up(business=business()))
    stage.run(until=lambda: stage.user(taken.user.user_id).profile_status == ACTIVE)
    number = registered("SAGA-1")
    stage.stub.CreateBusiness(pb.CreateBusinessRequest(owner_user_id=first.user.user_id, business=number))
    stage.run(until=lambda: stage.home.count("profiles.business", "registration_number = 'SAGA-1'"))
    late = stage.stub.SignUp(sign_up(business=number))
    assert late.user.profile_status == PENDING
    stage.run(until=lambda: stage.user(late.user.user_id).profile_status == REJECTED)
    assert stage.user(late.user.user_id).profile_reason == "ALREADY_EXISTS"
    assert stage.business(late.business.business_id).profile_status == REJECTED
    assert stage.home.person_state(late.user.person_id) is None
    assert stage.home.count("profiles.business", "state <> 'active'") == 0
    assert stage.registry.get_sample_value("tandem_profiles_settled_total", {"outcome": "rejected"})


def test_explain_tells_a_saga_as_one(stage: Stage) -> None:
    """By address or by the event's id: on its way, then made; rejected with the reason. Never as a transaction."""
    targets = Participants({"profiles": stage.home.profiles_server.address})
    sources = Sources(stage.home.identity, stage.home.coordinator.log, targets, "identity")

    def told(asked: object) -> str:
        (story,) = explain(sources, str(asked))
        return " ".join(story.sentences())

    made, refused = sign_up(), sign_up()
    refused.business.CopyFrom(made.business)
    user = stage.stub.SignUp(made).user
    event_id = stage.home.transaction_of_user(user.user_id)
    assert "on its way" in told(made.email)
    stage.run(until=lambda: stage.user(user.user_id).profile_status == ACTIVE)
    stage.stub.SignUp(refused)
    stage.run(until=lambda: "refused" in told(refused.email))
    assert "(ALREADY_EXISTS)" in told(refused.email)
    for asked in (made.email, user.user_id, event_id):
        assert told(asked).endswith("Profiles has made it. Nothing is left to do.")
        assert f"event {event_id}" in told(asked)
        assert "decision" not in told(asked)
    targets.close()


def test_two_that_want_the_same_in_one_batch(stage: Stage) -> None:
    """One is made, the other rejected, whoever is first: neither waits for the other for ever."""
    number = registered("SAGA-2")
    answers = [stage.stub.SignUp(sign_up(business=number)) for _ in range(3)]

    def statuses() -> list[int]:
        return sorted(stage.user(one.user.user_id).profile_status for one in answers)

    stage.run(until=lambda: PENDING not in statuses())
    assert statuses() == [ACTIVE, REJECTED, REJECTED]
    assert stage.home.count("profiles.business", "registration_number = 'SAGA-2'") == 1


def test_a_message_that_comes_again_or_late_changes_nothing(stage: Stage) -> None:
    """Every event of the topic a second time, in another order, and every answer, too."""
    owner = stage.stub.SignUp(sign_up())
    stage.run(until=lambda: stage.user(owner.user.user_id).profile_status == ACTIVE)
    before = {
        table: stage.home.count(table)
        for table in ("profiles.person", "profiles.business", "profiles.audit_event", "profiles.inbox")
    }
    taken = stage.line.value("tandem_kafka_consumed_total", topic=stage.requested, outcome="done")
    again = [
        Outgoing(m.topic, m.key, m.value, m.headers) for m in reversed(read_all(stage.line.cluster, stage.requested))
    ]
    stage.publish(*again)
    run_until(
        stage.creating,
        lambda: (
            stage.line.value("tandem_kafka_consumed_total", topic=stage.requested, outcome="done") >= taken + len(again)
        ),
    )
    assert {table: stage.home.count(table) for table in before} == before
    assert stage.home.count("profiles.outbox") == 0
    # An answer that contradicts the first one is late: the first one holds.
    event_id = stage.home.transaction_of_user(owner.user.user_id)
    answer = events_pb2.ProfilesSettled(source="identity", event_id=str(event_id), reason="ALREADY_EXISTS")
    topic = stage.line.cluster.topic(*settled("identity"))
    told = stage.line.value("tandem_kafka_consumed_total", topic=topic, outcome="done")
    stage.publish(outgoing(topic, "k", answer))
    run_until(
        stage.settling,
        lambda: stage.line.value("tandem_kafka_consumed_total", topic=topic, outcome="done") > told,
    )
    assert stage.user(owner.user.user_id).profile_status == ACTIVE


def test_a_role_comes_after_its_business(stage: Stage) -> None:
    """Both wait in the outbox at the same time: the same key keeps their order, so nothing is rejected."""
    owner = stage.stub.SignUp(sign_up())
    invitation = invite(stage.stub, owner, email="Invited.Saga@example.org", role=business_pb2.ROLE_DIRECTOR)
    accepted = stage.stub.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_id=invitation.invitation_id, person=person())
    )
    assert accepted.user.profile_status == PENDING
    assert stage.home.count("identity.outbox") == 2
    assert stage.home.count("identity.outbox", "key = :id", id=owner.business.profile_business_id) == 2
    stage.run(until=lambda: stage.user(accepted.user.user_id).profile_status == ACTIVE)
    assert stage.business(owner.business.business_id).profile_status == ACTIVE
    assert (accepted.user.person_id, "director", "active") in stage.home.roles(owner.business.profile_business_id)


def test_many_at_once(stage: Stage) -> None:
    """A batch is one local commit, and an event each."""
    requests = [sign_up(request_id=fresh()) for _ in range(30)]
    answer = stage.stub.BatchSignUp(pb.BatchSignUpRequest(requests=requests))
    assert {result.status.code for result in answer.results} == {0}
    users = [result.response.user for result in answer.results]
    assert {user.profile_status for user in users} == {PENDING}
    stage.run(until=lambda: all(stage.user(user.user_id).profile_status == ACTIVE for user in users))


def test_poison_is_buried_and_what_is_behind_it_goes_on(stage: Stage) -> None:
    """Bytes that are no event, an event without an id, an answer nobody has asked for: each to its dead letters."""
    read = partial(read_all, stage.line.cluster)
    told = stage.line.cluster.topic(*settled("identity"))
    kind = events_pb2.ProfilesRequested.DESCRIPTOR.full_name
    stage.publish(
        Outgoing(stage.requested, "k", b"\xff\xff", {TYPE: kind}),
        Outgoing(stage.requested, "k", b"", {TYPE: "tests.Other"}),
        Outgoing(stage.requested, "k", b"", {}),
        outgoing(stage.requested, "k", events_pb2.ProfilesRequested(source="identity", event_id="no id")),
        outgoing(told, "k", events_pb2.ProfilesSettled(source="identity", event_id=str(uuid7()), created=True)),
        outgoing(told, "k", events_pb2.ProfilesSettled(source="other", event_id=str(uuid7()), created=True)),
    )
    user = stage.stub.CreateUser(create_user()).user
    stage.run(until=lambda: stage.user(user.user_id).profile_status == ACTIVE)
    eventually(lambda: stage.settling.run_once(0.1) or len(dead_letters.letters(read, told)) == 2)
    reasons = [one.reason for one in dead_letters.letters(read, stage.requested)]
    assert sorted(reasons) == ["INVALID_REQUEST", "MALFORMED_MESSAGE", "UNKNOWN_TYPE", "UNKNOWN_TYPE"]
    assert sorted(one.reason for one in dead_letters.letters(read, told)) == ["INVALID_REQUEST", "NOT_FOUND"]


def test_content_that_profiles_refuses_is_a_rejection_and_no_dead_letter(stage: Stage) -> None:
    """An event that can be read, with a write that breaks a rule: whoever asked is told which field."""
    event_id = uuid7()
    event = events_pb2.ProfilesRequested(source="elsewhere", event_id=str(event_id))
    event.writes.add().Pack(person_pb2.Person(name=person_pb2.PersonName(display_name="x")))
    stage.publish(outgoing(stage.requested, "k", event))
    run_until(stage.creating, lambda: stage.home.count("profiles.inbox", "event_id = :id", id=event_id))
    stage.telling.run_once()
    (answer,) = read_all(stage.line.cluster, stage.line.cluster.topic(*settled("elsewhere")))
    told = answer.read(events_pb2.ProfilesSettled)
    assert (told.event_id, told.created, told.reason) == (str(event_id), False, "INVALID_REQUEST")
    assert told.field == "writes[0].person_id"


def test_what_another_holds_waits(stage: Stage) -> None:
    """A transaction in doubt has the registration number: the event waits for its end, and is neither."""
    request = sign_up(request_id=fresh())
    stage.home.died_prepared(request)
    late = stage.stub.SignUp(sign_up(business=request.business))
    again = "tandem_kafka_consumed_total"
    before = stage.line.value(again, topic=stage.requested, outcome="again")
    stage.create(until=lambda: stage.line.value(again, topic=stage.requested, outcome="again") > before)
    assert stage.user(late.user.user_id).profile_status == PENDING
    assert stage.home.sweep() == 1
    stage.run(until=lambda: stage.user(late.user.user_id).profile_status == ACTIVE)


def test_the_gauges_show_what_waits(stage: Stage) -> None:
    """The outbox, and accounts on their way; nothing once all is told."""
    registry = CollectorRegistry()
    registry.register(OutboxGauges(stage.home.identity, identity_tables.outbox))
    registry.register(AccountGauges(stage.home.identity))

    def value(name: str, **labels: str) -> float:
        found = registry.get_sample_value(name, labels)
        assert found is not None
        return found

    user = stage.stub.CreateUser(create_user()).user
    assert value("tandem_outbox_messages") == 1
    assert value("tandem_accounts_without_profile", kind="users", status="pending") == 1
    since = user.create_time.ToNanoseconds() / 1e9
    assert value("tandem_outbox_oldest_timestamp_seconds") == pytest.approx(since, abs=0.01)
    assert value("tandem_oldest_pending_account_timestamp_seconds") == pytest.approx(since, abs=0.01)
    stage.run(until=lambda: stage.user(user.user_id).profile_status == ACTIVE)
    assert value("tandem_outbox_messages") == 0
    assert value("tandem_accounts_without_profile", kind="users", status="pending") == 0
    assert value("tandem_outbox_oldest_timestamp_seconds") > since


def test_both_sides_are_equal_in_the_end(stage: Stage) -> None:
    """Every account that says active has its entity, no other has, and nothing is left under way."""
    stage.run(until=lambda: not stage.home.count("identity.users", "profile_status = 'pending'"))
    with stage.home.profiles.connect() as connection:
        persons = set(connection.execute(sa.text("SELECT person_id FROM profiles.person")).scalars())
    assert stage.home.count("identity.users", "profile_status = 'active'") == len(persons)
    assert stage.home.count("profiles.inbox", "outcome IS NULL") == 0
