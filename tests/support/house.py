"""A whole house in one process: an initiator's database with a coordinator, and participants, over real gRPC.

Real PostgreSQL, real servers, real channels; only the processes are shared, so that a test can reach in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

import sqlalchemy as sa
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine
from uuid_utils.compat import uuid7

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.handle import Transaction
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.servicer import RESERVED, CoordinatorServicer
from tandem.coordinator.tables import MIGRATIONS as COORDINATOR_MIGRATIONS
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.operations_servicer import OperationsServicer
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.participant.tables import MIGRATIONS as PARTICIPANT_MIGRATIONS
from tandem.participant.tables import prepared_transaction
from tandem.runtime.channel import open_channel
from tandem.runtime.database import create_engine
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.server import Server
from tandem.runtime.times import Times
from tandem.v1 import coordinator_pb2_grpc, participant_pb2_grpc
from tests.support.ledger import Ledger, account

COORDINATOR = "initiator"

own = sa.Table(
    "own", sa.MetaData(), sa.Column("id", sa.Uuid, primary_key=True), sa.Column("note", sa.Text, unique=True)
)
"""The initiator's own table."""


def entry(name: str, amount: int = 1) -> Struct:
    """A write for the toy ledger."""
    struct = Struct()
    struct.update({"account": name, "amount": amount})
    return struct


def packed(*messages: Struct) -> list[Any]:
    """Writes as they travel."""
    writes = []
    for message in messages:
        write = Any()
        write.Pack(message, deterministic=True)
        writes.append(write)
    return writes


def new_id(*, age_s: float = 0.0) -> UUID:
    """A UUIDv7 whose own time lies so many seconds in the past."""
    fresh = uuid7()
    shifted = (fresh.int >> 80) - int(age_s * 1000)
    return UUID(int=(shifted << 80) | (fresh.int & ((1 << 80) - 1)))


def fresh_name(kind: str = "account") -> str:
    """A name nobody has used."""
    return f"{kind}-{uuid4().hex[:12]}"


@dataclass
class Member:
    """One participant of the house."""

    name: str
    engine: Engine
    participant: Participant
    resolver: Resolver
    sweeper: Sweeper
    server: Server
    metrics: ParticipantMetrics
    registry: CollectorRegistry

    @property
    def stub(self) -> participant_pb2_grpc.ParticipantServiceStub:
        return participant_pb2_grpc.ParticipantServiceStub(open_channel(f"127.0.0.1:{self.server.port}"))

    def accounts(self, *names: str) -> dict[str, str]:
        """name → state, of those that exist."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(account.c.name, account.c.state).where(account.c.name.in_(names)))
            return {row.name: row.state for row in rows}

    def row(self, transaction_id: UUID) -> sa.Row[tuple[object, ...]] | None:
        """The participant's row of a transaction."""
        t = prepared_transaction
        with self.engine.connect() as connection:
            return connection.execute(sa.select(t).where(t.c.transaction_id == transaction_id)).one_or_none()

    def set(self, transaction_id: UUID, *, coordinator: str | None = None, **values: object) -> None:
        """Turns the row's clock, so that no test has to wait. coordinator: None where the id is only one's."""
        t = prepared_transaction
        changing = sa.update(t).where(t.c.transaction_id == transaction_id).values(**values)
        if coordinator is not None:
            changing = changing.where(t.c.coordinator == coordinator)
        with self.engine.begin() as connection:
            connection.execute(changing)

    def make_due(self, transaction_id: UUID) -> None:
        """As if its ttl had passed."""
        self.set(transaction_id, next_attempt_at=sa.func.now())

    def make_old(self, transaction_id: UUID, *, coordinator: str | None = None) -> None:
        """As if its driver had given up: it was prepared push_after ago."""
        longer_ago = timedelta(seconds=self.participant.times.push_after_s)
        self.set(transaction_id, coordinator=coordinator, prepared_at=sa.func.now() - longer_ago)


