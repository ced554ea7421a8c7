"""Sets on disk: ten million ids, or registration numbers, need no memory.

They lie in temporary files of SQLite's, that nobody else can open and that are gone when they are closed. Whatever
writes raises ConfigurationError where one can't be written.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from uuid import UUID

from tandem.runtime.errors import ConfigurationError

CACHE_KIB = 32 * 1024
"""Of the set that stays in memory."""

PAGE = 1_000


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigurationError("a temporary file can't be written: make room there, or set TMPDIR") from error


@_written()
def _opened(table: str) -> sqlite3.Connection:
    """A connection to a new file with this table. Whoever has it keeps threads from using it at once."""
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = OFF")  # what it holds can be found out again
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"CREATE TABLE {table} WITHOUT ROWID")
    return connection


class Numbers:
    """Registration numbers, and whose each is: of whoever has shown it first. For any threads."""

    def __init__(self) -> None:
        self._connection = _opened("number (text TEXT PRIMARY KEY, holder BLOB)")
        self._lock = threading.Lock()

    def close(self) -> None:
        """Gives the file back."""
        self._connection.close()

    @_written()
    def of_others(self, shown: Iterable[tuple[UUID, str]]) -> set[UUID]:
        """Those of these (account, number) whose number another account has shown before."""
        others = set()
        with self._lock:
            self._connection.execute("BEGIN")
            for id_, number in shown:
                if not self._connection.execute(
                    "INSERT OR IGNORE INTO number VALUES (?, ?)", (number, id_.bytes)
                ).rowcount:
                    ((holder,),) = self._connection.execute("SELECT holder FROM number WHERE text = ?", (number,))
                    if holder != id_.bytes:
                        others.add(id_)
            self._connection.execute("COMMIT")
        return others


class Listed:
    """A set of ids. For one thread; a context manager."""

    def __init__(self) -> None:
        self._connection = _opened("listed (id BLOB PRIMARY KEY)")

    def __enter__(self) -> Listed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    @_written()
    def add(self, ids: Iterable[str]) -> None:
        """Puts these in; quickest in their order."""
        self._connection.execute("BEGIN")
        rows = ((bytes.fromhex(id_.replace("-", "")),) for id_ in ids)
        self._connection.executemany("INSERT OR IGNORE INTO listed VALUES (?)", rows)
        self._connection.execute("COMMIT")

    @_written()
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
