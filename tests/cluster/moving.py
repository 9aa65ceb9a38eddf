"""A client with a session, and two servers between which the session moves, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tao
from tao.cluster.processes.draining import drain
from tao.cluster.sessions.sockets import SessionNames, SessionSockets
from tao.server.server import server_core_of
from tao.wire.message import Registry
from tests.ends import Number, Seen, Text
from tests.session_pairs import Both, values


class Moving(Both):
    """A client with a session, its server, and another server that is to have the session.

    Args:
        names: of their Unix sockets.
        readers: of all three.
        new: options of the other server.
        client: ... and of the client.
        on_text: what the first server does with a `Text`; the other one leaves it.
        linger: of the session.
        options: of the first server.
    """

    def __init__(
        self,
        names: SessionNames,
        readers: str,
        new: Any = None,
        client: Any = None,
        on_text: Callable[[Any, Any], object] = lambda *_: None,
        linger: float = 60,
        **options: Any,
    ) -> None:
        self.linger = linger
        self.old, self.new = Seen(), Seen()
        first = {"registry": self._registry(on_text), **self._noting(self.old), **options}
        client = {"on_resume": lambda conn: note_resume(self.client_events), **(client or {})}
        super().__init__(server=first, client=client, readers=readers)
        registry = self._registry(lambda *_: None)
        second = {"registry": registry, "readers": readers, **self._noting(self.new), **(new or {})}
        self.heir = tao.Server(**second)
        self.heir_address = self.heir.start(("127.0.0.1", 0))
        for number, server in enumerate((self.server, self.heir), 1):
            core = server_core_of(server)
            take = core.acceptor.take_link, core.acceptor.take_session
            core.session_port = port = SessionSockets(names.prefix, number, *take)
            core.settings.sessions.mark = port.mark
        self.start()

    def _registry(self, on_text: Callable[[Any, Any], object]) -> Registry:
        registry = Registry()
        registry.handler(Number)(lambda ctx, conn: self.at_server.add(ctx.message.value))
        registry.handler(Text)(on_text)
        return registry

    def _noting(self, seen: Seen) -> dict[str, Any]:
        return {
            "sessions": tao.Sessions(linger=self.linger, save=self.save, load=self.load),
            "on_connect": lambda conn: seen.add("connect"),
            "on_resume": lambda conn: note_resume(seen),
            "on_close": lambda conn: seen.add("close"),
            "on_session_lost": lambda conn, lost: seen.add(("lost", values(lost))),
        }

    def save(self, conn: tao.ServerConn) -> bytes:
        self.old.add("save")
        return b"saved"

    def load(self, conn: tao.ServerConn, data: bytes) -> None:
        assert data == b"saved"
        self.new.add("load")

    def drain(self) -> None:
        """Have the old server replaced by the other one, and wait until it has stopped."""
        port: Any = server_core_of(self.server).session_port
        port.heir = 2
        self.proxy.target = self.heir_address
        drain(self.server, 0.0)

    def close(self) -> None:
        super().close()
        self.heir.stop()


def note_resume(seen: Seen) -> None:
    """Note one of several in a row: a link that the old process passes on may be lost soon."""
    if seen.items[-1:] != ["resume"]:
        seen.add("resume")
