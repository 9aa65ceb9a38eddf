"""Middleware on connections: its arguments, its abilities, and the speed of handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tests.ends import End, Number, Seen, Text, frame, number, text

OpenEnd = Callable[..., End]


def owner_of(end: End) -> Any:
    return end.server or end.conn


def test_middleware_may_refuse_answer_and_replace(open_end: OpenEnd) -> None:
    """It gets the same arguments as the handler, which gets what the middleware passes on."""
    end = open_end()
    owner = owner_of(end)

    @owner.use
    def guard(ctx: tao.Context[Any], conn: tao.Connection, call_next: Any) -> None:
        if ctx.message.text == "secret":
            conn.write(Text("refused"))
        else:
            call_next(tao.context_with_message(ctx, Text(ctx.message.text.upper())), conn)

    @owner.use
    def answer(ctx: tao.Context[Any], conn: tao.Connection, call_next: Any) -> None:
        try:
            call_next(ctx, conn)
        except ValueError as error:
            conn.write(Text(f"error: {error}"))

    @owner.handler(Text)
    def handle(ctx: tao.Context[Text], conn: tao.Connection) -> None:
        if ctx.message.text == "BAD":
            raise ValueError("bad")
        conn.write(ctx.message)

    end.send(text("secret") + text("bad") + text("hello"))
    assert [end.read_text() for _ in range(3)] == ["refused", "error: bad", "HELLO"]


def test_it_also_wraps_on_message_and_any(open_end: OpenEnd) -> None:
    """It does not wrap heartbeats and messages without a handler."""
    seen = Seen()
    end = open_end(on_message=lambda message, conn: seen.add(message.text), heartbeat=None)
    end.registry.register(1, Text.deserialize)

    @owner_of(end).use
    def note(ctx: Any, conn: Any, call_next: Any) -> None:
        seen.add("before")
        call_next(ctx, conn)

    end.send(frame(0) + frame(7) + text("one"))
    assert seen.wait(2) == ["before", "one"]
    end.registry.handler(tao.ANY)(lambda ctx, conn: seen.add(ctx.message.number))
    end.send(frame(0) + frame(7))
    assert seen.wait(4)[2:] == ["before", 7]


def test_errors_are_reported_like_those_of_handlers(open_end: OpenEnd) -> None:
    """The report has the number of the message, and the connection stays open."""
    errors = Seen()
    end = open_end(on_error=lambda conn, error: errors.add(repr(error)))

    @owner_of(end).use
    def fail(ctx: Any, conn: Any, call_next: Any) -> None:
        raise RuntimeError(call_next.__name__)

    @owner_of(end).handler(Number)
    def count(ctx: Any, conn: Any) -> None: ...

    end.send(number(1) + number(2))
    assert errors.wait(2) == ["RuntimeError('count')"] * 2


@pytest.mark.parametrize("slow", ["neither", "middleware"])
def test_promotion_depends_on_both_together(open_end: OpenEnd, slow: str) -> None:
    """A quick handler is promoted to the reader with quick middleware, but not with slow."""
    seen, never = Seen(), threading.Event()
    end = open_end()

    @owner_of(end).use
    def wait(ctx: Any, conn: Any, call_next: Any) -> None:
        if slow == "middleware":
            never.wait(0.002)
        call_next(ctx, conn)

    @owner_of(end).handler(Number)
    def count(ctx: Any, conn: Any) -> None:
        seen.add(threading.current_thread().name)

    for value in range(20 if slow == "middleware" else 200):
        end.send(number(value))
        seen.wait(value + 1)
    on_reader = any("reader" in name for name in seen.items)
    assert on_reader == (slow == "neither") and "reader" not in seen.items[0]
