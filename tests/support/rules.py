"""What the tests of the rules need besides the house: answers as a client sees them, the two ways to ask, and peers
that can be told what to answer. Real servers and channels; what is faked are only a peer's answers.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Connection, Engine

from lab import processes
from tandem.coordinator.servicer import RESERVED
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.resource import Staged, Staging
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.claims import Peers
from tandem.runtime.database import create_engine
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.server import Server
from tandem.runtime.status import from_status, ok, to_status
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, participant_pb2_grpc, transaction_pb2
from tandem.v1 import participant_pb2 as pb
from tests.support.house import COORDINATOR, Member, entry, fresh_name, new_id, packed
from tests.support.ledger import Ledger

DAY_S = 86_400
LOG = uuid4()
"""The decision log of transactions whose initiator a test plays itself."""

OUTCOMES = coordinator_pb2.ResolveResult.Outcome


# --- asking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A status as a client can tell it from another, and the vote where there is one."""

    code: str
    reason: str = ""
    fields: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None
    vote: tuple[str, bytes] | None = None

    @property
    def ok(self) -> bool:
        return self.code == "OK"

    @property
    def about(self) -> dict[str, str]:
        """ErrorInfo's metadata."""
        return dict(self.metadata)


def answer_of(status: status_pb2.Status | None) -> Answer:
    """Checks what every error must have (ErrorInfo with our domain) and takes the status apart."""
    assert status is not None, "an error without details"
    code = code_pb2.Code.Name(status.code)
    if code == "OK":
        return Answer(code)
    info, bad_request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), None
    for detail in status.details:
        found = error_details_pb2.RetryInfo()
        if detail.Unpack(found):
            retry = found.retry_delay.ToNanoseconds() / 1e9
        _ = detail.Unpack(info) or detail.Unpack(bad_request)
    assert info.domain == "tandem", f"no ErrorInfo in {code}"
    fields = tuple(violation.field for violation in bad_request.field_violations)
    return Answer(code, info.reason, fields, tuple(sorted(info.metadata.items())), retry)


def failure_of(call: Callable[[], object]) -> Answer:
    """What a call is refused with."""
    try:
        call()
    except grpc.RpcError as error:
        return answer_of(rpc_status.from_call(error))
    raise AssertionError("the call was expected to fail")


@cache
def channel_to(port: int) -> grpc.Channel:
    """A plain client's channel: no retries of its own, no limits of its own."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0), *limits])


def raw(member_port: int, method: str, request: bytes) -> bytes:
    """Sends bytes as they are."""
    answered: bytes = channel_to(member_port).unary_unary(method)(request, timeout=20)
    return answered


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def key_of(transaction_id: UUID | str, coordinator: str = COORDINATOR) -> transaction_pb2.TransactionKey:
    return transaction_pb2.TransactionKey(coordinator=coordinator, transaction_id=str(transaction_id))


def asking(
    transaction_id: UUID | str,
    *accounts: str,
    coordinator: str = COORDINATOR,
    log_id: UUID | str = LOG,
    ttl_s: float | None = 3_600,
    driver_deadline_s: float | None = 7,
    amount: int = 1,
) -> pb.PrepareRequest:
    """A Prepare that opens accounts. The ttl is long, so that nobody sweeps what a test didn't make due."""
    request = pb.PrepareRequest(
        key=key_of(transaction_id, coordinator),
        log_id=str(log_id),
        writes=packed(*(entry(name, amount) for name in accounts)),
    )
    if ttl_s is not None:
        request.ttl.CopyFrom(duration(ttl_s))
    if driver_deadline_s is not None:
        request.driver_deadline.CopyFrom(duration(driver_deadline_s))
    return request


def commit_of(transaction_id: UUID | str, coordinator: str = COORDINATOR) -> pb.CommitRequest:
    return pb.CommitRequest(
        key=key_of(transaction_id, coordinator), resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR
    )


def abort_of(transaction_id: UUID | str, coordinator: str = COORDINATOR) -> pb.AbortRequest:
    return pb.AbortRequest(key=key_of(transaction_id, coordinator), resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR)


