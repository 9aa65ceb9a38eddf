"""Messages that replace each other while they wait: ``conn.write(..., replace=key)``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tao.connection.connection import Connection
from tao.connection.sending.keyed_frames import keyed
from tao.errors import WouldBlock
from tests.connection.test_send_queue import KIB, Line, line
from tests.ends import End, Text, text
from tests.injection import opcodes
from tests.support import PATIENCE, together

__all__ = ["line"]

MakeLine = Callable[..., Line]


def put(line: Line, *frames: tuple[Any, bytes]) -> None:
    for key, frame in frames:
        line.box.write_keyed(keyed(frame, key))


def test_the_latest_takes_the_place_of_the_one_that_waits(line: MakeLine) -> None:
    """Others stay where they are, and what is sent is replaced by nothing."""
    it = line()
    it.open()
    put(it, ("a", b"a0"))  # is sent at once
    blocked = it.block()
    put(it, ("a", b"a1"), ("b", b"b1"), (("a", 1), b"c1"))
    it.box.write(b"plain")
    put(it, ("a", b"a2 is longer"), ("b", b"b2"), ("a", b"a3"))
    assert it.box.waiting == 5
    expected = b"a0" + blocked + b"a3" + b"b2" + b"c1" + b"plain"
    assert it.read(len(expected)) == expected
    put(it, ("a", b"a4"))
    assert it.read(2) == b"a4"


def test_a_frame_that_is_partly_sent_is_not_replaced(line: MakeLine) -> None:
    """The peer gets it as a whole, and the next one after it."""
    it = line()
    it.open()
    frame = bytes(100 * KIB)
    put(it, ("a", frame), ("a", b"next"), ("a", b"last"))
    assert it.read(len(frame) + 4) == frame + b"last"


def test_a_full_queue_has_room_for_what_replaces(line: MakeLine) -> None:
    """No room is needed for a frame; more bytes than there is room for are refused."""
    it = line(2, limit_bytes=110_000)
    it.open()
    it.block()
    put(it, ("a", b"a1"), ("a", b"a2"))
    for more in (("b", b"b1"), ("a", bytes(20_000))):
        with pytest.raises(WouldBlock):
            put(it, more)
    put(it, ("a", bytes(5000)))
    assert it.box.waiting == 2


def test_without_a_transport(line: MakeLine) -> None:
    """A client that is away sends only the latest when it is back."""
    it = line(keep=True)
    put(it, ("a", b"a1"), ("b", b"b1"), ("a", b"a2"))
    it.open()
    assert it.read(4) == b"a2b1"


def test_many_threads(line: MakeLine) -> None:
    """At most one frame of each key waits, and the last one written is the last one sent."""
    it = line()
    it.open()
    blocked = it.block()

    def write(key: int) -> None:
        chance = random.Random(key)
        for number in range(200):
            put(it, (key, b"%d:%03d;" % (key, number)))
            if chance.random() < 0.1:
                it.box.write(b"")

    together(*(lambda key=key: write(key) for key in range(4)), lambda: it.read(len(blocked)))
    put(it, ("end", b"."))
    data = b""
    while not data.endswith(b"."):
        data += it.read(1)
    for key in range(4):
        numbers = [each[2:] for each in data[:-1].split(b";") if each.startswith(b"%d:" % key)]
        assert numbers == sorted(set(numbers)) and numbers[-1] == b"199"


@pytest.mark.interrupted
def test_an_exception_at_any_bytecode(line: MakeLine) -> None:
    """Either frame waits, whole and in its place, and what is counted is right."""
    modules = (
        "tao.connection.sending.admission",
        "tao.connection.sending.backlog",
        "tao.connection.sending.send_queue",
    )
    for moment in opcodes(*modules):
        it = line()
        it.open()
        blocked = it.block()
        put(it, ("a", b"a1"))
        it.box.write(b"plain")
        with moment.raising():
            put(it, ("a", b"a2 is longer"))
        it.box.write(b".")
        data = it.read(len(blocked))
        rest = it.read(8)
        rest += it.read(10) if rest.startswith(b"a2") else b""
        assert data == blocked and rest in (b"a1plain.", b"a2 is longerplain."), moment
        it.close()


@pytest.fixture
def prices(open_end: Callable[..., End]) -> tuple[End, Connection]:
    """An end whose peer reads nothing yet, and its connection with much to send."""
    end = open_end(queue_size=3)
    for _ in range(2):
        end.conn.write(Text("x" * 8_000_000))
    return end, end.conn


def test_prices(prices: tuple[End, Connection]) -> None:
    """Of what a peer is too slow for, it gets the latest of each key."""
    end, conn = prices
    for price in range(100):
        conn.write(Text(f"{price}"), replace=("EUR", "USD"))
    with pytest.raises(WouldBlock):
        conn.write(Text("another"), replace="another")
    for _ in range(2):
        assert len(end.read_text()) == 8_000_000
    assert end.read_text() == "99"
    conn.write(Text("100"), replace=("EUR", "USD"), timeout=PATIENCE)
    assert end.read(11) == text("100")


@pytest.mark.parametrize("wrong", [1.5, True, ["a"], ("a", None), ("a", ("b", [])), object()])
def test_what_is_no_key(open_end: Callable[..., End], wrong: Any) -> None:
    """It is refused, and nothing is sent."""
    end = open_end()
    with pytest.raises(TypeError, match="replace must be a str, an int, bytes or a tuple"):
        end.conn.write(Text("x"), replace=wrong)
    assert end.conn.send_queue_length == 0
