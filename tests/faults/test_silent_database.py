"""R16: every wait has a limit, also where a database says nothing at all and its kernel still acknowledges.

Real PostgreSQL behind the fault proxy, half-open from one statement on, or with its backend stopped. Nobody may wait
longer than BOUND_S; what is said must be true; and where it is over, both sides agree. Each step is a case; they all
wait at the same time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.orm import Session

from lab.proxy import Act, Cue, Fault, TcpProxy
from lab.wire_pg import COMMIT_REPLY, ClientMessages, is_query
from tandem.coordinator.decision_log import DecisionLog, Question
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import OutcomeUnknown, Unavailable
from tandem.coordinator.handle import Transaction
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.transaction import Outcome
from tandem.participant.participant import Ask, Participant
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.database import create_engine, explained
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.server import Server
from tandem.v1 import participant_pb2_grpc
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own, packed
from tests.support.ledger import Ledger
from tests.support.rules import asking, channel_to, eventually

BOUND_S = float(os.environ.get("TANDEM_BOUND_S", "15"))
"""For anything that anybody may be waiting for."""

SLACK_S = 1.0
"""For a busy machine."""


def is_statement(text: str) -> Callable[[bytes], bool]:
    """A query in which this occurs."""
    wanted = text.encode()
    return lambda message: message[:1] == b"Q" and wanted in message


HEARD = Cue(is_query("COMMIT"), lambda _: True, len(COMMIT_REPLY))
"""COMMIT was answered and the answer heard."""


@dataclass
class Ran:
    """What a step has come to: how long it took, what it said or raised; `late`: it had to be released."""

    took_s: float
    said: str
    late: bool


Step = Callable[["Place"], str]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    """One case: runs beside all the others."""
    STEPS[function.__name__.replace("_", "-")] = function
    return function


@dataclass
class Place:
    """A step's own surroundings: the shared house, and proxies that are gone with it."""

    house: House
    postgres: EmbeddedPostgres
    closing: ExitStack
    began: float = 0.0
    open_questions: list[tuple[Transaction, str, UUID]] = field(default_factory=list)

    def begin(self) -> None:
        """Everything is ready: from here on time counts."""
        self.began = time.monotonic()

    def engine(self, database: Engine, *, pool_size: int = 3) -> tuple[Engine, TcpProxy]:
        """The same database, through a proxy."""
        url = make_url(self.postgres.tcp_url(str(database.url.database)))
        proxy = self.closing.enter_context(TcpProxy(f"{url.host}:{url.port}", requests=ClientMessages))
        engine = create_engine(proxied(url, proxy), pool_size=pool_size)
        self.begin()
        return engine, proxy

    def driver(self, *, log: Engine | None = None) -> tuple[Coordinator, TcpProxy]:
        """A driver whose database is behind the proxy; warm: it has connections and knows the log."""
        engine, proxy = self.engine(self.house.engine)
        coordinator = Coordinator(
            engine,
            name=COORDINATOR,
            participants={name: f"127.0.0.1:{m.server.port}" for name, m in self.house.members.items()},
            log_engine=log,
        )
        with coordinator.transaction({"ledger": [entry(fresh_name())]}):
            pass
        self.begin()
        return coordinator, proxy

    def participant(self) -> tuple[Participant, Resolver, TcpProxy]:
        """The ledger's participant, its database behind the proxy; warm."""
        engine, proxy = self.engine(self.house.ledger.engine)
        member = self.house.ledger
        participant = Participant(
            engine,
            name="ledger",
            resource=Ledger(),
            coordinators=[COORDINATOR],
            times=self.house.times,
            metrics=member.metrics,
        )
        resolver = Resolver(participant, {COORDINATOR: f"127.0.0.1:{self.house.server.port}"})
        self.closing.callback(resolver.close)
        assert not isinstance(participant.prepare([self.ask()])[0], TandemError)
        self.begin()
        return participant, resolver, proxy

    def assert_answered(self) -> None:
        """Once it is over, `finish()` says what became of what nobody knew, and both sides agree."""
        for tx, name, own_id in self.open_questions:

            def finish(tx: Transaction = tx) -> Outcome | None:
                with suppress(OutcomeUnknown):
                    return self.house.coordinator.finish(tx)
                return None

            committed = eventually(finish) is Outcome.COMMITTED
            assert (self.house.own_rows(own_id) == {own_id}) is committed
            assert self.house.ledger.accounts(name) == ({name: "active"} if committed else {})

    def ask(self) -> Ask:
        key = TransactionKey(COORDINATOR, new_id())
        return Ask(key, self.house.coordinator.log.log_id(), 60.0, 7.0, packed(entry(fresh_name())))

    def drive(self, coordinator: Coordinator, *, using_session: bool = False, raises: bool = False) -> str:
        """A `with` block; what the driver said, checked against the truth afterwards."""
        name, own_id = fresh_name(), uuid4()
        tx = None
        session = Session(coordinator.engine) if using_session else None
        try:
            with coordinator.transaction({"ledger": [entry(name)]}, using=session) as tx:
                (session or tx.connection).execute(sa.insert(own).values(id=own_id))
                if raises:
                    raise ZeroDivisionError
            said = "committed"
        except OutcomeUnknown:
            said = "unknown"
        except Unavailable:
            said = "unavailable"
        except ZeroDivisionError:
            said = "own exception"
        except sa.exc.SQLAlchemyError as error:
            said = explained(error).reason.value
        committed = self.house.own_rows(own_id) == {own_id}
        if tx is not None:
            assert committed is (self.house.outcome(tx.id) == "committed")
            self.open_questions += [(tx, name, own_id)] if said == "unknown" else []
        if said == "committed":
            assert committed
        elif said != "unknown":
            assert not committed
        return said


