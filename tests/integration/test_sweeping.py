"""A sweep that has much to do: batches under way at the same time, each transaction ended once, nobody held up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from tandem.participant.sweeper import LANES, Sweeper
from tandem.participant.tables import prepared_transaction as t
from tandem.runtime.claims import claim
from tandem.runtime.database import create_engine
from tandem.runtime.times import Times
from tests.support.house import COORDINATOR, Member, fresh_name, member, new_id
from tests.support.rules import ScriptedCoordinator, Wire, asking, counted, ends

BATCH = 5
SECOND = "another"
HELD_S = 20.0
"""For whoever has to wait for another in here: a test that fails ends, too."""


class Town:
    """A ledger with two coordinators that say what a test wants: `first` and `second`."""

    def __init__(self, url: str) -> None:
        self.first, self.second = ScriptedCoordinator(), ScriptedCoordinator()
        addresses = {COORDINATOR: self.first.address, SECOND: self.second.address}
        self.ledger: Member = member("ledger", url, addresses, Times())

    def due(self, count: int, coordinator: str = COORDINATOR) -> list[UUID]:
        """So many transactions in doubt, and due."""
        ids = [new_id() for _ in range(count)]
        answers = Wire(self.ledger.server.port).ask_all(
            *(asking(id_, fresh_name(), coordinator=coordinator) for id_ in ids)
        )
        assert all(answer.ok for answer in answers)
        with self.ledger.engine.begin() as connection:
            connection.execute(sa.update(t).where(t.c.transaction_id.in_(ids)).values(next_attempt_at=sa.func.now()))
        return ids

    def sweeper(self, **engine: Any) -> Sweeper:
        """One with BATCH a claim; with settings of an engine, over one of its own."""
        own = create_engine(self.ledger.engine.url, **engine) if engine else self.ledger.engine
        return Sweeper(own, self.ledger.resolver, self.ledger.metrics, batch=BATCH)

    def left(self) -> int:
        """How many are in doubt."""
        with self.ledger.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).where(~t.c.confirmed).select_from(t)).scalar_one()

    def attempts(self, ids: list[UUID]) -> set[int]:
        """How often they were claimed."""
        with self.ledger.engine.connect() as connection:
            return set(connection.execute(sa.select(t.c.attempts).where(t.c.transaction_id.in_(ids))).scalars())

    def close(self) -> None:
        self.ledger.server.drain(0)
        self.ledger.resolver.close()
        self.ledger.engine.dispose()
        self.first.stop()
        self.second.stop()


@pytest.fixture
def town(new_database: Callable[[str], str]) -> Iterator[Town]:
    made = Town(new_database("sweeping"))
    yield made
    made.close()


def test_batches_are_under_way_at_the_same_time(town: Town) -> None:
    """R11: after a full batch, LANES of them are asked for at once; each transaction is claimed and ended once."""
    ids = town.due(BATCH + 4 * LANES * BATCH)
    meeting = threading.Barrier(LANES)
    together: list[int] = []

    def wait() -> None:
        if 1 < len(town.first.asked) <= 1 + LANES:  # the first batch goes alone
            together.append(meeting.wait(HELD_S))

    town.first.meanwhile = wait
    assert town.sweeper().run_once() == len(ids)
    assert sorted(together) == list(range(LANES))
    asked = [id_ for batch in town.first.asked for id_ in batch]
    assert sorted(asked) == sorted(map(str, ids)), "none was asked for twice"
    assert town.attempts(ids) == {1}
    assert town.left() == 0
    assert counted(town.ledger.registry, "tandem_sweep_claimed_total") == len(ids)


def test_a_coordinator_that_hangs_in_the_middle(town: Town) -> None:
    """R11: it costs one deadline, not one a batch: what is due of another is ended, and its own is left for later."""
    mine, hanging = town.due(6 * LANES * BATCH), town.due(6 * LANES * BATCH, SECOND)
    released = threading.Event()

    def hang() -> None:
        if len(town.second.asked) > 2:
            released.wait(HELD_S)

    town.second.meanwhile = hang
    ended: list[int] = []
    sweeper = town.sweeper()
    in_time = ends(lambda: ended.append(sweeper.run_once()), within_s=HELD_S, release=released.set)
    assert in_time, "the sweep waits for who hangs as often as it has batches"
    rows = {id_: town.ledger.row(id_) for id_ in (*mine, *hanging)}
    assert all(rows[id_].state == "aborted" for id_ in mine)  # type: ignore[union-attr]
    waiting = [row for id_ in hanging if (row := rows[id_]) is not None and row.state == "prepared"]
    assert ended == [len(mine) + len(hanging) - len(waiting)]
    assert waiting, "nothing of the one that hangs was ended by the clock"
    assert len(town.second.asked) <= 2 + LANES, "each lane finds out once at most"
    assert {row.last_error for row in waiting} <= {None, "DEADLINE_PASSED"}
    town.second.meanwhile = lambda: None


def test_one_connection_is_enough(town: Town) -> None:
    """The lanes wait for each other's connection, and for none while a coordinator is asked."""
    ids = town.due(4 * LANES * BATCH)
    town.ledger.participant.engine = create_engine(town.ledger.engine.url, pool_size=1)
    sweeper = Sweeper(town.ledger.participant.engine, town.ledger.resolver, town.ledger.metrics, batch=BATCH)
    assert sweeper.run_once() == len(ids)
    assert town.left() == 0
    town.ledger.participant.engine.dispose()


def test_a_process_that_stops_in_the_middle(town: Town) -> None:
    """The channels are closed under three questions: the sweep ends, nothing is ended without an answer, and the next
    process' sweep ends it all."""
    ids = town.due(6 * LANES * BATCH)
    meeting, released = threading.Barrier(LANES + 1), threading.Event()

    def hold() -> None:
        if 1 < len(town.first.asked) <= 1 + LANES:
            meeting.wait(HELD_S)
            released.wait(HELD_S)

    town.first.meanwhile = hold
    ended: list[int] = []
    sweeper = town.sweeper()

    def stop() -> None:
        meeting.wait(HELD_S)
        town.ledger.resolver.close()

    stopping = threading.Thread(target=stop)
    stopping.start()
    assert ends(lambda: ended.append(sweeper.run_once()), within_s=HELD_S, release=released.set)
    stopping.join(HELD_S)
    assert ended == [BATCH]
    assert town.left() == len(ids) - BATCH
    town.first.meanwhile = lambda: None


def test_a_lane_that_fails_takes_no_other_along(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """The own database fails one lane: it is raised, the others have ended theirs, and the next sweep has the rest."""
    ids = town.due(6 * LANES * BATCH)
    lock, claims = threading.Lock(), [0]

    def fail_once(*args: Any, **options: Any) -> Any:
        with lock:
            claims[0] += 1
            mine = claims[0]
        if mine == 3:
            raise sa.exc.OperationalError("claim", {}, Exception("gone"))
        return claim(*args, **options)

    monkeypatch.setattr("tandem.participant.sweeper.claim", fail_once)
    sweeper = town.sweeper()
    with pytest.raises(sa.exc.OperationalError):
        sweeper.run_once()
    assert town.ledger.registry.get_sample_value("tandem_sweep_last_success_timestamp_seconds") == 0
    left = town.left()
    assert left < len(ids) - BATCH, "the other lanes went on"
    assert sweeper.run_once() == left
    assert town.left() == 0
