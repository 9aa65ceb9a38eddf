"""The heartbeat that tells capabilities, byte by byte."""

from __future__ import annotations

import struct

import pytest

from tao.wire import capabilities
from tao.wire.message import HeartbeatMessage
from tests.ends import frame

MAGIC = bytes.fromhex("9354414f0d0a1aff")
ASK = struct.pack("<q", 5) + MAGIC + b"\1\1\0\0" + b"\1\0\0\0" + b"\7" + bytes(7)


def test_it_is_laid_out_as_documented() -> None:
    """Time, magic, version, kind, zero, capabilities, nonce: 32 bytes."""
    made = capabilities.capability_frame(5, capabilities.ASK, capabilities.REQUESTS, 7)
    assert made == frame(0, ASK) and len(ASK) == 32
    assert capabilities.read(ASK) == (capabilities.ASK, capabilities.REQUESTS, 7)


def test_an_older_peer_takes_it_for_a_heartbeat() -> None:
    """The time is where it always was."""
    assert HeartbeatMessage.deserialize(ASK).timestamp == 5


@pytest.mark.parametrize("index", [*range(8, 18), 18, 19])
def test_anything_else_is_a_plain_heartbeat(index: int) -> None:
    """Another magic, version or kind, or a reserved bit that is set."""
    other = bytearray(ASK)
    other[index] ^= 0x40
    assert capabilities.read(bytes(other)) is None


@pytest.mark.parametrize("size", [0, 8, 16, 31, 33])
def test_another_size_is_a_plain_heartbeat(size: int) -> None:
    """A busy server of the original sends such now and then."""
    assert capabilities.read((ASK + ASK)[:size]) is None
