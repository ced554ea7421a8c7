"""Every RPC of the protocol × every fault of the network (design §2), with real participants and real PostgreSQL.

A case whose fault struck nothing has failed. After each the outcome is one of those allowed, both sides agree, and
nothing is left prepared or undelivered. What the driver tells its caller is true, and it tells it within its own times
(R12, R16).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa

from lab import processes
from lab.proxy import Act, CallFault, Cue, Fault, Http2Frames, Reply, RpcRelay, TcpProxy, is_headers, is_message
from tandem.coordinator import delivery, driver, recovery
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Unavailable
from tandem.coordinator.handle import Transaction
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.tables import decision
from tandem.coordinator.transaction import Phase
from tandem.participant import pushing
from tandem.participant.participant import Ask, Yes
from tandem.participant.resolver import Outcome, Resolver, in_doubt
from tandem.participant.sweeper import Sweeper
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.channel import open_channel
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.times import Times
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, participant_pb2_grpc, transaction_pb2
from tandem.v1 import participant_pb2 as pb
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own, packed
from tests.support.rules import abort_of, asking, commit_of, eventually, key_of

PATIENT_S = 5.0
"""A caller's deadline where an answer must come in spite of the fault."""

HASTY_S = 0.15
"""And where none can come."""

LATE_S = 3.0
"""How long a trouble may take to strike that has begun."""

SLACK_S = 1.5
"""What a busy machine may add to any time."""

PREPARE_S = 0.5
"""The driver's prepare_deadline here."""

TELL_S = 0.4
"""What the driver, recovery and a pushing Prepare wait for an answer here: shortened, there are hundreds of waits."""

AT_ONCE = 8
"""Cases of one test that run at the same time."""

LATE_S = 0.15
"""How long after its sender gave up a delayed request arrives."""

GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


