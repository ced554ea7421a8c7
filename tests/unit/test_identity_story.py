"""What explain says in each situation, sentence by sentence: honest about what is known and who acts next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from identity_stub.requests import Stored
from identity_stub.story import Branch, Decision, Story

BEGAN = datetime(2026, 5, 1, 10, 0, 0, 0, UTC)
ID = UUID("0190a5a0-0000-7000-8000-000000000000")
STORED = Stored("anonymous", "r-1", "sign_up", None, None, None, ID, BEGAN)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


COMMITTED = Decision("committed", at(0.012), 0, None, "")
DONE = Branch(
    "profiles",
    listed=True,
    acknowledged=True,
    state="committed",
    rows=3,
    prepared_at=at(0.005),
    resolved_at=at(0.022),
    resolved_by="coordinator",
)
PREPARED = Branch(
    "profiles", listed=True, state="prepared", rows=3, confirmed=False, prepared_at=at(0.005), asks_at=at(60)
)
STORY = Story(
    "identity",
    at(30),
    "opening",
    request=STORED,
    transaction_id=ID,
    began_at=BEGAN,
    decision=COMMITTED,
    branches=[DONE],
)


def told(story: Story, **changes: object) -> str:
    return "\n".join(replace(story, **changes).sentences())  # type: ignore[arg-type]


def test_committed_and_delivered() -> None:
    """The whole of it, in order."""
    assert STORY.sentences() == [
        "opening",
        f"Its transaction is identity/{ID}, begun at 2026-05-01 10:00:00.000 UTC by the initiator's clock.",
        "It was decided at 2026-05-01 10:00:00.012 UTC, 12 ms after it began: committed, in the same local commit as"
        " its account.",
        "profiles staged 3 rows at 2026-05-01 10:00:00.005 UTC and made them visible 17 ms later; the outcome was"
        " brought by the initiator's own driver.",
        "Nothing is left to do.",
    ]


def test_who_brought_it() -> None:
    """Each of the six, by name."""
    for by, words in {
        "recovery": "recovery",
        "sweeper": "the sweeper there",
        "operator": "an operator, by force",
    }.items():
        assert f"brought by {words}." in told(STORY, branches=[replace(DONE, resolved_by=by)])


def test_undelivered() -> None:
    """It is invisible still; recovery, a reader and the sweeper will each do."""
    waiting = replace(COMMITTED, attempts=3, next_attempt_at=at(33), last_error="UNAVAILABLE")
    text = told(STORY, decision=waiting, branches=[PREPARED])
    assert "profiles holds 3 rows prepared since 2026-05-01 10:00:00.005 UTC (30.0 s): promised, and invisible" in text
    assert (
        "recovery delivers it at 2026-05-01 10:00:33.000 UTC at the latest; the last attempt failed: UNAVAILABLE (3"
        " attempts so far)."
    ) in text
    assert (
        "A reader who meets it there makes it visible at once; so does the sweeper there, from 2026-05-01 10:01:00.000"
        " UTC on."
    ) in text
    assert "Nothing is left" not in text


def test_acknowledgement_lost() -> None:
    """It is visible, but nobody has noted it: recovery repeats it, which changes nothing."""
    text = told(STORY, decision=replace(COMMITTED, next_attempt_at=at(1)), branches=[replace(DONE, acknowledged=False)])
    assert "recovery delivers it as soon as it runs. It is visible there already, so that changes nothing." in text


def test_parked() -> None:
    """A person must look, whichever side has parked it."""
    text = told(STORY, branches=[replace(DONE, acknowledged=False, parked="ALREADY_ABORTED", state="aborted")])
    assert "That contradicts what is known here: a person must look at profiles." in text
    assert "The delivery to profiles is parked (ALREADY_ABORTED)" in text
    text = told(STORY, decision=None, request=None, branches=[replace(PREPARED, parked_there="EXPIRED")])
    assert "profiles has parked it (EXPIRED)" in text
    assert "ends it" not in text


def test_never_decided() -> None:
    """In doubt: it is not committed, and it is aborted when the sweeper asks."""
    text = told(STORY, decision=None, request=None, branches=[PREPARED])
    assert "No decision was written for it: it is not committed." in text
    assert (
        "The sweeper there asks for the decision from 2026-05-01 10:01:00.000 UTC on and ends it: if it is undecided"
        " still, it is aborted."
    ) in text
    late = told(STORY, now=at(61), decision=None, request=None, branches=[PREPARED])
    assert "asks for the decision with its next sweep and ends it" in late


def test_aborted() -> None:
    """Fenced, discarded, nothing left; or an Abort that came before anything."""
    fenced = Decision("aborted", at(61), 0, None, "")
    gone = replace(DONE, listed=False, acknowledged=False, state="aborted", resolved_by="sweeper", resolved_at=at(61))
    text = told(STORY, request=None, decision=fenced, branches=[gone])
    assert "aborted, so that it can never commit" in text
    assert "discarded them 61.0 s later; the outcome was brought by the sweeper there." in text
    assert text.endswith("Nothing is left to do.")
    buried = told(STORY, request=None, decision=fenced, branches=[replace(gone, tombstone=True)])
    assert "profiles was told to abort it before anything was staged" in buried
    held = told(STORY, request=None, decision=fenced, branches=[replace(PREPARED, listed=False)])
    assert "ends it." in held


def test_unknown_and_unreachable() -> None:
    """What can't be said is not said."""
    nobody = Branch("profiles")
    text = told(STORY, request=None, decision=None, branches=[nobody])
    assert "profiles knows nothing of it." in text
    assert text.endswith("Nothing is left to do.")
    purged = told(STORY, request=None, decision=None, branches=[nobody], expired=True)
    assert "if there was one, it has been purged" in purged
    assert "not committed" not in purged
    away = told(STORY, request=None, decision=None, branches=[replace(nobody, trouble="UNAVAILABLE")])
    assert "profiles could not be asked what it holds (UNAVAILABLE)." in away
    assert away.endswith("Whether anything is left to do can be said when it can be asked.")
    known = told(STORY, branches=[replace(DONE, trouble="UNAVAILABLE", state="")])
    assert known.endswith("Nothing is left to do.")


