"""Hybrid from end to end: votes by gRPC, decisions by a broker, and what holds where one is late, lost or twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import grpc
import pytest
from prometheus_client import CollectorRegistry
from uuid_utils.compat import uuid7

from identity_stub.provisioning.hybrid import Hybrid
from lab.broker import Broker
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.recovery import Recovery
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.kafka import dead_letters, decisions
from tandem.kafka.consumer import Consumer
from tandem.kafka.messages import outgoing
from tandem.kafka.reading import read_all
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.errors import Reason
from tandem.runtime.times import Times
from tandem.v1 import participant_pb2, transaction_pb2
from tests.integration.test_identity_house import Home, fresh, home, participant_of, refusal, sign_up
from tests.support.kafka import Line, line, run_until
from tests.support.rules import eventually


@dataclass
class Stage:
    """Both services with a broker between them; who brings decisions is called by the test."""

    home: Home
    line: Line
    coordinator: Coordinator
    recovery: Recovery
    stub: identity_service_pb2_grpc.IdentityServiceStub
    participant: Participant
    consumer: Consumer
    registry: CollectorRegistry

    @property
    def topic(self) -> str:
        return decisions.topic(self.line.cluster, "profiles")

    def published(self) -> set[UUID]:
        """The transactions whose decision the broker has."""
        return {
            UUID(m.read(participant_pb2.CommitRequest).key.transaction_id)
            for m in read_all(self.line.cluster, self.topic)
        }

    def undelivered(self) -> int:
        return self.home.count("twophase.decision", "undelivered <> '{}'")

    def publish(self, transaction_id: UUID, coordinator: str = "identity") -> None:
        """A decision as if the relay had sent it (again)."""
        key = transaction_pb2.TransactionKey(coordinator=coordinator, transaction_id=str(transaction_id))
        request = participant_pb2.CommitRequest(key=key, resolved_by=transaction_pb2.RESOLVED_BY_RECOVERY)
        message = outgoing(self.topic, str(transaction_id), request)
        assert self.line.publisher.publish([message], until=time.monotonic() + 10) == [None]

    def consumed(self, outcome: str = "done") -> float:
        return self.line.value("tandem_kafka_consumed_total", topic=self.topic, outcome=outcome)


def staged(house: Home, on: Broker, stack: ExitStack) -> Stage:
    made = stack.enter_context(line(on))
    commits = decisions.PublishedCommits(made.cluster, made.publisher)
    targets = {"profiles": house.profiles_server.address}
    coordinator = Coordinator(house.identity, name="identity", participants=targets, commits=commits)
    stack.callback(coordinator.close)
    registry = CollectorRegistry()
    participant = participant_of(house.profiles, Times(), ParticipantMetrics(registry))
    handle = decisions.committing(lambda keys: participant.commit(keys, ResolvedBy.COORDINATOR))
    consumer = made.consumer(decisions.topic(made.cluster, "profiles"), handle, group="profiles.commits")
    stub = stack.enter_context(house.beside(Hybrid(coordinator)))
    return Stage(house, made, coordinator, Recovery(coordinator), stub, participant, consumer, registry)


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made
        assert made.balanced(), "a test has left something that only one side knows"


@pytest.fixture(scope="module")
def stage(house: Home, broker: Broker) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield staged(house, broker, stack)


def test_the_decision_is_consumed_as_commit(stage: Stage) -> None:
    """A signup is answered when it is decided; the broker has it soon, then it is struck off; consuming makes it
    visible, confirmed, by the coordinator's word."""
    request = sign_up(request_id=fresh())
    answer = stage.stub.SignUp(request)
    assert answer.user.profile_status == pb.PROFILE_STATUS_ACTIVE
    assert stage.home.person_state(answer.user.person_id) == "prepared"
    id_ = stage.home.transaction_of(request.request_id)
    stage.home.marked(id_)
    assert id_ in stage.published()
    run_until(stage.consumer, lambda: stage.home.person_state(answer.user.person_id) == "active")
    assert prepared(stage, id_) == ("committed", True, "coordinator")


def prepared(stage: Stage, id_: UUID) -> tuple[str, bool, str | None]:
    """The participant's row: its state, whether it is confirmed, who brought the outcome."""
    with stage.home.profiles.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT state, confirmed, resolved_by FROM twophase.prepared_transaction WHERE transaction_id = %s",
            (str(id_),),
        ).one()
        return row.state, row.confirmed, row.resolved_by


def test_a_refusal_is_told_at_once(stage: Stage) -> None:
    """Unlike in the saga: the vote is still asked for by RPC."""
    first = sign_up(request_id=fresh())
    answer = stage.stub.SignUp(first)
    run_until(stage.consumer, lambda: stage.home.person_state(answer.user.person_id) == "active")
    told = refusal(stage.stub.SignUp, sign_up(business=first.business))
    assert (told.reason, told.metadata["field"]) == (Reason.ALREADY_EXISTS, "registration_number")


def test_a_vote_waits_for_no_message(stage: Stage) -> None:
    """What is decided and not yet consumed holds its key no longer than a question: refused for good, not HELD."""
    first = sign_up(request_id=fresh())
    answer = stage.stub.SignUp(first)
    assert stage.home.person_state(answer.user.person_id) == "prepared"
    assert refusal(stage.stub.SignUp, sign_up(business=first.business)).reason is Reason.ALREADY_EXISTS
    assert stage.home.person_state(answer.user.person_id) == "active"


