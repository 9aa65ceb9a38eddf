"""The context of a handler: the header of the message's frame."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tao import Registry
from tao.wire.arrival import Arrival
from tao.wire.codec import Batch, TypeLengthValueCodec
from tests.ends import End, Number, Seen, number

OpenEnd = Callable[..., End]


class Lined(TypeLengthValueCodec):
    """Counts the frames of a connection, and passes the count to handlers as a header."""

    gives_headers = True

    def decoder(self, registry: Registry) -> Any:
        plain, count = super().decoder(registry), iter(range(10**6))

        class Decoder:
            def feed(self, data: bytes, batch: Batch) -> None:
                found: Batch = []
                plain.feed(data, found)
                for key, message in found:
                    header = SimpleNamespace(line=next(count))
                    batch.append((key, Arrival(message, header)))

        return Decoder()


def test_a_handler_gets_the_header_beside_the_message(open_end: OpenEnd) -> None:
    """The decoder's header is ``ctx.header``; the message is not changed."""
    registry, seen = Registry(), Seen()

    @registry.handler(Number)
    def note(ctx: Any, conn: Any) -> None:
        seen.add((ctx.message.value, ctx.header.line))

    end = open_end(registry=registry, codec=Lined())
    end.send(number(5) + number(6) + number(7))
    end.send(number(8))
    assert seen.wait(4) == [(5, 0), (6, 1), (7, 2), (8, 3)]


def test_without_a_header_there_is_none(open_end: OpenEnd) -> None:
    """``ctx.header`` is None if the codec has no headers."""
    registry, seen = Registry(), Seen()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.header))
    end = open_end(registry=registry)
    end.send(number(5))
    assert seen.wait(1) == [None]
