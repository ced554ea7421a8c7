"""The profiles process as an operator meets it: it is migrated, started, killed, restarted, drained, and refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import alembic.command
import grpc
import pytest
import sqlalchemy as sa
import structlog
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from structlog.testing import LogCapture
from typer.testing import CliRunner, Result

from profiles_server.app import MIGRATIONS, App
from profiles_server.cli import cli
from profiles_server.config import Settings
from tandem.participant.sweeper import Sweeper
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.auth import bearer
from tandem.runtime.channel import open_channel
from tandem.runtime.config import described, load
from tandem.runtime.database import create_engine
from tandem.runtime.errors import Reason, TandemError
from tandem.v1 import (
    operations_pb2,
    operations_pb2_grpc,
    participant_pb2,
    participant_pb2_grpc,
    transaction_pb2,
)
from tests.integration.profiles_support import LOG_ID, new_key, pack, person, rows

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20
READY = re.compile(r"ready profiles (127\.0\.0\.1:\d+) metrics=(127\.0\.0\.1:\d+)\n")


def settings_for(url: str) -> dict[str, str]:
    """What the process is told; ports are free ones, and the one coordinator is not there."""
    return {
        "PROFILES_DATABASE_URL": url,
        "PROFILES_LISTEN": "127.0.0.1:0",
        "PROFILES_METRICS_LISTEN": "127.0.0.1:0",
        "PROFILES_COORDINATORS": "identity=127.0.0.1:1",
    }


def environment(url: str, **settings: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PROFILES_")}
    return bare | {"PYTHONPATH": str(ROOT)} | settings_for(url) | settings


def run(url: str, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "profiles_server", *command],
        env=environment(url, **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


class Process:
    """A process that serves."""

    def __init__(self, url: str, **settings: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "profiles_server"],
            env=environment(url, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout is not None
        match = READY.fullmatch(self.popen.stdout.readline())
        assert match, self.end(signal.SIGKILL)
        self.address, self.metrics_address = match.groups()

    def end(self, number: int) -> tuple[int, str]:
        """Its exit code and what it logged."""
        self.popen.send_signal(number)
        _, logged = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode, logged


def metrics(address: str) -> str:
    """The metrics page."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
        return str(page.read().decode())


@contextmanager
def running(url: str, **settings: str) -> Iterator[Process]:
    process = Process(url, **settings)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.end(signal.SIGKILL)


def command(url: str, *arguments: str) -> Result:
    """The command line, without a process of its own; only for what neither serves nor logs."""
    result = CliRunner().invoke(cli, arguments, env=settings_for(url))
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    return result


@contextmanager
def app(monkeypatch: pytest.MonkeyPatch, url: str, **settings: str) -> Iterator[App]:
    """The process's inside, in this process."""
    with monkeypatch.context() as patch:
        for name, value in (settings_for(url) | settings).items():
            patch.setenv(name, value)
        running_app = App(load(Settings))
    try:
        yield running_app
    finally:
        running_app.stop()


def refusal(monkeypatch: pytest.MonkeyPatch, url: str, **settings: str) -> str:
    """The sentence with which it doesn't start."""
    with pytest.raises(TandemError) as caught, app(monkeypatch, url, **settings):
        pass
    assert caught.value.reason in (Reason.CONFIGURATION, Reason.SCHEMA_UNKNOWN)
    return caught.value.message


@pytest.fixture(scope="module")
def url(new_database: Callable[[str], str]) -> str:
    """A database that was migrated by the command, twice."""
    url = new_database("profiles_process")
    for _ in range(2):
        result = command(url, "migrate")
        assert result.exit_code == 0
        assert re.fullmatch(r"tandem\.participant is at .+\nprofiles_server is at .+\n", result.output)
    return url


def request(*persons: object, coordinator: str = "identity") -> participant_pb2.PrepareRequest:
    key = new_key(coordinator)
    return participant_pb2.PrepareRequest(
        key=transaction_pb2.TransactionKey(coordinator=key.coordinator, transaction_id=str(key.transaction_id)),
        log_id=str(LOG_ID),
        ttl=Duration(seconds=10),
        driver_deadline=Duration(seconds=7),
        writes=[pack(one) for one in persons],  # type: ignore[arg-type]
    )


def abort(asked: participant_pb2.PrepareRequest) -> participant_pb2.AbortRequest:
    return participant_pb2.AbortRequest(key=asked.key, resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR)


