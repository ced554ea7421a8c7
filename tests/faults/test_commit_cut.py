"""R3: the local commit, cut at every byte of COMMIT and of its reply; and at the deciding INSERT before it.

The initiator's connections go through the fault proxy to real PostgreSQL. Whatever the driver says is true in the
database: never "not committed" where it is committed, never "committed" where it is not; and the participants end so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lab.proxy import Act, Cue, Fault, TcpProxy
from lab.wire_pg import COMMIT, COMMIT_REPLY, ClientMessages, is_query
from tandem.coordinator.driver import SETTLE_S, Coordinator
from tandem.coordinator.errors import Fenced, OutcomeUnknown, Unavailable
from tandem.coordinator.handle import Transaction
from tandem.coordinator.transaction import Outcome
from tandem.runtime.database import create_engine
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.times import Times
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, own
from tests.support.rules import eventually

KINDS = ("engine", "session")
OTHER_KINDS = ("three-calls", "many")
"""The three calls with a local transaction of any driver's; two transactions with one local commit."""
is_commit = is_query("COMMIT")
is_decision = is_query("INSERT INTO twophase.decision")

AT_COMMIT = [Cue(is_commit, passes=passes) for passes in range(len(COMMIT) + 1)]
AT_REPLY = [Cue(is_commit, lambda _: True, passes) for passes in range(len(COMMIT_REPLY) + 1)]
AT_INSERT = [
    *(Cue(is_decision, passes=passes) for passes in (0, 1, 3, 5, 6, 300, None)),
    *(Cue(is_decision, lambda _: True, passes) for passes in (0, 1, 4, 15, 18, 20)),
]
"""The bytes of the INSERT are many; where it is cut changes nothing as long as COMMIT was never sent."""
FEW = [
    *(Cue(is_decision, passes=passes) for passes in (0, 300)),
    Cue(is_decision, lambda _: True, 0),
    *(Cue(is_commit, passes=passes) for passes in (0, len(COMMIT) // 2, None)),
    *(Cue(is_commit, lambda _: True, passes) for passes in (0, len(COMMIT_REPLY) // 2, len(COMMIT_REPLY))),
]
"""Before, within and after each."""

BOUND_S = 8.0
"""For one try of a driver whose database answers, or refuses, at once."""


class Base(DeclarativeBase):
    """The initiator's ORM."""


class Own(Base):
    """The initiator's own row, as an ORM class."""

    __tablename__ = "own"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    note: Mapped[str | None]


def place(cue: Cue) -> str:
    """A cue's name in a test's id."""
    what = "insert" if cue.request is is_decision else "commit"
    return f"{what}{'-reply' if cue.reply else ''}-{'all' if cue.passes is None else cue.passes}"


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """One house for the module; what goes through a proxy is a driver of the case's own."""
    with built(new_database) as house:
        yield house


@dataclass
class Case:
    """A driver behind a proxy of its own, and one transaction of it."""

    house: House
    proxy: TcpProxy
    engine: Engine
    coordinator: Coordinator
    kind: str
    own_id: UUID
    name: str
    tx: Transaction | None = None
    twin: Transaction | None = None
    twin_name: str = field(default_factory=fresh_name)

    def run(self) -> str:
        """What the driver says."""
        match self.kind:
            case "three-calls":
                return self._run_three_calls()
            case "many":
                return self._run_many()
        return self._run_block()

    def _run_three_calls(self) -> str:
        """prepare, a local transaction of SQLAlchemy's own, finish; whatever is raised between says nothing."""
        self.tx = self.coordinator.prepare({"ledger": [entry(self.name)]})
        with suppress(sa.exc.DBAPIError), self.engine.begin() as connection:
            connection.execute(sa.insert(own).values(id=self.own_id, note=self.name))
            connection.execute(self.tx.decision)
        try:
            return "committed" if self.tx.finish() is Outcome.COMMITTED else "not committed"
        except OutcomeUnknown:
            return "unknown"

    def _run_many(self) -> str:
        """Two transactions, all or none."""
        branches = [{"ledger": [entry(name)]} for name in (self.name, self.twin_name)]
        try:
            with self.coordinator.transactions(branches) as batch:
                self.tx, self.twin = batch.transactions
                batch.connection.execute(sa.insert(own).values(id=self.own_id, note=self.name))
        except OutcomeUnknown:
            return "unknown"
        except (Unavailable, Fenced):
            return "not committed"
        return "committed"

    def _run_block(self) -> str:
        """The `with` block."""
        with ExitStack() as closing:
            session = closing.enter_context(Session(self.engine)) if self.kind == "session" else None
            try:
                with self.coordinator.transaction({"ledger": [entry(self.name)]}, using=session) as self.tx:
                    if session is not None:
                        session.add(Own(id=self.own_id, note=self.name))
                    else:
                        self.tx.connection.execute(sa.insert(own).values(id=self.own_id, note=self.name))
            except OutcomeUnknown:
                return "unknown"
            except (Unavailable, Fenced):
                return "not committed"
            if session is not None:
                assert not session.in_transaction()
        return "committed"

    @property
    def truth(self) -> str:
        """What the database says, read past the proxy."""
        assert self.tx is not None
        outcome = self.house.outcome(self.tx.id)
        own_row = self.house.own_rows(self.own_id) == {self.own_id}
        assert own_row is (outcome == "committed"), "own rows and decision commit together (R1)"
        return "committed" if own_row else "not committed"

    @property
    def account(self) -> str | None:
        return self.house.ledger.accounts(self.name).get(self.name)

    def assert_untouched(self) -> None:
        """What is unknown to the driver was sent to nobody. To be seen before anybody else may end it."""
        assert self.account == "prepared", "neither Commit nor Abort was sent"

    def assert_true(self, said: str) -> None:
        """What was said holds, and the participant has ended accordingly."""
        assert self.tx is not None
        if said == "unknown":
            self.proxy.heal()
            said = "committed" if self.finished() is Outcome.COMMITTED else "not committed"
        assert said == self.truth
        key = TransactionKey(COORDINATOR, self.tx.id)
        decided = self.house.coordinator.log.get(key)
        if said == "committed":
            assert self.tx.delivered
            assert self.account == "active"
            eventually(lambda: self.house.coordinator.log.get(key).undelivered == [])  # marks are written by and by
        else:
            assert self.account is None
            assert decided is not None, "the INSERT was sent: only the log could say (R3)"
        row = self.house.ledger.row(self.tx.id)
        assert row is not None
        assert row.state == ("committed" if said == "committed" else "aborted")
        if self.twin is not None:
            assert (self.house.outcome(self.twin.id) == "committed") is (said == "committed"), "all or none"
            accounts = self.house.ledger.accounts(self.twin_name)
            assert accounts == ({self.twin_name: "active"} if said == "committed" else {})

    def finished(self) -> Outcome:
        """`finish()` can be repeated, until the log can be read."""
        tx = self.tx
        assert tx is not None

        def finish() -> Outcome | None:
            try:
                return tx.finish()
            except OutcomeUnknown:
                return None

        outcome: Outcome = eventually(finish, 20)
        return outcome


@pytest.fixture
def case_of(house: House, postgres: EmbeddedPostgres) -> Iterator[Callable[..., Case]]:
    """Makes cases. times: the driver's."""
    with ExitStack() as closing:

        def make(kind: str, *, times: Times | None = None) -> Case:
            case = closing.enter_context(through_a_proxy(house, postgres, kind, times))
            return case

        yield make


@contextmanager
def through_a_proxy(house: House, postgres: EmbeddedPostgres, kind: str, times: Times | None) -> Iterator[Case]:
    url = make_url(postgres.tcp_url(str(house.engine.url.database)))
    with TcpProxy(f"{url.host}:{url.port}", requests=ClientMessages) as proxy:
        engine = create_engine(
            url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable", "gssencmode": "disable"}),
            pool_size=3,
        )
        coordinator = Coordinator(
            engine,
            name=COORDINATOR,
            participants={name: f"127.0.0.1:{member.server.port}" for name, member in house.members.items()},
            times=times or Times(),
        )
        try:
            coordinator.log.log_id()
            yield Case(house, proxy, engine, coordinator, kind, uuid4(), fresh_name())
        finally:
            coordinator.close()
            engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_the_wire(case_of: Callable[..., Case], kind: str) -> None:
    """COMMIT's reply is as long as the tests here think; and R12: nothing is asked of the database after it.

    What the connection is sent after COMMIT's answer costs every transaction a round trip, and can fail.
    """
    case = case_of(kind)
    sent: list[bytes] = []
    case.proxy.tap = lambda upward, data: sent.append(data if upward else b"<" + data)
    assert case.run() == "committed"
    at = sent.index(COMMIT)
    assert sent[at + 1] == b"<" + COMMIT_REPLY
    following = next((data for data in sent[at + 2 :] if not data.startswith(b"<")), b"")
    assert following.startswith(b"Q") is False or b"BEGIN" in following, following
    case.assert_true("committed")


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("cue", [*AT_COMMIT, *AT_REPLY, *AT_INSERT], ids=place)
@pytest.mark.parametrize("kind", KINDS)
def test_cut_once(case_of: Callable[..., Case], kind: str, cue: Cue, reset: bool) -> None:
    """R3: the connection is cut, the next one is well: the log is read and the driver says which it is."""
    cut_once(case_of(kind), cue, reset)


@pytest.mark.parametrize("cue", FEW, ids=place)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_cut_once_elsewhere(case_of: Callable[..., Case], kind: str, cue: Cue) -> None:
    """R3: the same for the three calls, and for many transactions with one local commit: all decisions or none."""
    cut_once(case_of(kind), cue, False)


def cut_once(case: Case, cue: Cue, reset: bool) -> None:
    """One transaction whose local commit, or INSERT, is cut there."""
    case.proxy.set(Fault(Act.CUT, cue, reset=reset))
    started = time.monotonic()
    said = case.run()
    assert time.monotonic() - started < BOUND_S
    assert case.proxy.struck == 1
    assert said != "unknown"
    if cue.request is is_decision or (cue.reply is None and cue.passes in range(len(COMMIT))):
        assert said == "not committed", "COMMIT never reached the server"
    if cue.reply is not None and cue.request is is_commit:
        assert said == "committed", "the server has answered COMMIT, whether that was heard or not"
    case.assert_true(said)


def test_cut_for_good(house: House, postgres: EmbeddedPostgres) -> None:
    """R3: cut at every byte, and no connection afterwards: OutcomeUnknown unless COMMIT was heard. Then the truth.

    All at once, since each waits for the log as long as it may.
    """
    heard = len(COMMIT_REPLY)
    cues = [*AT_COMMIT, *AT_REPLY]
    # Recovery, which one of them runs, delivers what is due of all of them: each looks first at what it has left.
    looked = threading.Barrier(len(cues))

    def one(cue: Cue, kind: str) -> tuple[str, str]:
        with through_a_proxy(house, postgres, kind, None) as case, ExitStack() as stack:
            stack.callback(looked.abort)
            case.proxy.set(Fault(Act.CUT, cue, then=Fault(Act.CUT)))
            said = case.run()
            if said == "unknown":
                with pytest.raises(OutcomeUnknown):
                    assert case.tx is not None
                    case.tx.finish()
                case.assert_untouched()
            looked.wait(2 * SETTLE_S + BOUND_S)
            stack.pop_all()
            case.proxy.heal()
            if said == "committed":
                # It was delivered, only the log could not be told so.
                assert case.account == "active"
                assert case.tx is not None
                house.coordinator.log.retry_now(case.tx.key)
                house.recovery.run_once()
            case.assert_true(said)
            return place(cue), said

    started = time.monotonic()
    with ThreadPoolExecutor(len(cues)) as pool:
        results = list(pool.map(one, cues, [KINDS[i % 2] for i in range(len(cues))]))
    assert time.monotonic() - started < 2 * SETTLE_S + BOUND_S
    for where, said in results:
        assert said == ("committed" if where == f"commit-reply-{heard}" else "unknown"), where


@pytest.mark.parametrize("kind", KINDS)
def test_commit_arrives_late(house: House, postgres: EmbeddedPostgres, kind: str) -> None:
    """R3: the caller's connection ends while COMMIT is still on its way: nobody may say "not committed" before it.

    It arrives soon (the fence waits), later than the fence waits, and after the server has given the session up (R4).
    """
    times = Times(block_timeout_s=1.5)

    def one(late_s: float) -> tuple[str, str]:
        with through_a_proxy(house, postgres, kind, times) as case:
            case.proxy.set(Fault(Act.LOSE_CLIENT, Cue(is_commit, passes=0), seconds=late_s))
            said = case.run()
            if said == "unknown":
                case.assert_untouched()
            case.assert_true(said)
            return said, case.truth

    with ThreadPoolExecutor(8) as pool:
        soon, later, never, *parts = pool.map(one, (0.1, 0.9, 4.0, 0.0, 0.2, 0.5, 1.2, 1.45))
    assert soon == later == ("committed", "committed")
    assert never == ("not committed", "not committed"), "idle_in_transaction_session_timeout has ended it"
    for said, truth in parts:
        assert said in (truth, "unknown")
