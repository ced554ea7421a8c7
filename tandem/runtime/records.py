"""Many rows as a table to join with, one array a column: a batch is one statement, whatever its size.

Arrays, because the planner sees how long they are: it takes the index for one row and a join for many, whatever the
other table's statistics say (JSON it takes for a hundred rows, always). Each is one literal: an ARRAY[…] of as many
expressions would cost the parser more than the work itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from tandem.runtime.identifiers import TransactionKey

Columns = Mapping[str, sa.types.TypeEngine[Any]]

KEY_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {"coordinator": sa.Text(), "transaction_id": sa.UUID()}


def records(name: str, columns: Columns, given: Mapping[str, object] | None = None) -> sa.TableValuedAlias:
    """The parameters of `arrays(name, …)` as a table. given: their values, where they don't come with the execution."""
    parameters = [
        sa.bindparam(of, type_=sa.Text) if given is None else sa.bindparam(of, given[of], type_=sa.Text)
        for of in (_parameter(name, column) for column in columns)
    ]
    lists = [sa.cast(one, ARRAY(type_)) for one, type_ in zip(parameters, columns.values(), strict=True)]
    return (
        sa.func.unnest(*lists)
        .table_valued(*(sa.column(column, type_) for column, type_ in columns.items()))
        .render_derived(name=name)
    )


def arrays(name: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The values for `records(name, columns)`.

    Of each row and column: None, or what `str` writes as PostgreSQL reads it; of a JSONB column, what `json` can write.
    """
    return {
        _parameter(name, column): array(
            [_json(row[column]) for row in rows] if isinstance(type_, JSONB) else [row[column] for row in rows]
        )
        for column, type_ in columns.items()
    }


def key_arrays(name: str, keys: Iterable[TransactionKey]) -> dict[str, str]:
    """The values for `records(name, KEY_COLUMNS)`."""
    ordered = list(keys)
    return {
        _parameter(name, "coordinator"): array([key.coordinator for key in ordered]),
        _parameter(name, "transaction_id"): array([key.transaction_id for key in ordered]),
    }


def array(values: Sequence[object]) -> str:
    """PostgreSQL's array syntax, one dimension: every element in quotes, but for NULL."""
    if None in values:
        return "{" + ",".join("NULL" if value is None else f'"{_escaped(str(value))}"' for value in values) + "}"
    texts = list(map(str, values))
    joined = '","'.join(texts)
    if "\\" in joined or joined.count('"') != 2 * max(len(texts) - 1, 0):
        joined = '","'.join(map(_escaped, texts))
    return f'{{"{joined}"}}' if texts else "{}"


def _json(value: object) -> str:
    return "[]" if value == [] else json.dumps(value)  # most lists are empty


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _parameter(name: str, column: str) -> str:
    return f"{name}_{column}"
