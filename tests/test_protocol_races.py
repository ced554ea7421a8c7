"""R3 and R4 as races: ≥ 1,000 seeded interleavings each, every possible winner seen, never a split.

Two threads start together, each after its own seeded delay; the delays are drawn so that either may win. After each
race, or at the end for all of them, both sides are asked what they hold.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import sqlalchemy as sa

from tandem.coordinator.errors import Fenced, Refused, TransactionReused, Unavailable
from tandem.coordinator.handle import Transaction
from tandem.coordinator.tables import decision
from tandem.participant.tables import prepared_transaction
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.times import Times
from tandem.v1 import coordinator_pb2 as pb
from tandem.v1 import participant_pb2, transaction_pb2
from tests.support.house import COORDINATOR, House, Member, built, entry, fresh_name, new_id
from tests.support.ledger import account

ROUNDS = 1_000
WINS = 100
SEED = int(os.environ.get("TANDEM_SEED", "20261122"))
LANES = 4
"""Races that run side by side."""


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """Its push_after is long, so that nothing but the racers acts."""
    with built(new_database, times=Times(push_after_s=30.0, ttl_s=3600.0)) as house:
        print(f"seed {SEED}")
        yield house


class Race:
    """Two contestants, started together with seeded delays that adapt until both win often enough."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(f"{SEED}/{name}")
        self._lock = threading.Lock()
        self._bias_s = 0.0
        self.wins: Counter[str] = Counter()

    def run(self, first: Callable[[], object], second: Callable[[], object]) -> tuple[object, object]:
        """Both at once; what each returned or raised."""
        with self._lock:
            spread = self._random.gauss(0.0, 0.004) + self._bias_s
        barrier = threading.Barrier(2)
        results: list[object] = [None, None]

        def go(i: int, job: Callable[[], object], delay_s: float) -> None:
            barrier.wait(10)
            time.sleep(max(0.0, delay_s))
            try:
                results[i] = job()
            except Exception as error:  # an answer like any other
                results[i] = error

        threads = [
            threading.Thread(target=go, args=(0, first, spread)),
            threading.Thread(target=go, args=(1, second, -spread)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return results[0], results[1]

    def won(self, who: str, *, lean_s: float) -> None:
        """Counts a win and leans the next delays the other way. lean_s > 0 delays the first contestant."""
        with self._lock:
            self.wins[who] += 1
            self._bias_s = max(-0.02, min(0.02, self._bias_s + lean_s))


def lanes(rounds: int, work: Callable[[int], None]) -> None:
    """`work(i)` for each round, LANES at a time; the first failure is raised."""
    with ThreadPoolExecutor(LANES) as pool:
        for future in [pool.submit(work, i) for i in range(rounds)]:
            future.result()


def prepared(house: House, count: int) -> list[Transaction]:
    """So many transactions, prepared on both participants."""
    asked = [(None, {"ledger": [entry(n)], "other": [entry(n)]}) for n in (fresh_name() for _ in range(count))]
    txs: list[Transaction] = []
    for start in range(0, count, 250):
        txs += house.coordinator._prepare(asked[start : start + 250], ttl_s=3600, all_or_none=True)
    for tx in txs:
        tx.decision = house.coordinator.log.decide([tx.deciding], log_id=tx.log_id)
    return txs


def states(member: Member, ids: Sequence[UUID]) -> dict[UUID, tuple[str, str | None]]:
    """transaction_id → (the transaction's state, its entity's state)."""
    t = prepared_transaction
    statement = (
        sa.select(t.c.transaction_id, t.c.state, account.c.state.label("entity"))
        .select_from(t.outerjoin(account, account.c.transaction_id == t.c.transaction_id))
        .where(t.c.transaction_id.in_(ids))
    )
    with member.engine.connect() as connection:
        return {row.transaction_id: (row.state, row.entity) for row in connection.execute(statement)}


def outcomes(house: House, ids: Sequence[UUID]) -> dict[UUID, str]:
    """transaction_id → what the log holds."""
    with house.engine.connect() as connection:
        rows = connection.execute(
            sa.select(decision.c.transaction_id, decision.c.outcome).where(decision.c.transaction_id.in_(ids))
        )
        return {row.transaction_id: row.outcome for row in rows}


def assert_never_a_split(house: House, ids: Sequence[UUID]) -> None:
    """The log and both participants say the same of every transaction, entities included."""
    expected = {"committed": ("committed", "active"), "aborted": ("aborted", None)}
    decided = outcomes(house, ids)
    for member in (house.ledger, house.other):
        held = states(member, ids)
        for transaction_id in ids:
            assert held[transaction_id] == expected[decided[transaction_id]], (member.name, transaction_id)


def test_race_fence_and_local_commit(house: House) -> None:
    """R4: a fence races the initiator's local commit: one row, one winner, and both participants follow it."""
    race = Race("fence/commit")
    txs = prepared(house, ROUNDS)

    def one(i: int) -> None:
        tx = txs[i]

        def commit() -> str:
            with house.engine.begin() as connection:
                connection.execute(tx.decision)  # type: ignore[arg-type]
            return "committed"

        def fence() -> int:
            request = pb.ResolveRequest(participant="ledger", fence=True)
            request.items.add(
                key=transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(tx.id)),
                log_id=str(tx.log_id),
                digest=tx.digests["ledger"],
            )
            return stub.Resolve(request, timeout=10).results[0].outcome

        committed, fenced = race.run(commit, fence)
        if committed == "committed":
            assert fenced in (pb.ResolveResult.OUTCOME_COMMITTED, pb.ResolveResult.OUTCOME_IN_PROGRESS)
            race.won("commit", lean_s=0.0003)
        else:
            assert isinstance(committed, sa.exc.IntegrityError)
            assert fenced == pb.ResolveResult.OUTCOME_ABORTED
            race.won("fence", lean_s=-0.0003)

    stub = house.stub
    lanes(ROUNDS, one)
    ids = [tx.id for tx in txs]
    for member in (house.ledger, house.other):
        with member.engine.begin() as connection:
            connection.execute(
                sa.update(prepared_transaction)
                .where(prepared_transaction.c.transaction_id.in_(ids))
                .values(next_attempt_at=sa.func.now())
            )
        assert member.sweeper.run_once() == ROUNDS
    assert_never_a_split(house, ids)
    print(race.wins)
    assert min(race.wins["commit"], race.wins["fence"]) >= WINS, race.wins


def test_race_commit_and_abort(house: House) -> None:
    """The participant's table: Commit races Abort for one prepared transaction: one wins, the other is told so (R5)."""
    race = Race("commit/abort")
    txs = prepared(house, ROUNDS)
    stub = house.ledger.stub

    def one(i: int) -> None:
        key = transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(txs[i].id))
        by = transaction_pb2.RESOLVED_BY_COORDINATOR

        def commit() -> None:
            stub.Commit(participant_pb2.CommitRequest(key=key, resolved_by=by), timeout=10)

        def abort() -> None:
            stub.Abort(participant_pb2.AbortRequest(key=key, resolved_by=by), timeout=10)

        committed, aborted = race.run(commit, abort)
        assert (committed is None) != (aborted is None), (committed, aborted)
        if committed is None:
            race.won("commit", lean_s=0.0003)
        else:
            race.won("abort", lean_s=-0.0003)

    lanes(ROUNDS, one)
    held = Counter(states(house.ledger, [tx.id for tx in txs]).values())
    assert held == {("committed", "active"): race.wins["commit"], ("aborted", None): race.wins["abort"]}
    print(race.wins)
    assert min(race.wins["commit"], race.wins["abort"]) >= WINS, race.wins
    keys = [tx.key for tx in txs]
    house.other.participant.abort(keys, ResolvedBy.COORDINATOR)


