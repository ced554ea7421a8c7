"""R16, R4 with the real processes: what clients are told while a database's disk is full, and while all of the
coordinator's workers are taken.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.rpc import code_pb2

from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.status import from_rpc_error, from_status
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, participant_pb2_grpc
from tests.faults import initiator
from tests.faults.crash_house import ABORTED, COORDINATOR, Answer, House, eventually
from tests.faults.initiator import Kind
from tests.support.disk import SMALL_WAL, WITH_ROOM_IN_ITS_LOG, filled, small_disk
from tests.support.house import new_id
from tests.support.required import do_without
from tests.support.rules import asking, channel_to, key_of

WORKERS, QUEUE = 4, 2
TOO_MANY = 2
"""Calls beyond that."""

MOST = 300
"""Calls of a kind that a full disk may still find room for, in pages that are half empty."""

IN_TIME_S = 3.0
"""For Resolve, whatever Execute does: what a participant waits for it."""

Told = tuple[str, str]
OK: Told = ("OK", "")
FULL: Told = ("RESOURCE_EXHAUSTED", "DATABASE_FULL")
BUSY: Told = ("RESOURCE_EXHAUSTED", "OVERLOADED")
UNAVAILABLE: Told = ("UNAVAILABLE", "UNAVAILABLE")
UNKNOWN: Told = ("UNAVAILABLE", "OUTCOME_UNKNOWN")
IN_DOUBT: Told = ("UNAVAILABLE", "IN_DOUBT")

HOLD_COMMITS = "SELECT pg_advisory_xact_lock(4711)"
"""Keeps what was sent as COMMIT from ending (crash_house)."""


class SmallHouse(House):
    """Its coordinator has few workers, and not one connection more than they can hold."""

    def _make_services(self, urls: Mapping[str, str]) -> None:
        super()._make_services(urls)
        limits = {"WORKERS": WORKERS, "QUEUE": QUEUE, "DATABASE_POOL": WORKERS}
        self.services["coordinator"].environment |= {f"COORDINATOR_{key}": str(n) for key, n in limits.items()}


Disks = dict[str, Path]


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    """A small file system for each PostgreSQL server; none where that can't be had."""
    with ExitStack() as stack:
        made: Disks = {}
        try:
            for name in ("identity-pg", "profiles-pg"):
                made[name] = stack.enter_context(small_disk())
        except pytest.skip.Exception:
            made = {}
        yield made


@pytest.fixture(scope="module")
def house(disks: Disks) -> Iterator[House]:
    """All five processes, on small disks."""
    with tempfile.TemporaryDirectory(prefix="tandem-exhausted-") as folder:
        Path(folder).chmod(0o755)
        house = SmallHouse(Path(folder))
        for name, disk in disks.items():
            house.servers[name] = EmbeddedPostgres(disk / "postgres", settings=SMALL_WAL)
        try:
            house.start()
            yield house
            house.settled()
            assert house.split() == []
        finally:
            house.close()


def told(call: Callable[..., Any], request: Any, timeout_s: float = 20) -> Told:
    """A call's status code and the reason that came with it."""
    try:
        call(request, timeout=timeout_s)
    except grpc.RpcError as error:
        return error.code().name, from_rpc_error(error).reason.value
    return OK


def stub(house: House, service: str, kind: Callable[[grpc.Channel], Any]) -> Any:
    """A plain client of one of the processes."""
    return kind(channel_to(int(house.services[service].address.rpartition(":")[2])))


# --- a full disk ------------------------------------------------------------------------------------------------------


