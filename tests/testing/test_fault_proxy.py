"""The fault proxy: each fault has its documented effect, and nothing leaks."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tao.testing.fault_proxy import FaultProxy, Faults, _Pump
from tests.support import PATIENCE, recv_exactly, together, wait_until

DATA = random.Random(1).randbytes(100_000)


class Line:
    """A client and a server, which are plain sockets, with a proxy between them."""

    def __init__(self, **options: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE)
        self.proxy = FaultProxy(self.listener.getsockname(), **options)
        self.sockets: list[socket.socket] = []

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection."""
        client = socket.create_connection(self.proxy.address, PATIENCE)
        self.sockets.append(client)
        server, _ = self.listener.accept()
        server.settimeout(PATIENCE)
        self.sockets.append(server)
        return client, server

    def close(self) -> None:
        self.proxy.close()
        for sock in (self.listener, *self.sockets):
            sock.close()


MakeLine = Callable[..., Line]


@pytest.fixture
def make_line() -> Iterator[MakeLine]:
    """A function that makes a `Line` with options of the proxy; closed afterwards."""
    made: list[Line] = []

    def make(**options: Any) -> Line:
        made.append(Line(**options))
        return made[-1]

    yield make
    for line in made:
        line.close()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the pieces that all proxies send, in order."""
    found: list[int] = []
    send = _Pump._send

    def note(pump: _Pump, piece: bytes) -> None:
        found.append(len(piece))
        send(pump, piece)

    monkeypatch.setattr(_Pump, "_send", note)
    return found


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)


def say(sock: socket.socket, data: bytes) -> None:
    """Send all data and the end of the stream."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(delay=0.001),
        Faults(split=1000),
        Faults(merge=30_000),
        Faults(rate=1e6),
        Faults(split=5000, merge=7000, delay=0.0001),
    ],
    ids=str,
)
def test_data_is_forwarded_unchanged(make_line: MakeLine, faults: Faults) -> None:
    """Delays and splits change no data and no end of stream, with traffic in both directions."""
    client, server = make_line(to_server=faults, to_client=faults).connect()
    there, back, _, _ = together(
        lambda: read_to_end(server),
        lambda: read_to_end(client),
        lambda: say(client, DATA),
        lambda: say(server, DATA[::-1]),
    )
    assert there == DATA
    assert back == DATA[::-1]


def test_one_end_leaves_the_other_direction_open(make_line: MakeLine) -> None:
    """A half-closed connection stays half-closed through the proxy."""
    client, server = make_line().connect()
    say(client, b"question")
    assert read_to_end(server) == b"question"
    say(server, b"answer")
    assert read_to_end(client) == b"answer"


def test_single_bytes(make_line: MakeLine, sizes: list[int]) -> None:
    """With ``split=1``, every byte is sent alone."""
    client, server = make_line(to_server=Faults(split=1)).connect()
    say(client, b"abc")
    assert read_to_end(server) == b"abc"
    assert sizes == [1, 1, 1]


def test_a_server_that_does_not_read_learns_that_the_client_is_gone(make_line: MakeLine) -> None:
    """What it sends is taken, as it may have to be sent before it reads again."""
    client, server = make_line().connect()
    for sock in (client, server):
        sock.settimeout(0.1)
        with suppress(TimeoutError):
            while True:  # until nothing more is taken
                sock.send(DATA)
    client.close()
    server.settimeout(PATIENCE)
    with suppress(ConnectionError):
        server.sendall(DATA * 10)
        while server.recv(100_000):
            pass


def test_delay(make_line: MakeLine) -> None:
    """No piece arrives before its delay has passed."""
    client, server = make_line(to_server=Faults(delay=0.05)).connect()
    started = time.monotonic()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert time.monotonic() - started >= 0.05


def test_rate(make_line: MakeLine) -> None:
    """Data takes at least as long as the rate requires."""
    client, server = make_line(to_server=Faults(rate=50_000)).connect()
    started = time.monotonic()
    say(client, bytes(5000))
    assert read_to_end(server) == bytes(5000)
    assert time.monotonic() - started >= 0.09


def test_merge_collects_data(make_line: MakeLine) -> None:
    """Data sent in two calls arrives in one piece."""
    line = make_line(to_server=Faults(merge=6))
    client, server = line.connect()
    client.sendall(b"abc")
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(10)
    client.sendall(b"def")
    server.settimeout(PATIENCE)
    assert server.recv(10) == b"abcdef"


def test_collected_data_can_be_released(make_line: MakeLine) -> None:
    """Changing the setting during the connection releases it."""
    line = make_line(to_server=Faults(merge=1000))
    client, server = line.connect()
    client.sendall(b"abc")
    line.proxy.to_server.merge = 0
    assert recv_exactly(server, 3) == b"abc"


@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_cut(make_line: MakeLine, count: int) -> None:
    """After exactly this many bytes, both sides see a graceful end."""
    client, server = make_line(to_server=Faults(cut_after=count)).connect()
    client.sendall(DATA[:count])
    assert read_to_end(server) == DATA[:count]
    assert read_to_end(client) == b""


def test_cut_in_the_other_direction(make_line: MakeLine) -> None:
    """The count of a cut includes only bytes of its own direction."""
    client, server = make_line(to_client=Faults(cut_after=10)).connect()
    client.sendall(DATA)
    assert recv_exactly(server, len(DATA)) == DATA
    server.sendall(DATA[:10])
    assert read_to_end(client) == DATA[:10]


