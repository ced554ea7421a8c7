"""The identity and the coordinator process: what they serve, refuse to start on, and say on the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from typer import Typer
from typer.testing import CliRunner, Result

import coordinator.app
import coordinator.cli
import identity_stub.app
import identity_stub.cli
from coordinator.config import Settings as CoordinatorSettings
from identity_stub.config import Settings as IdentitySettings
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles.v1 import business_pb2
from tandem.runtime.config import load
from tandem.runtime.errors import ConfigurationError
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, transaction_pb2
from tests.integration.test_identity_house import Home, address, create_user, fresh, home, sign_up

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


def told(house: Home, **more: Any) -> dict[str, Any]:
    """What each process is told; ports are free ones."""
    return {
        "database_url": house.identity.url.render_as_string(hide_password=False),
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "participants": {"profiles": house.profiles_server.address},
        "recovery_interval_s": 0.1,
        **more,
    }


@contextmanager
def identity(house: Home, **more: Any) -> Iterator[identity_stub.app.App]:
    app = identity_stub.app.App(load(IdentitySettings, **told(house, **more)))
    try:
        yield app
    finally:
        app.stop()


@contextmanager
def coordinating(house: Home, **more: Any) -> Iterator[coordinator.app.App]:
    app = coordinator.app.App(load(CoordinatorSettings, **told(house, **more)))
    try:
        yield app
    finally:
        app.stop()


def environment(house: Home) -> dict[str, str]:
    participants = f"profiles={house.profiles_server.address}"
    settings = {**told(house), "participants": participants}
    return {f"{prefix}_{k.upper()}": str(v) for prefix in ("IDENTITY", "COORDINATOR") for k, v in settings.items()}


def command(cli: Typer, env: dict[str, str], *arguments: str) -> Result:
    """A command line, without a process of its own."""
    result = CliRunner().invoke(cli, arguments, env=env)
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    return result


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.02)


def resolved(target: str, house: Home, request_id: str) -> coordinator_pb2.ResolveResult.Outcome.ValueType:
    """What the coordinator at `target` says of a request's transaction, asked as profiles would."""
    key = transaction_pb2.TransactionKey(coordinator="identity", transaction_id=str(house.transaction_of(request_id)))
    with house.profiles.connect() as connection:
        row = connection.execute(
            sa.text(
                "SELECT log_id, sha256(digests) AS digest FROM twophase.prepared_transaction WHERE transaction_id = :i"
            ),
            {"i": key.transaction_id},
        ).one()
    item = coordinator_pb2.ResolveItem(key=key, log_id=str(row.log_id), digest=bytes(row.digest))
    with grpc.insecure_channel(target) as channel:
        stub = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
        answer = stub.Resolve(coordinator_pb2.ResolveRequest(participant="profiles", items=[item]), timeout=5)
    return answer.results[0].outcome


# --- what they serve ----------------------------------------------------------------------------------------------


def test_identity_alone(house: Home) -> None:
    """Signs up; it answers for no decision, since the coordinator has a process of its own."""
    with identity(house) as app, grpc.insecure_channel(app.address) as channel:
        request = sign_up(request_id=fresh())
        user = identity_service_pb2_grpc.IdentityServiceStub(channel).SignUp(request, timeout=10).user
        assert house.person_state(user.person_id) == "active"
        with pytest.raises(grpc.RpcError) as caught:
            resolved(app.address, house, request.request_id)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_identity_with_its_coordinator(house: Home) -> None:
    """Mounted in the same server: it answers Resolve, and its recovery delivers what a dead one has left."""
    request = sign_up(request_id=fresh())
    user = house.undelivered(request).user
    with identity(house, serve_coordinator=True, confirm="background") as app:
        eventually(lambda: house.person_state(user.person_id) == "active")
        assert resolved(app.address, house, request.request_id) == coordinator_pb2.ResolveResult.OUTCOME_COMMITTED
        with urllib.request.urlopen(f"http://{app.metrics_address}/metrics", timeout=5) as page:
            assert b"tandem_recovered_total 1.0" in page.read()


def test_coordinator_process(house: Home) -> None:
    """Answers for identity's decisions, and delivers them."""
    request = sign_up(request_id=fresh())
    user = house.undelivered(request).user
    with coordinating(house) as app:
        assert resolved(app.address, house, request.request_id) == coordinator_pb2.ResolveResult.OUTCOME_COMMITTED
        eventually(lambda: house.person_state(user.person_id) == "active")
        with urllib.request.urlopen(f"http://{app.metrics_address}/metrics", timeout=5) as page:
            assert b'tandem_recovery_last_success_timestamp_seconds{coordinator="identity"} 1.' in page.read()


