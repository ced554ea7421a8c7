"""Two-phase commit: the profile is prepared, then one local commit decides over both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from identity_stub.provisioning import OwnRows, ProfileExists
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
        except Refused as error:
            raise _refusal(error, list(profile)) from error
        except Unavailable as error:
            if error.metadata.get("reasons") != Reason.HELD:
                raise
            raise _held(error) from error
        return made

    def close(self) -> None:
        """Confirms what waits in the background, closes the channels."""
        self._coordinator.close()


def _refusal(error: Refused, fields: Sequence[str]) -> TandemError:
    """A refusal in the words of the request: who refuses and where the writes stood is of no use to its sender."""
    if error.reason is Reason.ALREADY_EXISTS:
        return ProfileExists(error.metadata.get("field", "id"), transaction_id=error.transaction_id)
    if error.reason is Reason.INVALID_REQUEST and error.violations:
        wrong = InvalidRequest([_of_request(violation, fields) for violation in error.violations])
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


def _of_request(violation: Violation, fields: Sequence[str]) -> Violation:
    """The same violation, seen from the request: `writes[1].legal_name` is `business.legal_name`."""
    match = _WRITE.match(violation.field)
    if match is None or int(match[1]) >= len(fields):
        return violation
    return Violation(violation.field[match.end() :], violation.description, violation.rule).below(fields[int(match[1])])
