"""What identity's command line says where the service is not there."""

from __future__ import annotations

from functools import partial

import pytest
from typer.testing import CliRunner

from identity_stub import cli
from identity_stub.client import Identity
from lab.processes import free_port


def test_who_waits_is_told_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is away is said to be so at once, and not only when patience has run out; once, not each time."""
    monkeypatch.setattr(cli, "Identity", partial(Identity, patience_s=1.0))
    server = f"127.0.0.1:{free_port()}"
    asked = ["sign-up", "--email", "ada@example.com", "--given-name", "Ada", "--server", server]
    done = CliRunner().invoke(cli.cli, [*asked, "--request-id", "r-1"])
    first, again, reason = done.stderr.splitlines()
    assert first.startswith(f"no answer from {server} yet")
    assert again.endswith("--request-id r-1")
    assert reason.startswith("identity_stub: ")
    assert done.exit_code == 1
