"""Makes the project's environment, .venv, or brings it up to date. Run it through `scripts/setup`.

The environment is finished when its stamp says so, which tells what it was made from. The stamp is written
last and the mark `incomplete` first, so one that was interrupted is known and made anew. Only the standard
library is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "tandem-setup.stamp"
INCOMPLETE = VENV / "tandem-setup.incomplete"
LOG = VENV / "tandem-setup.log"
CONSTRAINTS = "constraints.txt"
EXTRAS = "embedded,processes,console,tracing,kafka,dev"
LOG_LINES_SHOWN = 20


class Failure(Exception):
    """Something that the person at the terminal has to put right; its text says what."""


def base(version: str) -> str:
    """What an environment can't outlive: it may not be moved, nor get another Python."""
    return f"{ROOT}\n{version}\n"


def stamp(version: str) -> str:
    content = hashlib.sha256(EXTRAS.encode())
    for name in ("pyproject.toml", CONSTRAINTS, "scripts/_setup.py"):
        content.update((ROOT / name).read_bytes())
    return base(version) + content.hexdigest()


def is_done(version: str = sys.version) -> bool:
    return STAMP.is_file() and not INCOMPLETE.exists() and STAMP.read_text() == stamp(version)


def is_of_use(version: str) -> bool:
    """Whether bringing it up to date is enough. An environment without a stamp was made by hand: so be it."""
    return not INCOMPLETE.exists() and (not STAMP.exists() or STAMP.read_text().startswith(base(version)))


def main() -> int:
    if sys.argv[1:] == ["--done"]:  # asked of the environment's own Python
        return 0 if is_done() else 1
    try:
        with only_one():
            setup()
    except Failure as failure:
        print(f"setup: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to finish.", file=sys.stderr)
        return 130
    return 0


@contextmanager
def only_one() -> Iterator[None]:
    """Let one setup at a time pass. The lock is on the project's folder, so it leaves no file behind."""
    folder = os.open(ROOT, os.O_RDONLY)
    # Should this process be killed, then what it has started still holds the lock until it ends, too.
    os.set_inheritable(folder, True)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another setup to finish")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def setup() -> None:
    version = environment_version()
    if version and is_done(version):
        return  # another setup did it while this one waited
    if not os.access(VENV if VENV.exists() else ROOT, os.W_OK):
        raise Failure(f"{VENV} is not up to date and you may not write there. Run scripts/setup as its owner.")
    make = version is None or not is_of_use(version)
    if make:
        clear()
        VENV.mkdir(exist_ok=True)
    release = sys.version.split()[0]
    say(f"making .venv with Python {release}; takes a minute or two" if make else "updating .venv")
    INCOMPLETE.touch()
    STAMP.unlink(missing_ok=True)
    if make:
        run(
            sys.executable,
            *(["-I", "-m", "venv"] if has_venv() else ["-m", "virtualenv", "--quiet"]),
            str(VENV),
        )
    pip_install("hatchling")  # what builds the project, at its pinned version too
    pip_install("--no-build-isolation", "--editable", f".[{EXTRAS}]")
    version = environment_version()
    if version is None:
        raise Failure(f"{PYTHON} does not run. Remove {VENV} and run scripts/setup again.")
    STAMP.write_text(stamp(version))
    INCOMPLETE.unlink()


def environment_version() -> str | None:
    """The full version of the environment's Python; None if there is none, or none that works."""
    try:
        command = [str(PYTHON), "-I", "-c", "import pip, sys; print(sys.version, end='')"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def clear() -> None:
    """Remove an environment that is of no use. A folder that is none is not ours to remove."""
    if not VENV.exists() and not VENV.is_symlink():
        return
    if VENV.is_symlink() or not VENV.is_dir():
        raise Failure(f"{VENV} is in the way: it is not a folder.")
    if any(VENV.iterdir()) and not any(p.exists() for p in (VENV / "pyvenv.cfg", INCOMPLETE, STAMP)):
        raise Failure(f"{VENV} is in the way: it is not a virtual environment.")
    # The mark goes last: an interrupted removal is then still known as ours.
    INCOMPLETE.touch()
    for path in VENV.iterdir():
        if path != INCOMPLETE:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def has_venv() -> bool:
    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def pip_install(*arguments: str) -> None:
    options = ("--disable-pip-version-check", "--no-input", "--no-warn-script-location")
    run(PYTHON, "-I", "-m", "pip", "install", *options, "--constraint", CONSTRAINTS, *arguments)


def run(*command: str | Path) -> None:
    # A user's own settings for installs outside of environments would break those into one.
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    with LOG.open("a") as log:
        print("$", *command, file=log, flush=True)
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,
        )
    if done.returncode:
        tail = "\n".join(f"  {line}" for line in LOG.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
        raise Failure(
            f"this failed, and its last lines were:\n\n{tail}\n\n"
            f"All of it is in {LOG}. If packages could not be found or fetched, look at the network and at "
            "pip's settings (`pip config list`). Then run scripts/setup again: it begins anew."
        )


def say(what: str) -> None:
    print(f"setup: {what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
