"""The pages of metrics of the three processes: they have what docs/metrics.md, the alerts and the dashboard name."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

import coordinator.app
import identity_stub.app
import profiles_server.app
from coordinator.config import Settings as CoordinatorSettings
from identity_stub.config import Settings as IdentitySettings
from lab.broker import Broker
from lab.processes import free_port
from profiles_server.config import Settings as ProfilesSettings
from tandem.coordinator.driver import Coordinator
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles import ids
from tandem.profiles.v1 import person_pb2
from tandem.runtime.config import load
from tandem.runtime.database import create_engine
from tests.integration.test_identity_house import CANARY, fresh, sign_up
from tests.support import promql
from tests.support.rules import eventually

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "tandem.json"
FROM_PROMETHEUS = {"job", "instance"}

Page = dict[str, Metric]


class Houseful:
    """profiles, coordinator, identity and an identity that serves its coordinator itself, in this process."""

    def __init__(self, new_database: Callable[[str], str], stack: ExitStack) -> None:
        self._stack = stack
        self._own_page: dict[str, Any] = {"metrics_listen": "127.0.0.1:0"}
        asks = f"127.0.0.1:{free_port()}"
        self.urls = {name: new_database(f"pages_{name}") for name in ("profiles", "identity")}
        told = {"database_url": self.urls["profiles"], "listen": "127.0.0.1:0", "coordinators": {"identity": asks}}
        self._profiles = {**told, **self._own_page}
        profiles_server.app.migrate(load(ProfilesSettings, **self._profiles))
        self.profiles = self.another_profiles()
        self.participants = {"profiles": self.profiles.address}
        theirs = {"database_url": self.urls["identity"], "participants": self.participants, **self._own_page}
        identity_stub.app.migrate(load(IdentitySettings, **theirs))
        self.coordinator = self._kept(coordinator.app.App(load(CoordinatorSettings, listen=asks, **theirs)))
        listening: dict[str, Any] = {"listen": "127.0.0.1:0", **theirs}
        self._identity = listening
        self.identity = self._kept(identity_stub.app.App(load(IdentitySettings, **listening)))
        self.serving = self._kept(identity_stub.app.App(load(IdentitySettings, serve_coordinator=True, **listening)))

    def with_kafka(self, broker: Broker) -> None:
        """A replica of each of two that talks to a broker, and somebody who signs up by a saga."""
        told = {"kafka_servers": broker.servers, "kafka_prefix": fresh("pages"), "kafka_partitions": 1}
        self.consuming = self._kept(profiles_server.app.App(load(ProfilesSettings, **self._profiles, **told)))
        theirs = {**self._identity, **told, "provisioning": "saga"}
        self.asking = self._kept(identity_stub.app.App(load(IdentitySettings, **theirs)))

    def another_profiles(self) -> profiles_server.app.App:
        """A replica over the same database."""
        return self._kept(profiles_server.app.App(load(ProfilesSettings, **self._profiles)))

    def _kept(self, app: Any) -> Any:
        self._stack.callback(app.stop)
        return app

    @property
    def pages(self) -> dict[str, Page]:
        """Each process's page as it is now."""
        apps = {"profiles": self.profiles, "coordinator": self.coordinator, "identity": self.identity}
        apps |= {"serving": self.serving, "consuming": self.consuming, "asking": self.asking}
        return {name: page(app) for name, app in apps.items()}


def text(app: Any) -> str:
    with urllib.request.urlopen(f"http://{app.metrics_address}/metrics", timeout=10) as response:
        return str(response.read().decode())


def page(app: Any) -> Page:
    return {family.name: family for family in text_string_to_metric_families(text(app))}


