"""TLS from handler to handler: messages, certificates, handshakes that fail, the end."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options import Reconnect
from tao.errors import ConnectionClosed, HandshakeFailed
from tao.server.server import Server, server_core_of
from tao.transport.certificates import DevelopmentCA
from tao.wire.message import Registry
from tests.ends import Seen, frame
from tests.support import PATIENCE, recv_exactly, together, wait_until
from tests.tls_pairs import ALICE, CA, CLIENT, MUTUAL_SERVER, SERVER

MIB = 1024 * 1024
SOON = Reconnect(initial=0.001, maximum=0.01)


class Blob:
    """A message of any bytes."""

    message_number = 3

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Blob:
        return cls(bytes(data))


def blobs(seed: int, count: int = 200) -> list[bytes]:
    """Messages of all sizes."""
    source = random.Random(seed)
    sizes = (0, 1, 100, 1_000, 16_384, 16_385, 70_000)
    return [source.randbytes(source.choice(sizes)) for _ in range(count)]


def registry(handler: Callable[..., Any] | None = None) -> Registry:
    """A registry that knows blobs."""
    made = Registry()
    made.register(Blob.message_number, Blob.deserialize, handler)
    return made


def echo(ctx: Any, conn: Any) -> None:
    conn.write(ctx.message, PATIENCE)


class Ends:
    """A server, and clients of it, that are closed at the end of a test."""

    def __init__(self) -> None:
        self.server = Server()
        # Keeps the port from going to somebody else while no server listens there.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.clients: list[ClientConn] = []
        self.errors = Seen()
        self.closed = Seen()

    def serve(self, handler: Callable[..., Any] | None = echo, **options: Any) -> None:
        options = {"tls": SERVER, "registry": registry(handler), **options}
        self.server = Server(
            on_error=lambda conn, error: self.errors.add(error),
            on_close=lambda conn: self.closed.add(conn.close_reason),
            **options,
        )
        self.server.start(("127.0.0.1", self.port))

    def client(self, **options: Any) -> ClientConn:
        """A client that is not started yet."""
        options = {"tls": CLIENT, "registry": registry(), **options}
        self.clients.append(ClientConn(("localhost", self.port), **options))
        return self.clients[-1]

    def socket(self) -> socket.socket:
        """A plain socket connected to the server."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def close(self) -> None:
        together(*(client.close for client in self.clients), self.server.stop)
        self._place.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


# -- messages


def test_echo_of_all_sizes(ends: Ends) -> None:
    """Messages from nothing to a megabyte come back as they went."""
    ends.serve()
    got = Seen()
    client = ends.client(on_message=lambda message, conn: got.add(message.data)).start()
    sizes = (0, 1, 7, 1_000, 16_383, 16_384, 16_385, 65_536, 300_000, MIB)
    sent = [random.Random(size).randbytes(size) for size in sizes]
    for data in sent:
        client.write(Blob(data))
    assert got.wait(len(sent)) == sent
    assert client.tls_version == "TLSv1.3"


def test_both_directions_at_once(ends: Ends) -> None:
    """Both ends write whatever the other does, and each gets all of it in order."""
    there, back = blobs(1), blobs(2)
    received, returned = Seen(), Seen()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    client = ends.client(on_message=lambda message, conn: returned.add(message.data)).start()
    wait_until(lambda: ends.server.connections)
    conn = ends.server.connections[0]

    def write(end: Any, data: list[bytes]) -> None:
        for each in data:
            end.write(Blob(each), PATIENCE)

    together(lambda: write(client, there), lambda: write(conn, back))
    assert received.wait(len(there)) == there
    assert returned.wait(len(back)) == back


def test_many_threads_write(ends: Ends) -> None:
    """Messages that twenty threads write to one connection arrive whole, each thread's in order."""
    received = Seen()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    client = ends.client().start()

    def write(who: int) -> None:
        for index in range(20):
            client.write(Blob(bytes([who, index]) * (1 + who * index * 20)), PATIENCE)

    together(*(lambda who=who: write(who) for who in range(20)))
    got = received.wait(400)
    for who in range(20):
        mine = [data for data in got if data[0] == who]
        assert mine == [bytes([who, index]) * (1 + who * index * 20) for index in range(20)]


# -- who is who


