"""A broker that speaks Kafka's protocol, for tests and the laboratory: started on free ports, waited for, stopped.

It is noida-db, out of a wheel: a stand-in for one machine, which may lose what it has acknowledged when it is killed.
Where KAFKA_HOME names an Apache Kafka, it is that one (`apache_kafka.py`), which is durable. Where
KAFKA_BOOTSTRAP_SERVERS names brokers that run already, those are used, and never stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from lab import apache_kafka
from lab.processes import ProcessFailed, free_port, tail, wait_until

VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
START_S = 60.0
STOP_S = 20.0


class Node:
    """One process of a broker. address: host:port. Its log holds all its starts."""

    def __init__(self, address: str, command: Sequence[str], log: Path) -> None:
        self.address = address
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and does not wait. No effect while it runs."""
        if self._process is None:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    @property
    def pid(self) -> int:
        """Of its process; 0: there is none."""
        return self._process.pid if self._process else 0

    @property
    def has_died(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def end(self, number: signal.Signals) -> None:
        """Sends the signal, and waits; kill -9 if it takes too long."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)


class Broker:
    """folder: where its data and its logs lie; kept over restarts, as its ports are. nodes: more than one with Apache
    Kafka only.
    """

    def __init__(self, folder: Path, *, nodes: int = 1) -> None:
        given = os.environ.get(VARIABLE, "")
        home = apache_kafka.home()
        self.is_ours = not given
        self.is_durable = self.is_ours and home is not None
        if given:
            commands: dict[str, list[str]] = {}
        elif home is not None:
            folder.mkdir(parents=True, exist_ok=True)
            commands = apache_kafka.commands(home, folder, nodes)
        else:
            assert nodes == 1, "noida-db is one process"
            folder.mkdir(parents=True, exist_ok=True)
            port = free_port()
            commands = {f"127.0.0.1:{port}": _noida(port, folder / "data")}
        self.nodes = [
            Node(address, command, folder / f"broker-{number}.log")
            for number, (address, command) in enumerate(commands.items(), start=1)
        ]
        self.servers = given or ",".join(commands)

    def start(self) -> Broker:
        """Starts what does not run and waits until all answer. Raises ProcessFailed with the end of a log."""
        for node in self.nodes:
            node.start()
        if not wait_until(self._answers, timeout_s=START_S):
            self.kill()
            told = "".join(f"\nthe end of {node.log}:\n{tail(node.log)}" for node in self.nodes)
            raise ProcessFailed(f"no broker at {self.servers}{told}")
        return self

    def stop(self) -> None:
        """SIGTERM, and waits; kill -9 if it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        for node in self.nodes:
            node.end(number)

    def _answers(self) -> bool:
        for node in self.nodes:
            if node.has_died:
                raise ProcessFailed(f"the broker ended by itself; the end of {node.log}:\n{tail(node.log)}")
        try:
            there = AdminClient({"bootstrap.servers": self.servers, "log_level": 0}).list_topics(timeout=1).brokers
        except KafkaException:
            return False
        return len(there) >= len(self.nodes)


def _noida(port: int, data: Path) -> list[str]:
    return [str(_binary()), "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(data)]


def _binary() -> Path:
    """The executable inside the wheel, which an archive may have robbed of its mode."""
    found = Path(str(resources.files("noida_db"))) / "noida-db"
    if not found.is_file():
        raise ProcessFailed("the wheel noida-db has no executable for this machine")
    if not os.access(found, os.X_OK):
        found.chmod(0o755)
    return found
