"""What can be done about one transaction, and where: as buttons, or as commands where the console can't."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from tandem.coordinator.story import Story
from tandem.runtime.telling import BothSides, Branch

_KNOWN_PROCESSES = {"profiles": "profiles_server"}
"""Participants whose command line is known; of another one the operator knows the module."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What helps at one participant.

    takes_orders: by buttons of the console. prepared: it is in doubt there, not forced. stuck: its sweeper has asked in
    vain, or does not run: forcing is worth a thought. commands: to be run there, since no button does the same.
    """

    participant: str
    takes_orders: bool
    prepared: bool
    stuck: bool
    commands: Sequence[str]


@dataclass(frozen=True, slots=True)
class Remedies:
    """Of the whole transaction. nothing: why there is none, as a sentence; "" where there is one."""

    retry: bool
    closable: Sequence[str]
    there: Sequence[Remedy]
    nothing: str


def remedies(story: Story, ordered: Collection[str]) -> Remedies:
    """ordered: the participants that take orders from here."""
    retry = any(branch.listed and (branch.parked or not branch.acknowledged) for branch in story.branches)
    closable = [branch.participant for branch in story.branches if branch.parked]
    there = [_there(branch, story, branch.participant in ordered) for branch in story.branches if _is_open(branch)]
    return Remedies(retry, closable, there, "" if retry or closable or there else _nothing(story))


def _nothing(story: Story) -> str:
    both = BothSides(story.now, story.decision, story.branches)
    unasked = [branch.participant for branch in story.branches if branch.trouble]
    if unasked:
        return f"What {' and '.join(unasked)} can be helped with is not known: look again once it can be asked."
    if any(map(both.contradicts, story.branches)):
        return "Nothing from here: the two sides contradict each other, and no command puts that right by itself."
    return "Nothing needs to be."


def _is_open(branch: Branch) -> bool:
    """Whether an operator could do anything about it there."""
    return bool(branch.state) and (not branch.confirmed or bool(branch.parked_there))


def _there(branch: Branch, story: Story, takes_orders: bool) -> Remedy:
    prepared = branch.state == "prepared"
    stuck = prepared and _is_stuck(branch, story.now)
    start = f"python -m {_KNOWN_PROCESSES.get(branch.participant, '…')} transactions"
    who = "--actor '…' --reason '…'"
    commands = [] if takes_orders else [f"{start} resolve {story.key} {who}"]
    if not prepared:
        commands.append(f"{start} close {story.key} {who}")
    elif stuck and not takes_orders:
        outcome = story.decision.outcome if story.decision is not None else "aborted"
        commands.append(f"{start} force {story.key} --outcome {outcome} {who} --dry-run")
    return Remedy(branch.participant, takes_orders, prepared, stuck, commands)


def _is_stuck(branch: Branch, now: datetime) -> bool:
    return bool(branch.parked_there or branch.asked) or branch.asks_at is None or branch.asks_at <= now
