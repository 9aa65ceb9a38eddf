"""The server: listening, limits, accept errors, broadcasts, schedules, and stopping."""

from __future__ import annotations

import errno
import gc
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tao.errors import AlreadyRegistered, ConnectionClosed, ServerClosed, WouldBlock
from tao.runtime.context import Context
from tao.runtime.leader_followers import LeaderFollowers
from tao.runtime.worker_pool import WorkerPool
from tao.server.connection import ServerConn
from tao.server.server import Server, server_core_of
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import Registry
from tests.ends import MakeServer, Number, Seen, Text, number, text
from tests.programs import LONG
from tests.support import PATIENCE, ends, recv_exactly, together, wait_until


@pytest.fixture
def dial() -> Iterator[Callable[[Any], socket.socket]]:
    """A function that connects a plain socket; closed afterwards, before servers are stopped."""
    opened: list[socket.socket] = []

    def connect(address: Any) -> socket.socket:
        opened.append(socket.create_connection(address[:2], PATIENCE))
        return opened[-1]

    yield connect
    for sock in opened:
        sock.close()


Dial = Callable[[Any], socket.socket]


def echo(server: Server) -> None:
    @server.handler(Text)
    def answer(ctx: Context, conn: ServerConn) -> None:
        conn.write(ctx.message)


def asks(sock: socket.socket, value: str) -> bool:
    """Send a text, and return whether it is echoed."""
    sock.sendall(text(value))
    return recv_exactly(sock, len(text(value))) == text(value)


# -- listening


def test_start_returns_the_bound_address(make_server: MakeServer, dial: Dial) -> None:
    """It returns at once, and the server runs in the background."""
    server, address = make_server()
    echo(server)
    assert address[0] == "127.0.0.1"
    assert address[1] > 0
    assert server.address == address
    assert server.running
    assert asks(dial(address), "hi")


def test_several_listeners_and_ipv6(make_server: MakeServer, dial: Dial) -> None:
    """One server can listen at several addresses."""
    server, first = make_server()
    echo(server)
    second = server.start(("::1", 0))
    third = server.start(("localhost", 0))
    assert server.addresses == [first, second, third]
    assert all(asks(dial(address), "x") for address in server.addresses)


def test_all_addresses(make_server: MakeServer, dial: Dial) -> None:
    """An empty host means all addresses, IPv6 and IPv4."""
    server, _ = make_server()
    echo(server)
    port = server.start(("", 0))[1]
    assert asks(dial(("127.0.0.1", port)), "four")
    assert asks(dial(("::1", port)), "six")


def test_a_unix_socket(make_server: MakeServer, tmp_path: Path) -> None:
    """A path creates a Unix socket, which is removed by the stop."""
    server, _ = make_server()
    echo(server)
    path = str(tmp_path / "socket")
    assert server.start(path) == path
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        assert asks(sock, "unix")
    server.stop()
    assert not os.path.exists(path)


def test_a_unix_socket_after_a_stop(tmp_path: Path) -> None:
    """No file remains, so another server can use the path."""
    server = Server(registry=Registry())
    server.stop()
    path = str(tmp_path / "socket")
    with pytest.raises(ServerClosed):
        server.start(path)
    with Server(registry=Registry()) as other:
        other.start(path)


def test_a_listening_socket(make_server: MakeServer, dial: Dial) -> None:
    """A socket that already listens is served, as with socket activation."""
    server, _ = make_server()
    echo(server)
    listening = socket.create_server(("127.0.0.1", 0))
    address = server.start(listening)
    assert asks(dial(address), "handed")


def test_a_listening_unix_socket(make_server: MakeServer, tmp_path: Path) -> None:
    """The server did not create its file, so the file stays."""
    path = str(tmp_path / "socket")
    server, _ = make_server()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert server.start(listening) == path
        server.stop()
    assert os.path.exists(path)


def test_a_port_in_use_is_named(make_server: MakeServer) -> None:
    """The error names the address and the reason."""
    server, address = make_server()
    with pytest.raises(OSError, match=rf"cannot listen at .*{address[1]}.*in use"):
        server.start(address)


