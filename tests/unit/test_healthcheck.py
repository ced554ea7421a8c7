"""The health check of containers: what it says of a server that serves, drains, is gone, or hangs."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tandem.runtime.healthcheck import main, state
from tandem.runtime.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A server without any service of its own."""
    server = Server("127.0.0.1:0")
    server.start()
    yield server
    server.drain(0)


def test_a_server_that_serves(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """0, and not a word."""
    assert main([server.address]) == 0
    assert capsys.readouterr() == ("", "")


def test_as_a_command(server: Server) -> None:
    """As a container runs it."""
    done = subprocess.run([sys.executable, "-m", "tandem.runtime.healthcheck", server.address], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_server_that_is_about_to_stop(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that says that it does not serve gets no more traffic."""
    server.serving(False)
    assert main([server.address]) == 1
    assert capsys.readouterr().err == f"{server.address}: NOT_SERVING\n"


def test_a_server_that_is_gone(server: Server) -> None:
    """Nobody listens."""
    server.drain(0)
    assert state(server.address) == "UNAVAILABLE"


def test_a_server_that_hangs() -> None:
    """It takes the connection and says nothing: the time is bounded."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert main([f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.3"]) == 1


def test_a_service_by_name(server: Server) -> None:
    """A name that the server does not know is not serving."""
    assert state(server.address, service="tandem.v1.CoordinatorService") == "NOT_FOUND"
