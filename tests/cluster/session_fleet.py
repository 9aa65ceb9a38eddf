"""Clients with sessions, of the processes of a supervisor, and what they and these have seen."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from typing import Any

import tao
from tao.testing.fault_proxy import FaultProxy, Faults
from tests.cluster.fleet import Fleet, exists
from tests.ends import Seen, Text
from tests.programs import LONG
from tests.support import wait_until
from tests.tls_pairs import ALICE


class Client:
    """A client with a session, and a proxy on its way to the processes."""

    def __init__(self, fleet: Fleet, **options: Any) -> None:
        if getattr(fleet, "tls", False):
            options |= {"tls": ALICE, "server_hostname": "localhost"}
        self.proxy = FaultProxy(("127.0.0.1", fleet.port))
        self.events, self.heard, self.spoken = Seen(), Seen(), Seen()
        registry = tao.Registry()
        registry.handler(Text)(lambda ctx, conn: self._hear(ctx.message.text))
        self.conn = tao.ClientConn(
            self.proxy.address,
            registry=registry,
            session="required",
            reconnect=tao.Reconnect(initial=0.001, maximum=0.05),
            on_connect=lambda conn: self.events.add("connect"),
            on_close=lambda conn: self.events.add("close"),
            on_session_lost=lambda conn, lost: self.events.add(("lost", texts(lost))),
            **options,
        )

    def _hear(self, text: str) -> None:
        (self.spoken if text.startswith("spoken ") else self.heard).add(text)

    def ask(self, text: str) -> str:
        """Write a message, and return the last that was heard once another one was."""
        before = len(self.heard.items)
        self.conn.write(Text(text))
        return str(self.heard.wait(before + 1, LONG)[before])

    def lose(self) -> None:
        """Lose the link, and wait until the session goes on."""
        session = self.conn.session
        before = 0 if session is None else session.resumes
        self.proxy.reset()
        wait_until(lambda: self.conn.session and self.conn.session.resumes > before, LONG)

    def __enter__(self) -> Client:
        self.conn.start(keep_trying=True)
        assert self.conn.wait_connected(LONG)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.proxy.plan = None
        self.conn.close()
        self.proxy.close()


def lost_in(client: Client) -> list[str]:
    """The messages that the client was told of as uncertain."""
    return [text for each in client.events.items if isinstance(each, tuple) for text in each[1]]


def handled_by(fleet: Fleet) -> list[int]:
    """The numbers that the processes have handled."""
    texts = (fleet.module.parent / "handled").read_text().splitlines()
    return [int(text) for text in texts if text.isdigit()]


def workers(fleet: Fleet) -> list[int]:
    """The processes that serve."""
    words = ["ps", "-o", "pid=", "--ppid", str(fleet.pid)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return list(filter(exists, map(int, shown.split())))


def texts(messages: list[tao.UnknownMessage]) -> list[str]:
    return [each.value.decode() for each in messages]


def cutting(seed: int, connections: int = 1_000_000) -> Callable[[int], tuple[Faults, Faults]]:
    """Return a plan that ends so many connections somewhere, many while they begin.

    Some pass more than 16 KB, as nothing of a TLS record arrives unless all of it does.
    """
    chance = random.Random(seed)

    def ending(index: int) -> Faults:
        most = 300 if index > 1 and chance.random() < 0.3 else 40_000
        kind = chance.choice(["cut_after", "reset_after"])
        end = chance.randint(4000 if index == 1 else 1, most)
        return Faults(**{kind: end}) if index <= connections else Faults()

    return lambda index: (ending(index), ending(index))


TLS = "tls=tao.load_tls_config('server.pem', 'key.pem', client_ca='ca.pem')"
KINDS = {
    "own": "",
    "shared": "readers='shared'",
    "TLS": TLS,
    "TLS, shared": f"{TLS}, readers='shared'",
}
# All of them with a whole `make sessions`; otherwise two, and for tests that take long one.
_ALL = int(os.environ.get("SESSION_MESSAGES", "0")) >= 100_000
SOME = list(KINDS) if _ALL else ["own", "TLS, shared"]
ONE = list(KINDS) if _ALL else ["TLS, shared"]
