"""What arrives at the same time shares messages and local transactions, and nobody notices: each answer is one's own.

Real gRPC and PostgreSQL. The ledger's plug is held while it stages its first batch, so that the rest gathers behind it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from uuid import UUID

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.wrappers_pb2 import StringValue
from sqlalchemy.engine import Connection

from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Refused
from tandem.coordinator.participants import Preparing
from tandem.participant.participant import Participant
from tandem.participant.resource import Staged, Staging
from tandem.participant.servicer import ParticipantServicer
from tandem.runtime.channel import open_channel
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.server import Server
from tandem.runtime.status import from_rpc_error
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import participant_pb2_grpc
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, in_threads, new_id, packed
from tests.support.ledger import Ledger
from tests.support.rules import abort_of, another_session, asking, commit_of, eventually, served

CALLERS = 24


class Held(Ledger):
    """A ledger that stands still in the first batches it stages, until it is let go; it notes how large each was."""

    def __init__(self, first: int = 1) -> None:
        self.first = first
        self.go_on = threading.Event()
        self.batches: list[int] = []

    def stage(self, connection: Connection, stagings: Sequence[Staging]) -> Sequence[Staged]:
        self.batches.append(len(stagings))
        if len(self.batches) <= self.first:
            assert self.go_on.wait(5)
        return super().stage(connection, stagings)


class Crowd:
    """The ledger's participant over a plug that is held, and callers that have come meanwhile."""

    def __init__(self, house: House, server: Server, servicer: ParticipantServicer, plug: Held) -> None:
        self.house, self.server, self.servicer, self.plug = house, server, servicer, plug
        self.stub = participant_pb2_grpc.ParticipantServiceStub(open_channel(server.address))
        self.pool = ThreadPoolExecutor(CALLERS + 1)
        self.first = self.pool.submit(self.prepare, asking(new_id(), fresh_name()))
        eventually(lambda: plug.batches)

    def prepare(self, request: pb.PrepareRequest, timeout_s: float = 10) -> str:
        """ "yes", or the reason of the no."""
        try:
            self.stub.Prepare(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return from_rpc_error(error).reason.value
        return "yes"

    def waiting(self) -> int:
        return len(self.servicer._staging._waiting)

    def come(self, *requests: pb.PrepareRequest) -> list[Future[str]]:
        """Calls that wait behind the first one."""
        before = self.waiting()
        futures = [self.pool.submit(self.prepare, request) for request in requests]
        eventually(lambda: self.waiting() == before + len(requests))
        return futures


def over(house: House, plug: Ledger) -> ParticipantServicer:
    """The ledger's participant over another plug."""
    member = house.ledger
    participant = Participant(
        member.engine,
        name="ledger",
        resource=plug,
        coordinators=[COORDINATOR],
        times=house.times,
        metrics=member.metrics,
    )
    return ParticipantServicer(participant, member.resolver)


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database) as house:
        yield house


