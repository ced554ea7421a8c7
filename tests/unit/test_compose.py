"""The container files, as far as they can be tried without an engine: they agree with each other and with the code."""

from __future__ import annotations

import fnmatch
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from tandem.runtime.config import ProcessSettings, described, load

ROOT = Path(__file__).parents[2]
MODULES = {"coordinator": "coordinator", "profiles_server": "profiles", "identity_stub": "identity"}
"""Process → its service."""

VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def interpolated(value: Any) -> Any:
    """`${NAME:-default}` as it is where nothing is set; nothing else is used."""
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    if isinstance(value, str):
        value = VARIABLE.sub(r"\2", value)
        assert "$" not in value
    return value


COMPOSE: dict[str, Any] = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SERVING = {name: service for name, service in OURS.items() if len(service["command"]) == 1}
DATABASES = {name: service for name, service in SERVICES.items() if service["image"].startswith("postgres:")}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def settings_class(service: Mapping[str, Any]) -> type[ProcessSettings]:
    """The settings that a service's process reads."""
    settings: type[ProcessSettings] = importlib.import_module(f"{service['command'][0]}.config").Settings
    return settings


def settings_of(service: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> ProcessSettings:
    """The settings as the process would read them; a value that does not fit raises."""
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    return load(settings_class(service))


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def published(service: Mapping[str, Any]) -> set[int]:
    """Ports of the container that can be reached from this machine."""
    return {port(entry) for entry in service.get("ports", [])}


def seconds(duration: str) -> int:
    assert duration.endswith("s")
    return int(duration[:-1])


def test_all_three_processes_are_there() -> None:
    """Each with its migrations before it; the coordinator's lie in identity's database, and come with identity's."""
    assert {service["command"][0]: name for name, service in SERVING.items()} == MODULES
    migrations = {tuple(service["command"]): name for name, service in OURS.items() if name not in SERVING}
    assert migrations == {
        ("identity_stub", "migrate"): "identity-migrate",
        ("profiles_server", "migrate"): "profiles-migrate",
    }


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists(name: str) -> None:
    """`python -m MODULE [COMMAND]`, as the image's entry point runs it."""
    module, *rest = OURS[name]["command"]
    assert (ROOT / module / "__main__.py").is_file()
    commands = importlib.import_module(f"{module}.cli").cli.registered_commands
    names = {command.name or command.callback.__name__ for command in commands}
    assert set(rest) <= names


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that nobody reads would be a mistake that nobody notices; its value must fit, too."""
    known = {variable for variable, _, _ in described(settings_class(OURS[name]))}
    assert set(OURS[name]["environment"]) <= known
    settings_of(OURS[name], monkeypatch)


@pytest.mark.parametrize("name", OURS)
def test_every_database_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL's host, user, password and database are those of one of the two servers."""
    url = make_url(settings_of(OURS[name], monkeypatch).database_url or "")
    environment = DATABASES[url.host or ""]["environment"]
    assert url.database == environment["POSTGRES_DB"]
    assert url.username == environment["POSTGRES_USER"]
    assert url.password == environment["POSTGRES_PASSWORD"]
    assert url.port == 5432


def test_coordinator_and_identity_share_one_database() -> None:
    """The decision lies beside the initiator's own rows (R1)."""
    urls = [SERVICES[name]["environment"][f"{name.upper()}_DATABASE_URL"] for name in ("coordinator", "identity")]
    assert urls[0] == urls[1]
    assert SERVICES["identity-migrate"]["environment"]["IDENTITY_DATABASE_URL"] == urls[0]


@pytest.mark.parametrize("name", SERVING)
def test_ports_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens is what is published, on this machine only, and what the health check asks."""
    settings = settings_of(SERVING[name], monkeypatch)
    assert settings.listen.startswith("0.0.0.0:")  # reached from other containers
    assert settings.metrics_listen.startswith("0.0.0.0:")
    assert published(SERVING[name]) == {port(settings.listen)}
    assert all(entry.startswith("127.0.0.1:") for entry in SERVING[name]["ports"])
    test = SERVING[name]["healthcheck"]["test"]
    # Liveness: who can't reach its database is no better for a restart.
    assert test[:5] == ["CMD", "python", "-m", "tandem.runtime.healthcheck", "--live"]
    assert port(test[5]) == port(settings.listen)


@pytest.mark.parametrize("name", SERVING)
def test_everybody_finds_the_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each target is a service, at the port where that one listens, under its own name."""
    settings = settings_of(SERVING[name], monkeypatch)
    targets: dict[str, str] = getattr(settings, "participants", None) or getattr(settings, "coordinators", {})
    assert targets
    for called, target in targets.items():
        host = target.removeprefix("dns:///").rpartition(":")[0]
        other = settings_of(SERVING[host], monkeypatch)
        assert port(target) == port(other.listen)
        assert called == getattr(other, "name", None)


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_can_come_true(name: str) -> None:
    """What is waited for is there: a health check, or a run that ends."""
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"
            assert other in OURS
            assert other not in SERVING


@pytest.mark.parametrize("name", SERVING)
def test_calls_may_finish_before_the_kill(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's grace is above the drain."""
    assert seconds(SERVING[name]["stop_grace_period"]) > settings_of(SERVING[name], monkeypatch).drain_s + 15


@pytest.mark.parametrize("name", DATABASES)
def test_databases_keep_what_they_commit(name: str) -> None:
    """R15: fsync is on, the data is on a volume, and nobody outside reaches it."""
    service = DATABASES[name]
    assert "fsync=on" in service["command"]
    assert "log_min_error_statement=panic" in service["command"], "a statement holds facts of people"
    (volume,) = service["volumes"]
    assert volume.partition(":")[0] in COMPOSE["volumes"]
    assert "ports" not in service
    assert service["image"] == "postgres:17"


@pytest.mark.parametrize("name", OURS)
def test_processes_have_no_more_rights_than_they_need(name: str) -> None:
    """No root, no capabilities, nothing to write to."""
    service = OURS[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert re.search(r"^USER (?!0|root)", DOCKERFILE, re.MULTILINE)


def test_prometheus_scrapes_every_metrics_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration is mounted where it looks for it, and names each page once."""
    mounted = mounts("prometheus")
    config = yaml.safe_load((ROOT / mounted["/etc/prometheus/prometheus.yml"]).read_text())
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    for rules in config["rule_files"]:
        assert (ROOT / mounted[f"/etc/prometheus/{rules}"]).is_file()
    scraped = {
        scrape["job_name"]: [target for some in scrape["static_configs"] for target in some["targets"]]
        for scrape in config["scrape_configs"]
    }
    pages = {
        name: [f"{name}:{port(settings_of(service, monkeypatch).metrics_listen)}"] for name, service in SERVING.items()
    }
    assert scraped == {**pages, "prometheus": ["127.0.0.1:9090"]}
    interval, timeout = (config["global"][name] for name in ("scrape_interval", "scrape_timeout"))
    assert seconds(timeout) < seconds(interval)


def mounts(name: str) -> dict[str, str]:
    """What is mounted into a service's container from this folder: path there → path here."""
    parts = [volume.split(":") for volume in SERVICES[name]["volumes"]]
    return {there: here for here, there, *_ in parts if here.startswith("./")}


def test_grafana_finds_its_dashboard_and_prometheus() -> None:
    """What it is provisioned with is mounted where it looks; its source is the one that the dashboard asks for."""
    mounted = mounts("grafana")
    provisioning = ROOT / mounted["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "tandem.yml").read_text())["providers"]
    folder = ROOT / mounted[provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/tandem.json"
    dashboard = json.loads((folder / "tandem.json").read_text())
    asked = [panel["datasource"] for panel in dashboard["panels"] if panel["type"] != "row"]
    assert asked == [{"type": source["type"], "uid": source["uid"]}] * len(asked)


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_watches_is_pinned_and_private(name: str) -> None:
    """A version to the last number, and nothing that can be reached from another machine."""
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])
    assert all(entry.startswith("127.0.0.1:") for entry in SERVICES[name]["ports"])


def test_the_image_holds_what_it_runs() -> None:
    """What is copied exists and is not ignored; every process is copied; versions are the pinned ones."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [
        source
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source
    assert set(MODULES) <= set(copied)
    for install in re.findall(r"pip install .*", DOCKERFILE):
        assert "--constraint constraints.txt" in install
    entry = re.search(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    assert json.loads(entry[1]) == ["python", "-m"]


def test_the_broker_keeps_what_it_acknowledges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real broker, only where it is asked for; its data is on a volume, on the disk before it is acknowledged, and
    clients find it under the name that the page tells them."""
    broker = SERVICES["kafka"]
    assert broker["profiles"] == ["kafka"]
    assert re.fullmatch(r"apache/kafka:\d+\.\d+\.\d+", broker["image"])
    environment = broker["environment"]
    (volume,) = broker["volumes"]
    name, _, folder = volume.partition(":")
    assert name in COMPOSE["volumes"]
    assert environment["KAFKA_LOG_DIRS"] == folder
    assert environment["KAFKA_LOG_FLUSH_INTERVAL_MESSAGES"] == "1"
    assert "ports" not in broker
    advertised = environment["KAFKA_ADVERTISED_LISTENERS"].removeprefix("PLAINTEXT://")
    page = (ROOT / "docs" / "kafka.md").read_text()
    told = set(re.findall(r"TANDEM_KAFKA=(\S+) ", page))
    assert told == {advertised}
    for design in ("saga", "hybrid"):
        assert f"TANDEM_PROVISIONING={design} TANDEM_KAFKA={advertised}" in page
    for name in ("profiles", "identity"):
        assert settings_of(SERVING[name], monkeypatch).cluster is None  # type: ignore[attr-defined]
