"""What the coordinator process can be told: one environment variable a setting, COORDINATOR_ before its name."""

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
    """The settings of the coordinator process."""

    model_config = SettingsConfigDict(env_prefix="COORDINATOR_", extra="ignore", frozen=True)

    name: str = Field(
        "identity",
        pattern=f"^{_NAME}$",
        description="the coordinator's name, as participants are configured with it: the one that the initiator uses",
    )
    database_url: str | None = Field(
        None,
        description="PostgreSQL URL of the initiator's database (the primary), where its decision log lies;"
        " not set: the embedded PostgreSQL, in `data_folder`",
    )
    embedded_database: str = Field(
        "identity",
        pattern="^[A-Za-z_][A-Za-z0-9_-]{0,62}$",
        description="the initiator's database in the embedded PostgreSQL",
    )
    listen: str = Field("127.0.0.1:50052", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: str = Field(
        "127.0.0.1:9092", description="host:port of the metrics page; port 0 takes a free one; empty: none"
    )
    participants: Annotated[dict[str, str], NoDecode] = Field(
        {"profiles": "127.0.0.1:50051"},
        min_length=1,
        description="the participants, and where each is found: name=target,name=target with gRPC targets such as"
        " dns:///host:port, or a JSON object",
    )
    recovery_interval_s: float = Field(1.0, gt=0, le=3600, description="seconds from one recovery to the next")
    recovery_batch: int = Field(500, ge=1, le=1000, description="decisions that a recovery takes up at a time")

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
        return value
