"""Connections over TLS: messages, certificates, failing handshakes, and the end."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectionClosed, HandshakeFailed, WouldBlock
from tao.server.server import Server, server_core_of
from tao.transport.certificates import DevelopmentCA
from tao.transport.tls_stream import TlsTransport
from tao.wire.message import Registry
from tests.ends import Seen, frame
from tests.support import PATIENCE, recv_exactly, together, wait_until
from tests.tls_pairs import ALICE, CA, CLIENT, MUTUAL_SERVER, SERVER

MIB = 1024 * 1024
SOON = Reconnect(initial=0.001, maximum=0.01)


class Blob:
    """A message of arbitrary bytes."""

    message_number = 3

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Blob:
        return cls(bytes(data))


def blobs(seed: int, count: int = 200) -> list[bytes]:
    """Return messages of all sizes."""
    source = random.Random(seed)
    sizes = (0, 1, 100, 1_000, 16_384, 16_385, 70_000)
    return [source.randbytes(source.choice(sizes)) for _ in range(count)]


def registry(handler: Callable[..., Any] | None = None) -> Registry:
    """Return a registry with the message class."""
    made = Registry()
    made.register(Blob.message_number, Blob.deserialize, handler)
    return made


def echo(ctx: Any, conn: Any) -> None:
    conn.write(ctx.message, PATIENCE)


class Ends:
    """A server and its clients, which are closed at the end of the test."""

    def __init__(self, readers: str) -> None:
        self.readers = readers
        self.server = Server()
        # Reserves the port while no server listens on it.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.clients: list[ClientConn] = []
        self.errors = Seen()
        self.closed = Seen()

    def serve(self, handler: Callable[..., Any] | None = echo, **options: Any) -> None:
        options = {"tls": SERVER, "registry": registry(handler), **options}
        options["readers"] = self.readers
        self.server = Server(
            on_error=lambda conn, error: self.errors.add(error),
            on_close=lambda conn: self.closed.add(conn.close_reason),
            **options,
        )
        self.server.start(("127.0.0.1", self.port))

    def client(self, **options: Any) -> ClientConn:
        """Return a client that is not started yet."""
        options = {"tls": CLIENT, "registry": registry(), **options}
        options["readers"] = self.readers
        self.clients.append(ClientConn(("localhost", self.port), **options))
        return self.clients[-1]

    def socket(self) -> socket.socket:
        """Return a plain socket connected to the server."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def closes(self, conn: Any, count: int) -> bool:
        """Write something, and return whether so many connections are closed."""
        try:
            conn.write(Blob(bytes(100_000)))
        except (ConnectionClosed, WouldBlock):
            pass
        return len(self.closed.items) >= count

    def close(self) -> None:
        together(*(client.close for client in self.clients), self.server.stop)
        self._place.close()


