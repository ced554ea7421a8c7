"""The console as an operator's browser meets it, over a real house: what it shows, what it does, whom it turns away."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html import unescape
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx2 as httpx
import pytest
import sqlalchemy as sa
import structlog
from starlette.applications import Starlette
from starlette.testclient import TestClient
from structlog.testing import LogCapture

from coordinator.app import App
from coordinator.config import Settings
from coordinator.console import facts, serving
from coordinator.console.pages import console
from coordinator.console.security import HEADERS, MAX_BODY_BYTES, Keys
from coordinator.console.serving import AT_ONCE, serve_console
from tandem.coordinator.tables import coordinator_action
from tandem.runtime.errors import ConfigurationError
from tests.support.console import SECRET, in_doubt, parked, served, sources_of, undelivered
from tests.support.house import COORDINATOR, House, built, new_id
from tests.support.rules import eventually

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database) as house:
        yield house


def unlocked(house: House) -> Starlette:
    """The console without a token."""
    return console(sources_of(house), Keys("127.0.0.1", None, COORDINATOR))


@pytest.fixture
def client(house: House) -> Iterator[TestClient]:
    with TestClient(unlocked(house), base_url="http://127.0.0.1") as client:
        yield client


def text(answer: httpx.Response, status: int = 200) -> str:
    """A page as it is read, without its marks. Nothing personal is on any."""
    assert answer.status_code == status, answer.text
    assert SECRET not in answer.text
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "<script" not in answer.text
    assert " style=" not in answer.text
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def form_token(answer: httpx.Response) -> str:
    match = re.search(r'name="token" value="(\w+)"', answer.text)
    assert match is not None
    return match[1]


def actions(house: House) -> list[tuple[str, str, str, str]]:
    a = coordinator_action.c
    with house.engine.connect() as connection:
        rows = connection.execute(sa.select(a.action, a.actor, a.detail, a.reason).order_by(a.action_id))
        return [(row.action, row.actor, row.detail, row.reason) for row in rows]


# --- looking ----------------------------------------------------------------------------------------------------------


def test_an_overview_of_nothing(client: TestClient) -> None:
    """Zeros, not blanks; no percentile of nothing."""
    seen = text(client.get("/"))
    assert "ledger 0 none 0 0" in seen
    assert "Decisions not acknowledged 0" in seen
    assert "p50 none ended" in seen


def test_an_overview(house: House, client: TestClient) -> None:
    """What is in doubt at each participant, what is not delivered, what is parked, and how it has gone lately."""
    stuck = in_doubt(house, age_s=200, participants=("ledger", "other"))
    waiting = undelivered(house)
    parked(house)
    done = in_doubt(house)
    done.finish()
    seen = text(client.get("/"))
    assert f"ledger 3 {stuck.key} , 3 minutes 0 0" in seen
    assert f"other 1 {stuck.key} , 3 minutes 0 0" in seen
    assert "Decisions not acknowledged 2" in seen
    assert "of them parked: they wait for a person 1" in seen
    assert "1 to 10 minutes 2" in seen
    assert "aborted the initiator's own driver 1" in seen
    assert re.search(r"p50 [\d,.]+ m?s, p99 [\d,.]+ m?s", seen)
    house.recovery.run_once()
    assert "committed recovery 1" in text(client.get("/"))
    assert str(waiting.key) not in text(client.get("/undelivered"))


def test_a_participant_that_does_not_answer(house: House, client: TestClient) -> None:
    """It is shown as such, and holds up nothing else: a stopped one, and one that takes calls and never answers."""
    in_doubt(house, age_s=200, participants=("ledger", "other"))
    house.other.server.drain(0)
    with socket.create_server(("127.0.0.1", house.other.server.port)):
        seen = text(client.get("/"))
        assert "ledger 1" in seen
        assert "other did not answer in time" in seen
        assert "other: not known, since it did not answer in time." in seen
        assert "other did not answer in time" in text(client.get("/in-doubt"))
        assert "other did not answer in time" in text(client.get("/parked"))


def test_lists_have_filters_and_pages(house: House, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each filter keeps what it says; following the links shows each transaction once."""
    monkeypatch.setattr("coordinator.console.pages.PAGE_SIZE", 2)
    old = in_doubt(house, age_s=200)
    there = in_doubt(house, participants=("other",))
    found = [undelivered(house) for _ in range(5)]
    for path, expected in (("/undelivered?participant=ledger", found), ("/in-doubt?participant=ledger", [old, *found])):
        seen: list[str] = []
        link = path
        for _ in range(4):
            page = client.get(link)
            seen += re.findall(r'href="/transactions/([^"/]+/[^"/]+)"', page.text)
            following = re.search(r'rel="next" href="([^"]+)"', page.text)
            if following is None:
                break
            link = unescape(following[1])
        assert seen == [str(tx.key) for tx in expected], path
    assert "none" in text(client.get("/undelivered?participant=other"))
    only = text(client.get("/in-doubt?older_than=3m"))
    assert str(old.key) in only
    assert str(there.key) not in only
    assert "not in the configuration" in text(client.get("/in-doubt?participant=nobody"))
    assert "like 90s, 5m" in text(client.get("/in-doubt?older_than=soon"), 400)
    assert "page_token" in text(client.get("/undelivered?page=nonsense"), 400)


