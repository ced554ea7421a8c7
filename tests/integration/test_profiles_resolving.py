"""R10 in profiles: a read resolves what it meets, and an update acts like a reader.

The coordinator's answers are scripted; the same with a real decision log is in tests/e2e and in the identity tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from sqlalchemy.engine import Engine

from profiles_server.resolving import Reader
from profiles_server.servicer import ProfilesServicer
from tandem.participant.participant import Ask, Participant, Yes
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import RESERVED, ParticipantServicer
from tandem.participant.tables import prepared_transaction
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.server import Server
from tandem.runtime.status import from_rpc_error, from_status
from tandem.runtime.wire import key_to
from tandem.v1 import participant_pb2_grpc, transaction_pb2
from tandem.v1.participant_pb2 import AbortRequest, PrepareRequest
from tests.integration.profiles_support import Client, ask, business, create, person, registered, relation
from tests.support.rules import OUTCOMES, ScriptedCoordinator, eventually

pytest_plugins = ["tests.integration.profiles_fixtures"]

DOUBTFUL = ("IN_PROGRESS", "EXPIRED", "WRONG_LOG")


@pytest.fixture
def answers(profiles_coordinator: ScriptedCoordinator) -> Iterator[ScriptedCoordinator]:
    """The coordinator, forgetful of the test before and after."""

    def forget() -> None:
        profiles_coordinator.outcome, profiles_coordinator.error = OUTCOMES.Value("OUTCOME_UNDECIDED"), None
        profiles_coordinator.meanwhile = lambda: None
        profiles_coordinator.asked.clear()
        profiles_coordinator.fenced.clear()

    forget()
    yield profiles_coordinator
    forget()


@pytest.fixture
def prepared(profiles_participant: Participant) -> Callable[..., Ask]:
    """Prepares a transaction of these writes."""

    def prepare(*writes: Any) -> Ask:
        asked = ask(*writes)
        (vote,) = profiles_participant.prepare([asked])
        assert isinstance(vote, Yes)
        return asked

    return prepare


def told(call: Callable[..., Any], request: Any) -> TandemError:
    """What a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=10)
    return from_rpc_error(caught.value)


def by_whom(engine: Engine, asked: Ask) -> tuple[str, str | None]:
    """The state of a transaction, and who brought it."""
    t = prepared_transaction
    with engine.connect() as connection:
        row = connection.execute(
            sa.select(t.c.state, t.c.resolved_by).where(t.c.transaction_id == asked.key.transaction_id)
        ).one()
    return row.state, row.resolved_by


def test_r10_a_reader_rolls_forward(
    profiles_client: Client, profiles_engine: Engine, answers: ScriptedCoordinator, prepared: Callable[..., Ask]
) -> None:
    """R10: "committed → roll the whole transaction forward and return it", not only what was asked for."""
    ada, engines = person(), business()
    asked = prepared(ada, engines)
    answers.outcome = OUTCOMES.Value("OUTCOME_COMMITTED")
    found = profiles_client.profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id), timeout=10).person
    assert (found.person_id, found.version) == (ada.person_id, 1)
    assert (len(answers.asked), answers.fenced) == (1, [False]), "a reader asks once, without a fence"
    assert by_whom(profiles_engine, asked) == ("committed", "reader")
    get_business = pb.GetBusinessRequest(business_id=engines.business_id)
    assert profiles_client.profiles.GetBusiness(get_business, timeout=10).business.version == 1
    assert len(answers.asked) == 1, "nothing is left to ask for"


def test_r10_a_reader_meets_a_relation(
    profiles_client: Client,
    profiles_participant: Participant,
    answers: ScriptedCoordinator,
    prepared: Callable[..., Ask],
) -> None:
    """R10: "a reader (of an entity or its relations)": a role that was acknowledged is never missed."""
    engines = business()
    create(profiles_participant, engines)
    role = relation(engines.business_id)
    prepared(role)
    get = pb.GetBusinessRequest(business_id=engines.business_id)
    assert not profiles_client.profiles.GetBusiness(get, timeout=10).business.people, "undecided: not there yet"
    answers.outcome = OUTCOMES.Value("OUTCOME_IN_PROGRESS")
    assert told(profiles_client.profiles.GetBusiness, get).reason is Reason.IN_DOUBT, "nobody can say who is in it"
    answers.outcome = OUTCOMES.Value("OUTCOME_COMMITTED")
    people = profiles_client.profiles.GetBusiness(get, timeout=10).business.people
    assert [each.person_id for each in people] == [role.person_id]


