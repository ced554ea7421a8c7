"""What the identity process can be told: one environment variable a setting, IDENTITY_ before its name."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from tandem.runtime.config import ProcessSettings

PROFILES = "profiles"
"""The participant that profiles is."""

_NAME = r"[a-z][a-z0-9-]{0,62}"
_ASSIGNMENT = re.compile(rf"\s*({_NAME})\s*=\s*(\S+)\s*")


class Settings(ProcessSettings):
    """The settings of the identity process."""

    model_config = SettingsConfigDict(env_prefix="IDENTITY_", extra="ignore", frozen=True)

    name: str = Field(
        "identity",
        pattern=f"^{_NAME}$",
        description="the coordinator's name, as participants are configured with it; never reused for another database",
    )
    listen: str = Field("127.0.0.1:50053", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: str = Field(
        "127.0.0.1:9093", description="host:port of the metrics page; port 0 takes a free one; empty: none"
    )
    participants: Annotated[dict[str, str], NoDecode] = Field(
        {PROFILES: "127.0.0.1:50051"},
        min_length=1,
        description="the participants, and where each is found: name=target,name=target with gRPC targets such as"
        " dns:///host:port, or a JSON object; profiles is one of them",
    )
    confirm: Literal["wait", "background"] = Field(
        "wait", description="answer when the profile is visible (wait), or when it is decided (background)"
    )
    serve_coordinator: bool = Field(
        False,
        description="also serve the coordinator service here, recovery included: no coordinator process is needed",
    )
    recovery_interval_s: float = Field(
        1.0, gt=0, le=3600, description="seconds from one recovery to the next, where the coordinator is served here"
    )

    @field_validator("participants", mode="before")
    @classmethod
    def _read_participants(cls, value: object) -> object:
        """name=target,…: a comma inside a target is one that no name follows."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("starts like a JSON object and is none") from None
        participants: dict[str, str] = {}
        for part in re.split(rf",(?=\s*{_NAME}\s*=)", value):
            match = _ASSIGNMENT.fullmatch(part)
            if match is None:
                raise ValueError("must be name=target,name=target or a JSON object")
            if match[1] in participants:
                raise ValueError("names a participant twice")
            participants[match[1]] = match[2]
        return participants

    @field_validator("participants")
    @classmethod
    def _check_participants(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(re.fullmatch(_NAME, name) for name in value):
            raise ValueError("a participant's name has 1 to 63 lower-case letters, digits and -, a letter first")
        if not all(value.values()):
            raise ValueError("each participant needs a target")
        if PROFILES not in value:
            raise ValueError(f"must name {PROFILES}")
        return value
