"""What `scripts/demo --keep` says when everything runs."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lab import demo


class Running:
    """Stands for the process of a service."""

    pid = 4711


def test_it_says_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of each process, of its metrics page, and of the console, none of them cut or wrapped."""
    said = StringIO()
    monkeypatch.setattr(demo, "console", Console(file=said, width=40))
    house = demo.House(tmp_path, with_console=True)
    for number, service in enumerate(house.services):
        service.metrics = f"127.0.0.1:{9000 + number}"
        service._process = Running()  # type: ignore[assignment]
    demo._say_what_to_try(house)
    lines = said.getvalue().splitlines()
    for service in house.services:
        (line,) = [line for line in lines if line.startswith(f"  {service.module} ")]
        assert line.split()[1:] == [service.address, "metrics:", f"http://{service.metrics}/metrics"]
    assert any(f"http://{house.console}" in line for line in lines)