class Client:
    """Calls every kind of RPC with something new each time, and keeps what it was told."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.log_id = house.one("identity", "SELECT log_id FROM twophase.log WHERE current")
        self.person_id = ""
        self.held = _token()
        self.sign_ups: dict[str, Told] = {}

    def prepare(self) -> Told:
        request = asking(new_id(), coordinator=COORDINATOR, log_id=self.log_id)
        for write in initiator.writes(Kind.PERSON, _token()):
            request.writes.add().Pack(write, deterministic=True)
        return told(stub(self.house, "profiles", participant_pb2_grpc.ParticipantServiceStub).Prepare, request)

    def resolve(self) -> Told:
        """With fence: it must be written. Each question has a status of its own."""
        answered = _coordinator(self.house).Resolve(_question(self.log_id, new_id()), timeout=20)
        status = answered.results[0].status
        if not status.code:
            return OK
        error = from_status(status)
        return code_pb2.Code.Name(status.code), error.reason.value

    def execute(self) -> Told:
        request = coordinator_pb2.ExecuteRequest(key=key_of(new_id(), COORDINATOR))
        branch = request.branches.add(participant="profiles")
        for write in initiator.writes(Kind.PERSON, _token()):
            branch.writes.add().Pack(write, deterministic=True)
        return told(_coordinator(self.house).Execute, request)

    def sign_up(self) -> Told:
        token = _token()
        person, business = initiator.person_of(token), initiator.business_of(token)
        person.person_id = business.business_id = ""
        del business.people[:]
        request = identity_pb.SignUpRequest(
            request_id=token, email=f"{token}@example.org", person=person, business=business
        )
        identity = stub(self.house, "identity", identity_service_pb2_grpc.IdentityServiceStub)
        self.sign_ups[token] = told(identity.SignUp, request)
        return self.sign_ups[token]

    def get_person(self, person_id: str = "") -> Told:
        """Of the one that is active, or of another."""
        profiles = stub(self.house, "profiles", profiles_service_pb2_grpc.ProfilesServiceStub)
        return told(profiles.GetPerson, profiles_pb.GetPersonRequest(person_id=person_id or self.person_id))

    def get_held(self) -> Told:
        """Of one that is in doubt and committed: the reader must roll it forward (R10)."""
        return self.get_person(initiator.person_of(self.held).person_id)

    def until_refused(self, *calls: Callable[[], Told]) -> dict[str, Told]:
        """Calls, each again and again until it is refused: what it is told then."""
        said = {}
        for call in calls:
            answers = (call() for _ in range(MOST))
            said[call.__name__] = next((answer for answer in answers if answer != OK), OK)
        print(said)
        return said


def _token() -> str:
    return f"t{uuid4().hex[:12]}"


def _coordinator(house: House) -> Any:
    return stub(house, "coordinator", coordinator_pb2_grpc.CoordinatorServiceStub)


def _question(log_id: object, id_: UUID) -> coordinator_pb2.ResolveRequest:
    """With fence."""
    request = coordinator_pb2.ResolveRequest(participant="profiles", fence=True)
    request.items.add(key=key_of(id_, COORDINATOR), log_id=str(log_id), digest=bytes(32))
    return request


@pytest.fixture
def client(house: House, disks: Disks) -> Client:
    """Somebody who has signed up, and a person who is in doubt."""
    if not disks:
        do_without("disk", "a small file system can't be mounted here: root may")
    client = Client(house)
    for database in ("identity", "profiles"):
        house.one(database, WITH_ROOM_IN_ITS_LOG)
    assert client.sign_up() == OK
    (token,) = client.sign_ups
    client.person_id = str(
        house.one("profiles", "SELECT person_id FROM profiles.person WHERE display_name = :token", token=token)
    )
    house.leave(client.held, Kind.PERSON, ("profiles",), decided=True)
    return client


def test_profiles_disk_is_full(house: House, disks: Disks, client: Client) -> None:
    """The participant says RESOURCE_EXHAUSTED, whoever needs its vote UNAVAILABLE; reads and the log go on."""
    with filled(disks["profiles-pg"]):
        said = client.until_refused(client.prepare, client.execute, client.sign_up)
        assert said == {"prepare": FULL, "execute": UNAVAILABLE, "sign_up": UNAVAILABLE}
        assert client.resolve() == OK
        assert client.get_person() == OK
        assert client.get_held() in (OK, FULL, IN_DOUBT), "anything but that it isn't there"
    resumes(house, client, "profiles-pg")


def test_identity_disk_is_full(house: House, disks: Disks, client: Client) -> None:
    """Resolve's fence is RESOURCE_EXHAUSTED and nothing is concluded from it; of a decision that was sent, the log says
    that it is aborted, where there still is room for that, or nobody knows (R3)."""
    with filled(disks["identity-pg"]):
        said = client.until_refused(client.execute, client.sign_up, client.resolve)
        assert said["execute"] in (UNAVAILABLE, UNKNOWN)
        assert said["sign_up"] in (UNAVAILABLE, UNKNOWN)
        assert said["resolve"] == FULL
        assert client.prepare() == OK
        assert client.get_person() == OK
        assert client.get_held() == OK, "what is decided can be read"
    resumes(house, client, "identity-pg")


def resumes(house: House, client: Client, server: str) -> None:
    """There is room: all goes on by itself, who was acknowledged is there, and who was refused is not."""
    house.servers[server].start()  # if it had to give up: for its log there was no room either
    eventually(lambda: client.sign_up() == OK, "service resumes")
    house.make_due()
    house.release_deliveries()
    house.settled()
    assert house.split() == []
    assert client.get_held() == OK
    for token, said in client.sign_ups.items():
        persons = house.one("profiles", "SELECT count(*) FROM profiles.person WHERE display_name = :token", token=token)
        users = house.one(
            "identity", "SELECT count(*) FROM identity.users WHERE email = :email", email=f"{token}@example.org"
        )
        assert persons == users, said
        assert said == UNKNOWN or users == (said == OK), said


# --- no free worker ---------------------------------------------------------------------------------------------------


def executing(house: House, names: tuple[str, ...]) -> list[Future[Answer]]:
    """More Executes than the coordinator can take, by clients of their own; it is at its limit when this returns."""
    calls = [
        house.calling(partial(house.execute, new_id(), _token(), Kind.PERSON, names))
        for _ in range(WORKERS + QUEUE + TOO_MANY)
    ]
    refused = eventually(lambda: [call for call in calls if call.done()][TOO_MANY - 1 :], "some are turned away")
    assert len(refused) == 1, "the others hang"
    return calls


def assert_resolve_is_answered(house: House) -> None:
    """Any other call is turned away; Resolve is answered in time, with a fence, from the log."""
    coordinator = _coordinator(house)
    log_id = house.one("identity", "SELECT log_id FROM twophase.log WHERE current")
    request = coordinator_pb2.CoordinatorServiceGetTransactionRequest(key=key_of(new_id(), COORDINATOR))
    assert told(coordinator.GetTransaction, request) == BUSY
    for _ in range(10):
        id_, started = new_id(), time.monotonic()
        (result,) = coordinator.Resolve(_question(log_id, id_), timeout=IN_TIME_S).results
        assert time.monotonic() - started < IN_TIME_S
        assert result.outcome == coordinator_pb2.ResolveResult.OUTCOME_ABORTED
        assert house.stories(id_)[id_].decision == ABORTED, "fenced"
    assert told(coordinator.GetTransaction, request) == BUSY


def assert_they_end(calls: Sequence[Future[Answer]]) -> None:
    """Whoever was taken on is committed; the others were told to come again."""
    answers = [call.result() for call in calls]
    assert answers.count(Answer(True)) == WORKERS + QUEUE
    assert sum(answer.why.startswith("OVERLOADED") for answer in answers) == TOO_MANY


def test_executes_in_their_commit_never_starve_resolve(house: House) -> None:
    """R4: "Resolve has its own workers and connections": Execute holds all the others, in the middle of COMMIT."""
    with house.locked("identity", HOLD_COMMITS):
        calls = executing(house, ("profiles",))
        eventually(lambda: _committing(house) == WORKERS, "every worker and connection is in a COMMIT")
        assert_resolve_is_answered(house)
        assert _committing(house) == WORKERS
    assert_they_end(calls)


def test_executes_in_prepare_never_starve_resolve(house: House) -> None:
    """R4: the same while Execute waits for the vote of a participant that hangs."""
    with house.paused(house.services["second"]):
        calls = executing(house, ("profiles", "second"))
        assert_resolve_is_answered(house)
        assert sum(call.done() for call in calls) == TOO_MANY
    assert_they_end(calls)


def _committing(house: House) -> int:
    return int(
        house.one(
            "identity",
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'COMMIT'"
            " AND wait_event_type = 'Lock' AND wait_event = 'advisory'",
        )
    )
