"""What the profiles process can be told: one environment variable a setting, PROFILES_ before its name."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from tandem.kafka.config import KafkaSettings
from tandem.runtime.config import NAME_PATTERN, Address, OperatorToken, OptionalAddress, Targets


class Settings(KafkaSettings):
    """The settings of the profiles process."""

    model_config = SettingsConfigDict(env_prefix="PROFILES_", extra="ignore", frozen=True)

    name: str = Field(
        "profiles",
        pattern=f"^{NAME_PATTERN}$",
        description="the participant's name, as coordinators are configured with it",
    )
    listen: Address = Field("127.0.0.1:50051", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: OptionalAddress = Field(
        "127.0.0.1:9091", description="host:port of the metrics page; port 0 takes a free one; empty: none"
    )
    coordinators: Targets = Field(
        {"identity": "127.0.0.1:50052"},
        description="the coordinators that are believed, and where each is asked for its decisions:"
        " name=target,name=target with gRPC targets such as dns:///host:port, or a JSON object",
    )
    updates_create: bool = Field(
        False,
        description="an update with allow_missing may create what is not there: for the design update-or-create only"
        " (docs/designs.md); elsewhere every profile comes with its account",
    )
    database_pool: int = Field(
        24,
        ge=2,
        le=200,
        description="database connections at most; votes that wait for a lock may hold some for a while",
    )
    operator_token: OperatorToken = Field(
        None,
        description="what the coordinator's console must bring to ask again or force an outcome here"
        " (docs/console.md), 16 to 200 printable ASCII characters; not set: nobody can over gRPC",
    )
    sweep_interval_s: float = Field(
        1.0,
        gt=0,
        le=20,  # TandemSweeperNotSucceeding pages after 60 s without one
        description="seconds from one sweep to the next, at most 20",
    )
    sweep_batch: int = Field(1000, ge=1, le=1000, description="transactions that a sweep takes up at a time")