@pytest.fixture
def crowd(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    monkeypatch.setattr("tandem.participant.servicer.AT_ONCE", 1)
    plug = Held()
    servicer = over(house, plug)
    with served(servicer, workers=CALLERS + 8) as server:
        crowd = Crowd(house, server, servicer, plug)
        yield crowd
        plug.go_on.set()
        crowd.pool.shutdown()


def test_single_calls_share_a_local_transaction(house: House, crowd: Crowd) -> None:
    """Two batches: the one that was alone, and all who came meanwhile; each is staged and gets its vote."""
    names = [fresh_name() for _ in range(CALLERS)]
    futures = crowd.come(*(asking(new_id(), name) for name in names))
    crowd.plug.go_on.set()
    assert [future.result() for future in (crowd.first, *futures)] == ["yes"] * (CALLERS + 1)
    assert crowd.plug.batches == [1, CALLERS]
    assert house.ledger.accounts(*names) == dict.fromkeys(names, "prepared")


def test_each_gets_the_answer_of_the_table(house: House, crowd: Crowd) -> None:
    """A batch of conflicts, repeats, tombstones, reused ids and nonsense: each answer is what it would be alone."""
    taken, shared = fresh_name(), fresh_name()
    done, dead, one = new_id(), new_id(), new_id()
    wire = house.ledger.stub
    wire.Prepare(asking(done, taken), timeout=10)
    wire.Commit(commit_of(done), timeout=10)
    wire.Abort(abort_of(dead), timeout=10)
    requests = {
        "fresh": asking(new_id(), fresh_name()),
        "repeat of what is committed": asking(done, taken),
        "reused": asking(done, fresh_name()),
        "name taken": asking(new_id(), taken),
        "tombstone": asking(dead, fresh_name()),
        "expired": asking(new_id(age_s=40 * 86_400), fresh_name()),
        "once": asking(one, shared),
        "the same at the same time": asking(one, shared),
        "the same id, other content": asking(one, fresh_name()),
        "fresh too": asking(new_id(), fresh_name()),
    }
    futures = dict(zip(requests, (crowd.come(request)[0] for request in requests.values()), strict=True))
    bad = crowd.pool.submit(crowd.prepare, asking(new_id()))
    assert bad.result() == "INVALID_REQUEST", "what is malformed waits for nobody"
    crowd.plug.go_on.set()
    assert {name: future.result() for name, future in futures.items()} == {
        "fresh": "yes",
        "repeat of what is committed": "yes",
        "reused": "TRANSACTION_REUSED",
        "name taken": "ALREADY_EXISTS",
        "tombstone": "TRANSACTION_ABORTED",
        "expired": "TRANSACTION_EXPIRED",
        "once": "yes",
        "the same at the same time": "yes",
        "the same id, other content": "TRANSACTION_REUSED",
        "fresh too": "yes",
    }


def test_one_that_cancels_is_alone_in_it(house: House, crowd: Crowd) -> None:
    """One caller goes away, one has no time: they are told so, and the others have their votes. What was staged for
    those who left is in doubt, as ever, and ends as ever."""
    names = [fresh_name() for _ in range(4)]
    ids = [new_id() for _ in names]
    stay, *others = crowd.come(*(asking(id_, name) for id_, name in zip(ids[:2], names[:2], strict=True)))
    leaving = crowd.stub.Prepare.future(asking(ids[2], names[2]), timeout=10)
    eventually(lambda: crowd.waiting() == 3)
    hurried = crowd.pool.submit(crowd.prepare, asking(ids[3], names[3]), 0.1)
    leaving.cancel()
    assert hurried.result() == Reason.DEADLINE_PASSED.value
    crowd.plug.go_on.set()
    assert [future.result() for future in (crowd.first, stay, *others)] == ["yes"] * 3
    eventually(lambda: crowd.servicer._staging._free == 1)
    for id_, name in zip(ids, names, strict=True):
        house.ledger.stub.Abort(abort_of(id_), timeout=10)
        assert house.ledger.accounts(name) == {}


def test_commits_and_aborts_of_one_moment(house: House) -> None:
    """Endings of many transactions, and both of one, at the same time: each is one or the other, and told so."""
    names = [fresh_name() for _ in range(CALLERS)]
    ids = [new_id() for _ in names]
    for id_, name in zip(ids, names, strict=True):
        house.ledger.stub.Prepare(asking(id_, name), timeout=10)

    def end(id_: UUID, commit: bool) -> str:
        try:
            if commit:
                house.ledger.stub.Commit(commit_of(id_), timeout=10)
            else:
                house.ledger.stub.Abort(abort_of(id_), timeout=10)
        except grpc.RpcError as error:
            return from_rpc_error(error).reason.value
        return "ok"

    jobs = [(id_, commit) for id_ in ids for commit in (True, False)]
    said = dict(zip(jobs, in_threads(*(lambda job=job: end(*job) for job in jobs)), strict=True))
    for id_, name in zip(ids, names, strict=True):
        told = (said[id_, True], said[id_, False])
        row = house.ledger.row(id_)
        assert row is not None
        assert (row.state, told) in (
            ("committed", ("ok", "ALREADY_COMMITTED")),
            ("aborted", ("ALREADY_ABORTED", "ok")),
        )
        assert house.ledger.accounts(name) == ({name: "active"} if row.state == "committed" else {})


def test_many_drivers_at_once(house: House) -> None:
    """The driver's half: transactions of one moment share messages, and each is refused or committed by itself."""
    seen: list[int] = []
    taken = fresh_name()
    house.coordinator.execute(new_id(), {"ledger": [entry(taken)]})

    class Counting(ParticipantServicer):
        def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:
            seen.append(1)
            time.sleep(0.02)
            return super().Prepare(request, context)

        def BatchPrepare(
            self, request: pb.BatchPrepareRequest, context: grpc.ServicerContext
        ) -> pb.BatchPrepareResponse:
            seen.append(len(request.requests))
            time.sleep(0.02)
            return super().BatchPrepare(request, context)

    with ExitStack() as stack:
        server = stack.enter_context(served(Counting(house.ledger.participant, house.ledger.resolver)))
        coordinator = Coordinator(house.engine, name=COORDINATOR, participants={"ledger": server.address})
        stack.callback(coordinator.close)
        names = [fresh_name() if number % 6 else taken for number in range(CALLERS)]

        def sign_up(name: str) -> str:
            try:
                with coordinator.transaction({"ledger": [entry(name)]}) as tx:
                    tx.connection.execute(sa.select(1))
            except Refused as error:
                return error.reason.value
            assert tx.delivered
            return "committed"

        said = in_threads(*(lambda name=name: sign_up(name) for name in names))
    assert said == ["ALREADY_EXISTS" if name == taken else "committed" for name in names]
    assert sum(seen) == CALLERS
    assert len(seen) < CALLERS / 2, f"they came in {len(seen)} messages: {seen}"
    assert house.ledger.accounts(*names) == dict.fromkeys(names, "active")


def test_a_participant_that_dies_in_the_middle(house: House) -> None:
    """The server stops under a batch: nobody is told of success, nothing is decided, and nothing stays in doubt."""
    plug, member = Held(first=CALLERS), house.ledger
    names = [fresh_name() for _ in range(8)]
    told: list[object] = []
    with served(over(house, plug)) as server:
        coordinator = Coordinator(house.engine, name=COORDINATOR, participants={"ledger": server.address})

        def sign_up(name: str) -> object:
            try:
                with coordinator.transaction({"ledger": [entry(name)]}):
                    return "committed"
            except TandemError as error:
                return error.transaction_id

        threads = threading.Thread(target=lambda: told.extend(in_threads(*(lambda n=n: sign_up(n) for n in names))))
        threads.start()
        eventually(lambda: plug.batches)
        server.drain(0)
    plug.go_on.set()
    threads.join(30)
    coordinator.close()
    assert all(isinstance(one, UUID) for one in told), told
    for id_ in told:
        assert isinstance(id_, UUID)
        assert house.outcome(id_) is None
        member.set(id_, next_attempt_at=sa.func.now())
    eventually(lambda: member.sweeper.run_once() == 0 and member.accounts(*names) == {})


def test_one_id_at_the_same_time(house: House) -> None:
    """R2, R3: concurrent calls of one id with the same content get the same answer, though they leave together."""
    with ExitStack() as stack:
        coordinator = stack.enter_context(_closing(house.another_coordinator()))
        name, id_ = fresh_name(), new_id()
        said = in_threads(*(lambda: coordinator.execute(id_, {"ledger": [entry(name)]}).phase.value for _ in range(12)))
    assert said == ["committed"] * 12
    assert house.ledger.accounts(name) == {name: "active"}


def test_one_id_in_one_company(house: House) -> None:
    """The same, where they are sure to leave together: what is said twice of one id is said one after the other."""
    plug = Held(first=2)
    with ExitStack() as stack:
        server = stack.enter_context(served(over(house, plug)))
        coordinator = Coordinator(house.engine, name=COORDINATOR, participants={"ledger": server.address})
        stack.callback(coordinator.close)
        ask, pool = coordinator.participants, stack.enter_context(ThreadPoolExecutor(8))
        stack.callback(plug.go_on.set)
        log_id, until = coordinator.log.log_id(), time.monotonic() + 10

        def prepare(id_: UUID, name: str) -> Future[TandemError | None]:
            one = Preparing(TransactionKey(COORDINATOR, id_), log_id, 60.0, 7.0, packed(entry(name)))
            return pool.submit(lambda: ask.prepare({"ledger": [one]}, until=until)["ledger"][0].error)

        before = [prepare(new_id(), fresh_name()) for _ in range(2)]  # as many as may be under way at the same time
        eventually(lambda: len(plug.batches) == 2)
        id_, name = new_id(), fresh_name()
        again = [prepare(id_, name) for _ in range(6)]
        eventually(lambda: len(ask._preparing["ledger"]._waiting) == 6)
        plug.go_on.set()
        assert [future.result() for future in (*before, *again)] == [None] * 8
    assert house.ledger.accounts(name) == {name: "prepared"}


def test_one_that_may_succeed_later_is_asked_again(house: House) -> None:
    """A participant that is not ready at once: the vote is asked for again, as long as there is time."""
    calls: list[int] = []

    class Busy(ParticipantServicer):
        def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:
            calls.append(1)
            if len(calls) < 3:
                raise TandemError("not yet", reason=Reason.IN_PROGRESS)
            return super().Prepare(request, context)

    with served(Busy(house.ledger.participant, house.ledger.resolver)) as server:
        coordinator = Coordinator(house.engine, name=COORDINATOR, participants={"ledger": server.address})
        with coordinator.transaction({"ledger": [entry(fresh_name())]}) as tx:
            pass
        coordinator.close()
    assert tx.delivered
    assert len(calls) == 3


def test_a_locked_row_in_a_large_batch(house: House) -> None:
    """R7: the neighbours of a locked row are not staged one by one: most of them go in the first piece they are in."""
    plug, held, names = Held(first=0), fresh_name(), [fresh_name() for _ in range(399)]
    insert = (
        "INSERT INTO ledger.account (coordinator, transaction_id, name, amount, state) VALUES ('x', :id, :name, 1, 'x')"
    )
    with (
        served(over(house, plug)) as server,
        another_session(house.ledger.engine, insert, id=str(new_id()), name=held),
    ):
        stub = participant_pb2_grpc.ParticipantServiceStub(open_channel(server.address))
        asks = [asking(new_id(), name) for name in (*names, held)]
        results = stub.BatchPrepare(pb.BatchPrepareRequest(requests=asks), timeout=10).results
    assert [bool(result.status.code) for result in results] == [False] * len(names) + [True]
    assert len(plug.batches) < 80, plug.batches


def test_errors_do_not_tell_who_came_along(house: House) -> None:
    """A violation's path is the caller's own, whatever message it was sent in."""
    wrong = StringValue(value="no entry of a ledger")
    with house.coordinator.transactions([{"ledger": [entry(fresh_name())]}, {"ledger": [wrong]}]) as batch:
        (refused,) = batch.refused
        assert isinstance(refused.error, Refused)
        assert [violation.field for violation in refused.error.violations] == ["writes[0].type_url"]
        assert "requests" not in refused.error.message
        batch.connection.execute(sa.select(1))


def test_one_that_is_locked_holds_up_nobody(house: House) -> None:
    """R16: a transaction whose Commit meets a locked row is asked for again by itself; the others go by."""
    stuck = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    assert stuck.decision is not None
    with house.engine.begin() as connection:
        connection.execute(stuck.decision)
    lock = "SELECT FROM twophase.prepared_transaction WHERE transaction_id = :id FOR UPDATE"
    with another_session(house.ledger.engine, lock, id=str(stuck.id)):
        finishing = threading.Thread(target=stuck.finish)
        finishing.start()
        done = 0
        while finishing.is_alive():
            with house.coordinator.transaction({"ledger": [entry(fresh_name())]}) as tx:
                pass
            done += tx.delivered
    finishing.join()
    assert not stuck.delivered
    assert done >= 3, "one after the other, while it was tried again and again"
    house.coordinator.finish(stuck)
    assert stuck.delivered


@contextmanager
def _closing(coordinator: Coordinator) -> Iterator[Coordinator]:
    yield coordinator
    coordinator.close()
