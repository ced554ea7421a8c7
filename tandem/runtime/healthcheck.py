"""Asks a gRPC server whether it serves, by the standard health protocol: for containers and scripts.

    python -m tandem.runtime.healthcheck 127.0.0.1:50051           can it do its work now?
    python -m tandem.runtime.healthcheck --live 127.0.0.1:50051    does it run at all? A restart mends nothing else.

Exit code 0: yes. 1: no, or it can't be asked in time; why is said on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIVE = "live"
"""As `tandem.runtime.server` calls it; not imported, since a check runs every few seconds and must start quickly."""

TIMEOUT_S = 3.0


def state(target: str, *, service: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """The server's answer ("SERVING", "NOT_SERVING", …), or the gRPC code with which it could not be asked.

    service: a service's full name; "" for the server as a whole.
    """
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tandem.runtime.healthcheck", description=__doc__.partition("\n")[0])
    made.add_argument("target", help="host:port, or any gRPC name")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--service", default="", help="full name of a service; default: the server as a whole")
    what.add_argument(
        "--live", dest="service", action="store_const", const=LIVE, help="only whether the process runs and answers"
    )
    made.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds (default: %(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks; the exit code."""
    asked = parser().parse_args(arguments)
    found = state(asked.target, service=asked.service, timeout_s=asked.timeout)
    if found == "SERVING":
        return 0
    print(f"{asked.target}: {found}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
