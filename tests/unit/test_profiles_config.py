"""The settings of the profiles process: what an operator may write, and what a mistake is answered with."""

from __future__ import annotations

import pytest

from profiles_server.config import Settings
from tandem.runtime.config import described, load
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.times import DAY_S, Times


@pytest.mark.parametrize(
    ("text", "coordinators"),
    [
        ("identity=dns:///host:1", {"identity": "dns:///host:1"}),
        (" identity = h:1 , other=h:2 ", {"identity": "h:1", "other": "h:2"}),
        ("identity=ipv4:10.0.0.1:1,10.0.0.2:1,other=h:2", {"identity": "ipv4:10.0.0.1:1,10.0.0.2:1", "other": "h:2"}),
        ('{"identity": "h:1"}', {"identity": "h:1"}),
    ],
)
def test_coordinators_can_be_written_in_two_ways(
    text: str, coordinators: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of assignments, with commas inside a target, or JSON."""
    monkeypatch.setenv("PROFILES_COORDINATORS", text)
    assert load(Settings).coordinators == coordinators


@pytest.mark.parametrize(
    "text", ["", "identity", "=h:1", "Identity=h:1", "identity=", "a=h:1,a=h:2", "{", '{"A b": "x"}', '{"a": ""}', "{}"]
)
def test_a_mistake_in_the_coordinators_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that would believe the wrong coordinators, or none, does not start."""
    monkeypatch.setenv("PROFILES_COORDINATORS", text)
    with pytest.raises(ConfigurationError, match="PROFILES_COORDINATORS"):
        load(Settings)


def test_times_are_read_and_checked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol's times come from the same prefix; an order that would break its rules is refused."""
    monkeypatch.setenv("PROFILES_TTL_S", "10")
    assert load(Settings).times.ttl_s == 10
    monkeypatch.setenv("PROFILES_PUSH_AFTER_S", "12")
    with pytest.raises(ConfigurationError, match="push_after"):
        load(Settings)


@pytest.mark.parametrize("days", ["3.9", "36501", "1e12", "inf", "nan"])
def test_retention_has_limits(days: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below, ids would expire too soon (R14); above, no statement could count with it."""
    monkeypatch.setenv("PROFILES_RETENTION_DAYS", days)
    with pytest.raises(ConfigurationError, match="PROFILES_RETENTION_DAYS"):
        load(Settings)
    with pytest.raises(ConfigurationError, match="retention"):
        Times(retention_s=float(days) * DAY_S).check()
    monkeypatch.setenv("PROFILES_RETENTION_DAYS", "36500")
    assert load(Settings).times.retention_ms == 36_500 * DAY_S * 1000


@pytest.mark.parametrize("name", ["LISTEN", "METRICS_LISTEN"])
@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "127.0.0.1:", ":50051", "h:99999", "h:-1", "h:5x", "h:²"])
def test_an_address_that_is_none_is_named(name: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for one that another process uses, and not served on some other port."""
    monkeypatch.setenv(f"PROFILES_{name}", address)
    with pytest.raises(ConfigurationError, match=f"PROFILES_{name}: .*host:port"):
        load(Settings)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:50051", "profiles.example:65535"])
def test_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, both families, any free port; no page of metrics where that one is empty."""
    monkeypatch.setenv("PROFILES_LISTEN", address)
    monkeypatch.setenv("PROFILES_METRICS_LISTEN", "")
    settings = load(Settings)
    assert (settings.listen, settings.metrics_listen) == (address, "")


def test_every_setting_is_explained() -> None:
    """`--help` and the documentation are made of these."""
    assert all(name.startswith("PROFILES_") and default and meaning for name, default, meaning in described(Settings))
    assert ("PROFILES_COORDINATORS", "identity=127.0.0.1:50052") in [each[:2] for each in described(Settings)]
