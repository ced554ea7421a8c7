"""The documents: what they say of the code is true of the code."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2
import pytest
import sqlalchemy as sa
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from uuid_utils.compat import uuid7

import tandem
from tandem.coordinator import MIGRATIONS, DecisionLog, Outcome, Transaction
from tandem.coordinator.deciding import CHECKS, PRIMARY_KEY
from tandem.coordinator.transaction import Decided
from tandem.runtime.database import create_engine
from tandem.runtime.digest import transaction_digest, write_digest, write_digests
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.times import Times
from tests.support.house import entry, fresh_name
from tests.support.ledger import Ledger, account

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()

# --- the pages themselves ---------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of a page, as a link names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links between pages, to files and to headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """`scripts/…`, `tests/…`, `docs/…` and modules of the library."""
    text = page.read_text()
    for name in re.findall(r"`((?:scripts|tests|docs|deploy|protos|tandem)/[\w./-]+)[` ]", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"python -m ([\w.]+)", text):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists() or name in {"venv", "pip"}, name


# --- the manual -------------------------------------------------------------------------------------------------------


def test_the_manual_names_what_is_there() -> None:
    """Each import of the manual works."""
    imports = re.findall(r"^\s*from (tandem\.\w+) import (.+)$", tandem.__doc__ or "", re.MULTILINE)
    assert {module for module, _ in imports} == {"tandem.coordinator", "tandem.participant"}
    for module, names in imports:
        found = __import__(module, fromlist=["*"])
        for name in names.split(", "):
            assert name in found.__all__


def test_importing_tandem_costs_nothing() -> None:
    """The manual is read without the library's dependencies."""
    code = "import sys, tandem; print(sorted({'grpc', 'sqlalchemy', 'google.protobuf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the examples of README.md ----------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The initiator's ORM."""


class User(Base):
    """Its one table."""

    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)


def test_the_examples_of_the_readme_run(
    new_database: Callable[[str], str], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """Each Python block, in order, the participant's first, with the toy ledger in the place of profiles."""
    *initiating, answering, participating = re.findall(r"```python\n(.+?)```", README, re.DOTALL)

    names: dict[str, Any] = {"engine": create_engine(new_database("ledger")), "Ledger": Ledger}
    names["registry"] = CollectorRegistry()
    request.addfinalizer(names["engine"].dispose)
    with names["engine"].begin() as connection:
        connection.execute(sa.schema.CreateSchema("ledger"))
        account.metadata.create_all(connection)
    run(participating, names, {'name="ledger"': 'name="profiles"', "127.0.0.1:50054": "127.0.0.1:0"})
    request.addfinalizer(lambda: names["server"].drain(0))
    assert names["sweeper"].run_once() == 0

    url = new_database("readme")
    engine = create_engine(url)
    request.addfinalizer(engine.dispose)
    MIGRATIONS.upgrade(engine)
    Base.metadata.create_all(engine)
    mine: dict[str, Any] = {
        "engine": engine,
        "insert": sa.insert,
        "users": User.__table__,
        "User": User,
        "psycopg2": psycopg2,
        "url": make_url(url).set(drivername="postgresql").render_as_string(hide_password=False),
    }
    profiles = {"dns:///profiles:50051": names["server"].address}
    people = []
    with Session(engine) as session:
        for example in initiating:
            person, another, user_id = entry(fresh_name()), entry(fresh_name()), uuid7()
            people += [person["account"]] + [another["account"]] * ("another" in example)
            mine.update(person=person, another=another, user_id=user_id, session=session)
            run(example, mine, profiles)
    request.addfinalizer(mine["coordinator"].close)
    mine["another_engine"] = create_engine(url)
    request.addfinalizer(mine["another_engine"].dispose)
    run(answering, mine, {"127.0.0.1:50052": "127.0.0.1:0"})
    request.addfinalizer(lambda: mine["server"].drain(0))
    assert mine["recovery"].run_once() == 0
    assert capsys.readouterr().out == ""
    assert mine["outcome"] is Outcome.COMMITTED
    with names["engine"].connect() as connection:
        states = {row.name: row.state for row in connection.execute(sa.select(account))}
    assert states == dict.fromkeys(people, "active")
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(User)).scalar_one() == len(people) == 5


def run(example: str, names: dict[str, Any], replaced: dict[str, str]) -> None:
    """Executes a block of the page, with other ports."""
    for old, new in replaced.items():
        example = example.replace(old, new)
    exec(compile(example, "README.md", "exec"), names)


# --- docs/configuration.md --------------------------------------------------------------------------------------------


