"""Streams cut into pieces, and the results of decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tao.errors import BadData
from tao.wire.codec import Batch
from tao.wire.message import Registry


def registry_of(*numbers: Any) -> Registry:
    """Return a registry in which these numbers stand for the values themselves."""
    registry = Registry()
    for number in numbers:
        registry.register(number, lambda data: data)
    return registry


def decoded(decoder: Any, *pieces: bytes) -> Batch:
    """Return everything that a decoder makes of the pieces; the stream may end after them."""
    batch: Batch = []
    for piece in pieces:
        decoder.feed(piece, batch)
    decoder.end()
    assert decoder.pending == 0
    return batch


def outcome(decoder: Any, pieces: Iterable[bytes]) -> tuple[Batch, str]:
    """Return the messages that a decoder makes of any bytes, and the reason of a rejection."""
    batch: Batch = []
    try:
        for piece in pieces:
            decoder.feed(piece, batch)
        decoder.end()
    except BadData as error:
        assert not error.unintended, repr(error.__cause__)
        return batch, str(error)
    return batch, ""


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def check_cuts(make: Callable[[], Any], stream: bytes, expected: Batch) -> None:
    """Check that a stream gives the same messages whole, byte by byte and cut in two anywhere."""
    assert decoded(make(), stream) == expected
    for size in (1, 2, 3, 7):
        assert decoded(make(), *in_pieces(stream, size)) == expected, f"pieces of {size}"
    for at in range(len(stream) + 1):
        assert decoded(make(), stream[:at], stream[at:]) == expected, f"cut at {at}"