def test_what_is_parked(house: House, client: TestClient) -> None:
    """Deliveries, and what a participant has parked by itself, with what that means."""
    delivery, there, other = parked(house), in_doubt(house), in_doubt(house)
    house.ledger.set(there.id, parked="expired", next_attempt_at=None)
    seen = text(client.get("/parked"))
    assert f"{delivery.key} less than a second ago" in seen or f"{delivery.key} " in seen
    assert "the participant knows nothing of what it had promised" in seen
    assert f"{there.key} " in seen
    assert "no decision was written, and its id is too old for one" in seen
    assert str(other.key) not in seen


def test_a_story(house: House, client: TestClient) -> None:
    """One transaction on both sides, in sentences and on a time line; what can be done, and why not with a button."""
    tx = undelivered(house)
    seen = text(client.get(f"/transactions/{tx.key}"))
    assert "committed, in the initiator's local commit" in seen
    assert "ledger has not acknowledged it: recovery delivers it" in seen
    order = ["the initiator began", "ledger prepared: 1 row staged", "the decision log decided: committed", "to come:"]
    places = [seen.index(step) for step in order]
    assert places == sorted(places)
    assert "Retry the delivery now" in seen
    assert f"transactions resolve {tx.key} --actor" in seen
    assert "without its operator token there is no button here" in seen
    assert "transactions force" not in seen, "its sweeper has not asked yet"
    house.ledger.make_due(tx.id)
    seen = text(client.get(f"/transactions/{tx.key}"))
    assert f"transactions force {tx.key} --outcome committed" in seen

    undecided = in_doubt(house)
    seen = text(client.get(f"/transactions/{undecided.key}"))
    assert "No decision was written for it: it is not committed." in seen
    assert f"transactions resolve {undecided.key}" in seen
    assert "Retry the delivery now" not in seen
    house.recovery.run_once()
    assert "Nothing needs to be." in text(client.get(f"/transactions/{tx.key}"))
    assert "knows nothing of it" in text(client.get(f"/transactions/{COORDINATOR}/{new_id()}"), 404)
    assert "coordinator/transaction_id" in text(client.get("/transactions/x/y"), 400)
    assert "no UUIDv7" in text(client.get(f"/transactions/{COORDINATOR}/{uuid4()}"), 400)
    assert "coordinator/transaction_id" in text(client.get(f"/transactions/%3Cscript%3E/{new_id()}"), 400)
    assert "There is no such page" in text(client.get("/elsewhere"), 404)


def test_a_transaction_is_found_by_its_name(client: TestClient) -> None:
    """With the coordinator's name or without."""
    id_ = new_id()
    for typed in (f"{COORDINATOR}/{id_}", f" {id_} "):
        found = client.get(f"/find?transaction={quote(typed)}", follow_redirects=False)
        assert (found.status_code, found.headers["location"]) == (303, f"/transactions/{COORDINATOR}/{id_}")
    assert "coordinator/transaction_id" in text(client.get("/find?transaction=//evil.example"), 400)


