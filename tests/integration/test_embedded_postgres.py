"""The embedded PostgreSQL, with real servers and processes that are really killed.

A process of a test ends when it is told so by a line, or is killed; states are polled for, with a deadline.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.postgres import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    clone,
    default_folder,
    find_binaries,
    main,
    wait_until_stopped,
)

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PYTHONPATH)}
# For another user's process, whose Python may not be that of the tests' environment.
WHOLE_PATH = {**os.environ, "PYTHONPATH": os.pathsep.join([*PYTHONPATH, *site.getsitepackages()])}
AS_ROOT = os.geteuid() == 0
PATIENCE_S = 20.0
ROOM_BYTES = 1 << 30  # what a handful of servers need, with room to spare

USER = """
import sys
from pathlib import Path
from tandem.runtime.postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    for database in sys.stdin:
        print(server.database_url(database.strip()), flush=True)
"""

KEPT_UNTIL_EXIT = """
import sys
from pathlib import Path
from tandem.runtime.postgres import embedded
folder = Path(sys.argv[1])
assert embedded(folder) is embedded(folder)
print(embedded(folder).database_url("app"))
"""


def eventually(check: Callable[[], Any]) -> Any:
    """What `check` returns, as soon as that is true; `check` may lose its connection meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(sa.exc.OperationalError):
            if result := check():
                return result
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def query(url: str, statement: str) -> Any:
    """Runs one statement; returns the first value, if there is one."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        return result.scalar() if result.returns_rows else None


def server_of(folder: Path) -> int:
    """The process id of the server that runs, or 0."""
    files = keeper.Files(folder)
    return keeper.read_postmaster(files)[0] if keeper.server_alive(files) else 0


def keeper_of(folder: Path) -> int:
    """The process id of the keeper that runs, or 0."""
    files = keeper.Files(folder)
    return int(files.keeper_lock.read_text()) if keeper.keeper_alive(files) else 0


def kill(pid: int) -> None:
    assert pid > 0
    os.kill(pid, signal.SIGKILL)


def processes_about(folder: Path) -> list[str]:
    """The command lines in which `folder` is named."""
    listing = subprocess.run(["ps", "-ewwo", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if str(folder) in line]


class User:
    """A process that uses the server of `folder`, until it is told to finish or killed."""

    def __init__(self, folder: Path, *, python: str = sys.executable, **options: Any) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": "/", **options}
        self.process = subprocess.Popen([python, "-c", USER, folder], **{"env": ENVIRONMENT, **options})

    def ask(self, database: str) -> None:
        """Has it make the database, and doesn't wait for the answer."""
        self.process.stdin.write(f"{database}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """The URL of the database that it was asked for; waits until it has started and has it."""
        url = self.process.stdout.readline().strip()
        assert url, f"the process has ended, {self.process.wait()}"
        return url

    def url(self, database: str) -> str:
        self.ask(database)
        return self.answer()

    def finish(self) -> None:
        self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A short folder that other users can pass through. Nothing started in it may be left at the end."""
    in_memory = Path("/dev/shm")
    roomy = in_memory.is_dir() and shutil.disk_usage(in_memory).free > ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="tandem-test-", dir=in_memory if roomy else "/tmp") as name:
        scratch = Path(name)
        scratch.chmod(0o711)
        yield scratch
        eventually(lambda: not processes_about(scratch))


@pytest.fixture(scope="module")
def template(scratch: Path) -> Path:
    """The folder of a server that doesn't run, and was initialised."""
    folder = scratch / "template"
    with EmbeddedPostgres(folder):
        pass
    assert wait_until_stopped(folder)
    return folder


@pytest.fixture(scope="module")
def running(template: Path, scratch: Path) -> Iterator[EmbeddedPostgres]:
    """A server for the tests that leave it as it is."""
    clone(template, scratch / "running")
    with EmbeddedPostgres(scratch / "running") as server:
        yield server


