"""Programs of `test_gevent.py`: ``python -m gevent.monkey --module tests.gevent_programs NAME``.

gevent has replaced threads, sockets, locks and waits, so everything runs on one thread. A program
fails by raising, prints nothing, and ends by itself.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import queue
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gevent

import tao
from tao.monitor.stacks import stacks
from tao.testing.fault_proxy import FaultProxy
from tests.ends import Text
from tests.ends import text as frame
from tests.support import PATIENCE, recv_exactly, wait_until

PROGRAMS: dict[str, Callable[[], None]] = {}
HERE = ("127.0.0.1", 0)
#: Larger than the kernel's buffers.
LONG = "x" * 8_000_000


def program(function: Callable[[], None]) -> Callable[[], None]:
    PROGRAMS[function.__name__] = function
    return function


def echo_server(**options: Any) -> tuple[tao.Server, Any]:
    server = tao.Server(**options)

    @server.handler(Text)
    def echo(ctx: Any, conn: Any) -> None:
        conn.write(ctx.message)

    return server, server.start(HERE)


class Client:
    """A client that records its replies, so that a test can wait for them."""

    def __init__(self, address: Any, **options: Any) -> None:
        self.replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.conn = tao.ClientConn(address, **options)
        replies = self.replies
        self.conn.handler(Text)(lambda ctx, conn: replies.put(ctx.message.text))
        self.conn.start()

    def ask(self, text: str) -> str:
        self.conn.write(Text(text), timeout=PATIENCE)
        return self.reply()

    def reply(self) -> str:
        return self.replies.get(timeout=PATIENCE)


def end(server: tao.Server, *clients: Client) -> None:
    """Close the clients and stop the server; the shutdown must be clean."""
    for client in clients:
        client.conn.close()
        assert client.conn.wait_closed(PATIENCE)
    report = server.stop()
    assert report.clean, report


def in_event_loop(function: Callable[[], object]) -> Any:
    """Call a function in the event loop, which must not block; return its result."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def call() -> None:
        try:
            results.put(function())
        except BaseException as error:
            results.put(error)

    gevent.get_hub().loop.run_callback(call)
    result = results.get(timeout=PATIENCE)
    if isinstance(result, BaseException):
        raise result
    return result


@program
def echo() -> None:
    """Replies arrive in order, including long ones, with and without TLS."""
    certificate = tao.self_signed_certificate()
    for server_tls, client_tls in (
        (None, None),
        (certificate.server_config(), certificate.client_config()),
    ):
        server, address = echo_server(tls=server_tls)
        client = Client(address, tls=client_tls)
        texts = [str(number) for number in range(1000)]
        for text in texts:
            client.conn.write(Text(text), timeout=PATIENCE)
        assert [client.reply() for _ in texts] == texts
        assert client.ask(LONG) == LONG
        end(server, client)


@program
def timers() -> None:
    """Timers fire once or periodically, and can be cancelled."""
    server, address = echo_server()
    client = Client(address)
    fired: queue.SimpleQueue[str] = queue.SimpleQueue()
    client.conn.run_after(0.01, lambda due, conn: fired.put("once"))
    assert fired.get(timeout=PATIENCE) == "once"
    timer = client.conn.run_every(0.01, lambda due, conn: fired.put("again"))
    assert [fired.get(timeout=PATIENCE) for _ in range(3)] == ["again"] * 3
    assert client.conn.cancel_timer(timer)
    end(server, client)


@program
def reconnect() -> None:
    """A client reconnects to a restarted server, and sends what was written meanwhile."""
    server, address = echo_server()
    client = Client(address, reconnect=tao.Reconnect(initial=0.01))
    assert client.ask("one") == "one"
    server.stop()
    wait_until(lambda: not client.conn.connected)
    client.conn.write(Text("two"))
    again = tao.Server()
    again.handler(Text)(lambda ctx, conn: conn.write(Text(f"again {ctx.message.text}")))
    again.start(address)
    assert client.reply() == "again two"
    assert client.conn.reconnects == 1
    end(again, client)