# --- acting -----------------------------------------------------------------------------------------------------------


def test_a_delivery_is_retried(house: House, client: TestClient) -> None:
    """Behind a confirmation with who and why, both kept; then recovery delivers it."""
    tx = parked(house)
    house.ledger.set(tx.id, parked=None)
    path = f"/transactions/{tx.key}/retry"
    page = client.get(path)
    assert "Retry the delivery now?" in text(page)
    asked = {"token": form_token(page), "actor": "ada", "reason": "it was restored"}
    for missing in ("actor", "reason"):
        seen = text(client.post(path, data={**asked, missing: " "}), 400)
        assert f"{missing}: must have 1 to 500 characters" in seen
    assert actions(house) == []
    seen = text(client.post(path, data=asked))
    assert "Recorded. It is due: the next recovery delivers it." in seen
    assert "ada did `retry` (ledger) by hand at" in seen
    assert actions(house) == [("retry", "ada", "ledger", "it was restored")]
    assert house.recovery.run_once() == 1
    assert "Nothing is left to do." in text(client.get(f"/transactions/{tx.key}"))
    assert "nothing undelivered and nothing parked" in text(client.post(path, data=asked), 400)


def test_a_parked_delivery_is_closed(house: House, client: TestClient) -> None:
    """The decision stays what it is; what is not parked can't be closed."""
    tx = parked(house)
    assert "Close the parked delivery to ledger" in text(client.get(f"/transactions/{tx.key}"))
    path = f"/transactions/{tx.key}/close/ledger"
    page = client.get(path)
    assert "never rewritten" in text(page)
    asked = {"token": form_token(page), "actor": "ada", "reason": "opened by hand"}
    assert "Recorded. The delivery is given up" in text(client.post(path, data=asked))
    assert actions(house) == [("close", "ada", "ledger: TRANSACTION_UNKNOWN", "opened by hand")]
    assert house.outcome(tx.id) == "committed"
    assert "no parked delivery" in text(client.post(path, data=asked), 400)


