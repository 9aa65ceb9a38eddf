"""What a ticket tells of a message, at both ends and with both kinds of readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.ends import End, Text, text
from tests.support import wait_until

#: More than all buffers on the way take.
LONG = "x" * 8_000_000


def test_a_ticket_tells_whether_it_was_sent(open_end: Callable[..., End]) -> None:
    """A message that the kernel has accepted cannot be withdrawn."""
    end = open_end()
    ticket = end.conn.submit(Text("short"))
    wait_until(lambda: ticket.sent)
    assert not ticket.withdraw() and ticket.sent
    assert end.read_text() == "short"


def test_what_is_withdrawn_is_never_sent(open_end: Callable[..., End]) -> None:
    """Nor is what was withdrawn already withdrawn again into something else."""
    end = open_end()
    first, *others = (end.conn.submit(Text(each)) for each in (LONG, "a", "b", "c"))
    assert not first.withdraw()  # the kernel has begun with it
    assert others[1].withdraw() and others[1].withdraw()
    assert not any(each.sent for each in (first, *others))
    expected: Any = text(LONG) + text("a") + text("c")
    assert end.read(len(expected)) == expected
    wait_until(lambda: first.sent and others[0].sent and others[2].sent)
    assert not others[1].sent and not others[2].withdraw()
