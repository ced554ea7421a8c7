"""Settings that every process has: read from the environment, each explained by `--help`, checked at start."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tandem.runtime.errors import ConfigurationError
from tandem.runtime.times import DAY_S, MAX_RETENTION_S, Times

S = TypeVar("S", bound="ProcessSettings")

NAME_PATTERN = r"[a-z][a-z0-9-]{0,62}"
"""Names of coordinators and participants."""

_ASSIGNMENT = re.compile(rf"\s*({NAME_PATTERN})\s*=\s*(\S+)\s*")


def _read_assignments(value: object, what: str) -> object:
    """name=value,…: a comma inside a value is one that no name follows. Errors hold nothing of it: it may be secret."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("starts like a JSON object and is none") from None
    read: dict[str, str] = {}
    for part in re.split(rf",(?=\s*{NAME_PATTERN}\s*=)", value):
        match = _ASSIGNMENT.fullmatch(part)
        if match is None:
            raise ValueError(f"must be name={what},name={what} or a JSON object")
        if match[1] in read:
            raise ValueError("has a name twice")
        read[match[1]] = match[2]
    return read


def _read_targets(value: object) -> object:
    return _read_assignments(value, "target")


def _check_targets(value: dict[str, str]) -> dict[str, str]:
    if not all(re.fullmatch(NAME_PATTERN, name) for name in value):
        raise ValueError("a name has 1 to 63 lower-case letters, digits and -, a letter first")
    if not all(value.values()):
        raise ValueError("each name needs a target")
    return value


Targets = Annotated[
    dict[str, str], NoDecode, Field(min_length=1), BeforeValidator(_read_targets), AfterValidator(_check_targets)
]
"""name → gRPC target, from `name=target,name=target` or a JSON object."""

MAX_PORT = 65_535


def host_and_port(address: str) -> tuple[str, int]:
    """The two of host:port, an IPv6 host without its brackets. Raises ValueError with the rule."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > MAX_PORT:
        raise ValueError(f"must be host:port, with a port from 0 to {MAX_PORT}")
    return host, int(port)


def _check_address(value: str) -> str:
    host_and_port(value)
    return value


def _check_optional_address(value: str) -> str:
    return value and _check_address(value)


Address = Annotated[str, AfterValidator(_check_address)]
"""host:port. gRPC by itself would take a port modulo 65,536, and call a name without one a port that is in use."""

OptionalAddress = Annotated[str, AfterValidator(_check_optional_address)]
"""host:port; empty: none."""

MIN_TOKEN = 16
"""Characters: a shorter one could be tried out."""

_TOKEN = re.compile(rf"[!-~]{{{MIN_TOKEN},200}}")
_TOKEN_RULE = f"a token has {MIN_TOKEN} to 200 printable ASCII characters and no space"


def _check_token(value: SecretStr | None) -> SecretStr | None:
    if value is None or not value.get_secret_value():
        return None
    if _TOKEN.fullmatch(value.get_secret_value()) is None:
        raise ValueError(_TOKEN_RULE)
    return value


def _read_tokens(value: object) -> object:
    return {} if value == "" else _read_assignments(value, "token")


def _check_tokens(value: dict[str, SecretStr]) -> dict[str, SecretStr]:
    if not all(re.fullmatch(NAME_PATTERN, name) for name in value):
        raise ValueError("a name has 1 to 63 lower-case letters, digits and -, a letter first")
    if not all(map(_check_token, value.values())):
        raise ValueError(_TOKEN_RULE)
    return value


OperatorToken = Annotated[SecretStr | None, AfterValidator(_check_token)]
"""What an operator's calls carry as a bearer token; empty: none."""

OperatorTokens = Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_read_tokens), AfterValidator(_check_tokens)]
"""Participant → its OperatorToken, from `name=token,name=token` or a JSON object; empty: none."""


class ProcessSettings(BaseSettings):
    """What all three processes share. A subclass sets `env_prefix`."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    listen: Address = Field("127.0.0.1:0", description="host:port of the gRPC server; port 0 takes a free one")
    database_url: str | None = Field(
        None, description="PostgreSQL URL (the primary); not set: the embedded PostgreSQL, in `data_folder`"
    )
    data_folder: Path | None = Field(
        None,
        description="folder of the embedded PostgreSQL, shared by all that name it; not set: one in the user's home",
    )
    database_pool: int = Field(16, ge=2, le=200, description="database connections at most")
    workers: int = Field(32, ge=2, le=512, description="calls that run at the same time")
    queue: int = Field(
        256, ge=0, le=10_000, description="calls that wait at the same time; a further one is RESOURCE_EXHAUSTED"
    )
    drain_s: float = Field(10.0, ge=0, le=600, description="seconds that running calls get to finish on SIGTERM")
    metrics_listen: OptionalAddress = Field("127.0.0.1:0", description="host:port of the metrics page; empty: none")
    reflection: bool = Field(True, description="gRPC reflection; turn it off in production")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="log level")
    log_json: bool | None = Field(None, description="JSON logs; not set: JSON unless standard error is a terminal")

    prepare_deadline_s: float = Field(2.0, gt=0, description="seconds that all participants together get to vote")
    block_timeout_s: float = Field(5.0, gt=0, description="seconds that the initiator's own local transaction gets")
    push_after_s: float = Field(
        8.0, gt=0, description="seconds after which a new Prepare may push an undecided one aside; above both together"
    )
    ttl_s: float = Field(
        60.0, ge=10, le=DAY_S, description="N: seconds in doubt after which the sweeper asks; above push_after"
    )
    retention_days: float = Field(
        30.0, ge=4, le=MAX_RETENTION_S / DAY_S, description="days that finished transactions are kept"
    )
    purge_interval_s: float = Field(
        3600.0, gt=0, le=86_400, description="seconds from one purge of finished transactions to the next"
    )

    @property
    def times(self) -> Times:
        """The times of the protocol, checked against each other."""
        return Times(
            prepare_deadline_s=self.prepare_deadline_s,
            block_timeout_s=self.block_timeout_s,
            push_after_s=self.push_after_s,
            ttl_s=self.ttl_s,
            retention_s=self.retention_days * DAY_S,
        ).check()


def load(kind: type[S], **overrides: Any) -> S:
    """The settings from the environment. Raises ConfigurationError that names each variable that doesn't fit."""
    try:
        settings = kind(**overrides)
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        wrong = "; ".join(f"{prefix}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(wrong) from error
    settings.times  # noqa: B018 - checks the order of the times
    return settings


def described(kind: type[BaseSettings]) -> list[tuple[str, str, str]]:
    """(variable, default, meaning) of each setting, for `--help` and docs/configuration.md."""
    prefix = str(kind.model_config.get("env_prefix", ""))
    return [
        (f"{prefix}{name.upper()}", _default(field.default), field.description or "")
        for name, field in kind.model_fields.items()
    ]


def _default(value: Any) -> str:
    if value is None or value == {} or value == "":
        return "not set"
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