def test_purged() -> None:
    """The account outlives the decision, and the decision what the participant knows."""
    text = told(STORY, decision=None, branches=[Branch("profiles")])
    assert "It was committed at 2026-05-01 10:00:00.000 UTC, or its account would not be here." in text
    assert "contradicts" in told(STORY, decision=None, branches=[PREPARED])
    assert "profiles has acknowledged it and no longer knows it" in told(
        STORY, branches=[Branch("profiles", listed=True, acknowledged=True)]
    )


def test_lost_by_a_participant() -> None:
    """Committed, not acknowledged, and nothing is known there: that can't be."""
    assert "contradicts" in told(STORY, branches=[Branch("profiles", listed=True)])


def test_forced() -> None:
    """An operator's outcome stays on the list until the coordinator has answered."""
    forced = replace(DONE, listed=False, acknowledged=False, confirmed=False, resolved_by="operator")
    assert "An operator has forced this at profiles" in told(STORY, request=None, decision=None, branches=[forced])


def test_spans() -> None:
    """Spans are told as people tell them."""
    for seconds, words in (
        (0.5, "500 ms"),
        (90, "90.0 s"),
        (3600, "60 minutes"),
        (90000, "25 hours"),
        (9e5, "10 days"),
    ):
        text = told(STORY, branches=[replace(DONE, resolved_at=at(0.005 + seconds))])
        assert f"visible {words} later" in text


def test_no_transaction() -> None:
    """An invitation is identity's own affair."""
    story = replace(
        STORY, request=replace(STORED, transaction_id=None), transaction_id=None, decision=None, branches=[]
    )
    assert story.sentences() == [
        "opening",
        "No other service took part: it was written here at 2026-05-01 10:00:00.000 UTC, and that is all.",
    ]
