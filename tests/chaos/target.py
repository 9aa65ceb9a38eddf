"""The targets of streams: the decoder, and live servers; both report errors."""

from __future__ import annotations

import random
import socket
import struct
import sys
from typing import Any

from tao.connection.options.definitions import Readers
from tao.errors import BadData
from tao.server.server import Server
from tao.wire.codec import Batch, TypeLengthValueCodec
from tao.wire.message import Registry
from tests.ends import Number, Text
from tests.support import PATIENCE, recv_exactly, wait_until
from tests.tls_pairs import CLIENT, SERVER

_PROBE = struct.pack("<iIq", 2, 8, 42)


def registry() -> Registry:
    """Return a registry: 1 is text, 2 a number, 3 any bytes, besides the heartbeat."""
    made = Registry()
    made.register(1, Text.deserialize)
    made.register(2, Number.deserialize)
    made.register(3, bytes)
    return made


def _decoded(pieces: list[bytes]) -> tuple[list[Any], str | None]:
    """Return everything that a decoder makes of the pieces, and its error."""
    decoder = TypeLengthValueCodec().decoder(registry())
    batch: Batch = []
    fed = 0
    for piece in pieces:
        fed += len(piece)
        try:
            decoder.feed(piece, batch)
        except BadData as error:
            return _shown(batch), str(error)
        kept = sys.getsizeof(decoder._header) + sys.getsizeof(decoder._value)
        assert kept <= 2 * fed + 1000, f"{kept} bytes are kept of {fed}"
    try:
        decoder.end()
    except BadData as error:
        return _shown(batch), str(error)
    return _shown(batch), None


def _shown(batch: Batch) -> list[Any]:
    """Return messages in a form that can be compared."""
    return [
        (number, each.serialize() if hasattr(each, "serialize") else each) for number, each in batch
    ]


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Cut a stream into pieces, of all sizes or of similar ones."""
    most = chance.choice((1, 8, 100, 5000, 10**6)) if len(data) < 20_000 else 10**5
    pieces, start = [], 0
    while start < len(data):
        size = chance.randint(1, most)
        pieces.append(data[start : start + size])
        start += size
    return pieces


def check_decoder(data: bytes, seed: int) -> None:
    """Check that a stream gives the same messages and the same error in any pieces.

    Raises:
        AssertionError, or an unexpected exception of the decoder.
    """
    whole = _decoded([data])
    pieces = _decoded(cut(random.Random(seed), data))
    assert whole == pieces, "where the stream is cut makes a difference"


class Target:
    """A server, with and without TLS, and a peer that must always be served.

    The peer uses the server's echo of numbers.
    """

    def __init__(self, readers: Readers = "own") -> None:
        known = registry()
        known.entries[2].handler = lambda ctx, conn: conn.write(ctx.message)
        self.server = Server(
            registry=known,
            handshake_timeout=2.0,
            idle_timeout=2.0,
            heartbeat=None,
            readers=readers,
        )
        self.plain = self.server.start(("127.0.0.1", 0))
        self.secure = self.server.start(("127.0.0.1", 0), tls=SERVER)
        self._good = socket.create_connection(self.plain, PATIENCE)

    def check(self, data: bytes, seed: int, way: str = "plain") -> None:
        """Send a stream to the server, and check that the server handles it.

        Args:
            way: ``"plain"``; ``"tls"``, within TLS; or ``"raw"``, instead of TLS.

        Raises:
            AssertionError: the server did not close the connection, or stopped serving others.
        """
        chance = random.Random(seed)
        sock = socket.create_connection(self.plain if way == "plain" else self.secure, PATIENCE)
        with sock if way != "tls" else CLIENT.wrap_socket(sock, server_hostname="localhost") as end:
            try:
                for piece in cut(chance, data):
                    end.sendall(piece)
                (end if way != "tls" else end.unwrap()).shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
                while end.recv(65536):
                    pass
            except TimeoutError:
                raise AssertionError("the server does not end the connection") from None
            except OSError:
                pass  # it has closed, which is legitimate
        self._good.sendall(_PROBE)
        assert recv_exactly(self._good, 16) == _PROBE, "others are not served any more"

    def wait_idle(self) -> None:
        """Wait until only the good connection is left."""
        wait_until(lambda: self.server.snapshot().connections == 1)

    def close(self) -> None:
        self._good.close()
        assert self.server.stop().clean