@pytest.mark.parametrize("address", [("localhost",), 80, ("host", "80"), None])
def test_invalid_addresses(make_server: MakeServer, address: Any) -> None:
    """The error differs from that for an address that is not available."""
    server, _ = make_server()
    with pytest.raises(TypeError, match="an address is"):
        server.start(address)
    with pytest.raises(ValueError, match="from 0 to 65535"):
        server.start(("127.0.0.1", 70000))


@pytest.mark.parametrize(("path", "meant"), [("localhost:80", "localhost"), ("[::1]:80", "::1")])
def test_a_string_that_looks_like_host_and_port(
    path: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused as a path, unless it is written in a way that can only be a path."""
    monkeypatch.chdir(tmp_path)
    server = Server(registry=Registry())
    with pytest.raises(ValueError, match=re.escape(f"write ('{meant}', 80) for a host and a port")):
        server.start(path)
    assert server.start(f"./{path}") == f"./{path}"
    assert [each.name for each in tmp_path.iterdir()] == [path]
    server.stop()


# -- declaring


def test_servers_have_separate_handlers(make_server: MakeServer) -> None:
    """By default, each server has its own registry, which inherits from the default one."""
    one, two = Server(), Server()
    one.handler(Text)(lambda ctx, conn: None)
    two.handler(Text)(lambda ctx, conn: None)
    with pytest.raises(AlreadyRegistered):
        one.handler(Text)(lambda ctx, conn: None)


def test_unknown_options_are_named() -> None:
    """A misspelt option is an error that suggests the right name."""
    with pytest.raises(
        TypeError, match=r"Server has no option 'max_conections'; did you mean max_"
    ):
        Server(max_conections=1)


# -- limits


def test_a_connection_above_the_limit(make_server: MakeServer, dial: Dial) -> None:
    """It is closed at once and counted, and the server continues."""
    server, address = make_server(max_connections=2)
    echo(server)
    first, second = dial(address), dial(address)
    assert asks(first, "1")
    assert asks(second, "2")
    assert dial(address).recv(1) == b""
    assert server.snapshot().refused == 1
    first.close()
    wait_until(lambda: server.connection_count == 1)
    wait_until(lambda: len(server_core_of(server).acceptor.admission) == 1)
    assert asks(dial(address), "again")


def test_a_limit_for_each_host(make_server: MakeServer, dial: Dial) -> None:
    """Connections are counted per remote address."""
    server, address = make_server(max_connections_per_host=1)
    echo(server)
    first = dial(address)
    assert asks(first, "1")
    assert dial(address).recv(1) == b""
    with socket.create_connection(address, PATIENCE, source_address=("127.0.0.2", 0)) as other:
        assert asks(other, "2")
    first.close()
    wait_until(lambda: "127.0.0.1" not in server_core_of(server).acceptor.admission.hosts)
    assert asks(dial(address), "again")


def test_running_out_of_descriptors(
    make_server: MakeServer, dial: Dial, log_lines: list[Any]
) -> None:
    """Accepting pauses, and resumes by itself."""
    server, address = make_server()
    echo(server)
    waiting = socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                spare.append(os.dup(0))
        waiting.connect(address)
        wait_until(lambda: server.snapshot().accept_errors >= 2)
    finally:
        for descriptor in spare:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with waiting:
        waiting.settimeout(PATIENCE)
        assert asks(waiting, "at last")
    assert any("too many open files" in record["message"] for record in log_lines)


def test_a_thread_that_cannot_start(
    make_server: MakeServer, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a thread is closed, and the next one is accepted."""
    server, address = make_server()
    echo(server)

    def refuse(turns: LeaderFollowers) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(LeaderFollowers, "provide", refuse)
    assert dial(address).recv(1) == b""
    assert asks(dial(address), "next")
    assert server.snapshot().accept_errors == 1
    assert len(server_core_of(server).acceptor.admission) == 1


def test_a_codec_that_raises_system_exit(make_server: MakeServer, dial: Dial) -> None:
    """Any exception during the setup of a connection closes only that connection."""
    codec = TypeLengthValueCodec()
    server, address = make_server(codec=codec)
    echo(server)

    def leave(registry: Registry) -> Any:
        del codec.decoder
        raise SystemExit("of the codec")

    codec.decoder = leave  # type: ignore[method-assign]
    assert dial(address).recv(1) == b""
    assert asks(dial(address), "next")
    assert server.snapshot().errors == 1
    assert len(server_core_of(server).acceptor.admission) == 1


def test_a_path_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """The failure, for example after dropping privileges, is logged, and the stop is clean."""
    server = Server(registry=Registry())
    path = server.start(str(tmp_path / "tao.sock"))

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "not allowed")

    monkeypatch.setattr("tao.transport.unix_sockets.os.unlink", refuse)
    assert server.stop().clean
    assert (
        server_core_of(server).listeners.all[0].closed.is_set()
        and not server_core_of(server).listeners.all[0]._accepting._all
    )
    assert any(f"cannot remove {path}" in record["message"] for record in log_lines)