def test_r10_a_reader_of_what_was_aborted(
    profiles_client: Client, profiles_engine: Engine, answers: ScriptedCoordinator, prepared: Callable[..., Ask]
) -> None:
    """ABORTED is applied too, and the answer is NOT_FOUND, or empty where that was asked for."""
    ada = person()
    asked = prepared(ada)
    answers.outcome = OUTCOMES.Value("OUTCOME_ABORTED")
    get = pb.GetPersonRequest(person_id=ada.person_id, allow_missing=True)
    assert profiles_client.profiles.GetPerson(get, timeout=10).person.version == 0
    assert by_whom(profiles_engine, asked) == ("aborted", "reader")
    get.allow_missing = False
    assert told(profiles_client.profiles.GetPerson, get).reason is Reason.NOT_FOUND


def test_r10_undecided_is_asked_again(
    profiles_client: Client, answers: ScriptedCoordinator, prepared: Callable[..., Ask]
) -> None:
    """R10: "undecided → NOT_FOUND (never cached, never shared with a read that came later)"."""
    ada = person()
    asked = prepared(ada)
    get = pb.GetPersonRequest(person_id=ada.person_id)
    for _ in range(3):
        assert told(profiles_client.profiles.GetPerson, get).reason is Reason.NOT_FOUND
    assert answers.asked == [[str(asked.key.transaction_id)]] * 3


def test_r10_a_later_read_does_not_share_an_earlier_answer(
    profiles_client: Client, answers: ScriptedCoordinator, prepared: Callable[..., Ask]
) -> None:
    """While a read waits for UNDECIDED the decision falls; a read that begins after it finds the person."""
    ada = person()
    prepared(ada)
    get = pb.GetPersonRequest(person_id=ada.person_id)
    asked, decided = threading.Event(), threading.Event()
    undecided, answers.outcome = answers.outcome, OUTCOMES.Value("OUTCOME_COMMITTED")
    first = [True]

    def meanwhile() -> None:
        if first.pop() if first else False:
            answers.outcome = undecided
            asked.set()
            decided.wait(10)

    answers.meanwhile = meanwhile
    early = profiles_client.profiles.GetPerson.future(get, timeout=10)
    assert asked.wait(10)
    answers.outcome = OUTCOMES.Value("OUTCOME_COMMITTED")
    assert profiles_client.profiles.GetPerson(get, timeout=10).person.version == 1
    decided.set()
    assert early.result().person.version == 1


@pytest.mark.parametrize("trouble", [*DOUBTFUL, "error", "away"])
def test_r10_no_answer_is_in_doubt(
    profiles_client: Client,
    profiles_participant: Participant,
    answers: ScriptedCoordinator,
    prepared: Callable[..., Ask],
    trouble: str,
) -> None:
    """R10: "no answer → UNAVAILABLE IN_DOUBT", with a time to retry after; a batch's other items are answered."""
    ada, grace = person(), person()
    asked = prepared(ada)
    create(profiles_participant, grace)
    profiles = profiles_client.profiles
    if trouble in DOUBTFUL:
        answers.outcome = OUTCOMES.Value(f"OUTCOME_{trouble}")
    elif trouble == "error":
        answers.error = TandemError("nothing works", reason=Reason.DATABASE_UNAVAILABLE)
    else:
        answers.stop()
    try:
        error = told(profiles.GetPerson, pb.GetPersonRequest(person_id=ada.person_id, allow_missing=True))
        assert (error.reason, error.transaction_id) == (Reason.IN_DOUBT, asked.key.transaction_id)
        assert error.retry_after_s == 1.0
        ids = [ada.person_id, grace.person_id, str(uuid4())]
        results = profiles.BatchGetPersons(pb.BatchGetPersonsRequest(person_ids=ids), timeout=10).results
        assert [result.status.code for result in results] == [code_pb2.UNAVAILABLE, code_pb2.OK, code_pb2.NOT_FOUND]
        assert from_status(results[0].status).reason is Reason.IN_DOUBT
        ada.version = 1
        change = pb.UpdatePersonRequest(person=ada, update_mask={"paths": ["name"]})
        assert told(profiles.UpdatePerson, change).reason is Reason.IN_DOUBT
    finally:
        if trouble == "away":
            answers.start()
            # A channel that has failed tries again once a second: the next test is not to meet that.
            get = pb.GetPersonRequest(person_id=ada.person_id)
            eventually(lambda: told(profiles.GetPerson, get).reason is Reason.NOT_FOUND)