def test_race_two_executes_same_content(house: House) -> None:
    """R2, R3: two drivers of one id with the same content: both are told committed, whoever's INSERT came first."""
    race = Race("execute/same")
    drivers = {name: house.another_coordinator(engine=_own_engine(house)) for name in ("a", "b")}
    lost: set[tuple[str, UUID]] = set()
    for name, driver in drivers.items():
        _note_lost_inserts(driver.engine, name, lost)
    ids: list[UUID] = []

    def one(i: int) -> None:
        transaction_id = new_id()
        ids.append(transaction_id)
        name = fresh_name()
        branches = {"ledger": [entry(name)], "other": [entry(name)]}
        a, b = race.run(
            lambda: drivers["a"].execute(transaction_id, branches),
            lambda: drivers["b"].execute(transaction_id, branches),
        )
        for answer in (a, b):
            assert isinstance(answer, Transaction | Unavailable), repr(answer)
        assert isinstance(a, Transaction) or isinstance(b, Transaction)
        winner = "b" if ("a", transaction_id) in lost else "a" if ("b", transaction_id) in lost else "early"
        race.won(winner, lean_s={"a": 0.0002, "b": -0.0002, "early": 0.0}[winner])

    lanes(ROUNDS, one)
    assert set(outcomes(house, ids).values()) == {"committed"}
    assert_never_a_split(house, ids)
    print(race.wins)
    assert min(race.wins["a"], race.wins["b"]) >= WINS, race.wins


