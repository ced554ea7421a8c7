"""Where the time goes: py-spy looks at the driver and at profiles while signups run.

Each look is sorted by whose code holds the interpreter just then, extensions in C included. Where nobody's does, it is
PostgreSQL, gRPC's C core or the kernel that works, or everybody waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from lab.bench.house import PROFILES, House
from lab.bench.signups import load
from tandem.coordinator.errors import Unavailable

LOOKS_A_SECOND = 100
OURS = "our own code"
NOBODY = "no Python"
_OUR_FOLDERS = ("tandem/", "profiles_server/")
_EXTENSIONS = {
    "_message.abi3.so": "protobuf",
    "_protovalidate": "protovalidate",
    "_psycopg": "psycopg2",
    "cygrpc": "gRPC",
    "gc_collect_main": "garbage collector",
}
_LIBRARIES = {
    "sqlalchemy/": "SQLAlchemy",
    "psycopg2/": "psycopg2",
    "grpc": "gRPC",
    "google/": "protobuf",
    "protobuf/": "protobuf",
    "protovalidate/": "protovalidate",
    "lab/": "the bench",
    "<string>": "Python's own library",
}

Shares = Mapping[str, float]


def looked_at(house: House, sign_up: Callable[[], object], threads: int, seconds: int) -> dict[str, Shares]:
    """Of the driver (this process) and of profiles: whose code is running, as shares of the time that went by.

    Each process has one interpreter lock, so a process' shares come to 1.
    """
    with tempfile.TemporaryDirectory() as folder:
        pids = {"driver": os.getpid(), "profiles": house.pid(PROFILES)}
        spies = {name: _spy(pid, seconds, Path(folder) / name) for name, pid in pids.items()}
        waiting = threading.Thread(target=lambda: [spy.wait(4 * seconds + 60) for spy in spies.values()])
        waiting.start()
        while waiting.is_alive():
            with suppress(Unavailable):  # processes that are looked at stand still meanwhile, now and then too long
                load(sign_up, threads, 1.0)
        return {name: _sorted((Path(folder) / name).read_text(), seconds * LOOKS_A_SECOND) for name in spies}


def _spy(pid: int, seconds: int, output: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("py-spy")), "record", "--gil", "--native", "--format", "raw"]
    command += ["--rate", str(LOOKS_A_SECOND), "--duration", str(seconds), "--pid", str(pid), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _sorted(stacks: str, looks: int) -> Shares:
    """py-spy's lines, `frame;frame;…;leaf count`, by whose code is at the leaf."""
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        found[_whose(stack.split(";"))] += int(count)
    looks = max(looks, found.total())
    found[NOBODY] = looks - found.total()
    return {name: count / looks for name, count in found.most_common()}


def _whose(frames: list[str]) -> str:
    """The innermost frame that says it: the interpreter's own C functions work for whoever called them."""
    for frame in reversed(frames):
        for mark, name in _EXTENSIONS.items():
            if mark in frame:
                return name
        if ".py:" not in frame and "<string>" not in frame:
            continue
        where = frame.rpartition("(")[2]
        if where.startswith(_OUR_FOLDERS):
            return OURS
        return next((name for mark, name in _LIBRARIES.items() if where.startswith(mark)), "Python's own library")
    return "the interpreter"
