"""Two PostgreSQL servers and the processes, with a wire between any two that can be cut."""

from __future__ import annotations

from pathlib import Path

from lab import checks, processes
from lab.processes import Service
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.postgres import EmbeddedPostgres

TTL_S = 10
"""The shortest that the product allows."""

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

    def start(self) -> checks.Databases:
        """From nothing: servers, tables, processes."""
        for server in self.databases.values():
            server.start()
        urls = {name: server.database_url(name) for name, server in self.databases.items()}
        shared = {"TTL_S": str(TTL_S), "METRICS_LISTEN": "127.0.0.1:0", "LOG_LEVEL": "WARNING", "DRAIN_S": "1"}
        sweeping = {"COORDINATORS": f"identity={self.address['coordinator']}", "SWEEP_INTERVAL_S": "1"}
        recovering = {"PARTICIPANTS": f"profiles={self.address['profiles']}", "RECOVERY_INTERVAL_S": "1"}
        self._add("profiles", "profiles_server", urls["profiles"], {**shared, **sweeping})
        self._add("coordinator", "coordinator", urls["identity"], {**shared, **recovering})
        self._add("identity", "identity_stub", urls["identity"], {**shared, "PARTICIPANTS": recovering["PARTICIPANTS"]})
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

    def postmaster(self, name: str) -> int:
        """The process id of a PostgreSQL server; 0 while it is not there."""
        files = keeper.Files(self.databases[name].folder)
        pid, _ = keeper.read_postmaster(files)
        return pid if pid and keeper.is_server(files, pid) else 0

    def stop(self) -> None:
        """Everything, in the other order."""
        for service in reversed(list(self.services.values())):
            service.kill()
        for server in self.databases.values():
            server.close()
