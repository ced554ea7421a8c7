"""The wiring of the identity process: what is opened, checked, started, and closed in reverse order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
import sqlalchemy as sa
from apscheduler import events
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine

from identity_stub import tables
from identity_stub.config import PROFILES, Settings
from identity_stub.explain import Sources
from identity_stub.facts import Facts
from identity_stub.provisioning import Provisioning
from identity_stub.provisioning.hybrid import Hybrid
from identity_stub.provisioning.saga import Saga
from identity_stub.provisioning.two_phase import TwoPhase
from identity_stub.provisioning.update_or_create import UpdateOrCreate
from identity_stub.servicer import IdentityServicer
from identity_stub.signup import SignUps
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.gauges import CoordinatorGauges
from tandem.coordinator.participants import Participants
from tandem.coordinator.purge import Purge
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.servicer import RESERVED, RESOLVERS, CoordinatorServicer
from tandem.coordinator.tables import MIGRATIONS as COORDINATOR_MIGRATIONS
from tandem.kafka.config import extra
from tandem.kafka.dead_letters import Graveyard
from tandem.profiles.client import open_profiles
from tandem.runtime import tracing
from tandem.runtime.database import check_server, create_engine
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.gauges import gauges_engine
from tandem.runtime.local_transaction import owned
from tandem.runtime.process import database_url, metrics_page, open_engine, run_until_signal, spare_collector
from tandem.runtime.readiness import EVERY_S, Readiness
from tandem.runtime.server import Server
from tandem.runtime.telemetry import configure_logging, frames, log_uncaught, logger

if TYPE_CHECKING:
    from identity_stub.messaging import Messaging

log = logger("identity.app")

MIGRATIONS = (COORDINATOR_MIGRATIONS, tables.MIGRATIONS)
MIGRATE = "python -m identity_stub migrate"

Job = tuple[str, Callable[[], object], float]
"""Name, work, and the interval in s."""


class App:
    """The running process, for as long as it is not stopped. Raises ConfigurationError if it must not run like this."""

    def __init__(self, settings: Settings) -> None:
        self._stopping = threading.Event()
        with ExitStack() as stack:
            url = database_url(settings, "identity", stack)
            engine = open_engine(url, "identity", stack, pool_size=settings.database_pool)
            registry = CollectorRegistry()
            messaging = _messaging(settings, engine, registry, stack)
            coordinator = Coordinator(
                engine,
                name=settings.name,
                participants=settings.participants,
                times=settings.times,
                registry=registry,
                commits=messaging.commits if messaging and settings.provisioning == "hybrid" else None,
            )
            stack.callback(coordinator.close)
            _check(settings, engine, coordinator.log)
            provisioning = _provisioning(settings, engine, coordinator)
            stack.callback(provisioning.close)

            # Resolve's own connections: nothing else can take them (R4).
            resolving = create_engine(url, pool_size=RESOLVERS, name="identity-resolve")
            stack.callback(resolving.dispose)
            self._server = Server(
                settings.listen,
                workers=settings.workers,
                queue=settings.queue,
                reserved=RESERVED if settings.serve_coordinator else None,
                with_reflection=settings.reflection,
                registry=registry,
            )
            stack.callback(self._server.drain, 0)  # of one that is not started
            # It goes after the server: who watches the process sees it drain.
            self.metrics_address = metrics_page(
                settings.metrics_listen, registry, stack, service="identity", ready=lambda: self._server.ready
            )
            stack.callback(self._server.drain, settings.drain_s)
            facts = Facts(engine, provisioning, settings.participants[PROFILES])
            stack.callback(facts.close)
            IdentityServicer(engine, SignUps(engine, provisioning), facts).add_to(self._server)
            if settings.serve_coordinator:
                CoordinatorServicer(coordinator, DecisionLog(resolving, settings.times)).add_to(self._server)
                gauges = gauges_engine(url, name="identity-gauges")
                stack.callback(gauges.dispose)
                registry.register(CoordinatorGauges(gauges, name=settings.name, participants=settings.participants))

            self._server.start()
            readiness = Readiness(url, "identity-ready", self._server.serving)
            stack.callback(readiness.close)
            jobs: list[Job] = [("readiness", readiness.run_once, EVERY_S)]
            if messaging is not None:
                jobs += messaging.jobs
            if settings.serve_coordinator or settings.provisioning == "hybrid":
                # In the hybrid design recovery is the relay of the decision log, and stays with its publisher.
                jobs.append(("recovery", Recovery(coordinator).run_once, settings.recovery_interval_s))
            if settings.serve_coordinator:
                purge = Purge(engine, settings.times, coordinator.metrics)
                jobs.append(("purge", purge.run_once, settings.purge_interval_s))
            self._schedule(jobs, stack)
            stack.callback(self._server.leave)
            self._stack = stack.pop_all()
        log.info("serving", address=self.address, metrics=self.metrics_address, coordinator=settings.name)

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return self._server.address

    def stop(self) -> None:
        """Says that it no longer serves, ends recovery, lets running calls finish, closes everything. Idempotent."""
        self._stopping.set()
        self._stack.close()

    def _schedule(self, jobs: Sequence[Job], stack: ExitStack) -> None:
        """Runs each job (name, work, interval in s) now and then, one of its kind at a time."""
        # Its executor logs an exception with its text; the listener says the same without.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL + 1)
        scheduler = BackgroundScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        )
        scheduler.add_listener(self._job_failed, events.EVENT_JOB_ERROR)
        for name, work, interval_s in jobs:
            scheduler.add_job(work, "interval", id=name, seconds=interval_s, next_run_time=datetime.now(UTC))
        scheduler.start()
        # A run is not waited for: it ends when its channels and connections are closed.
        stack.callback(scheduler.shutdown, wait=False)

    def _job_failed(self, event: events.JobExecutionEvent) -> None:
        if not self._stopping.is_set():
            log.error("job failed", job=event.job_id, exception=frames(event.exception))


def serve(settings: Settings) -> None:
    """Runs the process until SIGTERM or SIGINT. Says on standard output when it is ready."""
    configure_logging("identity", level=settings.log_level, json=settings.log_json)
    log_uncaught("identity")
    tracing.configure("identity")
    app = App(settings)
    spare_collector()
    print(f"ready identity {app.address} metrics={app.metrics_address or 'none'}", flush=True)
    run_until_signal(app.stop)
    tracing.shut_down()


def migrate(settings: Settings) -> list[tuple[str, str]]:
    """Brings the database to this code's revisions: (package, revision) of each."""
    with ExitStack() as stack:
        engine = _database(settings, stack)
        check_server(engine)
        for migrations in MIGRATIONS:
            migrations.upgrade(engine)
    return [(migrations.package, migrations.head) for migrations in MIGRATIONS]


