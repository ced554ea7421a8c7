"""R16 from the other side: a disk that is full, a server without free connections. See also test_exhausted_processes.

Real PostgreSQL on a real, small file system. Nothing is lost, what is said is true, and all goes on by itself once
there is room again.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from tandem.coordinator.errors import OutcomeUnknown, Unavailable
from tandem.coordinator.transaction import Outcome
from tandem.runtime.errors import TandemError
from tandem.runtime.postgres import EmbeddedPostgres, wait_until_stopped
from tandem.v1 import coordinator_pb2 as pb
from tests.support.disk import SMALL_WAL, WITH_ROOM_IN_ITS_LOG, filled, small_disk
from tests.support.house import House, built, entry, fresh_name, new_id, own, packed
from tests.support.rules import Answer, Wire, answer_of, asking, eventually, failure_of, key_of

NewDatabase = Callable[[str], str]

REFUSALS = 5
MOST = 4_000
"""Transactions that a full disk may still find room for, in pages that are half empty."""


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["initiator", "ledger"])
def test_a_full_disk(new_database: NewDatabase, whose: str) -> None:
    """Refused, and said so, or unknown; whoever was acknowledged is there; service resumes with the room."""
    with small_disk() as disk:
        server = EmbeddedPostgres(disk / "postgres", settings=SMALL_WAL).start()
        try:
            with built(lambda name: server.database_url(name) if name == whose else new_database(name)) as house:
                _fill_and_free(house, server, disk, whose)
        finally:
            server.close()
            wait_until_stopped(server.folder)


def _fill_and_free(house: House, server: EmbeddedPostgres, disk: Path, whose: str) -> None:
    told: dict[UUID, tuple[UUID, str, str]] = {}
    log_id = house.coordinator.log.log_id()
    with (house.engine if whose == "initiator" else house.ledger.engine).begin() as connection:
        connection.exec_driver_sql(WITH_ROOM_IN_ITS_LOG)
    assert _try(house, new_id(), uuid4(), fresh_name()) == "committed"
    with filled(disk):
        for _ in range(MOST):
            id_, own_id = new_id(), uuid4()
            name = fresh_name() + secrets.token_hex(1_000)
            told[id_] = (own_id, name, _try(house, id_, own_id, name))
            if sum(said != "committed" for _, _, said in told.values()) == REFUSALS:
                break
        else:
            pytest.fail("the disk never was full")
        answer = _first_refusal(house, whose, log_id)
        assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "DATABASE_FULL")
        assert answer.retry_after_s is not None
    server.start()  # if it has given up: for what it has to write before it can do anything there was no room either

    eventually(lambda: _try(house, new_id(), uuid4(), fresh_name()) == "committed", within_s=60)
    for member in house.members.values():
        with member.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE twophase.prepared_transaction SET next_attempt_at = now() WHERE NOT confirmed"
            )
    eventually(lambda: (_end(house), not _left(house))[1], within_s=60)
    for id_, (own_id, name, said) in told.items():
        is_committed = house.outcome(id_) == "committed"
        assert said == "unknown" or is_committed == (said == "committed"), f"{id_} was said to be {said}"
        assert house.own_rows(own_id) == ({own_id} if is_committed else set())
        assert house.ledger.accounts(name) == ({name: "active"} if is_committed else {})


def _first_refusal(house: House, whose: str, log_id: UUID) -> Answer:
    """What whoever stands on the full disk says when it finds no room any more: Prepare, or Resolve with fence."""
    wire = Wire(house.ledger.server.port)
    for _ in range(MOST):
        if whose == "ledger":
            answer = wire.ask(asking(new_id(), fresh_name() + secrets.token_hex(1_000), log_id=log_id))
        else:
            (answered,) = house.stub.Resolve(_question(log_id), timeout=20).results
            answer = answer_of(answered.status)
        if not answer.ok:
            return answer
    raise AssertionError("the disk never was full")


def _try(house: House, id_: UUID, own_id: UUID, name: str) -> str:
    """What the caller is told."""
    try:
        with house.coordinator.transaction({"ledger": [entry(name)]}, transaction_id=id_) as tx:
            tx.connection.execute(sa.insert(own).values(id=own_id, note=name))
    except OutcomeUnknown:
        return "unknown"
    except (Unavailable, sa.exc.OperationalError):
        return "refused"
    return "committed"


def _end(house: House) -> None:
    with contextlib.suppress(TandemError, sa.exc.SQLAlchemyError):
        for member in house.members.values():
            member.sweeper.run_once()
        house.recovery.run_once()


def _left(house: House) -> bool:
    """Whether anything is in doubt or undelivered."""
    with house.ledger.engine.connect() as connection:
        prepared = connection.exec_driver_sql("SELECT count(*) FROM twophase.prepared_transaction WHERE NOT confirmed")
        if prepared.scalar_one():
            return True
    with house.engine.connect() as connection:
        undelivered = connection.exec_driver_sql("SELECT count(*) FROM twophase.decision WHERE undelivered <> '{}'")
        return bool(undelivered.scalar_one())


# --- no free connection -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[EmbeddedPostgres]:
    """A server that allows few connections."""
    with tempfile.TemporaryDirectory(prefix="tandem-narrow-") as folder:
        Path(folder).chmod(0o755)
        settings = {"max_connections": "30", "superuser_reserved_connections": "0"}
        server = EmbeddedPostgres(Path(folder) / "data", settings=settings).start()
        try:
            yield server
        finally:
            server.close()
            wait_until_stopped(server.folder)


def _question(log_id: UUID) -> pb.ResolveRequest:
    """About a transaction that nobody knows, with fence."""
    question = pb.ResolveRequest(participant="ledger", fence=True)
    question.items.add(key=key_of(new_id()), log_id=str(log_id), digest=bytes(32))
    return question


def _executing() -> pb.ExecuteRequest:
    request = pb.ExecuteRequest(key=key_of(new_id()))
    request.branches.add(participant="ledger", writes=packed(entry(fresh_name())))
    return request


@contextmanager
def storm(url: str) -> Iterator[int]:
    """Somebody takes every connection that the server allows."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    taken = []
    try:
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                taken.append(psycopg2.connect(dsn))
        yield len(taken)
    finally:
        for connection in taken:
            connection.close()


