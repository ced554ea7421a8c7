"""What the coordinator process can be told: one environment variable a setting, COORDINATOR_ before its name."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tandem.runtime.config import NAME_PATTERN, Address, OperatorTokens, OptionalAddress, ProcessSettings, Targets


class Settings(ProcessSettings):
    """The settings of the coordinator process."""

    model_config = SettingsConfigDict(env_prefix="COORDINATOR_", extra="ignore", frozen=True)

    name: str = Field(
        "identity",
        pattern=f"^{NAME_PATTERN}$",
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
    listen: Address = Field("127.0.0.1:50052", description="host:port of the gRPC server; port 0 takes a free one")
    metrics_listen: OptionalAddress = Field(
        "127.0.0.1:9092", description="host:port of the metrics page; port 0 takes a free one; empty: none"
    )
    participants: Targets = Field(
        {"profiles": "127.0.0.1:50051"},
        description="the participants, and where each is found: name=target,name=target with gRPC targets such as"
        " dns:///host:port, or a JSON object",
    )
    console_listen: str = Field(
        "",
        description="host:port of the console, pages for operators (docs/console.md); port 0 takes a free one; empty:"
        " none. Needs the extra `console`",
    )
    console_token: SecretStr | None = Field(
        None, description="what opens the console, at least 16 characters; required unless its host is loopback"
    )
    operator_tokens: OperatorTokens = Field(
        {},
        description="what the console brings to participants to ask again or force an outcome there:"
        " name=token,name=token, each as its participant has it (PROFILES_OPERATOR_TOKEN), or a JSON object; not set:"
        " the console shows the commands instead",
    )
    recovery: bool = Field(
        True,
        description="deliver what is left undelivered; false where the initiator does it by Kafka"
        " (IDENTITY_PROVISIONING=hybrid)",
    )
    recovery_interval_s: float = Field(
        1.0,
        gt=0,
        le=60,  # TandemRecoveryNotSucceeding warns after 120 s without one
        description="seconds from one recovery to the next, at most 60",
    )
    recovery_batch: int = Field(500, ge=1, le=1000, description="decisions that a recovery takes up at a time")
