"""Kafka's wire through the fault proxy: whoever asks for the broker's address is told the proxy's."""

from __future__ import annotations

import struct

from lab.wire_kafka import Replies

THEIRS, OURS = 9092, 40_001


def answer(content: bytes) -> bytes:
    """With its length before it."""
    return struct.pack(">I", len(content)) + content


def node(port: int) -> bytes:
    """As an answer names a broker: its id, its host with the length before it, its port."""
    return struct.pack(">IH", 1, 9) + b"127.0.0.1" + struct.pack(">I", port)


def test_the_brokers_port_becomes_the_proxys() -> None:
    """Each time that it is named, and nothing else: not another host's, not the number alone."""
    other = struct.pack(">IH", 2, 9) + b"127.0.0.2" + struct.pack(">I", THEIRS)
    said = answer(b"meta" + node(THEIRS) + other + node(THEIRS) + struct.pack(">I", THEIRS))
    wanted = answer(b"meta" + node(OURS) + other + node(OURS) + struct.pack(">I", THEIRS))
    assert Replies(f"127.0.0.1:{THEIRS}", OURS).feed(said) == [wanted]


def test_an_answer_that_comes_in_pieces_is_passed_on_whole() -> None:
    """The port may be cut in two; two answers may come at once."""
    said = answer(node(THEIRS)) + answer(b"more")
    replies = Replies(f"127.0.0.1:{THEIRS}", OURS)
    found = [one for at in range(len(said)) for one in replies.feed(said[at : at + 1])]
    assert found == [answer(node(OURS)), answer(b"more")]
    assert Replies(f"127.0.0.1:{THEIRS}", OURS).feed(said) == found