def test_a_connection_storm(narrow: EmbeddedPostgres) -> None:
    """Everybody is told UNAVAILABLE, or what is unknown; when the storm is over all goes on with the same objects."""
    with built(narrow.database_url) as house:
        wire, name = Wire(house.ledger.server.port), fresh_name()
        log_id = house.coordinator.log.log_id()
        in_doubt = house.coordinator.prepare({"ledger": [entry(name)]})
        house.engine.dispose()
        for member in house.members.values():
            member.engine.dispose()
        with storm(house.url) as taken:
            assert taken > 5
            with pytest.raises(Unavailable):
                with house.coordinator.transaction({"ledger": [entry(fresh_name())]}):
                    pytest.fail("the block must not run")
            with pytest.raises(OutcomeUnknown):  # an id of the caller's: an earlier call may have committed (R3)
                house.coordinator.execute(new_id(), {"ledger": [entry(fresh_name())]})
            for answer, reason in (
                (wire.ask(asking(new_id(), fresh_name())), "DATABASE_UNAVAILABLE"),
                (failure_of(lambda: house.stub.Resolve(_question(log_id), timeout=20)), "DATABASE_UNAVAILABLE"),
                (failure_of(lambda: house.stub.Execute(_executing(), timeout=20)), "OUTCOME_UNKNOWN"),
            ):
                assert (answer.code, answer.reason) == ("UNAVAILABLE", reason)
                assert answer.retry_after_s is not None
            with pytest.raises((TandemError, sa.exc.OperationalError)):
                house.ledger.sweeper.run_once()
            with pytest.raises(OutcomeUnknown):
                in_doubt.finish()
        assert in_doubt.finish() is Outcome.ABORTED
        house.coordinator.execute(new_id(), {"ledger": [entry(name)]})
        assert house.ledger.accounts(name) == {name: "active"}
        assert wire.ask(asking(new_id(), fresh_name())).ok