@program
def sessions() -> None:
    """Connections are lost again and again; every message is handled once, in order."""
    server, address = echo_server(sessions=tao.Sessions())
    proxy = FaultProxy(address)
    client = Client(proxy.address, session="required", reconnect=tao.Reconnect(initial=0.01))
    for value in range(200):
        client.conn.write(Text(str(value)), timeout=PATIENCE)
        if value % 50 == 25:
            proxy.reset()
            count = value // 50
            wait_until(lambda count=count: client.conn.session.resumes > count)
    assert [client.reply() for _ in range(200)] == [str(value) for value in range(200)]
    assert client.conn.session is not None and client.conn.session.resumes == 4
    end(server, client)
    proxy.close()


@program
def blocking_handlers() -> None:
    """Blocking handlers do not delay others, and are logged with their stack if that is enabled."""
    server = tao.Server(handler_warn_after=0.05)
    go = threading.Event()

    @server.handler(Text)
    def handle(ctx: Any, conn: Any) -> None:
        if ctx.message.text == "wait":
            assert go.wait(PATIENCE)
        conn.write(ctx.message)

    address = server.start(HERE)
    waiting = [Client(address) for _ in range(5)]
    for each in waiting:
        each.conn.write(Text("wait"))
    other = Client(address)
    assert other.ask("quick") == "quick"
    wait_until(lambda: server.snapshot().overdue == 5)
    assert stacks().count("assert go.wait(PATIENCE)") == 5
    go.set()
    assert [each.reply() for each in waiting] == ["wait"] * 5
    end(server, *waiting, other)


@program
def fairness() -> None:
    """A peer that has sent a lot of data does not delay the replies to others."""
    server, address = echo_server()
    client = Client(address)
    assert client.ask("before") == "before"
    flooder = socket.create_connection(address)
    flooder.setblocking(False)
    count = 0
    try:
        while True:
            flooder.send(frame("x") * 1000)
            count += 1000
    except BlockingIOError:
        pass
    assert client.ask("after") == "after"
    assert server.snapshot().handled < count / 2
    flooder.close()
    client.conn.close()
    server.stop(1)


@program
def broadcast() -> None:
    """A broadcast reaches all connections."""
    server, address = echo_server()
    clients = [Client(address) for _ in range(20)]
    wait_until(lambda: server.connection_count == 20)
    assert server.broadcast(Text("all")).queued == 20
    assert [each.reply() for each in clients] == ["all"] * 20
    end(server, *clients)


@program
def slow_readers() -> None:
    """A write to a peer that does not read does not block, and the close reason is reported."""
    certificate = tao.self_signed_certificate()
    for tls, policy, reason in (
        (None, "raise", "aborted"),
        (certificate, "raise", "aborted"),
        (None, "close", "reads too slowly"),
    ):
        server = tao.Server(queue_size=4, slow_consumer=policy, tls=tls and tls.server_config())
        address = server.start(HERE)
        go = threading.Event()
        client = tao.ClientConn(address, tls=tls and tls.client_config(), queue_size=1)
        client.handler(Text)(lambda ctx, conn, go=go: go.wait(PATIENCE))
        client.start()
        wait_until(lambda server=server: server.connection_count == 1)  # type: ignore[misc]
        (conn,) = server.connections
        try:
            while True:
                conn.write(Text(LONG))
        except tao.WouldBlock:
            conn.abort()
        except tao.ConnectionClosed:
            pass
        go.set()
        assert conn.wait_closed(PATIENCE)
        assert reason in str(conn.close_reason), conn.close_reason
        client.close()
        server.stop()


@program
def half_close() -> None:
    """A peer that has shut down its sending direction gets its reply, and its end is noticed."""
    server = tao.Server(half_close=True)
    conns: queue.SimpleQueue[Any] = queue.SimpleQueue()
    server.handler(Text)(lambda ctx, conn: conns.put(conn))
    address = server.start(HERE)
    for closes in (True, False):
        with socket.create_connection(address) as peer:
            peer.sendall(frame("question"))
            peer.shutdown(socket.SHUT_WR)
            conn = conns.get(timeout=PATIENCE)
            wait_until(lambda conn=conn: conn.peer_finished)  # type: ignore[misc]
            conn.write(Text("reply"))
            assert recv_exactly(peer, len(frame("reply"))) == frame("reply")
            if closes:
                conn.close()
                assert peer.recv(1) == b""
        if not closes:
            conn.write(Text("to nobody"))  # which has it find out
        assert conn.wait_closed(PATIENCE)
    end(server)


