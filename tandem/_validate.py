"""Puts ``buf/validate/validate.proto`` into protobuf's default descriptor pool; nothing else lives here.

The contracts are annotated with protovalidate rules, so their generated code needs that file registered
before it can be imported. protovalidate 2.x has its descriptor, but no ``buf.validate.validate_pb2``;
`scripts/protos` therefore makes generated code import this module in its place. There is no copy of ours: the
descriptor is the installed protovalidate's own, so rules and validator always fit.

A program that registers the file itself (a ``validate_pb2`` of its own) must do so first: its descriptor is
then kept. The other way round, the pool refuses a second file of that name, unless it is the same.
"""

import protovalidate
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    timestamp_pb2,
)
from google.protobuf.descriptor import FileDescriptor

__all__ = ["DESCRIPTOR"]

_NAME = "buf/validate/validate.proto"
# Importing these puts them into the pool, where the file below looks for its own imports.
_IMPORTS = (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2)


def _register() -> FileDescriptor:
    pool = descriptor_pool.Default()
    try:
        return pool.FindFileByName(_NAME)
    except KeyError:
        # No method hands out the file; any message that it declares knows it.
        pool.AddSerializedFile(protovalidate.ViolationPb.desc().file.proto.to_binary())
        return pool.FindFileByName(_NAME)


DESCRIPTOR = _register()
