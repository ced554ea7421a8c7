"""A set of ids on disk: ten million of them need no memory.

It lies in a temporary file of SQLite's, that nobody else can open and that is gone when it is closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from uuid import UUID

CACHE_KIB = 32 * 1024
"""Of the set that stays in memory."""

PAGE = 1_000


class Listed:
    """The set. For one thread; a context manager."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = OFF")  # what it holds can be listed again
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._connection.execute("CREATE TABLE listed (id BLOB PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> Listed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def add(self, ids: Iterable[str]) -> None:
        """Puts these in; quickest in their order."""
        self._connection.execute("BEGIN")
        rows = ((bytes.fromhex(id_.replace("-", "")),) for id_ in ids)
        self._connection.executemany("INSERT OR IGNORE INTO listed VALUES (?)", rows)
        self._connection.execute("COMMIT")

    def take(self, ids: Sequence[UUID]) -> set[UUID]:
        """Takes these out, a thousand or so at most; those of them that were in."""
        if not ids:
            return set()
        marks = ",".join("?" * len(ids))
        found = self._connection.execute(
            f"DELETE FROM listed WHERE id IN ({marks}) RETURNING id",  # noqa: S608  # question marks
            [id_.bytes for id_ in ids],
        ).fetchall()
        return {UUID(bytes=id_) for (id_,) in found}

    def rest(self) -> Iterator[list[UUID]]:
        """What is in, in order, PAGE at a time."""
        after = b""
        while True:
            rows = self._connection.execute(
                "SELECT id FROM listed WHERE id > ? ORDER BY id LIMIT ?", (after, PAGE)
            ).fetchall()
            if rows:
                yield [UUID(bytes=id_) for (id_,) in rows]
                after = rows[-1][0]
            if len(rows) < PAGE:
                return