def value(app: Any, name: str, **labels: str) -> float:
    """The sum over the labels that are not given."""
    samples = [sample for family in page(app).values() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.fixture(scope="module")
def houseful(new_database: Callable[[str], str], broker: Broker) -> Iterator[Houseful]:
    """Somebody has signed up, somebody was refused, a transaction was left in doubt, and a profile came by Kafka."""
    with ExitStack() as stack:
        made = Houseful(new_database, stack)
        for app in (made.identity, made.serving):
            with grpc.insecure_channel(app.address) as channel:
                stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
                request = sign_up(request_id=fresh())
                stub.SignUp(request, timeout=20)
                request.request_id = fresh()  # the same address once more
                with pytest.raises(grpc.RpcError):
                    stub.SignUp(request, timeout=20)
        eventually(lambda: not value(made.coordinator, "tandem_undelivered_decisions"))
        made.with_kafka(broker)
        with grpc.insecure_channel(made.asking.address) as channel:
            identity_service_pb2_grpc.IdentityServiceStub(channel).SignUp(sign_up(request_id=fresh()), timeout=20)
        for app in (made.asking, made.consuming):
            eventually(lambda app=app: value(app, "tandem_kafka_consumed_total", outcome="done"))
            eventually(lambda app=app: value(app, "tandem_kafka_consumer_last_success_timestamp_seconds"))
        yield made


@pytest.fixture(scope="module")
def documented() -> dict[str, dict[str, tuple[str, frozenset[str]]]]:
    """Table of docs/metrics.md → metric as a page calls it → type and labels."""
    found: dict[str, dict[str, tuple[str, frozenset[str]]]] = {}
    markdown = (ROOT / "docs" / "metrics.md").read_text()
    for name, table in re.findall(r"<!-- metrics: (\w+) -->\n(.*?)<!-- end -->", markdown, re.DOTALL):
        rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", table, re.MULTILINE)
        found[name] = {
            metric.removesuffix("_total"): (kind, frozenset(re.findall(r"\w+", labels)))
            for metric, kind, labels in rows
        }
    return found


def ours(made: Page) -> set[str]:
    return {name for name in made if name.startswith(("tandem_", "grpc_"))}


FROM_THE_LOG = {
    "tandem_undelivered_decisions", "tandem_oldest_undelivered_timestamp_seconds", "tandem_parked_deliveries",
}  # fmt: skip


def test_the_pages_have_what_is_documented(
    houseful: Houseful, documented: Mapping[str, Mapping[str, tuple[str, frozenset[str]]]]
) -> None:
    """Each process has the metrics of its tables and no others; types and labels are those of the tables."""
    everywhere, participant, coordinating = (set(documented[n]) for n in ("everywhere", "participant", "coordinator"))
    kafka, accounts = set(documented["kafka"]), set(documented["accounts"])
    pages = houseful.pages
    assert ours(pages["profiles"]) == everywhere | participant
    assert ours(pages["coordinator"]) == ours(pages["serving"]) == everywhere | coordinating
    assert ours(pages["identity"]) == (everywhere | coordinating) - FROM_THE_LOG
    assert ours(pages["consuming"]) == everywhere | participant | kafka
    assert ours(pages["asking"]) == (everywhere | coordinating | kafka | accounts) - FROM_THE_LOG
    tables = {name: told for table in documented.values() for name, told in table.items()}
    with_samples = set()
    for made in pages.values():
        for name in ours(made):
            kind, labels = tables[name]
            assert made[name].type == kind, name
            for sample in made[name].samples:
                with_samples.add(name)
                own = {"le"} if sample.name.endswith("_bucket") else set()
                assert set(sample.labels) == labels | own, sample
    unused = {"tandem_sweep_errors", "tandem_recovery_errors", "tandem_resolves"}
    unused |= {"tandem_kafka_publish_errors", "tandem_kafka_dead_letters"}
    assert with_samples >= set(tables) - unused, "nothing failed, and nobody asked what was decided"


def test_nobody_is_on_a_page(houseful: Houseful) -> None:
    """Names, addresses and ids of those who signed up, or tried to, are on no page."""
    assert value(houseful.profiles, "tandem_votes_total", vote="yes") == 2
    assert value(houseful.profiles, "grpc_server_handled_total", grpc_code="OK") > 2
    for app in (houseful.profiles, houseful.coordinator, houseful.identity, houseful.serving, houseful.asking):
        shown = text(app)
        assert CANARY.lower() not in shown.lower()
        assert "@" not in shown
        assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}", shown)


def test_the_build_is_named(houseful: Houseful) -> None:
    """One series of 1 a process, by its service."""
    for app, service in ((houseful.profiles, "profiles"), (houseful.coordinator, "coordinator")):
        assert value(app, "tandem_build_info", service=service) == value(app, "tandem_build_info") == 1
    assert value(houseful.identity, "tandem_build_info", service="identity") == 1


def test_replicas_and_restarts(houseful: Houseful) -> None:
    """What is in doubt is on every replica's page, on one that has just started, too; counters are each one's own."""
    engine = create_engine(houseful.urls["identity"])
    driver = Coordinator(engine, name="identity", participants=houseful.participants)
    votes = value(houseful.profiles, "tandem_votes_total", vote="yes")
    person = person_pb2.Person(person_id=str(ids.person_id(uuid4())))
    person.name.display_name = CANARY
    tx = driver.prepare({"profiles": [person]})
    late = houseful.another_profiles()
    for app in (houseful.profiles, late):
        assert value(app, "tandem_prepared_transactions", coordinator="identity") == 1
    profiles = create_engine(houseful.urls["profiles"])
    with profiles.begin() as connection:
        connection.exec_driver_sql("UPDATE twophase.prepared_transaction SET attempts = 1 WHERE state = 'prepared'")
    profiles.dispose()
    oldest = {value(app, "tandem_oldest_prepared_timestamp_seconds") for app in (houseful.profiles, late)}
    assert len(oldest) == 1
    assert value(houseful.profiles, "tandem_votes_total", vote="yes") == votes + 1
    assert value(late, "tandem_votes_total") == 0
    with engine.begin() as connection:
        connection.execute(tx.decision)
    for app in (houseful.coordinator, houseful.serving):
        eventually(lambda app=app: value(app, "tandem_undelivered_decisions", participant="profiles") == 0)
    tx.finish()
    for app in (houseful.profiles, late):
        assert value(app, "tandem_prepared_transactions", coordinator="identity") == 0
    late.stop()
    driver.close()
    engine.dispose()