def test_closed_connections_are_released(make_server: MakeServer, dial: Dial) -> None:
    """This includes the last connection, whose thread now waits for the next one."""
    server, address = make_server()
    echo(server)
    sock = dial(address)
    assert asks(sock, "1")
    (conn,) = server.connections
    gone = weakref.ref(conn)
    sock.close()
    wait_until(lambda: not server_core_of(server).acceptor.connections)
    del conn

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    wait_until(is_gone)


def test_on_connect_may_refuse(make_server: MakeServer, dial: Dial) -> None:
    """Its messages are sent, ``on_close`` is not called, and the refusal is counted."""
    seen = Seen()

    def refuse(conn: ServerConn) -> bool:
        conn.write(Text("banned"))
        return False

    server, address = make_server(on_connect=refuse, on_close=seen.add)
    sock = dial(address)
    assert recv_exactly(sock, 100) == text("banned")
    sock.close()
    wait_until(lambda: len(server_core_of(server).acceptor.admission) == 0)
    assert server.snapshot().refused == 1
    assert server.snapshot().connections_total == 0
    assert seen.items == []


def test_an_exception_in_on_connect(make_server: MakeServer, dial: Dial) -> None:
    """It is passed to ``on_error``, and the connection is refused."""
    errors = Seen()
    _, address = make_server(
        on_connect=lambda conn: 1 // 0, on_error=lambda conn, error: errors.add(type(error))
    )
    assert dial(address).recv(1) == b""
    assert errors.wait() == [ZeroDivisionError]


# -- all connections


def test_broadcast_and_unicast(make_server: MakeServer, dial: Dial) -> None:
    """A broadcast reaches all connections that are not excluded; a unicast reaches one."""
    server, address = make_server()
    socks = [dial(address) for _ in range(4)]
    wait_until(lambda: server.connection_count == 4)
    by_port = {conn.remote_address[1]: conn for conn in server.connections}
    conns = [by_port[sock.getsockname()[1]] for sock in socks]
    result = server.broadcast(Text("all"), exclude=[conns[0], conns[1].net_id])
    assert (result.queued, result.failed) == (2, [])
    assert [recv_exactly(sock, 11) for sock in socks[2:]] == [text("all")] * 2
    server.unicast(conns[0].net_id, Text("one"))
    assert recv_exactly(socks[0], 11) == text("one")
    assert server.conn(conns[3].net_id) is conns[3]
    with pytest.raises(ConnectionClosed, match="no connection 999"):
        server.unicast(999, Text("nobody"))


