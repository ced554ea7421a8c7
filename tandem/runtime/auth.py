"""Who is calling. Callers are named by the URI of their certificate; without TLS everyone is `anonymous`.

An operator's call carries a token beside that.
"""

from __future__ import annotations

import hmac

import grpc

from tandem.runtime.errors import Reason, TandemError

ANONYMOUS = "anonymous"


def caller_of(context: grpc.ServicerContext) -> str:
    """The caller's name: the first URI among its certificate's names, or ANONYMOUS."""
    for value in context.auth_context().get("x509_subject_alternative_name", []):
        name = value.decode() if isinstance(value, bytes) else str(value)
        if "://" in name:
            return name
    return ANONYMOUS


def bearer(token: str) -> tuple[str, str]:
    """The metadata that carries a token."""
    return "authorization", f"Bearer {token}"


def check_bearer(context: grpc.ServicerContext, token: str) -> None:
    """Raises UNAUTHENTICATED unless the call carries that token, once. Takes the same time whatever it carries."""
    carried = [value for name, value in context.invocation_metadata() if name == "authorization"]
    scheme, _, given = str(carried[0] if len(carried) == 1 else "").partition(" ")
    is_it = hmac.compare_digest(given.encode(), token.encode())
    if not (is_it and scheme.lower() == "bearer"):
        raise TandemError("the operator's token is missing or wrong", reason=Reason.UNAUTHENTICATED)