# --- what is asked of them --------------------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in rules()] + [
    (panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]
]


@pytest.fixture(scope="module")
def series(
    houseful: Houseful, documented: Mapping[str, Mapping[str, tuple[str, frozenset[str]]]]
) -> dict[str, set[str]]:
    """Every series that running processes can have → its labels."""
    found = {"up": set(FROM_PROMETHEUS)}
    tables = {name: labels for table in documented.values() for name, (_, labels) in table.items()}
    for made in houseful.pages.values():
        for family in made.values():
            names = [f"{family.name}_total"] if family.type == "counter" else [family.name]
            if family.type == "histogram":
                names = [f"{family.name}_{part}" for part in ("bucket", "sum", "count")]
            for name in names:
                own = {"le"} if name.endswith("_bucket") else set()
                found[name] = FROM_PROMETHEUS | own | tables.get(family.name, set())
    return found


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_what_is_asked_exists(series: dict[str, set[str]], where: str, expression: str) -> None:
    """Each metric of an alert or a panel is on a page of a running process, with every label that it is asked by."""
    asked = promql.asked(expression)
    assert asked
    for one in asked:
        assert one.metric in series, where
        assert one.labels <= series[one.metric], (where, one)


def test_what_is_asked_is_found() -> None:
    """The reading itself: metrics, labels that are selected, labels that are grouped by, and nothing else."""
    expression = 'sum by (a) (rate(m_total{b=~"x|y",c!="by (z)"}[5m])) / on (a) group_left n > 0.5 unless absent(o)'
    found = {(one.metric, one.labels) for one in promql.asked(expression.replace("group_left ", ""))}
    assert found == {
        ("m_total", frozenset("bc")), ("m_total", frozenset("a")), ("n", frozenset()), ("o", frozenset()),
    }  # fmt: skip


def test_legends_and_texts_name_labels_that_are_shown() -> None:
    """`{{label}}` of a panel and `$labels.…` of an alert: else they would be empty."""
    for panel in panels():
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            shown = promql.shown(target["expr"]) or FROM_PROMETHEUS
            assert wanted <= shown, panel["title"]
    for rule in rules():
        for annotation in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", annotation)) <= promql.shown(rule["expr"]), rule["alert"]


NAMES = {
    "TandemPreparedStuck": "warning", "TandemPreparedStuckLong": "page", "TandemSweeperNotSucceeding": "page",
    "TandemRecoveryNotSucceeding": "warning", "TandemDecisionsUndelivered": "warning",
    "TandemDeliveriesParked": "warning", "TandemTransactionsParked": "warning", "TandemContradiction": "page",
    "TandemHeuristicOutcome": "warning", "TandemCoordinatorUnreachable": "warning", "TandemErrorRatio": "warning",
    "TandemLatencyHigh": "warning", "TandemGaugesMissing": "warning", "TandemProcessDown": "page",
    "TandemOutboxStuck": "warning", "TandemConsumerBehind": "warning", "TandemConsumerNotSucceeding": "page",
    "TandemDeadLetters": "page", "TandemProfilesPending": "warning",
}  # fmt: skip


def test_every_alert_says_what_to_do() -> None:
    """A severity, two sentences, and the place in the runbook; the runbook has that place."""
    assert {rule["alert"]: rule["labels"]["severity"] for rule in rules()} == NAMES
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        place = f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == "{{ $externalLabels.runbooks }}/" + place
    runbook = ROOT / "docs" / "operations.md"
    if runbook.exists():
        headings = {heading.lower() for heading in re.findall(r"^#+ (\w+)", runbook.read_text(), re.MULTILINE)}
        assert {name.lower() for name in NAMES} <= headings


def test_every_alert_is_tested() -> None:
    """Each is expected to fire, with its severity, and not to fire before and afterwards."""
    tests = yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text())["tests"]
    outcomes: dict[str, str] = dict.fromkeys(NAMES, "")
    for test in tests:
        for checked in test.get("promql_expr_test", ()):
            (name,) = re.findall(r'alertname="(\w+)"', checked["expr"])
            fired = bool(checked["exp_samples"])
            outcomes[name] += "x" if fired else "-"
            for sample in checked["exp_samples"]:
                assert f'severity="{NAMES[name]}"' in sample["labels"]
    assert all("-x-" in outcome for outcome in outcomes.values()), outcomes