# --- faults ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """A fault of the network. answers: whether a driver that asks again gets its answer in time.

    once: so does a single call through our channel. gRPC repeats no call whose reply has begun.
    bytes: what the TCP proxy does. calls: what the relay does. later: the request comes a second time, at the end.
    """

    name: str
    answers: bool
    bytes: Fault | None = None
    calls: CallFault | None = None
    later: bool = False
    reply_begun: bool = False

    @property
    def once(self) -> bool:
        return self.answers and not self.reply_begun


REQUEST, ANSWER = Cue(is_message), Cue(is_message, is_message)

TROUBLES = (
    Trouble("delayed", True, Fault(Act.DELAY, seconds=0.01)),
    Trouble("delayed-too-long", False, Fault(Act.DELAY, REQUEST, seconds=LATE_S, times=None)),
    Trouble("cut-before-request", True, Fault(Act.CUT, Cue(is_headers))),
    Trouble("cut-in-request", True, Fault(Act.CUT, Cue(is_message, passes=12))),
    Trouble("cut-after-request", True, Fault(Act.CUT, Cue(is_message, passes=None))),
    Trouble("cut-before-reply", True, Fault(Act.CUT, ANSWER), reply_begun=True),
    Trouble("cut-in-reply", True, Fault(Act.CUT, replace(ANSWER, passes=12), reset=True), reply_begun=True),
    Trouble("cut-for-good", False, Fault(Act.CUT)),
    Trouble("reply-swallowed", False, Fault(Act.SWALLOW, REQUEST, times=None)),
    Trouble("half-open", False, Fault(Act.SILENCE, REQUEST, times=None)),
    Trouble("silent-from-the-start", False, Fault(Act.SILENCE)),
    Trouble("repeated", True, calls=CallFault(copies=2)),
    Trouble("repeated-later", True, calls=CallFault(), later=True),
    Trouble("reply-lost", True, calls=CallFault(reply=Reply.LOST)),
    Trouble("reply-always-lost", False, calls=CallFault(reply=Reply.LOST, times=None)),
    Trouble("relay-swallows-reply", False, calls=CallFault(reply=Reply.SWALLOWED, times=None)),
)

troubles = pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
bad_troubles = pytest.mark.parametrize(
    "trouble", [trouble for trouble in TROUBLES if not trouble.answers], ids=lambda trouble: trouble.name
)


class Road:
    """The way to one server, with trouble on it from `begin` to `heal`."""

    def __init__(self, trouble: Trouble, port: int) -> None:
        target = f"127.0.0.1:{port}"
        self._trouble = trouble
        self.relay = RpcRelay(target) if trouble.calls is not None else None
        self.proxy = TcpProxy(target, requests=Http2Frames, replies=Http2Frames) if self.relay is None else None
        self.address = (self.relay or self.proxy).address  # type: ignore[union-attr]
        self._repeated_later = 0

    def warm(self, channel: grpc.Channel) -> None:
        """Connects beforehand, or a hasty caller might give up before it meets what awaits its request.

        Not where the trouble is there from the first connection on.
        """
        if self.relay is not None or (self._trouble.bytes is not None and self._trouble.bytes.cue is not None):
            grpc.channel_ready_future(channel).result(PATIENT_S)

    def begin(self, method: str = "", *, deadline_s: float = HASTY_S) -> None:
        """The trouble, for calls of this method, whose sender waits so long."""
        if self.relay is not None:
            assert self._trouble.calls is not None
            self.relay.set(replace(self._trouble.calls, method=method))
        elif self.proxy is not None:
            assert self._trouble.bytes is not None
            late_s = 0.0 if self._trouble.answers else deadline_s
            self.proxy.set(replace(self._trouble.bytes, seconds=self._trouble.bytes.seconds + late_s))

    def heal(self) -> None:
        """The trouble is over, and what was held back has arrived."""
        if self.relay is not None:
            self.relay.heal()
        elif self.proxy is not None:
            eventually(lambda: self.proxy is None or self.proxy.queued == 0)
            self.proxy.heal()

    def later(self, method: str) -> list[bytes | grpc.StatusCode]:
        """The last request once more, twice at once, if that is the trouble."""
        if self.relay is None or not self._trouble.later:
            return []
        answers = self.relay.again(method, 2)
        self._repeated_later += len(answers)
        return answers

    @property
    def struck(self) -> int:
        """What the trouble has done by now: connections, bytes, copies or replies; 0 as long as it has done nothing."""
        trouble = self._trouble
        if self.proxy is not None:
            assert trouble.bytes is not None
            began = trouble.bytes.cue is None or self.proxy.struck > 0
            return self.proxy.done[trouble.bytes.act] if began else 0
        assert self.relay is not None
        assert trouble.calls is not None
        if trouble.later:
            return self._repeated_later
        return self.relay.copies if trouble.calls.copies else self.relay.lost

    def assert_struck(self) -> None:
        """Without this a fault that never began would pass for one that was withstood."""
        least = 2 if self._trouble.later or (self._trouble.calls is not None and self._trouble.calls.copies) else 1
        # A handler goes on after its client's deadline, and a slow one's answer is lost only then.
        processes.wait_until(lambda: self.struck >= least, timeout_s=LATE_S)
        assert self.struck >= least, f"{self._trouble.name} has struck {self.struck} times"

    def close(self) -> None:
        for end in (self.relay, self.proxy):
            if end is not None:
                end.close()


@contextmanager
def road(trouble: Trouble, port: int) -> Iterator[Road]:
    """A road, taken up again afterwards. By then its trouble must have struck."""
    made = Road(trouble, port)
    try:
        yield made
        made.assert_struck()
    finally:
        made.close()


# --- the house and what must hold of it -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """One house for the module: cases use names and ids of their own."""
    with built(new_database) as house:
        yield house


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """The waits for an answer that have no setting."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (driver, "CONFIRM_S"),
            (driver, "ABORT_S"),
            (delivery, "BACKGROUND_S"),
            (recovery, "DELIVER_S"),
            (pushing, "BUDGET_S"),
        ):
            patch.setattr(module, name, TELL_S)
        yield


Work = Callable[..., None]


