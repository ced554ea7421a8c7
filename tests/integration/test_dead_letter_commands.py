"""The operator's commands for dead letters, as they are typed, against a broker."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence

import pytest
from typer.testing import CliRunner

import identity_stub.cli
import profiles_server.cli
from lab.broker import Broker
from tandem.kafka import decisions
from tandem.kafka.handling import Dead, Verdict
from tandem.kafka.messages import TYPE, Incoming, Outgoing
from tandem.profiles.topics import REQUESTED, settled
from tandem.profiles.v1 import events_pb2
from tandem.runtime.errors import InvalidRequest
from tests.support.kafka import Line, line, run_until

SECRET = "ada-lovelace"
"""Stands for what is personal in a message: no command shows it."""

BYTES = b"\xff" + SECRET.encode()


def buried(on: Line, *topics: str) -> None:
    """A message that can't be read in each topic, and its consumer's verdict on it."""

    def read(messages: Sequence[Incoming]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for message in messages:
            try:
                message.read(events_pb2.ProfilesRequested)
            except InvalidRequest as error:
                verdicts.append(Dead(error))
        return verdicts

    kind = {TYPE: events_pb2.ProfilesRequested.DESCRIPTOR.full_name}
    for topic in topics:
        message = Outgoing(topic, "the-key", BYTES, kind)
        assert on.publisher.publish([message], until=time.monotonic() + 10) == [None]
        consumer = on.consumer(topic, read, group=topic)
        run_until(consumer, lambda topic=topic: on.value("tandem_kafka_consumed_total", topic=topic, outcome="dead"))


@pytest.fixture
def typed(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Types a command of profiles or identity; what it said."""

    def run(process: str, *arguments: str, code: int = 0) -> str:
        cli = profiles_server.cli.cli if process == "PROFILES" else identity_stub.cli.cli
        result = CliRunner().invoke(cli, ["dead-letters", *arguments], terminal_width=300)
        assert result.exit_code == code, result.output
        assert SECRET not in result.output
        assert "Traceback" not in result.output
        return result.output

    monkeypatch.setenv("LOGNAME", "grace")
    return run


def test_list_show_and_replay(broker: Broker, typed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process lists what it could not take up; a dry run does nothing; a replay takes it off the list."""
    with line(broker) as made:
        for process in ("PROFILES", "IDENTITY"):
            monkeypatch.setenv(f"{process}_KAFKA_SERVERS", broker.servers)
            monkeypatch.setenv(f"{process}_KAFKA_PREFIX", made.cluster.prefix)
        assert json.loads(typed("PROFILES", "list", "--json")) == {"letters": [], "count": 0}
        requested = made.cluster.topic(*REQUESTED)
        told = made.cluster.topic(*settled("identity"))
        buried(made, requested, told, decisions.topic(made.cluster, "profiles"))
        assert json.loads(typed("PROFILES", "list", "--json"))["count"] == 2
        assert "1 more" in typed("PROFILES", "list", "--limit", "1")
        (one,) = json.loads(typed("IDENTITY", "list", "--json"))["letters"]
        assert (one["key"], one["reason"], one["bytes"]) == ("the-key", "MALFORMED_MESSAGE", len(BYTES))
        assert one["came_from"].startswith(f"{told}/")
        shown = typed("IDENTITY", "show", one["place"])
        assert "reason: MALFORMED_MESSAGE" in shown
        assert told in typed("IDENTITY", "replay", one["place"], "--reason", "try", "--dry-run")
        assert json.loads(typed("IDENTITY", "list", "--json"))["count"] == 1
        assert "grace: mended" in typed("IDENTITY", "replay", one["place"], "--reason", "mended")
        assert json.loads(typed("IDENTITY", "list", "--json"))["count"] == 0
        (replayed,) = json.loads(typed("IDENTITY", "list", "--all", "--json"))["letters"]
        assert re.search(r"by grace: mended$", replayed["replayed"])
        assert "no dead letter" in typed("IDENTITY", "show", f"{told}.dead/0/99", code=1)
        assert "no dead letter" in typed("IDENTITY", "show", f"{requested}.dead/0/0", code=1)  # profiles' own


def test_without_a_broker(typed: Callable[..., str]) -> None:
    """One sentence that names the variable."""
    assert "PROFILES_KAFKA_SERVERS" in typed("PROFILES", "list", code=2)
