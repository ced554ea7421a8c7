"""What the console's forms share: the transaction that they are about, who and why, and that they are our own."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.requests import Request

from coordinator.console.security import Keys
from tandem.runtime.actions import Operator
from tandem.runtime.cli import key_of
from tandem.runtime.identifiers import TransactionKey


class Forged(Exception):
    """A form that this process has not made for this deed."""


def key_in(request: Request) -> TransactionKey:
    """The transaction that the address names. Raises InvalidRequest."""
    return key_of(f"{request.path_params['coordinator']}/{request.path_params['transaction_id']}")


def path_of(key: TransactionKey) -> str:
    """The transaction's page."""
    return f"/transactions/{key}"


def deed(action: str, key: TransactionKey, *details: str) -> str:
    """What a form's signature stands for: this deed on this transaction, and no other."""
    return json.dumps(["form", action, str(key), *details])


def check(form: Mapping[str, str], keys: Keys, what: str) -> None:
    """Raises Forged unless the form was made for that deed."""
    if not keys.is_signed(what, form.get("token", "")):
        raise Forged


def operator_in(form: Mapping[str, str]) -> Operator:
    """Who acts and why. Raises InvalidRequest."""
    return Operator(form.get("actor", "").strip(), form.get("reason", "").strip())
