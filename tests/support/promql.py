"""Enough of PromQL to say which metrics and labels an expression names; Prometheus itself says whether it is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STRING = re.compile(r'"[^"]*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_BY = re.compile(r"\bby\s*\(([^)]*)\)\s*\(")
_SELECTOR = re.compile(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)(?![\w:]*\s*\()\s*(\{[^}]*\})?")
_WORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True)
class Asked:
    """A series that an expression names, with the labels that it must have: those it selects and is grouped by."""

    metric: str
    labels: frozenset[str]


def asked(expression: str) -> set[Asked]:
    """Every series of the expression. An aggregation is written `sum by (label) (…)`."""
    text = _STRING.sub('""', expression)
    found = {Asked(metric, labels) for metric, labels in _selectors(text)}
    for match in _BY.finditer(text):
        grouped = frozenset(_names(match[1]))
        found |= {Asked(metric, grouped) for metric, _ in _selectors(_body(text, match.end()))}
    return found


def shown(expression: str) -> set[str]:
    """The labels that the expression's result may have, of those that it groups by."""
    return {name for match in _GROUPING.finditer(expression) for name in _names(match[1])}


def _selectors(text: str) -> Iterator[tuple[str, frozenset[str]]]:
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub(" ", text))
    for match in _SELECTOR.finditer(bare):
        if match[1] not in _WORDS:
            yield match[1], frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match[2] or ""))


def _names(listed: str) -> list[str]:
    return re.findall(r"\w+", listed)


def _body(text: str, start: int) -> str:
    """From an opening parenthesis to the one that closes it."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    raise ValueError("a parenthesis is not closed")
