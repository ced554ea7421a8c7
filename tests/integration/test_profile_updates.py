"""The client that loses a race: it fails, merges or overwrites, as its caller asked, over real gRPC and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tandem.profiles.client import open_profiles
from tandem.profiles.updates import Conflicting, OnConflict, Updates
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.server import Server
from tests.integration.profiles_support import person, registered

pytest_plugins = ["tests.integration.profiles_fixtures"]


class Losing:
    """The stub, whose next update gets through while its answer is lost."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.loses = False
        self.sent = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stub, name)

    def UpdatePerson(self, request: pb.UpdatePersonRequest, timeout: float) -> pb.UpdatePersonResponse:
        self.sent += 1
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        answer: pb.UpdatePersonResponse = self.stub.UpdatePerson(request, timeout=timeout)
        if self.loses:
            self.loses = False
            raise Lost
        return answer


class Lost(grpc.RpcError):
    """As if the connection had ended."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.fixture
def stub(creating_server: Server) -> Iterator[Losing]:
    with open_profiles(creating_server.address) as channel:
        yield Losing(profiles_service_pb2_grpc.ProfilesServiceStub(channel))


def made(stub: Losing) -> person_pb2.Person:
    """Somebody who is there, as read."""
    ada = person()
    return Updates(stub).person(person_pb2.Person(person_id=ada.person_id), ada, on_conflict=OnConflict.FAIL)  # type: ignore[arg-type]


def with_name(read: person_pb2.Person, **name: str) -> person_pb2.Person:
    wanted = person_pb2.Person()
    wanted.CopyFrom(read)
    for field, value in name.items():
        setattr(wanted.name, field, value)
    return wanted


def test_without_a_race_each_policy_is_the_same(stub: Losing) -> None:
    """What differs is sent, once; where nothing differs nothing is."""
    for policy in OnConflict:
        read = made(stub)
        after = Updates(stub).person(read, with_name(read, given_name="Augusta"), on_conflict=policy)  # type: ignore[arg-type]
        assert (after.version, after.name.given_name) == (2, "Augusta")
        sent = stub.sent
        assert Updates(stub).person(after, after, on_conflict=policy) == after  # type: ignore[arg-type]
        assert stub.sent == sent


def test_fail_tells_that_the_race_is_lost(stub: Losing) -> None:
    """VERSION_MISMATCH with the version there is; nothing of the loser's is written."""
    read = made(stub)
    updates = Updates(stub)  # type: ignore[arg-type]
    updates.person(read, with_name(read, given_name="First"), on_conflict=OnConflict.FAIL)
    with pytest.raises(TandemError) as caught:
        updates.person(read, with_name(read, suffix="II"), on_conflict=OnConflict.FAIL)
    assert (caught.value.reason, caught.value.metadata["current_version"]) == (Reason.VERSION_MISMATCH, "2")
    assert stub.GetPerson(pb.GetPersonRequest(person_id=read.person_id)).person.name.suffix == ""


def test_merge_keeps_both(stub: Losing) -> None:
    """Different fields, even inside the name: both are there in the end."""
    read = made(stub)
    updates = Updates(stub)  # type: ignore[arg-type]
    updates.person(read, with_name(read, given_name="First"), on_conflict=OnConflict.FAIL)
    after = updates.person(read, with_name(read, suffix="II"), on_conflict=OnConflict.MERGE)
    assert (after.version, after.name.given_name, after.name.suffix) == (3, "First", "II")


def test_merge_tells_what_it_can_not_merge(stub: Losing) -> None:
    """The same field to different values: Conflicting names it; to the same value: nobody has lost anything."""
    read = made(stub)
    updates = Updates(stub)  # type: ignore[arg-type]
    updates.person(read, with_name(read, given_name="First"), on_conflict=OnConflict.FAIL)
    with pytest.raises(Conflicting) as caught:
        updates.person(read, with_name(read, given_name="Second", suffix="II"), on_conflict=OnConflict.MERGE)
    assert caught.value.paths == ["name.given_name"]
    assert caught.value.current.version == 2  # type: ignore[attr-defined]
    assert "Second" not in repr(caught.value), "no personal data in an error"
    again = updates.person(read, with_name(read, given_name="First"), on_conflict=OnConflict.MERGE)
    assert again.version == 2


def test_overwrite_wins_and_keeps_other_fields(stub: Losing) -> None:
    """The field it names is its own; what it does not name stays as the other has left it."""
    read = made(stub)
    updates = Updates(stub)  # type: ignore[arg-type]
    updates.person(read, with_name(read, given_name="First", suffix="II"), on_conflict=OnConflict.FAIL)
    after = updates.person(read, with_name(read, given_name="Second"), on_conflict=OnConflict.OVERWRITE)
    assert (after.version, after.name.given_name, after.name.suffix) == (3, "Second", "II")


def test_a_race_to_make_it(stub: Losing) -> None:
    """Two that read "not there yet": merged where they agree or add, Conflicting where they do not."""
    ada = person(nationalities=["GB"])
    nobody = person_pb2.Person(person_id=ada.person_id)
    updates = Updates(stub)  # type: ignore[arg-type]
    updates.person(nobody, ada, on_conflict=OnConflict.FAIL)
    more = person(person_id=ada.person_id, phone_numbers=["+442071234567"])
    after = updates.person(nobody, more, on_conflict=OnConflict.MERGE)
    assert (after.version, after.nationalities, after.phone_numbers) == (2, ["GB"], ["+442071234567"])
    other = person(person_id=ada.person_id, nationalities=["FR"])
    with pytest.raises(Conflicting) as caught:
        updates.person(nobody, other, on_conflict=OnConflict.MERGE)
    assert caught.value.paths == ["nationalities"]


def test_a_lost_answer_is_no_lost_race(stub: Losing) -> None:
    """The update was made, its answer lost: it is found, not made again, and not told to be somebody else's."""
    for policy in OnConflict:
        read = made(stub)
        stub.loses = True
        after = Updates(stub).person(read, with_name(read, given_name="Augusta"), on_conflict=policy)  # type: ignore[arg-type]
        assert (after.version, after.name.given_name) == (2, "Augusta")


def test_it_gives_up_after_so_many_attempts(stub: Losing) -> None:
    """Somebody is faster each time: the last refusal is told, however stubborn the caller is."""
    read = made(stub)
    updates = Updates(stub, attempts=2)  # type: ignore[arg-type]

    def faster() -> None:
        now = stub.GetPerson(pb.GetPersonRequest(person_id=read.person_id)).person
        faster_one = with_name(now, suffix=f"{now.version}.")
        stub.stub.UpdatePerson(pb.UpdatePersonRequest(person=faster_one, update_mask={"paths": ["name"]}), timeout=5)
        stub.meanwhile = faster

    stub.meanwhile = faster
    with pytest.raises(TandemError) as caught:
        updates.person(read, with_name(read, given_name="Late"), on_conflict=OnConflict.OVERWRITE)
    assert caught.value.reason is Reason.VERSION_MISMATCH


def test_what_no_repeat_helps_with_is_told_at_once(stub: Losing) -> None:
    """A registration that another business has, under any policy."""
    engines = registered()
    updates = Updates(stub)  # type: ignore[arg-type]
    updates.business(business_pb2.Business(business_id=engines.business_id), engines, on_conflict=OnConflict.FAIL)
    other = registered(engines.registration_number)
    for policy in OnConflict:
        with pytest.raises(TandemError) as caught:
            updates.business(business_pb2.Business(business_id=other.business_id), other, on_conflict=policy)
        assert caught.value.reason is Reason.ALREADY_EXISTS