def test_a_decision_that_comes_twice_is_done_once(stage: Stage) -> None:
    """The participant's own row is the inbox."""
    request = sign_up(request_id=fresh())
    answer = stage.stub.SignUp(request)
    id_ = stage.home.transaction_of(request.request_id)
    run_until(stage.consumer, lambda: stage.home.person_state(answer.user.person_id) == "active")
    events = stage.home.count("profiles.audit_event")
    before = stage.consumed()
    stage.publish(id_)
    stage.publish(id_)
    run_until(stage.consumer, lambda: stage.consumed() >= before + 2)
    assert stage.home.count("profiles.audit_event") == events
    assert stage.consumed("dead") == 0


def test_a_message_that_is_lost_is_covered_by_the_sweeper(stage: Stage) -> None:
    """Struck off, and never consumed: the sweeper asks the log, as it does for everything in doubt."""
    request = sign_up(request_id=fresh())
    answer = stage.stub.SignUp(request)
    stage.home.marked(stage.home.transaction_of(request.request_id))
    assert stage.home.person_state(answer.user.person_id) == "prepared"
    assert stage.home.sweep() == 1
    assert stage.home.person_state(answer.user.person_id) == "active"
    before = stage.consumed()
    run_until(stage.consumer, lambda: stage.consumed() > before)  # late: nothing to do


def test_a_contradiction_is_counted_and_buried(stage: Stage) -> None:
    """A decision for what profiles never heard of, or from somebody whom it does not believe (R5)."""
    counter = {"reason": "TRANSACTION_UNKNOWN"}
    assert stage.registry.get_sample_value("tandem_contradictions_total", counter) == 0
    stage.publish(uuid7())
    stage.publish(uuid7(), coordinator="stranger")
    run_until(stage.consumer, lambda: stage.consumed("dead") >= 2)
    assert stage.registry.get_sample_value("tandem_contradictions_total", counter) == 1
    reasons = [one.reason for one in dead_letters.letters(partial(read_all, stage.line.cluster), stage.topic)]
    assert sorted(reasons) == ["COORDINATOR_UNKNOWN", "TRANSACTION_UNKNOWN"]


def test_a_broker_that_is_away_costs_no_signup(house: Home, own_broker: Broker) -> None:
    """Decisions stay `undelivered` until the broker is back, readers find everything meanwhile (R10), and nothing is
    asked of profiles by RPC but votes."""
    with ExitStack() as stack:
        stage = staged(house, own_broker, stack)
        first = stage.stub.SignUp(sign_up())
        run_until(stage.consumer, lambda: stage.home.person_state(first.user.person_id) == "active")
        own_broker.stop()
        answers = [stage.stub.SignUp(sign_up()) for _ in range(5)]
        assert stage.undelivered() == 5
        assert stage.recovery.run_once() == 0
        assert {stage.home.person_state(one.user.person_id) for one in answers} == {"prepared"}
        own_broker.start()
        eventually(lambda: stage.recovery.run_once() is not None and not stage.undelivered())
        run_until(
            stage.consumer,
            lambda: {stage.home.person_state(one.user.person_id) for one in answers} == {"active"},
        )


def test_what_a_broker_loses_is_covered(house: Home, own_broker: Broker) -> None:
    """kill -9 of a broker that keeps nothing: decisions that it had acknowledged are gone, topics, too. The sweeper
    ends them all the same, and the next decision travels again."""
    with ExitStack() as stack:
        stage = staged(house, own_broker, stack)
        first = stage.stub.SignUp(sign_up())
        run_until(stage.consumer, lambda: stage.home.person_state(first.user.person_id) == "active")
        lost = stage.stub.SignUp(sign_up())
        eventually(lambda: not stage.undelivered())
        own_broker.kill()
        own_broker.start()
        assert stage.home.person_state(lost.user.person_id) == "prepared"
        assert stage.home.sweep() == 1
        assert stage.home.person_state(lost.user.person_id) == "active"
        again = stage.stub.SignUp(sign_up())
        eventually(lambda: stage.recovery.run_once() is not None and not stage.undelivered(), 30)
        run_until(stage.consumer, lambda: stage.home.person_state(again.user.person_id) == "active", 30)


def test_profiles_that_can_not_do_it_now_gets_it_again(house: Home, broker: Broker) -> None:
    """The participant's database holds the row locked: the message waits at its place, and is done afterwards."""
    with ExitStack() as stack:
        stage = staged(house, broker, stack)
        request = sign_up(request_id=fresh())
        answer = stage.stub.SignUp(request)
        id_ = stage.home.transaction_of(request.request_id)
        with stage.home.profiles.connect() as connection:
            connection.exec_driver_sql(
                "SELECT 1 FROM twophase.prepared_transaction WHERE transaction_id = %s FOR UPDATE", (str(id_),)
            )
            run_until(stage.consumer, lambda: stage.consumed("again"))
            connection.rollback()
        assert stage.home.person_state(answer.user.person_id) == "prepared"
        run_until(stage.consumer, lambda: stage.home.person_state(answer.user.person_id) == "active")


def test_votes_need_profiles(house: Home, broker: Broker) -> None:
    """The other half of the bargain: with profiles down nobody signs up, and nothing stays behind."""
    with ExitStack() as stack:
        made = stack.enter_context(line(broker))
        nowhere = {"profiles": "127.0.0.1:1"}
        commits = decisions.PublishedCommits(made.cluster, made.publisher)
        times = Times(prepare_deadline_s=0.3)
        coordinator = Coordinator(house.identity, name="identity", participants=nowhere, times=times, commits=commits)
        stack.callback(coordinator.close)
        stub = stack.enter_context(house.beside(Hybrid(coordinator)))
        users = house.count("identity.users")
        with pytest.raises(grpc.RpcError) as raised:
            stub.SignUp(sign_up(), timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert house.count("identity.users") == users
