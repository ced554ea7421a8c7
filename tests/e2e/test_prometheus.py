"""A real Prometheus with the shipped rules scrapes real processes: an alert fires when it should, once, and clears."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
import yaml

from lab import processes
from lab.processes import Service, wait_until
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.transaction import Outcome
from tandem.profiles import ids
from tandem.profiles.v1 import person_pb2
from tandem.runtime.database import create_engine
from tandem.runtime.postgres import EmbeddedPostgres
from tests.support.required import needs
from tests.support.rules import eventually

PROMETHEUS = shutil.which("prometheus")
DEPLOY = processes.ROOT / "deploy"
RUNBOOKS = "https://tandem.example/main"
"""As it is shipped, for the operator to set."""
PATIENCE_S = 40.0
"""For a state to come about; nothing waits so long unless it is broken."""

pytestmark = needs("prometheus", PROMETHEUS is not None, "Prometheus is not installed")


@dataclass
class Watched:
    """Two replicas of profiles, a coordinator that does not run yet, Prometheus; the initiator is the test."""

    profiles: list[Service]
    coordinator: Service
    driver: Coordinator
    database: sa.Engine
    prometheus: str

    def ask(self, path: str, **parameters: str) -> Any:
        """Prometheus's answer."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.prometheus}/api/v1/{path}?{query}", timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def value(self, query: str) -> list[float]:
        """The values of an instant query."""
        return [float(one["value"][1]) for one in self.ask("query", query=query)["result"]]

    def alerts(self) -> dict[str, list[dict[str, Any]]]:
        """Those that fire, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def row(self) -> Any:
        """What the participant holds."""
        with self.database.connect() as connection:
            return connection.exec_driver_sql("SELECT * FROM twophase.prepared_transaction").one()


def quickened(rules: str) -> str:
    """The rules as they are, but for how long something must last, and over which time is counted."""
    return re.sub(r"\[2m\]", "[6s]", re.sub(r"for: \d+m", "for: 1s", rules))


def configured(folder: Path, targets: dict[str, list[str]]) -> Path:
    """The shipped configuration with a scrape every second, of these targets, and the shipped rules quickened."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": some}]} for job, some in targets.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        (folder / name).write_text(quickened((DEPLOY / "prometheus" / name).read_text()))
    return folder / "prometheus.yml"


def watching(folder: Path, targets: dict[str, list[str]], stack: ExitStack) -> str:
    """Starts Prometheus and waits until it is ready; its host:port."""
    address = f"127.0.0.1:{processes.free_port()}"
    log = stack.enter_context((folder / "prometheus.log").open("w"))
    command = [str(PROMETHEUS), f"--config.file={configured(folder, targets)}", f"--web.listen-address={address}"]
    storage = f"--storage.tsdb.path={folder / 'data'}"
    process = subprocess.Popen([*command, storage], stdout=log, stderr=log, start_new_session=True)
    stack.callback(process.wait, 20)
    stack.callback(process.terminate)

    def ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    assert wait_until(ready, timeout_s=PATIENCE_S)
    return address


