"""What a ticket tells of a message, at both ends and with both kinds of readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ends import End, Number, Text, text
from tests.session_pairs import READERS, Both
from tests.support import PATIENCE, wait_until
from tests.tls_pairs import SERVER

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


@READERS
@pytest.mark.parametrize("tls", [None, SERVER], ids=["plain", "TLS"])
@pytest.mark.parametrize("session", [False, True], ids=["no session", "session"])
def test_what_is_withdrawn_is_not_sent_on_a_later_connection(
    patient: None, readers: str, tls: Any, session: bool
) -> None:
    """The connection breaks again and again; what is told to be unsent never arrives."""
    server = {} if session else {"sessions": None}
    both = Both(readers=readers, tls=tls, server=server, client={"session": session})
    withdrawn, last = [], 500
    try:
        both.client.start()
        for value in range(last):
            if value % 50 == 25:
                both.proxy.reset()
            ticket = both.client.submit(Number(value), timeout=PATIENCE)
            if value % 2 and ticket.withdraw():
                assert not ticket.sent
                withdrawn.append(value)
        # Without a session, a connection that breaks may take this with it.
        wait_until(
            lambda: (
                last in both.at_server.items or both.client.write(Number(last), timeout=PATIENCE)
            )
        )
        seen = [each for each in both.at_server.items if each < last]
        assert not set(withdrawn) & set(seen) and seen == sorted(set(seen))
    finally:
        both.close()
