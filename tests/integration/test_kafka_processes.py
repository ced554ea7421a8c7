"""Processes that talk to a broker, as they are configured: what they refuse to start with, what they start without."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

import coordinator.app
import identity_stub.app
import profiles_server.app
from coordinator.config import Settings as CoordinatorSettings
from identity_stub.config import Settings as IdentitySettings
from identity_stub.tables import outbox
from lab.broker import Broker
from profiles_server.config import Settings as ProfilesSettings
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.runtime.config import load
from tandem.runtime.database import create_engine
from tandem.runtime.errors import ConfigurationError
from tests.integration.test_identity_house import fresh, sign_up
from tests.support.rules import eventually


@pytest.fixture
def identity(new_database: Callable[[str], str]) -> dict[str, Any]:
    """Settings of an identity on a migrated database."""
    told = {
        "database_url": new_database("identity"),
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "participants": {"profiles": "127.0.0.1:1"},
        "serve_coordinator": True,
    }
    identity_stub.app.migrate(load(IdentitySettings, **told))
    return told


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def refused(told: dict[str, Any], **more: Any) -> str:
    """Why identity does not start like this."""
    with pytest.raises(ConfigurationError) as raised:
        identity_stub.app.App(load(IdentitySettings, **told, **more))
    return raised.value.message


def test_a_design_that_needs_a_broker_says_so(identity: dict[str, Any]) -> None:
    """Hybrid and saga don't start without one, and name the variable."""
    for design in ("hybrid", "saga"):
        assert "IDENTITY_KAFKA_SERVERS" in refused(identity, provisioning=design)


def test_what_a_saga_has_left_must_be_told(identity: dict[str, Any], stack: ExitStack) -> None:
    """Another design, and no broker any more: it does not start while the outbox holds what nobody would publish."""
    engine = create_engine(identity["database_url"])
    stack.callback(engine.dispose)
    with engine.begin() as connection:
        connection.execute(sa.insert(outbox).values(topic="t", key="k", type="tests.Note", value=b""))
    assert "the outbox holds" in refused(identity)
    with engine.begin() as connection:
        connection.execute(sa.delete(outbox))
    identity_stub.app.App(load(IdentitySettings, **identity)).stop()


def test_the_coordinator_process_can_leave_the_delivery_to_another(identity: dict[str, Any], stack: ExitStack) -> None:
    """With hybrid, identity publishes what is left: a coordinator process must not deliver it by RPC."""
    told = {key: identity[key] for key in ("database_url", "listen", "participants")}
    for delivers in (True, False):
        settings = load(CoordinatorSettings, metrics_listen="127.0.0.1:0", recovery=delivers, **told)
        app = coordinator.app.App(settings)
        stack.callback(app.stop)
        with urllib.request.urlopen(f"http://{app.metrics_address}/metrics", timeout=10) as page:
            assert (b"tandem_recovery_last_success_timestamp_seconds{" in page.read()) is delivers


def test_settings_say_how_a_broker_is_trusted_and_nothing_else() -> None:
    """librdkafka's options by a list of what is allowed; a password is in no repr and in no error."""
    settings = load(ProfilesSettings, kafka_servers="b:9093", kafka_options='{"sasl.password": "hunter2"}')
    assert settings.cluster is not None
    assert settings.cluster.reach()["sasl.password"] == "hunter2"
    assert "hunter2" not in repr(settings) + repr(settings.cluster)
    for wrong in ('{"acks": "0", "sasl.password": "hunter2"}', '{"sasl.password": "hunter2"', '["hunter2"]', "hunter2"):
        with pytest.raises(ConfigurationError) as raised:
            load(ProfilesSettings, kafka_options=wrong)
        assert "PROFILES_KAFKA_OPTIONS" in raised.value.message
        assert "hunter2" not in raised.value.message
    assert load(ProfilesSettings).cluster is None


def test_both_start_and_sign_up_before_there_is_a_broker(
    identity: dict[str, Any], new_database: Callable[[str], str], tmp_path: Path, stack: ExitStack
) -> None:
    """A saga needs the broker for the profile only: it comes later, and nobody has to restart anything."""
    broker = Broker(tmp_path / "broker")
    if not broker.is_ours:
        pytest.skip("KAFKA_BOOTSTRAP_SERVERS names a broker that runs already")
    kafka = {"kafka_servers": broker.servers, "kafka_prefix": fresh("late"), "kafka_partitions": 1}
    theirs = {
        "database_url": new_database("profiles"),
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "coordinators": {"identity": "127.0.0.1:1"},
        **kafka,
    }
    profiles_server.app.migrate(load(ProfilesSettings, **theirs))
    for app in (
        profiles_server.app.App(load(ProfilesSettings, **theirs)),
        asking := identity_stub.app.App(load(IdentitySettings, **identity, **kafka, provisioning="saga")),
    ):
        stack.callback(app.stop)
    stub = identity_service_pb2_grpc.IdentityServiceStub(stack.enter_context(grpc.insecure_channel(asking.address)))
    user = stub.SignUp(sign_up(), timeout=10).user
    assert user.profile_status == pb.PROFILE_STATUS_PENDING
    stack.callback(broker.stop)
    broker.start()
    asked = pb.GetUserRequest(user_id=user.user_id)
    eventually(lambda: stub.GetUser(asked, timeout=10).user.profile_status == pb.PROFILE_STATUS_ACTIVE, 40)