class Wire:
    """A participant as its clients meet it: by unary calls, or by batches.

    In a batch, one request travels between two neighbours of its kind, which must fare well whatever it is.
    """

    def __init__(self, port: int, *, batch: bool = False) -> None:
        self.port = port
        self.stub = participant_pb2_grpc.ParticipantServiceStub(channel_to(port))
        self._batch = batch

    def ask(self, request: Message) -> Answer:
        """Prepare, Commit or Abort, by the message's type."""
        if not self._batch:
            return self._unary(request)
        neighbours = [self._neighbour(request) for _ in range(2)]
        first, answer, last = self.ask_all(neighbours[0], request, neighbours[1])
        assert first.ok, f"the neighbours of {answer} fare {first}"
        assert last.ok, f"the neighbours of {answer} fare {last}"
        return answer

    def ask_all(self, *requests: Any) -> list[Answer]:
        """One batch of them all."""
        match requests[0]:
            case pb.PrepareRequest():
                response = self.stub.BatchPrepare(pb.BatchPrepareRequest(requests=requests), timeout=20)
                return [
                    answer_of(result.status) if result.status.code else _yes(result.response)
                    for result in response.results
                ]
            case pb.CommitRequest():
                ended = self.stub.BatchCommit(pb.BatchCommitRequest(requests=requests), timeout=20)
            case _:
                ended = self.stub.BatchAbort(pb.BatchAbortRequest(requests=requests), timeout=20)
        return [answer_of(status) for status in ended.results]

    def _unary(self, request: Message) -> Answer:
        try:
            match request:
                case pb.PrepareRequest():
                    return _yes(self.stub.Prepare(request, timeout=20))
                case pb.CommitRequest():
                    self.stub.Commit(request, timeout=20)
                case _:
                    self.stub.Abort(request, timeout=20)
        except grpc.RpcError as error:
            return answer_of(rpc_status.from_call(error))
        return Answer("OK")

    def _neighbour(self, like: Message) -> Message:
        transaction_id = new_id()
        preparing = asking(transaction_id, fresh_name("neighbour"))
        if isinstance(like, pb.PrepareRequest):
            return preparing
        if isinstance(like, pb.CommitRequest):
            assert self._unary(preparing).ok
            return commit_of(transaction_id)
        return abort_of(transaction_id)


