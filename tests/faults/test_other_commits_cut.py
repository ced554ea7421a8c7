"""R3, R4, R12, R15: the other local commits of the protocol, cut before COMMIT, within it, and before its reply.

A participant's (vote, publish, discard), the fence's and the mark's; test_commit_cut has the deciding one. What is said
is true in the database, and the same asked again is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url

from lab.proxy import Act, Cue, Fault, TcpProxy
from lab.wire_pg import COMMIT, ClientMessages, is_query
from tandem.coordinator.decision_log import DecisionLog, Question
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.transaction import Outcome
from tandem.participant.participant import Ask, Participant
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.database import create_engine
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.postgres import EmbeddedPostgres
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, own, packed
from tests.support.ledger import Ledger

Predicate = Callable[[bytes], bool]
PLACES = ("before-commit", "in-commit", "before-reply")
places = pytest.mark.parametrize("place", PLACES)

UNSURE = {Reason.DATABASE_UNAVAILABLE}
"""What may be said instead of an answer."""


def anything(_: bytes) -> bool:
    """Any reply."""
    return True


def cut(place: str, begins: str, *, inside: bool = False) -> Fault:
    """In the COMMIT that follows a statement that begins so (inside: that holds this)."""
    seen = False
    is_statement, is_commit = is_query(begins), is_query("COMMIT")

    def follows(message: bytes) -> bool:
        nonlocal seen
        seen = seen or (begins.encode() in message if inside else is_statement(message))
        return seen and is_commit(message)

    match place:
        case "before-commit":
            return Fault(Act.CUT, Cue(follows, passes=0))
        case "in-commit":
            return Fault(Act.CUT, Cue(follows, passes=len(COMMIT) // 2))
        case _:
            return Fault(Act.CUT, Cue(follows, anything, passes=0))


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """One house for the module; what goes through a proxy is the case's own."""
    with built(new_database) as house:
        yield house


@contextmanager
def behind_a_proxy(postgres: EmbeddedPostgres, database: Engine) -> Iterator[tuple[Engine, TcpProxy]]:
    """The same database by way of a proxy."""
    url = make_url(postgres.tcp_url(str(database.url.database)))
    with TcpProxy(f"{url.host}:{url.port}", requests=ClientMessages) as proxy:
        query = {"sslmode": "disable", "gssencmode": "disable"}
        engine = create_engine(url.set(host="127.0.0.1", port=proxy.port, query=query), pool_size=3)
        try:
            yield engine, proxy
        finally:
            engine.dispose()


# --- the participant --------------------------------------------------------------------------------------------------

BEGINS = {"prepare": "INSERT INTO ledger", "commit": "UPDATE ledger", "abort": "DELETE FROM ledger"}
ENDS = {"prepare": "prepared", "commit": "committed", "abort": "aborted"}


@places
@pytest.mark.parametrize("message", BEGINS)
def test_a_participants_commit(house: House, postgres: EmbeddedPostgres, message: str, place: str) -> None:
    """R15: "Votes … and acks follow a durable commit": none is given for what was cut; asked again, all is well."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)], "other": [entry(name)]})
    if message == "prepare":  # an id of its own, and not yet staged
        name = fresh_name()
        tx = house.coordinator.prepare({"other": [entry(name)]})
    ask = Ask(tx.key, tx.log_id, 60.0, 7.0, packed(entry(name)))
    with behind_a_proxy(postgres, house.ledger.engine) as (engine, proxy):
        participant = Participant(
            engine,
            name="ledger",
            resource=Ledger(),
            coordinators=[COORDINATOR],
            times=house.times,
            metrics=house.ledger.metrics,
        )

        def answer() -> TandemError | None:
            if message == "prepare":
                (vote,) = participant.prepare([ask])
                return vote if isinstance(vote, TandemError) else None
            end = participant.commit if message == "commit" else participant.abort
            return end([tx.key], ResolvedBy.COORDINATOR)[0]

        def state() -> str | None:
            row = house.ledger.row(tx.id)
            return None if row is None else str(row.state)

        before = state()
        proxy.set(cut(place, BEGINS[message]))
        error = answer()
        assert proxy.struck == 1
        assert error is not None
        assert error.reason in UNSURE
        assert error.retry_after_s is not None
        assert state() == (ENDS[message] if place == "before-reply" else before)
        assert answer() is None, "the same again"
    assert state() == ENDS[message]
    accounts = {"prepare": {name: "prepared"}, "commit": {name: "active"}, "abort": {}}
    assert house.ledger.accounts(name) == accounts[message]


# --- the fence --------------------------------------------------------------------------------------------------------


@places
def test_the_fences_commit(house: House, postgres: EmbeddedPostgres, place: str) -> None:
    """R4: ABORTED is answered only for a fence that is written: else the asker is told nothing, and may ask again."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    with behind_a_proxy(postgres, house.engine) as (engine, proxy):
        log = DecisionLog(engine, house.times)
        question = Question(tx.key, log.log_id(), tx.digests["ledger"])
        proxy.set(cut(place, "INSERT INTO twophase.decision", inside=True))
        (answer,) = log.resolve("ledger", [question], fence=True)
        assert proxy.struck == 1
        assert isinstance(answer, TandemError)
        assert answer.reason in UNSURE
        assert house.outcome(tx.id) == ("aborted" if place == "before-reply" else None)
        assert house.ledger.accounts(name) == {name: "prepared"}
        assert log.resolve("ledger", [question], fence=True) == [Outcome.ABORTED]
    assert house.coordinator.finish(tx) is Outcome.ABORTED
    assert house.ledger.accounts(name) == {}


# --- the mark ---------------------------------------------------------------------------------------------------------


@places
def test_the_marks_commit(house: House, postgres: EmbeddedPostgres, place: str) -> None:
    """R12: "After the commit point nothing raises": what was acknowledged is so; a mark that is lost is made again."""
    name, own_id = fresh_name(), uuid4()
    with behind_a_proxy(postgres, house.engine) as (engine, proxy):
        target = {"ledger": f"127.0.0.1:{house.ledger.server.port}"}
        coordinator = Coordinator(engine, name=COORDINATOR, participants=target, times=house.times)
        try:
            with coordinator.transaction({"ledger": [entry(name)]}) as tx:
                tx.connection.execute(sa.insert(own).values(id=own_id))
                proxy.set(cut(place, "UPDATE twophase.decision", inside=True))
            assert proxy.wait_struck(1, timeout_s=10)
            assert tx.delivered
        finally:
            coordinator.close()
    assert house.own_rows(own_id) == {own_id}
    assert house.ledger.accounts(name) == {name: "active"}
    decided = house.coordinator.log.get(tx.key)
    assert decided is not None
    assert decided.outcome == "committed"
    assert decided.undelivered == ([] if place == "before-reply" else ["ledger"])
    house.coordinator.log.retry_now(tx.key)
    house.recovery.run_once()
    decided = house.coordinator.log.get(tx.key)
    assert decided is not None
    assert (decided.undelivered, decided.parked) == ([], {})
