"""BatchSignUp over real gRPC and PostgreSQL: each answered as if it had been called by itself, most in one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.message import Message
from sqlalchemy.engine import Connection

from identity_stub import bulk
from identity_stub.provisioning import OwnRowsOfMany, T
from identity_stub.provisioning.two_phase import TwoPhase
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import OutcomeUnknown
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles.v1 import person_pb2
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_status
from tandem.runtime.times import Times
from tests.integration.test_identity_house import (
    CANARY,
    Home,
    address,
    business,
    create_user,
    fresh,
    home,
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


def some(count: int) -> list[pb.SignUpRequest]:
    return [sign_up(request_id=fresh()) for _ in range(count)]


def called(stub: Stub, requests: Sequence[pb.SignUpRequest]) -> list[pb.SignUpResponse | TandemError]:
    """The answers of one call, in order; none names anybody."""
    results = stub.BatchSignUp(pb.BatchSignUpRequest(requests=requests), timeout=30).results
    for result in results:
        assert CANARY not in str(result.status), "personal data in an error"
        assert bool(result.status.code) != result.HasField("response")
    return [from_status(result.status) if result.status.code else result.response for result in results]


def made(answers: Sequence[object]) -> list[bool]:
    return [isinstance(answer, pb.SignUpResponse) for answer in answers]


def field_of(answer: object) -> tuple[Reason, str | None]:
    assert isinstance(answer, TandemError), answer
    return answer.reason, answer.metadata.get("field")


# --- what it makes ------------------------------------------------------------------------------------------------


def test_all_of_a_batch_in_one_local_commit(house: Home) -> None:
    """Answers in the order of the requests, both sides made and visible, every decision of one local transaction."""
    requests = some(20)
    answers = called(house.stub, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert isinstance(answer, pb.SignUpResponse)
        assert answer.user.email == request.email
        assert house.person_state(answer.user.person_id) == "active"
        assert house.roles(answer.business.profile_business_id) == {(answer.user.person_id, "owner", "active")}
        assert house.stub.GetUser(pb.GetUserRequest(user_id=answer.user.user_id)).user == answer.user
        assert house.stub.GetBusiness(pb.GetBusinessRequest(business_id=answer.business.business_id)).business == (
            answer.business
        )
    ids = [str(house.transaction_of(request.request_id)) for request in requests]
    assert len(set(ids)) == 20
    with house.identity.connect() as connection:
        times = connection.exec_driver_sql(
            "SELECT decided_at FROM twophase.decision WHERE transaction_id = ANY(%(ids)s::uuid[]) UNION"
            " SELECT created_at FROM identity.requests WHERE transaction_id = ANY(%(ids)s::uuid[])",
            {"ids": ids},
        ).scalars()
        assert len(list(times)) == 1, "each local transaction has a time of its own"


def test_a_batch_is_answered_as_its_sign_ups_are_by_themselves(house: Home) -> None:
    """A repeat of the batch, of a part of it and by single calls: the first answers to the byte; nothing made twice."""
    requests = some(5)
    first = called(house.stub, requests)
    assert made(first) == [True] * 5
    before = prepared(house), house.count("identity.users")
    assert called(house.stub, requests) == first
    assert called(house.stub, requests[3:1:-1]) == [first[3], first[2]]
    assert [house.stub.SignUp(request) for request in requests] == first
    assert (prepared(house), house.count("identity.users")) == before
    alone = sign_up(request_id=fresh())
    (again,) = called(house.stub, [alone])
    assert house.stub.SignUp(alone) == again


def test_without_request_ids_each_is_a_new_one(house: Home) -> None:
    """Nothing tells two of them apart but what they hold."""
    requests = [sign_up() for _ in range(3)]
    assert made(called(house.stub, requests)) == [True] * 3
    assert [field_of(answer) for answer in called(house.stub, requests)] == [(Reason.ALREADY_EXISTS, "email")] * 3


# --- one that is refused takes only itself out --------------------------------------------------------------------


def test_a_registration_number_that_is_taken(house: Home) -> None:
    """Profiles refuses it; the field is named, its address is free, its neighbours are in."""
    taken = registered()
    house.stub.SignUp(sign_up(business=taken))
    requests = some(4)
    requests[1].business.CopyFrom(taken)
    answers = called(house.stub, requests)
    assert made(answers) == [True, False, True, True]
    assert field_of(answers[1]) == (Reason.ALREADY_EXISTS, "registration_number")
    requests[1].business.CopyFrom(registered())
    assert isinstance(called(house.stub, requests)[1], pb.SignUpResponse)


def test_an_address_that_is_taken(house: Home) -> None:
    """By somebody before the batch, or by an earlier one in it, without regard to case: the first one wins."""
    user = house.stub.CreateUser(create_user()).user
    requests = some(5)
    requests[0].email = user.email.swapcase()
    requests[3].email = requests[1].email.swapcase()
    answers = called(house.stub, requests)
    assert made(answers) == [False, True, True, False, True]
    assert [field_of(answers[i]) for i in (0, 3)] == [(Reason.ALREADY_EXISTS, "email")] * 2


def test_one_registration_number_twice_in_a_batch(house: Home) -> None:
    """The first one wins; the other is refused at once, and not told to ask again."""
    requests = some(4)
    requests[3].business.CopyFrom(requests[0].business)
    answers = called(house.stub, requests)
    assert made(answers) == [True, True, True, False]
    assert field_of(answers[3]) == (Reason.ALREADY_EXISTS, "registration_number")
    assert house.balanced()


def test_one_request_id_twice_in_a_batch(house: Home) -> None:
    """The same request: the first one's answer. Another one: REQUEST_REUSED, for it alone. So in a later batch, too."""
    requests = some(4)
    requests[2].CopyFrom(requests[0])
    requests[3].request_id = requests[0].request_id
    answers = called(house.stub, requests)
    assert made(answers) == [True, True, True, False]
    assert answers[2] == answers[0]
    assert field_of(answers[3])[0] is Reason.REQUEST_REUSED
    other = sign_up(request_id=requests[1].request_id)
    later = called(house.stub, [*some(1), other, requests[0]])
    assert made(later) == [True, False, True]
    assert field_of(later[1])[0] is Reason.REQUEST_REUSED
    assert later[2] == answers[0]