@pytest.fixture(scope="module")
def running(house: House, impatient: None) -> Iterator[tuple[ThreadPoolExecutor, dict[str, Future[None]]]]:
    """What `beside` runs in, and what it has begun."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield pool, {}


@pytest.fixture
def beside(
    request: pytest.FixtureRequest, house: House, running: tuple[ThreadPoolExecutor, dict[str, Future[None]]]
) -> Callable[[Work], None]:
    """Runs all cases of a test several at a time, since they mostly wait, and gives this one's own result."""
    pool, begun = running

    def result(work: Work) -> None:
        mine = request.node
        if mine.nodeid not in begun:
            for item in request.session.items:
                if item.path == mine.path and item.originalname == mine.originalname:  # type: ignore[attr-defined]
                    begun[item.nodeid] = pool.submit(work, house, **item.callspec.params)  # type: ignore[attr-defined]
        begun[mine.nodeid].result()

    return result


@dataclass
class Case:
    """One transaction: an account at the ledger, perhaps one at `other`, perhaps an own row."""

    house: House
    id: UUID = field(default_factory=new_id)
    name: str = field(default_factory=fresh_name)
    own_id: UUID = field(default_factory=uuid4)
    members: tuple[str, ...] = ("ledger",)

    @property
    def key(self) -> TransactionKey:
        return TransactionKey(COORDINATOR, self.id)

    @property
    def branches(self) -> dict[str, list[Any]]:
        return {name: [entry(self.name)] for name in self.members}

    def prepared(self) -> Transaction:
        """Staged, by a driver whose network is well."""
        return self.house.coordinator.prepare(self.branches, transaction_id=self.id)

    def committed(self) -> Transaction:
        """Staged and decided; nobody has been told, and nobody will be before `settle`."""
        tx = self.prepared()
        assert tx.decision is not None
        with self.house.engine.begin() as connection:
            connection.execute(sa.insert(own).values(id=self.own_id))
            connection.execute(tx.decision)
            connection.execute(self._held())
        return tx

    def hold(self) -> None:
        """Keeps recovery away until `settle`: whoever has delivered by then was the driver."""
        with self.house.engine.begin() as connection:
            connection.execute(self._held())

    def _held(self) -> sa.Update:
        later = sa.func.now() + sa.text("interval '1 hour'")
        return sa.update(decision).where(decision.c.transaction_id == self.id).values(next_attempt_at=later)

    @property
    def undelivered(self) -> list[str]:
        """As the log says."""
        decided = self.house.coordinator.log.get(self.key)
        assert decided is not None
        return list(decided.undelivered)

    def fenced(self) -> Transaction:
        """Staged, then aborted in the log; nobody has been told."""
        tx = self.prepared()
        self.house.coordinator.log.look([self.key], fence=True)
        return tx

    def insert_own(self, tx: Transaction) -> None:
        tx.connection.execute(sa.insert(own).values(id=self.own_id))

    def settle(self) -> None:
        """Sweeps and recovers until nothing is prepared or undelivered."""
        eventually(self._settled)

    def _settled(self) -> bool:
        self.house.coordinator.log.retry_now(self.key)
        self.house.recovery.run_once()
        for name in self.members:
            member = self.house.members[name]
            row = member.row(self.id)
            if row is not None and not row.confirmed:
                member.make_due(self.id)
                member.sweeper.run_once()
        rows = [self.house.members[name].row(self.id) for name in self.members]
        decided = self.house.coordinator.log.get(self.key)
        return all(row is None or (row.confirmed and row.state != "prepared") for row in rows) and (
            decided is None or (not decided.undelivered and not decided.parked)
        )

    def assert_agreed(self, *, committed: bool, has_own: bool = True) -> None:
        """Both sides say the same, and it is this."""
        self.settle()
        outcome = self.house.outcome(self.id)
        accounts = {name: self.house.members[name].accounts(self.name).get(self.name) for name in self.members}
        own_row = self.house.own_rows(self.own_id) == {self.own_id}
        if committed:
            assert outcome == "committed"
            assert accounts == dict.fromkeys(self.members, "active")
            assert own_row is has_own
        else:
            assert outcome in (None, "aborted")
            assert accounts == dict.fromkeys(self.members)
            assert not own_row
        for name in self.members:
            row = self.house.members[name].row(self.id)
            assert row is None or row.state == ("committed" if committed else "aborted")
            assert row is not None or not committed


