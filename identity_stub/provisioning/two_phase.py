"""Two-phase commit: the profile is prepared, then one local commit decides over both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from identity_stub.provisioning import OwnRows, OwnRowsOfMany, ProfileExists
from identity_stub.users import ACTIVE
from tandem.coordinator.driver import Confirm, Coordinator
from tandem.coordinator.errors import Refused, Unavailable
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation

T = TypeVar("T")

_WRITE = re.compile(r"^(?:requests\[\d+\]\.)?writes\[(\d+)\](?:\.|$)")


class TwoPhase:
    """The coordinator's `with` block.

    participant: the name that profiles has in the coordinator's configuration. confirm: "wait" answers when the profile
    is visible; "background" when it is decided, and a reader that is faster brings it about itself (R10).
    """

    profile_status = ACTIVE

    def __init__(self, coordinator: Coordinator, *, participant: str = "profiles", confirm: Confirm = "wait") -> None:
        self._coordinator = coordinator
        self._participant = participant
        self._confirm = confirm

    def __repr__(self) -> str:
        return f"TwoPhase({self._coordinator!r}, confirm={self._confirm!r})"

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        """Prepares, then commits the own rows together with the decision. See `Provisioning.create`."""
        try:
            branches = {self._participant: list(profile.values())}
            with self._coordinator.transaction(branches, confirm=self._confirm) as tx:
                made = own_rows(tx.connection, tx.id)
        except (Refused, Unavailable) as error:
            raise _of_request(error, list(profile)) from error
        return made

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        """Likewise, with one local commit for all that are accepted. See `Provisioning.create_many`."""
        branches = [{self._participant: list(profile.values())} for profile in profiles]
        made: dict[int, T] = {}
        with self._coordinator.transactions(branches, confirm=self._confirm) as batch:
            accepted = [(place, tx.id) for place, tx in enumerate(batch.transactions) if tx.error is None]
            if accepted:
                rows = own_rows(batch.connection, accepted)
                made = {place: one for (place, _), one in zip(accepted, rows, strict=True)}
        return [
            made[place] if tx.error is None else _of_request(tx.error, list(profile))
            for place, (tx, profile) in enumerate(zip(batch.transactions, profiles, strict=True))
        ]

    def close(self) -> None:
        """Confirms what waits in the background, closes the channels."""
        self._coordinator.close()


def _of_request(error: TandemError, fields: Sequence[str]) -> TandemError:
    """What the driver says, in the words of the request whose `fields` the writes come from."""
    if isinstance(error, Refused):
        return _refusal(error, fields)
    if isinstance(error, Unavailable) and error.metadata.get("reasons") == Reason.HELD:
        return _held(error)
    return error


def _refusal(error: Refused, fields: Sequence[str]) -> TandemError:
    """A refusal: who refuses and where the writes stood is of no use to its sender."""
    if error.reason is Reason.ALREADY_EXISTS:
        return ProfileExists(error.metadata.get("field", "id"), transaction_id=error.transaction_id)
    if error.reason is Reason.INVALID_REQUEST and error.violations:
        wrong = InvalidRequest([_in_request(violation, fields) for violation in error.violations])
        wrong.transaction_id = error.transaction_id
        return wrong
    return error


def _held(error: Unavailable) -> TandemError:
    """Profiles is there, but a transaction in progress holds what is needed: an earlier attempt of ours, or another
    request. ABORTED, and not UNAVAILABLE, which channels repeat by themselves without the wait that RetryInfo asks for.
    """
    return TandemError(
        "another attempt in progress holds what this one needs: repeat it with the same request_id",
        reason=Reason.HELD,
        transaction_id=error.transaction_id,
        retry_after_s=error.retry_after_s,
    )


def _in_request(violation: Violation, fields: Sequence[str]) -> Violation:
    """The same violation, seen from the request: `writes[1].legal_name` is `business.legal_name`."""
    match = _WRITE.match(violation.field)
    if match is None or int(match[1]) >= len(fields):
        return violation
    return Violation(violation.field[match.end() :], violation.description, violation.rule).below(fields[int(match[1])])
