"""A client that is not ours, knowing nothing but an address: `buf curl`, through reflection."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.house import COORDINATOR, House, built, fresh_name, new_id

BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database) as house:
        yield house


def curl(port: int, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a call answers, or {"error": …}."""
    assert BUF is not None, "buf comes with the dev dependencies"
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", json.dumps(request)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/{method}"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        return {"error": json.loads(done.stderr)}
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def write(name: str) -> dict[str, Any]:
    """A write of the toy ledger, in JSON."""
    return {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"account": name, "amount": 1}}


def prepare(house: House, key: dict[str, str], name: str) -> dict[str, Any]:
    return curl(
        house.ledger.server.port,
        "tandem.v1.ParticipantService/Prepare",
        {
            "key": key,
            "logId": str(house.coordinator.log.log_id()),
            "ttl": "60s",
            "driverDeadline": "7s",
            "writes": [write(name)],
        },
    )


def test_prepares_lists_and_commits(house: House) -> None:
    """Any gRPC client can drive a participant: Prepare, List, Commit, Get."""
    name = fresh_name()
    key = {"coordinator": COORDINATOR, "transactionId": str(new_id())}
    assert prepare(house, key, name)["participant"] == "ledger"
    assert house.ledger.accounts(name) == {name: "prepared"}

    listed = curl(
        house.ledger.server.port,
        "tandem.v1.ParticipantService/ListTransactions",
        {"state": "TRANSACTION_STATE_PREPARED", "coordinator": COORDINATOR},
    )
    assert [t["key"] for t in listed["transactions"]] == [key]

    by = "RESOLVED_BY_COORDINATOR"
    assert curl(house.ledger.server.port, "tandem.v1.ParticipantService/Commit", {"key": key, "resolvedBy": by}) == {}
    found = curl(house.ledger.server.port, "tandem.v1.ParticipantService/GetTransaction", {"key": key})
    assert found["transaction"]["state"] == "TRANSACTION_STATE_COMMITTED"
    assert house.ledger.accounts(name) == {name: "active"}


def test_executes_a_whole_transaction(house: House) -> None:
    """An initiator in any language without a database of its own: Execute, on two participants."""
    name = fresh_name()
    key = {"coordinator": COORDINATOR, "transactionId": str(new_id())}
    answer = curl(
        house.server.port,
        "tandem.v1.CoordinatorService/Execute",
        {"key": key, "branches": [{"participant": p, "writes": [write(name)]} for p in ("ledger", "other")]},
    )
    assert answer["decision"]["decision"] == "DECISION_COMMITTED"
    assert house.ledger.accounts(name) == house.other.accounts(name) == {name: "active"}
    assert house.outcome(UUID(key["transactionId"])) == "committed"


def test_is_told_what_is_wrong(house: House) -> None:
    """An error names the field and the reason, in details that any client can read."""
    answer = prepare(house, {"coordinator": COORDINATOR, "transactionId": "nonsense"}, fresh_name())
    assert answer["error"]["code"] == "invalid_argument"
    details = {d["type"]: base64.b64decode(d["value"] + "==") for d in answer["error"]["details"]}
    assert b"key.transaction_id" in details["google.rpc.BadRequest"]
    assert b"INVALID_REQUEST" in details["google.rpc.ErrorInfo"]