def test_a_full_connection_does_not_delay_a_broadcast(make_server: MakeServer, dial: Dial) -> None:
    """The connection is in the result; all others get the message."""
    server, address = make_server(queue_size=1)
    dial(address)
    wait_until(lambda: server.connection_count == 1)
    (full,) = server.connections

    def filled() -> bool:
        with pytest.raises(WouldBlock):
            while True:
                full.write(Text("x" * 100_000))
        return full._core.send_queue.blocked  # else only its writer has had no turn

    wait_until(filled)
    other = dial(address)
    wait_until(lambda: server.connection_count == 2)
    result = server.broadcast(Text("all"))
    assert result.queued == 1
    assert [(conn, type(error)) for conn, error in result.failed] == [(full, WouldBlock)]
    assert recv_exactly(other, 11) == text("all")


def test_a_schedule_runs_on_every_connection(make_server: MakeServer, dial: Dial) -> None:
    """It also runs on later connections, until it is cancelled."""
    server, address = make_server()
    early = dial(address)
    wait_until(lambda: server.connection_count == 1)
    schedule = server.schedule(0.01, lambda due, conn: conn.write(Text("tick")))
    late = dial(address)
    for sock in (early, late):
        assert recv_exactly(sock, 24) == text("tick") * 2
    assert server.cancel_schedule(schedule)
    assert not server.cancel_schedule(schedule)
    wait_until(lambda: not any(conn._core.timers for conn in server.connections))
    with pytest.raises(ValueError, match="positive"):
        server.schedule(0, lambda due, conn: None)
    with pytest.raises(TypeError, match="callable"):
        server.schedule(1, None)  # type: ignore[arg-type]


def test_one_pool_serves_two_servers(make_server: MakeServer, dial: Dial) -> None:
    """A shared `WorkerPool` is stopped by the application, not by the servers."""
    pool, seen = WorkerPool(2, name="tao-shared"), Seen()
    for _ in range(2):
        server, address = make_server(workers=pool, dispatch="pool")
        server.handler(Text)(lambda ctx, conn: seen.add(threading.current_thread().name))
        dial(address).sendall(text("x"))
    assert all(name.startswith("tao-shared") for name in seen.wait(2))
    assert server.stop().clean
    assert pool.submit(int).result() == 0
    pool.stop()


def test_the_initializer_runs_in_each_worker(make_server: MakeServer, dial: Dial) -> None:
    """``worker_initializer`` runs in the threads that run handlers."""
    local = threading.local()
    seen = Seen()

    def prepare() -> None:
        local.database = "open"

    server, address = make_server(worker_initializer=prepare)
    server.handler(Text)(lambda ctx, conn: seen.add(local.database))
    sock = dial(address)
    for count in range(1, 21):  # one by one: from the third on, the handler is known to be quick
        sock.sendall(text("x"))
        seen.wait(count)
    assert seen.items == ["open"] * 20


def test_all_workers_are_used(make_server: MakeServer, dial: Dial) -> None:
    """As many blocking handlers run concurrently as there are workers."""
    server, address = make_server(workers=7)
    barrier = threading.Barrier(7)
    seen = Seen()

    @server.handler(Text)
    def meet(ctx: Context, conn: ServerConn) -> None:
        barrier.wait(PATIENCE)
        seen.add(1)

    for _ in range(7):
        dial(address).sendall(text("x"))
    assert len(seen.wait(7)) == 7


def test_statistics(make_server: MakeServer, dial: Dial) -> None:
    """A snapshot includes open and closed connections."""
    server, address = make_server()
    echo(server)
    first = dial(address)
    assert asks(first, "one")
    first.close()
    wait_until(lambda: server.connection_count == 0)
    assert asks(dial(address), "two")
    wait_until(lambda: (server.snapshot().messages_out, server.snapshot().handled) == (2, 2))
    found = server.snapshot()
    assert (found.messages_in, found.handled, found.connections_total) == (2, 2, 2)
    assert found.bytes_in == found.bytes_out == 22
    assert found.as_dict()["workers"] == 20


# -- stopping


