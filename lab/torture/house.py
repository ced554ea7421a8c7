"""Two PostgreSQL servers and the processes, with a wire between any two that can be cut, silenced or slowed."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url

from lab import checks, processes
from lab.processes import Service
from lab.proxy import TcpProxy
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.postgres import EmbeddedPostgres

TTL_S = 10
"""The shortest that the product allows."""

DATABASE_OF = {"identity": "identity", "coordinator": "identity", "profiles": "profiles"}
"""Service → whose server its database is on."""

CONTROLS = ("dual-write", "sweep-by-age")


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

    def start(self) -> checks.Databases:
        """From nothing: servers, tables, processes."""
        for server in self.databases.values():
            server.start()
        urls = {name: server.database_url(name) for name, server in self.databases.items()}
        for who, whom in (("identity", "profiles"), ("profiles", "coordinator"), ("coordinator", "profiles")):
            self.wires[f"{who} to {whom}"] = TcpProxy(self.address[whom])
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
        for module, name in (("profiles_server", "profiles"), ("identity_stub", "identity")):
            processes.run(module, "migrate", environment=self.services[name].environment)
        if self._control == "dual-write":
            self.services["identity"].module = "lab.torture.naive_identity"
        if self._control == "sweep-by-age":
            self.services["profiles"].module = "lab.torture.naive_profiles"
        for service in self.services.values():
            service.start()
        return checks.Databases(urls["identity"], urls["profiles"])

    def _add(self, name: str, module: str, url: str, settings: dict[str, str]) -> None:
        prefix = f"{name.upper()}_"
        environment = {prefix + key: value for key, value in settings.items()}
        environment |= {f"{prefix}LISTEN": self.address[name], f"{prefix}DATABASE_URL": url}
        self.services[name] = Service(module, self.address[name], environment, self.folder)

    def _wired(self, service: str, database: str) -> str:
        """The URL of a service's database, by way of a wire of its own."""
        url = make_url(self.databases[database].tcp_url(database))
        wire = self.wires[f"{service} to its database"] = TcpProxy(f"{url.host}:{url.port}")
        over = url.set(host="127.0.0.1", port=wire.port, query={"sslmode": "disable", "gssencmode": "disable"})
        return over.render_as_string(hide_password=False)

    def restart_database(self, name: str) -> None:
        """After it was killed. It may listen elsewhere now."""
        self.databases[name].start()
        for service, database in DATABASE_OF.items():
            if database == name:
                self.wires[f"{service} to its database"].target = f"127.0.0.1:{self.databases[name].port}"

    def postmaster(self, name: str) -> int:
        """The process id of a PostgreSQL server; 0 while it is not there."""
        files = keeper.Files(self.databases[name].folder)
        pid, _ = keeper.read_postmaster(files)
        return pid if pid and keeper.is_server(files, pid) else 0

    def stop(self) -> None:
        """Everything, in the other order."""
        for service in reversed(list(self.services.values())):
            service.kill()
        for wire in self.wires.values():
            wire.close()
        for server in self.databases.values():
            server.close()
