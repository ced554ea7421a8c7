"""The wiring of the coordinator process: what is opened, checked, started, and closed in reverse order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from apscheduler import events
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine, Row

from coordinator.config import Settings
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.gauges import CoordinatorGauges
from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.coordinator.participants import Participants
from tandem.coordinator.purge import Purge
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.servicer import RESERVED, RESOLVERS, CoordinatorServicer
from tandem.coordinator.tables import MIGRATIONS, grants
from tandem.coordinator.tables import log as logs
from tandem.runtime import tracing
from tandem.runtime.database import check_server
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.gauges import gauges_engine
from tandem.runtime.local_transaction import owned
from tandem.runtime.process import database_url, metrics_page, open_engine, run_until_signal, spare_collector
from tandem.runtime.readiness import EVERY_S, Readiness
from tandem.runtime.server import Server
from tandem.runtime.telemetry import configure_logging, frames, log_uncaught, logger

log = logger("coordinator.app")

MIGRATE = "python -m coordinator migrate"
CONSOLE_POOL = 4


class App:
    """The running process, for as long as it is not stopped. Raises ConfigurationError if it must not run like this."""

    def __init__(self, settings: Settings) -> None:
        self._stopping = threading.Event()
        with ExitStack() as stack:
            url = database_url(settings, settings.embedded_database, stack)
            registry = CollectorRegistry()
            coordinator = _coordinator(
                settings, open_engine(url, "coordinator", stack, pool_size=settings.database_pool), registry, stack
            )
            # Resolve's own connections: nothing else can take them (R4).
            resolving = DecisionLog(open_engine(url, "coordinator", stack, pool_size=RESOLVERS), settings.times)

            self._server = Server(
                settings.listen,
                workers=settings.workers,
                queue=settings.queue,
                reserved=RESERVED,
                with_reflection=settings.reflection,
                registry=registry,
            )
            stack.callback(self._server.drain, 0)  # of one that is not started
            gauges = gauges_engine(url, name="coordinator-gauges")
            stack.callback(gauges.dispose)
            registry.register(CoordinatorGauges(gauges, name=settings.name, participants=settings.participants))
            # It goes after the server: who watches the process sees it drain.
            self.metrics_address = metrics_page(
                settings.metrics_listen, registry, stack, service="coordinator", ready=lambda: self._server.ready
            )
            stack.callback(self._server.drain, settings.drain_s)
            CoordinatorServicer(coordinator, resolving).add_to(self._server)

            self.console_address = _console(settings, url, coordinator, stack)
            self._server.start()
            readiness = Readiness(url, "coordinator-ready", self._server.serving)
            stack.callback(readiness.close)
            purge = Purge(coordinator.engine, settings.times, coordinator.metrics)
            jobs: list[tuple[str, Callable[[], object], float]] = [
                ("purge", purge.run_once, settings.purge_interval_s),
                ("readiness", readiness.run_once, EVERY_S),
            ]
            if settings.recovery:
                jobs.append(("recovery", _recovery(settings, coordinator).run_once, settings.recovery_interval_s))
            self._schedule(jobs, stack)
            stack.callback(self._server.leave)
            self._stack = stack.pop_all()
        log.info("serving", address=self.address, metrics=self.metrics_address, coordinator=settings.name)
        if self.console_address:
            log.info("console", address=self.console_address)

    @property
    def address(self) -> str:
        """host:port of the gRPC server."""
        return self._server.address

    def stop(self) -> None:
        """Says that it no longer serves, ends recovery, lets running calls finish, closes everything. Idempotent."""
        self._stopping.set()
        self._stack.close()

    def _schedule(self, jobs: Sequence[tuple[str, Callable[[], object], float]], stack: ExitStack) -> None:
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
    configure_logging("coordinator", level=settings.log_level, json=settings.log_json)
    log_uncaught("coordinator")
    tracing.configure("coordinator")
    app = App(settings)
    spare_collector()
    console = f" console={app.console_address}" if app.console_address else ""
    print(f"ready coordinator {app.address}{console} metrics={app.metrics_address or 'none'}", flush=True)
    run_until_signal(app.stop)
    tracing.shut_down()


def migrate(settings: Settings, *, runtime_role: str | None = None) -> list[tuple[str, str]]:
    """Brings the decision log to this code's revision: (package, revision). `runtime_role` gets what it needs (R2)."""
    with ExitStack() as stack:
        engine = _database(settings, stack, 2)
        check_server(engine)
        if runtime_role is not None and not _role_exists(engine, runtime_role):
            raise ConfigurationError("there is no such role in the database: create it first (CREATE ROLE … LOGIN)")
        MIGRATIONS.upgrade(engine)
        if runtime_role is not None:
            with engine.begin() as connection:
                for statement in grants(runtime_role):
                    connection.exec_driver_sql(statement)
    return [(MIGRATIONS.package, MIGRATIONS.head)]


