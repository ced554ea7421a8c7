"""The console's pages: reads a request, gathers, renders. What is done by hand is `tandem.coordinator.operating`'s;
what participants are told to do is in `ordering`.

Nothing of the writes is ever shown: ids, times, states, reasons, and operators' names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from coordinator.console import facts
from coordinator.console.forms import Forged, check, deed, key_in, operator_in, path_of
from coordinator.console.ordering import Ordering
from coordinator.console.remedies import remedies
from coordinator.console.remote import Unheard
from coordinator.console.security import Guard, Keys, TooLarge, form_of
from tandem.coordinator import operating, story
from tandem.runtime import telling
from tandem.runtime.actions import MAX_REASON, Operator
from tandem.runtime.cli import age_s, key_of
from tandem.runtime.database import explained
from tandem.runtime.errors import InvalidRequest, Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.paging import clock
from tandem.runtime.telemetry import frames, logger

log = logger("coordinator.console")

HERE = Path(__file__).parent
PAGE_SIZE = 50
REFRESH_S = 10
_STATUS = {Reason.NOT_FOUND: 404, Reason.INTERNAL: 500, Reason.INVALID_REQUEST: 400}


def console(sources: facts.Sources, keys: Keys) -> Starlette:
    """The application."""
    pages = _Pages(sources, keys)
    one = "/transactions/{coordinator}/{transaction_id}"
    return Starlette(
        routes=[
            Route("/", pages.overview),
            Route("/in-doubt", pages.in_doubt),
            Route("/undelivered", pages.undelivered),
            Route("/parked", pages.parked),
            Route("/find", pages.find),
            Route(one, pages.transaction),
            Route(f"{one}/retry", pages.confirm_retry),
            Route(f"{one}/retry", pages.retry, methods=["POST"]),
            Route(f"{one}/close/{{participant}}", pages.confirm_close),
            Route(f"{one}/close/{{participant}}", pages.close, methods=["POST"]),
            *pages.ordering.routes(one),
            Route("/login", pages.show_login),
            Route("/login", pages.login, methods=["POST"]),
            Route("/logout", pages.logout, methods=["POST"]),
            Route("/static/console.css", _css),
        ],
        middleware=[Middleware(Guard, keys=keys, broken=pages.broken)],
        exception_handlers={
            TandemError: pages.failed,
            Unheard: pages.unheard,
            Forged: pages.forged,
            TooLarge: pages.too_large,
            HTTPException: pages.no_page,
        },
    )


def _css(_: Request) -> Response:
    return FileResponse(HERE / "static" / "console.css", media_type="text/css")


class _Pages:
    """One method a page; each runs in a thread, since it waits for databases and participants."""

    def __init__(self, sources: facts.Sources, keys: Keys) -> None:
        self._sources = sources
        self._keys = keys
        self.ordering = Ordering(sources, keys, self._page)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "coordinator": sources.name,
            "participants": sorted(sources.participants.names),
            "can_log_out": keys.are_needed,
            "sign": keys.sign,
            "looked_at": facts.LOOKED_AT,
            "max_reason": MAX_REASON,
            "refresh_s": REFRESH_S,
            "ttl_s": sources.log.times.ttl_s,
        }
        filters: dict[str, Callable[..., str]] = {
            "at": lambda moment: telling.at(facts.utc(moment)),
            "words": telling.words,
            "meaning": telling.parked,
            "brought_by": lambda by: telling.BROUGHT_BY.get(by, "somebody unknown"),
            "span": _span,
            "window": _window,
        }
        self._templates.filters.update(filters)

    def _page(self, template: str, *, status: int = 200, **shown: object) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(shown), status)

    # --- looking ------------------------------------------------------------------------------------------

    def overview(self, request: Request) -> Response:
        """What is in doubt, undelivered, parked; how it has gone lately."""
        refresh = request.query_params.get("refresh") == "on"
        return self._page("overview.html", all=facts.overview(self._sources), refresh=refresh)

    def undelivered(self, request: Request) -> Response:
        """Decisions that a participant has not acknowledged."""
        return self._decisions(request, "undelivered.html", undelivered=True)

    def parked(self, request: Request) -> Response:
        """Deliveries that wait for a person, and what participants have parked by themselves."""
        asked = request.query_params
        there = story.each(
            sorted(self._sources.participants.names), lambda name: self._held(name, asked, unconfirmed=True)
        )
        return self._decisions(request, "parked.html", parked=True, there=there)

    def _decisions(self, request: Request, template: str, **filters: Any) -> Response:
        asked = request.query_params
        shown = {"there": filters.pop("there")} if "there" in filters else {}
        rows, following = self._sources.log.page(
            coordinator=self._sources.name,
            participant=asked.get("participant", ""),
            older_than_s=age_s(asked.get("older_than", "")),
            size=PAGE_SIZE,
            token=asked.get("page", ""),
            **filters,
        )
        now = clock(self._sources.log.engine)
        return self._page(template, rows=rows, now=now, asked=asked, next=_next(request, following), **shown)

    def in_doubt(self, request: Request) -> Response:
        """What participants have prepared and do not know the decision of. Pages go on at one participant."""
        asked = request.query_params
        one = asked.get("participant", "")
        names = [one] if one else sorted(self._sources.participants.names)
        there = story.each(names, lambda name: self._held(name, asked, state=facts.PREPARED))
        following = {name: _next(request, token, participant=name) for name, _, token, _ in there}
        now = clock(self._sources.log.engine)
        return self._page("in_doubt.html", there=there, now=now, asked=asked, following=following)

    def _held(self, name: str, asked: Mapping[str, str], **filters: Any) -> tuple[str, list[facts.Held], str, str]:
        """(participant, what it holds, the next page's token, why it could not be asked)."""
        if name not in self._sources.participants.names:
            return name, [], "", "it is not in the configuration"
        older_than_s = age_s(asked.get("older_than", ""))
        if older_than_s is not None:
            filters["older_than"] = facts.duration(older_than_s)
        paged = "state" in filters
        size, token = (PAGE_SIZE, asked.get("page", "")) if paged else (facts.LOOKED_AT, "")
        try:
            held, following = facts.held_at(self._sources, name, size=size, token=token, **filters)
        except TandemError as error:
            return name, [], "", error.reason.value
        return name, held, following, ""

    def find(self, request: Request) -> Response:
        """To the page of a transaction whose name was typed in; without a coordinator's name, this one's."""
        text = request.query_params.get("transaction", "").strip()
        key = key_of(text if "/" in text else f"{self._sources.name}/{text}")
        return RedirectResponse(path_of(key), 303)

    def transaction(self, request: Request) -> Response:
        """One transaction's story."""
        told = self._story(key_in(request))
        known = told.decision is not None or any(branch.state or branch.trouble for branch in told.branches)
        return self._page(
            "transaction.html",
            status=200 if known else 404,
            story=told,
            path=path_of(told.key),
            done=_done(request.query_params),
            can=remedies(told, self._sources.operations.names),
        )

    def _story(self, key: TransactionKey) -> story.Story:
        return story.gather(self._sources.log, self._sources.participants, key)

    # --- acting -------------------------------------------------------------------------------------------

    def confirm_retry(self, request: Request) -> Response:
        """Asks for who and why."""
        return self._confirm(key_in(request), "retry", "")

    def confirm_close(self, request: Request) -> Response:
        """Asks for who and why."""
        return self._confirm(key_in(request), "close", request.path_params["participant"])

    def _confirm(
        self,
        key: TransactionKey,
        action: str,
        participant: str,
        *,
        wrong: str = "",
        given: Mapping[str, str] | None = None,
    ) -> Response:
        return self._page(
            "confirm.html",
            status=400 if wrong else 200,
            key=key,
            path=path_of(key),
            action=action,
            participant=participant,
            token=self._keys.sign(deed(action, key, participant)),
            wrong=wrong,
            given=given or {},
        )

    async def retry(self, request: Request) -> Response:
        """Makes the delivery due."""
        return await self._act(request, "retry", "", lambda key, by: operating.retry(self._sources.log, key, by))

    async def close(self, request: Request) -> Response:
        """Gives a parked delivery up."""
        name = request.path_params["participant"]
        return await self._act(
            request, "close", name, lambda key, by: operating.close(self._sources.log, key, name, by)
        )

    async def _act(
        self, request: Request, action: str, participant: str, act: Callable[[TransactionKey, Operator], object]
    ) -> Response:
        key = key_in(request)
        form = await form_of(request)
        check(form, self._keys, deed(action, key, participant))
        try:
            by = operator_in(form)
        except InvalidRequest as error:
            return self._confirm(key, action, participant, wrong=error.message, given=form)
        await run_in_threadpool(act, key, by)
        return RedirectResponse(f"{path_of(key)}?done={action}", 303)

    # --- coming in ----------------------------------------------------------------------------------------

    def show_login(self, _: Request) -> Response:
        """Asks for the token."""
        return self._page("login.html", wrong=False)

    async def login(self, request: Request) -> Response:
        """A cookie for the token: gone with the browser, or with the token."""
        form = await form_of(request)
        if not self._keys.opens(form.get("token", "")):
            log.warning("console: a wrong token")
            return self._page("login.html", status=401, wrong=True)
        answer = RedirectResponse("/", 303)
        self._keys.give_cookie(answer, request.headers)
        return answer

    def logout(self, request: Request) -> Response:
        """Takes the cookie back."""
        answer = RedirectResponse("/login", 303)
        self._keys.take_cookie(answer, request.headers)
        return answer

    # --- what goes wrong ----------------------------------------------------------------------------------

    def failed(self, _: Request, error: Exception) -> Response:
        """A refusal of ours, in its own words."""
        assert isinstance(error, TandemError)
        return self._refused(error)

    def _refused(self, error: TandemError) -> Response:
        status = _STATUS.get(error.reason, 503)
        return self._page("message.html", status=status, title="Not done", message=error.message)

    def unheard(self, _: Request, error: Exception) -> Response:
        """A participant's answer got lost."""
        assert isinstance(error, Unheard)
        return self._page("message.html", status=503, title="Not known", message=error.message)

    def forged(self, _: Request, __: Exception) -> Response:
        """A form of elsewhere, or of a former process."""
        return self._page(
            "message.html", status=403, title="Not done",
            message="This form was not made here for this, or before a restart. Go back, reload, and try again.",
        )  # fmt: skip

    def too_large(self, _: Request, __: Exception) -> Response:
        """A form that is none of ours."""
        return self._page("message.html", status=413, title="Not done", message="The form is too large, or is none.")

    def no_page(self, _: Request, error: Exception) -> Response:
        """There is no such page, or not for this method."""
        assert isinstance(error, HTTPException)
        return self._page("message.html", status=error.status_code, title="No page", message="There is no such page.")

    def broken(self, error: Exception) -> Response:
        """The database can't serve, or a mistake of ours: the log says which, without what it holds."""
        told = explained(error)
        if told.reason is Reason.INTERNAL:
            log.error("console: internal error", exception=frames(error))
            return self._page("message.html", status=500, title="Broken", message="An internal error: see the log.")
        return self._refused(told)


_DONE = {
    "retry": "Recorded. It is due: the next recovery delivers it.",
    "close": "Recorded. The delivery is given up; the decision stays what it is.",
    "force": "Recorded there. Its sweeper goes on asking for the decision: if that is another, it is parked and pages.",
}


def _done(told: Mapping[str, str]) -> str:
    """What has just been done, in words; "" where an address says what is none of ours."""
    done, answer = told.get("done", ""), told.get("answer", "")
    if done == "resolve" and (answer in telling.ANSWERS or answer in Reason.__members__):
        return f"Recorded there. This came of it: {telling.came_of(answer)}."
    return _DONE.get(done, "")


def _next(request: Request, token: str, **changed: str) -> str:
    """The link to the next page; "" on the last."""
    if not token:
        return ""
    asked = {name: value for name, value in request.query_params.items() if name in ("participant", "older_than")}
    return f"{request.url.path}?{urlencode({**asked, **changed, 'page': token})}"


def _span(value_s: float | None) -> str:
    if value_s is None:
        return "none ended"
    return f"{value_s * 1000:,.0f} ms" if value_s < 1 else f"{value_s:,.1f} s"


def _window(window_s: int) -> str:
    return {3_600: "hour", 300: "5 minutes"}.get(window_s, f"{window_s} seconds")