def migrations_sql() -> str:
    """What `migrate` would run on an empty database."""
    return "\n".join(migrations.sql() for migrations in MIGRATIONS)


@contextmanager
def graveyard(settings: Settings) -> Iterator[Graveyard]:
    """Where messages are buried that this process could not take up, for an operator's command."""
    cluster = settings.required_cluster("this command")
    configure_logging("identity", level=settings.log_level, json=settings.log_json)
    with extra("this command"):
        from identity_stub.messaging import consumed
        from tandem.kafka.opening import graveyard as opened
    with opened(cluster, consumed(settings, cluster), name=settings.name) as found:
        yield found


@contextmanager
def sources(settings: Settings) -> Iterator[Sources]:
    """For `explain`: reads only, beside a server that may run or not."""
    with database(settings) as engine, closing(Participants(settings.participants)) as participants:
        yield Sources(engine, DecisionLog(engine, settings.times), participants, settings.name)


@contextmanager
def initiator(settings: Settings, *, connections: int) -> Iterator[tuple[Coordinator, grpc.Channel]]:
    """For the migration, beside a server that may run or not: a coordinator, and a channel to profiles."""
    with ExitStack() as stack:
        url = database_url(settings, "identity", stack)
        engine = open_engine(url, "identity-migration", stack, pool_size=connections)
        coordinator = Coordinator(engine, name=settings.name, participants=settings.participants, times=settings.times)
        stack.callback(coordinator.close)
        _check(settings, engine, coordinator.log)
        yield coordinator, stack.enter_context(open_profiles(settings.participants[PROFILES]))


@contextmanager
def database(settings: Settings) -> Iterator[Engine]:
    """The database alone, at this code's revisions."""
    with ExitStack() as stack:
        engine = _database(settings, stack)
        for migrations in MIGRATIONS:
            migrations.check(engine, command=MIGRATE)
        yield engine


def _messaging(settings: Settings, engine: Engine, registry: CollectorRegistry, stack: ExitStack) -> Messaging | None:
    """What runs with Kafka, where it is configured. Raises ConfigurationError where it is needed and is not."""
    cluster = settings.cluster
    if settings.provisioning in ("hybrid", "saga"):
        cluster = settings.required_cluster(f"IDENTITY_PROVISIONING={settings.provisioning}")
    if cluster is None:
        return None
    with extra("IDENTITY_KAFKA_SERVERS"):
        from identity_stub.messaging import Messaging
    return Messaging(settings, cluster, engine, registry, stack)


def _provisioning(settings: Settings, engine: Engine, coordinator: Coordinator) -> Provisioning:
    """The design that is configured."""
    match settings.provisioning:
        case "two-phase":
            return TwoPhase(coordinator, participant=PROFILES, confirm=settings.confirm)
        case "hybrid":
            return Hybrid(coordinator, participant=PROFILES)
        case "saga":
            return Saga(engine, settings.required_cluster("a saga"), source=settings.name)
        case "update-or-create":
            return UpdateOrCreate(engine, settings.participants[PROFILES])


def _database(settings: Settings, stack: ExitStack) -> Engine:
    return open_engine(database_url(settings, "identity", stack), "identity", stack, pool_size=settings.database_pool)


def _check(settings: Settings, engine: Engine, decision_log: DecisionLog) -> None:
    """Everything that must be so before the process may decide (R15, R17)."""
    check_server(engine)
    for migrations in MIGRATIONS:
        migrations.check(engine, command=MIGRATE)
    unknown = sorted(decision_log.unknown_participants(settings.name, settings.participants))
    if unknown:
        raise ConfigurationError(
            f"decisions wait for {', '.join(unknown)} to acknowledge, which IDENTITY_PARTICIPANTS does not name: "
            "put it back until they are delivered"
        )
    if settings.cluster is None:
        with owned(engine) as connection:
            waiting = connection.execute(sa.select(sa.exists().select_from(tables.outbox))).scalar_one()
        if waiting:
            raise ConfigurationError(
                "the outbox holds what a saga has to tell, and IDENTITY_KAFKA_SERVERS names no broker: put it back"
                " until the outbox is empty"
            )