def _role_exists(engine: Engine, role: str) -> bool:
    with owned(engine) as connection:
        found = connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
        return found.first() is not None


def migrations_sql(*, runtime_role: str | None = None) -> str:
    """What `migrate` would run on an empty database."""
    granted = "".join(f"{statement};\n" for statement in grants(runtime_role)) if runtime_role else ""
    return MIGRATIONS.sql() + granted


def recover(settings: Settings) -> int:
    """One recovery, at once; how many deliveries it made."""
    configure_logging("coordinator", level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        engine = _database(settings, stack, settings.database_pool)
        return _recovery(settings, _coordinator(settings, engine, CollectorRegistry(), stack)).run_once()


def purge(settings: Settings) -> int:
    """One purge, at once; how many finished transactions it forgot."""
    configure_logging("coordinator", level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        engine = _database(settings, stack, 2)
        MIGRATIONS.check(engine, command=MIGRATE)
        return Purge(engine, settings.times, CoordinatorMetrics(CollectorRegistry())).run_once()


@contextmanager
def opened(settings: Settings) -> Iterator[DecisionLog]:
    """The decision log, for an operator's command."""
    configure_logging("coordinator", level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        engine = _database(settings, stack, 2)
        MIGRATIONS.check(engine, command=MIGRATE)
        yield DecisionLog(engine, settings.times)


@contextmanager
def sources(settings: Settings) -> Iterator[tuple[DecisionLog, Participants]]:
    """The decision log and the participants, for a command that tells one transaction's story."""
    with opened(settings) as decision_log:
        participants = Participants(settings.participants)
        try:
            yield decision_log, participants
        finally:
            participants.close()


def log_ids(settings: Settings) -> Sequence[Row[Any]]:
    """The log's ids (log_id, current, since), the current one first: former ones are still answered for (R17)."""
    with ExitStack() as stack:
        engine = _database(settings, stack, 2)
        MIGRATIONS.check(engine, command=MIGRATE)
        with owned(engine) as connection:
            return connection.execute(sa.select(logs).order_by(logs.c.current.desc(), logs.c.since.desc())).all()


def _database(settings: Settings, stack: ExitStack, pool_size: int) -> Engine:
    url = database_url(settings, settings.embedded_database, stack)
    return open_engine(url, "coordinator", stack, pool_size=pool_size)


def _coordinator(settings: Settings, engine: Engine, registry: CollectorRegistry, stack: ExitStack) -> Coordinator:
    """The coordinator, after everything was checked that must be so before it may answer (R15, R17)."""
    check_server(engine)
    MIGRATIONS.check(engine, command=MIGRATE)
    coordinator = Coordinator(
        engine,
        name=settings.name,
        participants=settings.participants,
        times=settings.times,
        registry=registry,
    )
    stack.callback(coordinator.close)
    unknown = sorted(coordinator.log.unknown_participants(settings.name, settings.participants))
    if unknown:
        raise ConfigurationError(
            f"decisions wait for {', '.join(unknown)} to acknowledge, which COORDINATOR_PARTICIPANTS does not name: "
            "put it back until they are delivered"
        )
    return coordinator


def _console(settings: Settings, url: str, coordinator: Coordinator, stack: ExitStack) -> str:
    """The console where it is asked for, on connections of its own; its address, or ""."""
    if not settings.console_listen:
        return ""
    try:
        from coordinator.console.facts import Sources
        from coordinator.console.remote import Operations
        from coordinator.console.serving import serve_console
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "jinja2", "uvicorn"):
            raise
        raise ConfigurationError(
            f"the console needs {error.name}, which is not installed: pip install 'tandem[console]', or unset "
            "COORDINATOR_CONSOLE_LISTEN"
        ) from None
    engine = open_engine(url, "coordinator console", stack, pool_size=CONSOLE_POOL)
    token = settings.console_token.get_secret_value() if settings.console_token is not None else None
    operator_tokens = {name: secret.get_secret_value() for name, secret in settings.operator_tokens.items()}
    if not operator_tokens.keys() <= settings.participants.keys():  # which one is not said: it may be a token
        raise ConfigurationError(
            "COORDINATOR_OPERATOR_TOKENS names a participant that COORDINATOR_PARTICIPANTS does not name"
        )
    operations = Operations(settings.participants, operator_tokens)
    stack.callback(operations.close)
    sources = Sources(settings.name, DecisionLog(engine, settings.times), coordinator.participants, operations)
    return serve_console(settings.console_listen, token or None, sources, stack)


def _recovery(settings: Settings, coordinator: Coordinator) -> Recovery:
    return Recovery(coordinator, batch=settings.recovery_batch)