def proxied(url: URL, proxy: TcpProxy) -> URL:
    """The same database, by way of the proxy."""
    return url.set(host="127.0.0.1", port=proxy.port, query={"sslmode": "disable", "gssencmode": "disable"})


def silence(cue: Cue | Callable[[bytes], bool], *, for_good: bool) -> Fault:
    """Half-open from there on: this connection, or every other and new one, too."""
    where = cue if isinstance(cue, Cue) else Cue(cue)
    return Fault(Act.SILENCE, where, then=Fault(Act.SILENCE) if for_good else None)


# --- the initiator ----------------------------------------------------------------------------------------------------


def driver_step(name: str, cue: Cue | Callable[[bytes], bool], *, for_good: bool, session: bool = False) -> None:
    def run(place: Place) -> str:
        coordinator, proxy = place.driver()
        proxy.set(silence(cue, for_good=for_good))
        return place.drive(coordinator, using_session=session)

    STEPS[name] = run


for _kind in (False, True):
    for _good in (False, True):
        _name = f"driver-{{}}-{'session' if _kind else 'engine'}-{'for-good' if _good else 'once'}"
        driver_step(_name.format("begin"), is_query("BEGIN"), for_good=_good, session=_kind)
        driver_step(_name.format("own-insert"), is_query("INSERT INTO own"), for_good=_good, session=_kind)
        driver_step(_name.format("decision"), is_query("INSERT INTO twophase"), for_good=_good, session=_kind)
        driver_step(_name.format("commit"), is_query("COMMIT"), for_good=_good, session=_kind)
        driver_step(_name.format("after-commit"), HEARD, for_good=_good, session=_kind)


@step
def driver_rollback(place: Place) -> str:
    """The block raises, ROLLBACK is not answered."""
    coordinator, proxy = place.driver()
    proxy.set(silence(is_query("ROLLBACK"), for_good=True))
    return place.drive(coordinator, raises=True)


@step
def driver_settling(place: Place) -> str:
    """COMMIT is cut, and then the log says nothing."""
    coordinator, proxy = place.driver()
    proxy.set(Fault(Act.CUT, Cue(is_query("COMMIT")), then=Fault(Act.SILENCE)))
    return place.drive(coordinator)


@step
def driver_mark(place: Place) -> str:
    """Commit was acknowledged, the mark in the log is not answered (R12)."""
    coordinator, proxy = place.driver()
    proxy.set(silence(is_statement("UPDATE twophase.decision"), for_good=True))
    return place.drive(coordinator)


@step
def driver_cold(place: Place) -> str:
    """The process has just started and its database is silent from the first connection on."""
    engine, proxy = place.engine(place.house.engine)
    proxy.set(Fault(Act.SILENCE))
    coordinator = Coordinator(engine, name=COORDINATOR, participants={"ledger": "127.0.0.1:1"})
    try:
        coordinator.log.log_id()
    except sa.exc.SQLAlchemyError as error:
        return explained(error).reason.value
    return "?"


