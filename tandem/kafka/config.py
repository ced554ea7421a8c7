"""The settings of a process that talks to Kafka. Reads no Kafka library, so that they can be shown without it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from tandem.runtime.config import ProcessSettings
from tandem.runtime.errors import ConfigurationError

PREFIX_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_SILENT = logging.Logger("librdkafka", logging.CRITICAL + 1)  # noqa: LOG001 - no part of our logging
"""The client's own lines name machines, and would go past our log: what matters is told by errors."""

_OPTION = re.compile(r"(?:sasl|ssl|security|client|broker|socket|enable\.ssl)[.a-z0-9]*")
_OURS = frozenset({"client.id"})
_RULE = 'must be a JSON object such as {"security.protocol": "SASL_SSL"}'


def _read_options(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return {}
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(_RULE) from None  # without the text: it may hold a password


def _check_options(value: dict[str, SecretStr]) -> dict[str, SecretStr]:
    if not all(_OPTION.fullmatch(name) and name not in _OURS for name in value):
        raise ValueError("may set how to reach and trust a broker (security.*, sasl.*, ssl.*, …), and nothing else")
    return value


KafkaOptions = Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_read_options), AfterValidator(_check_options)]
"""librdkafka's options for reaching a broker, from a JSON object; empty: none."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where Kafka is, and what the topics are called there. repr leaves the options out: they may hold a password.

    servers: host:port,host:port. prefix: of every topic and consumer group. partitions, replication: of topics that
    are made by us; replication −1: as the broker has it. session_s, instance: see KafkaSettings.
    """

    servers: str
    prefix: str = "tandem"
    partitions: int = 6
    replication: int = -1
    session_s: float = 10.0
    instance: str = ""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def topic(self, *names: str) -> str:
        """prefix.name.name"""
        return ".".join((self.prefix, *names))

    def reach(self) -> dict[str, Any]:
        """What every client is configured with."""
        return {
            **self.options,
            "bootstrap.servers": self.servers,
            "socket.connection.setup.timeout.ms": 3_000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            "allow.auto.create.topics": False,
            "logger": _SILENT,
        }


class KafkaSettings(ProcessSettings):
    """What a process that may talk to Kafka shares with the others."""

    kafka_servers: str = Field(
        "", description="Kafka's brokers, host:port,host:port (docs/kafka.md); empty: none. Needs the extra `kafka`"
    )
    kafka_options: KafkaOptions = Field(
        {},
        description="how a broker is reached and trusted, as a JSON object of librdkafka's security.*, sasl.*, ssl.*"
        " options; not set: plain TCP",
    )
    kafka_prefix: str = Field(
        "tandem", pattern=f"^{PREFIX_PATTERN}$", description="what the names of topics and consumer groups begin with"
    )
    kafka_partitions: int = Field(
        6, ge=1, le=1_000, description="partitions of the topics that are made at the first use; existing ones stay"
    )
    kafka_replication: int = Field(
        -1, ge=-1, le=9, description="replicas of the topics that are made at the first use; -1: as the broker has it"
    )
    kafka_session_s: float = Field(
        10.0,
        ge=6,  # a broker's own group.min.session.timeout.ms
        le=300,
        description="seconds after which the partitions of a consumer that has died go to another",
    )
    kafka_instance: str = Field(
        "",
        pattern="^[A-Za-z0-9._-]{0,64}$",
        description="this replica's own name, the same after a restart and no other's at the same time (a StatefulSet's"
        " pod name): it then gets its partitions back at once; empty: after `kafka_session_s`",
    )
    relay_interval_s: float = Field(
        0.1,
        gt=0,
        le=20,  # TandemOutboxStuck warns of what has waited for 120 s
        description="seconds from one run of the outbox's relay to the next, where Kafka is configured; at most 20",
    )

    @property
    def cluster(self) -> Cluster | None:
        """Where Kafka is; None where none is configured."""
        if not self.kafka_servers:
            return None
        options = {name: secret.get_secret_value() for name, secret in self.kafka_options.items()}
        return Cluster(
            self.kafka_servers,
            prefix=self.kafka_prefix,
            partitions=self.kafka_partitions,
            replication=self.kafka_replication,
            session_s=self.kafka_session_s,
            instance=self.kafka_instance,
            options=options,
        )

    def required_cluster(self, why: str) -> Cluster:
        """The same. Raises ConfigurationError, with `why`, where none is configured."""
        found = self.cluster
        if found is None:
            variable = f"{self.model_config.get('env_prefix', '')}KAFKA_SERVERS"
            raise ConfigurationError(f"{variable}: {why} needs a broker")
        return found


@contextmanager
def extra(who: str) -> Iterator[None]:
    """Around the imports of what needs the Kafka library. Raises ConfigurationError, for `who`, where it is missing."""
    try:
        yield
    except ImportError:
        raise ConfigurationError(f"{who} needs the extra: pip install 'tandem[kafka]'") from None
