"""The first bytes of a connection: health checks that send none, and PROXY headers."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.runtime.context import Context
from tao.server.connection import ServerConn
from tao.server.server import Server, server_core_of
from tao.session.sessions import Sessions
from tao.testing import memory_pair
from tests.ends import MakeServer, Seen, Text, text
from tests.support import PATIENCE, recv_exactly, wait_until
from tests.tls_pairs import CLIENT, SERVER
from tests.wire.test_proxy_protocol import SIGNATURE, V4, binary, line

V1 = line("TCP4", "192.0.2.1", "198.51.100.7", 56324, 443)
V2 = binary(0x11, V4)
#: A header with everything that current load balancers add: checksum, name, TLS fields.
V2_LONG = binary(0x11, V4, more=b"\x03\0\4abcd" + b"\2\0\7foo.bar" + b"\x20\1\0" + bytes(256))


class Watched:
    """An echo server that records its callbacks."""

    def __init__(self, make_server: MakeServer, **options: Any) -> None:
        self.connected, self.closed, self.errors = Seen(), Seen(), Seen()
        options.setdefault("on_connect", lambda conn: self.connected.add(conn.remote_address))
        self.server, self.address = make_server(
            on_close=lambda conn: self.closed.add(conn.close_reason),
            on_error=lambda conn, error: self.errors.add(error),
            **options,
        )

        @self.server.handler(Text)
        def answer(ctx: Context, conn: ServerConn) -> None:
            conn.write(ctx.message)

    def dial(self) -> socket.socket:
        return socket.create_connection(self.address, PATIENCE)

    def idle(self) -> None:
        """Wait until all connections have ended."""
        wait_until(lambda: not server_core_of(self.server).acceptor.admission)


@pytest.fixture(params=["own", "shared"])
def watch(make_server: MakeServer, request: pytest.FixtureRequest) -> Callable[..., Watched]:
    return lambda **options: Watched(make_server, readers=request.param, **options)


Watch = Callable[..., Watched]


def hang_up(sock: socket.socket, how: str) -> None:
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def asks(sock: socket.socket, value: str = "x") -> bool:
    sock.sendall(text(value))
    return recv_exactly(sock, len(text(value))) == text(value)


# -- health checks


def unheard(log_lines: list[Any]) -> int:
    lines = [each["message"] for each in log_lines]
    return sum("hung up before it had sent a byte" in each for each in lines)


HOW = pytest.mark.parametrize("how", ["close", "reset"])


@HOW
@pytest.mark.parametrize(
    "options",
    [{}, {"tls": SERVER}, {"proxy_protocol": ["127.0.0.1"]}, {"sessions": Sessions()}],
    ids=["plain", "TLS", "PROXY", "sessions"],
)
def test_a_health_check_is_no_error(
    watch: Watch, how: str, options: dict[str, Any], log_lines: list[Any]
) -> None:
    """A connection that closes without having sent a byte is not reported."""
    it = watch(**options)
    for count in (1, 2):
        sock = it.dial()
        if count == 2:
            wait_until(lambda: server_core_of(it.server).acceptor.admission)
        hang_up(sock, how)
        wait_until(lambda count=count: len(it.closed.items) + unheard(log_lines) >= count)
        it.idle()
    assert it.errors.items == [] and it.server.snapshot().errors == 0
    assert [each["message"] for each in log_lines if each["level"].no > 20] == []
    assert len(it.connected.items) == len(it.closed.items) == (0 if options else 2)


@HOW
def test_a_health_check_of_a_server_that_speaks_first(watch: Watch, how: str) -> None:
    """A failed greeting to a health check is not reported either."""
    gone = threading.Event()

    def greet(conn: ServerConn) -> None:
        gone.wait(PATIENCE)
        for _ in range(3):
            conn.write(Text("welcome"))

    it = watch(on_connect=greet)
    sock = it.dial()
    wait_until(lambda: server_core_of(it.server).acceptor.admission)
    hang_up(sock, how)
    gone.set()
    it.idle()
    assert (it.errors.items, it.server.snapshot().refused) == ([], 0)


def test_a_health_check_over_tls(watch: Watch) -> None:
    """It completes the handshake and sends no data."""
    it = watch(tls=SERVER)
    for count, how in enumerate(("close", "reset"), start=1):
        sock = CLIENT.wrap_socket(it.dial(), server_hostname="localhost")
        it.connected.wait(count)
        hang_up(sock, how)
        it.idle()
    assert it.errors.items == []


def test_a_health_check_over_tls_of_a_server_with_sessions(
    watch: Watch, log_lines: list[Any]
) -> None:
    """It leaves while the server waits for a request for a session."""
    it = watch(tls=SERVER, sessions=Sessions())
    with CLIENT.wrap_socket(it.dial(), server_hostname="localhost") as sock:
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):  # what it does not read would make a close a reset
            pass
    wait_until(lambda: unheard(log_lines))
    it.idle()
    assert it.errors.items == []


@pytest.mark.parametrize("tls", [None, SERVER], ids=["plain", "TLS"])
def test_a_peer_that_leaves_in_the_midst_of_a_session_request(watch: Watch, tls: Any) -> None:
    """That is an error, as it has sent something."""
    it = watch(tls=tls, sessions=Sessions())
    sock = it.dial() if tls is None else CLIENT.wrap_socket(it.dial(), server_hostname="localhost")
    sock.sendall(text("x")[:3])
    sock.shutdown(socket.SHUT_WR)
    assert "no session could be agreed on" in str(it.errors.wait()[0])
    sock.close()


@HOW
def test_a_health_check_by_the_proxy_itself(watch: Watch, how: str) -> None:
    """It sends a header without data."""
    for options in ({}, {"tls": SERVER}):
        it = watch(proxy_protocol=["127.0.0.1"], **options)
        sock = it.dial()
        sock.sendall(binary(0, command=0x20))
        wait_until(lambda it=it: server_core_of(it.server).acceptor.admission)
        hang_up(sock, how)
        it.idle()
        assert it.errors.items == []


@pytest.mark.parametrize("tls", [None, SERVER], ids=["plain", "TLS"])
def test_bytes_and_a_reset_are_an_error(watch: Watch, tls: ssl.SSLContext | None) -> None:
    """One byte is enough to make the reset an error."""
    it = watch(tls=tls)
    sock = it.dial()
    sock.sendall(b"\x16")
    wait_until(lambda: server_core_of(it.server).acceptor.connections)
    if tls is None:
        wait_until(
            lambda: (
                next(iter(server_core_of(it.server).acceptor.connections.values()))
                ._core.counts()
                .bytes_in
            )
        )
    hang_up(sock, "reset")
    assert len(it.errors.wait()) == 1
    it.idle()
    assert it.server.snapshot().errors == 1


# -- proxies


@pytest.fixture(params=["v1", "v2", "v2 long"])
def header(request: pytest.FixtureRequest) -> Iterator[bytes]:
    return {"v1": V1, "v2": V2, "v2 long": V2_LONG}[request.param]


@pytest.mark.parametrize("pieces", ["at once", "bytes", "with the rest"])
def test_a_header_sets_the_peer_address(watch: Watch, header: bytes, pieces: str) -> None:
    """The header is found however it is split, and the data after it is not lost."""
    it = watch(proxy_protocol=["10.0.0.0/8", "127.0.0.0/8"])
    with it.dial() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = header + text("behind")
        for piece in {
            "at once": [data],
            "bytes": [data[at : at + 1] for at in range(len(data))],
            "with the rest": [header[:20], data[20:]],
        }[pieces]:
            sock.sendall(piece)
        assert recv_exactly(sock, len(text("behind"))) == text("behind")
        (conn,) = it.server.connections
        assert conn.remote_address == ("192.0.2.1", 56324)
        assert conn.local_address == it.address
        assert conn._core.counts().bytes_in == len(text("behind"))
        assert it.connected.items == [("192.0.2.1", 56324)]
        assert server_core_of(it.server).acceptor.admission.hosts == {"192.0.2.1": 1}


def test_a_header_before_tls(watch: Watch, header: bytes) -> None:
    """Reading the header consumes no byte of the handshake."""
    it = watch(proxy_protocol=["127.0.0.1"], tls=SERVER)
    raw = it.dial()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    machine = CLIENT.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        machine.do_handshake()
    raw.sendall(header + outgoing.read())
    with raw:
        while True:
            try:
                machine.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(raw.recv(65536))
        raw.sendall(outgoing.read())
        assert it.connected.wait() == [("192.0.2.1", 56324)]


@pytest.mark.parametrize(
    "header", [line("UNKNOWN"), binary(0), binary(0x11, V4, command=0x20)], ids=repr
)
def test_a_header_without_an_address(watch: Watch, header: bytes) -> None:
    """The peer is the proxy itself, and counts as such."""
    it = watch(proxy_protocol=["127.0.0.1"])
    with it.dial() as sock:
        sock.sendall(header)
        assert asks(sock)
        assert it.connected.items == [sock.getsockname()]
        assert server_core_of(it.server).acceptor.admission.hosts == {"127.0.0.1": 1}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (text("hello there"), "does not begin with one"),
        (b"PROXY TCP4 192.0.2.1\r\n", "two addresses"),
        (b"PROXY UNKNOWN ".ljust(107, b"x"), "longer than 107"),
        (SIGNATURE + struct.pack(">BBH", 0x21, 0x11, 521), "longer than 536"),
    ],
    ids=["none", "torn", "long line", "long"],
)
def test_an_invalid_header_closes_the_connection(watch: Watch, data: bytes, why: str) -> None:
    """The error says what is wrong, and no callback sees a connection."""
    it = watch(proxy_protocol=["127.0.0.1"])
    with it.dial() as sock:
        sock.sendall(data)
        assert ended(sock)
    (error,) = it.errors.wait()
    assert type(error).__name__ == "HandshakeFailed" and why in str(error)
    it.idle()
    assert it.connected.items == it.closed.items == []


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("data", [b"", V1[:-1], V2[:20]], ids=["nothing", "v1", "v2"])
@pytest.mark.parametrize("tls", [None, SERVER], ids=["plain", "TLS"])
def test_a_missing_header(watch: Watch, data: bytes, tls: Any) -> None:
    """Header and TLS handshake together may take ``handshake_timeout``."""
    it = watch(proxy_protocol=["127.0.0.1"], handshake_timeout=0.05, tls=tls)
    with it.dial() as sock:
        sock.sendall(data)
        assert ended(sock)
    (error,) = it.errors.wait()
    assert str(error) == "no PROXY header within 0.05 s"


def test_a_peer_that_closes_within_the_header(watch: Watch) -> None:
    """It has sent a byte, so it is an error."""
    it = watch(proxy_protocol=["127.0.0.1"])
    with it.dial() as sock:
        sock.sendall(V2[:5])
    (error,) = it.errors.wait()
    assert str(error) == "the peer hung up in its PROXY header"


def test_only_proxies_may_connect(
    watch: Watch, make_server: MakeServer, tmp_path: Any, log_lines: list[Any]
) -> None:
    """Connections from other addresses, including Unix sockets, are closed at once."""
    it = watch(proxy_protocol=["10.0.0.0/8"])
    path = it.server.start(tmp_path / "tao.sock")
    with it.dial() as sock, socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
        for each in (sock, other):
            each.settimeout(PATIENCE)
            assert ended(each)
    it.idle()
    assert it.server.snapshot().refused == 2 and it.connected.items == it.errors.items == []
    assert any("networks of proxy_protocol" in each["message"] for each in log_lines)


def test_a_proxy_at_a_unix_socket(make_server: MakeServer, tmp_path: Any) -> None:
    """HAProxy on the same machine may connect through a Unix socket."""
    server, path = make_server(tmp_path / "tao.sock", proxy_protocol=["unix:"])
    server.handler(Text)(lambda ctx, conn: conn.write(Text(conn.remote_address[0])))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(V1 + text("who am I?"))
        assert recv_exactly(sock, len(text("192.0.2.1"))) == text("192.0.2.1")


def test_an_ipv4_proxy_of_a_dual_stack_socket(watch: Watch) -> None:
    """Its address matches IPv4 networks."""
    it = watch(proxy_protocol=["127.0.0.1"])
    port = it.server.start(("", 0))[1]
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(V1)
        assert asks(sock)


def test_peers_behind_a_proxy_are_counted_separately(watch: Watch) -> None:
    """The limit per host applies to them, not to the proxy; a connection above it is closed."""
    it = watch(proxy_protocol=["127.0.0.1"], max_connections_per_host=2)

    def dial(host: str) -> socket.socket:
        sock = it.dial()
        sock.sendall(line("TCP6" if ":" in host else "TCP4", host, host, 1, 2))
        return sock

    hosts = ("192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "::ffff:192.0.2.2")
    served = [dial(host) for host in hosts]
    assert all(asks(sock) for sock in served)
    counts = {"192.0.2.1": 2, "192.0.2.2": 2, "2001:db8::1": 1}
    assert server_core_of(it.server).acceptor.admission.hosts == counts
    for host in ("192.0.2.1", "::ffff:192.0.2.2"):
        with dial(host) as refused:
            assert ended(refused)
    wait_until(lambda: it.server.snapshot().refused == 2)
    served[0].close()
    wait_until(lambda: server_core_of(it.server).acceptor.admission.hosts.get("192.0.2.1") == 1)
    with dial("192.0.2.1") as again:
        assert asks(again)
    for sock in served:
        sock.close()
    it.idle()
    assert server_core_of(it.server).acceptor.admission.hosts == {} and it.errors.items == []


def test_a_stop_does_not_wait_for_headers(watch: Watch) -> None:
    """Connections without a complete header are closed without an error."""
    it = watch(proxy_protocol=["127.0.0.1"], handshake_timeout=1000.0)
    with it.dial() as nothing, it.dial() as half:
        half.sendall(V1[:10])
        wait_until(lambda: len(server_core_of(it.server).acceptor.connections) == 2)
        assert it.server.stop(PATIENCE).clean
        assert ended(nothing) and ended(half)
    assert it.errors.items == []


def test_a_connection_in_memory_has_no_header() -> None:
    """It does not pass through a proxy."""
    server = Server(proxy_protocol=["10.0.0.0/8"])
    with memory_pair(server) as pair:
        assert pair.conn.remote_address == pair.client.local_address
