"""Stops of servers under load: each message that was read is handled, or counted in the report."""

from __future__ import annotations

import itertools
import random
import socket
import ssl
import threading
from collections import defaultdict
from typing import Any

import pytest

from tao.server.reports import StopReport
from tao.server.server import Server
from tao.wire.message import Registry
from tests.connection.test_pairs import seeds
from tests.ends import Text, text
from tests.support import PATIENCE, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

PEERS = 4


class Load:
    """A server, and peers that send to it without a pause until its connections end.

    Args:
        fate: decides how much is sent at once, and which handlers reply or take long.
        options: of the server.
    """

    def __init__(self, fate: random.Random, tls: bool, **options: Any) -> None:
        self._fate, self._tls = fate, tls
        self.handled: defaultdict[str, list[int]] = defaultdict(list)
        registry = Registry()
        registry.handler(Text)(self._handle)
        self.server = Server(registry=registry, tls=SERVER if tls else None, workers=4, **options)
        self._address = self.server.start(("127.0.0.1", 0))
        self.slow: bool = False

    def _handle(self, ctx: Any, conn: Any) -> None:
        peer, number = ctx.message.text.split("-")
        self.handled[peer].append(int(number))
        if number[-1] == "3":
            conn.write(ctx.message)
        elif self.slow and number[-1] == "7":
            threading.Event().wait(0.001)

    def stop_under_load(self, timeout: float) -> StopReport:
        """Stop the server at a moment of no importance, and return its report."""
        stopped = threading.Event()
        reports: list[StopReport] = []

        def stop() -> None:
            count = self._fate.randrange(2000)
            wait_until(lambda: sum(map(len, self.handled.values())) >= count)
            reports.append(self.server.stop(timeout))
            stopped.set()

        together(stop, *(lambda peer=peer: self._send(peer, stopped) for peer in range(PEERS)))
        return reports[0]

    def _send(self, peer: int, stopped: threading.Event) -> None:
        numbers = itertools.count()
        try:
            with self._connect() as sock:
                while not stopped.is_set():
                    some = itertools.islice(numbers, self._fate.choice((1, 5, 50)))
                    sock.settimeout(PATIENCE)
                    sock.sendall(b"".join(text(f"{peer}-{number}") for number in some))
                    sock.settimeout(0.0)
                    try:
                        while sock.recv(1 << 16):
                            pass
                        return
                    except (BlockingIOError, ssl.SSLWantReadError):
                        pass
        except OSError:
            pass  # the server has stopped

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, PATIENCE)
        return CLIENT.wrap_socket(sock, server_hostname="localhost") if self._tls else sock

    def check_sums(self, report: StopReport) -> None:
        """Compare the report with what was read and handled, once nothing is handled any more."""
        wait_until(lambda: not self.server.connections)
        if not report.finished:  # it tells how things were at the deadline, and more was read then
            report = self.server.stop(PATIENCE)
            assert report.finished
        unhandled = sum(count for _, count, _ in report.abandoned)
        # A handler may have run on, and its thread had no turn since.
        handled = lambda: sum(map(len, self.handled.values()))  # noqa: E731
        wait_until(lambda: handled() == self.server.snapshot().handled)
        seen = self.server.snapshot()
        # What was being handled or refused at the deadline may have been so since.
        assert seen.messages_in - seen.handled <= unhandled, (seen, report)
        for numbers in self.handled.values():
            assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("seed", seeds(5))
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_the_sums_of_a_stop_are_exact(dispatch: str, readers: str, tls: bool, seed: int) -> None:
    """With time enough everything that was read is handled; in any case the report counts it."""
    fate = random.Random(f"{seed} {dispatch} {readers} {tls}")
    load = Load(fate, tls, dispatch=dispatch, readers=readers, drain_timeout=PATIENCE)
    load.slow = fate.random() < 0.5
    timeout = fate.choice((PATIENCE, PATIENCE, 0.0, 0.01))
    report = load.stop_under_load(timeout)
    load.check_sums(report)
    if timeout == PATIENCE:
        assert report.clean and not report.abandoned, report


@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("dispatch", ["auto", "pool", "inline"])
def test_a_handler_outlives_its_connection(dispatch: str, readers: str) -> None:
    """What it has handled by the time it returns counts, also after the stop."""
    entered, returns = threading.Event(), threading.Event()
    registry = Registry()

    @registry.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        if ctx.message.text == "last":
            entered.set()
            returns.wait(PATIENCE)

    server = Server(registry=registry, dispatch=dispatch, readers=readers)
    try:
        with socket.create_connection(server.start(("127.0.0.1", 0)), PATIENCE) as sock:
            sock.sendall(text("a") * 9 + text("last"))
            assert entered.wait(PATIENCE)
            report = server.stop(0.01)
            assert sum(count for _, count, _ in report.abandoned) >= 1
            assert not server.connections and server.snapshot().handled < 10
    finally:
        returns.set()
    wait_until(lambda: server.snapshot().handled == 10)