def test_processes_start_and_drain(house: Home) -> None:
    """Real ones: each says where it listens, serves, and ends with status 0 on SIGTERM, without a person in its log."""
    env = {**os.environ, **environment(house), "PYTHONPATH": str(ROOT), "IDENTITY_LOG_LEVEL": "DEBUG"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for module in ("coordinator", "identity_stub")
    ]
    try:
        lines = [process.stdout.readline() for process in started if process.stdout]
        matches = [
            re.fullmatch(rf"ready {name} (127\.0\.0\.1:\d+) metrics=127\.0\.0\.1:\d+\n", line)
            for name, line in zip(("coordinator", "identity"), lines, strict=True)
        ]
        assert all(matches), lines
        with grpc.insecure_channel(matches[1][1]) as channel:  # type: ignore[index]
            stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
            request = create_user()
            stub.CreateUser(request, timeout=10)
            with pytest.raises(grpc.RpcError):
                stub.CreateUser(request, timeout=10)
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=PATIENCE_S)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert '"refused"' in said[1]
    assert not re.search("zebulon", "".join(said), re.IGNORECASE)


# --- what they refuse ---------------------------------------------------------------------------------------------


def test_they_refuse_to_forget_a_participant(house: Home) -> None:
    """R17: a participant with undelivered decisions stays in the configuration, of identity and of the coordinator."""
    house.undelivered(sign_up(request_id=fresh()))
    others = {"profiles": "127.0.0.1:1"}
    with house.identity.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE twophase.decision SET undelivered = '{ledger}' WHERE undelivered = '{profiles}'"
        )
    try:
        for run, variable in ((identity, "IDENTITY_PARTICIPANTS"), (coordinating, "COORDINATOR_PARTICIPANTS")):
            with pytest.raises(ConfigurationError, match=f"wait for ledger to acknowledge, which {variable}"):
                with run(house, participants=others):
                    pass
    finally:
        with house.identity.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE twophase.decision SET undelivered = '{profiles}' WHERE undelivered = '{ledger}'"
            )


def test_they_refuse_a_database_that_is_not_migrated(house: Home, new_database: Callable[[str], str]) -> None:
    """The sentence says what to run; the SQL that `--sql` prints does as well."""
    empty = new_database("identity_empty")
    with (
        pytest.raises(ConfigurationError, match="run `python -m coordinator migrate`"),
        coordinating(house, database_url=empty),
    ):
        pass
    engine = sa.create_engine(empty)
    with engine.begin() as connection:
        connection.exec_driver_sql(command(coordinator.cli.cli, {}, "migrate", "--sql").output.replace("%", "%%"))
    with (
        pytest.raises(ConfigurationError, match="run `python -m identity_stub migrate`"),
        identity(house, database_url=empty),
    ):
        pass
    env = {"IDENTITY_DATABASE_URL": empty}
    for _ in range(2):
        assert "identity_stub is at revision i003" in command(identity_stub.cli.cli, env, "migrate").output
    with identity(house, database_url=empty):
        pass
    engine.dispose()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("ledger=127.0.0.1:1", "must name profiles"),
        ("profiles", "must be name=target"),
        ("profiles=a:1,profiles=b:1", "has a name twice"),
        ("{profiles", "starts like a JSON object and is none"),
        ('{"Profiles": "a:1", "profiles": "b:1"}', "a name has"),
        ('{"profiles": ""}', "each name needs a target"),
    ],
)
def test_participants_that_are_none(value: str, says: str) -> None:
    """The sentence names the variable and what it must be."""
    with pytest.raises(ConfigurationError, match=f"IDENTITY_PARTICIPANTS: Value error, {re.escape(says)}"):
        load(IdentitySettings, participants=value)


def test_participants_in_both_forms() -> None:
    """name=target,… and JSON; a target may hold commas."""
    expected = {"profiles": "ipv4:10.0.0.1:1,10.0.0.2:1", "ledger": "dns:///ledger:1"}
    for value in ("profiles=ipv4:10.0.0.1:1,10.0.0.2:1, ledger=dns:///ledger:1", json.dumps(expected)):
        for kind in (IdentitySettings, CoordinatorSettings):
            assert load(kind, participants=value).participants == expected


# --- the command lines --------------------------------------------------------------------------------------------


