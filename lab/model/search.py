"""Breadth first through every world, so that the first broken promise is told by a shortest story."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lab.model.promises import broken, finished
from lab.model.steps import Step, Steps
from lab.model.world import Scenario, World, name

STUCK = "a transaction that nobody can end any more, though databases, sweeper and recovery run"


@dataclass
class Report:
    """What a search found. broken: the promise, or "" if all hold; story: how it comes to that, a line a step."""

    title: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    broken: str = ""
    story: list[str] = field(default_factory=list)


def search(scenario: Scenario, without: frozenset[str] = frozenset()) -> Report:
    """Every world that can be reached. Stops at the first broken promise."""
    started = time.monotonic()
    scenario = scenario.without(without)
    report = Report(scenario.title)
    steps = Steps(scenario, without)
    worlds = [scenario.start()]
    known = {worlds[0]: 0}
    parents = array("q", [-1])
    depths = array("H", [0])
    # For liveness: which worlds lead to which without a driver's help. A driver may be dead at any time.
    edges: list[array[int]] = []
    at = 0
    while at < len(worlds) and not report.broken:
        world = worlds[at]
        helped: array[int] = array("q")
        for step in steps.all(world):
            if step.world == world and not step.broken:
                continue
            report.transitions += 1
            number = known.get(step.world)
            if number is None:
                number = known[step.world] = len(worlds)
                worlds.append(step.world)
                parents.append(at)
                depths.append(depths[at] + 1)
                report.broken = step.broken or broken(scenario, step.world)
            else:
                report.broken = step.broken
            if report.broken:
                report.story = [*_story(steps, worlds, parents, at), told(scenario, step)]
                break
            if not step.by_driver:
                helped.append(number)
        edges.append(helped)
        at += 1
    if not report.broken:
        stuck = _stuck(scenario, worlds, edges)
        if stuck is not None:
            report.broken = STUCK
            report.story = _story(steps, worlds, parents, stuck)
    report.states, report.depth = len(worlds), max(depths)
    report.seconds = time.monotonic() - started
    return report


def _stuck(scenario: Scenario, worlds: Sequence[World], edges: Sequence[array[int]]) -> int | None:
    """The first world from which no finished one can be reached without a driver's help."""
    back: list[list[int]] = [[] for _ in worlds]
    for number, following in enumerate(edges):
        for other in following:
            back[other].append(number)
    ends = [number for number, world in enumerate(worlds) if finished(scenario, world)]
    reached = bytearray(len(worlds))
    for number in ends:
        reached[number] = 1
    while ends:
        for number in back[ends.pop()]:
            if not reached[number]:
                reached[number] = 1
                ends.append(number)
    stuck = reached.find(0)
    return None if stuck == -1 else stuck


def _story(steps: Steps, worlds: Sequence[World], parents: Sequence[int], number: int) -> list[str]:
    path = [number]
    while parents[path[-1]] != -1:
        path.append(parents[path[-1]])
    path.reverse()
    lines = []
    for before, after in pairwise(path):
        step = next(step for step in steps.all(worlds[before]) if step.world == worlds[after])
        lines.append(told(steps._s, step))
    return lines


def told(s: Scenario, step: Step) -> str:
    """A step as a line of a story."""
    kind, *what = step.told
    several = s.transactions > 1
    match kind, what:
        case "driver", [int(d), str(text)]:
            return f"driver {d + 1} {text}"
        case "part", [int(place), str(text)]:
            t, p = s.places[place]
            return f"{name(p)}{f', transaction {t + 1},' if several else ''} {text}"
        case "reader", [int(r), str(text)]:
            return f"reader {r + 1} {text}" if len(s.reads) > 1 else f"reader {text}"
        case "log", [int(t), str(text)]:
            return f"transaction {t + 1}: {text}" if several else text
        case "asks", [int(p), int(t), str(content), str(answer)]:
            about = f"transaction {t + 1}, " if several else ""
            return f"{name(p)} asks for the decision ({about}{content}), with fence: {answer}"
        case _:
            return f"{kind} {' '.join(map(str, what))}"
