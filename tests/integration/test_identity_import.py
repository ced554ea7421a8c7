"""The import over the real API: everything comes in once, however often it is interrupted, by however many clients.

Pairs go in batches; what a batch leaves open is settled by single calls, and nobody can tell the difference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from identity_stub.facts import Facts
from identity_stub.importing import Done, Plan, plan, read_businesses, read_persons, run_import
from identity_stub.provisioning.two_phase import TwoPhase
from identity_stub.servicer import IdentityServicer
from identity_stub.signup import SignUps
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.server import Server
from tests.integration.test_identity_house import Home, create_user, home, sign_up

DATA = Path(__file__).parents[2] / "identity_stub" / "data"
PERSONS, BUSINESSES = read_persons(DATA / "persons.csv"), read_businesses(DATA / "businesses.csv")
ALPHABET = [i for i, row in enumerate(BUSINESSES) if getattr(row, "key", "") in ("GOOGL", "GOOG")]


@pytest.fixture
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made
        assert made.balanced()


def small(persons: int = 10) -> Plan:
    """Eight companies and Alphabet's two share classes."""
    return plan(PERSONS[:persons], BUSINESSES[:8] + [BUSINESSES[i] for i in ALPHABET])


class Counting(IdentityServicer):
    """Counts what it is called with. answers: that this many batches get, before those after them are turned away."""

    def __init__(self, house: Home, *, answers: int | None = None) -> None:
        provisioning = TwoPhase(house.coordinator)
        facts = Facts(house.identity, provisioning, house.profiles_server.address)
        super().__init__(house.identity, SignUps(house.identity, provisioning), facts)
        self.batches: list[int] = []
        self.singles = 0
        self._answers = answers

    def BatchSignUp(self, request: pb.BatchSignUpRequest, context: grpc.ServicerContext) -> pb.BatchSignUpResponse:
        self.batches.append(len(request.requests))
        answer = super().BatchSignUp(request, context)
        if self._answers is not None and len(self.batches) > self._answers:
            raise TandemError("the answer is lost", reason=Reason.UNAVAILABLE)
        return answer

    def SignUp(self, request: pb.SignUpRequest, context: grpc.ServicerContext) -> pb.SignUpResponse:
        self.singles += 1
        return super().SignUp(request, context)


@contextmanager
def listening(servicer: IdentityServicer) -> Iterator[str]:
    """Its address."""
    server = Server("127.0.0.1:0")
    servicer.add_to(server)
    server.start()
    yield server.address
    server.drain(1)


def pairs(count: int) -> Plan:
    """So many pairs of which none waits for another."""
    others = [row for i, row in enumerate(BUSINESSES) if i not in ALPHABET]
    return plan(PERSONS[:count], others[:count])


def test_pairs_are_sent_in_batches(house: Home) -> None:
    """120 pairs are three calls; so are they when the import is run again, and the report is the same."""
    counting = Counting(house)
    with listening(counting) as address:
        for _ in range(2):
            counting.batches.clear()
            seen: list[Done] = []
            result = run_import(address, pairs(120), clients=4, on_done=seen.append)
            assert (sorted(counting.batches), counting.singles) == ([20, 50, 50], 0)
            assert (result.users, result.businesses, result.retries) == (120, 120, 0)
            assert sorted(done.finished for done in seen) == list(range(1, 121))
            assert {done.name for done in seen} == {job.name for job in pairs(120).jobs}
    assert house.count("identity.users") == house.count("profiles.business") == 120
    assert house.count("twophase.decision") == 120


def test_a_batch_whose_answer_is_lost(house: Home) -> None:
    """Its jobs ask by themselves, are told what they have made, and count one repeated call each."""
    counting = Counting(house, answers=1)
    with listening(counting) as address:
        result = run_import(address, pairs(70), clients=1)
    assert (counting.batches, counting.singles) == ([50, 20], 20)
    assert (result.users, result.businesses, result.retries) == (70, 70, 20)
    assert house.count("identity.users") == house.count("twophase.decision") == 70


def test_a_service_that_knows_no_batches(house: Home) -> None:
    """An older one: every pair goes by itself."""

    class Older(Counting):
        def BatchSignUp(self, request: pb.BatchSignUpRequest, context: grpc.ServicerContext) -> pb.BatchSignUpResponse:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")

    older = Older(house)
    with listening(older) as address:
        result = run_import(address, pairs(10))
    assert (older.singles, result.users, result.businesses, result.retries) == (10, 10, 10, 0)


