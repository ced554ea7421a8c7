"""Apache Kafka as it is unpacked (KAFKA_HOME), run by the machine's own Java: one node, or several.

Unlike the broker out of a wheel it keeps what it has acknowledged, whoever kills it: each message is flushed at once.
Of three nodes, two must have it (min.insync.replicas). KRaft: every node is broker and controller.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from lab.processes import ProcessFailed, free_port

HOME = "KAFKA_HOME"
HEAP = "256m"
FORMAT_S = 60.0


def home() -> Path | None:
    """Where it is unpacked, with its jars in libs/; None where none is at hand."""
    told = os.environ.get(HOME, "")
    return Path(told) if told and any(Path(told, "libs").glob("kafka_*.jar")) and shutil.which("java") else None


def commands(home: Path, folder: Path, nodes: int) -> dict[str, list[str]]:
    """host:port of each node → what starts it. Their data is in the folder, which is prepared. Raises ProcessFailed."""
    ports = [(free_port(), free_port()) for _ in range(nodes)]
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    found: dict[str, list[str]] = {}
    for number, (port, _) in enumerate(ports, start=1):
        settings = folder / f"node-{number}.properties"
        settings.write_text(_properties(number, ports, folder / f"node-{number}"))
        _run(home, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings))
        found[f"127.0.0.1:{port}"] = [*_java(home), "kafka.Kafka", str(settings)]
    return found


def _properties(number: int, ports: Sequence[tuple[int, int]], data: Path) -> str:
    port, controller = ports[number - 1]
    replicas = min(3, len(ports))
    in_sync = min(2, replicas)
    settings = {
        "process.roles": "broker,controller",
        "node.id": number,
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{port}" for n, (_, port) in enumerate(ports, start=1)),
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": data,
        "log.flush.interval.messages": 1,
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 3,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "unclean.leader.election.enable": "false",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _java(home: Path) -> list[str]:
    return ["java", f"-Xmx{HEAP}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", str(home / "libs" / "*")]


def _run(home: Path, *arguments: str) -> None:
    command = [*_java(home), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_S, check=False)
    if ran.returncode:
        raise ProcessFailed(
            f"{' '.join(arguments)}: exit status {ran.returncode}\n{(ran.stdout + ran.stderr)[-2_000:]}"
        )