@pytest.fixture(scope="module")
def watched(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    suffix = uuid4().hex[:6]
    urls = {name: postgres.database_url(f"watched_{name}_{suffix}") for name in ("identity", "profiles")}
    ports = [f"127.0.0.1:{processes.free_port()}" for _ in range(3)]
    coordinator = Service(
        "coordinator",
        ports[0],
        {
            "COORDINATOR_LISTEN": ports[0],
            "COORDINATOR_METRICS_LISTEN": (page := f"127.0.0.1:{processes.free_port()}"),
            "COORDINATOR_DATABASE_URL": urls["identity"],
            "COORDINATOR_PARTICIPANTS": f"profiles={ports[1]}",
        },
        folder,
    )
    replicas = [
        Service(
            "profiles_server",
            port,
            {
                "PROFILES_LISTEN": port,
                "PROFILES_METRICS_LISTEN": "127.0.0.1:0",
                "PROFILES_DATABASE_URL": urls["profiles"],
                "PROFILES_COORDINATORS": f"identity={ports[0]}",
                "PROFILES_SWEEP_INTERVAL_S": "0.5",
            },
            folder,
        )
        for port in ports[1:]
    ]
    with ExitStack() as stack:
        for service in (coordinator, replicas[0]):
            processes.run(service.module, "migrate", environment=service.environment)
        for service in replicas:
            service.start()
            stack.callback(service.stop)
        stack.callback(coordinator.stop)
        identity, database = create_engine(urls["identity"]), create_engine(urls["profiles"])
        stack.callback(identity.dispose)
        stack.callback(database.dispose)
        driver = Coordinator(identity, name="identity", participants={"profiles": ports[1]})
        stack.callback(driver.close)
        targets = {"profiles": [service.metrics for service in replicas], "coordinator": [page]}
        yield Watched(replicas, coordinator, driver, database, watching(folder, targets, stack))


def test_a_transaction_that_is_stuck(watched: Watched) -> None:
    """Its coordinator is down and it is in doubt for too long: one alert, though two replicas tell of it. The
    coordinator starts, the sweeper ends it, and every alert of it clears."""
    assert wait_until(lambda: watched.value('sum(up{job="profiles"})') == [2], timeout_s=PATIENCE_S)
    person = person_pb2.Person(person_id=str(ids.person_id(uuid4())))
    person.name.display_name = "Zoë Ångström"
    tx = watched.driver.prepare({"profiles": [person]})
    with watched.database.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE twophase.prepared_transaction"
            " SET prepared_at = now() - interval '11 minutes', next_attempt_at = now()"
        )
    expected = {
        "TandemPreparedStuck",
        "TandemPreparedStuckLong",
        "TandemCoordinatorUnreachable",
        "TandemRecoveryNotSucceeding",
    }
    fired = eventually(lambda: (found := watched.alerts()).keys() >= expected and found, PATIENCE_S)
    (stuck,) = fired["TandemPreparedStuck"]
    assert stuck["labels"] == {"alertname": "TandemPreparedStuck", "job": "profiles", "severity": "warning"}
    assert stuck["annotations"]["runbook_url"] == f"{RUNBOOKS}/docs/operations.md#tandempreparedstuck"
    assert re.fullmatch(r"profiles has had a transaction in doubt for 11m \d+s\.", stuck["annotations"]["summary"])
    assert not {"TandemContradiction", "TandemGaugesMissing"} & set(fired)
    assert "<error" not in str(fired)
    assert watched.row().state == "prepared"

    watched.coordinator.start()
    assert wait_until(lambda: watched.row().state == "aborted", timeout_s=PATIENCE_S)
    assert watched.row().resolved_by == "sweeper"
    assert wait_until(lambda: not expected & set(watched.alerts()), timeout_s=PATIENCE_S), watched.alerts()
    assert watched.value('sum(tandem_in_doubt_seconds_bucket{via="sweeper", le="600.0"})') == [0]
    assert watched.value('sum(tandem_in_doubt_seconds_count{via="sweeper"})') == [1]
    assert tx.finish() is Outcome.ABORTED


def test_every_panel_of_the_dashboard_can_be_asked(watched: Watched) -> None:
    """Prometheus takes each query; those of the first row have a value."""
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "tandem.json").read_text())["panels"]
    first = [panel for panel in panels if panel["type"] == "stat"]
    assert [panel["title"] for panel in first[:2]] == ["In doubt now", "Oldest in doubt"]
    watched.coordinator.stop()
    watched.coordinator.start()
    for panel in panels:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "30s")
            watched.value(query)
            if panel in first:
                assert wait_until(lambda query=query: len(watched.value(query)) == 1, timeout_s=PATIENCE_S), query
