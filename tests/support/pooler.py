"""PgBouncer in transaction mode, for running the tests behind it.

One client meets several sessions of the server there: what a local transaction leaves behind in its session, the next
one does not find, and somebody else does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psycopg2
from sqlalchemy.engine import make_url

from lab import processes

BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
START_S = 20.0
MIN_POOL = 3
"""Sessions that each database gets as soon as it has a client, and that are taken in turn."""

_SETTINGS = """
[databases]
* = host={host} port={port} user={user} password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 40
min_pool_size = {min_pool}
server_round_robin = 1
server_idle_timeout = 5
max_client_conn = 1000
admin_users = {user}
ignore_startup_parameters = extra_float_digits
server_reset_query = DISCARD ALL
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""


class Pooler:
    """A PgBouncer before one PostgreSQL server. server_url: over TCP."""

    def __init__(self, folder: Path, server_url: str) -> None:
        server = make_url(server_url)
        self._port = processes.free_port()
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            _SETTINGS.format(
                host=server.host,
                port=server.port,
                user=server.username,
                password=server.password,
                listen=self._port,
                min_pool=MIN_POOL,
                folder=folder,
            )
        )
        self._user = server.username
        command = [str(BINARY), str(settings)]
        if os.geteuid() == 0:
            # It refuses to run as root.
            shutil.chown(folder, "nobody")
            command += ["-u", "nobody"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < until, (folder / "pgbouncer.log").read_text()
                time.sleep(0.05)

    def url(self, url: str) -> str:
        """The same database, behind it."""
        database = make_url(url).database
        return f"postgresql+psycopg2://{self._user}@127.0.0.1:{self._port}/{database}"

    @property
    def transactions(self) -> int:
        """The local transactions of its clients by now, over all databases."""
        console = psycopg2.connect(host="127.0.0.1", port=self._port, user=self._user, dbname="pgbouncer")
        try:
            console.autocommit = True
            with console.cursor() as cursor:
                cursor.execute("SHOW STATS")
                columns = [column.name for column in cursor.description or ()]
                rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
        finally:
            console.close()
        return sum(int(row["total_xact_count"]) for row in rows if row["database"] != "pgbouncer")

    def stop(self) -> None:
        """SIGTERM, and waits."""
        self._process.terminate()
        self._process.wait(START_S)