@pytest.fixture(params=["own", "shared"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = Ends(request.param)
    yield made
    made.close()


# -- messages


def test_echo_of_all_sizes(ends: Ends) -> None:
    """Messages from zero bytes to a megabyte are echoed unchanged."""
    ends.serve()
    got = Seen()
    client = ends.client(on_message=lambda message, conn: got.add(message.data)).start()
    sizes = (0, 1, 7, 1_000, 16_383, 16_384, 16_385, 65_536, 300_000, MIB)
    sent = [random.Random(size).randbytes(size) for size in sizes]
    for data in sent:
        client.write(Blob(data))
    assert got.wait(len(sent)) == sent
    assert client.tls_version == "TLSv1.3"


class Reads:
    """A TLS machine that notes how much is asked of it."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    def read(self, size: int) -> bytes:
        self.sizes.append(size)
        return bytes(self.machine.read(size))


def test_a_message_is_decrypted_at_once(ends: Ends) -> None:
    """Nothing is tried in vain, which raises, and no buffer is larger than what has come."""
    ends.serve()
    seen = threading.Event()
    client = ends.client(registry=registry(lambda ctx, conn: seen.set())).start()
    transport: Any = client._core.transport
    client.write(Blob(b"first"))  # what belongs to the handshake comes before its reply
    assert seen.wait(PATIENCE)
    seen.clear()
    reads = transport._machine = Reads(transport._machine)
    client.write(Blob(b"x"))
    assert seen.wait(PATIENCE)
    assert len(reads.sizes) == 1 and reads.sizes[0] < 100


Machine = Callable[[bytes], bytes]


@pytest.fixture
def by_hand() -> Iterator[tuple[TlsTransport, Machine, socket.socket]]:
    """A server's transport, a function that encrypts as its client, and the client's socket."""
    near, far = socket.socketpair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    peer = context.wrap_bio(incoming, outgoing)
    transport = TlsTransport(near, SERVER, server_side=True)
    wanted = 1
    while wanted:
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.do_handshake()
        far.sendall(outgoing.read())
        wanted = transport.advance_handshake()
        incoming.write(far.recv(MIB))

    def encrypt(data: bytes) -> bytes:
        peer.write(data)
        return outgoing.read()

    yield transport, encrypt, far
    transport.close()
    far.close()


RECEIVES: dict[str, Callable[[TlsTransport], bytes | None]] = {
    "own": lambda transport: transport.recv(MIB),
    "shared": lambda transport: transport.receive_now(MIB, socket.MSG_DONTWAIT),
    "up to": lambda transport: transport.receive_up_to(MIB),
}


@pytest.mark.parametrize("receive", RECEIVES.values(), ids=RECEIVES)
@pytest.mark.parametrize("error", [b"", b"\x17\x03\x03\0\x20" + bytes(32)], ids=["cut", "garbage"])
@pytest.mark.parametrize("early", [False, True], ids=["later", "with the handshake"])
def test_what_comes_before_an_error_is_delivered(
    by_hand: tuple[TlsTransport, Machine, socket.socket],
    receive: Callable[[TlsTransport], bytes | None],
    error: bytes,
    early: bool,
) -> None:
    """Records that arrive together with the end, or with one that cannot be decrypted."""
    transport, encrypt, far = by_hand
    records = encrypt(b"one") + encrypt(b"two") + error
    if early:
        transport._incoming.write(records)  # as when the last step of the handshake receives them
    else:
        far.sendall(records)
    far.shutdown(socket.SHUT_WR)
    received = b""
    with pytest.raises((ConnectionClosed, ssl.SSLError)):
        for _ in range(10):
            received += receive(transport) or b""
    assert received == b"onetwo"
    with pytest.raises((ConnectionClosed, ssl.SSLError)):
        receive(transport)  # again


def test_a_record_that_comes_in_pieces(
    by_hand: tuple[TlsTransport, Machine, socket.socket],
) -> None:
    """It is decrypted as a whole, also if the last piece is shorter than what it completes."""
    transport, encrypt, far = by_hand
    sent = random.Random(1).randbytes(16_000)
    record = encrypt(sent)
    for piece in (record[:3], record[3:-10]):
        far.sendall(piece)
        with pytest.raises(BlockingIOError):
            transport.receive_now(MIB, socket.MSG_DONTWAIT)
    far.sendall(record[-10:])
    assert transport.receive_now(MIB, socket.MSG_DONTWAIT) == sent


def test_both_directions_at_once(ends: Ends) -> None:
    """Both ends write concurrently, and each receives everything in order."""
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
    """Messages of twenty threads arrive complete, and those of each thread in order."""
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


# -- certificates


def test_the_server_identifies_its_client(ends: Ends) -> None:
    """With mutual TLS, ``on_connect`` and handlers see the client's certificate."""
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


def test_a_client_without_a_certificate(ends: Ends) -> None:
    """With mutual TLS, a client without a certificate is refused, and both ends report why."""
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
def test_a_server_that_is_not_trusted(ends: Ends, what: str) -> None:
    """A client does not connect to an untrusted server, and the error says why."""
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


def test_the_name_may_differ_from_the_host(ends: Ends) -> None:
    """``server_hostname`` sets the expected name, whatever address is dialled."""
    ends.serve(tls=CA.issue("bank.example").server_config())
    client = ends.client(server_hostname="bank.example").start()
    assert client.connected


# -- failing handshakes


def test_a_stalled_handshake_delays_no_other_connection(ends: Ends) -> None:
    """Others are served while silent peers are connected, and a stop does not wait for them."""
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


def test_a_silent_peer_is_disconnected(ends: Ends) -> None:
    """After ``handshake_timeout`` a silent peer is disconnected, and no longer counts."""
    ends.serve(handshake_timeout=0.02, max_connections=1)
    acceptor = server_core_of(ends.server).acceptor
    for count in (1, 2):
        with ends.socket() as silent:
            assert silent.recv(1) == b""
        error = ends.errors.wait(count)[-1]
        assert isinstance(error, HandshakeFailed)
        assert str(error) == "TLS handshake not done after 0.02 s"
        wait_until(lambda: not acceptor.connections and not acceptor.admission._all)
    assert ends.closed.items == []


def test_a_failed_handshake_is_one_log_line(ends: Ends, log_lines: list[Any]) -> None:
    """Port scans do not fill the log with tracebacks; the line has all information."""
    ends.serve()
    with ends.socket() as scanner:
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
        ends.errors.wait()
    (lost,) = [each for each in log_lines if each["message"].startswith("connection lost")]
    assert "\n" not in lost["message"] and "does not speak TLS" in lost["message"]


def test_a_plain_client_on_a_tls_port(ends: Ends) -> None:
    """Both ends report the mismatch."""
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
    """Both ends report the mismatch, and nothing leaks."""
    ends.serve(tls=None)
    with pytest.raises(HandshakeFailed, match="does it speak TLS on this port"):
        ends.client().start()
    assert "the peer speaks TLS" in ends.closed.wait()[0]
    assert "the peer speaks TLS" in str(ends.errors.wait()[0])


def test_closing_during_the_handshake(ends: Ends) -> None:
    """Another thread can close a client that waits in a handshake."""
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


# -- lost connections and the end


def test_reconnecting_over_tls(ends: Ends) -> None:
    """Each reconnection has a new handshake; messages written meanwhile follow in order."""
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
    """Messages that wait for a slow peer arrive complete and in order after a reconnection."""
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
    ends.server.stop(0)  # at once, because until its end it keeps reading and discards the data
    hold.set()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    client.write(Blob(b"last"), PATIENCE)
    wait_until(lambda: received.items[-1:] == [b"last"])
    *got, _ = received.items
    # Data that the kernel had accepted before is lost with that connection.
    assert 1 < len(got) < 30 and got == sent[-len(got) :]


def test_stop_delivers_everything(ends: Ends) -> None:
    """A stop during replies sends all of them, and then a close_notify."""
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
    """Messages written before a close arrive, and the peer sees a graceful end."""
    received = Seen()
    ends.serve(lambda ctx, conn: received.add(ctx.message.data))
    client = ends.client().start()
    sent = blobs(3)
    for data in sent:
        client.write(Blob(data))
    client.close()
    assert received.wait(len(sent)) == sent
    assert ends.closed.wait() == ["peer closed"]


def test_truncation_is_reported(ends: Ends) -> None:
    """A peer that closes without a close_notify has not closed gracefully."""
    ends.serve(lambda ctx, conn: None)  # a reply might fail first
    client = ends.client().start()
    client.write(Blob(b"x"))
    transport = client._core.transport
    assert transport is not None
    transport.abort()
    assert ends.closed.wait() == ["peer closed without saying so in TLS"]
    assert isinstance(ends.errors.wait()[0], ConnectionClosed)


def test_a_peer_that_does_not_read_is_disconnected(ends: Ends) -> None:
    """With TLS, too, both policies close the connection."""
    why = {
        "send queue full: the peer reads too slowly": {"slow_consumer": "close", "queue_size": 3},
        "the peer took nothing for 0.05 s": {"write_timeout": 0.05},
    }
    for count, (reason, options) in enumerate(why.items(), 1):
        ends.serve(**options)
        with CLIENT.wrap_socket(ends.socket(), server_hostname="localhost"):
            wait_until(lambda: ends.server.connections)
            (conn,) = ends.server.connections
            wait_until(lambda conn=conn, count=count: ends.closes(conn, count))
            assert ends.closed.items[-1] == reason
        ends.server.stop()


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
