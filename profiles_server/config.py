"""What the profiles process can be told: one environment variable a setting, PROFILES_ before its name."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from tandem.runtime.config import ProcessSettings

_NAME = r"[a-z][a-z0-9-]{0,62}"
_ASSIGNMENT = re.compile(rf"\s*({_NAME})\s*=\s*(\S+)\s*")


class Settings(ProcessSettings):
    """The settings of the profiles process."""

    model_config = SettingsConfigDict(env_prefix="PROFILES_", extra="ignore", frozen=True)

    name: str = Field(
        "profiles", pattern=f"^{_NAME}$", description="the participant's name, as coordinators are configured with it"
    )
    listen: str = Field("127.0.0.1:50051", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: str = Field(
        "127.0.0.1:9091", description="host:port of the metrics page; port 0 takes a free one; empty: none"
    )
    coordinators: Annotated[dict[str, str], NoDecode] = Field(
        {"identity": "127.0.0.1:50052"},
        min_length=1,
        description="the coordinators that are believed, and where each is asked for its decisions:"
        " name=target,name=target with gRPC targets such as dns:///host:port, or a JSON object",
    )
    sweep_interval_s: float = Field(5.0, gt=0, le=3600, description="seconds from one sweep to the next")
    sweep_batch: int = Field(500, ge=1, le=1000, description="transactions that a sweep takes up at a time")

    @field_validator("coordinators", mode="before")
    @classmethod
    def _read_coordinators(cls, value: object) -> object:
        """name=target,…: a comma inside a target is one that no name follows."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("{"):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("starts like a JSON object and is none") from None
        coordinators: dict[str, str] = {}
        for part in re.split(rf",(?=\s*{_NAME}\s*=)", value):
            match = _ASSIGNMENT.fullmatch(part)
            if match is None:
                raise ValueError("must be name=target,name=target or a JSON object")
            if match[1] in coordinators:
                raise ValueError("names a coordinator twice")
            coordinators[match[1]] = match[2]
        return coordinators

    @field_validator("coordinators")
    @classmethod
    def _check_names(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(re.fullmatch(_NAME, name) for name in value):
            raise ValueError("a coordinator's name has 1 to 63 lower-case letters, digits and -, a letter first")
        if not all(value.values()):
            raise ValueError("each coordinator needs a target")
        return value
