"""What the crash tests stand on: a house of real processes that can be killed at a named point, and what is asked of
both sides afterwards. Nothing of the product is used to answer: it is read by SQL.

Two PostgreSQL servers: one for identity, the initiator and the decision log, one for the two participants.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import grpc
import sqlalchemy as sa
from sqlalchemy.engine import Row

import identity_stub.app
import profiles_server.app
from lab import processes
from lab.processes import Service
from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.channel import open_channel
from tandem.runtime.database import create_engine
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.postgres import EmbeddedPostgres, wait_until_stopped
from tandem.runtime.status import from_rpc_error
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, transaction_pb2
from tests.faults import initiator, nursery
from tests.faults.initiator import TIMES, Kind, own
from tests.faults.nursery import Child

T = TypeVar("T")

COORDINATOR = "identity"
PARTICIPANTS = ("profiles", "second")
PATIENCE_S = 30.0
"""For a state to come about; nothing waits so long unless it is broken."""

EVER = UUID(int=0)
HOLD = "interval '1 hour'"
ANYBODY = frozenset({"coordinator", "recovery", "sweeper", "reader", "push"})

COMMITTED = "committed"
ABORTED = "aborted"
PREPARED = "prepared"

HOLD_COMMIT = "SELECT pg_advisory_xact_lock(4711)"
"""Whoever has this lock holds up a COMMIT of a decision that was sent: a deferred trigger runs inside COMMIT."""

HOLD_MARK = "SELECT pg_advisory_xact_lock(4712)"
"""The same of the UPDATE that marks a delivery."""

_SETUP = """
CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT ON twophase.decision DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.outcome = 'committed') EXECUTE FUNCTION hold_commit();
CREATE FUNCTION hold_mark() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4712); RETURN NULL; END $$;
CREATE TRIGGER hold_mark AFTER UPDATE OF undelivered ON twophase.decision
    FOR EACH ROW EXECUTE FUNCTION hold_mark();
"""


def eventually(holds: Callable[[], T], what: str | Callable[[], object], *, timeout_s: float = PATIENCE_S) -> T:
    """Polls until it holds, and gives what it gave; fails with `what` there was instead."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            if found := holds():
                return found
        except sa.exc.OperationalError:  # a server that was killed comes back
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


@dataclass(frozen=True)
class Side:
    """What one participant knows of a transaction."""

    state: str
    by: str | None
    attempts: int
    leased: bool


@dataclass(frozen=True)
class Story:
    """What both sides know of a transaction: the decision, who has not acknowledged it, each participant."""

    decision: str | None
    undelivered: frozenset[str]
    sides: Mapping[str, Side]
    attempts: int = 0
    leased: bool = False

    @property
    def states(self) -> dict[str, str]:
        return {name: side.state for name, side in self.sides.items()}

    @property
    def by(self) -> set[str | None]:
        """Who brought the outcome."""
        return {side.by for side in self.sides.values()}


@dataclass(frozen=True)
class Answer:
    """What the caller was told."""

    ok: bool
    why: str = ""

    @property
    def is_not_there(self) -> bool:
        """NOT_FOUND, and not any other error."""
        return self.why.startswith(f"{Reason.NOT_FOUND.value}: ")