def test_one_of_a_batch_that_is_taken(house: Home) -> None:
    """Its company's number is another's: the person comes in all the same, by a request of its own; a repeat agrees."""
    job = pairs(6).jobs[3]
    assert job.business is not None
    house.stub.SignUp(sign_up(business=job.business.profile))
    for _ in range(2):
        result = run_import(house.server.address, pairs(6))
        assert (result.users, result.businesses) == (6, 5)
        assert result.refused == [(job.business.name, "registration_number")]
        assert (result.failed, result.retries) == ([], 0)


def test_an_import_that_is_interrupted_meets_itself(house: Home) -> None:
    """Whoever shows progress breaks off in the middle of a batch; run again, everything is in, and once."""

    def interrupt(done: Done) -> None:
        if done.finished == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_import(house.server.address, pairs(120), clients=2, on_done=interrupt)
    assert house.count("identity.users") >= 60
    result = run_import(house.server.address, pairs(120), clients=2)
    assert (result.users, result.businesses, result.refused, result.failed) == (120, 120, [], [])
    assert house.count("identity.users") == house.count("twophase.decision", "outcome = 'committed'") == 120


def test_everything_comes_in_and_a_repeat_meets_itself(house: Home) -> None:
    """The second share class is refused by name, its person comes in all the same; so says the second run, too."""
    seen: list[Done] = []
    for _ in range(2):
        seen.clear()
        result = run_import(house.server.address, small(), on_done=seen.append)
        assert (result.users, result.businesses) == (10, 9)
        assert result.refused == [("Alphabet Inc. (Class C)", "registration_number")]
        assert (result.failed, result.stopped, result.left) == ([], "", 0)
        assert sorted(done.finished for done in seen) == list(range(1, 11))
        assert house.count("identity.users") == 10
        assert house.count("profiles.business") == 9


def test_further_businesses_go_to_the_persons_in_turn(house: Home) -> None:
    """Three persons own ten companies but one."""
    result = run_import(house.server.address, small(3))
    assert (result.users, result.businesses) == (3, 9)
    assert result.refused == [("Alphabet Inc. (Class C)", "registration_number")]
    assert house.count("identity.members", "role = 'owner'") == 9


def test_an_address_that_is_taken(house: Home) -> None:
    """The person is refused by name, and so is the business, whose owner is not in; everybody else comes in."""
    house.stub.CreateUser(create_user(email=PERSONS[0].email.upper()))  # type: ignore[union-attr]
    result = run_import(house.server.address, small())
    assert result.refused == [
        ("Maria Cantwell", "email"),
        ("3M", "owner"),
        ("Alphabet Inc. (Class C)", "registration_number"),
    ]
    assert (result.users, result.businesses) == (9, 8)


def test_what_no_repeat_helps(house: Home) -> None:
    """Another file under the same ids: each row is listed with the reason, and nothing else changes."""
    run_import(house.server.address, plan(PERSONS[:2], []))
    result = run_import(house.server.address, plan(PERSONS[:2], BUSINESSES[:2]))
    assert result.failed == [
        ("Maria Cantwell / 3M", "REQUEST_REUSED"),
        ("Amy Klobuchar / A. O. Smith", "REQUEST_REUSED"),
    ]
    assert (result.users, result.done) == (0, 0)


def test_a_service_that_is_away_comes_back(house: Home) -> None:
    """Calls are repeated with the same request id until it is there, and counted."""
    address = house.server.address
    house.server.drain(0)

    def restart() -> None:
        house.server = Server(address)
        provisioning = TwoPhase(house.coordinator)
        facts = Facts(house.identity, provisioning, house.profiles_server.address)
        IdentityServicer(house.identity, SignUps(house.identity, provisioning), facts).add_to(house.server)
        house.server.start()

    timer = threading.Timer(1.0, restart)
    timer.start()
    result = run_import(address, small())
    timer.join()
    house.server.drain(1)
    assert (result.users, result.businesses, result.stopped) == (10, 9, "")
    assert result.retries > 0


def test_an_attempt_that_died_holds_up_its_repeat_only(house: Home) -> None:
    """Its prepared rows are in the way until they are ended: the call waits as it is told and is repeated."""
    job = small().jobs[0]
    assert job.person is not None
    assert job.business is not None
    died = sign_up(request_id=job.request_id, person=job.person.profile, business=job.business.profile)
    house.died_prepared(died)
    timer = threading.Timer(0.5, house.sweep)
    timer.start()
    result = run_import(house.server.address, small(2))
    timer.join()
    assert (result.users, result.businesses, result.failed) == (2, 9, [])
    assert 0 < result.retries < 5


def test_a_service_that_stays_away(house: Home) -> None:
    """It is given up after its patience, the rest is left, and the result says so."""
    house.server.drain(0)
    result = run_import(house.server.address, small(), patience_s=0.5)
    assert result.left == 10
    assert result.stopped.startswith("the service could not be reached")
    assert result.done == 0
