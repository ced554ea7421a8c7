"""What a channel repeats by itself, and what it must not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from identity_stub.client import Identity
from tandem.identity.v1 import identity_service_pb2
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.server import Server


class Away(profiles_service_pb2_grpc.ProfilesServiceServicer):
    """Counts the calls, and answers UNAVAILABLE to all."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def GetPerson(self, request: pb.GetPersonRequest, context: grpc.ServicerContext) -> pb.GetPersonResponse:
        self.calls["GetPerson"] += 1
        raise TandemError("away", reason=Reason.UNAVAILABLE)

    def UpdatePerson(self, request: pb.UpdatePersonRequest, context: grpc.ServicerContext) -> pb.UpdatePersonResponse:
        self.calls["UpdatePerson"] += 1
        raise TandemError("away", reason=Reason.UNAVAILABLE)

    def UpdateBusiness(
        self, request: pb.UpdateBusinessRequest, context: grpc.ServicerContext
    ) -> pb.UpdateBusinessResponse:
        self.calls["UpdateBusiness"] += 1
        raise TandemError("away", reason=Reason.UNAVAILABLE)


@pytest.fixture
def away() -> Iterator[tuple[Away, str]]:
    servicer, server = Away(), Server("127.0.0.1:0")
    server.add(
        pb.DESCRIPTOR.services_by_name["ProfilesService"],
        servicer,
        profiles_service_pb2_grpc.add_ProfilesServiceServicer_to_server,
    )
    server.start()
    yield servicer, server.address
    server.drain(0)


def test_updates_are_sent_once(away: tuple[Away, str]) -> None:
    """A read is repeated while its server is away. An update is not: the first may have been made, and its repeat would
    be told VERSION_MISMATCH, as if nothing had happened."""
    servicer, address = away
    with open_profiles(address) as channel:
        stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
        person = {"person_id": "8f2b1a52-5d0e-4b5c-9f4e-3f0a1c2d3e4f", "version": 1}
        business = {"business_id": person["person_id"], "version": 1}
        for call, request in (
            (stub.GetPerson, pb.GetPersonRequest(person_id=str(person["person_id"]))),
            (stub.UpdatePerson, pb.UpdatePersonRequest(person=person, update_mask={"paths": ["name"]})),  # type: ignore[arg-type]
            (stub.UpdateBusiness, pb.UpdateBusinessRequest(business=business, update_mask={"paths": ["website"]})),  # type: ignore[arg-type]
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert servicer.calls == {"GetPerson": 5, "UpdatePerson": 1, "UpdateBusiness": 1}


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_creates_are_sent_once(code: grpc.StatusCode) -> None:
    """Without a request id a repeat by the channel would be a second user; identity's client repeats with one.

    A server that begins to stop cancels what it has just received: that is repeated like UNAVAILABLE.
    """
    calls: Counter[str] = Counter()

    def away(method: str) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> None:
            calls[method] += 1
            context.abort(code, "away")

        return grpc.unary_unary_rpc_method_handler(answer)

    service = identity_service_pb2.DESCRIPTOR.services_by_name["IdentityService"]
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    handlers = {method: away(method) for method in service.methods_by_name}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Identity(f"127.0.0.1:{port}") as identity:
        for method in service.methods_by_name:
            with pytest.raises(grpc.RpcError):
                identity._channel.unary_unary(f"/{service.full_name}/{method}")(b"", timeout=10)
    server.stop(0)
    creating = {"SignUp", "BatchSignUp", "CreateUser", "CreateBusiness", "InviteUser", "AcceptInvitation"}
    writing = creating | {"UpdateBusiness"}  # a repeat of an update that was made has the wrong version
    assert {method for method, count in calls.items() if count == 1} == writing
    assert min(count for method, count in calls.items() if method not in writing) > 1