# --- every RPC, asked by a client ------------------------------------------------------------------------------------


@dataclass
class Scene:
    """One call of one RPC, what its answer must be, and how its transaction ends."""

    port: int
    method: str
    call: Callable[[grpc.Channel], Any]
    request: Any
    right: Callable[[Any], bool]
    case: Case
    committed: bool
    late: set[grpc.StatusCode] = field(default_factory=set)
    has_own: bool = True


def _participant(case: Case, name: str, request: Any, right: Callable[[Any], bool], committed: bool) -> Scene:
    return Scene(
        case.house.ledger.server.port,
        f"ParticipantService/{name}",
        lambda channel: getattr(participant_pb2_grpc.ParticipantServiceStub(channel), name),
        request,
        right,
        case,
        committed,
    )


def _coordinator(case: Case, name: str, request: Any, right: Callable[[Any], bool], committed: bool) -> Scene:
    return Scene(
        case.house.server.port,
        f"CoordinatorService/{name}",
        lambda channel: getattr(coordinator_pb2_grpc.CoordinatorServiceStub(channel), name),
        request,
        right,
        case,
        committed,
    )


def _asking(case: Case) -> pb.PrepareRequest:
    return asking(case.id, case.name, log_id=case.house.coordinator.log.log_id())


def prepare(case: Case) -> Scene:
    scene = _participant(case, "Prepare", _asking(case), lambda vote: bool(vote.participant == "ledger"), False)
    scene.late = {grpc.StatusCode.FAILED_PRECONDITION}
    return scene


def batch_prepare(case: Case) -> Scene:
    request = pb.BatchPrepareRequest(requests=[_asking(case)])
    return _participant(
        case, "BatchPrepare", request, lambda votes: bool(votes.results[0].response.participant == "ledger"), False
    )


def commit(case: Case) -> Scene:
    case.committed()
    return _participant(case, "Commit", commit_of(case.id), lambda _: True, True)


def batch_commit(case: Case) -> Scene:
    case.committed()
    request = pb.BatchCommitRequest(requests=[commit_of(case.id)])
    return _participant(case, "BatchCommit", request, lambda acks: bool(acks.results[0].code == 0), True)


def abort(case: Case) -> Scene:
    case.fenced()
    return _participant(case, "Abort", abort_of(case.id), lambda _: True, False)


def batch_abort(case: Case) -> Scene:
    case.fenced()
    request = pb.BatchAbortRequest(requests=[abort_of(case.id)])
    return _participant(case, "BatchAbort", request, lambda acks: bool(acks.results[0].code == 0), False)


def participant_get(case: Case) -> Scene:
    case.prepared()
    request = pb.ParticipantServiceGetTransactionRequest(key=key_of(case.id))
    return _participant(
        case, "GetTransaction", request, lambda got: bool(got.transaction.key.transaction_id == str(case.id)), False
    )


def participant_list(case: Case) -> Scene:
    case.prepared()
    request = pb.ParticipantServiceListTransactionsRequest(
        state=transaction_pb2.TRANSACTION_STATE_PREPARED, page_size=1000
    )
    return _participant(
        case,
        "ListTransactions",
        request,
        lambda page: str(case.id) in {found.key.transaction_id for found in page.transactions},
        False,
    )


def _resolve(case: Case, tx: Transaction, outcome: int, *, fence: bool) -> Scene:
    request = coordinator_pb2.ResolveRequest(participant="ledger", fence=fence)
    request.items.add(key=key_of(case.id), log_id=str(tx.log_id), digest=tx.digests["ledger"])
    return _coordinator(
        case,
        "Resolve",
        request,
        lambda answer: bool(answer.results[0].outcome == outcome),
        outcome == coordinator_pb2.ResolveResult.OUTCOME_COMMITTED,
    )