def test_a_promise_survives_kill_9(url: str) -> None:
    """A vote that was given is kept by the next process, metrics show it, and what it promised is committed there."""
    ada = person()
    asked = request(ada)
    with running(url) as process:
        with open_channel(process.address) as channel:
            vote = participant_pb2_grpc.ParticipantServiceStub(channel).Prepare(asked, timeout=5)
            assert vote.participant == "profiles"
        process.end(signal.SIGKILL)
    with running(url) as process, open_channel(process.address) as channel:
        assert 'tandem_prepared_transactions{coordinator="identity"} 1.0' in metrics(process.metrics_address)
        participant = participant_pb2_grpc.ParticipantServiceStub(channel)
        assert participant.Prepare(asked, timeout=5) == vote
        commit = participant_pb2.CommitRequest(key=asked.key, resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR)
        participant.Commit(commit, timeout=5)
        profiles = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
        found = profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id), timeout=5).person
        assert found.name == ada.name
        assert 'tandem_prepared_transactions{coordinator="identity"} 0.0' in metrics(process.metrics_address)


def test_sigterm_drains(url: str) -> None:
    """Calls that run are answered, the exit code is 0, the last words are in the log, without any person's name."""
    secret = f"secret-{uuid4().hex}"
    ada = person()
    ada.name.display_name = secret
    with running(url, PROFILES_LOG_LEVEL="DEBUG", PROFILES_LOG_JSON="true") as process:
        with open_channel(process.address) as channel:
            stub = participant_pb2_grpc.ParticipantServiceStub(channel)
            asked = request(ada)
            stub.Prepare(asked, timeout=5)
            stub.Abort(abort(asked), timeout=5)
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "tandem.v1.ParticipantService", "tandem.profiles.v1.ProfilesService"):
                state = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
                assert state == health_pb2.HealthCheckResponse.SERVING
            late = [request(person()) for _ in range(20)]
            calls = [stub.Prepare.future(one, timeout=5) for one in late]
            calls[0].result()
            code, logged = process.end(signal.SIGTERM)
            outcomes = {call.code() for call in calls}
        assert code == 0
        # gRPC itself cancels a call that it has not handed over yet; our own clients read that as UNAVAILABLE.
        assert outcomes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert [word in logged for word in ("serving", "draining", "stopped", secret)] == [True, True, True, False]
    voted = {one.key.transaction_id for one, call in zip(late, calls, strict=True) if call.code() is grpc.StatusCode.OK}
    engine = create_engine(url)
    with engine.connect() as connection:
        prepared = "SELECT transaction_id::text FROM twophase.prepared_transaction WHERE state = 'prepared'"
        stored = {id_ for (id_,) in rows(connection, prepared)}
    engine.dispose()
    assert stored & {one.key.transaction_id for one in late} == voted