def test_one_that_is_malformed(house: Home) -> None:
    """Its fields are named with its place in the batch, for what identity checks and for what only profiles does."""
    requests = some(6)
    requests[1].person.ClearField("name")
    requests[2].person.person_id = str(uuid4())
    requests[3].business.CopyFrom(business(trade_names=[f"{CANARY}\0"]))
    requests[4].request_id = "with blank"
    answers = called(house.stub, requests)
    assert made(answers) == [True, False, False, False, False, True]
    told = [answer for answer in answers if isinstance(answer, TandemError)]
    assert {error.reason for error in told} == {Reason.INVALID_REQUEST}
    assert [[violation.field for violation in error.violations] for error in told] == [
        ["requests[1].person.name"],
        ["requests[2].person.person_id"],
        ["requests[3].business.trade_names[0]"],
        ["requests[4].request_id"],
    ]
    assert made(called(house.stub, [pb.SignUpRequest()])) == [False], "one that is malformed is still answered"


def test_an_attempt_that_died_holds_up_its_repeat_only(house: Home) -> None:
    """ABORTED with RetryInfo for it, its neighbours are in; once it is ended, success."""
    requests = some(3)
    house.died_prepared(requests[1])
    answers = called(house.stub, requests)
    assert made(answers) == [True, False, True]
    assert isinstance(answers[1], TandemError)
    assert (answers[1].reason, bool(answers[1].retry_after_s)) == (Reason.HELD, True)
    house.sweep()
    again = called(house.stub, requests)
    assert made(again) == [True] * 3
    assert (again[0], again[2]) == (answers[0], answers[2])


# --- what hits the batch as a whole -------------------------------------------------------------------------------


def test_profiles_away(house: Home) -> None:
    """UNAVAILABLE with RetryInfo for each, and nothing is made; the same batch succeeds when it is back."""
    requests = some(5)
    before = house.count("identity.users")
    times = Times(prepare_deadline_s=0.3)
    away = Coordinator(house.identity, name="identity", participants={"profiles": "127.0.0.1:1"}, times=times)
    with house.beside(TwoPhase(away)) as other:
        answers = called(other, requests)
    away.close()
    assert all(isinstance(answer, TandemError) and answer.retry_after_s for answer in answers)
    assert {field_of(answer)[0] for answer in answers} == {Reason.UNAVAILABLE}
    assert house.count("identity.users") == before
    assert made(called(house.stub, requests)) == [True] * 5


class Overtaken(TwoPhase):
    """Somebody else takes an address between the votes and the local commit."""

    def __init__(self, coordinator: Coordinator, take: Callable[[], object]) -> None:
        super().__init__(coordinator)
        self._take = take

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        def late(connection: Connection, accepted: Sequence[tuple[int, UUID]]) -> Sequence[T]:
            self._take()
            return own_rows(connection, accepted)

        return super().create_many(profiles, late)


def test_a_local_commit_that_fails_is_made_up_for_one_by_one(house: Home) -> None:
    """A constraint is violated after the votes: whoever is in the way is refused, everybody else is in."""
    requests = some(4)
    taking = Overtaken(house.coordinator, lambda: house.stub.CreateUser(create_user(email=requests[2].email)))
    with house.beside(taking) as stub:
        answers = called(stub, requests)
    assert made(answers) == [True, True, False, True]
    assert field_of(answers[2]) == (Reason.ALREADY_EXISTS, "email")
    assert house.balanced()