def test_the_server_knows_its_client(ends: Ends) -> None:
    """With mutual TLS, on_connect and handlers know whom the client proved to be."""
    seen = Seen()

    def name_of(conn: Any) -> str:
        return str(dict(pair[0] for pair in conn.peer_certificate["subject"])["commonName"])

    ends.serve(
        lambda ctx, conn: seen.add(name_of(conn)),
        tls=MUTUAL_SERVER,
        on_connect=lambda conn: seen.add(name_of(conn)),
    )
    client = ends.client(tls=ALICE).start()
    client.write(Blob(b""))
    assert seen.wait(2) == ["alice", "alice"]
    assert name_of(client) == "localhost"


def test_a_client_that_proves_nothing(ends: Ends) -> None:
    """With mutual TLS a client without certificate is refused, and both ends say why."""
    ends.serve(tls=MUTUAL_SERVER)
    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.load_verify_locations(cadata=CA.certificate.decode())
    client = ends.client(tls=nameless)
    try:
        client.start()
    except ConnectionClosed as error:
        reason = str(error)
    else:
        assert client.wait_closed(PATIENCE)
        reason = str(client.close_reason)
    assert "certificate required" in reason or "reset" in reason
    assert "did not return a certificate" in str(ends.errors.wait()[0])
    assert ends.closed.items == [], "it was never established"


@pytest.mark.parametrize("what", ["host", "authority"])
def test_a_server_that_is_somebody_else(ends: Ends, what: str) -> None:
    """A client does not start with a server that it must not trust, and says why."""
    ends.serve(
        tls=DevelopmentCA("other").issue().server_config() if what == "authority" else SERVER
    )
    client = ends.client(server_hostname="bank.example" if what == "host" else None)
    with pytest.raises(HandshakeFailed, match="certificate is refused") as caught:
        client.start()
    if what == "host":
        assert "bank.example" in str(caught.value)
    assert "alert" in str(ends.errors.wait()[0])
    assert not client.closed and not client.connected


def test_the_name_may_be_another_than_the_host(ends: Ends) -> None:
    """server_hostname says whose certificate is expected, whatever address is dialled."""
    ends.serve(tls=CA.issue("bank.example").server_config())
    client = ends.client(server_hostname="bank.example").start()
    assert client.connected


# -- handshakes that do not come about


def test_a_stuck_handshake_delays_nobody(ends: Ends) -> None:
    """While peers connect and say nothing, others are served; a stop does not wait for them."""
    ends.serve(handshake_timeout=3600, drain_timeout=3600)
    silent = [ends.socket() for _ in range(5)]
    got = Seen()
    client = ends.client(on_message=lambda message, conn: got.add(message.data)).start()
    client.write(Blob(b"hi"))
    assert got.wait() == [b"hi"]
    client.close()
    assert ends.server.stop().clean
    for sock in silent:
        assert sock.recv(1) == b""
        sock.close()
    assert ends.errors.items == []


def test_a_silent_peer_is_not_waited_for(ends: Ends) -> None:
    """After handshake_timeout a peer that says nothing is gone, and its place is free."""
    ends.serve(handshake_timeout=0.02, max_connections=1)
    for count in (1, 2):
        with ends.socket() as silent:
            assert silent.recv(1) == b""
        error = ends.errors.wait(count)[-1]
        assert isinstance(error, HandshakeFailed)
        assert str(error) == "TLS handshake not done after 0.02 s"
        wait_until(lambda: not server_core_of(ends.server).acceptor.connections)
    assert ends.closed.items == []


def test_a_handshake_that_fails_is_one_line_of_the_log(ends: Ends, log_lines: list[Any]) -> None:
    """Who scans ports fills no log with tracebacks; what there is to know stands in the line."""
    ends.serve()
    with ends.socket() as scanner:
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
        ends.errors.wait()
    (lost,) = [each for each in log_lines if each["message"].startswith("connection lost")]
    assert "\n" not in lost["message"] and "does not speak TLS" in lost["message"]


def test_a_plain_client_on_a_tls_port(ends: Ends) -> None:
    """Both ends say what is wrong."""
    ends.serve()
    client = ends.client(tls=None).start()
    try:
        client.write(Blob(b"hello"))
    except ConnectionClosed:
        pass  # the server was faster
    assert client.wait_closed(PATIENCE)
    assert "the peer speaks TLS" in str(client.close_reason)
    errors = [error for error in ends.errors.wait() if isinstance(error, HandshakeFailed)]
    assert "the peer does not speak TLS" in str(errors[0])


def test_a_tls_client_on_a_plain_port(ends: Ends) -> None:
    """Both ends say what is wrong, and nothing is left."""
    ends.serve(tls=None)
    with pytest.raises(HandshakeFailed, match="does it speak TLS on this port"):
        ends.client().start()
    assert "the peer speaks TLS" in ends.closed.wait()[0]
    assert "the peer speaks TLS" in str(ends.errors.wait()[0])