def test_a_form_of_elsewhere_does_nothing(house: House, client: TestClient) -> None:
    """Another deed's signature, another transaction's, none; another site's form; a GET; a form that is too large."""
    tx, other = undelivered(house), undelivered(house)
    path = f"/transactions/{tx.key}/retry"
    asked = {"actor": "ada", "reason": "because", "token": form_token(client.get(path))}
    for token in (
        "",
        "no-ascii-é",
        form_token(client.get(f"/transactions/{other.key}/retry")),
        form_token(client.get(f"/transactions/{tx.key}/close/ledger")),
    ):
        assert "not made here for this" in text(client.post(path, data={**asked, "token": token}), 403)
    for headers in ({"Origin": "http://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert "another site" in text(client.post(path, data=asked, headers=headers), 403)
    assert "too large" in text(client.post(path, data={**asked, "reason": "x" * MAX_BODY_BYTES}), 413)
    assert "is none" in text(client.post(path, content=b"\xff\xfe=\xff"), 413)
    client.get(f"{path}?actor=ada&reason=because&token={asked['token']}")
    assert actions(house) == []
    assert client.post(path, data=asked, headers={"Origin": "http://127.0.0.1"}).status_code == 200
    assert len(actions(house)) == 1


# --- coming in --------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(house: House) -> Iterator[TestClient]:
    keys = Keys("0.0.0.0", TOKEN, COORDINATOR)
    app = console(sources_of(house), keys)
    with TestClient(app, base_url="http://console.example", follow_redirects=False) as client:
        yield client


def test_with_a_token(locked: TestClient) -> None:
    """Nothing is seen without it; a client brings it in a header."""
    for path in ("/", "/undelivered", f"/transactions/{COORDINATOR}/{new_id()}", "/find?transaction=x"):
        refused = locked.get(path)
        assert (refused.status_code, refused.headers["location"]) == (303, "/login")
    assert locked.post("/logout").status_code == 401
    for token in ("wrong", "", TOKEN[:-1], f"{TOKEN}x", "é"):
        assert locked.get("/", headers={"Authorization": f"Bearer {token}".encode()}).status_code == 401, token
    assert locked.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert locked.get("/static/console.css").status_code == 200


def test_a_login(locked: TestClient) -> None:
    """The form gives a cookie that no script reads and no other site's request carries; logging out takes it back."""
    assert "The console's token" in text(locked.get("/login"))
    wrong = locked.post("/login", data={"token": "wrong"})
    assert "That is not the token." in text(wrong, 401)
    assert "set-cookie" not in wrong.headers
    opened = locked.post("/login", data={"token": TOKEN})
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie, "a browser would not send it by http"
    assert TOKEN not in cookie
    assert "Log out" in text(locked.get("/"))
    assert locked.post("/logout").status_code == 303
    assert locked.get("/").status_code == 303
    locked.cookies.set(f"tandem_console_{COORDINATOR}", "made-up")
    assert locked.get("/").status_code == 303


def opened_by(house: House, cookie: str, keys: Keys) -> bool:
    """Whether that cookie opens a console with those keys."""
    with TestClient(console(sources_of(house), keys), base_url="http://console.example") as client:
        answer = client.get("/", headers={"Cookie": cookie}, follow_redirects=False)
        assert answer.status_code in (200, 303)
        return answer.status_code == 200


def test_replicas_take_each_others_cookies_and_forms(house: House, locked: TestClient) -> None:
    """Behind a load balancer any of them may be asked next. Another token's or coordinator's opens nothing."""
    cookie = locked.post("/login", data={"token": TOKEN}).headers["set-cookie"].partition(";")[0]
    replica = Keys("0.0.0.0", TOKEN, COORDINATOR)
    assert opened_by(house, cookie, replica)
    assert not opened_by(house, cookie, Keys("0.0.0.0", f"{TOKEN}2", COORDINATOR))
    another = Keys("0.0.0.0", TOKEN, "another")
    assert not opened_by(house, cookie, another)
    assert not opened_by(house, f"{another.cookie}={cookie.partition('=')[2]}", another)

    tx = parked(house)
    path = f"/transactions/{tx.key}/retry"
    asked = {"token": form_token(locked.get(path)), "actor": "ada", "reason": "because"}
    with TestClient(console(sources_of(house), replica), base_url="http://console.example") as other:
        done = other.post(path, data=asked, headers={"Cookie": cookie}, follow_redirects=False)
    assert (done.status_code, len(actions(house))) == (303, 1)


def test_two_consoles_of_one_host(locked: TestClient) -> None:
    """Logging in to one does not log out of the other: a browser tells hosts, not ports."""
    locked.post("/login", data={"token": TOKEN})
    locked.cookies.set("tandem_console_another", "another's")
    assert locked.get("/").status_code == 200


def test_without_a_token_the_secret_is_the_process_own() -> None:
    """Nothing that is known could make it."""
    one, other = (Keys("127.0.0.1", None, COORDINATOR) for _ in range(2))
    assert one.is_signed("x", one.sign("x"))
    assert not one.is_signed("x", other.sign("x"))


@pytest.mark.parametrize(("proxy", "secure"), [("https", True), ("HTTPS, http", True), ("http", False), ("", False)])
def test_a_cookie_given_by_https_stays_there(locked: TestClient, proxy: str, secure: bool) -> None:
    """A proxy says how it was asked."""
    headers = {"X-Forwarded-Proto": proxy}
    given = locked.post("/login", data={"token": TOKEN}, headers=headers).headers["set-cookie"]
    assert ("secure" in given.lower().split("; ")) is secure
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    taken = locked.post("/logout", headers={**headers, **bearer}).headers["set-cookie"]
    assert ("secure" in taken.lower().split("; ")) is secure


def test_without_a_token_only_loopback_is_answered(house: House) -> None:
    """A page elsewhere that points its own name at 127.0.0.1 gets nothing."""
    app = unlocked(house)
    for host, status in (
        ("127.0.0.1:80", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("", 421),
    ):
        with TestClient(app, base_url="http://127.0.0.1") as client:
            assert client.get("/login", headers={"Host": host}).status_code == status, host


def test_where_anybody_could_come_in_it_does_not_start(house: House) -> None:
    """Another host than loopback needs a token, and one that can't be tried out; an address must be one."""
    for listen, token, said in (
        ("0.0.0.0:0", None, "set COORDINATOR_CONSOLE_TOKEN"),
        ("[::]:0", None, "set COORDINATOR_CONSOLE_TOKEN"),
        ("127.0.0.1:0", "short", "at least 16 characters"),
        ("nonsense", None, "must be host:port"),
        (":80", TOKEN, "must be host:port"),
        ("127.0.0.1:99999", None, "must be host:port"),
        ("192.0.2.1:0", TOKEN, "can't listen on"),
    ):
        with ExitStack() as stack, pytest.raises(ConfigurationError, match=said):
            serve_console(listen, token, sources_of(house), stack)


def test_an_error_says_nothing_of_what_it_holds(
    house: House, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a bug nor a database that is gone shows its text; both keep the headers."""

    def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(facts, "overview", broken)
    assert "An internal error: see the log." in text(client.get("/"), 500)
    with house.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE twophase.decision RENAME TO elsewhere"))
    assert client.get("/undelivered").status_code in (500, 503)


# --- the process ------------------------------------------------------------------------------------------------------


def test_it_is_served_beside_the_grpc_server_and_ends_with_the_process(house: House) -> None:
    """Off unless it is asked for; where it is, over its own connections, until the process stops."""
    participants = {name: f"127.0.0.1:{member.server.port}" for name, member in house.members.items()}
    settings = {
        "name": COORDINATOR,
        "database_url": house.url,
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "participants": participants,
        "drain_s": 0,
    }
    silent = App(Settings(**settings))  # type: ignore[arg-type]
    assert silent.console_address == ""
    silent.stop()
    app = App(Settings(**settings, console_listen="127.0.0.1:0"))  # type: ignore[arg-type]
    try:
        answer = httpx.get(app.console_address)
        assert "In doubt now" in text(answer)
        assert "server" not in answer.headers
    finally:
        app.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(app.console_address)


def hung_up(connection: socket.socket) -> bool:
    """Waits for the end of it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_silent_connections_do_not_keep_others_out(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number is kept, each for a limited time, also one that sends its form byte by byte."""
    monkeypatch.setattr(serving, "CONNECTION_S", 3.0)
    with served(house) as address, ExitStack() as stack:
        port = urlsplit(address).port
        before = descriptors()

        def connected() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))

        kept = [connected() for _ in range(AT_ONCE)]
        eventually(lambda: descriptors() == before + 3 * AT_ONCE)
        kept[0].sendall(b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nt")
        turned_away = [connected() for _ in range(3 * AT_ONCE)]
        assert all(hung_up(one) for one in turned_away)
        assert all(hung_up(one) for one in kept)
        for one in (*kept, *turned_away):
            one.close()
        eventually(lambda: answers(address))
        assert httpx.get(f"{address}/login").headers["connection"] == "close"
        eventually(lambda: descriptors() == before)


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/login").status_code == 200
    except httpx.TransportError:
        return False


def test_silent_connections_are_no_load(house: House) -> None:
    """With room for one more, that one is answered."""
    with served(house) as address, ExitStack() as stack:
        where = ("127.0.0.1", urlsplit(address).port)
        before = descriptors()
        for _ in range(AT_ONCE - 1):
            stack.enter_context(socket.create_connection(where, timeout=20))
        eventually(lambda: descriptors() == before + 3 * (AT_ONCE - 1))
        assert httpx.get(f"{address}/login").status_code == 200


def test_without_descriptors_it_says_so_without_a_traceback(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, without anybody's address; then it serves again."""
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.05)
    capture, level = LogCapture(), structlog.make_filtering_bound_logger(0)
    monkeypatch.setattr(serving, "log", structlog.wrap_logger(None, [capture], wrapper_class=level))
    with served(house) as address:
        where = ("127.0.0.1", urlsplit(address).port)
        accept = socket.socket.accept
        failing = threading.Event()
        failed = threading.Semaphore(0)

        def none_left(listening: socket.socket) -> tuple[socket.socket, object]:
            if failing.is_set() and listening.getsockname() == where:
                failed.release()
                raise OSError(errno.EMFILE, SECRET)
            return accept(listening)

        monkeypatch.setattr(socket.socket, "accept", none_left)
        failing.set()
        with socket.create_connection(where, timeout=20):
            assert failed.acquire(timeout=20)
            assert failed.acquire(timeout=20)
            failing.clear()
            assert httpx.get(f"{address}/login", timeout=20).status_code == 200
    assert caplog.records == []
    said = {"event": "console: the system has no room for a further connection", "log_level": "error"}
    assert capture.entries == [said]


def test_a_taken_port_is_said(house: House) -> None:
    """One sentence at start, not a traceback later."""
    with served(house) as address, ExitStack() as stack, pytest.raises(ConfigurationError, match="another process"):
        serve_console(address.removeprefix("http://"), None, sources_of(house), stack)


# --- sums -------------------------------------------------------------------------------------------------------------


def test_what_began_long_ago_is_not_of_the_last_hour(house: House) -> None:
    """The window is the time in the id."""
    house.coordinator.prepare({"ledger": [facts_entry()]}, transaction_id=new_id(age_s=7_200)).finish()
    house.coordinator.prepare({"ledger": [facts_entry()]}, transaction_id=new_id(age_s=1_800)).finish()
    seen = facts.overview(sources_of(house))
    ledger = next(one for one in seen.participants if one.name == "ledger")
    assert ledger.lately is not None
    assert (ledger.lately.window_s, sum(ledger.lately.ended.values())) == (3_600, 1)


def test_too_many_for_the_hour(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the window shrinks, and the page says so."""
    monkeypatch.setattr(facts, "LOOKED_AT", 2)
    monkeypatch.setattr(facts.held_at, "__kwdefaults__", {**facts.held_at.__kwdefaults__, "size": 2})
    for age_s in (1_800, 1_800, 60):
        house.coordinator.prepare({"ledger": [facts_entry()]}, transaction_id=new_id(age_s=age_s)).finish()
    with TestClient(unlocked(house), base_url="http://127.0.0.1") as client:
        seen = text(client.get("/"))
    assert "ledger: begun in the last 5 minutes, and ended" in seen
    assert "other: begun in the last hour, and ended" in seen
    assert "More than 2 began in the last hour, so this is all of the last 5 minutes only." in seen
    assert "no p99 is shown: the metric tandem_in_doubt_seconds and the dashboard have it" in seen
    assert re.search(r"p50 [\d,.]+ m?s\. More than 2", seen)
    assert seen.count("p99 none ended") == 1, "of the other, which has the whole hour"
    seen_by = {one.name: one.lately for one in facts.overview(sources_of(house)).participants}
    assert seen_by["ledger"] is not None
    assert seen_by["ledger"].p50_s is not None
    assert seen_by["ledger"].p99_s is None


def facts_entry() -> object:
    from tests.support.house import entry, fresh_name

    return entry(fresh_name(SECRET))


@pytest.mark.parametrize(("values", "percent", "expected"), [
    ([], 50, None), ([3], 50, 3), ([1, 2], 50, 1), ([1, 2, 3], 50, 2), (list(range(1, 101)), 99, 99), ([5, 1], 99, 5),
])  # fmt: skip
def test_percentiles(values: list[float], percent: float, expected: float | None) -> None:
    """By the nearest rank, so that each is a value that was measured."""
    assert facts.percentile(values, percent) == expected


def test_histograms() -> None:
    """Bounds belong to the older bar; clocks that differ make nobody fail."""
    bars = facts.histogram([-1, 0, 9.9, 10, 60, 86_400, 1e9])
    assert [bar.count for bar in bars] == [3, 1, 1, 0, 0, 2]
    assert bars[0].share == 1
    assert facts.histogram([])[0].share == 0
