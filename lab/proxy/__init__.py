"""The fault proxy: stands between any two processes and breaks the wire between them, when and where it is told to.

`TcpProxy` knows bytes, `RpcRelay` knows calls. Both live in the test's own process, hold no more than their limits, and
are gone after `close()`.
"""

from lab.proxy.faults import Act, Cue, Fault, Http2Frames, Raw, anything, is_headers, is_message
from lab.proxy.rpc import CallFault, Reply, RpcRelay
from lab.proxy.tcp import MAX_LINKS, MAX_QUEUED_BYTES, TcpProxy

__all__ = [
    "MAX_LINKS",
    "MAX_QUEUED_BYTES",
    "Act",
    "CallFault",
    "Cue",
    "Fault",
    "Http2Frames",
    "Raw",
    "Reply",
    "RpcRelay",
    "TcpProxy",
    "anything",
    "is_headers",
    "is_message",
]