@pytest.fixture
def folder(template: Path) -> Iterator[Path]:
    """The folder of a server that doesn't run, and won't when the test is over. Its data stays."""
    yield template
    assert wait_until_stopped(template, PATIENCE_S)


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server that may be killed."""
    with EmbeddedPostgres(folder) as server:
        yield server


@pytest.fixture
def new_folder(scratch: Path) -> Iterator[Path]:
    """Where no server ever was."""
    folder = Path(tempfile.mkdtemp(dir=scratch)) / "server"
    folder.parent.chmod(0o711)
    yield folder
    assert wait_until_stopped(folder, PATIENCE_S)
    shutil.rmtree(folder.parent)


@pytest.fixture
def copied_folder(template: Path, new_folder: Path) -> Path:
    """Like `folder`, for a test that breaks it."""
    clone(template, new_folder)
    return new_folder


# --- using it -----------------------------------------------------------------------------------------------


def test_both_urls_lead_to_the_same_database(running: EmbeddedPostgres) -> None:
    """What is written over the socket is read over TCP; each database is its own; TCP needs the password."""
    query(running.database_url("identity"), "CREATE TABLE t AS SELECT 42 AS answer")
    assert query(running.tcp_url("identity"), "SELECT answer FROM t") == 42
    assert query(running.database_url("profiles"), "SELECT to_regclass('t')") is None
    assert query(running.tcp_url("identity"), "SHOW listen_addresses") == "127.0.0.1"
    without = sa.make_url(running.tcp_url("identity")).set(password="wrong")
    with pytest.raises(sa.exc.OperationalError, match="password"):
        query(without.render_as_string(hide_password=False), "SELECT 1")


def test_what_is_committed_is_durable(running: EmbeddedPostgres) -> None:
    """The embedded server is no toy: fsync is on, and nobody can switch it off through the settings."""
    url = running.database_url("app")
    for setting, value in {"fsync": "on", "synchronous_commit": "on", "server_encoding": "UTF8"}.items():
        assert query(url, f"SHOW {setting}") == value
    with pytest.raises(EmbeddedPostgresError, match="fsync"):
        EmbeddedPostgres(running.folder, settings={"fsync": "off"})


def test_log_holds_no_values(running: EmbeddedPostgres) -> None:
    """Neither a failing statement nor what it was about gets into the log, which operators read and ship."""
    url = running.database_url("app")
    query(url, "CREATE TABLE t (word text PRIMARY KEY)")
    query(url, "INSERT INTO t VALUES ('Canary-1')")
    for statement in ("INSERT INTO t VALUES ('Canary-1')", "SELECT 'Canary-2'::int", "SELECT Canary_3"):
        with pytest.raises(sa.exc.DBAPIError):
            query(url, statement)
    assert "ready to accept connections" in running.log.read_text()
    assert "canary" not in running.log.read_text().lower()


def test_names_that_would_be_cut_or_quoted_are_refused(running: EmbeddedPostgres) -> None:
    """A database's name comes from configuration: a bad one is refused before it is part of a statement."""
    for bad in ("", "a" * 64, 'a"; DROP DATABASE postgres; --', "1st"):
        with pytest.raises(ValueError, match="database's name"):
            running.database_url(bad)
    with pytest.raises(EmbeddedPostgresError, match="not in use"):
        EmbeddedPostgres(running.folder).database_url("app")


def test_settings_of_the_one_that_starts_it_hold(folder: Path) -> None:
    """More settings can be given; one that PostgreSQL doesn't know ends in an error that quotes its log."""
    with pytest.raises(EmbeddedPostgresError, match=r'server\.log(?s:.*)parameter "wrok_mem"'):
        EmbeddedPostgres(folder, settings={"wrok_mem": "8MB"}).start()
    with EmbeddedPostgres(folder, settings={"work_mem": "8MB"}) as server:
        assert query(server.database_url("app"), "SHOW work_mem") == "8MB"


