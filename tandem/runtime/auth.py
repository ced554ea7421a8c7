"""Who is calling. Callers are named by the URI of their certificate; without TLS everyone is `anonymous`."""

from __future__ import annotations

import grpc

ANONYMOUS = "anonymous"


def caller_of(context: grpc.ServicerContext) -> str:
    """The caller's name: the first URI among its certificate's names, or ANONYMOUS."""
    for value in context.auth_context().get("x509_subject_alternative_name", []):
        name = value.decode() if isinstance(value, bytes) else str(value)
        if "://" in name:
            return name
    return ANONYMOUS
