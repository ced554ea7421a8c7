"""What the wiring of every process is made of: its database, its metrics page, its life until SIGTERM."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from sqlalchemy.engine import Engine

from tandem.runtime.config import ProcessSettings, host_and_port
from tandem.runtime.database import create_engine
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.page import Page, app
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.telemetry import logger

log = logger("tandem.process")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_signal(stop: Callable[[], None]) -> None:
    """Blocks until SIGTERM or SIGINT, then calls `stop` once. A second signal ends the process at once."""
    with waiting_for_signal() as wait:
        if failpoint.armed:
            log.warning("failpoints are armed", failpoints=sorted(failpoint.armed))
        wait()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    log.info("draining")
    stop()
    log.info("stopped")


@contextmanager
def waiting_for_signal() -> Iterator[Callable[[], None]]:
    """Gives a function that blocks until one of SIGNALS has come.

    The kernel may give a signal to any thread; one of gRPC's does not wake the main thread from waiting for a lock, and
    Python's handlers run there only. What the signal itself writes to a socket does.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with reader, writer:
        former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        try:
            yield lambda: _until(reader)
        finally:
            signal.set_wakeup_fd(former)
            for number, handler in handlers.items():
                if signal.getsignal(number) is not signal.SIG_DFL:
                    signal.signal(number, handler)


def _until(reader: socket.socket) -> None:
    while reader.recv(1)[0] not in SIGNALS:
        pass  # some other signal that Python handles


def spare_collector() -> None:
    """Has Python's garbage collector leave alone what lives as long as the process, and come by less often.

    Else it takes a quarter of the interpreter's time under load, looking at modules again and again. Calls leave few
    cycles behind: memory stays flat (`memory_growth` in scripts/bench).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@contextmanager
def spared_collector() -> Iterator[None]:
    """The same for a while: a long command leaves its process as it was, which may be another program's."""
    usual = gc.get_threshold()
    spare_collector()
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def database_url(settings: ProcessSettings, embedded: str, stack: ExitStack) -> str:
    """The URL of the database that is configured, or of `embedded` in the embedded PostgreSQL, kept by the stack."""
    if settings.database_url is not None:
        return settings.database_url
    return stack.enter_context(EmbeddedPostgres(settings.data_folder)).database_url(embedded)


def open_engine(url: str, name: str, stack: ExitStack, *, pool_size: int) -> Engine:
    """An engine that the stack disposes of. name: what the database shows of it."""
    made = create_engine(url, pool_size=pool_size, name=name)
    stack.callback(made.dispose)
    return made


def build_info(service: str, registry: CollectorRegistry) -> None:
    """Which version of which service this is, as a metric of 1."""
    gauge = Gauge("tandem_build_info", "1, by version and service.", ["version", "service"], registry=registry)
    gauge.labels(_version(), service).set(1)


def _version() -> str:
    try:
        return version("tandem")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def metrics_page(
    listen: str, registry: CollectorRegistry, stack: ExitStack, *, service: str, ready: Callable[[], bool]
) -> str:
    """Starts the page of metrics and health, which the stack stops; its host:port, or "" where `listen` is empty."""
    if not listen:
        return ""
    # A second series for each counter, which Prometheus has no use for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    build_info(service, registry)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    try:
        host, port = host_and_port(listen)
    except ValueError as error:
        raise ConfigurationError(f"METRICS_LISTEN {error}") from None
    try:
        page = Page(host, port, app(registry, ready))
    except OSError:
        raise ConfigurationError(f"can't listen on {listen} for the metrics: is another process using it?") from None
    stack.callback(page.close)
    return f"{listen.rpartition(':')[0]}:{page.server_port}"