def test_the_same_request_overtakes_its_batch(house: Home) -> None:
    """A single call of one of them commits after the votes: both are told the same, and it is made once."""
    requests = some(3)
    singly: list[pb.SignUpResponse] = []
    held: list[TandemError] = []

    def overtake() -> None:
        try:
            singly.append(house.stub.SignUp(requests[1], timeout=20))
        except grpc.RpcError:
            held.append(refusal(house.stub.SignUp, requests[1]))

    with house.beside(Overtaken(house.coordinator, overtake)) as stub:
        answers = called(stub, requests)
    # What the batch has prepared is in the single call's way: whoever asks again gets the one answer there is.
    assert held
    assert not singly
    assert held[0].reason is Reason.HELD
    assert made(answers) == [True] * 3
    assert house.stub.SignUp(requests[1]) == answers[1]


class Lost(TwoPhase):
    """Everything is made, and then nobody can say so: to the batch as a whole, or to each."""

    def __init__(self, coordinator: Coordinator, *, whole: bool) -> None:
        super().__init__(coordinator)
        self._whole = whole

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        super().create_many(profiles, own_rows)
        error = OutcomeUnknown("the log can't be read", transaction_id=uuid4())
        if self._whole:
            raise error
        return [error] * len(profiles)


@pytest.mark.parametrize("whole", [True, False], ids=["batch", "each"])
def test_a_sign_up_that_succeeded_is_never_answered_with_an_error(house: Home, whole: bool) -> None:
    """What each request has made is looked for before it is answered; made once it is."""
    requests = some(3)
    with house.beside(Lost(house.coordinator, whole=whole)) as stub:
        answers = called(stub, requests)
    assert made(answers) == [True] * 3
    assert called(house.stub, requests) == answers
    nameless = [sign_up() for _ in range(2)]
    with house.beside(Lost(house.coordinator, whole=whole)) as stub:
        assert not any(made(called(stub, nameless))), "without a request id nobody can know"
    assert house.balanced()


def test_there_is_a_limit_to_going_one_by_one(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not reached is told to ask again, and gets its answer then; the others have theirs."""
    requests = some(4)
    requests[2].email = requests[0].email
    with monkeypatch.context() as patch:
        patch.setattr(bulk, "SINGLY_S", -1.0)
        answers = called(house.stub, requests)
    assert made(answers) == [True, True, False, True]
    assert isinstance(answers[2], TandemError)
    assert (answers[2].reason, bool(answers[2].retry_after_s)) == (Reason.IN_PROGRESS, True)
    assert field_of(called(house.stub, requests)[2]) == (Reason.ALREADY_EXISTS, "email")


# --- at once ------------------------------------------------------------------------------------------------------


def test_two_batches_that_want_the_same_addresses(house: Home) -> None:
    """In opposite orders, at once: of each address one request is in, and the other is told that it is taken."""
    for _ in range(5):
        emails = [address() for _ in range(10)]
        one = [sign_up(request_id=fresh(), email=email) for email in emails]
        two = [sign_up(request_id=fresh(), email=email) for email in reversed(emails)]
        answers = in_threads(lambda b=one: called(house.stub, b), lambda b=two: called(house.stub, b))
        first, second = answers
        assert isinstance(first, list), first
        assert isinstance(second, list), second
        for mine, theirs in zip(first, reversed(second), strict=True):
            assert sorted(made([mine, theirs])) == [False, True], (mine, theirs)
            lost = mine if isinstance(mine, TandemError) else theirs
            assert field_of(lost) == (Reason.ALREADY_EXISTS, "email")
    assert house.balanced()


def test_the_same_batch_twice_at_once(house: Home) -> None:
    """Each request has one answer, or is told to ask again; it is made once."""
    for _ in range(5):
        requests = some(10)
        answers = in_threads(*[lambda b=requests: called(house.stub, b)] * 2)
        final = called(house.stub, requests)
        assert made(final) == [True] * 10
        for told in answers:
            assert isinstance(told, list), told
            for answer, right in zip(told, final, strict=True):
                assert answer == right or (isinstance(answer, TandemError) and answer.retry_after_s), answer
    assert house.balanced()


# --- limits -------------------------------------------------------------------------------------------------------


def test_how_many_a_batch_may_hold(house: Home) -> None:
    """1 to 100; else the call as a whole is refused, and nothing is made."""
    before = house.count("identity.users")
    for count in (0, 101):
        told = refusal(house.stub.BatchSignUp, pb.BatchSignUpRequest(requests=some(count)))
        assert told.reason is Reason.INVALID_REQUEST
        assert [violation.field for violation in told.violations] == ["requests"]
    assert house.count("identity.users") == before
    assert made(called(house.stub, some(100))) == [True] * 100
    assert house.count("identity.users") == before + 100


def test_how_large_a_batch_may_be(house: Home) -> None:
    """4 MiB; above that, the call as a whole is refused with the reason."""
    long = person(name=person_pb2.PersonName(display_name="x" * 50_000))
    told = refusal(house.stub.BatchSignUp, pb.BatchSignUpRequest(requests=[sign_up(person=long)] * 100))
    assert (told.reason, told.metadata["max_bytes"]) == (Reason.MESSAGE_TOO_LARGE, "4194304")


def prepared(house: Home) -> int:
    """How many transactions profiles has ever been asked to prepare."""
    with house.profiles.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM twophase.prepared_transaction").scalar_one())
