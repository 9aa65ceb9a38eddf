"""The client: dialling, states, and reconnecting without losing messages."""

from __future__ import annotations

import gc
import random
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn, connect
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectFailed, ConnectionClosed, WouldBlock
from tao.runtime.context import Context
from tao.wire.message import Registry
from tests.ends import Number, Seen, Text, frame, number, text
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until

AT_ONCE = Reconnect(initial=0.001, maximum=0.01)

MakeClient = Callable[..., ClientConn]


class Host:
    """A listening socket that a test accepts from, and can close and reopen on the same port."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        self.sock.settimeout(PATIENCE)
        sock, _ = self.sock.accept()
        sock.settimeout(PATIENCE)
        self.accepted.append(sock)
        return sock

    def down(self) -> None:
        self.sock.close()

    def up(self) -> None:
        self.sock = socket.create_server(self.address)

    def close(self) -> None:
        for sock in (self.sock, *self.accepted):
            sock.close()


@pytest.fixture
def host() -> Iterator[Host]:
    """A listening socket to connect to."""
    made = Host()
    yield made
    made.close()


@pytest.fixture(params=["own", "shared"])
def make_client(host: Host, request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """A function that makes a client of `host`, not started; closed afterwards."""
    made: list[ClientConn] = []

    def make(address: Any = None, **options: Any) -> ClientConn:
        options.setdefault("registry", Registry())
        options.setdefault("readers", request.param)
        made.append(ClientConn(address or host.address, **options))
        return made[-1]

    yield make
    host.close()
    for client in made:
        client.close()


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- dialling


def test_connect_and_close(host: Host) -> None:
    """``connect`` returns a connected client; the end of the block closes it."""
    with connect(host.address, registry=Registry()) as client:
        sock = host.accept()
        assert client.connected
        assert client.wait_connected(0)
        assert client.remote_address == host.address
        sock.close()
    assert not client.connected
    assert client.closed


def test_a_host_name_is_resolved(host: Host, make_client: MakeClient) -> None:
    """All addresses of a name are tried, and the first that answers is used."""
    client = make_client(("localhost", host.address[1])).start()
    host.accept()
    assert client.connected


def test_an_absent_server(host: Host, make_client: MakeClient) -> None:
    """``start`` raises an error with address and reason, and can be called again."""
    host.down()
    client = make_client()
    with pytest.raises(
        ConnectFailed, match=rf"127.0.0.1 port {host.address[1]}: connection refused"
    ):
        client.start()
    host.up()
    client.start()
    host.accept()
    assert client.connected
    with pytest.raises(RuntimeError, match="started already"):
        client.start()


def test_a_name_that_does_not_exist(make_client: MakeClient) -> None:
    """The error differs from that for a host that does not answer."""
    with pytest.raises(ConnectFailed, match="cannot be resolved"):
        make_client(("no-such-host.invalid", 1)).start()


def test_connecting_may_time_out(make_client: MakeClient) -> None:
    """An attempt at a server with a full backlog ends after ``connect_timeout``."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        client = make_client(full.getsockname(), connect_timeout=0.05)
        with pytest.raises(ConnectFailed, match=r"no answer within 0\.05 s"):
            while True:
                client.start()
                client = make_client(full.getsockname(), connect_timeout=0.05)


@pytest.mark.parametrize("address", [("localhost",), 80, ("host", "80"), None])
def test_invalid_addresses(address: Any) -> None:
    """An invalid address raises when the client is created."""
    with pytest.raises(TypeError, match="an address is"):
        ClientConn(address)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        ClientConn(("localhost", 0))
    with pytest.raises(ValueError, match=r"write \('localhost', 80\) for a host and a port"):
        ClientConn("localhost:80")


def test_a_client_that_never_started(host: Host) -> None:
    """A client that was never started can be closed or dropped, and leaves nothing behind."""
    client = ClientConn(host.address)
    client.close()
    assert client.wait_closed(0)
    with pytest.raises(ConnectionClosed):
        client.start()
    forgotten = weakref.ref(ClientConn(host.address))
    gc.collect()
    assert forgotten() is None


