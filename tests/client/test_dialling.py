"""Dialling: names with several addresses, several servers, and steps that hang."""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tao.client.happy_eyeballs
from tao.client.client import ClientConn
from tao.client.happy_eyeballs import Memory
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectFailed, ConnectionClosed
from tao.transport.addresses import Target
from tao.wire.message import Registry
from tests.client.test_client import AT_ONCE, Host, reset
from tests.ends import MakeServer, Seen, Text, text
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

MakeClient = Callable[..., ClientConn]
# Longer than any test.
FOR_EVER = 1000.0


class Names:
    """A name server controlled by the test; unknown names go to the real resolver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[str, list[str]] = {}
        self.hanging: set[str] = set()
        self.asked = Seen()
        self.well = threading.Event()
        self._original = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: str, port: Any, *args: Any, **options: Any) -> list[Any]:
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            return self._original(host, port, *args, **options)
        self.asked.add(host)
        if host in self.hanging:
            self.well.wait(PATIENCE)
        found = self.known.get(host, [host])
        return [each for real in found for each in self._original(real, port, *args, **options)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A `Names` for the duration of the test; hanging look-ups are released at the end."""
    made = Names(monkeypatch)
    yield made
    made.well.set()


@pytest.fixture
def host() -> Iterator[Host]:
    """A listening socket to connect to."""
    made = Host()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Host]:
    """Another one."""
    made = Host()
    yield made
    made.close()


@pytest.fixture
def make_client(host: Host, other: Host) -> Iterator[MakeClient]:
    """A function that makes a client, not started; closed afterwards."""
    made: list[ClientConn] = []

    def make(address: Any, **options: Any) -> ClientConn:
        options.setdefault("registry", Registry())
        made.append(ClientConn(address, **options))
        return made[-1]

    yield make
    host.close()
    other.close()
    for client in made:
        client.close()


def texts(seen: Seen) -> Registry:
    """Return a registry with a handler that collects texts."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    return registry


class Hole:
    """A port that drops connection attempts, because its backlog is full."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(address)
        self.sock.listen(0)
        self.fillers = [socket.socket() for _ in range(3)]
        for filler in self.fillers:
            filler.setblocking(False)
            filler.connect_ex(self.sock.getsockname())

    def __enter__(self) -> Hole:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in (self.sock, *self.fillers):
            sock.close()


# -- a name with several addresses


def test_an_unresponsive_address_is_skipped(
    host: Host, make_client: MakeClient, names: Names
) -> None:
    """The next address is tried in parallel, and first from then on, whatever the timeout is."""
    port = host.address[1]
    names.known["two"] = ["127.0.0.2", "127.0.0.1"]
    options = {"connect_timeout": FOR_EVER, "reconnect": AT_ONCE, "registry": texts(Seen())}
    with Hole(("127.0.0.2", port)):
        client = make_client(("two", port), **options).start()
        sock = host.accept()
        sock.sendall(text("useful"))
        sock.close()
        host.accept()
        wait_until(lambda: client.reconnects == 1)
        assert client.remote_address == host.address
    memory = client._application.source._endpoints[0].memory
    good, bad = Target(socket.AF_INET, host.address), Target(socket.AF_INET, ("127.0.0.2", port))
    assert memory.order([bad, good]) == [good, bad]


def test_the_order_of_attempts() -> None:
    """Address families alternate; the last success goes first, the last failure goes last."""
    six = [Target(socket.AF_INET6, (f"::{i}", 1, 0, 0)) for i in range(3)]
    four = [Target(socket.AF_INET, (f"127.0.0.{i}", 1)) for i in range(2)]
    memory = Memory()
    turns = [six[0], four[0], six[1], four[1], six[2]]
    assert memory.order([*six, *four]) == turns
    memory.worked(four[1])
    memory.failed(six[1])
    memory.failed(six[0])
    assert memory.order([*six, *four]) == [four[1], four[0], six[2], six[1], six[0]]
    memory.order([])
    assert memory.order([*six, *four]) == turns, "what is no address of the name is forgotten"


