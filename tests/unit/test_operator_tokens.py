"""The settings that let an operator act from afar: what may be written, and that nothing ever shows it again."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from typer.testing import CliRunner

from coordinator.cli import cli as coordinator_cli
from coordinator.config import Settings as CoordinatorSettings
from profiles_server.cli import cli as profiles_cli
from profiles_server.config import Settings as ProfilesSettings
from tandem.runtime.config import load
from tandem.runtime.errors import ConfigurationError

CANARY = "canary-operator-token"
PARTICIPANT, CONSOLE = "PROFILES_OPERATOR_TOKEN", "COORDINATOR_OPERATOR_TOKENS"


def tokens(monkeypatch: pytest.MonkeyPatch, text: str) -> dict[str, str]:
    monkeypatch.setenv(CONSOLE, text)
    return {name: token.get_secret_value() for name, token in load(CoordinatorSettings).operator_tokens.items()}


def test_a_participant_has_one_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty is none, so that a Compose file may pass on what is not set."""
    assert load(ProfilesSettings).operator_token is None
    monkeypatch.setenv(PARTICIPANT, "")
    assert load(ProfilesSettings).operator_token is None
    monkeypatch.setenv(PARTICIPANT, CANARY)
    token = load(ProfilesSettings).operator_token
    assert token is not None
    assert token.get_secret_value() == CANARY


def test_the_console_has_one_a_participant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written like targets are: a list of assignments, or JSON."""
    assert load(CoordinatorSettings).operator_tokens == {}
    assert tokens(monkeypatch, "") == {}
    assert tokens(monkeypatch, f"profiles={CANARY}") == {"profiles": CANARY}
    assert tokens(monkeypatch, f" a = {CANARY} ,b=abcdefgh,ijk/lm+n== ") == {"a": CANARY, "b": "abcdefgh,ijk/lm+n=="}
    assert tokens(monkeypatch, f'{{"profiles": "{CANARY},x=y"}}') == {"profiles": f"{CANARY},x=y"}


@pytest.mark.parametrize(
    ("kind", "variable", "text"),
    [
        (ProfilesSettings, PARTICIPANT, "canary"),
        (ProfilesSettings, PARTICIPANT, f"{CANARY} {CANARY}"),
        (ProfilesSettings, PARTICIPANT, f"{CANARY}\n"),
        (ProfilesSettings, PARTICIPANT, f"{CANARY}é"),
        (ProfilesSettings, PARTICIPANT, CANARY * 10),
        (CoordinatorSettings, CONSOLE, CANARY),
        (CoordinatorSettings, CONSOLE, f"={CANARY}"),
        (CoordinatorSettings, CONSOLE, f"{CANARY}=profiles"),
        (CoordinatorSettings, CONSOLE, "profiles=canary"),
        (CoordinatorSettings, CONSOLE, "profiles="),
        (CoordinatorSettings, CONSOLE, f"Profiles={CANARY}"),
        (CoordinatorSettings, CONSOLE, f"a={CANARY},a={CANARY}"),
        (CoordinatorSettings, CONSOLE, f'{{"a": "{CANARY}"'),
        (CoordinatorSettings, CONSOLE, f'{{"A": "{CANARY}"}}'),
        (CoordinatorSettings, CONSOLE, f'{{"a": ["{CANARY}"]}}'),
        (CoordinatorSettings, CONSOLE, '{"a": ""}'),
    ],
)
def test_a_mistake_is_named_and_not_shown(kind: Any, variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process does not start; not even a traceback with all that is behind it shows what was written."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        load(kind)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_nothing_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the settings themselves, nor the commands that explain them."""
    monkeypatch.setenv(PARTICIPANT, CANARY)
    monkeypatch.setenv(CONSOLE, f"profiles={CANARY}")
    for settings in (load(ProfilesSettings), load(CoordinatorSettings)):
        assert "canary" not in repr(settings) + str(settings) + settings.model_dump_json()
    for cli, variable in ((profiles_cli, PARTICIPANT), (coordinator_cli, CONSOLE)):
        for arguments in (["settings"], ["--help"]):
            told = CliRunner().invoke(cli, arguments, env={"COLUMNS": "200"})
            assert told.exit_code == 0
            assert variable in told.output
            assert "canary" not in told.output