def test_stop_is_graceful(make_server: MakeServer, dial: Dial) -> None:
    """Running handlers finish, their replies arrive, and the connection ends without a reset."""
    server, address = make_server(queue_size=5000)
    entered, leave = threading.Event(), threading.Event()

    @server.handler(Number)
    def slow(ctx: Context, conn: ServerConn) -> None:
        entered.set()
        leave.wait(PATIENCE)
        for i in range(1000):
            conn.write(Number(i))

    sock = dial(address)
    sock.sendall(number(1))
    assert entered.wait(PATIENCE)
    stopper = threading.Thread(target=server.stop, name="test-stopper")
    stopper.start()
    wait_until(lambda: server.connections == [])
    sock.sendall(number(2))  # arrives too late, and is ignored
    leave.set()
    assert recv_exactly(sock, 10**6) == b"".join(map(number, range(1000)))
    sock.close()
    stopper.join()
    assert server.stop().drained == 1
    assert server.stop().clean


def test_a_stop_during_traffic_loses_no_reply(make_server: MakeServer) -> None:
    """The reply of each handler that has finished is delivered."""
    server, address = make_server(queue_size=2000)
    finished: list[int] = []

    @server.handler(Number)
    def answer(ctx: Context, conn: ServerConn) -> None:
        conn.write(ctx.message)
        finished.append(1)

    going = threading.Semaphore(0)

    def client() -> int:
        try:
            sock = socket.create_connection(address, PATIENCE)
        except ConnectionError:
            return 0  # too late
        with sock:
            try:
                sock.sendall(b"".join(map(number, range(1000))))
            except OSError:
                pass  # the server stops during the send
            going.release()
            count = 0
            try:
                while recv_exactly(sock, 16):
                    count += 1
            except ConnectionResetError:
                assert count == 0, "only who was never accepted may be reset"
            return count

    def stop() -> int:
        for _ in range(5):
            going.acquire(timeout=PATIENCE)
        server.stop()
        return 0

    *answered, _ = together(*[client] * 20, stop)
    assert sum(answered) == len(finished)


def test_a_handler_may_stop_the_server(make_server: MakeServer, dial: Dial) -> None:
    """``stop`` in a handler starts the stop and returns; the reply arrives."""
    server, address = make_server()

    @server.handler(Text)
    def stop(ctx: Context, conn: ServerConn) -> None:
        ctx.server.stop()
        conn.write(Text("stopping"))

    sock = dial(address)
    sock.sendall(text("x"))
    assert recv_exactly(sock, 100) == text("stopping")
    sock.close()
    assert ends(server.stop)
    assert server.stop().clean


def test_stop_from_many_threads(make_server: MakeServer, dial: Dial) -> None:
    """All threads wait for the same stop and get its report."""
    server, address = make_server()
    dial(address).close()
    reports = together(*[server.stop] * 8)
    assert all(report is reports[0] for report in reports)


def test_a_handler_that_never_returns_is_reported(make_server: MakeServer, dial: Dial) -> None:
    """``stop`` returns at its deadline, and the report names the handler."""
    server, address = make_server(dispatch="pool")
    entered, leave = threading.Event(), threading.Event()

    @server.handler(Text)
    def stuck(ctx: Context, conn: ServerConn) -> None:
        entered.set()
        leave.wait(PATIENCE)

    dial(address).sendall(text("x"))
    assert entered.wait(PATIENCE)
    report = server.stop(timeout=0.1)
    assert not report.clean
    ((conn, unhandled, unsent),) = report.abandoned
    assert (type(conn), unhandled, unsent) == (ServerConn, 1, 0)
    assert {name.split("-")[1].split("_")[0] for name in report.threads} >= {"worker"}
    leave.set()


def test_stop_cancels_contexts(make_server: MakeServer, dial: Dial) -> None:
    """A handler that waits for its context is woken by the stop."""
    server, address = make_server()
    seen = Seen()

    @server.handler(Text)
    def wait(ctx: Context, conn: ServerConn) -> None:
        seen.add("waiting")
        ctx.wait(PATIENCE)
        seen.add(str(ctx.error))

    dial(address).sendall(text("x"))
    seen.wait()
    server.stop()
    assert seen.items == ["waiting", "server stopping"]


