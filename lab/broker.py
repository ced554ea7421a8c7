"""A broker that speaks Kafka's protocol, for tests and the laboratory: started on a free port, waited for, stopped.

It is noida-db, out of a wheel: a stand-in for one machine, which may lose what it has acknowledged when it is killed.
Where KAFKA_BOOTSTRAP_SERVERS names a broker that runs already, that one is used, and never stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
from importlib import resources
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from lab.processes import ProcessFailed, free_port, tail, wait_until

VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
START_S = 20.0
STOP_S = 10.0


class Broker:
    """folder: where its data and its log lie; kept over restarts, as its port is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._given = os.environ.get(VARIABLE, "")
        self._port = 0 if self._given else free_port()

    @property
    def servers(self) -> str:
        """host:port, as clients are configured with it."""
        return self._given or f"127.0.0.1:{self._port}"

    @property
    def is_ours(self) -> bool:
        """Whether it is a process of ours, which may be stopped and killed."""
        return not self._given

    @property
    def log(self) -> Path:
        """What it has said, over all its starts."""
        return self._folder / "broker.log"

    def start(self) -> Broker:
        """Starts it and waits until it answers. Raises ProcessFailed with the end of its log."""
        if self.is_ours and self._process is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(str(_binary()), "start", "--only", "kafka", "--kafka-port", str(self._port)),
                        *("--data-dir", str(self._folder / "data")),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        if not wait_until(self._answers, timeout_s=START_S):
            self.kill()
            raise ProcessFailed(f"no broker at {self.servers}; the end of {self.log}:\n{tail(self.log)}")
        return self

    def stop(self) -> None:
        """SIGTERM, and waits; kill -9 if it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise ProcessFailed(f"the broker ended by itself; the end of {self.log}:\n{tail(self.log)}")
        try:
            AdminClient({"bootstrap.servers": self.servers, "log_level": 0}).list_topics(timeout=1)
        except KafkaException:
            return False
        return True


def _binary() -> Path:
    """The executable inside the wheel, which an archive may have robbed of its mode."""
    found = Path(str(resources.files("noida_db"))) / "noida-db"
    if not found.is_file():
        raise ProcessFailed("the wheel noida-db has no executable for this machine")
    if not os.access(found, os.X_OK):
        found.chmod(0o755)
    return found