@program
def stop_under_load() -> None:
    """After a stop, every message that was read is either handled or counted as unhandled."""
    for dispatch in ("auto", "pool", "inline"):
        server, address = echo_server(dispatch=dispatch)
        peers = [socket.create_connection(address) for _ in range(4)]
        load = [gevent.spawn(pour, peer) for peer in peers]
        drains = [gevent.spawn(drain, peer) for peer in peers]
        wait_until(lambda server=server: server.snapshot().handled > 100)  # type: ignore[misc]
        report = server.stop()
        assert report.finished
        unhandled = sum(count for _, count, _ in report.abandoned)
        figures = server.snapshot()
        assert figures.messages_in == figures.handled + unhandled, (figures, report)
        gevent.joinall([*load, *drains], raise_error=True)


def pour(peer: socket.socket) -> None:
    """Send messages until the peer closes."""
    try:
        while True:
            peer.sendall(frame("x") * 100)
    except OSError:
        pass


def drain(peer: socket.socket) -> None:
    """Read until the peer closes, and then close too."""
    with peer:
        while peer.recv(65536):
            pass


@program
def event_loop() -> None:
    """Calls in the event loop, which must not block, have the same effect as elsewhere."""
    server, address = echo_server()
    client = Client(address)
    in_event_loop(lambda: client.conn.write(Text(LONG)))  # the write starts a thread
    assert client.reply() == LONG
    in_event_loop(client.conn.close)
    assert client.conn.wait_closed(PATIENCE)
    for method in ("close", "abort"):
        client = Client(address)
        assert client.ask("hello") == "hello"
        (conn,) = server.connections
        in_event_loop(getattr(conn, method))
        assert client.conn.wait_closed(PATIENCE) and conn.wait_closed(PATIENCE)
        client.conn.close()
    client = Client(address)
    assert client.ask("hello") == "hello"
    never_started = [tao.ClientConn(address)]
    in_event_loop(never_started.clear)
    report = in_event_loop(server.stop)
    assert not report.finished
    assert server.stop().clean
    assert client.conn.wait_closed(PATIENCE)
    client.conn.close()


@program
def close_anywhere() -> None:
    """A handler, a timer, a native thread or the garbage collector can close a client."""
    server, address = echo_server()
    pool = gevent.get_hub().threadpool
    client = Client(address)
    pool.apply(client.conn.write, (Text("from a real thread"),))
    assert client.reply() == "from a real thread"
    pool.apply(client.conn.close)
    assert client.conn.wait_closed(PATIENCE)

    client = Client(address)
    client.conn.run_after(0, lambda due, conn: conn.close())
    assert client.conn.wait_closed(PATIENCE)

    closing = tao.ClientConn(address)
    closing.handler(Text)(lambda ctx, conn: conn.close())
    closing.start().write(Text("close"))
    assert closing.wait_closed(PATIENCE)

    for collect in (gc.collect, partial(in_event_loop, gc.collect)):
        forgotten = [Client(address)]
        wait_until(lambda: server.connection_count == 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            forgotten.append(forgotten)  # type: ignore[arg-type]
            del forgotten
            collect()
            wait_until(lambda: server.connection_count == 0)
        assert [each.category for each in caught] == [ResourceWarning]
    end(server)


@program
def signals() -> None:
    """A signal stops a server, whether the handler was installed with ``signal`` or gevent."""

    def stopped(send: signal.Signals, install: Iterable[Any] = (), **options: Any) -> None:
        server = tao.Server()
        for how in install:
            how(send, lambda *_: server.stop())
        kill = partial(os.kill, os.getpid(), send)
        server.serve_forever(
            HERE, ready=lambda _: gevent.get_hub().loop.run_callback(kill), **options
        )
        assert server.stop().clean

    stopped(signal.SIGTERM, handle_signals=True)
    stopped(signal.SIGUSR1, [signal.signal])
    stopped(signal.SIGUSR2, [gevent.signal_handler])


@program
def exit_without_stop() -> None:
    """The process exits although a server and a client are still running."""
    _, address = echo_server()
    client = Client(address)
    assert client.ask("hello") == "hello"
    PROGRAMS.clear()
    globals()["kept"] = client


if __name__ == "__main__":
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    PROGRAMS[sys.argv[1]]()