def test_race_two_executes_other_content(house: House) -> None:
    """R2, R3, R6: two drivers of one id with other content: at most one commits, and nothing of the other's exists."""
    race = Race("execute/other")
    drivers = {name: house.another_coordinator(engine=_own_engine(house)) for name in ("a", "b")}
    ids: dict[UUID, tuple[str, str]] = {}

    def one(i: int) -> None:
        transaction_id = new_id()
        names = (fresh_name(), fresh_name())
        ids[transaction_id] = names
        a, b = race.run(
            lambda: drivers["a"].execute(transaction_id, {"ledger": [entry(names[0])]}),
            lambda: drivers["b"].execute(transaction_id, {"ledger": [entry(names[1])]}),
        )
        a_won = isinstance(a, Transaction)
        assert a_won != isinstance(b, Transaction), (a, b)
        loser = b if a_won else a
        assert isinstance(loser, TransactionReused | Fenced | Refused | Unavailable), repr(loser)
        race.won("a" if a_won else "b", lean_s=0.0003 if a_won else -0.0003)

    lanes(ROUNDS, one)
    assert set(outcomes(house, list(ids)).values()) == {"committed"}
    held = states(house.ledger, list(ids))
    assert set(held.values()) == {("committed", "active")}
    with house.ledger.engine.connect() as connection:
        rows = connection.execute(
            sa.select(account.c.transaction_id, account.c.name).where(account.c.transaction_id.in_(list(ids)))
        ).all()
    assert len(rows) == ROUNDS
    assert all(row.name in ids[row.transaction_id] for row in rows)
    print(race.wins)
    assert min(race.wins["a"], race.wins["b"]) >= WINS, race.wins


def _own_engine(house: House) -> sa.Engine:
    from tandem.runtime.database import create_engine

    return create_engine(house.url, pool_size=12)


def _note_lost_inserts(engine: sa.Engine, name: str, lost: set[tuple[str, UUID]]) -> None:
    """Remembers whose deciding INSERT met the other's row."""
    current = threading.local()

    @sa.event.listens_for(engine, "before_cursor_execute")
    def before(_c: object, _cur: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith("INSERT INTO twophase.decision") and isinstance(parameters, dict):
            current.id = UUID(str(parameters["deciding_transaction_id"]).strip('{}"'))

    @sa.event.listens_for(engine, "handle_error")
    def failed(context: sa.engine.ExceptionContext) -> None:
        from tandem.runtime.database import constraint

        if (
            isinstance(context.original_exception, Exception)
            and constraint(context.original_exception) == "decision_pkey"
        ):
            lost.add((name, current.id))


def test_race_many_drivers_one_key(house: House) -> None:
    """R8: many transactions want one unique key at once: exactly one gets it, the others leave nothing behind."""
    names = [fresh_name() for _ in range(100)]

    def one(i: int) -> None:
        try:
            with house.coordinator.transaction({"ledger": [entry(names[i % 100])], "other": [entry(fresh_name())]}):
                pass
        except TandemError as error:
            assert isinstance(error, Refused | Unavailable), repr(error)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(400)))
    with house.ledger.engine.connect() as connection:
        rows = connection.execute(
            sa.select(account.c.transaction_id, account.c.state).where(account.c.name.in_(names))
        ).all()
    assert len(rows) <= 100
    ids = [row.transaction_id for row in rows]
    assert all(row.state == "active" for row in rows)
    assert set(outcomes(house, ids).values()) == {"committed"}
    assert {TransactionKey(COORDINATOR, i) for i in states(house.other, ids)} == {
        TransactionKey(COORDINATOR, i) for i in ids
    }
