"""The console tells a real participant what to do: ask now, force; behind a confirmation, with a token nobody sees."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from coordinator.app import App
from coordinator.config import Settings
from coordinator.console.pages import console
from coordinator.console.security import HEADERS, Keys
from tandem.participant.tables import participant_action
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.telling import at_stake
from tests.support.console import SECRET, decide, in_doubt, ordering
from tests.support.house import COORDINATOR, House, built, new_id
from tests.support.ledger import account
from tests.support.rules import counted

ROOT = Path(__file__).parents[2]
TOKEN = "canary-operator-token"
WRONG = "canary-of-another-token"
WHO = {"actor": "ada", "reason": "its database is gone for good"}


@pytest.fixture
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    """`ledger` takes orders; `other` does not."""
    with built(new_database, tokens={"ledger": TOKEN}) as house:
        yield house


@contextmanager
def browsing(house: House, **tokens: str) -> Iterator[TestClient]:
    """A browser at the console of a coordinator that has these tokens."""
    with ordering(house, tokens) as sources:
        app = console(sources, Keys("127.0.0.1", None, "initiator"))
        with TestClient(app, base_url="http://127.0.0.1") as client:
            yield client


@pytest.fixture
def client(house: House, capfd: pytest.CaptureFixture[str]) -> Iterator[TestClient]:
    with browsing(house, ledger=TOKEN) as client:
        yield client
    printed = capfd.readouterr()
    assert "canary" not in printed.out + printed.err


def text(answer: httpx.Response, status: int = 200) -> str:
    """A page as it is read, without its marks. Neither a token nor anything personal is on any."""
    assert answer.status_code == status, answer.text
    assert "canary" not in answer.text + str(answer.headers)
    assert SECRET not in answer.text
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def hidden(answer: httpx.Response) -> dict[str, str]:
    """The hidden fields of the page's form, as a browser sends them back."""
    fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text)
    return {name: re.sub(r"\r?\n", "\r\n", unescape(value)) for name, value in fields}


def deeds(house: House, tx: Any) -> list[tuple[str, str, str, str]]:
    t = participant_action.c
    with house.ledger.engine.connect() as connection:
        rows = connection.execute(sa.select(participant_action).where(t.transaction_id == tx.id).order_by(t.action_id))
        return [(row.action, row.actor, row.detail, row.reason) for row in rows]


def state(house: House, tx: Any) -> str:
    row: Any = house.ledger.row(tx.id)
    return str(row.state)


def tried(client: Any, tx: Any, outcome: str, /, **changed: str) -> httpx.Response:
    """Fills in the first form of a force."""
    path = f"/transactions/{tx.key}/force/ledger"
    answer: httpx.Response = client.post(path, data={**hidden(client.get(path)), **WHO, "outcome": outcome, **changed})
    return answer


def forced(client: Any, tx: Any, page: httpx.Response, **changed: str) -> httpx.Response:
    """Confirms what was tried."""
    answer: httpx.Response = client.post(f"/transactions/{tx.key}/force/ledger/now", data={**hidden(page), **changed})
    return answer


def test_buttons_where_there_is_a_token_and_commands_where_there_is_none(house: House, client: TestClient) -> None:
    """A participant that takes no orders from here is dealt with by its own command line, as ever."""
    tx = in_doubt(house, age_s=60, participants=("ledger", "other"))
    assert "Force, at ledger …" not in text(client.get(f"/transactions/{tx.key}")), "its sweeper has not asked yet"
    house.ledger.make_due(tx.id)
    house.other.make_due(tx.id)
    page = client.get(f"/transactions/{tx.key}")
    seen = text(page)
    assert "Ask now, at ledger …" in seen
    assert "Force, at ledger …" in seen
    assert "Ask now, at other" not in seen
    assert "At other, on its own machine" in seen
    assert "At ledger, on its own machine" not in seen
    assert f"transactions force {tx.key} --outcome aborted" in seen
    for action in ("resolve", "force"):
        assert "no operator token for this participant" in text(
            client.get(f"/transactions/{tx.key}/{action}/other"), 404
        )
        assert "no operator token" in text(client.post(f"/transactions/{tx.key}/{action}/other", data=WHO), 404)


