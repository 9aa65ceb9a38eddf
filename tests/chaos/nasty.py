"""Hand-made streams that a careless decoder or server would fail on."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

LIMIT = 8 * 1024 * 1024


def frame(number: int, value: bytes = b"", length: int | None = None) -> bytes:
    """Return a message of the default codec; the length in its header may be wrong."""
    length = len(value) if length is None else length
    return struct.pack("<iI", number, length) + value


def _client_hello(size: int) -> bytes:
    """Return the beginning of a TLS client hello with an invalid body."""
    body = b"\x01\x00" + struct.pack(">H", size) + random.Random(0).randbytes(size)
    return b"\x16\x03\x01" + struct.pack(">H", len(body)) + body


#: By name. The tests that use these register numbers 0 to 3: a heartbeat, a text, a number, and
#: any bytes.
STREAMS: dict[str, bytes] = {
    "nothing": b"",
    "one-byte": b"\x01",
    "header-but-one-byte": frame(1, b"")[:7],
    "header-of-a-value-that-never-comes": frame(3, b"", 1000),
    "longest-allowed-announced": frame(3, b"", LIMIT),
    "one-more-than-allowed": frame(1, b"whole") + frame(3, b"", LIMIT + 1),
    "length-of-all-ones": frame(3, b"x", 0xFFFFFFFF),
    "length-with-the-sign-bit": frame(3, b"x", 0x80000000),
    "least-and-greatest-number": frame(-(2**31) + 16, b"a") + frame(2**31 - 1, b"b") + frame(-1),
    "own-numbers": b"".join(frame(n, bytes(40)) for n in range(-(2**31), -(2**31) + 16)),
    "thousands-of-empty-messages": frame(3) * 5000,
    "thousands-of-unknown-numbers": b"".join(frame(n, b"?") for n in range(100, 3000)),
    "not-utf-8": frame(1, b"fine") + frame(1, b"\xff\xfe\x80"),
    "half-a-surrogate": frame(1, b"\xed\xa0\x80"),
    "number-too-short": frame(2, b"\x00" * 7),
    "number-too-long": frame(2, b"\x00" * 9),
    "heartbeat-of-wrong-size": frame(0, b"\x00" * 3),
    "heartbeats-from-the-end-of-time": frame(0, b"\xff" * 7 + b"\x7f") + frame(0, b"\x80" * 8),
    "good-then-zeros": frame(1, b"good") + bytes(4096),
    "all-ones": b"\xff" * 4096,
    "a-tls-client": _client_hello(508),
    "a-tls-client-of-few-words": _client_hello(127),
    "a-tls-alert": b"\x15\x03\x01\0\x02\x02\x46",
    "an-http-request": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "a-message-in-a-message": frame(3, frame(3, frame(3, b"core") * 3) * 3),
    "one-large-message": frame(3, random.Random(1).randbytes(600_000)),
}

Mutation = Callable[[random.Random, bytearray], None]


def _flip(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _overwrite(chance: random.Random, data: bytearray) -> None:
    """Insert a critical integer, often at the beginning of a header."""
    at = chance.choice((0, 4, chance.randrange(len(data))))
    value = chance.choice((0, 1, 7, 8, 9, LIMIT, LIMIT + 1, 2**31 - 1, 2**31, 2**32 - 1))
    data[at : at + 4] = struct.pack("<I", value)


def _remove(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 20)]


def _insert(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.randrange(1, 20))


def _repeat(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    piece = data[at : at + chance.randrange(1, 200)]
    data[at:at] = piece * chance.randrange(1, 10)


def _truncate(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(len(data)) :]


def _append(chance: random.Random, data: bytearray) -> None:
    data += chance.choice(list(STREAMS.values()))[:2000]


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _overwrite, _overwrite, _remove, _insert, _repeat, _truncate, _append,
)  # fmt: skip


def mutate(chance: random.Random, streams: list[bytes]) -> bytes:
    """Return a mutation of one of the given streams."""
    data = bytearray(chance.choice(streams)[: chance.choice((50, 3000, 10**6))])
    for _ in range(chance.randrange(1, 6)):
        if not data:
            data += frame(chance.randrange(5), chance.randbytes(chance.randrange(30)))
        chance.choice(MUTATIONS)(chance, data)
    return bytes(data)