def test_stop_during_an_accept(make_server: MakeServer) -> None:
    """Connections that arrive during the stop are served or closed; none hangs."""
    for _ in range(20):
        server, address = make_server()
        go = threading.Barrier(5)

        def come(address: Any = address, go: threading.Barrier = go) -> None:
            go.wait(PATIENCE)
            try:
                with socket.create_connection(address, PATIENCE) as sock:
                    sock.send(b"?")  # else the kernel may not report a dropped connection
                    assert sock.recv(1) == b""
            except ConnectionError:
                pass

        def stop(server: Server = server, go: threading.Barrier = go) -> None:
            go.wait(PATIENCE)
            server.stop()

        together(come, come, come, come, stop)
        assert server_core_of(server).acceptor.connections == {}


def test_a_server_starts_once(make_server: MakeServer) -> None:
    """``start`` after ``stop`` raises; ``stop`` without ``start`` is harmless."""
    server, _ = make_server()
    server.stop()
    with pytest.raises(ServerClosed, match="cannot be started again"):
        server.start(("127.0.0.1", 0))
    fresh = Server()
    assert fresh.stop().clean
    assert fresh.address is None


def test_the_context_manager_stops(dial: Dial) -> None:
    """The end of the block stops the server."""
    with Server(registry=Registry()) as server:
        sock = dial(server.start(("127.0.0.1", 0)))
        wait_until(lambda: server.connections)  # an unaccepted one would be reset
    assert not server.running
    assert sock.recv(1) == b""