def resolve(case: Case) -> Scene:
    return _resolve(case, case.committed(), coordinator_pb2.ResolveResult.OUTCOME_COMMITTED, fence=False)


def resolve_fence(case: Case) -> Scene:
    return _resolve(case, case.prepared(), coordinator_pb2.ResolveResult.OUTCOME_ABORTED, fence=True)


def execute(case: Case) -> Scene:
    case.members = ("ledger", "other")
    request = coordinator_pb2.ExecuteRequest(
        key=key_of(case.id),
        branches=[transaction_pb2.Branch(participant=name, writes=packed(entry(case.name))) for name in case.members],
    )
    scene = _coordinator(
        case,
        "Execute",
        request,
        lambda done: bool(done.decision.decision == transaction_pb2.DECISION_COMMITTED),
        True,
    )
    scene.has_own = False
    return scene


def coordinator_get(case: Case) -> Scene:
    case.committed()
    request = coordinator_pb2.CoordinatorServiceGetTransactionRequest(key=key_of(case.id))
    return _coordinator(
        case, "GetTransaction", request, lambda got: bool(got.decision.key.transaction_id == str(case.id)), True
    )


def coordinator_list(case: Case) -> Scene:
    case.committed()
    request = coordinator_pb2.CoordinatorServiceListTransactionsRequest(
        decision=transaction_pb2.DECISION_COMMITTED, page_size=1000
    )
    return _coordinator(
        case,
        "ListTransactions",
        request,
        lambda page: str(case.id) in {found.key.transaction_id for found in page.decisions},
        True,
    )


def retry_now(case: Case) -> Scene:
    case.committed()
    request = coordinator_pb2.RetryNowRequest(key=key_of(case.id))
    return _coordinator(
        case, "RetryNow", request, lambda got: bool(got.decision.key.transaction_id == str(case.id)), True
    )


RPCS = (
    prepare, commit, abort, batch_prepare, batch_commit, batch_abort, participant_get, participant_list,
    resolve, resolve_fence, execute, coordinator_get, coordinator_list, retry_now,
)  # fmt: skip


def test_every_rpc_has_its_scene(house: House) -> None:
    """The list above is the protocol's own: what the scenes call is what the two services have."""
    served = [
        f"{service.name}/{method.name}"
        for service in (
            pb.DESCRIPTOR.services_by_name["ParticipantService"],
            coordinator_pb2.DESCRIPTOR.services_by_name["CoordinatorService"],
        )
        for method in service.methods
    ]
    asked = []
    for rpc in RPCS:
        scene = rpc(Case(house))
        asked.append(scene.method)
        scene.case.settle()
    assert sorted(asked) == sorted([*served, "CoordinatorService/Resolve"]), "Resolve comes with fence and without"


@troubles
def test_a_trouble_that_never_struck_is_noticed(house: House, trouble: Trouble) -> None:
    """A call by a road whose trouble does not begin: the case would fail."""
    with pytest.raises(AssertionError, match="has struck 0 times"):
        with road(trouble, house.server.port) as way, open_channel(way.address) as channel:
            scene = coordinator_list(Case(house))
            scene.call(channel)(scene.request, timeout=PATIENT_S)
            way.heal()
    scene.case.settle()


@troubles
@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.__name__)
def test_rpc(beside: Callable[[Work], None], rpc: Callable[[Case], Scene], trouble: Trouble) -> None:
    """A repeat gets the same answer, in any order, any number of times; the call ends within its deadline (R16)."""
    beside(ask)


