"""The FIX example: with simplefix, and through a proxy that cuts connections."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tao.testing import FaultProxy
from tests.programs import Program
from tests.support import PATIENCE

simplefix = pytest.importorskip("simplefix")
# Of simplefix, from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*utcfromtimestamp:DeprecationWarning")


class Peer:
    """A FIX client made of a socket and simplefix."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._parser = simplefix.FixParser()
        self._sent = 0

    def send(self, kind: str, *pairs: tuple[int, object], number: int | None = None) -> None:
        self._sent = number or self._sent + 1
        message = simplefix.FixMessage()
        for tag, value in ((8, "FIX.4.4"), (35, kind), (49, "SIMPLE"), (56, "BROKER")):
            message.append_pair(tag, value, header=True)
        message.append_pair(34, self._sent)
        message.append_utc_timestamp(52, 0.0)
        for tag, value in pairs:
            message.append_pair(tag, value)
        self._sock.sendall(message.encode())

    def receive(self, *tags: int) -> list[str]:
        """The type of the next message, and some of its fields."""
        while (message := self._parser.get_message()) is None:
            data = self._sock.recv(4096)
            assert data, "the acceptor has closed the connection"
            self._parser.append_buffer(data)
        return [(message.get(tag) or b"").decode() for tag in (35, 34, *tags)]

    def ends(self) -> bool:
        return self._sock.recv(4096) == b""

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def acceptor() -> Any:
    with Program("examples.fix.server", "--port", 0) as program:
        yield program


def port_of(program: Program) -> int:
    return int(program.prints(r"port (\d+);")[1])


def test_simplefix_and_the_acceptor(acceptor: Program) -> None:
    """A client logs on, has an order filled, asks for a resend, and is asked for one."""
    peer = Peer(port_of(acceptor))
    peer.send("A", (98, 0), (108, 30), (141, "Y"))
    assert peer.receive(108) == ["A", "1", "30"]
    peer.send("D", (11, "one"), (55, "TAO"), (54, 1), (38, 5), (40, 1))
    assert peer.receive(11, 39, 38) == ["8", "2", "one", "2", "5"]
    peer.send("1", (112, "are you there"))
    assert peer.receive(112) == ["0", "3", "are you there"]
    peer.send("2", (7, 1), (16, 0))
    assert peer.receive(43, 123, 36) == ["4", "1", "Y", "Y", "2"]
    assert peer.receive(43, 11) == ["8", "2", "Y", "one"]
    assert peer.receive(43, 123, 36) == ["4", "3", "Y", "Y", "4"]
    peer.send("D", (11, "three"), number=7)
    assert peer.receive(7, 16) == ["2", "4", "5", "0"]
    peer.send("4", (43, "Y"), (123, "Y"), (36, 8), number=5)
    peer.send("5", number=8)
    assert peer.ends()
    peer.close()


def test_a_peer_that_does_not_log_on(acceptor: Program) -> None:
    """It is disconnected."""
    peer = Peer(port_of(acceptor))
    peer.send("D", (11, "one"))
    assert peer.ends()
    peer.close()


def test_orders_survive_lost_connections(acceptor: Program) -> None:
    """Each is filled exactly once, in order, however often the initiator has to log on again."""
    with FaultProxy(("127.0.0.1", port_of(acceptor))) as proxy:
        words = ("--port", proxy.address[1], "--count", 60, "--pause", 0.01)
        with Program("examples.fix.client", *words) as client:
            for number in (5, 15, 30, 45):
                client.prints(f"^order-{number} is filled")
                proxy.reset()
            assert client.status() == 0
    filled = [line.split()[0] for line in client.output if line.endswith("is filled")]
    expected = [f"order-{number}" for number in range(1, 61)]
    assert sorted(set(filled), key=expected.index) == filled == expected
    assert client.output.count("logged on") == 5
    assert [line.split()[1] for line in acceptor.output[1:]] == expected