def test_serve_forever_returns_when_stopped(make_server: MakeServer) -> None:
    """It returns whichever thread stops the server."""
    server, _ = make_server()
    thread = threading.Thread(target=server.serve_forever, name="test-main")
    thread.start()
    server.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def _catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_stop_gracefully(name: str) -> None:
    """With ``handle_signals=True``, ``serve_forever`` returns after SIGINT or SIGTERM."""
    program = (
        "import tao\n"
        "server = tao.Server(\n"
        "    on_connect=lambda conn: print('connected', flush=True),\n"
        "    on_close=lambda conn: print(conn.close_reason, flush=True),\n"
        ")\n"
        "print(server.start(('127.0.0.1', 0))[1], flush=True)\n"
        "server.serve_forever(handle_signals=True)\n"
        "print('returned')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        wait_until(lambda: _catches(process.pid, signal.SIGTERM))
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(struct.pack("<iIq", 0, 8, 0))
            assert process.stdout.readline() == "connected\n"
            process.send_signal(getattr(signal, name))
            assert sock.recv(1) == b""
        output, _ = process.communicate(timeout=PATIENCE)
        assert (output, process.returncode) == ("server stopping\nreturned\n", 0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_interpreter_exits_with_a_running_server() -> None:
    """A program without ``stop`` exits, even if a handler never returns."""
    program = (
        "import socket, threading, tao\n"
        "server = tao.Server(dispatch='pool')\n"
        "entered = threading.Event()\n"
        "class M:\n"
        "    message_number = 1\n"
        "    deserialize = staticmethod(bytes)\n"
        "@server.handler(M)\n"
        "def block(ctx, conn): entered.set(); threading.Event().wait()\n"
        "sock = socket.create_connection(server.start(('127.0.0.1', 0)))\n"
        "sock.sendall(bytes([1, 0, 0, 0, 0, 0, 0, 0]))\n"
        "entered.wait(20)\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("end\n", "")


# The beginning of a program with a server and a client that enables tao's log.
_PROGRAM = """
import loguru, os, threading, tao
loguru.logger.remove()
loguru.logger.add(lambda line: print(line.strip()), format="{level} {message}", level="WARNING")
loguru.logger.enable("tao")
class Text(tao.Message):
    message_number = 1
    def __init__(self, data): self.data = data
    def serialize(self): return self.data
    deserialize = classmethod(lambda cls, data: cls(data))
server, answered, entered = tao.Server(), threading.Event(), threading.Event()
@server.handler(Text, dispatch="pool")
def answer(ctx, conn):
    entered.set()
    if ctx.message.data == b"hang": threading.Event().wait()
    conn.write(ctx.message)
registry = tao.Registry()
@registry.handler(Text)
def note(ctx, conn): print(ctx.message.data.decode()); answered.set()
address = server.start(("127.0.0.1", 0))
"""


def output_of(program: str) -> str:
    """Run a program with this beginning, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM + program], capture_output=True, text=True, timeout=LONG
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_handlers_run_until_the_process_exits() -> None:
    """They run even if the main thread has returned while another thread continues."""
    program = """
def go_on():
    threading.main_thread().join()
    with tao.connect(address, registry=registry) as conn:
        conn.write(Text(b"hello"))
        assert answered.wait(20)
    print(server.stop().clean)
threading.Thread(target=go_on).start()
"""
    assert output_of(program) == "hello\nTrue\n"


def test_messages_dropped_at_exit_are_logged() -> None:
    """This includes waiting messages, and those with a handler that does not return."""
    program = """
conn = tao.connect(address, registry=registry)
for _ in range(3): conn.write(Text(b"hang"))
assert entered.wait(20)
while server.snapshot().messages_in < 3: pass
"""
    line = "drops 3 messages not handled and 0 not sent, of 1 connections"
    assert output_of(program) == f"WARNING the process ends, so server-1 {line}\n"


@pytest.mark.parametrize("begin", ["", "conn.start(keep_trying=True)"])
def test_messages_of_a_client_dropped_at_exit_are_logged(begin: str) -> None:
    """This includes those that were written before it is connected for the first time."""
    program = f"""
import socket
with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    conn = tao.ClientConn(sock.getsockname(), registry=registry, reconnect=True)
    {begin}
    for _ in range(3): conn.write(Text(b"x"))
closed = tao.ClientConn(address, registry=registry)
closed.write(Text(b"x"))
closed.close()
"""
    lost, dropped = output_of(program).splitlines()
    assert lost == "WARNING closing: 1 messages (9 bytes) could not be sent: closed by this side"
    line = "drops 0 messages not handled and 3 not sent, of 1 connections"
    assert dropped.startswith("WARNING the process ends, so client-")
    assert dropped.endswith(line)


# -- CPUs


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs CPU affinity")
@pytest.mark.parametrize("several", [False, True])
def test_connection_threads_may_be_pinned(
    make_server: MakeServer, dial: Dial, several: bool
) -> None:
    """``cpu_affinity`` applies to reading threads, but not to the workers they start."""
    cpu = max(os.sched_getaffinity(0))
    server, address = make_server(cpu_affinity={cpu} if several else "auto")
    seen = Seen()
    server.registry.register(1, Text.deserialize, dispatch="inline")
    server.handler(Text)(lambda ctx, conn: seen.add(os.sched_getaffinity(0)))
    where = server.handler(Number, dispatch="pool")
    where(lambda ctx, conn: seen.add(os.sched_getaffinity(0)))
    dial(address).sendall(text("x") + number(1))
    assert seen.wait(2) == [{cpu}, os.sched_getaffinity(0)]


@pytest.mark.parametrize("wanted", ["all", 1.5, [], True, [0, "1"]])
def test_an_invalid_cpu_affinity(wanted: Any) -> None:
    """The error names the option."""
    with pytest.raises(TypeError, match="cpu_affinity must be"):
        Server(cpu_affinity=wanted)


def test_an_unavailable_cpu() -> None:
    """A CPU that the process cannot use is refused."""
    with pytest.raises(ValueError, match=r"cpu_affinity: of .9999. only"):
        Server(cpu_affinity=9999)


def test_a_limit_on_descriptors_below_the_limit_on_connections(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """At the start a warning names both limits, and how to raise the one of the system."""
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1024, 4096))
    make_server()
    assert not [each for each in log_lines if each["level"].name == "WARNING"]
    make_server(max_connections=50_000)
    (warning,) = [each["message"] for each in log_lines if each["level"].name == "WARNING"]
    assert "max_connections is 50000" in warning and "may open 1024 files" in warning
    assert "ulimit -n 50100" in warning and "LimitNOFILE=50100" in warning
