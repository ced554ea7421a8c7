"""What the identity process can be told: one environment variable a setting, IDENTITY_ before its name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from tandem.kafka.config import KafkaSettings
from tandem.runtime.config import NAME_PATTERN, Address, OptionalAddress, Targets

PROFILES = "profiles"
"""The participant that profiles is."""


class Settings(KafkaSettings):
    """The settings of the identity process."""

    model_config = SettingsConfigDict(env_prefix="IDENTITY_", extra="ignore", frozen=True)

    name: str = Field(
        "identity",
        pattern=f"^{NAME_PATTERN}$",
        description="the coordinator's name, as participants are configured with it; never reused for another database",
    )
    listen: Address = Field("127.0.0.1:50053", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: OptionalAddress = Field(
        "127.0.0.1:9093", description="host:port of the metrics page; port 0 takes a free one; empty: none"
    )
    participants: Targets = Field(
        {PROFILES: "127.0.0.1:50051"},
        description="the participants, and where each is found: name=target,name=target with gRPC targets such as"
        " dns:///host:port, or a JSON object; profiles is one of them",
    )
    provisioning: Literal["two-phase", "hybrid", "saga", "update-or-create"] = Field(
        "two-phase",
        description="how an account gets its profile (docs/designs.md): together with it (two-phase), or by one of the"
        " designs that it is compared with",
    )
    confirm: Literal["wait", "background"] = Field(
        "wait",
        description="two-phase only: answer when the profile is visible (wait), or when it is decided (background)",
    )
    serve_coordinator: bool = Field(
        False,
        description="also serve the coordinator service here, recovery included: no coordinator process is needed",
    )
    recovery_interval_s: float = Field(
        1.0,
        gt=0,
        le=60,  # TandemRecoveryNotSucceeding warns after 120 s without one
        description="seconds from one recovery to the next, where the coordinator is served here; at most 60",
    )

    @field_validator("participants")
    @classmethod
    def _check_participants(cls, value: dict[str, str]) -> dict[str, str]:
        if PROFILES not in value:
            raise ValueError(f"must name {PROFILES}")
        return value