def test_the_settings_are_up_to_date() -> None:
    """The page's tables are what scripts/docs would write."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "_docs.py"), "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_failpoint_is_listed() -> None:
    """All of them, and no other."""
    passed = re.compile(r'"((?:driver|participant|sweeper|coordinator|recovery)\.[a-z_]+)"')
    lines = [
        line
        for path in (ROOT / "tandem").rglob("*.py")
        for line in path.read_text().splitlines()
        if "failpoint(" in line
    ]
    there = {name for line in lines for name in passed.findall(line) if "own failpoints" not in line}
    assert there == set(re.findall(r"`((?:driver|participant|sweeper|coordinator|recovery)\.[a-z_]+)`", CONFIGURATION))


def test_every_crash_of_a_relay_or_consumer_is_listed() -> None:
    """docs/kafka.md has each failpoint of them, and its table no other."""
    of_kafka = re.compile(r"\b((?:relay|consumer|creating|settling|saga)\.[a-z_]+)\b")
    there = {
        name
        for folder in ("tandem/kafka", "identity_stub", "profiles_server")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if "failpoint(" in line
        for name in of_kafka.findall(line)
    }
    assert there
    assert there == set(re.findall(rf"`{of_kafka.pattern}`", (ROOT / "docs" / "kafka.md").read_text()))


def test_the_times_are_the_defaults() -> None:
    """docs/protocol.md gives the defaults, in their order."""
    times = Times()
    assert (
        f"prepare_deadline {times.prepare_deadline_s:g} s + block_timeout {times.block_timeout_s:g} s ="
        f" {times.driver_deadline_s:g} s   <   push_after {times.push_after_s:g} s   <   ttl {times.ttl_s:g} s"
    ) in PROTOCOL


# --- the digest -------------------------------------------------------------------------------------------------------


def vector() -> dict[str, str]:
    """The table of docs/protocol.md: what → hex."""
    rows = re.findall(r"^\| ((?:value|digest|transaction) of .+?) \| `?([^`|]+?)`? \|$", PROTOCOL, re.MULTILINE)
    return {what: hexadecimal.replace("(no bytes)", "") for what, hexadecimal in rows}


def test_the_vector_is_what_the_library_computes() -> None:
    """Each line of it."""
    writes = []
    for text in ("abc", ""):
        write = AnyMessage()
        write.Pack(StringValue(value=text), deterministic=True)
        writes.append(write)
    first, second = writes
    assert vector() == {
        'value of write 1 (`"abc"`)': first.value.hex(),
        'value of write 2 (`""`)': second.value.hex(),
        "digest of write 1": write_digest(first).hex(),
        "digest of write 2": write_digest(second).hex(),
        "transaction of write 1 alone": transaction_digest(write_digests([first])).hex(),
        "transaction of write 1, write 2": transaction_digest(write_digests(writes)).hex(),
    }


def test_the_vector_follows_from_the_layout() -> None:
    """Computed anew by nothing but the page's words: a version byte, lengths of 8 bytes, big-endian."""
    shown = vector()
    type_url = b"type.googleapis.com/google.protobuf.StringValue"
    assert type_url.decode() in PROTOCOL
    digests = []
    for value in (bytes.fromhex(shown['value of write 1 (`"abc"`)']), b""):
        layout = b"\x01" + len(type_url).to_bytes(8, "big") + type_url + len(value).to_bytes(8, "big") + value
        digests.append(hashlib.sha256(layout).digest())
    assert [shown["digest of write 1"], shown["digest of write 2"]] == [digest.hex() for digest in digests]
    assert shown["transaction of write 1, write 2"] == hashlib.sha256(b"".join(digests)).hexdigest()


# --- the SQL of docs/protocol.md --------------------------------------------------------------------------------------


def documented(name: str) -> str:
    """The SQL that follows `<!-- test: name -->`."""
    found = re.search(rf"<!-- test: {name} -->\n```sql\n(.+?)```", PROTOCOL, re.DOTALL)
    assert found is not None
    return found[1]


def words(text: str) -> str:
    """SQL without its line breaks."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def engine(new_database: Callable[[str], str]) -> Iterator[Engine]:
    """A decision log."""
    engine = create_engine(new_database("docs"))
    MIGRATIONS.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def log(engine: Engine) -> DecisionLog:
    """The driver's view of it."""
    return DecisionLog(engine, Times())


def execute(engine: Engine, name: str, *values: object) -> list[tuple[Any, ...]]:
    """Runs documented SQL with `$1, $2, …` in a local transaction of its own, by a plain driver."""
    text = documented(name).replace("%", "%%")
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute(
            re.sub(r"\$(\d)", r"%(p\1)s", text), {f"p{i}": str(value) for i, value in enumerate(values, start=1)}
        )
        rows = list(cursor.fetchall()) if cursor.description else []
        raw.commit()
    finally:
        raw.close()
    return rows


