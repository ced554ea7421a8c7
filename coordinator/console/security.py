"""What guards the console: who may see it, which forms are its own, how large a request may be, what browsers may do.

Without a token it answers on loopback only, and only to requests that name a loopback host: a page elsewhere that
points its own name at 127.0.0.1 gets nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.runtime.errors import ConfigurationError

MAX_BODY_BYTES = 16 * 1024
MAX_FIELDS = 16
MIN_TOKEN = 16
"""Characters: a shorter one could be tried out."""

OPEN_PATHS = ("/login", "/static/console.css")
"""Seen without the token."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Not "no-referrer": a browser would then send a form with the Origin "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach that host."""
    bare = host.strip("[]")
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare.lower() == "localhost"


class Keys:
    """The token, and a secret that signs forms and the cookie.

    Where there is a token, coordinators of the same name have the same secret, so each takes what another has signed;
    without one it is this process', and ends with it. The cookie has the coordinator's name: a browser knows hosts, not
    ports, and would send one console's to another.
    """

    def __init__(self, host: str, token: str | None, coordinator: str) -> None:
        """coordinator: its name. Raises ConfigurationError where anybody could come in."""
        if token is not None and len(token) < MIN_TOKEN:
            raise ConfigurationError(f"COORDINATOR_CONSOLE_TOKEN must have at least {MIN_TOKEN} characters")
        if token is None and not is_loopback(host):
            raise ConfigurationError(
                "COORDINATOR_CONSOLE_LISTEN names a host that others can reach: set COORDINATOR_CONSOLE_TOKEN, too"
            )
        self._token = token
        self.cookie = f"tandem_console_{coordinator}"
        self._secret = secrets.token_bytes(32)
        if token is not None:
            purpose = f"tandem console {coordinator}"
            self._secret = hmac.new(token.encode(), purpose.encode(), hashlib.sha256).digest()

    @property
    def are_needed(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def opens(self, token: str) -> bool:
        """Whether it is the token. Takes the same time whatever it is."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def sign(self, what: str) -> str:
        """What only who has the secret can have written."""
        return hmac.new(self._secret, what.encode(), hashlib.sha256).hexdigest()

    def is_signed(self, what: str, signature: str) -> bool:
        """Whether `sign` made it of that."""
        return hmac.compare_digest(self.sign(what).encode(), signature.encode())

    def lets_in(self, headers: Headers) -> bool:
        """Whether a request brings the token, or the cookie that was given for it."""
        if not self.are_needed:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.opens(token.strip())
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return morsel is not None and self.is_signed("cookie", morsel.value)

    def give_cookie(self, answer: Response, asked: Headers) -> None:
        """Lets a browser in that has brought the token, until it ends."""
        answer.set_cookie(
            self.cookie, self.sign("cookie"), secure=_by_https(asked), httponly=True, samesite="strict", path="/"
        )

    def take_cookie(self, answer: Response, asked: Headers) -> None:
        """Takes it back."""
        answer.delete_cookie(self.cookie, secure=_by_https(asked), httponly=True, samesite="strict", path="/")


def _by_https(asked: Headers) -> bool:
    """Whether a proxy says that it was asked by https. Who lies only gets a cookie that is sent less often."""
    return asked.get("x-forwarded-proto", "").partition(",")[0].strip().lower() == "https"


class Guard:
    """Stands before every page: adds HEADERS, and turns away what may not come in."""

    def __init__(self, app: ASGIApp, keys: Keys, broken: Callable[[Exception], ASGIApp]) -> None:
        """broken: answers an error that nobody foresaw. It ends here: further out it would be logged with its text."""
        self._app = app
        self._keys = keys
        self._broken = broken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, guarded)
        except Exception as error:
            await self._broken(error)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if not self._keys.are_needed and not is_loopback(_host(headers)):
            return PlainTextResponse("this console answers to a loopback address only", 421)
        if scope["method"] not in ("GET", "HEAD") and not _is_same_site(headers):
            return PlainTextResponse("this form came from another site", 403)
        if scope["path"] not in OPEN_PATHS and not self._keys.lets_in(headers):
            if headers.get("authorization") or scope["method"] not in ("GET", "HEAD"):
                return PlainTextResponse("the token is missing or wrong", 401, {"WWW-Authenticate": "Bearer"})
            return RedirectResponse("/login", 303)
        return None


def _host(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _is_same_site(headers: Headers) -> bool:
    """What the browser itself says of where a form comes from. A client that is none says nothing."""
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


class TooLarge(Exception):
    """A request's body is larger than MAX_BODY_BYTES, or is no form."""


async def form_of(request: Request) -> dict[str, str]:
    """A form's fields, each once. Raises TooLarge without having read it all."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise TooLarge from None
    return {name: values[-1] for name, values in fields.items()}