def test_data_survives_a_stop(folder: Path, new_folder: Path) -> None:
    """Data is there after a stop and a start, and in a clone of the folder, which gets a port of its own."""
    with EmbeddedPostgres(folder) as server:
        query(server.database_url("app"), "CREATE TABLE kept AS SELECT 'kept' AS word")
    assert wait_until_stopped(folder, PATIENCE_S)
    assert server_of(folder) == 0
    clone(folder, new_folder)
    with EmbeddedPostgres(folder) as server, EmbeddedPostgres(new_folder) as copied:
        assert server.port != copied.port
        for each in (server, copied):
            assert query(each.database_url("app"), "SELECT word FROM kept") == "kept"
            assert query(each.tcp_url("app"), "SELECT word FROM kept") == "kept"


def test_a_server_in_use_is_not_cloned(
    running: EmbeddedPostgres, new_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of files that are being written would be a broken database."""
    monkeypatch.setattr("tandem.runtime.postgres.STOP_TIMEOUT_S", 0.1)
    with pytest.raises(EmbeddedPostgresError, match="in use"):
        clone(running.folder, new_folder)


def test_long_path_and_a_server_beside(running: EmbeddedPostgres, template: Path, new_folder: Path) -> None:
    """A folder deeper than a socket's path may be long works, beside another server, with data of its own."""
    deep = new_folder / ("deep" * 20) / ("deeper" * 10)
    clone(template, deep)
    exists = "SELECT 1 FROM pg_database WHERE datname = 'deep'"
    with EmbeddedPostgres(deep) as server:
        assert query(server.database_url("deep"), exists) == 1
        assert query(running.database_url("app"), exists) is None
    assert wait_until_stopped(deep, PATIENCE_S)


def test_status_says_what_runs(running: EmbeddedPostgres, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` tells by text and by exit code whether a server runs, and where."""
    assert main(["status", str(folder)]) == 3
    assert main(["status", str(running.folder)]) == 0
    assert f"port {running.port}" in capsys.readouterr().out
    assert str(running.port) in repr(running)


# --- sharing it ---------------------------------------------------------------------------------------------


def test_server_stops_with_the_last_of_its_users(folder: Path) -> None:
    """Two processes share one server. It outlives the first; when the last is killed -9 it stops in order."""
    first, last = User(folder), User(folder)
    assert first.url("app") == (url := last.url("app"))
    shared = server_of(folder)
    first.finish()
    assert query(url, "SELECT 1") == 1
    assert server_of(folder) == shared
    last.kill()
    assert wait_until_stopped(folder, PATIENCE_S)
    assert not processes_about(folder)
    assert (folder / "server.log").read_text().rstrip().endswith("database system is shut down")


def test_processes_that_start_at_once_get_one_server(new_folder: Path) -> None:
    """Four processes find a folder where an initdb was killed: one server is made, and each database once."""
    unfinished = new_folder / "new-unfinished" / "data" / "PG_VERSION"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("18\n")
    users = [User(new_folder) for _ in range(4)]
    for database in ("one", "two", "three", "four"):
        for user in users:
            user.ask(database)
        urls = {user.answer() for user in users}
        assert len(urls) == 1
        assert query(urls.pop(), "SELECT current_database()") == database
    assert (new_folder / "server.log").read_text().count("started PostgreSQL") == 1
    assert not unfinished.exists()
    for user in users:
        user.finish()


def test_embedded_is_kept_until_the_process_exits(folder: Path) -> None:
    """A process that never says close has one server for as long as it runs, and leaves nothing behind."""
    command = [sys.executable, "-c", KEPT_UNTIL_EXIT, folder]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.stdout.startswith("postgresql+psycopg2://"), result.stderr
    assert wait_until_stopped(folder, PATIENCE_S)


def test_waiting_is_bounded(folder: Path) -> None:
    """A process that hangs while it starts the server doesn't hang the others: they get an error in time."""
    with keeper.Lock(keeper.Files(folder).start_lock) as lock:
        assert lock.try_take(shared=False)
        with pytest.raises(EmbeddedPostgresError, match=r"didn't finish starting(?s:.*)server\.log"):
            EmbeddedPostgres(folder).start(timeout_s=0.2)


# --- what may happen to it ----------------------------------------------------------------------------------


def test_killed_server_comes_back(server: EmbeddedPostgres) -> None:
    """postgres is killed -9: without anybody's help it is back at the same URL, with what was committed."""
    url = server.database_url("app")
    query(url, "CREATE TABLE killed AS SELECT 'committed' AS word")
    killed = server_of(server.folder)
    kill(killed)
    eventually(lambda: server_of(server.folder) not in (0, killed))
    assert eventually(lambda: query(url, "SELECT word FROM killed")) == "committed"
    kill(server_of(server.folder))
    assert query(server.database_url("app"), "SELECT word FROM killed") == "committed"


def test_killed_keeper_is_replaced(server: EmbeddedPostgres) -> None:
    """The keeper is killed -9: the next start leaves the running server alone and gives it a new keeper.

    The new one does all that the old one did: it restarts the server, too, and stops it in the end.
    """
    running, killed = server_of(server.folder), keeper_of(server.folder)
    kill(killed)
    eventually(lambda: not keeper_of(server.folder))
    with EmbeddedPostgres(server.folder) as other:
        assert server_of(server.folder) == running
        assert keeper_of(server.folder) not in (0, killed)
        url = other.database_url("app")
        kill(running)
        eventually(lambda: query(url, "SELECT 1"))
    server.close()
    assert wait_until_stopped(server.folder, PATIENCE_S)


def test_server_without_a_keeper_is_stopped_by_the_last_user(server: EmbeddedPostgres) -> None:
    """The keeper is killed -9 and nobody starts again: closing still stops the server."""
    kill(keeper_of(server.folder))
    eventually(lambda: not keeper_of(server.folder))
    assert server_of(server.folder)
    server.close()
    assert wait_until_stopped(server.folder, PATIENCE_S)


def test_start_repairs_when_all_were_killed(server: EmbeddedPostgres) -> None:
    """Keeper and postgres are killed -9: a start, in this process or another, brings everything back."""
    query(server.database_url("app"), "CREATE TABLE repaired AS SELECT 'committed' AS word")
    kill(keeper_of(server.folder))
    kill(server_of(server.folder))
    user = User(server.folder)
    assert query(user.url("app"), "SELECT word FROM repaired") == "committed"
    user.finish()
    assert query(server.start().database_url("app"), "SELECT word FROM repaired") == "committed"


def test_numbers_of_other_processes_are_not_believed(folder: Path) -> None:
    """The process id of a server that died is somebody else's by now: a new server starts all the same."""
    server = EmbeddedPostgres(folder)
    stale = f"{os.getpid()}\n{folder}/data\n0\n{server.port}\n/tmp\n127.0.0.1\n0 0\nready\n"
    (folder / "data" / "postmaster.pid").write_text(stale)
    server.socket_dir.mkdir(0o700)
    (server.socket_dir / f".s.PGSQL.{server.port}.lock").write_text(stale)
    with server:
        assert query(server.database_url("app"), "SELECT 1") == 1


def test_taken_port_is_given_up(folder: Path) -> None:
    """Somebody else listens on the server's port, chosen long ago: it takes another one."""
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken = somebody.getsockname()[1]
        (folder / "port").write_text(str(taken))
        with EmbeddedPostgres(folder) as server:
            assert server.port != taken
            assert query(server.tcp_url("app"), "SELECT 1") == 1


def test_removed_folder_ends_the_server(copied_folder: Path) -> None:
    """A folder that is removed under a running server's feet leaves no process and no socket behind."""
    server = EmbeddedPostgres(copied_folder).start()
    socket_dir = server.socket_dir
    eventually(lambda: shutil.rmtree(copied_folder, ignore_errors=True) or not copied_folder.exists())
    eventually(lambda: not processes_about(copied_folder))
    assert not socket_dir.exists()
    server.close()


def test_data_of_another_version_is_refused(copied_folder: Path) -> None:
    """PostgreSQL can't read another major version's data: the error says what to do."""
    (copied_folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 9.*PG_BIN"):
        EmbeddedPostgres(copied_folder).start()


# --- where it runs ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_runs_as_an_ordinary_user(scratch: Path) -> None:
    """Somebody who is not root has a server of their own, that runs under their name."""
    nobody = pwd.getpwnam("nobody").pw_uid
    identity = {"user": nobody, "group": nobody, "extra_groups": [], "env": WHOLE_PATH, "cwd": "/"}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-c", "import psycopg2, tandem.runtime"], **identity).returncode == 0:
                break
    else:
        pytest.skip("nobody can't run Python with this checkout")
    home = scratch / "nobody"
    home.mkdir(0o700)
    os.chown(home, nobody, nobody)
    folder = home / "server"
    user = User(folder, python=python, **identity)
    assert query(user.url("app"), "SELECT 1") == 1
    assert Path(f"/proc/{server_of(folder)}").stat().st_uid == nobody
    assert folder.stat().st_mode & 0o077 == 0
    user.finish()
    assert wait_until_stopped(folder, PATIENCE_S)


@pytest.mark.skipif(not AS_ROOT, reason="about what root does")
def test_root_runs_it_as_somebody_else(running: EmbeddedPostgres) -> None:
    """PostgreSQL refuses root: its processes, its data and its socket belong to another user only."""
    uid = Path(f"/proc/{server_of(running.folder)}").stat().st_uid
    assert uid != 0
    for private in (running.folder / "data", running.socket_dir):
        assert private.stat().st_uid == uid
        assert private.stat().st_mode & 0o077 == 0
    assert (running.folder / "password").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(not AS_ROOT, reason="about what root does")
def test_closed_directory_above_is_named(new_folder: Path) -> None:
    """The other user can't enter a directory of root's: the error says which, before anything is made."""
    closed = new_folder.parent / "closed"
    closed.mkdir(0o700)
    with pytest.raises(EmbeddedPostgresError, match=f"can't enter {closed}: "):
        EmbeddedPostgres(closed / "server").start()
    assert not (closed / "server" / "data").exists()


@pytest.mark.skipif(not AS_ROOT, reason="about what root does")
def test_programs_out_of_reach_are_copied(template: Path, new_folder: Path) -> None:
    """A virtual environment of root's is closed to others: the programs are copied, once, and run there."""
    if not (find_binaries().parent / "share").is_dir():
        pytest.skip("these programs are a distribution's, in /usr")
    cache = new_folder.parent / "cache"
    copied = keeper.readable_copy(find_binaries(), cache)
    user = keeper.ServerUser.of(keeper.Files(template))
    assert user.version(copied) == user.version(find_binaries()) != ""
    made = copied.stat().st_ctime_ns
    assert keeper.readable_copy(find_binaries(), cache) == copied
    assert copied.stat().st_ctime_ns == made


def test_strangers_socket_directory_is_refused(folder: Path) -> None:
    """Local connections have no password: a directory that others can write to is not used for the socket."""
    directory = EmbeddedPostgres(folder).socket_dir
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="0700"):
        EmbeddedPostgres(folder).start()
    directory.rmdir()


def test_programs_are_found_or_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$PG_BIN wins; where there is no PostgreSQL at all, the error says what to install or to set."""
    found = find_binaries()
    assert (found / "postgres").exists()
    monkeypatch.setenv("PG_BIN", str(found))
    assert find_binaries() == found
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match="PG_BIN"):
        find_binaries()
    monkeypatch.delenv("PG_BIN")
    monkeypatch.setattr("tandem.runtime.postgres._has_programs", lambda folder: False)
    with pytest.raises(EmbeddedPostgresError, match=r"tandem\[embedded\].*PG_BIN.*database URL"):
        find_binaries()


def test_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$TANDEM_DATA names the folder; else it is the user's own."""
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("TANDEM_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_folder() == tmp_path / "tandem" / "postgres"