def test_closing_in_the_handshake(ends: Ends) -> None:
    """A client that waits in a handshake may be closed by another thread."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ends.port = mute.getsockname()[1]
        client = ends.client(handshake_timeout=3600)

        def close() -> None:
            peer, _ = mute.accept()
            with peer:
                assert peer.recv(1)
                client.close()

        def start() -> None:
            with pytest.raises(ConnectionClosed):
                client.start()

        together(start, close)
    assert client.closed


# -- losing a connection, and the end


def test_comes_back_over_tls(ends: Ends) -> None:
    """Each reconnect is a new handshake; what was written meanwhile follows in order."""
    received, ups = Seen(), Seen()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))

    def greet(conn: Any) -> None:
        conn.write(Blob(b"hello"))
        ups.add(conn.tls_version)

    client = ends.client(on_connect=greet, reconnect=SOON).start()
    client.write(Blob(b"1"))
    assert received.wait(2) == [b"hello", b"1"]
    ends.server.stop()
    wait_until(lambda: not client.connected)
    for number in (b"2", b"3"):
        client.write(Blob(number))
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    assert received.wait(5)[2:] == [b"hello", b"2", b"3"]
    assert ups.items == ["TLSv1.3"] * 2
    wait_until(lambda: client.reconnects == 1)


def test_large_messages_survive_lost_connections(ends: Ends) -> None:
    """What waits behind a peer that does not read arrives whole after a reconnect, in order."""
    hold, received = threading.Event(), Seen()

    def handler(ctx: Any, conn: Any) -> None:
        if hold.is_set():
            received.add(ctx.message.data)
        else:
            ctx.wait(PATIENCE)

    ends.serve(handler, queue_size=1, drain_timeout=0.05)
    client = ends.client(reconnect=SOON).start()
    sent = [bytes([number]) * MIB for number in range(30)]
    for data in sent:
        client.write(Blob(data))
    wait_until(lambda: client._core.send_queue.blocked)
    ends.server.stop(0)  # at once: until it ends, it reads on, and drops what it reads
    hold.set()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    client.write(Blob(b"last"), PATIENCE)
    wait_until(lambda: received.items[-1:] == [b"last"])
    *got, _ = received.items
    # What the kernel had taken before is lost with that connection.
    assert 1 < len(got) < 30 and got == sent[-len(got) :]


def test_stop_delivers_everything(ends: Ends) -> None:
    """A stop in the midst of replies sends them all, and then says the end in TLS."""
    got = Seen()
    replies = [bytes([number]) * 50_000 for number in range(100)]
    started = threading.Event()

    def answer(ctx: Any, conn: Any) -> None:
        for number, data in enumerate(replies):
            conn.write(Blob(data))
            if number == 10:
                started.set()

    ends.serve(answer)
    client = ends.client(on_message=lambda message, conn: got.add(message.data)).start()
    client.write(Blob(b"go"))
    assert started.wait(PATIENCE)
    report = ends.server.stop()
    assert report.clean and report.drained == 1
    assert got.wait(len(replies)) == replies
    assert client.wait_closed(PATIENCE) and client.close_reason == "peer closed"


def test_close_delivers_everything(ends: Ends) -> None:
    """What was written before a close arrives, and the peer sees an orderly end."""
    received = Seen()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    client = ends.client().start()
    sent = blobs(3)
    for data in sent:
        client.write(Blob(data))
    client.close()
    assert received.wait(len(sent)) == sent
    assert ends.closed.wait() == ["peer closed"]


def test_truncation_is_told(ends: Ends) -> None:
    """A peer that goes without saying so in TLS did not close in order."""
    ends.serve()
    client = ends.client().start()
    client.write(Blob(b"x"))
    transport = client._core.transport
    assert transport is not None
    transport.abort()
    assert ends.closed.wait() == ["peer closed without saying so in TLS"]
    assert isinstance(ends.errors.wait()[0], ConnectionClosed)


def test_plain_and_tls_beside_each_other(ends: Ends) -> None:
    """A server may listen with TLS on one port and without on another."""
    ends.serve(tls=None)
    secure = ends.server.start(("127.0.0.1", 0), tls=SERVER)[1]
    with ends.socket() as sock:
        sock.sendall(frame(3, b"hi"))
        assert recv_exactly(sock, 10) == frame(3, b"hi")
    ends.port = secure
    got = Seen()
    client = ends.client(on_message=lambda message, conn: got.add(message.data)).start()
    client.write(Blob(b"hi"))
    assert got.wait() == [b"hi"]
