"""Many sign-ups at once, each answered as if they had been called one after the other.

    first answers, taken addresses       one look for all
    those that nothing speaks against    together: one message to profiles, one local commit
    the others                           by themselves, on the road of signup.py, which knows all the answers

By itself goes whose address is taken, who wants what an earlier one in the batch wants, whom profiles has refused, and,
where the batch as a whole has failed, everybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from uuid import UUID

from sqlalchemy.engine import Connection

from identity_stub import requests, users
from identity_stub.requests import Made
from identity_stub.signup import RETRY_AFTER_S, TROUBLE, SignUp, SignUps
from tandem.runtime.database import ASIDE, explained
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import frames, logger

log = logger("identity.bulk")

SINGLY_S = 5.0
"""How long those that go by themselves are begun, one after the other; whoever is left is told to ask again."""


class Bulk:
    """Signs up many. sign_ups: where those go that go by themselves."""

    def __init__(self, sign_ups: SignUps) -> None:
        self._sign_ups = sign_ups

    def sign_up(self, many: Sequence[SignUp]) -> list[Made | TandemError]:
        """What became of each, in order. Raises only what hits the first look, before anything is made."""
        with local_transaction(self._sign_ups.engine, ASIDE) as connection:
            answers = _answered_before(connection, many)
            taken = users.emails_taken(connection, [asked.email for asked in many])
        together = [
            place for place in _first_with_their_keys(many) if place not in answers and many[place].email not in taken
        ]
        singly: dict[int, Callable[[], Made]] = {}
        for place, outcome in self._together(many, together).items():
            if isinstance(outcome, Made):
                answers[place] = outcome
            else:
                singly[place] = partial(self._sign_ups.sign_up_after, many[place], outcome)
        for place, asked in enumerate(many):
            if place not in answers and place not in singly:
                singly[place] = partial(self._sign_ups.sign_up, asked)
        answers |= _one_by_one(singly)
        return [answers[place] for place in range(len(many))]

    def _together(self, many: Sequence[SignUp], places: Sequence[int]) -> Mapping[int, Made | TandemError]:
        """What became of those at these places; nothing where the batch as a whole has failed."""
        some = [many[place] for place in places]
        if not some:
            return {}

        def own_rows(connection: Connection, accepted: Sequence[tuple[int, UUID | None]]) -> list[Made]:
            new = [some[i] for i, _ in accepted]
            owners = users.add_owners(
                connection,
                [(asked.user_id, asked.email, asked.business_id) for asked in new],
                self._sign_ups.provisioning.profile_status,
            )
            made = [Made(user=user, business=business) for user, business in owners]
            attempts = (attempt for _, attempt in accepted)
            requests.store_many(connection, list(zip((asked.request for asked in new), made, attempts, strict=True)))
            return made

        try:
            outcomes = self._sign_ups.provisioning.create_many([asked.profile for asked in some], own_rows)
        except TROUBLE as error:
            log.info("sign-ups go one by one", count=len(some), reason=explained(error).reason.value)
            return {}
        return dict(zip(places, outcomes, strict=True))


def _answered_before(connection: Connection, many: Sequence[SignUp]) -> dict[int, Made | TandemError]:
    """Place → first answer, or REQUEST_REUSED, of those whose request id has made something already."""
    known = requests.known(connection, [asked.request for asked in many])
    answers: dict[int, Made | TandemError] = {}
    for place, asked in enumerate(many):
        if (asked.request.caller, asked.request.request_id) not in known:
            continue
        try:
            before = requests.first_answer(connection, asked.request)
        except TandemError as error:
            answers[place] = error
        else:
            if before is not None:
                answers[place] = before
    return answers


def _first_with_their_keys(many: Sequence[SignUp]) -> Iterator[int]:
    """The places of those that want nothing that an earlier one wants."""
    seen: set[Hashable] = set()
    for place, asked in enumerate(many):
        keys = set(_keys(asked))
        if seen.isdisjoint(keys):
            yield place
        seen |= keys


def _keys(asked: SignUp) -> Iterator[Hashable]:
    """What only one can have."""
    yield "email", asked.email.lower()
    if asked.request.request_id:
        yield "request", asked.request.caller, asked.request.request_id
    if asked.business.registration_number:
        yield "registration", asked.business.registration_country, asked.business.registration_number


def _one_by_one(works: Mapping[int, Callable[[], Made]]) -> dict[int, Made | TandemError]:
    """What each comes to, in order."""
    answers: dict[int, Made | TandemError] = {}
    until = time.monotonic() + SINGLY_S
    for place, work in works.items():
        if time.monotonic() > until:
            answers[place] = TandemError(
                "not reached in time: repeat it with the same request_id",
                reason=Reason.IN_PROGRESS,
                retry_after_s=RETRY_AFTER_S,
            )
            continue
        try:
            answers[place] = work()
        except TROUBLE as error:
            told = explained(error)
            if told.reason is Reason.INTERNAL:  # nothing else will know where it arose
                log.error("a sign-up of many failed", exception=frames(error.__cause__ or error))
            answers[place] = told
    return answers