@pytest.mark.parametrize("outcome", ["committed", "aborted"])
def test_a_transaction_is_forced(house: House, client: TestClient, outcome: str) -> None:
    """Which way, who and why; then what it would do and what is lost if it was wrong; only then it is done."""
    tx = in_doubt(house, age_s=60)
    first = client.get(f"/transactions/{tx.key}/force/ledger")
    assert "Force an outcome at ledger?" in text(first)
    for changed, said in (
        ({"actor": " "}, "actor: must have 1 to 500 characters"),
        ({"reason": ""}, "reason: must have 1 to 500 characters"),
        ({"reason": "no"}, "reason: must be at least 3 characters"),
        ({"actor": "a\x1b[2J"}, "actor: must be one line without control characters"),
        ({"outcome": ""}, "outcome: must be committed or aborted"),
        ({"outcome": "prepared"}, "outcome: must be committed or aborted"),
    ):
        assert said in text(tried(client, tx, outcome, **changed), 400)
    before = house.ledger.row(tx.id)
    page = tried(client, tx, outcome, reason='one line and <another> "one"')
    seen = text(page)
    deed = "published" if outcome == "committed" else "discarded"
    assert f"it would be {outcome} by your hand, 1 row {deed}." in seen
    for sentence in at_stake("ledger", outcome, ""):
        assert sentence in seen
    assert house.ledger.row(tx.id) == before
    assert deeds(house, tx) == []

    counter = counted(house.ledger.registry, "tandem_outcomes_total", outcome=outcome, via="operator")
    seen = text(forced(client, tx, page))
    assert "Recorded there. Its sweeper goes on asking for the decision" in seen
    assert "An operator has forced this at ledger" in seen
    assert "Ask now, at ledger" in seen
    assert "Force, at ledger" not in seen
    assert f"transactions close {tx.key}" in seen, "no call does that"
    assert state(house, tx) == outcome
    assert deeds(house, tx) == [("force", "ada", f"{outcome}, 1 rows", 'one line and <another> "one"')]
    assert counted(house.ledger.registry, "tandem_outcomes_total", outcome=outcome, via="operator") == counter + 1

    assert f"is {outcome}: there is nothing of the kind" in text(forced(client, tx, page), 400)
    assert f"is {outcome}: there is nothing of the kind" in text(tried(client, tx, outcome), 400)
    assert len(deeds(house, tx)) == 1


@pytest.mark.parametrize(("forcing", "decision"), [("committed", "committed"), ("aborted", "committed")])
def test_the_decision_is_told_where_there_is_one(house: House, client: TestClient, forcing: str, decision: str) -> None:
    """Forcing the other way splits the transaction for certain: that is said before, and is loud after (R5)."""
    tx = in_doubt(house, age_s=60)
    decide(house, tx)
    page = tried(client, tx, forcing)
    seen = text(page)
    if forcing == decision:
        assert "The decision log says committed, too." in seen
    else:
        assert "this splits the transaction for certain" in seen
    forced(client, tx, page)
    house.ledger.make_due(tx.id)
    house.ledger.sweeper.run_once()
    row: Any = house.ledger.row(tx.id)
    assert (row.confirmed, row.parked) == ((True, None) if forcing == decision else (False, "ALREADY_ABORTED"))
    if forcing != decision:
        assert "ALREADY_ABORTED: it is aborted there, and the decision is committed" in text(client.get("/parked"))


def test_a_decision_that_comes_meanwhile_is_shown_first(house: House, client: TestClient) -> None:
    """What was confirmed without it is not done: the page is shown again, with what it means now."""
    tx = in_doubt(house, age_s=60)
    page = tried(client, tx, "aborted")
    assert "No decision was written so far" in text(page)
    decide(house, tx)
    again = forced(client, tx, page)
    seen = text(again, 400)
    assert "Not done. Meanwhile the decision was written" in seen
    assert "this splits the transaction for certain" in seen
    assert state(house, tx) == "prepared"
    forced(client, tx, again)
    assert state(house, tx) == "aborted"