@dataclass
class House:
    """Everything a protocol test reaches for."""

    engine: Engine
    coordinator: Coordinator
    recovery: Recovery
    server: Server
    members: dict[str, Member]
    times: Times
    registry: CollectorRegistry
    url: str
    _closing: list[Callable[[], None]] = field(default_factory=list)

    @property
    def ledger(self) -> Member:
        return self.members["ledger"]

    @property
    def other(self) -> Member:
        return self.members["other"]

    @property
    def stub(self) -> coordinator_pb2_grpc.CoordinatorServiceStub:
        return coordinator_pb2_grpc.CoordinatorServiceStub(open_channel(f"127.0.0.1:{self.server.port}"))

    def left_in_doubt(self, *writes: Message) -> Transaction:
        """Prepared at the ledger by a driver that has given up since: an operator may force it."""
        tx = self.coordinator.prepare({"ledger": list(writes)})
        self.ledger.make_old(tx.id)
        return tx

    def own_rows(self, *ids: UUID) -> set[UUID]:
        with self.engine.connect() as connection:
            return set(connection.execute(sa.select(own.c.id).where(own.c.id.in_(ids))).scalars())

    def outcome(self, transaction_id: UUID) -> str | None:
        """What the log holds."""
        row = self.coordinator.log.get(TransactionKey(COORDINATOR, transaction_id))
        return None if row is None else row.outcome

    def another_coordinator(self, **options: object) -> Coordinator:
        """A second driver over the same log, as another replica of the initiator would have."""
        options.setdefault("times", self.times)
        coordinator = Coordinator(
            options.pop("engine", self.engine),  # type: ignore[arg-type]
            name=COORDINATOR,
            participants={name: f"127.0.0.1:{m.server.port}" for name, m in self.members.items()},
            **options,  # type: ignore[arg-type]
        )
        self._closing.append(coordinator.close)
        return coordinator

    def close(self) -> None:
        for close in reversed(self._closing):
            close()


@contextmanager
def built(
    url_of: Callable[[str], str],
    *,
    times: Times | None = None,
    names: Sequence[str] = ("ledger", "other"),
    tokens: Mapping[str, str] | None = None,
) -> Iterator[House]:
    """A house on fresh databases; `url_of(name)` makes one. tokens: of the participants that an operator may order."""
    times = times or Times()
    closing: list[Callable[[], None]] = []
    url = url_of("initiator")
    engine = create_engine(url, pool_size=30)
    resolving_engine = create_engine(url, pool_size=8)
    COORDINATOR_MIGRATIONS.upgrade(engine)
    own.metadata.create_all(engine)
    registry = CollectorRegistry()
    server = Server("127.0.0.1:0", reserved=RESERVED, registry=registry)
    members: dict[str, Member] = {}
    for name in names:
        coordinators = {COORDINATOR: f"127.0.0.1:{server.port}"}
        members[name] = member(name, url_of(name), coordinators, times, token=(tokens or {}).get(name))
        closing.append(members[name].resolver.close)
        closing.append(members[name].engine.dispose)
        closing.append(lambda s=members[name].server: s.drain(0))
    coordinator = Coordinator(
        engine,
        name=COORDINATOR,
        participants={name: f"127.0.0.1:{m.server.port}" for name, m in members.items()},
        times=times,
        registry=registry,
    )
    CoordinatorServicer(coordinator, DecisionLog(resolving_engine, times)).add_to(server)
    server.start()
    recovery = Recovery(coordinator)
    closing += [engine.dispose, resolving_engine.dispose, coordinator.close, lambda: server.drain(0)]
    house = House(engine, coordinator, recovery, server, members, times, registry, url, closing)
    try:
        yield house
    finally:
        house.close()


def member(name: str, url: str, coordinators: dict[str, str], times: Times, *, token: str | None = None) -> Member:
    """One running participant over the toy ledger."""
    engine = create_engine(url, pool_size=20)
    PARTICIPANT_MIGRATIONS.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("ledger", if_not_exists=True))
        account.metadata.create_all(connection)
    registry = CollectorRegistry()
    metrics = ParticipantMetrics(registry)
    participant = Participant(
        engine, name=name, resource=Ledger(), coordinators=coordinators, times=times, metrics=metrics
    )
    resolver = Resolver(participant, coordinators)
    server = Server("127.0.0.1:0", workers=16, registry=registry)
    ParticipantServicer(participant, resolver).add_to(server)
    if token is not None:
        OperationsServicer(participant, resolver, token).add_to(server)
    server.start()
    return Member(name, engine, participant, resolver, Sweeper(engine, resolver, metrics), server, metrics, registry)


def in_threads(*jobs: Callable[[], object]) -> list[object]:
    """Runs the jobs at once; what each returned, or raised."""
    results: list[object] = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def run(i: int, job: Callable[[], object]) -> None:
        barrier.wait(10)
        try:
            results[i] = job()
        except Exception as error:  # handed to the test
            results[i] = error

    threads = [threading.Thread(target=run, args=(i, job)) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    return results