def test_r10_an_update_acts_like_a_reader(
    profiles_client: Client, profiles_engine: Engine, answers: ScriptedCoordinator, prepared: Callable[..., Ask]
) -> None:
    """R10: "undecided → ABORTED with RetryInfo"; committed: it is rolled forward, and updated."""
    ada = person()
    asked = prepared(ada)
    ada.version, ada.name.display_name = 1, "Countess of Lovelace"
    change = pb.UpdatePersonRequest(person=ada, update_mask={"paths": ["name.display_name"]})
    with pytest.raises(grpc.RpcError) as caught:
        profiles_client.profiles.UpdatePerson(change, timeout=10)
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.reason, error.retry_after_s) == (grpc.StatusCode.ABORTED, Reason.HELD, 1.0)
    answers.outcome = OUTCOMES.Value("OUTCOME_COMMITTED")
    assert profiles_client.profiles.UpdatePerson(change, timeout=10).person.version == 2
    assert by_whom(profiles_engine, asked) == ("committed", "reader")


@pytest.mark.parametrize(("outcome", "reason"), [("COMMITTED", Reason.ALREADY_EXISTS), ("ABORTED", None)])
def test_r10_an_update_that_needs_what_is_held(
    profiles_client: Client,
    profiles_participant: Participant,
    answers: ScriptedCoordinator,
    prepared: Callable[..., Ask],
    outcome: str,
    reason: Reason | None,
) -> None:
    """A registration number that a prepared business has: free, or taken for good, once its decision is known."""
    mine, number = business(), uuid4().hex[:10].upper()
    create(profiles_participant, mine)
    prepared(registered(number))
    mine.version, mine.registration_country, mine.registration_number = 1, "GB", number
    paths = ["registration_country", "registration_number"]
    change = pb.UpdateBusinessRequest(business=mine, update_mask={"paths": paths})
    assert told(profiles_client.profiles.UpdateBusiness, change).reason is Reason.HELD
    answers.outcome = OUTCOMES.Value(f"OUTCOME_{outcome}")
    if reason is None:
        assert profiles_client.profiles.UpdateBusiness(change, timeout=10).business.version == 2
    else:
        assert told(profiles_client.profiles.UpdateBusiness, change).reason is reason


@pytest.mark.parametrize("outcome", ["IN_PROGRESS", "WRONG_LOG"])
def test_r10_an_update_in_doubt(
    profiles_client: Client,
    profiles_participant: Participant,
    answers: ScriptedCoordinator,
    prepared: Callable[..., Ask],
    outcome: str,
) -> None:
    """Who holds the registration number can't be found out now: that is IN_DOUBT, not HELD."""
    mine, number = business(), uuid4().hex[:10].upper()
    create(profiles_participant, mine)
    prepared(registered(number))
    mine.version, mine.registration_country, mine.registration_number = 1, "GB", number
    paths = ["registration_country", "registration_number"]
    answers.outcome = OUTCOMES.Value(f"OUTCOME_{outcome}")
    change = pb.UpdateBusinessRequest(business=mine, update_mask={"paths": paths})
    assert told(profiles_client.profiles.UpdateBusiness, change).reason is Reason.IN_DOUBT


def test_readers_of_a_hung_coordinator_starve_no_vote(
    profiles_engine: Engine,
    profiles_participant: Participant,
    answers: ScriptedCoordinator,
    prepared: Callable[..., Ask],
) -> None:
    """They may take every worker that reads have; votes and endings have workers of their own."""
    ada, going_on = person(), threading.Event()
    prepared(ada)
    answers.meanwhile = lambda: going_on.wait(20)
    resolver = Resolver(profiles_participant, {"identity": answers.address, "other": answers.address})
    server = Server("127.0.0.1:0", workers=2, reserved=RESERVED)
    ParticipantServicer(profiles_participant, resolver).add_to(server)
    ProfilesServicer(Reader(profiles_engine, resolver)).add_to(server)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        profiles = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
        readers = [profiles.GetPerson.future(pb.GetPersonRequest(person_id=ada.person_id), timeout=20) for _ in "1234"]
        eventually(lambda: len(answers.asked) >= 2)
        asked = ask(person())
        request = PrepareRequest(
            key=key_to(asked.key),
            log_id=str(asked.log_id),
            ttl=Duration(seconds=60),
            driver_deadline=Duration(seconds=7),
            writes=asked.writes,
        )
        stub = participant_pb2_grpc.ParticipantServiceStub(channel)
        assert stub.Prepare(request, timeout=20).participant == "profiles"
        stub.Abort(AbortRequest(key=key_to(asked.key), resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR), timeout=20)
        assert not any(reader.done() for reader in readers[2:])
        going_on.set()
        for reader in readers:
            assert reader.exception(timeout=20) is not None
    server.drain(1)
    resolver.close()