def test_what_was_changed_by_hand_is_said(house: House, client: TestClient) -> None:
    """Fewer rows than were promised: a person must know before."""
    tx = in_doubt(house, age_s=60)
    with house.ledger.engine.begin() as connection:
        connection.execute(sa.delete(account).where(account.c.transaction_id == tx.id))
    seen = text(tried(client, tx, "committed"))
    assert "0 rows published" in seen
    assert "Beware: 1 row was promised" in seen


def test_a_form_of_elsewhere_forces_nothing(house: House, client: TestClient) -> None:
    """Another deed's signature, another's transaction, what was not tried; another site's form; a GET."""
    tx, other = in_doubt(house, age_s=60), in_doubt(house, age_s=60)
    path = f"/transactions/{tx.key}"
    page = tried(client, tx, "aborted")
    first = hidden(client.get(f"{path}/force/ledger"))["token"]
    for changed in (
        {"token": ""},
        {"token": first},
        {"token": hidden(client.get(f"{path}/resolve/ledger"))["token"]},
        {"token": hidden(tried(client, other, "aborted"))["token"]},
        {"outcome": "committed"},
        {"actor": "grace"},
        {"reason": "another one"},
        {"seen": "aborted"},
    ):
        assert "not made here for this" in text(forced(client, tx, page, **changed), 403), changed
    for token in ("", hidden(page)["token"], hidden(client.get(f"{path}/resolve/ledger"))["token"]):
        assert "not made here for this" in text(tried(client, tx, "aborted", token=token), 403)
        if token != hidden(client.get(f"{path}/resolve/ledger"))["token"]:
            answer = client.post(f"{path}/resolve/ledger", data={**WHO, "token": token})
            assert "not made here for this" in text(answer, 403)
    elsewhere = client.post(
        f"{path}/force/ledger/now", data=hidden(page), headers={"Origin": "http://elsewhere.example"}
    )
    assert "another site" in text(elsewhere, 403)
    assert client.get(f"{path}/force/ledger/now", params=hidden(page)).status_code == 405
    assert state(house, tx) == "prepared"
    assert deeds(house, tx) == []
    assert "Recorded there." in text(forced(client, tx, page))


def test_the_decision_is_asked_for_now(house: House, client: TestClient) -> None:
    """Who and why; then what came of it: left while its driver may be at work, published once it is committed."""
    tx = in_doubt(house)
    path = f"/transactions/{tx.key}/resolve/ledger"
    page = client.get(path)
    assert "Ask for the decision now, at ledger?" in text(page)
    assert "reason: must have 1 to 500" in text(client.post(path, data={**hidden(page), "actor": "ada"}), 400)
    assert deeds(house, tx) == []
    seen = text(client.post(path, data={**hidden(page), **WHO}))
    assert "This came of it: it is undecided, and its driver may still be at work: nothing was changed" in seen
    assert house.outcome(tx.id) is None
    decide(house, tx)
    assert "it was decided committed: published" in text(client.post(path, data={**hidden(page), **WHO}))
    assert (state(house, tx), deeds(house, tx)) == ("committed", [("resolve", "ada", "prepared", WHO["reason"])] * 2)
    assert "is committed: there is nothing" in text(client.post(path, data={**hidden(page), **WHO}), 400)
    for told in ("resolve&answer=%3Cb%3E", "resolve&answer=gone", "nonsense"):
        assert 'role="status"' not in client.get(f"/transactions/{tx.key}?done={told}").text


def test_a_coordinator_that_can_not_be_asked(house: House, client: TestClient) -> None:
    """What the participant heard instead is told."""
    tx = in_doubt(house, age_s=60)
    house.server.drain(0)
    path = f"/transactions/{tx.key}/resolve/ledger"
    seen = text(client.post(path, data={**hidden(client.get(path)), **WHO}))
    assert re.search(r"it could not be ended \((UNAVAILABLE|DEADLINE_PASSED)\): nothing was changed", seen)


def test_what_is_unknown_there_is_not_forced(house: House, client: TestClient) -> None:
    """The participant says so."""

    class Unknown:
        key = f"{COORDINATOR}/{new_id()}"

    assert "nothing is known of this transaction here" in text(tried(client, Unknown, "aborted"), 404)


