"""A small file system of its own, and what fills it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.required import do_without

DISK_MIB = 160
SMALL_WAL = {"max_wal_size": "32MB", "min_wal_size": "32MB"}
"""Settings of a PostgreSQL that fits."""

WITH_ROOM_IN_ITS_LOG = "SELECT pg_switch_wal()"
"""With a write after it: what is full then is the tables' room. A server that can't extend its log stops at once."""


@contextmanager
def small_disk() -> Iterator[Path]:
    """In memory. Skips where that may not be mounted, unless it must be had."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=755", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        folder.rmdir()
        do_without("disk", "a small file system can't be mounted here: root may")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Takes all the room there is, meanwhile."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        ballast.unlink()