def _yes(response: pb.PrepareResponse) -> Answer:
    return Answer("OK", vote=(response.participant, response.digest))


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """A counter's value; without labels, the sum over them all."""
    if labels:
        return registry.get_sample_value(name, labels) or 0.0
    samples = [sample for family in registry.collect() for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def eventually(check: Callable[[], Any], within_s: float = 20.0) -> Any:
    """What `check` returns, as soon as that is true."""
    until = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return result


def ends(job: Callable[[], object], *, within_s: float, release: Callable[[], object]) -> bool:
    """Whether the job ends in time by itself; it is released then, and waited for."""
    thread = threading.Thread(target=job)
    thread.start()
    thread.join(within_s)
    in_time = not thread.is_alive()
    release()
    thread.join(60)
    return in_time


# --- peers that are told what to answer -----------------------------------------------------------------------------


class ScriptedCoordinator(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """A coordinator's Resolve: `outcome` for each question, or `error` for the call; `asked` is what it was asked."""

    def __init__(self) -> None:
        self.outcome: int | TandemError = OUTCOMES.Value("OUTCOME_ABORTED")
        self.error: TandemError | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.answers = -1
        self.asked: list[list[str]] = []
        self.fenced: list[bool] = []
        self.server = _serve(self)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def Resolve(
        self, request: coordinator_pb2.ResolveRequest, context: grpc.ServicerContext
    ) -> coordinator_pb2.ResolveResponse:
        self.asked.append([item.key.transaction_id for item in request.items])
        self.fenced.append(request.fence)
        self.meanwhile()
        if self.error is not None:
            raise self.error
        if isinstance(self.outcome, TandemError):
            result = coordinator_pb2.ResolveResult(status=to_status(self.outcome))
        else:
            result = coordinator_pb2.ResolveResult(status=ok(), outcome=self.outcome)  # type: ignore[arg-type]
        count = len(request.items) if self.answers < 0 else self.answers
        return coordinator_pb2.ResolveResponse(results=[result] * count)

    def stop(self) -> None:
        self.server.drain(0)

    def start(self) -> None:
        self.server = _serve(self, self.server.port)


def _serve(scripted: ScriptedCoordinator, port: int = 0) -> Server:
    server = Server(f"127.0.0.1:{port}", reserved=RESERVED)
    server.add(
        coordinator_pb2.DESCRIPTOR.services_by_name["CoordinatorService"],
        scripted,
        coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server,
    )
    server.start()
    return server


class TamperedParticipant(ParticipantServicer):
    """A participant's own servicer, and something that happens to its batches on the way; a single call is one, too."""

    def __init__(self, participant: Participant, resolver: Resolver) -> None:
        super().__init__(participant, resolver)
        self.after_prepare: Callable[[pb.BatchPrepareResponse], pb.BatchPrepareResponse] = lambda response: response
        self.before_commit: Callable[[], object] = lambda: None
        self.after_commit: Callable[[pb.BatchCommitResponse], pb.BatchCommitResponse] = lambda response: response

    def BatchPrepare(self, request: pb.BatchPrepareRequest, context: grpc.ServicerContext) -> pb.BatchPrepareResponse:
        return self.after_prepare(super().BatchPrepare(request, context))

    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:
        result = pb.BatchPrepareResult(status=ok(), response=super().Prepare(request, context))
        return self.after_prepare(pb.BatchPrepareResponse(results=[result])).results[0].response

    def Commit(self, request: pb.CommitRequest, context: grpc.ServicerContext) -> pb.CommitResponse:
        self.before_commit()
        response = super().Commit(request, context)
        (status,) = self.after_commit(pb.BatchCommitResponse(results=[ok()])).results
        if status.code:
            raise from_status(status)
        return response

    def BatchCommit(self, request: pb.BatchCommitRequest, context: grpc.ServicerContext) -> pb.BatchCommitResponse:
        self.before_commit()
        return self.after_commit(super().BatchCommit(request, context))


@contextmanager
def served(servicer: ParticipantServicer, port: int = 0, **limits: int) -> Iterator[Server]:
    """A participant's servicer on a server of its own."""
    server = Server(f"127.0.0.1:{port}", **limits)  # type: ignore[arg-type]
    servicer.add_to(server)
    server.start()
    try:
        yield server
    finally:
        server.drain(0)


def sweeper(member: Member, *, batch: int = 500, clock: Callable[[], float] | None = None) -> Sweeper:
    """A sweeper that knows of no failing peer; `clock` is the one by which it probes."""
    made = Sweeper(member.engine, member.resolver, member.metrics, batch=batch)
    if clock is not None:
        made._peers = Peers(clock)
    return made


class HandClock:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# --- plugs ----------------------------------------------------------------------------------------------------------


class Crossing(Ledger):
    """A ledger that stages one transaction after the other, so that batches meet in opposite orders (R7).

    Before its second statement each call waits a moment for the one that it is to cross.
    """

    def __init__(self) -> None:
        self.meet = threading.Barrier(2)

    def stage(self, connection: Connection, stagings: Sequence[Staging]) -> Sequence[Staged]:
        answers: list[Staged] = []
        for position, staging in enumerate(stagings):
            if position == 1:
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.meet.wait(0.3)
            answers += super().stage(connection, [staging])
        return answers


class Watching(Ledger):
    """A ledger that notes a setting of the local transaction that it works in."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self.seen: list[tuple[str, str]] = []

    def _note(self, connection: Connection, work: str) -> None:
        value = connection.execute(sa.select(sa.func.current_setting(self.setting))).scalar_one()
        self.seen.append((work, value))

    def stage(self, connection: Connection, stagings: Sequence[Staging]) -> Sequence[Staged]:
        self._note(connection, "stage")
        return super().stage(connection, stagings)

    def publish(self, connection: Connection, keys: Sequence[TransactionKey]) -> Any:
        self._note(connection, "publish")
        return super().publish(connection, keys)

    def discard(self, connection: Connection, keys: Sequence[TransactionKey]) -> Any:
        self._note(connection, "discard")
        return super().discard(connection, keys)


# --- databases ------------------------------------------------------------------------------------------------------


def preset(url: str, **settings: str) -> str:
    """The same URL, after the database's defaults were set."""
    engine = create_engine(url)
    name = sa.engine.make_url(url).database
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for setting, value in settings.items():
            connection.exec_driver_sql(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
    engine.dispose()
    return url


@contextmanager
def another_session(engine: Engine, statement: str, **values: object) -> Iterator[Connection]:
    """Somebody else's local transaction, left open after its one statement."""
    other = sa.create_engine(engine.url, poolclass=sa.NullPool, use_native_hstore=False)
    with other.connect() as connection:
        connection.execute(sa.text(statement), values)
        yield connection
        connection.rollback()


class BareServer:
    """A PostgreSQL started by hand, as an operator might get it wrong: with any options, or as a replica."""

    def __init__(self, binaries: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tandem-bare-"))
        self._folder.chmod(0o755)
        self._user = keeper.ServerUser.of(keeper.Files(self._folder))
        self._user.own(self._folder)
        version = self._user.version(binaries)
        self._binaries = binaries if version else keeper.readable_copy(binaries)
        self._data = self._folder / "data"
        status, said = self._user.run(
            self._binaries / "initdb", "-D", self._data, "-U", "owner", "--auth=trust", "--no-sync"
        )
        assert status == 0, said

    @contextmanager
    def running(self, *options: str) -> Iterator[Engine]:
        """Started with these options; an engine on its `postgres` database."""
        port = processes.free_port()
        words = [word for option in (f"port={port}", f"unix_socket_directories={self._folder}", *options)
                 for word in ("-c", option)]  # fmt: skip
        with (self._folder / "server.log").open("a") as log:
            process = self._user.popen(
                self._binaries / "postgres", "-D", self._data, "-c", "listen_addresses=", *words, output=log
            )
        engine = create_engine(f"postgresql://owner@/postgres?host={self._folder}&port={port}")
        try:
            eventually(lambda: process.poll() is None and _answers(engine))
            yield engine
        finally:
            engine.dispose()
            process.terminate()
            process.wait(20)

    def become_replica(self) -> None:
        """From the next start on it only replays."""
        signal = self._data / "standby.signal"
        signal.touch()
        self._user.own(signal)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _answers(engine: Engine) -> bool:
    try:
        with engine.connect():
            return True
    except sa.exc.OperationalError:
        return False


def seeded(seed: int | None = None) -> random.Random:
    """Random numbers that can be had again: the seed is printed."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    print(json.dumps({"seed": seed}))
    return random.Random(seed)
