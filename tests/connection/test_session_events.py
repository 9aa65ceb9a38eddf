"""Events that meet while a session is in use: nothing is lost without a word, whichever meet."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import tao
from tao.connection.connection import core_of
from tao.session.agreement import Opening
from tao.session.frames import Hello
from tao.testing.fault_proxy import Faults
from tests.ends import Number, Seen, number
from tests.session_pairs import (
    READERS,
    Both,
    begin_session,
    finish_opening,
    open_session,
    wait_established,
)
from tests.support import PATIENCE, together, wait_until

pytestmark = pytest.mark.usefixtures("patient")

#: How many messages are written from each end meanwhile.
COUNT = 200
#: How many times each pair meets; more with ``make pairs``.
TIMES = int(os.environ.get("PAIRS", "1"))


class Fates:
    """Both ends, and what became of what each has written."""

    def __init__(self, readers: str) -> None:
        self.both = Both(
            readers=readers,
            server={"sessions": tao.Sessions(retain_bytes=1600), "drain_timeout": 2.0},
            client={"drain_timeout": 0.5},
        )
        self.both.start()
        self.conn = self.both.conn
        self.accepted: dict[str, list[int]] = {"client": [], "server": []}

    def write(self, name: str) -> None:
        """Write numbers from one end, as long as that takes them."""
        conn = self.both.client if name == "client" else self.conn
        try:
            for value in range(COUNT):
                conn.write(Number(value), timeout=PATIENCE)
                self.accepted[name].append(value)
        except tao.ConnectionClosed:
            pass

    def end(self) -> None:
        """Close both ends, and look at what has become of each message."""
        self.both.close()
        for name, events, seen, conn in (
            ("client", self.both.client_events, self.both.at_server, self.both.client),
            ("server", self.both.events, self.both.at_client, self.both.server),
        ):
            assert events.items.count("connect") == events.items.count("close")
            handled = seen.items
            assert len(set(handled)) == len(handled)
            told = [value for each in events.items if "lost" in each for value in each[1]]
            assert len(set(told)) == len(told)
            gone = set(self.accepted[name]) - set(handled) - set(told)
            unsent = conn.snapshot().unsent
            assert len(gone) <= unsent, f"{name}: {sorted(gone)}, of which {unsent} were not sent"


def expire(fates: Fates) -> None:
    """End the session as its time ends, if it is lost just now."""
    stream: Any = core_of(fates.conn).transport
    for _ in range(1000):
        if not getattr(stream, "connected", True):
            stream.end("its time is up")
            return


def cut(fates: Fates) -> None:
    for _ in range(3):
        fates.both.proxy.reset()


def swallow(fates: Fates) -> None:
    """Have the present link say nothing any more, and be cut at one end only."""
    proxy = fates.both.proxy
    proxy.plan = lambda index: (Faults(), Faults())  # so the next ones are sound
    proxy.to_client.swallow = proxy.to_server.swallow = True
    transport = core_of(fates.both.client).transport
    if transport is not None:
        transport.outlives("the test says so")


def send_away(fates: Fates) -> None:
    """Tell the client to leave, unless the connection is over or the queue is full."""
    try:
        core_of(fates.conn).exchange.send_away()
    except (tao.ConnectionClosed, tao.WouldBlock):
        pass


EVENTS: dict[str, Callable[[Fates], object]] = {
    "cut": cut,
    "half open": swallow,
    "expire": expire,
    "the client closes": lambda fates: fates.both.client.close(),
    "the client aborts": lambda fates: fates.both.client.abort(),
    "the server closes": lambda fates: fates.conn.close(),
    "the server aborts": lambda fates: fates.conn.abort(),
    "the server stops": lambda fates: fates.both.server.stop(1.0),
    "told to leave": send_away,
}


PAIRS = list(itertools.combinations_with_replacement(EVENTS, 2))


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_each_message_has_a_fate(pair: tuple[str, str]) -> None:
    """It is handled once; or its sender is told, or knows that it was not sent."""
    one, other = (EVENTS[name] for name in pair)
    for time in range(PAIRS.index(pair), PAIRS.index(pair) + TIMES):
        fates = Fates(("own", "shared")[time % 2])
        together(
            lambda fates=fates: fates.write("client"),
            lambda fates=fates: fates.write("server"),
            lambda fates=fates: one(fates),
            lambda fates=fates: other(fates),
        )
        fates.end()


def resume_all(begun: list[tuple[socket.socket, Opening]]) -> list[str]:
    """Say HELLO on all of these connections at once; return what becomes of each."""

    def finish(sock: socket.socket, opening: Opening) -> str:
        try:
            finish_opening(sock, opening)
        except OSError:
            return "closed"
        return opening.refusal or "resumed"

    return together(*(partial(finish, *each) for each in begun))


@READERS
def test_resumes_that_race(make_server: Any, readers: str, switching: None) -> None:
    """The last attempt has the session in the end, and what comes by it is handled."""
    seen, registry = Seen(), tao.Registry()
    registry.handler(Number)(lambda ctx, conn: seen.add(ctx.message.value))
    sessions = tao.Sessions()
    server, address = make_server(sessions=sessions, readers=readers, registry=registry)
    first, opening = open_session(address, Hello())
    wait_established(server)
    welcome, attempts, before = opening.welcome, itertools.count(1), [first]
    assert welcome is not None
    for value in range(10 * TIMES):
        begun = [
            begin_session(address, Hello(welcome.session_id, next(attempts)), welcome.secret)
            for _ in range(1 + value % 3)
        ]
        assert resume_all(begun)[-1] == "resumed"
        begun[-1][0].sendall(number(value))
        assert seen.wait(value + 1)[-1] == value
        wait_until(lambda: sessions.lingering == 0)
        for sock in before:
            sock.close()
        before = [sock for sock, _ in begun]
    for sock in before:
        sock.close()
    assert seen.items == list(range(10 * TIMES))
