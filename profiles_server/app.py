"""The wiring of the profiles process: what is opened, checked, started, and closed in reverse order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from apscheduler import events
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine

from profiles_server import tables
from profiles_server.config import Settings
from profiles_server.profiles import ProfilesResource
from profiles_server.resolving import Reader
from profiles_server.servicer import ProfilesServicer
from tandem.kafka.config import extra
from tandem.kafka.dead_letters import Graveyard
from tandem.participant.gauges import ParticipantGauges
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.names import check_names
from tandem.participant.operations_servicer import OperationsServicer
from tandem.participant.participant import Participant
from tandem.participant.purge import Purge
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import RESERVED, ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.participant.tables import MIGRATIONS as PARTICIPANT_MIGRATIONS
from tandem.runtime import tracing
from tandem.runtime.database import check_server
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.gauges import gauges_engine
from tandem.runtime.local_transaction import owned
from tandem.runtime.process import database_url, metrics_page, open_engine, run_until_signal, spare_collector
from tandem.runtime.readiness import EVERY_S, Readiness
from tandem.runtime.server import Server
from tandem.runtime.telemetry import configure_logging, frames, log_uncaught, logger

if TYPE_CHECKING:
    from profiles_server.messaging import Messaging

log = logger("profiles.app")

MIGRATIONS = (PARTICIPANT_MIGRATIONS, tables.MIGRATIONS)
MIGRATE = "python -m profiles_server migrate"

Job = tuple[str, Callable[[], object], float]
"""Name, work, and the interval in s."""


class App:
    """The running process, for as long as it is not stopped. Raises ConfigurationError if it must not run like this."""

    def __init__(self, settings: Settings) -> None:
        self._stopping = threading.Event()
        with ExitStack() as stack:
            url = database_url(settings, "profiles", stack)
            engine = open_engine(url, "profiles", stack, pool_size=settings.database_pool)
            _check(settings, engine)
            registry = CollectorRegistry()
            participant, resolver, sweeper = _participant(settings, engine, registry, stack)
            messaging = _messaging(settings, participant, registry, stack)

            self._server = Server(
                settings.listen,
                workers=settings.workers,
                queue=settings.queue,
                reserved=RESERVED,
                with_reflection=settings.reflection,
                registry=registry,
            )
            stack.callback(self._server.drain, 0)  # of one that is not started
            gauges = gauges_engine(engine.url, name="profiles-gauges")
            stack.callback(gauges.dispose)
            registry.register(ParticipantGauges(gauges, settings.coordinators))
            # It goes after the server: who watches the process sees it drain.
            self.metrics_address = metrics_page(
                settings.metrics_listen, registry, stack, service="profiles", ready=lambda: self._server.ready
            )
            stack.callback(self._server.drain, settings.drain_s)
            ParticipantServicer(participant, resolver).add_to(self._server)
            if settings.operator_token is not None:
                token = settings.operator_token.get_secret_value()
                OperationsServicer(participant, resolver, token).add_to(self._server)
            ProfilesServicer(Reader(engine, resolver), updates_create=settings.updates_create).add_to(self._server)

            self._server.start()
            readiness = Readiness(url, "profiles-ready", self._server.serving)
            stack.callback(readiness.close)
            purge = Purge(engine, settings.times, participant.metrics)
            jobs: list[Job] = [
                ("sweep", sweeper.run_once, settings.sweep_interval_s),
                ("purge", purge.run_once, settings.purge_interval_s),
                ("readiness", readiness.run_once, EVERY_S),
            ]
            if messaging is not None:
                jobs += messaging.jobs
            self._schedule(jobs, stack)
            stack.callback(self._server.leave)
            self._stack = stack.pop_all()
        log.info("serving", address=self.address, metrics=self.metrics_address, participant=settings.name)

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return self._server.address

    def stop(self) -> None:
        """Says that it no longer serves, ends the sweeps, lets running calls finish, closes everything. Idempotent."""
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
    configure_logging("profiles", level=settings.log_level, json=settings.log_json)
    log_uncaught("profiles")
    tracing.configure("profiles")
    app = App(settings)
    spare_collector()
    print(f"ready profiles {app.address} metrics={app.metrics_address or 'none'}", flush=True)
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


def sweep(settings: Settings) -> int:
    """One sweep, at once; how many transactions it ended."""
    configure_logging("profiles", level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        engine = _database(settings, stack)
        _check(settings, engine)
        _, _, sweeper = _participant(settings, engine, CollectorRegistry(), stack)
        return sweeper.run_once()


def purge(settings: Settings) -> int:
    """One purge, at once; how many finished transactions it forgot."""
    configure_logging("profiles", level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        engine = _database(settings, stack)
        _check(settings, engine)
        return Purge(engine, settings.times, ParticipantMetrics(CollectorRegistry())).run_once()


@contextmanager
def graveyard(settings: Settings) -> Iterator[Graveyard]:
    """Where messages are buried that this process could not take up, for an operator's command."""
    cluster = settings.required_cluster("this command")
    configure_logging("profiles", level=settings.log_level, json=settings.log_json)
    with extra("this command"):
        from profiles_server.messaging import consumed
        from tandem.kafka.opening import graveyard as opened
    with opened(cluster, consumed(settings, cluster), name=settings.name) as found:
        yield found


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Participant, Resolver]]:
    """The participant and what asks coordinators for it, for an operator's command."""
    configure_logging("profiles", level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        engine = _database(settings, stack)
        _check(settings, engine)
        yield _participant(settings, engine, CollectorRegistry(), stack)[:2]


def _messaging(
    settings: Settings, participant: Participant, registry: CollectorRegistry, stack: ExitStack
) -> Messaging | None:
    """What runs with Kafka, where it is configured."""
    cluster = settings.cluster
    if cluster is None:
        return None
    with extra("PROFILES_KAFKA_SERVERS"):
        from profiles_server.messaging import Messaging
    return Messaging(settings, cluster, participant, registry, stack)


def _database(settings: Settings, stack: ExitStack) -> Engine:
    return open_engine(database_url(settings, "profiles", stack), "profiles", stack, pool_size=settings.database_pool)


def _check(settings: Settings, engine: Engine) -> None:
    """Everything that must be so before the process may vote (R15, R17)."""
    check_server(engine)
    for migrations in MIGRATIONS:
        migrations.check(engine, command=MIGRATE)
    with owned(engine) as connection:
        encoding = connection.execute(sa.select(sa.func.current_setting("server_encoding"))).scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(f"the database's encoding is {encoding}: names in any script need UTF8")
    check_names(engine, name=settings.name, coordinators=settings.coordinators)


def _participant(
    settings: Settings, engine: Engine, registry: CollectorRegistry, stack: ExitStack
) -> tuple[Participant, Resolver, Sweeper]:
    metrics = ParticipantMetrics(registry)
    participant = Participant(
        engine,
        name=settings.name,
        resource=ProfilesResource(),
        coordinators=settings.coordinators,
        times=settings.times,
        metrics=metrics,
    )
    resolver = Resolver(participant, settings.coordinators)
    stack.callback(resolver.close)
    return participant, resolver, Sweeper(engine, resolver, metrics, batch=settings.sweep_batch)