def test_reset(make_line: MakeLine) -> None:
    """After this many bytes, both sides see a reset."""
    line = make_line(to_server=Faults(reset_after=100))
    client, server = line.connect()
    client.sendall(DATA[:99])
    assert recv_exactly(server, 99) == DATA[:99]
    client.sendall(b"x")
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            while sock.recv(1):
                pass


def test_cut_and_reset_now(make_line: MakeLine) -> None:
    """All current connections end; a new one works."""
    line = make_line()
    first, second = line.connect(), line.connect()
    line.proxy.cut()
    assert [sock.recv(1) for sock in (*first, *second)] == [b""] * 4
    client, _ = line.connect()
    line.proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client, server = line.connect()
    client.sendall(b"again")
    assert recv_exactly(server, 5) == b"again"
    assert line.proxy.accepted == 4
    wait_until(lambda: line.proxy.connections == 1)


def test_swallow(make_line: MakeLine) -> None:
    """Nothing arrives, not even the end of the stream, and the sender is not blocked."""
    line = make_line(to_server=Faults(swallow=True))
    client, server = line.connect()
    together(*[lambda: client.sendall(bytes(1_000_000))] * 2)
    client.close()
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(1)


def test_stall(make_line: MakeLine) -> None:
    """The sender's buffers fill up; after the stall, no data is missing."""
    line = make_line()
    client, server = line.connect()
    line.proxy.to_server.stall = True
    client.settimeout(0.05)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            sent += client.send(bytes(100_000))
    line.proxy.to_server.stall = False
    assert recv_exactly(server, sent) == bytes(sent)


def test_corrupt(make_line: MakeLine) -> None:
    """One byte at the given offset is changed, however the stream is cut."""
    client, server = make_line(to_server=Faults(corrupt_at=777, split=50)).connect()
    say(client, DATA[:1000])
    wrong = read_to_end(server)
    assert [at for at in range(1000) if wrong[at] != DATA[at]] == [777]
    assert wrong[777] == DATA[777] ^ 0xFF


def test_refuse(make_line: MakeLine) -> None:
    """New connections are refused, existing ones stay open, and the address stays the same."""
    line = make_line()
    client, server = line.connect()
    line.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(line.proxy.address, PATIENCE)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    line.proxy.accept()
    line.connect()


def test_hang_up(make_line: MakeLine) -> None:
    """New connections are accepted and reset at once."""
    line = make_line()
    line.proxy.refuse(hang_up=True)
    with socket.socket() as sock, pytest.raises(ConnectionResetError):
        sock.connect(line.proxy.address)
        sock.recv(1)
    line.proxy.accept()
    line.connect()
    assert line.proxy.accepted == 2


def test_hang_up_during_an_accept(make_line: MakeLine) -> None:
    """A connection is also reset if the call comes while it is being accepted."""

    def plan(number: int) -> tuple[Faults, Faults]:
        line.proxy.refuse(hang_up=True)
        line.proxy.reset()
        return Faults(), Faults()

    line = make_line(plan=plan)
    with socket.socket() as sock, pytest.raises(ConnectionResetError):
        sock.settimeout(PATIENCE)
        sock.connect(line.proxy.address)
        sock.recv(1)


def test_an_absent_server(make_line: MakeLine) -> None:
    """The client's connection is reset, and the proxy continues."""
    line = make_line()
    line.listener.close()
    with socket.socket() as sock, pytest.raises(ConnectionResetError):
        sock.connect(line.proxy.address)  # the reset may arrive during this call
        sock.recv(1)
    line.listener = socket.create_server(line.proxy.target)
    line.listener.settimeout(PATIENCE)
    line.connect()


def test_a_plan_gives_each_connection_its_own(make_line: MakeLine) -> None:
    """The plan is called with the connection's number."""
    line = make_line(plan=lambda number: (Faults(cut_after=number), Faults()))
    for number in (1, 2, 3):
        client, server = line.connect()
        client.sendall(bytes(number))
        assert read_to_end(server) == bytes(number)


def test_the_seed_determines_random_choices(make_line: MakeLine, sizes: list[int]) -> None:
    """The same seed splits the same stream into the same pieces, another seed into others."""
    found = []
    for seed in (1, 1, 2):
        # All data is buffered before any is split.
        client, server = make_line(to_server=Faults(split=9, merge=400), seed=seed).connect()
        say(client, bytes(400))
        assert read_to_end(server) == bytes(400)
        found.append(sizes.copy())
        sizes.clear()
    assert found[0] == found[1] != found[2]
    assert max(found[0]) == 9


def test_closing_ends_everything(make_line: MakeLine) -> None:
    """Closing ends all connections, whether they are waiting, stalled, delayed or full."""
    line = make_line(to_client=Faults(delay=1000), to_server=Faults(stall=True))
    for _ in range(5):
        client, server = line.connect()
        server.sendall(b"x")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                client.send(bytes(100_000))
    line.connect()
    line.proxy.close()
    line.proxy.close()
    assert not [each for each in threading.enumerate() if "fault" in each.name]
    with socket.socket() as late, pytest.raises(ConnectionRefusedError):
        late.connect(line.proxy.address)