class House:
    """Two PostgreSQL servers, two profiles servers, the coordinator, identity, and an initiator of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers = {name: EmbeddedPostgres(folder / name) for name in ("identity-pg", "profiles-pg")}
        self._where = {"identity": "identity-pg", "profiles": "profiles-pg", "second": "profiles-pg"}
        self._engines: dict[str, sa.Engine] = {}
        self.services: dict[str, Service] = {}
        self.owner = ""
        self._calls = ThreadPoolExecutor(16, thread_name_prefix="call")

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything, from nothing."""
        _at_once(*(server.start for server in self.servers.values()))
        urls = {name: self.servers[server].database_url(name) for name, server in self._where.items()}
        self._engines = {name: create_engine(url, pool_size=4, name="tests") for name, url in urls.items()}
        for name in urls:  # one after the other: Alembic's context is the process's
            self._migrate(name)
        self._make_services(urls)
        _at_once(*(service.start for service in self.services.values()))
        self.owner = self._make_owner()

    def _migrate(self, name: str) -> None:
        for migrations in identity_stub.app.MIGRATIONS if name == "identity" else profiles_server.app.MIGRATIONS:
            migrations.upgrade(self._engines[name])
        if name == "identity":
            own.metadata.create_all(self._engines[name])
            with self._engines[name].begin() as connection:
                connection.exec_driver_sql(_SETUP)

    def _make_services(self, urls: Mapping[str, str]) -> None:
        names = ("profiles", "second", "coordinator", "identity", "initiator")
        address = dict(zip(names, [f"127.0.0.1:{processes.free_port()}" for _ in names], strict=True))
        targets = ",".join(f"{name}={address[name]}" for name in PARTICIPANTS)
        times = {
            name.upper(): getattr(TIMES, name)
            for name in ("prepare_deadline_s", "block_timeout_s", "push_after_s", "ttl_s")
        }

        def service(name: str, module: str, prefix: str, **settings: object) -> None:
            told = {"LISTEN": address[name], "METRICS_LISTEN": "", **times, **settings}
            folder = self.folder / name
            folder.mkdir()
            environment = {f"{prefix}_{key}": str(value) for key, value in told.items()}
            self.services[name] = Child(module, address[name], environment, folder)

        for name in PARTICIPANTS:
            service(
                name, "profiles_server", "PROFILES", NAME=name, DATABASE_URL=urls[name], SWEEP_INTERVAL_S=0.2,
                COORDINATORS=f"{COORDINATOR}={address['coordinator']}",
            )  # fmt: skip
        shared = {"DATABASE_URL": urls["identity"], "PARTICIPANTS": targets}
        service("coordinator", "coordinator", "COORDINATOR", RECOVERY_INTERVAL_S=0.2, **shared)
        service("identity", "identity_stub", "IDENTITY", **shared)
        by_json = json.dumps({name: address[name] for name in PARTICIPANTS})
        service("initiator", "tests.faults.initiator", "INITIATOR", **{**shared, "PARTICIPANTS": by_json})

    def another(self, name: str) -> Service:
        """A replica of a service, not yet started: the same settings, another address."""
        first, address = self.services[name], f"127.0.0.1:{processes.free_port()}"
        folder = self.folder / f"{name} again"
        folder.mkdir()
        told = {key: address if value == first.address else value for key, value in first.environment.items()}
        self.services[folder.name] = made = Child(first.module, address, told, folder)
        return made

    def _make_owner(self) -> str:
        request = identity_pb.CreateUserRequest(email="owner@example.org", person=initiator.person_of("owner"))
        request.person.person_id = ""
        with identity_client(self.services["identity"].address) as stub:
            return str(stub.CreateUser(request, timeout=20, wait_for_ready=True).user.user_id)

    def close(self) -> None:
        """Ends everything; with kill -9, which it must stand."""
        self._calls.shutdown(wait=False, cancel_futures=True)
        for engine in self._engines.values():
            engine.dispose()
        for service in self.services.values():
            service.kill()
        for server in self.servers.values():
            server.close()
        for server in self.servers.values():
            wait_until_stopped(server.folder)

    def heal(self) -> None:
        """What a test that failed has left behind must not fail the next one."""
        for service in self.services.values():
            if service.died() is None:
                os.kill(service.pid, signal.SIGCONT)
            if service.died() is not None or service.failpoints:
                self.restart(service)

    # --- processes ----------------------------------------------------------------------------------------------

    def arm(self, service: Service, point: str) -> None:
        """Starts it again, so that it kills itself at the failpoint."""
        service.kill()
        service.failpoints = f"{point}=kill"
        service.start()

    def died_at_it(self, service: Service) -> None:
        """Waits for the armed service to come by its failpoint. That it died of kill -9 says that it did: nobody else
        has killed it."""
        assert service.failpoints, "nothing is armed"
        code = eventually(
            lambda: service.died() is not None and (service.died(),),
            lambda: f"{service.failpoints} was never passed; log:\n{processes.tail(service.log)}",
        )
        assert code == (signal.SIGKILL,), f"ended by itself; log:\n{processes.tail(service.log)}"

    def restart(self, *services: Service) -> None:
        """Starts them again, unarmed."""
        for service in services:
            service.kill()
            service.failpoints = ""
        _at_once(*(service.start for service in services))

    @contextmanager
    def paused(self, *services: Service) -> Iterator[None]:
        """Stands still meanwhile: what is left by a crash can be looked at before anybody ends it."""
        for service in services:
            os.kill(service.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for service in services:
                if service.died() is None:
                    os.kill(service.pid, signal.SIGCONT)

    def command(self, service: Service, *arguments: str, point: str = "") -> None:
        """`python -m module arguments` with a service's settings; armed with `point` it must die there."""
        armed = f"{point}=kill" if point else ""
        environment = {**service.environment, "TANDEM_FAILPOINTS": armed}
        code = nursery.run(service.module, *arguments, environment=environment, log=service.log)
        assert code == (-signal.SIGKILL if point else 0), f"{arguments} {point}: {processes.tail(service.log)}"

    def kill_server(self, name: str) -> None:
        """kill -9 of a PostgreSQL server's postmaster; its keeper starts it again."""
        files = keeper.Files(self.servers[name].folder)
        pid, _ = keeper.read_postmaster(files)
        assert keeper.is_server(files, pid)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not keeper.is_server(files, pid), "the server is gone")

    @contextmanager
    def down(self, name: str) -> Iterator[None]:
        """kill -9 of a PostgreSQL server, which stays down meanwhile."""
        keeping = int(keeper.Files(self.servers[name].folder).keeper_lock.read_text())
        os.kill(keeping, signal.SIGSTOP)
        try:
            self.kill_server(name)
            yield
        finally:
            os.kill(keeping, signal.SIGCONT)
        self.server_is_back(name)

    def server_is_back(self, name: str) -> None:
        """Waits until it accepts connections again."""
        self.servers[name].start()

    # --- SQL ------------------------------------------------------------------------------------------------------

    def sql(self, database: str, statement: str, **parameters: object) -> Sequence[Row[Any]]:
        """The rows of one statement, in a local transaction of its own."""
        for last in (False, True):
            try:
                with self._engines[database].begin() as connection:
                    result = connection.execute(sa.text(statement), parameters)
                    return result.all() if result.returns_rows else []
            except sa.exc.DBAPIError as error:
                if last or not error.connection_invalidated:  # by the death of a server: there is another now
                    raise
        raise AssertionError("unreachable")

    def one(self, database: str, statement: str, **parameters: object) -> Any:
        """The one value of a statement."""
        return self.sql(database, statement, **parameters)[0][0]

    @contextmanager
    def locked(self, database: str, statement: str, *, commits: bool = False) -> Iterator[Callable[..., int]]:
        """Holds a lock meanwhile. Gives what waits until somebody waits for one, and answers with its backend's pid.
        Given the call that is to come by, it says what the call was told instead.

        commits: what else the statement does counts when the lock is let go.
        """
        with self._engines[database].connect() as connection:
            connection.exec_driver_sql(statement)

            def waiter(call: Future[Answer] | None = None, *, many: int = 1) -> int:
                found = eventually(
                    lambda: len(pids := self._waiting(database)) >= many and pids,
                    lambda: f"{many} wait for the lock; call: {call and (call.result() if call.done() else call)}",
                )
                return found[0]

            yield waiter
            if not connection.invalidated:
                with suppress(sa.exc.DBAPIError):  # its server was killed, and the lock with it
                    (connection.commit if commits else connection.rollback)()

    def _waiting(self, database: str) -> list[int]:
        """The pids of the backends that wait for a lock."""
        statement = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return [row.pid for row in self.sql(database, statement)]

    def make_due(self, *participants: str, unclaimed: bool = False) -> None:
        """As if the ttl, or a lease, had run out. unclaimed: only of what no sweeper has had in hand."""
        which = "NOT confirmed AND attempts = 0" if unclaimed else "NOT confirmed"
        for name in participants or PARTICIPANTS:
            self.sql(name, f"UPDATE twophase.prepared_transaction SET next_attempt_at = now() WHERE {which}")

    def make_old(self) -> None:
        """As if what is prepared had been so for longer than push_after."""
        since = f"prepared_at - interval '{TIMES.push_after_s + 1} s'"
        for name in PARTICIPANTS:
            self.sql(
                name,
                f"UPDATE twophase.prepared_transaction SET prepared_at = {since} WHERE state = 'prepared'",
            )

    def hold_deliveries(self) -> None:
        """Keeps recovery away from what is undelivered."""
        self.sql(
            "identity", f"UPDATE twophase.decision SET next_attempt_at = now() + {HOLD} WHERE undelivered <> '{{}}'"
        )

    def release_deliveries(self) -> None:
        """Makes them due."""
        self.sql("identity", "UPDATE twophase.decision SET next_attempt_at = now() WHERE undelivered <> '{}'")

    # --- both sides -----------------------------------------------------------------------------------------------

    def stories(self, since: UUID) -> dict[UUID, Story]:
        """Every transaction that was made since, in the order of their ids."""
        sides: dict[UUID, dict[str, Side]] = {}
        for name in PARTICIPANTS:
            for row in self.sql(
                name,
                "SELECT *, coalesce(next_attempt_at > now(), false) AS leased FROM twophase.prepared_transaction"
                " WHERE transaction_id >= :since",
                since=since,
            ):
                side = Side(row.state, row.resolved_by, row.attempts, row.leased)
                sides.setdefault(row.transaction_id, {})[name] = side
        decisions = {
            row.transaction_id: row
            for row in self.sql(
                "identity",
                "SELECT *, coalesce(next_attempt_at > now(), false) AS leased FROM twophase.decision"
                " WHERE transaction_id >= :since",
                since=since,
            )
        }
        found: dict[UUID, Story] = {}
        for id_ in sorted(sides.keys() | decisions.keys()):
            held = sides.get(id_, {})
            if id_ in decisions:
                row = decisions[id_]
                found[id_] = Story(row.outcome, frozenset(row.undelivered), held, row.attempts, row.leased)
            else:
                found[id_] = Story(None, frozenset(), held)
        return found

    def unfinished(self, since: UUID = EVER) -> list[str]:
        """Whatever is left: prepared, unconfirmed, undelivered, parked, or an open local transaction."""
        left = []
        for name in PARTICIPANTS:
            for row in self.sql(
                name,
                "SELECT * FROM twophase.prepared_transaction WHERE transaction_id >= :since"
                " AND (NOT confirmed OR parked IS NOT NULL)",
                since=since,
            ):
                left += [f"{name}: {row.transaction_id} {row.state}, parked={row.parked}, {row.last_error}"]
            for table in ("person", "business", "business_person"):
                count = self.one(
                    name,
                    f"SELECT count(*) FROM profiles.{table} WHERE state <> 'active' AND transaction_id >= :since",
                    since=since,
                )
                left += [f"{name}: {count} of {table} not active"] if count else []
        for row in self.sql(
            "identity",
            "SELECT * FROM twophase.decision WHERE transaction_id >= :since"
            " AND (undelivered <> '{}' OR parked <> '{}')",
            since=since,
        ):
            left.append(f"{row.transaction_id} undelivered={row.undelivered} parked={row.parked} {row.last_error}")
        for name in self._where:
            left += [
                f"{name}: an open local transaction of {row.application_name}"
                for row in self.sql(
                    name,
                    "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
                    " AND state LIKE 'idle in transaction%' AND xact_start < now() - interval '1 s'",
                )
            ]
        return left

    def settled(self, since: UUID = EVER) -> None:
        """Waits until nothing is left. The coordinator may be asked once a second after it was away."""
        eventually(lambda: not self.unfinished(since), lambda: f"still left: {self.unfinished(since)}")

    def split(self, since: UUID = EVER) -> list[str]:
        """Where the sides are not equal: each transaction's decision, states, and what exists because of it."""
        wrong = []
        stories = self.stories(since)
        for id_, story in stories.items():
            wanted = COMMITTED if story.decision == COMMITTED else ABORTED
            wrong += [
                f"{id_} is {story.decision}, at {name} {side.state}"
                for name, side in story.sides.items()
                if side.state != wanted
            ]
        for name in PARTICIPANTS:
            for table in ("person", "business", "business_person"):
                for row in self.sql(
                    name, f"SELECT transaction_id FROM profiles.{table} WHERE transaction_id >= :since", since=since
                ):
                    if row.transaction_id not in stories or stories[row.transaction_id].decision != COMMITTED:
                        wrong.append(f"{name} has a {table} of {row.transaction_id}, which was not committed")
        return wrong

    # --- calls ----------------------------------------------------------------------------------------------------

    def calling(self, work: Callable[[], T]) -> Future[T]:
        """Calls in the background: who answers may die meanwhile."""
        return self._calls.submit(work)

    def sign_up(self, token: str, kind: Kind) -> Answer:
        """One participant, through identity. Repeated with the same token it is the same request."""
        email = f"{token}@example.org"
        person, business = initiator.person_of(token), initiator.business_of(token)
        person.person_id = business.business_id = ""
        del business.people[:]
        with identity_client(self.services["identity"].address) as stub:
            try:
                match kind:
                    case Kind.PERSON:
                        user = identity_pb.CreateUserRequest(request_id=token, email=email, person=person)
                        stub.CreateUser(user, timeout=30)
                    case Kind.BUSINESS:
                        company = identity_pb.CreateBusinessRequest(
                            request_id=token, owner_user_id=self.owner, business=business
                        )
                        stub.CreateBusiness(company, timeout=30)
                    case Kind.BOTH:
                        both = identity_pb.SignUpRequest(
                            request_id=token, email=email, person=person, business=business
                        )
                        stub.SignUp(both, timeout=30)
            except grpc.RpcError as error:
                return _refused(from_rpc_error(error))
        return Answer(True)

    def initiate(
        self, token: str, kind: Kind, names: Sequence[str] = PARTICIPANTS, *, impatient: bool = False
    ) -> Answer:
        """Any participants, through the initiator. Repeated with the same token it is answered what it was before."""
        return self._ask("run", token, kind, names, impatient)

    def leave(self, token: str, kind: Kind, names: Sequence[str], *, decided: bool) -> None:
        """Leaves a transaction in doubt at each participant; undelivered, if it is decided, and held (see above)."""
        with self.paused(self.services["coordinator"]):
            answer = self._ask("leave", token, kind, names, decided)
            assert answer.ok, answer
            self.hold_deliveries()

    def _ask(self, method: str, token: str, kind: Kind, names: Sequence[str], flag: bool) -> Answer:
        with xmlrpc.client.ServerProxy(f"http://{self.services['initiator'].address}") as proxy:
            try:
                said = str(getattr(proxy, method)(token, kind.value, list(names), flag))
            except (OSError, xmlrpc.client.Error) as error:
                return Answer(False, type(error).__name__)
        return Answer(not said, said)

    def execute(self, transaction_id: UUID, token: str, kind: Kind, names: Sequence[str]) -> Answer:
        """Execute at the coordinator process, by a client that does not repeat by itself."""
        request = coordinator_pb2.ExecuteRequest(
            key=transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(transaction_id))
        )
        for name in names:
            branch = request.branches.add(participant=name)
            for write in initiator.writes(kind, token):
                branch.writes.add().Pack(write, deterministic=True)
        with _channel(self.services["coordinator"].address) as channel:
            try:
                coordinator_pb2_grpc.CoordinatorServiceStub(channel).Execute(request, timeout=30)
            except grpc.RpcError as error:
                return _refused(from_rpc_error(error))
        return Answer(True)

    def read(self, name: str, *, person_id: str = "", business_id: str = "", repeat: bool = True) -> Answer:
        """A read at a participant; found or not. repeat: as the channels of our own clients do."""
        address = self.services[name].address
        with open_channel(address) if repeat else _channel(address) as channel:
            stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
            try:
                if person_id:
                    stub.GetPerson(profiles_pb.GetPersonRequest(person_id=person_id), timeout=10)
                else:
                    stub.GetBusiness(profiles_pb.GetBusinessRequest(business_id=business_id), timeout=10)
            except grpc.RpcError as error:
                return _refused(from_rpc_error(error))
        return Answer(True)


