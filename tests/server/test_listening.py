"""Listening: Unix sockets and their files, passed sockets, and the address of a peer."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.monitor.connections import page_of_connections
from tao.server.listening.admission import Admission
from tao.server.server import Server, server_core_of
from tao.transport.addresses import address_text, host_of, normalized, unix_address
from tao.transport.unix_sockets import SocketFile, bind_unix
from tao.wire.message import Registry
from tests.ends import MakeServer, Seen, Text, text
from tests.support import PATIENCE, recv_exactly, together, wait_until
from tests.tls_pairs import SERVER

needs_abstract = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="abstract sockets are Linux's"
)


def echoes(address: Any) -> bool:
    """Return whether a client that connects there gets a reply."""
    seen, registry = Seen(), Registry()
    registry.register(1, Text.deserialize, lambda ctx, conn: seen.add(ctx.message.text))
    with ClientConn(address, registry=registry) as client:
        client.write(Text("hello"))
        return seen.wait() == ["hello"]


def echo(server: Server) -> None:
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))


# -- Unix sockets: forms of an address


def name_of(kind: str, tmp_path: Path) -> Any:
    """Return an address in one of the forms that users may write."""
    path, name = str(tmp_path / "tao.sock"), f"\0tao-test-{os.getpid()}-{kind}"
    return {
        "str": path,
        "bytes": os.fsencode(path),
        "Path": Path(path),
        "abstract": name,
        "abstract bytes": os.fsencode(name) + b"\0\xff\n",
    }[kind]


@needs_abstract
@pytest.mark.parametrize("kind", ["str", "bytes", "Path", "abstract", "abstract bytes"])
def test_each_form_of_a_unix_address(
    kind: str, make_server: MakeServer, tmp_path: Path, log_lines: list[Any]
) -> None:
    """Both ends accept it, it is displayed, and a clean stop leaves nothing behind."""
    given = name_of(kind, tmp_path)
    server, _ = make_server()
    echo(server)
    bound = server.start(given)
    assert bound == os.fsdecode(given) == server.addresses[1]
    assert echoes(given) and echoes(bound)
    assert address_text(bound).isprintable() and address_text(bound) in server.snapshot().address
    assert server.stop().clean and not os.listdir(tmp_path)
    assert all(record["level"].no < 30 for record in log_lines)
    assert all(record["message"].isprintable() for record in log_lines)


@needs_abstract
def test_an_abstract_peer_address_is_displayed(make_server: MakeServer, tmp_path: Path) -> None:
    """It is displayed as ss does it, with @; also by the monitor and in the repr."""
    server, address = make_server(tmp_path / "tao.sock")
    echo(server)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0peer-{os.getpid()}\n")
        sock.connect(address)
        sock.sendall(text("x"))
        assert recv_exactly(sock, len(text("x"))) == text("x")
        (conn,) = server.connections
        assert conn.remote_address == f"\0peer-{os.getpid()}\n"
        assert f" @peer-{os.getpid()}\\n: open>" in repr(conn)
        assert f"@peer-{os.getpid()}" in str(page_of_connections({}))


@pytest.mark.parametrize("address", ["", b"", "\0", "a\0b", b"a\0b", Path("a\0b")])
@pytest.mark.parametrize("use", [Server().start, ClientConn])
def test_invalid_unix_addresses(address: Any, use: Callable[[Any], object]) -> None:
    """Both ends refuse an empty path, and a path that contains NUL."""
    with pytest.raises(ValueError, match="must not"):
        use(address)
    with pytest.raises(ValueError, match="host and a port"):
        use(b"localhost:80")


def test_addresses_of_any_type_are_displayed() -> None:
    """An application may set ``remote_address`` to any object without breaking log lines."""

    error: BaseException = ValueError()

    class Broken:
        def __str__(self) -> str:
            raise error

    assert address_text(("::1", 80, 0, 0)) == "[::1]:80"
    assert address_text(("evil\n", 80)) == "evil\\n:80"
    assert address_text(b"/tmp/\xff") == "/tmp/\\udcff"
    assert [address_text(each) for each in (None, "", b"", ())] == ["-"] * 4
    assert (address_text((1, 2)), address_text(("a",)), address_text(7)) == ("1:2", "('a',)", "7")
    assert address_text(Broken()) == address_text((Broken(), 1)).replace("tuple", "Broken")
    error = SystemExit()
    assert address_text(Broken()) == "<unprintable Broken: SystemExit>"


# -- Unix sockets: ownership of the file


def test_the_file_of_a_successor_stays(make_server: MakeServer, tmp_path: Path) -> None:
    """A server that stops removes only the file that it has created."""
    path = tmp_path / "tao.sock"
    old, _ = make_server(path)
    path.unlink()
    new, _ = make_server(path)
    echo(new)
    assert old.stop().clean
    assert echoes(path)
    assert new.stop().clean and not path.exists()


def test_a_relative_path_after_a_change_of_directory(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path refers to the directory in which the server was started."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    one, _ = make_server("tao.sock")
    monkeypatch.chdir("other")
    another, _ = make_server("tao.sock")
    one.stop()
    assert (os.listdir("."), os.listdir("..")) == (["tao.sock"], ["other"])
    another.stop()
    assert os.listdir(".") == []


KILLED = """
import os, signal, sys, tao
tao.Server().start(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_file_of_a_killed_server_is_replaced(make_server: MakeServer, tmp_path: Path) -> None:
    """Nothing listens on it any more."""
    path = tmp_path / "tao.sock"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL and path.is_socket()
    server, _ = make_server(path)
    echo(server)
    assert echoes(path)


def full(path: Path) -> Iterator[Any]:
    """Yield the path of a server with a full backlog."""
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as waiting:
        sock.bind(str(path))
        sock.listen(0)
        waiting.connect(str(path))
        yield


def datagrams(path: Path) -> Iterator[Any]:
    """Yield the path of a datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        yield


def tao_server(path: Path) -> Iterator[Any]:
    """Yield the path of another server of this process."""
    with Server(registry=Registry()) as server:
        server.start(path)
        yield


def plain_file(path: Path) -> Iterator[Any]:
    """Yield the path of a regular file."""
    path.write_text("precious")
    yield


def link_to_nothing(path: Path) -> Iterator[Any]:
    path.symlink_to(path.parent / "nothing")
    yield


@pytest.mark.parametrize(
    "occupied", [full, datagrams, tao_server, plain_file, link_to_nothing], ids=lambda f: f.__name__
)
def test_a_path_that_is_in_use_is_refused(
    occupied: Callable[[Path], Iterator[Any]], make_server: MakeServer, tmp_path: Path
) -> None:
    """The existing file or socket stays."""
    path = tmp_path / "tao.sock"
    server, _ = make_server()
    for _ in occupied(path):
        before = os.lstat(path).st_ino
        with pytest.raises(OSError, match=rf"cannot listen at {path}: (address already|there is)"):
            server.start(path)
        assert os.lstat(path).st_ino == before


def test_servers_that_start_at_once_do_not_replace_each_other(tmp_path: Path) -> None:
    """One of several servers replaces the socket of a killed one, and keeps it."""
    path = tmp_path / "tao.sock"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))

        def begin() -> Server | None:
            server = Server(registry=Registry())
            echo(server)
            try:
                server.start(path)
            except OSError:
                return None
            return server

        (server,) = filter(None, together(*[begin] * 4))
        assert echoes(path)
        server.stop()


def test_a_directory_that_cannot_be_locked(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holding the lock blocks other servers only briefly."""
    monkeypatch.setattr("tao.transport.unix_sockets._PAUSE", 0)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        server, _ = make_server(tmp_path / "tao.sock")
        assert server.stop().clean and not os.listdir(tmp_path)
    finally:
        os.close(held)


def test_a_failed_listen_leaves_no_file(tmp_path: Path) -> None:
    """A path that is too long leaves none either."""
    server = Server(registry=Registry(), backlog=2**40)
    with pytest.raises(OSError, match="cannot listen at"):
        server.start(tmp_path / "tao.sock")
    with pytest.raises(OSError, match=r"cannot listen at .*path too long"):
        server.start(tmp_path / ("x" * 200))
    assert not os.listdir(tmp_path)


def test_a_file_that_was_already_removed(tmp_path: Path) -> None:
    """The stop is clean nevertheless."""
    path = str(tmp_path / "tao.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        file = bind_unix(sock, path, 1)
        assert isinstance(file, SocketFile)
        os.unlink(path)
        file.remove()


# -- sockets passed by the application


def bound(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return sock


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_bound_socket_is_made_to_listen(make_server: MakeServer, family: int) -> None:
    """The server calls ``listen`` with its own backlog."""
    server, address = make_server(bound(family))
    echo(server)
    assert echoes(address[:2])


def test_a_bound_unix_socket_is_made_to_listen(make_server: MakeServer, tmp_path: Path) -> None:
    """The server did not create the file, so the file stays."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "tao.sock"))
    server, address = make_server(sock)
    echo(server)
    assert echoes(address)
    server.stop()
    assert os.path.exists(address)


def connected() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        listener.accept()[0].close()
        return sock  # the other end is closed


def reset() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return socket.create_connection(listener.getsockname())


def of_a_pair() -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


def closed() -> socket.socket:
    sock = bound()
    sock.close()
    return sock


def of_tls() -> socket.socket:
    sock = bound()
    sock.listen()
    return SERVER.wrap_socket(sock, server_side=True)


REFUSED = {
    "UDP": (lambda: bound(kind=socket.SOCK_DGRAM), "SOCK_DGRAM"),
    "connected": (connected, "is connected to 127.0.0.1:"),
    "reset": (reset, "was connected"),
    "a pair": (of_a_pair, "is connected"),
    "closed": (closed, "is closed"),
    "not bound": (socket.socket, "is not bound"),
    "not bound, Unix": (lambda: socket.socket(socket.AF_UNIX), "is not bound"),
    "TLS": (of_tls, "SSLContext as tls"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_socket_that_cannot_accept_is_refused(kind: str) -> None:
    """The error says what is wrong; the socket stays open, and the server can still be started."""
    make, why = REFUSED[kind]
    server = Server(registry=Registry())
    with make() as sock:
        with pytest.raises(ValueError, match=why):
            server.start(sock)
        assert kind == "closed" or sock.fileno() >= 0
    assert not server.running and server.addresses == []


# -- one address for a peer


@pytest.mark.parametrize("host", ["", "::"])
def test_an_ipv4_peer_has_one_address(host: str, make_server: MakeServer) -> None:
    """It is always the IPv4 address, so allow-lists and limits per host match."""
    seen = Seen()

    def admit(conn: Any) -> bool:
        seen.add((conn.remote_address[0], conn.local_address[0]))
        return True

    server, four = make_server(max_connections_per_host=1, on_connect=admit)
    dual = bound_to_all() if host == "::" else (host, 0)
    port = server.start(dual)[1]
    with socket.create_connection(("127.0.0.1", port)) as first:
        assert seen.wait() == [("127.0.0.1", "127.0.0.1")]
        assert server_core_of(server).acceptor.admission.hosts == {"127.0.0.1": 1}
        with socket.create_connection(four, PATIENCE) as second:
            assert second.recv(1) == b""
        assert first.fileno() >= 0


def bound_to_all() -> socket.socket:
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    return sock


def test_a_changed_remote_address_does_not_affect_the_limit(make_server: MakeServer) -> None:
    """A connection is counted and released by the address at which it was admitted."""

    def behind_a_proxy(conn: Any) -> bool:
        conn.remote_address = ("192.0.2.1", 1)
        return True

    server, address = make_server(max_connections_per_host=2, on_connect=behind_a_proxy)
    echo(server)
    for _ in range(5):
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(text("x"))
            assert recv_exactly(sock, len(text("x"))) == text("x")
        wait_until(lambda: not server_core_of(server).acceptor.admission)
    assert server_core_of(server).acceptor.admission.hosts == {}


def test_normalized_addresses() -> None:
    """Addresses from the kernel and from applications are normalized."""
    assert normalized(("::ffff:192.0.2.1", 5, 0, 0)) == ("192.0.2.1", 5)
    assert normalized(("::FFFF:c000:201", 5, 0, 0)) == ("192.0.2.1", 5)
    for same in (("::ffff:x", 5), ("::1", 5, 0, 0), ("fe80::1%lo", 5, 0, 1), "/path", "", (), None):
        assert normalized(same) == same
    assert [host_of(each) for each in (("::ffff:1.2.3.4", 5), "/path", None, ())] == [
        *("1.2.3.4", "", "", "")
    ]
    assert (unix_address(("h", 1)), unix_address(3), normalized(b"\0n")) == (None, None, "\0n")


def test_admission_counts_each_connection_once() -> None:
    """Moving, releasing twice, and releasing without admission keep the counts correct."""
    admission = Admission(3, 1)
    assert admission.admit(1, "a") == "" and admission.admit(2, None) == ""
    assert admission.admit(3, "a") == "max_connections_per_host is 1"
    assert admission.move(2, "a") == "max_connections_per_host is 1"
    assert (admission.move(2, "b"), admission.admit(4, "")) == ("", "")
    assert admission.admit(5, "c") == "max_connections is 3"
    assert (len(admission), admission.hosts) == (3, {"a": 1, "b": 1, "": 1})
    for number in (1, 1, 2, 9, 4):
        admission.release(number)
    assert (len(admission), admission.hosts) == (0, {})
    assert admission.move(1, "a") == "the connection is over"
    assert admission.admit(1, None) == admission.admit(2, "a") == ""
    assert admission.move(1, "a") == "max_connections_per_host is 1"  # although it came first


def test_admission_never_exceeds_its_limits() -> None:
    """The limits hold under concurrent admissions from one host and from several."""
    for _ in range(20):
        admission = Admission(30, 7)

        def come(first: int, admission: Admission = admission) -> int:
            hosts = ("a", "b", "c")
            numbers = range(first, first + 30)
            return sum(not admission.admit(each, hosts[each % 3]) for each in numbers)

        admitted = together(*(lambda n=n: come(100 * n) for n in range(4)))
        assert sum(admitted) == len(admission) == 21
        assert admission.hosts == {"a": 7, "b": 7, "c": 7}


# -- stop_listening


def asks(sock: socket.socket, value: str) -> bool:
    sock.sendall(text(value))
    return recv_exactly(sock, len(text(value))) == text(value)


def test_connections_continue_after_stop_listening(make_server: MakeServer, tmp_path: Path) -> None:
    """No connection is accepted any more, existing ones are served, and a stop is clean."""
    server, address = make_server()
    echo(server)
    path = server.start(tmp_path / "tao.sock")
    with socket.create_connection(address, PATIENCE) as sock:
        assert asks(sock, "before")
        server.stop_listening()
        for family, where in ((socket.AF_INET, address), (socket.AF_UNIX, path)):
            with socket.socket(family) as late, pytest.raises(OSError):
                late.connect(where)
        assert asks(sock, "after") and server.connection_count == 1
        assert (server.running, server.address, server.addresses) == (True, None, [])
        assert server.snapshot().state == "draining" and not os.listdir(tmp_path)
        server.stop_listening()
    wait_until(lambda: not server.connection_count)
    assert server.stop().clean


def test_stop_listening_at_one_address(make_server: MakeServer) -> None:
    """The other listeners continue; listening at a new address is possible."""
    server, first = make_server()
    echo(server)
    second = server.start(("127.0.0.1", 0))
    server.stop_listening(first)
    assert server.addresses == [second] and echoes(second)
    assert server.snapshot().state == "running"
    with pytest.raises(ValueError, match="does not listen at"):
        server.stop_listening(first)
    for _ in range(5):
        again = server.start(("127.0.0.1", 0))
        assert echoes(again)
        server.stop_listening(again)
        wait_until(lambda: server_core_of(server).listeners.all[-1].ended)
    assert len(server_core_of(server).listeners.all) <= 4 and echoes(second)


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("127.0.0.1", "[127.0.0.1]"),
        ("127.0.0.1", ipaddress.ip_address("127.0.0.1")),
        ("::1", "::1"),  # the kernel's address of it has four items
        ("::1", "0:0:0:0:0:0:0:1"),
    ],
)
def test_one_address_however_it_is_written(
    make_server: MakeServer, host: str, written: Any
) -> None:
    """What is listened at is found by each form of its address, to be ended or to be reloaded."""
    server, address = make_server((host, 0), tls=SERVER)
    place = (written, address[1])
    server.reload_tls(SERVER, address=place)
    server.stop_listening(place)
    assert server.addresses == []


def test_serve_forever_continues_after_stop_listening(make_server: MakeServer) -> None:
    """It returns when the server is stopped; handlers and signal handlers may call it too."""
    server, address = make_server()

    @server.handler(Text)
    def last(ctx: Any, conn: Any) -> None:
        server.stop_listening()
        conn.write(ctx.message)

    serving = threading.Thread(target=server.serve_forever, name="test-serving")
    serving.start()
    with socket.create_connection(address, PATIENCE) as sock:
        assert asks(sock, "last") and asks(sock, "one more")
        assert serving.is_alive() and server.running
    server.stop()
    serving.join(PATIENCE)
    assert not serving.is_alive()


def test_stop_listening_before_start_and_after_stop(make_server: MakeServer) -> None:
    """It has no effect."""
    server = Server(registry=Registry())
    server.stop_listening()
    with pytest.raises(ValueError, match="does not listen"):
        server.stop_listening(("127.0.0.1", 1))
    server.stop()
    server.stop_listening()


def test_a_shared_socket_stays_open_for_others(make_server: MakeServer) -> None:
    """Another process or server with the same socket continues to accept."""
    sock = socket.create_server(("127.0.0.1", 0))
    one, address = make_server(sock.dup())
    other, _ = make_server(sock)
    echo(one)
    echo(other)
    one.stop_listening()
    assert all(echoes(address) for _ in range(5))


def test_stop_listening_in_a_signal_handler(make_server: MakeServer) -> None:
    """It may interrupt ``start``, ``stop`` or a property in the main thread."""
    for delay in range(1, 25):
        server, _ = make_server()
        before = signal.signal(signal.SIGALRM, lambda *_, s=server: s.stop_listening())
        try:
            signal.setitimer(signal.ITIMER_REAL, delay / 20_000, 0.001)
            for _ in range(10):
                server.stop_listening(server.start(("127.0.0.1", 0)))
        except ValueError:
            pass  # the handler was faster
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert server.running and server.stop(PATIENCE).clean
