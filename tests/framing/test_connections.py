"""Declared frames on real connections."""

from __future__ import annotations

import queue
import subprocess
import sys
from typing import Any, ClassVar

import pytest

import tao
from tests.framing.test_frame import Raw, gt06, modbus
from tests.programs import LONG
from tests.support import PATIENCE


class Read:
    """A request or a reply of function 3."""

    message_number: ClassVar[int] = 3

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Read:
        return cls(data)


def test_headers_in_both_directions() -> None:
    """The handler sees the header of a request, and a reply can reuse it."""
    codec, registry = modbus(), tao.Registry()
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    server = tao.Server(codec=codec, registry=registry)

    @server.handler(Read)
    def answer(ctx: tao.Context[Read], conn: tao.ServerConn) -> None:
        conn.write(Read(ctx.message.data * 2), header=codec.reply_header(ctx.header))

    client = tao.ClientConn(server.start(("127.0.0.1", 0)), codec=codec, registry=tao.Registry())
    client.handler(Read)(lambda ctx, conn: came.put((ctx.message.data, ctx.header)))
    with server, client:
        client.write(Read(b"ab"), header={"transaction": 700, "unit": 9})
        data, header = came.get(timeout=PATIENCE)
        assert (data, header.transaction, header.unit) == (b"abab", 700, 9)
        client.submit(Read(b"c"), header={"transaction": 701, "unit": 9})
        assert came.get(timeout=PATIENCE)[1].transaction == 701
        with pytest.raises(tao.BadData, match="unit has no value"):
            client.write(Read(b"ab"))


def test_a_codec_without_fields_takes_no_header() -> None:
    """The error names the codec; nothing is sent."""
    client = tao.ClientConn(("127.0.0.1", 1))
    with pytest.raises(TypeError, match="frames of TypeLengthValueCodec have no other fields"):
        client.write(Raw(1), header={"unit": 1})
    client.close()


def test_an_unregistered_message_has_its_header() -> None:
    """A handler of `ANY` can reply to it, however the frame is decoded."""
    for codec in (modbus(), gt06()):
        registry = tao.Registry()
        registry.handler(tao.ANY)(lambda ctx, conn: None)
        decoder = codec.decoder(registry)
        batch: list[Any] = []
        for header in ({"transaction": 7, "unit": 1}, {"serial": 7}):
            if codec.correlate in header:
                decoder.feed(codec.encode(Raw(3, b"abc"), header), batch)
        [(number, arrival)] = batch
        assert (number, arrival.message.number, arrival.message.value) == (3, 3, b"abc")
        assert getattr(arrival.header, codec.correlate or "") == 7


def test_it_is_imported_when_it_is_used() -> None:
    """A program that speaks tao's own framing does not load it."""
    program = "import sys, tao; tao.Server(); assert 'tao.framing' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LONG)
