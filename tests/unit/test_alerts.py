"""The alerts and the settings agree: no configuration that is allowed makes one fire by itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from coordinator.config import Settings as CoordinatorSettings
from identity_stub.config import Settings as IdentitySettings
from lab.processes import ROOT
from profiles_server.config import Settings as ProfilesSettings
from tandem.runtime.config import ProcessSettings, load
from tandem.runtime.errors import ConfigurationError

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}


@pytest.mark.parametrize(
    ("settings", "name", "most", "alert"),
    [
        (ProfilesSettings, "sweep_interval_s", 20, "TandemSweeperNotSucceeding"),
        (CoordinatorSettings, "recovery_interval_s", 60, "TandemRecoveryNotSucceeding"),
        (IdentitySettings, "recovery_interval_s", 60, "TandemRecoveryNotSucceeding"),
    ],
)
def test_the_longest_interval_is_below_its_alert(
    settings: type[ProcessSettings], name: str, most: float, alert: str
) -> None:
    """A job that runs as rarely as may be set, and succeeds, is well within what its alert waits for."""
    (patience_s,) = re.findall(r"> (\d+)", RULES[alert]["expr"])
    assert 2 * most <= int(patience_s)
    assert getattr(load(settings, **{name: most}), name) == most
    with pytest.raises(ConfigurationError, match=name.upper()):
        load(settings, **{name: most + 1})