def test_on_connect_may_refuse(host: Host, make_client: MakeClient) -> None:
    """``start`` raises, and ``on_close`` is not called."""
    seen = Seen()
    client = make_client(on_connect=lambda conn: False, on_close=seen.add)
    with pytest.raises(ConnectionClosed, match="refused by on_connect"):
        client.start()
    assert host.accept().recv(1) == b""
    assert seen.items == []


def test_close_while_dialling(make_client: MakeClient) -> None:
    """Closing ends the dialling at once."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        client = make_client(full.getsockname(), connect_timeout=1000.0)
        fillers = []
        for _ in range(3):
            fillers.append(socket.socket())
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(full.getsockname())
        failed = Seen()

        def start() -> None:
            try:
                client.start()
            except ConnectionClosed as error:
                failed.add(str(error))

        thread = threading.Thread(target=start, name="test-start")
        thread.start()
        wait_until(lambda: client._application.source.dialling)
        client.close("not needed any more")
        assert failed.wait() == [client.close_reason] == ["not needed any more"]
        thread.join()
        for sock in fillers:
            sock.close()


# -- reconnecting


def test_it_reconnects(host: Host, make_client: MakeClient) -> None:
    """A lost connection is replaced; each has its own ``on_connect``, ``on_close`` and context."""
    seen, errors = Seen(), Seen()
    client = make_client(
        reconnect=AT_ONCE,
        on_connect=lambda conn: seen.add("up"),
        on_close=lambda conn: seen.add(conn.close_reason),
        on_error=lambda conn, error: errors.add(error),
    ).start()
    first = client.context
    host.accept().close()
    sock = host.accept()
    assert seen.wait(3) == ["up", "peer closed", "up"]
    assert client.wait_connected(PATIENCE)
    assert first.cancelled
    assert not client.context.cancelled
    assert client.close_reason is None
    assert client.reconnects == 1
    sock.close()


def test_it_keeps_trying(host: Host, make_client: MakeClient) -> None:
    """While the server is absent, the client keeps dialling, and ``on_error`` is called."""
    errors = Seen()
    client = make_client(reconnect=AT_ONCE, on_error=lambda conn, error: errors.add(type(error)))
    client.start()
    sock = host.accept()
    host.down()
    sock.close()
    assert errors.wait(3) == [ConnectFailed] * len(errors.items)
    assert not client.connected
    host.up()
    host.accept()
    assert client.wait_connected(PATIENCE)


def test_it_may_start_without_a_server(host: Host, make_client: MakeClient) -> None:
    """With ``keep_trying``, ``start`` returns at once, and the client connects later."""
    host.down()
    client = make_client(reconnect=AT_ONCE).start(keep_trying=True)
    client.write(Text("early"))
    assert not client.wait_connected(0.05)
    host.up()
    assert recv_exactly(host.accept(), 13) == text("early")
    assert client.wait_connected(PATIENCE)
    with pytest.raises(ValueError, match="needs the option reconnect"):
        make_client().start(keep_trying=True)


def test_it_gives_up_after_so_many_attempts(host: Host, make_client: MakeClient) -> None:
    """``attempts`` limits consecutive failures; the close reason has their number and the cause."""
    client = make_client(reconnect=Reconnect(initial=0.001, attempts=3)).start()
    sock = host.accept()
    host.down()
    sock.close()
    assert client.wait_closed(PATIENCE)
    assert "gave up after 3 attempts: cannot connect to 127.0.0.1" in str(client.close_reason)
    assert not client.wait_connected(PATIENCE)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\1",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(0),
        frame(99),
    ],
    ids=["nothing", "a byte", "SSH", "HTTP", "a heartbeat", "an unknown number"],
)
def test_short_connections_count_as_failures(
    host: Host, make_client: MakeClient, said: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    """Connections without a known message count as failed attempts, up to ``attempts``."""
    asked = Seen()

    class Noted(Reconnect):
        def delay(self, attempt: int) -> float:
            asked.add(attempt)
            return 0.001

    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: None)
    client = make_client(registry=registry, reconnect=Noted(attempts=6)).start()
    for _ in range(7):
        sock = host.accept()
        sock.sendall(said)
        sock.close()
    assert client.wait_closed(PATIENCE)
    assert asked.items == [1, 2, 3, 4, 5, 6]
    assert str(client.close_reason).startswith("gave up after 6 attempts")


def test_what_resets_the_attempts(host: Host, make_client: MakeClient) -> None:
    """One known message resets the count, whatever follows it; so does a long connection."""
    asked = Seen()

    class Noted(Reconnect):
        def delay(self, attempt: int) -> float:
            asked.add(attempt)
            return 0.001

    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: None)
    client = make_client(registry=registry, reconnect=Noted()).start()
    for said in (b"", b"", text("x") + b"\xff" * 8, b"", b""):
        sock = host.accept()
        sock.sendall(said)
        sock.close()
    sock = host.accept()
    wait_until(lambda: client.connected and client.reconnects == 5)
    assert asked.items == [1, 2, 1, 2, 3]
    client._core.usefulness.came_up -= 60
    sock.close()
    assert asked.wait(6)[5:] == [1]


def test_close_ends_the_back_off(host: Host, make_client: MakeClient) -> None:
    """Closing ends a back-off of any length at once."""
    client = make_client(reconnect=Reconnect(initial=1000.0, maximum=1000.0, jitter=0)).start()
    sock = host.accept()
    host.down()
    sock.close()
    wait_until(lambda: not client.connected)
    assert ends(client.close)
    assert client.wait_closed(PATIENCE)


def test_unsent_messages_wait_and_keep_their_order(host: Host, make_client: MakeClient) -> None:
    """Messages written without a connection are sent on the next, after those of ``on_connect``."""
    client = make_client(
        reconnect=AT_ONCE, on_connect=lambda conn: conn.write(Text("hello")), queue_size=3
    ).start()
    sock = host.accept()
    assert recv_exactly(sock, 13) == text("hello")
    host.down()
    sock.close()
    wait_until(lambda: not client.connected)
    for i in range(3):
        client.write(Text(str(i)))
    with pytest.raises(WouldBlock):
        client.write(Text("3"))
    host.up()
    assert recv_exactly(host.accept(), 13 + 27) == text("hello") + text("0") + text("1") + text("2")


def test_a_partly_sent_message_is_sent_again_completely(
    host: Host, make_client: MakeClient
) -> None:
    """The next connection sends the message from its beginning."""
    client = make_client(reconnect=AT_ONCE, queue_size=100).start()
    sock = host.accept()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    big = "x" * 5_000_000
    client.write(Text(big))
    client.write(Text("after"))
    assert client.send_queue_length == 2
    reset(sock)
    again = host.accept()
    assert recv_exactly(again, len(big) + 8 + 13) == text(big) + text("after")


def test_timers_and_values_survive(host: Host, make_client: MakeClient) -> None:
    """Timers and values belong to the client, not to one of its connections."""
    client, seen = make_client(reconnect=AT_ONCE).start(), Seen()
    client.set_value("key", "kept")
    client.run_every(0.005, lambda due, conn: seen.add(conn.value("key")))
    host.accept().close()
    host.accept()
    count = len(seen.items)
    assert set(seen.wait(count + 3)) == {"kept"}


def test_a_protocol_error_makes_it_reconnect(host: Host, make_client: MakeClient) -> None:
    """After invalid data, the client disconnects and dials again."""
    reasons = Seen()
    client = make_client(reconnect=AT_ONCE, on_close=lambda conn: reasons.add(conn.close_reason))
    client.start()
    host.accept().sendall(b"\xff" * 8)
    host.accept()
    assert "protocol error" in reasons.wait()[0]


def test_a_silent_server_makes_it_reconnect(host: Host, make_client: MakeClient) -> None:
    """After ``idle_timeout`` without data, the client disconnects and dials again."""
    reasons = Seen()
    client = make_client(
        reconnect=AT_ONCE, idle_timeout=0.05, on_close=lambda conn: reasons.add(conn.close_reason)
    )
    client.start()
    host.accept()
    host.accept()
    assert reasons.wait()[0] == "idle for 0.05 s"


def test_a_handler_finishes_before_the_next_connection(host: Host, make_client: MakeClient) -> None:
    """Handlers, ``on_close`` and ``on_connect`` run in this order, never concurrently."""
    registry, seen = Registry(), Seen()

    @registry.handler(Number)
    def handle(ctx: Context, conn: Any) -> None:
        if ctx.message.value == 9:
            ctx.wait(PATIENCE)
        seen.add(ctx.message.value)

    client = make_client(
        registry=registry,
        reconnect=AT_ONCE,
        on_connect=lambda conn: seen.add("up"),
        on_close=lambda conn: seen.add("down"),
    )
    client.start()
    sock = host.accept()
    sock.sendall(b"".join(map(number, range(10))))
    sock.close()
    host.accept()
    assert seen.wait(13) == ["up", *range(10), "down", "up"]


@pytest.mark.parametrize("seed", range(3))
def test_random_cuts_lose_only_what_the_kernel_had(
    host: Host, make_client: MakeClient, seed: int
) -> None:
    """Messages arrive in order and complete; only those in kernel buffers may be missing."""
    rng = random.Random(seed)
    client = make_client(reconnect=AT_ONCE, queue_size=1000)
    client.start()
    count = 3000
    got: list[int] = []
    stop = threading.Event()

    def write() -> None:
        for i in range(count):
            client.write(Number(i), timeout=PATIENCE)
        wait_until(lambda: client.send_queue_length == 0)
        stop.set()

    def serve() -> None:
        while not stop.is_set():
            host.sock.settimeout(0.05)
            try:
                sock, _ = host.sock.accept()
            except TimeoutError:
                continue
            sock.settimeout(0.2)
            data = b""
            limit = rng.randrange(16, 20_000)
            with sock:
                while len(data) < limit:
                    try:
                        piece = sock.recv(rng.randrange(1, 4000))
                    except TimeoutError:
                        break
                    if not piece:
                        break
                    data += piece
                whole = [data[i : i + 16] for i in range(0, len(data) - 15, 16)]
                got.extend(struct.unpack_from("<q", each, 8)[0] for each in whole)
                if rng.random() < 0.5:
                    reset(sock)

    together(write, serve)
    assert got == sorted(set(got)), "in order, and none twice"
    assert len(got) > 100


def test_close_during_a_reconnection(host: Host, make_client: MakeClient) -> None:
    """Closing at any moment of a reconnection ends it."""
    for i in range(30):
        client = make_client(reconnect=AT_ONCE).start()
        sock = host.accept()
        threading.Event().wait(0.0003 * (i % 7))
        together(sock.close, client.close)
        assert client.wait_closed(PATIENCE)
        host.down()
        host.up()


def test_a_handler_may_close_the_client(host: Host, make_client: MakeClient) -> None:
    """The client does not reconnect afterwards."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: conn.close())
    client = make_client(registry=registry, reconnect=AT_ONCE).start()
    sock = host.accept()
    sock.sendall(text("x"))
    assert sock.recv(1) == b""
    sock.close()
    assert client.wait_closed(PATIENCE)
    assert client.close_reason == "closed by this side"


def test_a_unix_socket(make_client: MakeClient, tmp_path: Any) -> None:
    """A path is the address of a Unix socket."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        client = make_client(path).start()
        with listening.accept()[0] as sock:
            client.write(Text("unix"))
            assert recv_exactly(sock, 12) == text("unix")
    with pytest.raises(ConnectFailed, match="no such file"):
        make_client(str(tmp_path / "nothing")).start()


def test_statistics(host: Host, make_client: MakeClient) -> None:
    """A client has the same statistics as a server."""
    client = make_client().start()
    host.accept()
    client.write(Text("x"))
    found = client.snapshot()
    assert (found.messages_out, found.bytes_out, found.connections) == (1, 9, 1)