def ask(house: House, rpc: Callable[[Case], Scene], trouble: Trouble) -> None:
    """One call by way of trouble, then the same by a way that is well."""
    case = Case(house)
    scene = rpc(case)
    with road(trouble, scene.port) as way, open_channel(way.address) as channel:
        way.warm(channel)
        way.begin()
        deadline_s = PATIENT_S if trouble.answers else HASTY_S
        started = time.monotonic()
        try:
            answer, code = scene.call(channel)(scene.request, timeout=deadline_s), None
        except grpc.RpcError as error:
            answer, code = None, error.code()
        took_s = time.monotonic() - started
        assert took_s < deadline_s + SLACK_S
        if trouble.once:
            assert code is None
            assert scene.right(answer)
        else:
            assert code in GONE
        with open_channel(f"127.0.0.1:{scene.port}") as well:
            assert scene.right(scene.call(well)(scene.request, timeout=PATIENT_S)), "a repeat gets the same answer"
        way.heal()
        case.assert_agreed(committed=scene.committed, has_own=scene.has_own)
        for again in way.later(""):
            assert not isinstance(again, grpc.StatusCode) or again in scene.late
    case.assert_agreed(committed=scene.committed, has_own=scene.has_own)


# --- the driver -------------------------------------------------------------------------------------------------------


@contextmanager
def driving(house: House, way: Road) -> Iterator[Coordinator]:
    """A driver that has a road to the ledger; the other participant's network is well."""
    coordinator = Coordinator(
        house.engine,
        name=COORDINATOR,
        participants={"ledger": way.address, "other": f"127.0.0.1:{house.other.server.port}"},
        times=Times(prepare_deadline_s=PREPARE_S),
    )
    try:
        coordinator.log.log_id()
        way.warm(coordinator.participants._channels["ledger"])
        yield coordinator
    finally:
        coordinator.close()


@troubles
def test_driver_prepare(beside: Callable[[Work], None], trouble: Trouble) -> None:
    """R3, R6: without all votes nothing is committed anywhere and the caller is told Unavailable; else it commits."""
    beside(drive_with_trouble_at_prepare)


def drive_with_trouble_at_prepare(house: House, trouble: Trouble) -> None:
    """Trouble from the first Prepare on."""
    case = Case(house, members=("ledger", "other"))
    with road(trouble, house.ledger.server.port) as way, driving(house, way) as coordinator:
        way.begin("Prepare", deadline_s=PREPARE_S)
        started = time.monotonic()
        committed = True
        tx: Transaction | None = None
        try:
            with coordinator.transaction(case.branches) as tx:
                case.id = tx.id
                case.insert_own(tx)
        except Unavailable as error:
            assert error.transaction_id is not None
            case.id, committed = error.transaction_id, False
        took_s = time.monotonic() - started
        assert committed is trouble.answers
        assert took_s < PREPARE_S + TELL_S + SLACK_S
        assert tx is None or tx.delivered
        way.heal()
        case.assert_agreed(committed=committed)
        for again in way.later("Prepare"):
            assert isinstance(again, bytes)
            assert pb.PrepareResponse.FromString(again).participant == "ledger", "committed: still a yes"
    case.assert_agreed(committed=committed)


@troubles
def test_driver_abort(beside: Callable[[Work], None], trouble: Trouble) -> None:
    """R3: the block's own exception stays what it is, whatever becomes of Abort; the sweeper has the rest."""
    beside(give_up)


@bad_troubles
def test_driver_abort_of_a_given_id(beside: Callable[[Work], None], trouble: Trouble) -> None:
    """R3: the same for an id that is fenced first."""
    beside(partial(give_up, given=True))


def give_up(house: House, trouble: Trouble, *, given: bool = False) -> None:
    """A block that raises; trouble comes with its Abort."""
    case = Case(house, members=("ledger", "other"))
    with road(trouble, house.ledger.server.port) as way, driving(house, way) as coordinator:
        started = time.monotonic()
        with (
            pytest.raises(ZeroDivisionError),
            coordinator.transaction(case.branches, transaction_id=case.id if given else None) as tx,
        ):
            case.id = tx.id
            case.insert_own(tx)
            way.begin("Abort", deadline_s=TELL_S)
            1 / 0  # noqa: B018
        took_s = time.monotonic() - started
        assert tx.phase is Phase.ABORTED
        assert house.outcome(case.id) == ("aborted" if given else None), "an own id needs no fence (R3)"
        assert took_s < TELL_S + SLACK_S
        way.heal()
        case.assert_agreed(committed=False)
        for again in way.later("Abort"):
            assert isinstance(again, bytes)
    case.assert_agreed(committed=False)


