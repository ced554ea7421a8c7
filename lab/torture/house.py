"""Two PostgreSQL servers, a broker where the design has one, and the processes, with a wire between any two that can be
cut, silenced or slowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from sqlalchemy.engine import make_url

from lab import checks, processes
from lab.broker import Broker
from lab.processes import Service
from lab.proxy import TcpProxy
from lab.torture import messages
from lab.wire_kafka import Replies
from lab.wire_pg import ClientMessages
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from lab.torture.designs import Design

TTL_S = 10
"""The shortest that the product allows."""

DATABASE_OF = {"identity": "identity", "coordinator": "identity", "profiles": "profiles"}
"""Service → whose server its database is on."""

SERVICES = ("identity", "profiles", "coordinator")
DATABASES = ("PostgreSQL of identity", "PostgreSQL of profiles")
INNER_WIRES = ("identity to profiles", "profiles to coordinator", "coordinator to profiles")
CLIENT_WIRES = ("clients to identity", "clients to profiles")

BROKER = "Kafka"

CONTROLS = ("dual-write", "sweep-by-age")

CONFIRMS = ("wait", "background", "background")
"""How identity confirms, from one start to the next: most signups are answered before their profile is visible."""

MAX_CLIENT_LINKS = 256

T = TypeVar("T")


def _at_once(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Does it to all of them. Raises the first error, when all have ended."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(work, item) for item in items]:
            done.result()


def _start(server: EmbeddedPostgres | Broker) -> None:
    server.start()


class House:
    """Everything that a run needs. control: which naive code takes the place of the product's, if any."""

    def __init__(self, folder: Path, design: Design, *, control: str = "") -> None:
        self.folder = folder
        self.targets = design.targets
        self._settings = design.settings
        self._confirms = design.confirms
        self.broker = Broker(folder / "broker") if design.targets.has_broker else None
        self.databases = {name: EmbeddedPostgres(folder / f"postgres-{name}") for name in ("identity", "profiles")}
        ports = {name: processes.free_port() for name in ("profiles", "coordinator", "identity")}
        self.address = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self._control = control
        self._prefix = f"torture-{uuid4().hex[:8]}"
        self.services: dict[str, Service] = {}
        self.wires: dict[str, TcpProxy] = {}
        self.confirmed: list[str] = []

    def start(self) -> checks.Databases:
        """From nothing: servers, tables, processes."""
        servers: list[EmbeddedPostgres | Broker] = [*self.databases.values(), *([self.broker] if self.broker else [])]
        _at_once(_start, servers)
        urls = {name: server.database_url(name) for name, server in self.databases.items()}
        for wire in self.targets.inner_wires:
            self.wires[wire] = TcpProxy(self.address[wire.rpartition(" to ")[2]])
        for wire in CLIENT_WIRES:
            self.wires[wire] = TcpProxy(self.address[wire.rpartition(" to ")[2]], max_links=MAX_CLIENT_LINKS)
        over = {name: self._wired(name, DATABASE_OF[name]) for name in self.targets.services}
        kafka = {name: self._brokers(name) for name in over}
        shared = {"TTL_S": str(TTL_S), "METRICS_LISTEN": "127.0.0.1:0", "LOG_LEVEL": "WARNING", "DRAIN_S": "1"}
        sweeping = {"COORDINATORS": f"identity={self._by('profiles to coordinator')}", "SWEEP_INTERVAL_S": "1"}
        preparing = {"PARTICIPANTS": f"profiles={self._by('identity to profiles')}", "RECOVERY_INTERVAL_S": "1"}
        recovering = {"PARTICIPANTS": f"profiles={self._by('coordinator to profiles')}", "RECOVERY_INTERVAL_S": "1"}
        own = {
            "profiles": ("profiles_server", {**sweeping, **self._settings.profiles}),
            "coordinator": ("coordinator", {**recovering, **self._settings.coordinator}),
            "identity": ("identity_stub", {**preparing, **self._settings.identity}),
        }
        for name, url in over.items():
            module, settings = own[name]
            self._add(name, module, url, {**shared, **kafka[name], **settings})
        _at_once(self._migrate, ("profiles", "identity"))
        if self._control == "dual-write":
            self.services["identity"].module = "lab.torture.naive_identity"
        if self._control == "sweep-by-age":
            self.services["profiles"].module = "lab.torture.naive_profiles"
        _at_once(self.start_service, self.services)
        return checks.Databases(urls["identity"], urls["profiles"])

    def start_service(self, name: str) -> None:
        """Starts one of them; identity with the next of its ways to confirm. Raises ProcessFailed."""
        service = self.services[name]
        if name == "identity" and self._confirms:
            confirm = CONFIRMS[len(self.confirmed) % len(CONFIRMS)]
            service.environment = {**service.environment, "IDENTITY_CONFIRM": confirm}
            service.start()
            self.confirmed.append(confirm)
        else:
            service.start()

    @property
    def for_clients(self) -> dict[str, str]:
        """Service → where clients reach it."""
        return {wire.rpartition(" to ")[2]: self.wires[wire].address for wire in CLIENT_WIRES}

    def _migrate(self, name: str) -> None:
        service = self.services[name]
        processes.run(service.module, "migrate", environment=service.environment)

    def _add(self, name: str, module: str, url: str, settings: dict[str, str]) -> None:
        prefix = f"{name.upper()}_"
        environment = {prefix + key: value for key, value in settings.items()}
        environment |= {f"{prefix}LISTEN": self.address[name], f"{prefix}DATABASE_URL": url}
        self.services[name] = Service(module, self.address[name], environment, self.folder)

    def _by(self, wire: str) -> str:
        """Where the wire's end is reached: by way of the wire, if this design has it."""
        return self.wires[wire].address if wire in self.wires else self.address[wire.rpartition(" to ")[2]]

    def _brokers(self, service: str) -> dict[str, str]:
        """What a service is told of the broker, by way of a wire of its own."""
        wire = f"{service} to {BROKER}"
        if self.broker is None or wire not in self.targets.broker_wires:
            return {}
        broker = self.broker.servers
        proxy = TcpProxy(broker, replies=lambda: Replies(broker, proxy.port))
        self.wires[wire] = proxy
        if (told := messages.brokers(proxy.address)) != {proxy.address}:
            raise processes.ProcessFailed(f"{', '.join(sorted(told))} would be reached past {wire}")
        # With a name of its own a consumer that was killed gets its partitions back as soon as it is there again.
        return {
            "KAFKA_SERVERS": proxy.address,
            "KAFKA_PREFIX": self._prefix,
            "KAFKA_INSTANCE": "only",
            "KAFKA_SESSION_S": "6",
        }

    def _wired(self, service: str, database: str) -> str:
        """The URL of a service's database, by way of a wire of its own."""
        url = make_url(self.databases[database].tcp_url(database))
        wire = self.wires[f"{service} to its database"] = TcpProxy(f"{url.host}:{url.port}", requests=ClientMessages)
        over = url.set(host="127.0.0.1", port=wire.port, query={"sslmode": "disable", "gssencmode": "disable"})
        return over.render_as_string(hide_password=False)

    def restart_database(self, name: str) -> None:
        """After it was killed. It may listen elsewhere now. name: one of DATABASES."""
        server = self._server(name)
        server.start()
        for service in self.targets.services:
            if self.databases[DATABASE_OF[service]] is server:
                self.wires[f"{service} to its database"].target = f"127.0.0.1:{server.port}"

    def postmaster(self, name: str) -> int:
        """The process id of a PostgreSQL server, one of DATABASES; 0 while it is not there."""
        files = keeper.Files(self._server(name).folder)
        pid, _ = keeper.read_postmaster(files)
        return pid if pid and keeper.is_server(files, pid) else 0

    def _server(self, name: str) -> EmbeddedPostgres:
        return self.databases[name.rpartition(" of ")[2]]

    @property
    def broker_pid(self) -> int:
        """The broker's process; 0 where there is none of ours now."""
        return self.broker.nodes[0].pid if self.broker is not None else 0

    @property
    def broker_is_durable(self) -> bool:
        """Whether it keeps what it has acknowledged when it is killed."""
        return self.broker is not None and self.broker.is_durable

    def restart_broker(self) -> None:
        """kill -9, and starts it again."""
        assert self.broker is not None
        self.broker.kill()
        self.broker.start()

    def again(self, most: int) -> int:
        """Sends so many of its messages once more; how many there were."""
        return messages.again(self.broker.servers, f"{self._prefix}.", most=most) if self.broker else 0

    def buried(self) -> dict[str, int]:
        """Dead-letter topic → messages in it."""
        return messages.counted(self.broker.servers, f"{self._prefix}.", ".dead") if self.broker else {}

    def stop(self) -> None:
        """Everything, in the other order."""
        for service in reversed(list(self.services.values())):
            service.kill()
        if self.broker is not None:
            self.broker.stop()
        for wire in self.wires.values():
            wire.close()
        for server in self.databases.values():
            server.close()