def test_garbage_is_answered_and_forgotten(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no message, no HTTP/2 and no end: errors for the sender, service for everybody else."""
    with app(monkeypatch, url) as process, open_channel(process.address) as channel:
        host, port = process.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(os.urandom(4096))
        silent = socket.create_connection((host, int(port)), timeout=5)
        silent.sendall(b"PRI * HTTP/2.0\r\n")
        for method in ("tandem.v1.ParticipantService/Prepare", "tandem.profiles.v1.ProfilesService/BatchGetPersons"):
            for raw in (os.urandom(100), b"\x0a\xff", b"", b"\xff" * 1000):
                assert raw_call(channel, method, raw) is grpc.StatusCode.INVALID_ARGUMENT
        assert raw_call(channel, "tandem.v1.ParticipantService/Nothing", b"") is grpc.StatusCode.UNIMPLEMENTED
        names = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert {"tandem.v1.ParticipantService", "tandem.profiles.v1.ProfilesService"} < names
        silent.close()


def test_an_operator_acts_from_afar_with_the_token_only(url: str) -> None:
    """The service is there where the process has a token, and not elsewhere; no line of the log ever holds one."""
    token, wrong = "canary-operator-token", "canary-of-another-token"
    asked = request(person())
    deed = operations_pb2.ForceTransactionRequest(
        key=asked.key, outcome=transaction_pb2.TRANSACTION_STATE_ABORTED, actor="ada", reason="nobody will ever answer"
    )
    name = "tandem.v1.ParticipantOperationsService"

    def code(channel: grpc.Channel, carried: str) -> grpc.StatusCode:
        stub = operations_pb2_grpc.ParticipantOperationsServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ForceTransaction(deed, timeout=5, metadata=(bearer(carried),))
        assert "canary" not in str(caught.value)
        answered: grpc.StatusCode = caught.value.code()
        return answered

    with running(url, PROFILES_LOG_LEVEL="DEBUG") as process, open_channel(process.address) as channel:
        participant_pb2_grpc.ParticipantServiceStub(channel).Prepare(asked, timeout=5)
        assert name not in ProtoReflectionDescriptorDatabase(channel).get_services()
        assert code(channel, token) is grpc.StatusCode.UNIMPLEMENTED
    engine = create_engine(url)
    with engine.begin() as connection:  # its driver has given up
        connection.exec_driver_sql("UPDATE twophase.prepared_transaction SET prepared_at = now() - interval '1 minute'")
    engine.dispose()
    with running(url, PROFILES_LOG_LEVEL="DEBUG", PROFILES_OPERATOR_TOKEN=token) as process:
        with open_channel(process.address) as channel:
            assert name in ProtoReflectionDescriptorDatabase(channel).get_services()
            assert code(channel, wrong) is grpc.StatusCode.UNAUTHENTICATED
            stub = operations_pb2_grpc.ParticipantOperationsServiceStub(channel)
            forced = stub.ForceTransaction(deed, timeout=5, metadata=(bearer(token),))
            assert (forced.staged, forced.found) == (1, 1)
            assert code(channel, token) is grpc.StatusCode.INVALID_ARGUMENT
        status, logged = process.end(signal.SIGTERM)
    assert status == 0
    assert "heuristic outcome" in logged
    assert "UNAUTHENTICATED" in logged
    assert "canary" not in logged
    refused = run(url, PROFILES_OPERATOR_TOKEN="canary")
    assert refused.returncode == 2
    assert "PROFILES_OPERATOR_TOKEN" in refused.stderr
    assert "canary" not in refused.stdout + refused.stderr


def raw_call(channel: grpc.Channel, method: str, raw: bytes) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{method}", bytes, bytes)(raw, timeout=5)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_it_sweeps_by_itself_and_by_command(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule runs; a coordinator that can't be asked is counted, and nothing is ended by the clock alone (R9)."""
    engine = create_engine(url)
    due = "UPDATE twophase.prepared_transaction SET next_attempt_at = now(), last_error = NULL WHERE NOT confirmed"
    left = "SELECT state, last_error FROM twophase.prepared_transaction WHERE transaction_id = CAST(:id AS uuid)"

    def swept() -> bool:
        with engine.connect() as connection:
            return rows(connection, left, id=asked.key.transaction_id) == [("prepared", "UNAVAILABLE")]

    with app(monkeypatch, url, PROFILES_SWEEP_INTERVAL_S="0.1") as process, open_channel(process.address) as channel:
        asked = request(person())
        participant_pb2_grpc.ParticipantServiceStub(channel).Prepare(asked, timeout=5)
        with engine.begin() as connection:
            connection.exec_driver_sql(due)
        deadline = time.monotonic() + PATIENCE_S
        while not swept():
            assert time.monotonic() < deadline, "not swept in time"
            time.sleep(0.05)
        assert "tandem_sweep_last_success_timestamp_seconds 0.0" not in metrics(process.metrics_address)
    with engine.begin() as connection:
        connection.exec_driver_sql(due)
    monkeypatch.setattr("profiles_server.app.configure_logging", lambda *_, **__: None)
    done = command(url, "sweep")
    assert (done.exit_code, done.output) == (0, "ended 0 transactions\n")
    assert swept()
    engine.dispose()


def test_a_sweep_that_fails_is_logged_without_what_it_met(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its types and source lines: an exception's text may hold anything."""
    failed = threading.Event()

    def fail(_: Sweeper) -> int:
        failed.set()
        raise ValueError("sesame")

    monkeypatch.setattr(Sweeper, "run_once", fail)
    capture = LogCapture()
    level = structlog.make_filtering_bound_logger(0)
    monkeypatch.setattr("profiles_server.app.log", structlog.wrap_logger(None, [capture], wrapper_class=level))
    with app(monkeypatch, url, PROFILES_SWEEP_INTERVAL_S="0.05"):
        assert failed.wait(PATIENCE_S)
        failed.clear()
        assert failed.wait(PATIENCE_S), "one failure ended the schedule"
    (said, *_) = [line["exception"] for line in capture.entries if line["event"] == "job failed"]
    assert said.startswith("ValueError at")
    assert "sesame" not in repr(capture.entries)


# --- what it refuses ------------------------------------------------------------------------------------------


def test_it_refuses_a_database_that_is_not_migrated(
    new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one sentence, exit code 2 and the command to run, which `--sql` explains and may be replaced by."""
    empty = new_database("profiles_empty")
    done = run(empty)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.endswith("run `python -m profiles_server migrate`")
    sql = command(empty, "migrate", "--sql")
    engine = create_engine(empty)
    with engine.begin() as connection:
        connection.exec_driver_sql(sql.output.replace("%", "%%"))
    engine.dispose()
    with app(monkeypatch, empty):
        pass


def test_it_refuses_an_older_database(new_database: Callable[[str], str]) -> None:
    """Migrations come before the code that needs them: it says what there is, what it needs, and the command."""
    older = new_database("profiles_older")
    engine = create_engine(older)
    for migrations, first in zip(MIGRATIONS, ("p001", "f001"), strict=True):
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(migrations.schema, if_not_exists=True))
            alembic.command.upgrade(migrations._config(connection), first)
    engine.dispose()
    done = run(older)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    head = MIGRATIONS[0].head
    assert head != "p001", "there is an older one"
    assert f"has revision p001 of tandem.participant, this code needs revision {head}: run `python" in sentence
    assert run(older, "migrate").returncode == 0
    with running(older):
        pass


def test_additions_come_while_it_runs(new_database: Callable[[str], str]) -> None:
    """A migration of newer code that only adds is no trouble for a process that runs: it votes and commits. But the
    same code does not start on it again."""
    url = new_database("profiles_newer")
    assert run(url, "migrate").returncode == 0
    head = MIGRATIONS[0].head
    with running(url) as process:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE twophase.prepared_transaction ADD COLUMN later text")
            connection.exec_driver_sql("ALTER TABLE profiles.person ADD COLUMN later text NOT NULL DEFAULT 'kept'")
            version = f"{MIGRATIONS[0].schema}.{MIGRATIONS[0].version_table}"
            connection.exec_driver_sql(f"UPDATE {version} SET version_num = 'p999'")
        engine.dispose()
        ada = person()
        asked = request(ada)
        with open_channel(process.address) as channel:
            participant = participant_pb2_grpc.ParticipantServiceStub(channel)
            participant.Prepare(asked, timeout=5)
            commit = participant_pb2.CommitRequest(key=asked.key, resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR)
            participant.Commit(commit, timeout=5)
            profiles = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
            found = profiles.GetPerson(pb.GetPersonRequest(person_id=ada.person_id), timeout=5).person
            assert found.name == ada.name
    done = run(url)
    assert done.returncode == 2
    assert f"has revision p999 of tandem.participant, which this code (revision {head}) does not know" in done.stderr


def test_it_refuses_to_forget_a_coordinator(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R17: a coordinator with transactions in doubt here stays in the configuration."""
    both = "identity=127.0.0.1:1,other=127.0.0.1:1"
    with app(monkeypatch, url, PROFILES_COORDINATORS=both) as process, open_channel(process.address) as channel:
        asked = request(person(), coordinator="other")
        participant = participant_pb2_grpc.ParticipantServiceStub(channel)
        participant.Prepare(asked, timeout=5)
        assert "transactions of other are in doubt here" in refusal(monkeypatch, url)
        participant.Abort(abort(asked), timeout=5)
    with app(monkeypatch, url):
        pass


def test_it_refuses_another_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R17: the name it votes under is kept; under another one it would be told ABORTED of what is committed."""
    with app(monkeypatch, url):
        pass
    said = refusal(monkeypatch, url, PROFILES_NAME="facts")
    assert "belongs to the participant 'profiles', not to 'facts'" in said


def test_it_refuses_what_does_not_fit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with one sentence that says what to change, and no password. What was opened before is closed again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"can't listen on {address}" in refusal(monkeypatch, url, PROFILES_LISTEN=address)
        assert "for the metrics" in refusal(monkeypatch, url, PROFILES_METRICS_LISTEN=address)
    for setting, value in (("METRICS_LISTEN", "nonsense"), ("METRICS_LISTEN", "h:99999"), ("WORKERS", "many")):
        sentence = refusal(monkeypatch, url, **{f"PROFILES_{setting}": value})
        assert setting in sentence or value in sentence
    for wrong in ("nonsense", "postgresql://me:sesame@127.0.0.1:1/profiles", "mysql://me:sesame@localhost/x"):
        assert "sesame" not in refusal(monkeypatch, wrong)
        result = command(wrong, "migrate")
        assert result.exit_code == 2
        assert "sesame" not in result.output


def test_help_explains_every_setting() -> None:
    """`--help` and `settings` name each variable; an unknown command is an error."""
    shown, table = command("", "--help").output, command("", "settings").output
    for variable, _, _ in described(Settings):
        assert variable in shown
        assert variable in table
    assert command("", "nonsense").exit_code == 2