def test_a_token_that_does_not_fit(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong one, and one for a participant that has none: what to look at is said, the token is not."""
    tx = in_doubt(house, age_s=60, participants=("ledger", "other"))
    with browsing(house, ledger=WRONG, other=TOKEN) as client:
        assert "ledger did not take the operator token" in text(tried(client, tx, "aborted"), 503)
        path = f"/transactions/{tx.key}/resolve/other"
        answer = client.post(path, data={**hidden(client.get(path)), **WHO})
        assert "other takes no orders: it is not configured with an operator token" in text(answer, 503)
    assert state(house, tx) == "prepared"
    assert deeds(house, tx) == []
    printed = capfd.readouterr()
    assert "canary" not in printed.out + printed.err


def test_an_answer_that_got_lost(house: House, client: TestClient) -> None:
    """It may have been done or not: the page does not say that it was not."""
    tx = in_doubt(house, age_s=60)
    page = tried(client, tx, "aborted")
    house.ledger.server.drain(0)
    seen = text(forced(client, tx, page), 503)
    assert "Not known" in seen
    assert "it may have been done or not" in seen
    assert "could not try it" in text(tried(client, tx, "aborted"), 503)


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        ("committed", {"committed": "says committed, too", "aborted": "splits the transaction for certain"}),
        ("aborted", {"committed": "splits the transaction for certain", "aborted": "says aborted, too"}),
        ("", {"committed": "No decision was written.", "aborted": "No decision was written so far"}),
        (None, {"committed": "not known here", "aborted": "not known here"}),
    ],
)
def test_what_is_at_stake(decision: str | None, said: dict[str, str]) -> None:
    """What the log says, what is lost if the decision says otherwise, and what comes then; of another's log, too."""
    for outcome, lost in (("committed", "have to be deleted by hand"), ("aborted", "has to be made again by hand")):
        first, second, third = at_stake("ledger", outcome, decision)
        assert said[outcome] in first
        assert lost in second
        assert "contradiction parks it and pages" in third


# --- the process ------------------------------------------------------------------------------------------------------


def test_a_token_of_nobody_is_refused_at_start(house: House) -> None:
    """A misspelt name would leave its participant without buttons. Which one it is might be a token: it is not said."""
    settings: dict[str, Any] = {
        "name": COORDINATOR,
        "database_url": house.url,
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "participants": {"ledger": "127.0.0.1:1", "other": "127.0.0.1:2"},
        "console_listen": "127.0.0.1:0",
        "operator_tokens": {TOKEN: "ledger-is-its-name"},
    }
    with pytest.raises(ConfigurationError, match="COORDINATOR_OPERATOR_TOKENS names a participant") as caught:
        App(Settings(**settings))
    assert "canary" not in str(caught.value)


def test_a_process_never_shows_its_tokens(house: House) -> None:
    """From the environment to the deed: in no page, and in no line of a log that holds everything."""
    tx, other = in_doubt(house, age_s=60), in_doubt(house, participants=("other",))
    targets = ",".join(f"{name}=127.0.0.1:{member.server.port}" for name, member in house.members.items())
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COORDINATOR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator"],
        env=bare
        | {
            "PYTHONPATH": str(ROOT),
            "COORDINATOR_NAME": COORDINATOR,
            "COORDINATOR_DATABASE_URL": house.url,
            "COORDINATOR_LISTEN": "127.0.0.1:0",
            "COORDINATOR_METRICS_LISTEN": "",
            "COORDINATOR_PARTICIPANTS": targets,
            "COORDINATOR_CONSOLE_LISTEN": "127.0.0.1:0",
            "COORDINATOR_OPERATOR_TOKENS": f"ledger={TOKEN},other={WRONG}",
            "COORDINATOR_LOG_LEVEL": "DEBUG",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        address = re.search(r"console=(\S+)", ready)
        assert address, ready
        with httpx.Client(base_url=address[1], follow_redirects=True) as client:
            assert "Recorded there." in text(forced(client, tx, tried(client, tx, "aborted")))
            path = f"/transactions/{other.key}/resolve/other"
            text(client.post(path, data={**hidden(client.get(path)), **WHO}), 503)
    finally:
        process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=60)
    assert "serving" in printed[1]
    assert "canary" not in ready + "".join(printed)
    assert state(house, tx) == "aborted"
