"""A process ends on SIGTERM whichever of its threads the kernel gives the signal to."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys

import pytest

from tandem.runtime.process import spared_collector

SCRIPT = """
import os, signal, sys, threading, time
from tandem.runtime.process import run_until_signal

def other_thread():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.01)
    # To this very thread, as the kernel may choose; the main one goes on waiting undisturbed.
    signal.pthread_kill(threading.get_ident(), int(sys.argv[1]))
    time.sleep(60)

threading.Thread(target=other_thread, daemon=True).start()
run_until_signal(lambda: print("stopped", flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_another_thread_gets(number: signal.Signals) -> None:
    """The main thread waits in a system call that the signal does not interrupt."""
    for _ in range(3):
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(int(number))], capture_output=True, text=True, timeout=20,
            check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines().count("stopped") == 1, process.stdout


def test_a_second_signal_ends_it_at_once() -> None:
    """A drain that hangs can be cut short."""
    script = """
import os, signal, time
from tandem.runtime.process import run_until_signal

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

import threading
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
run_until_signal(stop)
"""
    process = subprocess.run([sys.executable, "-c", script], timeout=20, check=False)
    assert process.returncode == -signal.SIGTERM


def test_a_command_leaves_the_collector_as_it_was() -> None:
    """Whoever calls it inside another process finds its thresholds there, and nothing frozen."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(KeyError), spared_collector():
        assert gc.get_threshold() > before
        assert gc.get_freeze_count() > frozen
        raise KeyError
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