@troubles
def test_driver_commit(beside: Callable[[Work], None], trouble: Trouble) -> None:
    """R12: after the commit point nothing raises; `tx.delivered` says what was acknowledged, recovery has the rest."""
    beside(drive_with_trouble_at_commit)


def drive_with_trouble_at_commit(house: House, trouble: Trouble) -> None:
    """Trouble once the votes are in."""
    case = Case(house, members=("ledger", "other"))
    with road(trouble, house.ledger.server.port) as way, driving(house, way) as coordinator:
        started = time.monotonic()
        with coordinator.transaction(case.branches) as tx:
            case.id = tx.id
            case.insert_own(tx)
            way.begin("Commit", deadline_s=TELL_S)
        took_s = time.monotonic() - started
        assert tx.phase is Phase.COMMITTED
        assert tx.undelivered == (() if trouble.answers else ("ledger",))
        assert took_s < TELL_S + SLACK_S
        way.heal()
        case.assert_agreed(committed=True)
        for again in way.later("Commit"):
            assert isinstance(again, bytes)
    case.assert_agreed(committed=True)


@bad_troubles
def test_driver_commit_in_the_background(beside: Callable[[Work], None], trouble: Trouble) -> None:
    """R12: nobody waits for a confirm in the background, and nothing raises."""
    beside(drive_in_the_background)


def drive_in_the_background(house: House, trouble: Trouble) -> None:
    """The same, and the caller is gone already."""
    case = Case(house, members=("ledger", "other"))
    with road(trouble, house.ledger.server.port) as way, driving(house, way) as coordinator:
        started = time.monotonic()
        with coordinator.transaction(case.branches, confirm="background") as tx:
            case.id = tx.id
            case.insert_own(tx)
            way.begin("Commit", deadline_s=TELL_S)
        assert tx.phase is Phase.COMMITTED
        assert time.monotonic() - started < SLACK_S
        case.hold()
        eventually(lambda: way.struck)
        eventually(lambda: case.undelivered == ["ledger"])
        way.heal()
        case.assert_agreed(committed=True)
    case.assert_agreed(committed=True)


# --- who drives on ----------------------------------------------------------------------------------------------------


@troubles
def test_recovery(house: House, trouble: Trouble) -> None:
    """R11: recovery delivers, or tries again; a participant that can't be reached keeps no other from its Commit."""
    case = Case(house, members=("ledger", "other"))
    case.committed()
    with road(trouble, house.ledger.server.port) as way, driving(house, way) as coordinator:
        worker = Recovery(coordinator)
        way.begin("Commit", deadline_s=TELL_S)
        coordinator.log.retry_now(case.key)
        started = time.monotonic()
        worker.run_once()
        assert time.monotonic() - started < TELL_S + SLACK_S
        decided = coordinator.log.get(case.key)
        assert decided is not None
        assert decided.undelivered == ([] if trouble.answers else ["ledger"])
        assert house.other.accounts(case.name) == {case.name: "active"}
        way.heal()
        case.assert_agreed(committed=True)
        way.later("Commit")
    case.assert_agreed(committed=True)


@contextmanager
def resolving(house: House, way: Road, timeout_s: float) -> Iterator[Resolver]:
    """A resolver of the ledger that has a road to the coordinator."""
    resolver = Resolver(house.ledger.participant, {COORDINATOR: way.address}, timeout_s=timeout_s)
    try:
        way.warm(resolver._channels[COORDINATOR])
        yield resolver
    finally:
        resolver.close()