def decision(transaction_id: UUID, participants: dict[str, str]) -> list[str]:
    """`$2` to `$6` of the deciding INSERT, made as the page says."""
    document = json.dumps(participants).replace('"', '\\"')
    names = ",".join(f'\\"{name}\\"' for name in participants)
    values = ["identity", str(transaction_id), str(transaction_id.int >> 80), document, f"{{{names}}}"]
    return [f'{{"{value}"}}' for value in values]


def test_the_insert_is_the_drivers(log: DecisionLog) -> None:
    """Word for word what `tx.decision_sql()` gives, and with the same parameters."""
    write = AnyMessage()
    write.Pack(StringValue(value="abc"), deterministic=True)
    tx = Transaction(
        TransactionKey("identity", uuid7()),
        {"profiles": [write]},
        log_id=log.log_id(),
        own_id=True,
        finish=lambda _: Outcome.ABORTED,
    )
    tx.decision = log.decide([tx.deciding], log_id=tx.log_id)
    text, parameters = tx.decision_sql(paramstyle="numeric_dollar")
    assert words(documented("decide")) == words(text)
    log_id, *deciding = parameters.values()
    assert log_id == str(log.log_id())
    digest = vector()["transaction of write 1 alone"]
    assert deciding == decision(tx.id, {"profiles": digest})


def test_the_insert_decides(engine: Engine, log: DecisionLog) -> None:
    """An initiator that follows the page: the driver's log agrees, the fence comes too late, the mark is taken."""
    id_ = uuid7()
    key = TransactionKey("identity", id_)
    digest = vector()["transaction of write 1 alone"]
    execute(engine, "decide", log.log_id(), *decision(id_, {"profiles": digest, "other": digest}))
    execute(engine, "fence", "identity", id_, id_.int >> 80)
    assert execute(engine, "read", "identity", id_) == [("committed", {"profiles": digest, "other": digest})]
    execute(engine, "mark", "identity", id_, "other")
    looked = log.look([key], fence=True)[key]
    assert isinstance(looked, Decided)
    assert (looked.outcome, looked.undelivered) == (Outcome.COMMITTED, ("profiles",))


def test_the_fence_comes_first(engine: Engine, log: DecisionLog) -> None:
    """A fence, written as the page says, makes the INSERT fail by the constraint that the page names."""
    id_ = uuid7()
    execute(engine, "fence", "identity", id_, id_.int >> 80)
    assert execute(engine, "read", "identity", id_) == [("aborted", {})]
    assert violated(engine, log.log_id(), id_) == PRIMARY_KEY
    assert log.look([TransactionKey("identity", id_)], fence=False) == {
        TransactionKey("identity", id_): Decided(Outcome.ABORTED)
    }


def test_the_fence_of_the_page_keeps_to_the_line(engine: Engine, log: DecisionLog) -> None:
    """R14: of an id that is too old, or ahead, nothing is written; where the line is, is the log's own."""
    day, retention = 86_400_000, 30 * 86_400_000
    for shift, written in ((-retention - day, 0), (2 * day, 0), (-retention + 2 * day, 1)):
        fresh = uuid7().int
        id_ = UUID(int=fresh + (shift << 80))
        execute(engine, "fence", "identity", id_, id_.int >> 80)
        assert len(execute(engine, "read", "identity", id_)) == written


def test_the_constraints_are_those_of_the_page(engine: Engine, log: DecisionLog) -> None:
    """Another log, an id too old, an id from the future."""
    shift = 40 * 86_400_000 << 80
    now = uuid7()
    assert violated(engine, uuid7(), now) == "decision_check_wrong_log"
    assert violated(engine, log.log_id(), UUID(int=now.int - shift)) == "decision_check_expired"
    assert violated(engine, log.log_id(), UUID(int=now.int + shift)) == "decision_check_ahead"
    quick = create_engine(engine.url.update_query_dict({"options": "-c synchronous_commit=off"}))
    assert violated(quick, log.log_id(), now) == "decision_check_not_durable"
    quick.dispose()
    assert set(re.findall(r"`(decision_(?:check_\w+|pkey))`", PROTOCOL)) == {*CHECKS, PRIMARY_KEY}


def violated(engine: Engine, log_id: UUID, id_: UUID) -> str:
    """The constraint by which the INSERT fails."""
    with pytest.raises(psycopg2.IntegrityError) as raised:
        execute(engine, "decide", log_id, *decision(id_, {"profiles": "00" * 32}))
    return str(raised.value.diag.constraint_name)
