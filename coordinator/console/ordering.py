"""The console's pages that give a participant orders: ask for the decision now; force an outcome.

Force takes three pages: which way, by whom and why; what that would do, tried out there, and what is at stake; done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from coordinator.console.facts import Sources
from coordinator.console.forms import check, deed, key_in, operator_in, path_of
from coordinator.console.remote import OUTCOMES
from coordinator.console.security import Keys, form_of
from tandem.runtime import telling
from tandem.runtime.errors import InvalidRequest, Violation
from tandem.runtime.identifiers import TransactionKey

NONE, ELSEWHERE = "none", "elsewhere"
"""Beside an outcome: what the decision log holds of a transaction. Of another coordinator's it could not hold any."""


class Ordering:
    """One method a page; what waits for a participant or the log runs in a thread."""

    def __init__(self, sources: Sources, keys: Keys, page: Callable[..., HTMLResponse]) -> None:
        """page: renders a template."""
        self._sources = sources
        self._keys = keys
        self._page = page

    def routes(self, one: str) -> list[Route]:
        """one: the address of a transaction."""
        resolve, force = f"{one}/resolve/{{participant}}", f"{one}/force/{{participant}}"
        return [
            Route(resolve, self.confirm_resolve),
            Route(resolve, self.resolve, methods=["POST"]),
            Route(force, self.show_force),
            Route(force, self.try_force, methods=["POST"]),
            Route(f"{force}/now", self.force, methods=["POST"]),
        ]

    # --- asking now ---------------------------------------------------------------------------------------

    def confirm_resolve(self, request: Request) -> Response:
        """Asks for who and why."""
        return self._form("resolve", *self._about(request))

    async def resolve(self, request: Request) -> Response:
        """Has the participant ask, and tells what came of it."""
        key, name = self._about(request)
        form = await form_of(request)
        check(form, self._keys, deed("resolve", key, name))
        return await run_in_threadpool(self._resolve, key, name, form)

    def _resolve(self, key: TransactionKey, name: str, form: Mapping[str, str]) -> Response:
        try:
            answer = self._sources.operations.resolve(name, key, operator_in(form))
        except InvalidRequest as error:
            return self._form("resolve", key, name, wrong=error.message, given=form)
        return _done(key, done="resolve", answer=answer)

    # --- forcing ------------------------------------------------------------------------------------------

    def show_force(self, request: Request) -> Response:
        """Asks which way, by whom and why."""
        return self._form("force", *self._about(request))

    async def try_force(self, request: Request) -> Response:
        """Tries it out there, and says what it would do."""
        key, name = self._about(request)
        form = await form_of(request)
        check(form, self._keys, deed("force", key, name))
        return await run_in_threadpool(self._try, key, name, form)

    def _try(self, key: TransactionKey, name: str, form: Mapping[str, str], *, wrong: str = "") -> Response:
        outcome = form.get("outcome", "")
        try:
            if outcome not in OUTCOMES:
                raise InvalidRequest([Violation("outcome", "must be committed or aborted")])
            by = operator_in(form)
            tried = self._sources.operations.force(name, key, outcome, by, dry_run=True)
        except InvalidRequest as error:
            return self._form("force", key, name, wrong=error.message, given=form)
        seen = self._decision(key)
        what = {"outcome": outcome, "actor": by.actor, "reason": by.reason, "seen": seen}
        return self._page(
            "force_now.html",
            status=400 if wrong else 200,
            key=key,
            path=path_of(key),
            participant=name,
            what=what,
            tried=tried,
            sentences=list(telling.at_stake(name, outcome, {NONE: "", ELSEWHERE: None}.get(seen, seen))),
            token=self._keys.sign(deed("force now", key, name, *what.values())),
            wrong=wrong,
        )

    async def force(self, request: Request) -> Response:
        """Does what was tried and confirmed, and nothing else: the signature covers all of it."""
        key, name = self._about(request)
        form = await form_of(request)
        what = [form.get(field, "") for field in ("outcome", "actor", "reason", "seen")]
        check(form, self._keys, deed("force now", key, name, *what))
        return await run_in_threadpool(self._force, key, name, form)

    def _force(self, key: TransactionKey, name: str, form: Mapping[str, str]) -> Response:
        if self._decision(key) != form["seen"]:
            return self._try(key, name, form, wrong="Meanwhile the decision was written: this says what that means.")
        self._sources.operations.force(name, key, form["outcome"], operator_in(form), dry_run=False)
        return _done(key, done="force")

    # --- both ---------------------------------------------------------------------------------------------

    def _about(self, request: Request) -> tuple[TransactionKey, str]:
        name: str = request.path_params["participant"]
        self._sources.operations.check(name)
        return key_in(request), name

    def _form(
        self, action: str, key: TransactionKey, name: str, *, wrong: str = "", given: Mapping[str, str] | None = None
    ) -> Response:
        return self._page(
            f"{action}.html",
            status=400 if wrong else 200,
            key=key,
            path=path_of(key),
            participant=name,
            token=self._keys.sign(deed(action, key, name)),
            wrong=wrong,
            given=given or {},
        )

    def _decision(self, key: TransactionKey) -> str:
        """What the decision log holds: an outcome, NONE or ELSEWHERE."""
        if key.coordinator != self._sources.name:
            return ELSEWHERE
        row = self._sources.log.get(key)
        return NONE if row is None else str(row.outcome)


def _done(key: TransactionKey, **told: str) -> Response:
    return RedirectResponse(f"{path_of(key)}?{urlencode(told)}", 303)