@troubles
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "undecided"])
def test_sweeper(house: House, trouble: Trouble, committed: bool) -> None:
    """R9: without an answer the sweeper leaves the row, counts it and tries again; it never ends it by age."""
    case = Case(house)
    if committed:
        case.committed()
    else:
        case.prepared()
    timeout_s = PATIENT_S if trouble.answers else HASTY_S
    with road(trouble, house.server.port) as way, resolving(house, way, timeout_s) as resolver:
        sweeper = Sweeper(house.ledger.engine, resolver, house.ledger.metrics)
        way.begin("Resolve")
        house.ledger.make_due(case.id)
        started = time.monotonic()
        ended = sweeper.run_once()
        assert time.monotonic() - started < timeout_s + SLACK_S
        row = house.ledger.row(case.id)
        assert row is not None
        if trouble.once:
            assert ended >= 1
            assert row.state == ("committed" if committed else "aborted")
        else:
            assert row.state == "prepared"
            assert house.ledger.accounts(case.name) == {case.name: "prepared"}
            assert row.last_error in (Reason.UNAVAILABLE.value, Reason.DEADLINE_PASSED.value)
        way.heal()
        case.assert_agreed(committed=committed)
        way.later("Resolve")
    case.assert_agreed(committed=committed)


@troubles
@pytest.mark.parametrize("dead", [True, False], ids=["holder-is-old", "holder-is-committed"])
def test_pushing_prepare(beside: Callable[[Work], None], trouble: Trouble, dead: bool) -> None:
    """R10: a Prepare that needs what another holds asks; without an answer it is a no vote with RetryInfo, in time."""
    beside(push)


def push(house: House, trouble: Trouble, dead: bool) -> None:
    """A Prepare that meets another's rows."""
    holder = Case(house)
    if dead:
        holder.prepared()
        house.ledger.set(holder.id, prepared_at=sa.func.now() - sa.text("interval '1 minute'"))
    else:
        holder.committed()
    mine = Case(house, name=holder.name)
    log_id = house.coordinator.log.log_id()
    ask = Ask(mine.key, log_id, 60.0, 7.0, packed(entry(mine.name)))
    with road(trouble, house.server.port) as way, resolving(house, way, PATIENT_S) as resolver:
        way.begin("Resolve", deadline_s=TELL_S)
        started = time.monotonic()
        (vote,) = pushing.prepare(house.ledger.participant, resolver, [ask])
        assert time.monotonic() - started < TELL_S + SLACK_S
        if not trouble.once:
            assert isinstance(vote, TandemError)
            assert vote.reason is Reason.HELD
            assert vote.retry_after_s is not None
        elif dead:
            assert isinstance(vote, Yes)
        else:
            assert isinstance(vote, TandemError)
            assert vote.reason is Reason.ALREADY_EXISTS
        way.heal()
        way.later("Resolve")
    if isinstance(vote, Yes):
        assert house.outcome(holder.id) == "aborted"
        mine.settle()
    holder.settle()
    assert house.ledger.accounts(holder.name) == ({} if dead else {holder.name: "active"})
    row = house.ledger.row(holder.id)
    assert row is not None
    assert row.state == ("aborted" if dead else "committed")


@troubles
def test_reader(beside: Callable[[Work], None], trouble: Trouble) -> None:
    """R10: a reader asks without fence: rolled forward and returned, or nobody could say; nothing is concluded."""
    beside(read)


def read(house: House, trouble: Trouble) -> None:
    """A reader that meets a prepared row."""
    case = Case(house)
    case.committed()
    with road(trouble, house.server.port) as way, resolving(house, way, PATIENT_S) as resolver:
        way.begin("Resolve")
        timeout_s = PATIENT_S if trouble.answers else HASTY_S
        started = time.monotonic()
        met = resolver.meet([case.key], by=ResolvedBy.READER, timeout_s=timeout_s)[case.key]
        assert time.monotonic() - started < timeout_s + SLACK_S
        if trouble.once:
            assert met is Outcome.COMMITTED
            assert house.ledger.accounts(case.name) == {case.name: "active"}
        else:
            assert isinstance(met, TandemError)
            assert met.reason in (Reason.UNAVAILABLE, Reason.DEADLINE_PASSED)
            row = house.ledger.row(case.id)
            assert row is not None
            assert in_doubt(row).key == case.key
            assert row.state == "prepared"
        way.heal()
        way.later("Resolve")
    case.assert_agreed(committed=True)