@step
def driver_first_connection(place: Place) -> str:
    """The first connection comes about, and what SQLAlchemy asks on it is not answered."""
    engine, proxy = place.engine(place.house.engine)
    proxy.set(silence(lambda message: message[:1] == b"Q", for_good=True))
    coordinator = Coordinator(engine, name=COORDINATOR, participants={"ledger": "127.0.0.1:1"})
    try:
        coordinator.log.log_id()
    except sa.exc.SQLAlchemyError as error:
        return explained(error).reason.value
    return "?"


@step
def driver_new_connection(place: Place) -> str:
    """A pool that has connected before needs another connection, and that one is silent once it is authenticated."""
    coordinator, proxy = place.driver()
    coordinator.engine.dispose()
    proxy.set(silence(lambda message: message[:1] == b"Q", for_good=True))
    return place.drive(coordinator)


# --- PostgreSQL's backend itself, stopped -----------------------------------------------------------------------------


def stopped_step(name: str, starts: str) -> None:
    def run(place: Place) -> str:
        coordinator, _ = place.driver()
        stopped: list[int] = []

        def stop(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith(starts) and not stopped:
                stopped.append(connection.connection.dbapi_connection.info.backend_pid)
                os.kill(stopped[0], signal.SIGSTOP)

        event.listen(coordinator.engine, "before_cursor_execute", stop)

        def go_on() -> None:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

        place.closing.callback(go_on)
        return place.drive(coordinator)

    STEPS[name] = run


stopped_step("stopped-backend-own-insert", "INSERT INTO own")
stopped_step("stopped-backend-commit", "COMMIT")


# --- the participant --------------------------------------------------------------------------------------------------


def participant_step(name: str, cue: Cue | Callable[[bytes], bool], *, for_good: bool = True) -> None:
    def run(place: Place) -> str:
        participant, _, proxy = place.participant()
        proxy.set(silence(cue, for_good=for_good))
        (answer,) = participant.prepare([place.ask()])
        return answer.reason.value if isinstance(answer, TandemError) else "yes"

    STEPS[name] = run


participant_step("prepare-begin-once", is_query("BEGIN"), for_good=False)
participant_step("prepare-begin", is_query("BEGIN"))
participant_step("prepare-stage", is_query("INSERT INTO ledger"))
participant_step("prepare-commit", is_query("COMMIT"))
participant_step("prepare-after-commit", HEARD)


@step
def commit_publish(place: Place) -> str:
    """Commit's second statement is not answered."""
    participant, _, proxy = place.participant()
    ask = place.ask()
    participant.prepare([ask])
    proxy.set(silence(is_query("UPDATE ledger"), for_good=True))
    (error,) = participant.commit([ask.key], ResolvedBy.COORDINATOR)
    return error.reason.value if error is not None else "ok"


@step
def prepare_over_the_wire(place: Place) -> str:
    """The caller of a participant whose database is silent has its own deadline; the server's threads come back."""
    participant, resolver, proxy = place.participant()
    server = Server("127.0.0.1:0", workers=2, queue=0)
    ParticipantServicer(participant, resolver).add_to(server)
    server.start()
    place.closing.callback(lambda: server.drain(0))
    proxy.set(silence(is_query("INSERT INTO ledger"), for_good=False))
    stub = participant_pb2_grpc.ParticipantServiceStub(channel_to(server.port))
    log_id = place.house.coordinator.log.log_id()
    try:
        stub.Prepare(asking(new_id(), fresh_name(), log_id=log_id), timeout=1)
        return "?"
    except grpc.RpcError as error:
        said = str(error.code().name)
    eventually(lambda: server._pool._pending == 0, 120)
    stub.Prepare(asking(new_id(), fresh_name(), log_id=log_id), timeout=5)
    return said


@step
def sweeper_claim(place: Place) -> str:
    """The sweeper's claim is not answered: run_once raises, and can be called again."""
    participant, resolver, proxy = place.participant()
    proxy.set(silence(is_statement("UPDATE twophase"), for_good=True))
    try:
        Sweeper(participant.engine, resolver, place.house.ledger.metrics).run_once()
    except (TandemError, sa.exc.SQLAlchemyError) as error:
        return explained(error).reason.value
    return "?"


# --- the coordinator's service ----------------------------------------------------------------------------------------


@step
def resolve_read(place: Place) -> str:
    """Resolve's read is not answered."""
    return _resolve(place, is_statement("LEFT OUTER JOIN twophase.decision"))


@step
def resolve_fence(place: Place) -> str:
    """Resolve's fence is not answered."""
    return _resolve(place, is_query("INSERT INTO twophase.decision"))


def _resolve(place: Place, cue: Callable[[bytes], bool]) -> str:
    engine, proxy = place.engine(place.house.engine)
    log = DecisionLog(engine, place.house.times)
    log_id = log.log_id()
    proxy.set(silence(cue, for_good=True))
    try:
        question = Question(TransactionKey(COORDINATOR, new_id()), log_id, b"\0" * 32)
        (answer,) = log.resolve("ledger", [question], fence=True)
    except (TandemError, sa.exc.SQLAlchemyError) as error:
        return explained(error).reason.value
    return answer.reason.value if isinstance(answer, TandemError) else answer.value


@step
def recovery_claim(place: Place) -> str:
    """Recovery's claim is not answered: run_once raises, and can be called again."""
    coordinator, proxy = place.driver()
    proxy.set(silence(is_statement("UPDATE twophase"), for_good=True))
    try:
        Recovery(coordinator).run_once()
    except (TandemError, sa.exc.SQLAlchemyError) as error:
        return explained(error).reason.value
    return "?"


@step
def insert_on_an_engine_of_the_owners_own(place: Place) -> str:
    """An Engine that nobody of ours has made: the INSERT is not answered, nor is any new connection."""
    url = make_url(place.postgres.tcp_url(str(place.house.engine.url.database)))
    proxy = place.closing.enter_context(TcpProxy(f"{url.host}:{url.port}", requests=ClientMessages))
    engine = sa.create_engine(proxied(url, proxy), pool_size=3)
    place.closing.callback(engine.dispose)
    coordinator = Coordinator(
        engine, name=COORDINATOR, participants={"ledger": f"127.0.0.1:{place.house.ledger.server.port}"}
    )
    place.closing.callback(coordinator.close)
    with coordinator.transaction({"ledger": [entry(fresh_name())]}):
        pass
    place.begin()
    try:
        with coordinator.transaction({"ledger": [entry(fresh_name())]}):
            proxy.set(silence(is_statement("INSERT INTO twophase"), for_good=True))
    except TandemError as error:
        return error.reason.value
    return "?"


# --- all of them at once ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(new_database: Callable[[str], str], postgres: EmbeddedPostgres) -> Iterator[Callable[[str], Ran]]:
    """Runs every step at the same time, from the first use on; gives what one has come to."""
    with built(new_database) as house, ThreadPoolExecutor(len(STEPS)) as pool:
        futures: dict[str, Future[Ran]] = {}

        def get(name: str) -> Ran:
            if not futures:
                futures.update({name: pool.submit(run, house, postgres, STEPS[name]) for name in STEPS})
            return futures[name].result()

        yield get


def run(house: House, postgres: EmbeddedPostgres, function: Step) -> Ran:
    """Runs one step in a thread of its own; releases it where it takes too long."""
    with ExitStack() as closing:
        place = Place(house, postgres, closing)
        done: Future[str] = Future()

        def work() -> None:
            try:
                done.set_result(function(place))
            except BaseException as error:  # handed to the test
                done.set_exception(error)

        thread = threading.Thread(target=work, daemon=True)
        place.begin()
        thread.start()
        late = False
        while not done.done() and not late:
            with suppress(Late):
                done.exception(0.1)
            late = time.monotonic() - place.began > BOUND_S + SLACK_S
        late = late and not done.done()
        took_s = time.monotonic() - place.began
    thread.join(60)  # its proxies are gone, so it has been released
    place.assert_answered()
    said = f"raised {done.exception()!r}" if done.exception() else done.result()
    return Ran(took_s, said, late)


@pytest.mark.parametrize("name", STEPS)
def test_a_silent_database_is_given_up(ran: Callable[[str], Ran], name: str) -> None:
    """R16: an error, or what is true already, within the bound."""
    result = ran(name)
    print(f"{name}: {result.said} after {result.took_s:.1f} s{', released' if result.late else ''}")
    assert not result.late, f"still waiting after {result.took_s:.1f} s"
    assert not result.said.startswith("raised"), result.said
    assert result.said != "?"