@dataclass
class Trial:
    """One write, of one kind, with one or two participants: made, interrupted, and in the end looked at."""

    house: House
    kind: Kind
    participants: int
    by_identity: bool = field(init=False)
    token: str = field(init=False)
    since: UUID = field(init=False)

    def __post_init__(self) -> None:
        self.by_identity = self.participants == 1
        self.token = f"t{uuid4().hex[:12]}"
        # Ids of transactions begin with their time in ms: whatever is made from now on is not below this.
        time.sleep(0.002)
        self.since = UUID(int=time.time_ns() // 1_000_000 << 80)

    @property
    def names(self) -> tuple[str, ...]:
        """The participants."""
        return PARTICIPANTS[: self.participants]

    @property
    def everybody(self) -> frozenset[str]:
        return frozenset(self.names)

    @property
    def victim(self) -> Service:
        """The participant that dies, where one does: the last."""
        return self.house.services[self.names[-1]]

    @property
    def initiator(self) -> Service:
        """The process that drives."""
        return self.house.services["identity" if self.by_identity else "initiator"]

    def call(self, *, impatient: bool = False) -> Answer:
        """Makes it; again, if it was called before."""
        if impatient:
            self.by_identity = False
        if self.by_identity:
            return self.house.sign_up(self.token, self.kind)
        return self.house.initiate(self.token, self.kind, self.names, impatient=impatient)

    def calling(self, *, impatient: bool = False) -> Future[Answer]:
        """The same in the background."""
        return self.house.calling(lambda: self.call(impatient=impatient))

    def leave(self, *, decided: bool) -> None:
        """Leaves it in doubt, with its decision held where there is one."""
        self.by_identity = False
        self.house.leave(self.token, self.kind, self.names, decided=decided)

    def read(self, name: str, *, repeat: bool = True) -> Answer:
        """Reads what was made, as a client would."""
        if self.kind.has_person:
            row = self.house.sql(
                name, "SELECT person_id FROM profiles.person WHERE display_name = :token", token=self.token
            )
            return self.house.read(name, person_id=str(row[0][0]), repeat=repeat)
        row = self.house.sql(
            name, "SELECT business_id FROM profiles.business WHERE legal_name = :token", token=self.token
        )
        return self.house.read(name, business_id=str(row[0][0]), repeat=repeat)

    # --- what is left -----------------------------------------------------------------------------------------------

    @property
    def stories(self) -> list[Story]:
        """Its transactions: one, and another where it was repeated after an abort."""
        return list(self.house.stories(self.since).values())

    @property
    def story(self) -> Story:
        """Its first transaction."""
        return self.stories[0]

    def left(
        self, decision: str | None, *, undelivered: Collection[str] = (), by: str | None = None, **states: str
    ) -> None:
        """Asserts what the crash has left: in the log, at each participant (name=state), and of own rows.

        by: who has brought the states other than prepared.
        """
        stories = self.stories
        if decision is None and not states:
            assert stories == []
            return
        assert len(stories) == 1, stories
        story = stories[0]
        assert story.decision == decision, story
        assert story.undelivered == frozenset(undelivered), story
        assert story.states == states, story
        ended = {side.by for side in story.sides.values() if side.state != PREPARED}
        assert ended <= {by}, story
        assert self.own_rows() == self._owned(decision == COMMITTED)

    def everywhere(self, state: str) -> dict[str, str]:
        """The same state at each participant."""
        return dict.fromkeys(self.names, state)

    # --- how it ended -------------------------------------------------------------------------------------------------

    def own_rows(self) -> int:
        """The initiator's own rows of it."""
        made = self.house.one("identity", "SELECT count(*) FROM own WHERE token = :token", token=self.token)
        made += self.house.one(
            "identity", "SELECT count(*) FROM identity.users WHERE email = :email", email=f"{self.token}@example.org"
        )
        made += self.house.one(
            "identity",
            "SELECT count(*) FROM identity.businesses JOIN identity.requests USING (business_id)"
            " WHERE request_id = :token",
            token=self.token,
        )
        return int(made)

    def _owned(self, exists: bool) -> int:
        if not exists:
            return 0
        return self.kind.has_person + self.kind.has_business if self.by_identity else 1

    def entities(self, name: str) -> tuple[int, int, int]:
        """Active persons, businesses and roles of it at a participant."""
        (row,) = self.house.sql(
            name,
            "SELECT (SELECT count(*) FROM profiles.person WHERE display_name = :token AND state = 'active'),"
            " (SELECT count(*) FROM profiles.business WHERE legal_name = :token AND state = 'active'),"
            " (SELECT count(*) FROM profiles.business_person r JOIN profiles.business USING (business_id)"
            "  WHERE legal_name = :token AND r.state = 'active')",
            token=self.token,
        )
        persons, businesses, roles = tuple(row)
        return int(persons), int(businesses), int(roles)

    def exists(self, *, own_rows: bool = True, read: bool = True) -> None:
        """Asserts that it has come into being, everywhere and once. own_rows: False for Execute, which has none.

        read: whether each participant is asked for it, too.
        """
        assert self.own_rows() == (self._owned(True) if own_rows else 0)
        wanted = (int(self.kind.has_person), int(self.kind.has_business), int(self.kind.has_business))
        for name in self.names:
            assert self.entities(name) == wanted, name
            assert not read or self.read(name).ok

    def exists_not(self) -> None:
        """Asserts that there is nothing of it anywhere."""
        assert self.own_rows() == 0
        for name in PARTICIPANTS:
            assert self.entities(name) == (0, 0, 0), name

    def ended(
        self, outcome: str | None, by: Collection[str], *, then: str | None = None, own_rows: bool = True
    ) -> None:
        """Asserts how it ended once nothing is left: the outcome, who brought it, that the sides are equal.

        outcome: None for "no participant ever heard of it". by: who may have ended it, where a participant held it.
        then: the outcome of the repeat, where it was repeated as a second transaction.
        """
        self.house.settled(self.since)
        stories = self.stories
        assert self.house.split(self.since) == []
        wanted = [each for each in (outcome, then) if each is not None]
        assert [COMMITTED if story.decision == COMMITTED else ABORTED for story in stories] == wanted, stories
        if outcome is not None:
            first = stories[0]
            assert first.by <= set(by), first
            if outcome == COMMITTED:
                assert first.states == self.everywhere(COMMITTED)
        if then == COMMITTED:
            assert stories[-1].states == self.everywhere(COMMITTED)
            assert stories[-1].by <= {"coordinator"}
        if COMMITTED in wanted:
            self.exists(own_rows=own_rows)
        else:
            self.exists_not()


@contextmanager
def identity_client(address: str) -> Iterator[identity_service_pb2_grpc.IdentityServiceStub]:
    """A stub of identity's that does not repeat by itself."""
    with _channel(address) as channel:
        yield identity_service_pb2_grpc.IdentityServiceStub(channel)


def _channel(address: str) -> grpc.Channel:
    options = [("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 100)]
    return grpc.insecure_channel(address, options=options)


def _refused(error: TandemError) -> Answer:
    return Answer(False, f"{error.reason}: {error.message}")


def _at_once(*works: Callable[[], object]) -> None:
    """Runs them at the same time; raises the first error."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


@contextmanager
def built() -> Iterator[House]:
    """A house, gone with the block. In the end nothing may be left in the whole of it, and no side may differ."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-crash-")))
        folder.chmod(0o755)
        house = House(folder)
        stack.callback(house.close)
        house.start()
        yield house
        house.settled()
        assert house.split() == []
