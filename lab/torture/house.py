"""Two PostgreSQL servers and the processes, with a wire between any two that can be cut, silenced or slowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import make_url

from lab import checks, processes
from lab.processes import Service
from lab.proxy import TcpProxy
from lab.wire_pg import ClientMessages
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.postgres import EmbeddedPostgres

TTL_S = 10
"""The shortest that the product allows."""

DATABASE_OF = {"identity": "identity", "coordinator": "identity", "profiles": "profiles"}
"""Service → whose server its database is on."""

SERVICES = ("identity", "profiles", "coordinator")
DATABASES = ("PostgreSQL of identity", "PostgreSQL of profiles")
INNER_WIRES = ("identity to profiles", "profiles to coordinator", "coordinator to profiles")
DATABASE_WIRES = tuple(f"{service} to its database" for service in SERVICES)
CLIENT_WIRES = ("clients to identity", "clients to profiles")

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


class House:
    """Everything that a run needs. control: which naive code takes the place of the product's, if any."""

    def __init__(self, folder: Path, *, control: str = "") -> None:
        self.folder = folder
        self.databases = {name: EmbeddedPostgres(folder / f"postgres-{name}") for name in ("identity", "profiles")}
        ports = {name: processes.free_port() for name in ("profiles", "coordinator", "identity")}
        self.address = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self._control = control
        self.services: dict[str, Service] = {}
        self.wires: dict[str, TcpProxy] = {}
        self.confirmed: list[str] = []

    @property
    def victims(self) -> tuple[str, ...]:
        """Everything that can be broken."""
        return (*SERVICES, *DATABASES, *INNER_WIRES, *DATABASE_WIRES, *CLIENT_WIRES)

    def start(self) -> checks.Databases:
        """From nothing: servers, tables, processes."""
        _at_once(EmbeddedPostgres.start, self.databases.values())
        urls = {name: server.database_url(name) for name, server in self.databases.items()}
        for wire in INNER_WIRES:
            self.wires[wire] = TcpProxy(self.address[wire.rpartition(" to ")[2]])
        for wire in CLIENT_WIRES:
            self.wires[wire] = TcpProxy(self.address[wire.rpartition(" to ")[2]], max_links=MAX_CLIENT_LINKS)
        over = {name: self._wired(name, database) for name, database in DATABASE_OF.items()}
        shared = {"TTL_S": str(TTL_S), "METRICS_LISTEN": "127.0.0.1:0", "LOG_LEVEL": "WARNING", "DRAIN_S": "1"}
        sweeping = {
            "COORDINATORS": f"identity={self.wires['profiles to coordinator'].address}",
            "SWEEP_INTERVAL_S": "1",
        }
        preparing = {"PARTICIPANTS": f"profiles={self.wires['identity to profiles'].address}"}
        recovering = {
            "PARTICIPANTS": f"profiles={self.wires['coordinator to profiles'].address}",
            "RECOVERY_INTERVAL_S": "1",
        }
        self._add("profiles", "profiles_server", over["profiles"], {**shared, **sweeping})
        self._add("coordinator", "coordinator", over["coordinator"], {**shared, **recovering})
        self._add("identity", "identity_stub", over["identity"], {**shared, **preparing})
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
        if name == "identity":
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
        for service, database in DATABASE_OF.items():
            if self.databases[database] is server:
                self.wires[f"{service} to its database"].target = f"127.0.0.1:{server.port}"

    def postmaster(self, name: str) -> int:
        """The process id of a PostgreSQL server, one of DATABASES; 0 while it is not there."""
        files = keeper.Files(self._server(name).folder)
        pid, _ = keeper.read_postmaster(files)
        return pid if pid and keeper.is_server(files, pid) else 0

    def _server(self, name: str) -> EmbeddedPostgres:
        return self.databases[name.rpartition(" of ")[2]]

    def stop(self) -> None:
        """Everything, in the other order."""
        for service in reversed(list(self.services.values())):
            service.kill()
        for wire in self.wires.values():
            wire.close()
        for server in self.databases.values():
            server.close()