def test_sign_up_and_explain_by_command(house: Home) -> None:
    """One person and one business through the API of a running server; then their story, in words and as JSON."""
    env = environment(house)
    arguments = ["sign-up", "--server", house.server.address, "--email", address(), "--given-name", "Zebulon"]
    arguments += ["--business-name", "Zebulon Ltd", "--entity-type", "partnership", "--request-id", fresh("by-hand")]
    done = command(identity_stub.cli.cli, env, *arguments)
    assert done.exit_code == 0, done.output
    assert command(identity_stub.cli.cli, env, *arguments).output == done.output
    business_id = done.output.split("profile of the business")[1].split()[0]
    with house.profiles.connect() as connection:
        statement = sa.text("SELECT entity_type FROM profiles.business WHERE business_id = :id")
        kind = connection.execute(statement, {"id": business_id}).scalar_one()
    assert str(kind).upper().endswith(business_pb2.EntityType.Name(business_pb2.ENTITY_TYPE_PARTNERSHIP)[12:])

    house.marked(house.transaction_of(arguments[-1]))
    story = command(identity_stub.cli.cli, env, "explain", arguments[-1])
    assert story.exit_code == 0
    assert story.output.rstrip().endswith("Nothing is left to do.")
    (as_json,) = json.loads(command(identity_stub.cli.cli, env, "explain", "--json", arguments[-1]).output)
    assert as_json["decision"]["outcome"] == "committed"
    assert [branch["participant"] for branch in as_json["branches"]] == ["profiles"]
    assert as_json["sentences"][-1] == "Nothing is left to do."

    refused = command(identity_stub.cli.cli, env, *arguments[:-1], fresh())
    assert (refused.exit_code, refused.stderr) == (1, "identity_stub: there is one with this email already\n")
    wrong = command(identity_stub.cli.cli, env, *arguments, "--birthday", "1.1.1970")
    assert "birthday: must be a date" in wrong.stderr
    assert "Zebulon" not in refused.stderr + wrong.stderr


def test_import_by_command(house: Home, tmp_path: Path) -> None:
    """What came in, what was refused and noted; exit code 0. Run again: the same."""
    data = ROOT / "identity_stub" / "data"
    for name in ("persons.csv", "businesses.csv"):
        lines = (data / name).read_text(encoding="utf-8").splitlines(keepends=True)[:4]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    files = [str(tmp_path / "persons.csv"), str(tmp_path / "businesses.csv")]
    for _ in range(2):
        done = command(identity_stub.cli.cli, environment(house), "import", *files, "--server", house.server.address)
        assert done.exit_code == 0, done.output
        assert "3 users and 3 businesses are in" in done.output
    nothing = command(identity_stub.cli.cli, environment(house), "import", files[0], str(tmp_path / "none.csv"))
    assert (nothing.exit_code, nothing.stderr) == (
        2,
        "identity_stub: none.csv can't be read: No such file or directory\n",
    )


def test_coordinator_by_command(house: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recover` delivers what is due, `log-id show` names the log, `--runtime-role` may not rewrite an outcome (R2)."""
    monkeypatch.setattr("coordinator.app.configure_logging", lambda *_, **__: None)
    env, cli = environment(house), coordinator.cli.cli
    with house.identity.begin() as connection:
        log_id = connection.exec_driver_sql("SELECT log_id FROM twophase.log").scalar_one()
        connection.exec_driver_sql("UPDATE twophase.decision SET next_attempt_at = now() WHERE undelivered <> '{}'")
    command(cli, env, "recover")
    assert command(cli, env, "recover").output == "made 0 deliveries\n"
    user = house.undelivered(sign_up(request_id=fresh())).user
    house.sql("UPDATE twophase.decision SET next_attempt_at = now() WHERE undelivered <> '{}'")
    assert command(cli, env, "recover").output == "made 1 delivery\n"
    assert house.person_state(user.person_id) == "active"
    assert command(cli, env, "log-id", "show").output.startswith(f"{log_id} current, since 20")

    role = f"runtime_{os.getpid()}"
    refused = command(cli, env, "migrate", "--runtime-role", role)
    assert (refused.exit_code, "there is no such role" in refused.stderr) == (2, True)
    assert f'TO "{role}"' in command(cli, env, "migrate", "--sql", "--runtime-role", role).output
    with house.identity.begin() as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{role}"')
    assert "tandem.coordinator is at revision" in command(cli, env, "migrate", "--runtime-role", role).output
    with house.identity.begin() as connection:
        may = "SELECT has_column_privilege('{}', 'twophase.decision', '{}', 'UPDATE')"
        assert not connection.exec_driver_sql(may.format(role, "outcome")).scalar_one()
        assert connection.exec_driver_sql(may.format(role, "undelivered")).scalar_one()
        connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
        connection.exec_driver_sql(f'DROP ROLE "{role}"')


def test_help_explains_every_setting() -> None:
    """Each variable with its default."""
    for cli, kind, prefix in (
        (identity_stub.cli.cli, IdentitySettings, "IDENTITY_"),
        (coordinator.cli.cli, CoordinatorSettings, "COORDINATOR_"),
    ):
        for arguments in (["--help"], ["settings"]):
            shown = command(cli, {"COLUMNS": "200"}, *arguments).output
            assert not [name for name in kind.model_fields if prefix + name.upper() not in shown]
