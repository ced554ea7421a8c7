"""Statements that are written once and sent often: compiled when they are made, executed by the driver's own cursor.

What SQLAlchemy does anew at each execution (the key of its cache, contexts, the result's metadata) takes as long as the
server takes over a small statement. Errors are psycopg2's own; `runtime.database` reads both kinds.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import psycopg2
from sqlalchemy.engine import Connection
from sqlalchemy.sql.compiler import SQLCompiler

_DIALECT = psycopg2.dialect()  # type: ignore[no-untyped-call]


class Statement:
    """One statement. Its parameters have no types: they are text or numbers, and the statement casts them."""

    def __init__(self, executable: sa.ClauseElement, *columns: str) -> None:
        """columns: the names of what it returns, in order."""
        compiled = executable.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)
        self.sql = compiled.string
        self._constants = {name: bound.value for name, bound in compiled.binds.items() if not bound.required}
        assert all(value is None or isinstance(value, str | int) for value in self._constants.values())
        self._row: Any = namedtuple("Row", columns) if columns else None

    def __call__(self, connection: Connection, parameters: Mapping[str, object]) -> list[Any]:
        """Executes it; the rows that it returns, with `columns` as attributes."""
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self.sql, {**self._constants, **parameters})
            return [self._row._make(row) for row in cursor.fetchall()] if self._row else []
        finally:
            cursor.close()