def test_all_addresses_fail(
    make_client: MakeClient, names: Names, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names each address with its reason; a single reason appears once."""
    monkeypatch.setattr(tao.client.happy_eyeballs, "_ATTEMPT_DELAY", 0.0)  # both at once
    port = host.address[1]
    host.down()
    names.known["two"] = ["127.0.0.2", "127.0.0.1"]
    with pytest.raises(ConnectFailed, match=rf"to two port {port}: connection refused$"):
        make_client(("two", port)).start()
    with (
        Hole(("127.0.0.2", port)),
        pytest.raises(ConnectFailed, match=r"127.0.0.1:\d+: .*refused; 127.0.0.2:\d+: no answer"),
    ):
        make_client(("two", port), connect_timeout=1.5).start()


def test_a_useless_address_goes_last(host: Host, make_client: MakeClient, names: Names) -> None:
    """An address that accepts and closes at once does not keep the client from the others."""
    port = host.address[1]
    names.known["two"] = ["127.0.0.2", "127.0.0.1"]
    with socket.create_server(("127.0.0.2", port)) as useless:
        client = make_client(("two", port), reconnect=AT_ONCE).start()
        useless.accept()[0].close()
        host.accept()
        wait_until(lambda: client.reconnects == 1)
        assert client.remote_address == host.address


# -- name servers that hang


def test_a_name_server_that_hangs(make_client: MakeClient, names: Names) -> None:
    """Connecting takes at most ``connect_timeout``, and closing ends it at once."""
    names.hanging.add("stuck")
    with pytest.raises(ConnectFailed, match=r"stuck port 1: .*not resolved within 0\.05 s"):
        make_client(("stuck", 1), connect_timeout=0.05).start()
    client = make_client(("stuck", 1), connect_timeout=FOR_EVER, reconnect=True)
    client.start(keep_trying=True)
    names.asked.wait()
    assert ends(client.close)
    assert client.wait_closed(PATIENCE)


def test_hanging_look_ups_are_limited(make_client: MakeClient, names: Names) -> None:
    """Look-ups of the same name share a thread, and the number of hanging threads is limited."""
    # A look-up is not shared any more when it has hung for so long, as on a busy machine.
    clients = [make_client(("same", 1), connect_timeout=1) for _ in range(20)]
    names.hanging.add("same")

    def fail(client: ClientConn) -> None:
        with pytest.raises(ConnectFailed):
            client.start()

    together(*(lambda client=client: fail(client) for client in clients))
    most = tao.client.happy_eyeballs._MOST_LOOKUPS
    assert len(names.asked.items) == 1
    others = [f"name-{i}" for i in range(most)]
    names.hanging.update(others)
    for name in others:
        fail(make_client((name, 1), connect_timeout=0.01))
    names.known["well"] = ["127.0.0.1"]
    with pytest.raises(ConnectFailed, match=f"as {most} look-ups of other names hang"):
        make_client(("well", 1), connect_timeout=0.01).start()
    names.well.set()
    wait_until(lambda: not tao.client.happy_eyeballs._resolvers.running)
    with pytest.raises(ConnectFailed, match="refused"):
        make_client(("well", 1), connect_timeout=PATIENCE).start()


def test_a_look_up_that_has_hung_for_long_is_abandoned(
    host: Host, make_client: MakeClient, names: Names
) -> None:
    """A recovered name server is queried again, although a thread still hangs."""
    names.known["sick"] = ["127.0.0.1"]
    names.hanging.add("sick")
    with pytest.raises(ConnectFailed, match="not resolved"):
        make_client(("sick", host.address[1]), connect_timeout=0.05).start()
    names.hanging.clear()
    client = make_client(("sick", host.address[1]), connect_timeout=0.05, reconnect=AT_ONCE)
    client.start(keep_trying=True)
    host.accept()
    assert client.wait_connected(PATIENCE)


def test_a_child_process_resolves_as_well(names: Names) -> None:
    """A child process does not wait for a look-up that hangs in its parent."""
    names.hanging.add("parents")
    client = ClientConn(("parents", 1), registry=Registry(), reconnect=True)
    client.start(keep_trying=True)
    names.asked.wait()
    child = os.fork()
    if not child:
        names.hanging.clear()
        names.known["parents"] = ["127.0.0.1"]
        try:
            ClientConn(("parents", 1), registry=Registry()).start()
        except ConnectFailed as error:
            os._exit(0 if "refused" in str(error) and client.closed else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.close()


# -- several servers


def test_fail_over(host: Host, other: Host, make_client: MakeClient) -> None:
    """The next server is tried if one does not answer; failed servers go last."""
    host.down()
    client = make_client([host.address, other.address], reconnect=AT_ONCE).start()
    first = other.accept()
    assert client.remote_address == other.address
    host.up()
    other.down()
    first.close()
    host.accept()
    wait_until(lambda: client.reconnects == 1)
    assert client.remote_address == host.address


def test_a_client_returns_to_the_server_that_worked(
    host: Host, other: Host, make_client: MakeClient
) -> None:
    """After a loss it first tries the server that worked, whatever its position in the list."""
    handled = Seen()
    host.down()
    servers = [host.address, other.address]
    client = make_client(servers, reconnect=AT_ONCE, registry=texts(handled)).start()
    sock = other.accept()
    host.up()
    sock.sendall(text("welcome"))
    handled.wait()
    reset(sock)
    other.accept()
    wait_until(lambda: client.reconnects == 1)
    assert client.remote_address == other.address


def test_a_server_that_closes_at_once_is_skipped(
    host: Host, other: Host, make_client: MakeClient
) -> None:
    """A server that accepts and closes does not keep the client from the others."""
    client = make_client([host.address, other.address], reconnect=AT_ONCE).start()
    host.accept().close()
    other.accept()
    wait_until(lambda: client.reconnects == 1)
    assert client.remote_address == other.address


def test_a_failed_handshake_leads_to_the_next_server(
    make_server: MakeServer, make_client: MakeClient
) -> None:
    """``start`` tries the next server if the TLS handshake fails."""
    plain, secure = make_server()[1], make_server(tls=SERVER)[1]
    options = {"tls": CLIENT, "server_hostname": "localhost"}
    client = make_client([plain, secure], **options).start()
    assert client.remote_address == secure
    with pytest.raises(ConnectionClosed, match="TLS"):
        make_client([plain, plain], **options).start()
    wanted = make_client([secure, plain], on_connect=lambda conn: conn.remote_address == plain)
    assert wanted.start().remote_address == plain


def test_no_server_answers(host: Host, other: Host, make_client: MakeClient, tmp_path: Any) -> None:
    """The error names each server with its reason."""
    host.down()
    client = make_client([host.address, tmp_path / "x"])
    with pytest.raises(ConnectFailed) as failed:
        client.start()
    assert str(failed.value) == (
        f"cannot connect to any of 2 servers: 127.0.0.1 port {host.address[1]}: connection "
        f"refused; {tmp_path}/x: no such file or directory"
    )
    assert client.snapshot().address == f"127.0.0.1:{host.address[1]}, {tmp_path}/x"


def test_a_server_that_hangs_is_skipped(other: Host, make_client: MakeClient, names: Names) -> None:
    """Whether its name or the server itself does not answer, the next one is tried meanwhile."""
    names.hanging.add("stuck")
    client = make_client([("stuck", 1), other.address], connect_timeout=FOR_EVER)
    client.start()
    assert client.remote_address == other.address


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ([], ValueError, "must not be empty"),
        ([("localhost", 80), ("localhost",)], TypeError, "an address is"),
        ([[("localhost", 80)]], TypeError, "an address is"),
        (["one", "two"], ValueError, r"'\./one' for that path"),
        ({"localhost"}, TypeError, "an address is"),
        (lambda where: None, TypeError, "cannot be called as address"),
    ],
)
def test_invalid_server_lists(wrong: Any, error: type[Exception], says: str) -> None:
    """An invalid list is refused when the client is created."""
    with pytest.raises(error, match=says):
        ClientConn(wrong)


# -- source address and socket options


def test_a_source_address(host: Host, make_client: MakeClient) -> None:
    """``source_address`` sets the local address; a local port is also used after a reconnect."""
    with socket.create_server(("127.0.0.7", 0)) as reserved:
        source = reserved.getsockname()
    client = make_client(host.address, source_address=source, reconnect=AT_ONCE).start()
    reset(host.accept())
    assert host.accept().getpeername() == client.local_address == source
    anywhere = make_client(("localhost", host.address[1]), source_address=("127.0.0.8", 0)).start()
    assert host.accept().getpeername()[0] == "127.0.0.8"
    assert anywhere.local_address[1] > 0
    named = make_client(host.address, source_address=("localhost", 0)).start()
    assert named.local_address[0] == "127.0.0.1"


def test_an_impossible_source_address(host: Host, make_client: MakeClient) -> None:
    """The error names the source address as the cause."""
    with pytest.raises(ConnectFailed, match=r"cannot come from 192\.0\.2\.77:0: cannot assign"):
        make_client(host.address, source_address=("192.0.2.77", 0)).start()
    with pytest.raises(ConnectFailed, match="address family not supported"):
        make_client(host.address, source_address=("::1", 0)).start()
    for wrong, error in (("127.0.0.1", TypeError), (("x", -1), ValueError), (80, TypeError)):
        with pytest.raises(error, match="source_address"):
            make_client(host.address, source_address=wrong)
    with pytest.raises(ValueError, match="source_address: what makes the socket"):
        make_client(socket.socket, source_address=("127.0.0.1", 0))


def test_socket_options(host: Host, make_client: MakeClient) -> None:
    """They are set before connecting, and take precedence over tao's own."""
    options = [
        (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
    ]
    client = make_client(host.address, socket_options=options, reconnect=AT_ONCE).start()
    host.accept().close()
    host.accept()
    wait_until(lambda: client.reconnects == 1)
    sock = client._core.transport._sock
    assert [sock.getsockopt(*each[:2]) for each in options] == [0x10, 0]
    with pytest.raises(ConnectFailed, match=r"socket option \(6, 9999, 1\): protocol not avail"):
        make_client(host.address, socket_options=[(6, 9999, 1)]).start()
    with pytest.raises(ConnectFailed, match=r"socket option \(6, 9999, 1\): protocol not avail"):
        dial = functools.partial(socket.create_connection, host.address)
        make_client(dial, socket_options=[(6, 9999, 1)]).start()
    for wrong in (5, "x", [5], [(1, 2)], [(1, 2, None)]):
        with pytest.raises(TypeError, match="socket_options"):
            make_client(host.address, socket_options=wrong)
    timeout = (socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))
    for each in ((1, 2, 2**31), (1, 2, -(2**40)), (2**31, 2, 1), (1, 2**31, b"x"), timeout):
        with pytest.raises(ValueError, match="socket_options"):
            make_client(host.address, socket_options=[each])


# -- sockets made by the application


def test_a_connected_socket(host: Host, make_client: MakeClient) -> None:
    """It can be passed instead of an address, with or without a timeout; it is used once."""
    sock = socket.create_connection(host.address, PATIENCE)
    client = make_client(sock).start()
    client.write(Text("mine"))
    assert recv_exactly(host.accept(), 12) == text("mine")
    assert client.remote_address == host.address
    refusing = make_client(socket.create_connection(host.address), on_connect=lambda conn: False)
    for reason in ("refused by on_connect", "used already"):
        with pytest.raises(ConnectionClosed, match=reason):
            refusing.start()


def test_unsuitable_sockets(host: Host, make_client: MakeClient) -> None:
    """They are refused at creation; an unused socket is closed together with the client."""
    sock = socket.create_connection(host.address)
    with pytest.raises(ValueError, match="reconnect: a socket that is connected already"):
        make_client(sock, reconnect=True)
    with pytest.raises(ValueError, match="server_hostname is needed with tls"):
        make_client(sock, tls=CLIENT)
    make_client(sock).close()
    assert sock.fileno() == -1
    with pytest.raises(ValueError, match="must be connected: bad file descriptor"):
        make_client(sock)
    with socket.socket() as new, pytest.raises(ValueError, match="endpoint is not connected"):
        make_client(new)
    near, far = socket.socketpair(type=socket.SOCK_DGRAM)
    with near, far, pytest.raises(ValueError, match="not a stream socket"):
        make_client(near)


def test_a_function_that_connects(host: Host, make_client: MakeClient) -> None:
    """It is called for each connection, for example to connect through a proxy or a tunnel."""
    calls = Seen()

    def through_a_proxy() -> socket.socket:
        calls.add(1)
        return socket.create_connection(host.address, PATIENCE)

    client = make_client(through_a_proxy, reconnect=AT_ONCE).start()
    host.accept().close()
    again = host.accept()
    wait_until(lambda: client.reconnects == 1)
    client.write(Text("again"))
    assert recv_exactly(again, 13) == text("again")
    assert len(calls.items) == 2
    secure = {"tls": CLIENT, "server_hostname": "localhost", "handshake_timeout": 0.01}
    with pytest.raises(ConnectionClosed, match="handshake not done"):
        make_client(through_a_proxy, **secure).start()


def test_a_function_that_hangs(host: Host, make_client: MakeClient) -> None:
    """It is abandoned after ``connect_timeout`` or a close, and its late result is closed."""
    leave, made = threading.Event(), Seen()

    def hang() -> socket.socket:
        leave.wait(PATIENCE)
        made.add(socket.create_connection(host.address))
        return made.items[-1]

    with pytest.raises(ConnectFailed, match=r"hang\(\) returns: no connection within 0\.05 s"):
        make_client(hang, connect_timeout=0.05).start()
    client = make_client(hang, connect_timeout=0.01, reconnect=AT_ONCE).start(keep_trying=True)
    errors = Seen()
    client._application.on_error = lambda conn, error: errors.add(str(error))
    wait_until(lambda: any("earlier calls hang" in each for each in list(errors.items)))
    assert ends(client.close)
    leave.set()
    wait_until(lambda: len(made.items) == 3)
    wait_until(lambda: all(sock.fileno() == -1 for sock in made.items))


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "not a connected socket: it is not a socket, but NoneType"),
        (KeyError("x"), "KeyError: 'x'"),
        (ConnectionRefusedError("the proxy refused"), "returns: the proxy refused"),
    ],
)
def test_a_function_that_fails(make_client: MakeClient, returned: Any, says: str) -> None:
    """``start`` raises with the reason; wrong results are reported like those of a callback."""
    errors = Seen()

    def connect() -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    client = make_client(connect, on_error=lambda conn, error: errors.add(type(error).__name__))
    with pytest.raises(ConnectFailed, match=says):
        client.start()
    bug = "KeyError" if returned else "TypeError"
    assert errors.items == ([] if isinstance(returned, OSError) else [bug])


def test_a_mixed_list(host: Host, make_client: MakeClient) -> None:
    """A list may contain addresses, functions and sockets; a used socket is skipped."""
    sock = socket.create_connection(host.address)
    client = make_client([sock, host.address], reconnect=Reconnect(initial=0.001)).start()
    host.accept().close()
    second = host.accept()
    wait_until(lambda: client.reconnects == 1)
    client.write(Text("second"))
    assert recv_exactly(second, 14) == text("second")
