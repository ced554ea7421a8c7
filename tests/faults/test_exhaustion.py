"""R16 from the other side: a disk that is full, a server without free connections, workers that are all taken.

Real PostgreSQL on a real, small file system. Nothing is lost, what is said is true, and all goes on by itself once
there is room again.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import psycopg2
import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import make_url

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import OutcomeUnknown, Unavailable
from tandem.coordinator.servicer import RESERVED, CoordinatorServicer
from tandem.coordinator.transaction import Outcome
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.runtime.database import create_engine
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.postgres import EmbeddedPostgres, wait_until_stopped
from tandem.runtime.server import Server
from tandem.runtime.status import from_rpc_error
from tandem.runtime.times import Times
from tandem.v1 import coordinator_pb2 as pb
from tandem.v1 import coordinator_pb2_grpc
from tandem.v1.participant_pb2 import BatchPrepareResponse
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own, packed
from tests.support.ledger import Ledger
from tests.support.rules import (
    LOG,
    TamperedParticipant,
    Wire,
    asking,
    channel_to,
    eventually,
    key_of,
    served,
)

NewDatabase = Callable[[str], str]

DISK_MIB = 160
MOST = 4_000
"""Transactions that a full disk may still find room for, in pages that are half empty."""


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of its own, in memory. Skips where that may not be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=755", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("a small file system can't be mounted here: root may")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Takes all the room there is, meanwhile."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.parametrize("whose", ["initiator", "ledger"])
def test_a_full_disk(new_database: NewDatabase, whose: str) -> None:
    """Refused, and said so, or unknown; whoever was acknowledged is there; service resumes with the room."""
    with small_disk() as disk:
        server = EmbeddedPostgres(disk / "postgres", settings={"max_wal_size": "32MB", "min_wal_size": "32MB"}).start()
        try:
            with built(lambda name: server.database_url(name) if name == whose else new_database(name)) as house:
                _fill_and_free(house, server, disk)
        finally:
            server.close()
            wait_until_stopped(server.folder)


def _fill_and_free(house: House, server: EmbeddedPostgres, disk: Path) -> None:
    told: dict[UUID, tuple[UUID, str, str]] = {}
    with filled(disk):
        for _ in range(MOST):
            id_, own_id = new_id(), uuid4()
            name = fresh_name() + secrets.token_hex(1_000)
            told[id_] = (own_id, name, _try(house, id_, own_id, name))
            if sum(said != "committed" for _, _, said in told.values()) == 10:
                break
        else:
            pytest.fail("the disk never was full")
    server.start()  # if it has given up: for what it has to write before it can do anything there was no room either

    eventually(lambda: _try(house, new_id(), uuid4(), fresh_name()) == "committed", within_s=60)
    for id_ in told:
        for member in house.members.values():
            member.make_due(id_)
    eventually(lambda: (_end(house), not _left(house))[1], within_s=60)
    for id_, (own_id, name, said) in told.items():
        is_committed = house.outcome(id_) == "committed"
        assert said == "unknown" or is_committed == (said == "committed"), f"{id_} was said to be {said}"
        assert house.own_rows(own_id) == ({own_id} if is_committed else set())
        assert house.ledger.accounts(name) == ({name: "active"} if is_committed else {})


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
        in_doubt = house.coordinator.prepare({"ledger": [entry(name)]})
        house.engine.dispose()
        for member in house.members.values():
            member.engine.dispose()
        with storm(house.url) as taken:
            assert taken > 5
            with pytest.raises(Unavailable):
                house.coordinator.execute(new_id(), {"ledger": [entry(fresh_name())]})
            answer = wire.ask(asking(new_id(), fresh_name()))
            assert (answer.code, answer.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
            assert answer.retry_after_s is not None
            with pytest.raises((TandemError, sa.exc.OperationalError)):
                house.ledger.sweeper.run_once()
            with pytest.raises(OutcomeUnknown):
                in_doubt.finish()
        assert in_doubt.finish() is Outcome.ABORTED
        house.coordinator.execute(new_id(), {"ledger": [entry(name)]})
        assert house.ledger.accounts(name) == {name: "active"}
        assert wire.ask(asking(new_id(), fresh_name())).ok


# --- no free worker ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(new_database: NewDatabase) -> Iterator[House]:
    """One house for the rest."""
    with built(new_database) as house:
        yield house


def test_executes_never_starve_resolve(house: House) -> None:
    """All workers are busy with Execute and the queue is full: a further one is turned away, Resolve is answered."""
    going_on = threading.Event()
    waiting: list[BatchPrepareResponse] = []

    def later(response: BatchPrepareResponse) -> BatchPrepareResponse:
        waiting.append(response)
        going_on.wait(30)
        return response

    times = Times(prepare_deadline_s=25, push_after_s=40)
    patient = Participant(
        house.ledger.engine,
        name="ledger",
        resource=Ledger(),
        coordinators=[COORDINATOR],
        times=times,
        metrics=ParticipantMetrics(CollectorRegistry()),
    )
    slow = TamperedParticipant(patient, house.ledger.resolver)
    slow.after_prepare = later
    engine = create_engine(house.url, pool_size=2)
    with served(slow) as participant:
        coordinator = Coordinator(
            house.engine, name=COORDINATOR, participants={"ledger": participant.address}, times=times
        )
        server = Server("127.0.0.1:0", workers=2, queue=2, reserved=RESERVED)
        CoordinatorServicer(coordinator, DecisionLog(engine, times)).add_to(server)
        server.start()
        stub = coordinator_pb2_grpc.CoordinatorServiceStub(channel_to(server.port))

        def executing() -> pb.ExecuteRequest:
            request = pb.ExecuteRequest(key=key_of(new_id()))
            request.branches.add(participant="ledger", writes=packed(entry(fresh_name())))
            return request

        running = [stub.Execute.future(executing(), timeout=40) for _ in range(2)]
        eventually(lambda: len(waiting) == 2)
        queued = [stub.Execute.future(executing(), timeout=40) for _ in range(3)]
        (refused,) = eventually(lambda: [call for call in queued if call.done()])
        assert from_rpc_error(refused.exception()).reason is Reason.OVERLOADED
        started = [call for call in (*running, *queued) if call is not refused]
        for _ in range(20):
            question = pb.ResolveRequest(participant="ledger", fence=False)
            question.items.add(key=key_of(new_id()), log_id=str(LOG), digest=bytes(32))
            (result,) = stub.Resolve(question, timeout=10).results
            assert result.outcome == pb.ResolveResult.OUTCOME_WRONG_LOG
        assert not any(call.done() for call in started)
        going_on.set()
        assert all(call.result().decision.HasField("key") for call in started)
        server.drain(5)
        coordinator.close()
    engine.dispose()
