"""Hardening: vanished peers, hanging handlers, changed certificates, forks, and private data."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import loguru
import pytest

from tao.client.client import ClientConn
from tao.connection.handling import slow_handlers
from tao.connection.handling.slow_handlers import (
    Running,
    SlowHandlerWatch,
    calls_handlers,
    current_frames,
    running_in,
)
from tao.connection.keepalive import set_kernel_clocks
from tao.connection.options.definitions import Settings
from tao.errors import ConnectionClosed, HandshakeFailed
from tao.monitor.monitor import monitor_on
from tao.runtime.context import Context
from tao.runtime.timing_wheel import TimingWheel
from tao.server.server import Server, server_core_of
from tao.transport.certificates import (
    Certificate,
    DevelopmentCA,
    load_client_tls_config,
    self_signed_certificate,
)
from tao.wire.codec import Batch, Codec
from tao.wire.message import Message, Registry
from tests.ends import End, MakeServer, Number, Seen, Text, frame, number, text
from tests.programs import LONG
from tests.support import PATIENCE, needs_stacks, wait_until
from tests.tls_pairs import CA, CLIENT, MUTUAL_SERVER, SERVER

OpenEnd = Callable[..., End]
ROOT = Path(__file__).parents[2]


def run_program(program: str, *command: str) -> str:
    """Run a program in a process of its own, and return its output."""
    done = subprocess.run(
        [*command, sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# -- vanished peers


def kernel_clocks(end: End) -> tuple[int, ...]:
    sock = end.conn._core.transport._sock  # type: ignore[union-attr]
    names = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    return tuple(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@needs_linux
def test_the_kernels_timeouts_follow_the_options(open_end: OpenEnd) -> None:
    """``write_timeout`` limits unacknowledged data, ``idle_timeout`` sets keep-alive probes."""
    assert kernel_clocks(open_end(write_timeout=5, idle_timeout=60)) == (6000, 30, 10, 3)


@needs_linux
def test_the_kernels_timeouts_without_options(open_end: OpenEnd) -> None:
    """``idle_timeout`` alone does not disconnect a live peer that does not read."""
    with socket.socket() as untouched:
        untouched.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = untouched.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    assert kernel_clocks(open_end())[:2] == (0, idle)
    assert kernel_clocks(open_end(idle_timeout=0.5)) == (0, 1, 1, 3)


@pytest.mark.parametrize("seconds", [0.001, 1.0, 1e12])
def test_any_timeout_is_accepted_by_the_kernel(seconds: float) -> None:
    """Very long and very short timeouts are no errors, nor are closed sockets or other families."""
    options = Settings(write_timeout=seconds, idle_timeout=seconds)
    sock, (one, other) = socket.socket(), socket.socketpair()
    for each in (sock, one, other):
        set_kernel_clocks(each, options)
        each.close()
    set_kernel_clocks(sock, options)


VANISHED = """
import fcntl, queue, socket, struct, threading
import tao
def line(up):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0x49 if up else 0x48))
line(up=True)
there, gone = queue.SimpleQueue(), threading.Event()
server = tao.Server(
    on_connect=there.put, on_close=lambda conn: gone.set(),
    write_timeout=0.5, heartbeat=0.1, idle_timeout=100,
)
sock = socket.create_connection(server.start(("127.0.0.1", 0)))
conn = there.get(timeout=60)
line(up=False)
gone.wait(60)
print(conn.close_reason)
"""


@needs_linux
def test_a_vanished_peer_is_detected() -> None:
    """The kernel accepts data for the peer, but nothing is acknowledged."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("needs a network namespace")
    # Either the reader or the writer gets the error; the other one sees only a closed connection.
    told_as = run_program(VANISHED, "unshare", "-rn")
    assert told_as in ("connection timed out\n", "peer closed\n")


# -- handlers that hang


class Blocker:
    """A registry with handlers that block until they are released, and record their thread."""

    def __init__(self, dispatch: str) -> None:
        self.registry = Registry()
        self.entered = Seen()
        self.leave = threading.Semaphore(0)

        @self.registry.handler(Number, dispatch=dispatch)
        def hang_about(ctx: Context, conn: Any) -> None:
            self.wait()

        @self.registry.handler(Text, dispatch=dispatch)
        def echo(ctx: Context, conn: Any) -> None:
            conn.write(ctx.message)

    def wait(self) -> None:
        self.entered.add(threading.get_ident())
        self.leave.acquire(timeout=PATIENCE)


def told(log_lines: list[Any]) -> list[str]:
    return [each["message"] for each in log_lines if "its stack" in each["message"]]


@needs_stacks
@pytest.mark.parametrize("dispatch", ["inline", "pool"])
def test_a_hanging_handler_is_logged(
    open_end: OpenEnd, log_lines: list[Any], dispatch: str
) -> None:
    """It is logged once, with connection, message, thread and stack, and counted."""
    blocker = Blocker(dispatch)
    end = open_end(registry=blocker.registry, handler_warn_after=0.02)
    end.send(number(1))
    blocker.entered.wait()
    wait_until(lambda: told(log_lines))
    name = threading.current_thread().name
    (line,) = told(log_lines)
    assert "the handler of message 2 has been running for " in line
    assert f"on connection {end.conn.net_id} from 127.0.0.1:" in line
    assert "in thread tao-" in line and name not in line
    assert "in hang_about\n" in line and "_run" not in line
    watch = end.conn._core.runner._watch._overdue
    looks = Seen()
    watch._look_later = lambda look=watch._look_later: (looks.add(1), look())  # type: ignore[method-assign]
    looks.wait(3)
    blocker.leave.release()
    wait_until(lambda: not watch._told)
    assert (end.conn._core.counts().overdue, len(told(log_lines))) == (1, 1)


@needs_stacks
def test_each_hanging_handler_is_logged(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """This includes the second hanging handler of a batch."""
    blocker = Blocker("pool")
    end = open_end(registry=blocker.registry, handler_warn_after=0.02)
    end.send(number(1) + number(2) + text("done"))

    def hanging() -> list[str]:  # the echo may be slow enough to be logged, too
        return [line for line in told(log_lines) if "in hang_about\n" in line]

    for count in (1, 2):
        wait_until(lambda count=count: len(hanging()) == count)  # type: ignore[misc]
        blocker.leave.release()
    assert end.read_text() == "done"
    assert len(hanging()) == 2


class Preempted:
    """What runs handlers, on a thread that has no turn between two of them."""

    pending, progress = 2, (1, 2)

    def __init__(self, wheel: TimingWheel) -> None:
        self.host: Any = self
        self.runner = self
        self.wheel = wheel
        self.settings = Settings(registry=Registry(), handler_warn_after=0.02)
        self.error_reports = self
        self.reported = Seen()
        self.looks = Seen()
        self.leave = threading.Event()
        self._since = 0.0

    def since(self) -> tuple[tuple[int, int], float]:
        self.looks.add(1)
        return self.progress, self._since

    def seen(self, progress: tuple[int, int], now: float) -> None:
        self._since = now

    def overdue_handler(self, running: Running, stack: str) -> None:
        self.reported.add(running.number)

    @calls_handlers
    def run(self, number: int) -> None:
        self.leave.wait(PATIENCE)


@needs_stacks
def test_a_handler_that_hangs_after_a_rest_is_logged() -> None:
    """The thread had no turn before the handler, for longer than a handler may run."""
    wheel = TimingWheel()
    runner = Preempted(wheel)
    SlowHandlerWatch(weakref.ref(wheel)).add(runner)  # type: ignore[arg-type]
    runner.looks.wait(5)
    thread = threading.Thread(target=runner.run, args=(7,))
    thread.start()
    assert runner.reported.wait() == [7]
    runner.leave.set()
    thread.join()
    wheel.stop()


@needs_stacks
@pytest.mark.parametrize("what", ["on_connect", "on_close"])
def test_a_hanging_callback_is_logged(
    make_server: MakeServer,
    log_lines: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Meanwhile its connection is not read, or does not end."""
    blocker = Blocker("pool")
    options: dict[str, Any] = {what: lambda conn: blocker.wait()}

    def frames_in_callback() -> dict[int, FrameType]:  # however late its thread gets there
        blocker.entered.wait()
        return current_frames()

    monkeypatch.setattr(slow_handlers, "current_frames", frames_in_callback)
    server, address = make_server(handler_warn_after=0.1, **options)
    with socket.create_connection(address, PATIENCE):
        wait_until(lambda: server.snapshot().connections_total or blocker.entered.items)
    blocker.entered.wait()
    wait_until(lambda: told(log_lines))
    (line,) = told(log_lines)
    assert line.startswith(f"{what} has been running for 0.1 s on connection 1 from 127.0.0.1:")
    assert "in wait\n" in line and "in _call\n" not in line and "contextlib" not in line
    blocker.leave.release()
    wait_until(lambda: not server_core_of(server).acceptor.connections)
    assert server.snapshot().overdue == len(told(log_lines)) == 1


@needs_stacks
def test_a_hanging_timer_is_logged(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """Timer callbacks are watched like handlers."""
    blocker = Blocker("pool")
    end = open_end(registry=blocker.registry, handler_warn_after=0.02)
    end.conn.run_after(0, lambda due, conn: blocker.wait())
    blocker.entered.wait()
    wait_until(lambda: told(log_lines))
    assert "a timer's callback has been running" in told(log_lines)[0]
    blocker.leave.release()


def test_the_warning_can_be_disabled(open_end: OpenEnd) -> None:
    """With ``handler_warn_after=None``, handlers are not watched."""
    blocker = Blocker("pool")
    end = open_end(registry=blocker.registry, handler_warn_after=None)
    end.send(number(1))
    blocker.entered.wait()
    wait_until(lambda: end.conn._core.runner.stuck)
    assert not end.conn._core.runner._watch._overdue._told
    blocker.leave.release()


@needs_stacks
def test_waiting_for_a_worker_is_not_hanging(make_server: MakeServer, log_lines: list[Any]) -> None:
    """Only running handlers are logged and listed."""
    blocker = Blocker("pool")
    server, address = make_server(registry=blocker.registry, workers=1, handler_warn_after=0.02)
    socks = [socket.create_connection(address, PATIENCE) for _ in range(2)]
    try:
        wait_until(lambda: server.connection_count == 2)
        for sock in socks:
            sock.sendall(number(1))
        wait_until(lambda: all(conn._core.dispatcher.pending for conn in server.connections))
        wait_until(lambda: server.snapshot().overdue)
        assert len(running_in([conn._core.runner for conn in server.connections])) == 1
        assert server.snapshot().overdue == 1
        blocker.leave.release()
        wait_until(lambda: server.snapshot().overdue == 2)
        blocker.leave.release()
    finally:
        for sock in socks:
            sock.close()


@needs_stacks
@pytest.mark.parametrize("dispatch", ["inline", "pool"])
def test_running_handlers_are_listed(open_end: OpenEnd, dispatch: str) -> None:
    """The list has number, run time and thread of each running handler."""
    blocker = Blocker(dispatch)
    end = open_end(registry=blocker.registry)
    runner = end.conn._core.runner
    assert running_in([runner]) == {}
    end.send(number(1))
    (ident,) = blocker.entered.wait()
    found = running_in([runner])[runner]
    assert (found.number, found.ident) == (2, ident)
    wait_until(lambda: running_in([runner])[runner].seconds > found.seconds)
    blocker.leave.release()
    wait_until(lambda: running_in([runner]) == {})
    end.conn.run_after(0, lambda due, conn: blocker.wait())
    blocker.entered.wait(2)
    listed: Running = running_in([runner])[runner]
    assert listed.number is None
    blocker.leave.release()


# -- certificates


OTHER_CA = DevelopmentCA("another authority")
OTHER = OTHER_CA.issue()


class Secure:
    """A TLS echo server and its clients."""

    def __init__(self, **options: Any) -> None:
        self.errors, self.closed = Seen(), Seen()
        registry = Registry()
        registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
        self.server = Server(
            registry=registry,
            on_error=lambda conn, error: self.errors.add(str(error)),
            on_close=lambda conn: self.closed.add(conn.close_reason),
            **options,
        )
        self.address: Any = self.server.start(("127.0.0.1", 0))
        self.clients: list[ClientConn] = []

    def client(self, tls: ssl.SSLContext, address: Any = None, **options: Any) -> ClientConn:
        """Return a client that is not started yet."""
        got = Seen()
        port = (address or self.address)[1]
        client = ClientConn(
            ("localhost", port),
            tls=tls,
            registry=Registry(),
            on_message=lambda message, conn: got.add(message.text),
            **options,
        )
        client.registry.register(1, Text.deserialize)
        client.set_value("got", got)
        self.clients.append(client)
        return client

    def works(self, client: ClientConn) -> bool:
        got: Seen = client.value("got")
        client.write(Text("hi"))
        return got.wait(len(got.items) + 1)[-1] == "hi"

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop()


@pytest.fixture
def secure() -> Iterator[Callable[..., Secure]]:
    """Make a `Secure`, which is closed afterwards."""
    made: list[Secure] = []

    def make(**options: Any) -> Secure:
        made.append(Secure(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


MakeSecure = Callable[..., Secure]


def issuer(client: ClientConn) -> str:
    certificate = client.peer_certificate
    assert certificate is not None
    return str(dict(pair[0] for pair in certificate["issuer"])["commonName"])


def test_reloaded_certificates_apply_to_new_connections(secure: MakeSecure) -> None:
    """New connections get the new certificate; existing ones are not affected."""
    it = secure(tls=SERVER)
    old = it.client(CLIENT).start()
    it.server.reload_tls(OTHER.server_config())
    new = it.client(OTHER.client_config()).start()
    assert it.works(new) and it.works(old)
    assert (issuer(old), issuer(new)) == ("tao development CA", "another authority")
    with pytest.raises(HandshakeFailed, match="certificate is refused"):
        it.client(CLIENT).start()


def test_certificates_are_reloaded_from_files(secure: MakeSecure, tmp_path: Path) -> None:
    """The arguments are those of ``load_tls_config``; unusable files change nothing."""
    it = secure(tls=SERVER)
    certfile, keyfile, cafile = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    OTHER.write(certfile, keyfile)
    cafile.write_bytes(OTHER_CA.certificate)
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        it.server.reload_tls(tmp_path / "missing.pem")
    with pytest.raises(ValueError, match="holds no readable PEM private key"):
        it.server.reload_tls(certfile)
    assert it.works(it.client(CLIENT).start())
    it.server.reload_tls(str(certfile), keyfile, client_ca=cafile)
    assert it.works(it.client(OTHER_CA.issue_client("bob").client_config()).start())


def test_invalid_reloads(secure: MakeSecure, tmp_path: Path) -> None:
    """Client contexts, contexts with files, ports without TLS and stopped servers are refused."""
    it = secure(tls=SERVER)
    with pytest.raises(ValueError, match="a server cannot use a client's context"):
        it.server.reload_tls(CLIENT)
    with pytest.raises(TypeError, match="a context has its files already"):
        it.server.reload_tls(SERVER, "key.pem")
    with pytest.raises(ValueError, match="does not listen at"):
        it.server.reload_tls(SERVER, address=("127.0.0.1", 1))
    with pytest.raises(ValueError, match="does not speak TLS there"):
        secure().server.reload_tls(SERVER)
    with pytest.raises(ValueError, match="has not been started"):
        Server(tls=SERVER).reload_tls(SERVER)
    assert it.works(it.client(CLIENT).start())


def test_reloading_a_listener_with_its_own_context(secure: MakeSecure) -> None:
    """It is reloaded by its address, and other listeners are not affected."""
    it = secure(tls=SERVER)
    second = it.server.start(("127.0.0.1", 0), tls=SERVER)
    it.server.reload_tls(OTHER.server_config(), address=second)
    assert issuer(it.client(CLIENT).start()) == "tao development CA"
    assert issuer(it.client(OTHER.client_config(), second).start()) == "another authority"


SELF_SIGNED = self_signed_certificate()
TRUSTS_THE_SYSTEM = load_client_tls_config()


@pytest.mark.parametrize(
    ("server", "client", "why"),
    [
        (CA.issue(days=-1).server_config(), CLIENT, "certificate has expired"),
        (SELF_SIGNED.server_config(), CLIENT, "self.signed certificate"),
        (SELF_SIGNED.server_config(), TRUSTS_THE_SYSTEM, "self.signed certificate"),
        (CA.issue_client("eve").server_config(), CLIENT, "certificate purpose"),
    ],
    ids=["expired", "self-signed", "self-signed for the system", "a client's"],
)
def test_a_servers_certificate_is_refused(
    secure: MakeSecure, server: ssl.SSLContext, client: ssl.SSLContext, why: str
) -> None:
    """The client's error has the reason, and the server receives an alert."""
    it = secure(tls=server)
    with pytest.raises(HandshakeFailed, match=f"the peer's certificate is refused: .*{why}"):
        it.client(client).start()
    assert "alert" in it.errors.wait()[0]
    assert it.closed.items == []


@pytest.mark.parametrize(
    ("certificate", "why", "alert"),
    [
        (CA.issue_client("alice", days=-1), "certificate has expired", "certificate expired"),
        (OTHER_CA.issue_client("mallory"), "unable to get local issuer", "unknown ca"),
        (self_signed_certificate(), "self.signed certificate", "unknown ca|unsupported"),
    ],
    ids=["expired", "unknown", "self-signed"],
)
def test_a_clients_certificate_is_refused(
    secure: MakeSecure, certificate: Certificate, why: str, alert: str, tmp_path: Path
) -> None:
    """The server's error has the reason; the client receives it unless a reset is faster."""
    it = secure(tls=MUTUAL_SERVER)
    certfile, keyfile, cafile = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    certificate.write(certfile, keyfile)
    cafile.write_bytes(CA.certificate)
    client = it.client(load_client_tls_config(ca=cafile, certfile=certfile, keyfile=keyfile))
    try:
        client.start()
    except ConnectionClosed as error:
        reason = str(error)
    else:
        assert client.wait_closed(PATIENCE)
        reason = str(client.close_reason)
    assert any(word in reason for word in [*alert.split("|"), "reset", "peer closed"])
    (error,) = it.errors.wait()
    assert "the peer's certificate is refused" in error
    assert any(word in error for word in (why, why.replace(".", "-"), why.replace(".", " ")))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_compression_is_off(secure: MakeSecure, version: ssl.TLSVersion) -> None:
    """This holds for both versions, and both ends agree on the version."""
    context = CA.issue().client_config()
    context.maximum_version = version
    it = secure(tls=SERVER)
    client = it.client(context).start()
    assert it.works(client)
    assert client.tls_version == version.name.replace("_", ".")
    assert client._core.transport._machine.compression() is None  # type: ignore[union-attr]


@pytest.mark.parametrize("orderly", [True, False])
def test_a_client_tells_truncation_from_an_end(secure: MakeSecure, orderly: bool) -> None:
    """A server that closes without close_notify may not have sent all its data."""
    it = secure(tls=SERVER)
    client = it.client(CLIENT).start()
    assert it.works(client)
    (conn,) = it.server.connections
    if orderly:
        conn.close()
    else:
        conn._core.transport.abort()  # type: ignore[union-attr]
    assert client.wait_closed(PATIENCE)
    expected = "peer closed" if orderly else "peer closed without saying so in TLS"
    assert client.close_reason == expected


# -- forks


READERS = pytest.mark.parametrize("readers", ["own", "shared"])


def forking(program: str, readers: str = "own") -> list[str]:
    """Run a program that has a server and a client, and forks; return its output."""
    return run_program(f"READERS = {readers!r}\n{FORK}{program}").splitlines()


FORK = """
import os, socket, sys, threading
import tao
from tests.ends import Text, text
from tests.programs import LONG
from tests.support import recv_exactly

def asks(sock, value):
    sock.sendall(text(value))
    return recv_exactly(sock, len(text(value))) == text(value)

def echo(server):
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))

def error(function, *args):
    try:
        function(*args)
    except tao.TaoError as error:
        return f"{type(error).__name__}: {error}".replace(str(parent), "PARENT")

parent = os.getpid()
pool = tao.WorkerPool(1)
pool.submit(int).result()
reads = {"readers": READERS}
server, fresh = tao.Server(**reads), tao.Server(workers=pool, dispatch="pool", **reads)
echo(server), echo(fresh)
address = server.start(("127.0.0.1", 0))
client = tao.ClientConn(address, reconnect=True, registry=tao.Registry(), **reads)
read = threading.Event()  # set when the client is read, so its thread has made all it needs
client.handler(Text)(lambda ctx, conn: read.set())
client.start().write(Text("before"))
assert read.wait(20)
unstarted = tao.ClientConn(address, registry=tao.Registry(), **reads)
sock = socket.create_connection(address)
assert asks(sock, "before")
conn = server.connections[0]
"""
CHILD = """
child = os.fork()
if not child:
    try:
        sockets = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 50)
                   if os.path.islink(f"/proc/self/fd/{fd}")]
        print(sum(each.startswith("socket:") for each in sockets), "socket")
        print(server.running, server.connections, client.connected, server.snapshot().state)
        print(error(server.start, ("127.0.0.1", 0)))
        print(error(client.write, Text("x")))
        print(error(conn.write, Text("x")))
        print(error(client.start))
        client.close(), conn.close()
        print(client.wait_closed(20), conn.wait_closed(20), server.stop().clean)
        there = fresh.start(("127.0.0.1", 0))
        with socket.create_connection(there) as own:
            due, heard = threading.Event(), threading.Event()
            unstarted.handler(Text)(lambda ctx, conn: heard.set())
            print(asks(own, "new"), error(unstarted.start), error(unstarted.write, Text("x")))
            unstarted.run_after(0, lambda when, conn: due.set())
            print(due.wait(20), heard.wait(20))
        with tao.ClientConn(there, registry=tao.Registry()) as made:
            print(made.connected)
        unstarted.close()
        print(fresh.stop().clean)
        sys.stdout.flush()
    finally:
        os._exit(0)
os.waitpid(child, 0)
print(asks(sock, "after"), client.connected, server.connection_count)
sock.close(), client.close(), pool.stop()
print(server.stop().clean)
"""


@READERS
def test_a_child_does_not_affect_its_parent(readers: str) -> None:
    """Started objects belong to the parent; new ones can be started in the child."""
    reason = "was started in process PARENT before a fork; create a new one in the child"
    assert forking(CHILD, readers) == [
        "1 socket",  # the program's own
        "False [] False stopped",
        f"ServerClosed: this server {reason}",
        f"ConnectionClosed: this client {reason}",
        f"ConnectionClosed: this server {reason}",
        f"ConnectionClosed: this client {reason}",
        "True True True",
        "True None None",
        "True True",
        "True",
        "True",
        "True True 2",
        "True",
    ]


FIGURES = """
child = os.fork()
if not child:
    print(client.snapshot().state, server.snapshot().state, flush=True)
    os._exit(0)
os.waitpid(child, 0)
sock.close(), client.close(), pool.stop(), server.stop()
"""


def test_statistics_after_a_fork() -> None:
    """A child can read the statistics of its parent's objects."""
    assert forking(FIGURES) == ["closed stopped"]


WHILE_STOPPING = """
import time
from tao.runtime.timing_wheel import shared_wheel
entered, leave = threading.Event(), threading.Event()
server.handler(type("Wait", (Text,), {"message_number": 9}))(
    lambda ctx, conn: entered.set() or leave.wait(LONG)
)
sock.sendall(bytes([9, 0, 0, 0, 0, 0, 0, 0]))
entered.wait(LONG)
stopping = threading.Thread(target=server.stop)
stopping.start()
while server.running:
    time.sleep(0.001)
child = os.fork()
if not child:
    unstarted.close()
    print(server.stop().clean, len(shared_wheel._users), flush=True)
    os._exit(0)
os.waitpid(child, 0)
leave.set(), stopping.join(), sock.close(), client.close(), pool.stop()
"""


@READERS
def test_a_fork_while_a_server_stops(readers: str) -> None:
    """The child keeps no state of the stop; the wheel's thread can end there."""
    assert forking(WHILE_STOPPING, readers) == ["True 0"]


# A signal at the very moment of the fork is lost, because CPython clears it in the child. If a
# thread other than the main one has forked, 3.13 handles signals only after a system call.
TERMINATED = """
import multiprocessing, time
begun, begin = os.pipe()
def sleep():
    os.write(begin, b"x")
    time.sleep(LONG)
@server.handler(type("Fork", (Text,), {"message_number": 9}))
def fork(ctx, conn):
    process = multiprocessing.get_context("fork").Process(target=sleep)
    process.start()
    os.read(begun, 1)
    while open(f"/proc/{process.pid}/stat").read().rpartition(")")[2].split()[0] != "S":
        pass  # it does not sleep yet
    process.terminate()
    process.join()
    print(process.exitcode, flush=True)
    server.stop()

sock.sendall(bytes([9, 0, 0, 0, 0, 0, 0, 0]))
server.serve_forever(handle_signals=True)
sock.close(), client.close(), pool.stop()
"""


@needs_linux
def test_a_child_restores_signal_handlers() -> None:
    """The first signal ends the child."""
    assert forking(TERMINATED) == ["-15"]


# A descriptor that the child has closed, or would still poll, shows in how often the thread turns.
MONITOR = """
monitor = tao.monitor_on(0)
turns, turn = [], monitor._http._turn
monitor._http._turn = lambda: turns.append(None) or turn()
looking = socket.create_connection(monitor.address)
looking.sendall(b"GET /events HTTP/1.0\\r\\n\\r\\n")
assert looking.recv(8) == b"HTTP/1.0"
(closed, closing), (done, let_go) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    monitor.close(), monitor.close()
    os.write(closing, b"x")
    os.close(let_go), os.read(done, 1)
    os._exit(0)
os.close(done), os.read(closed, 1)
turns.clear()
data = piece = looking.recv(1 << 20)
while piece and data.count(b"\\n\\n") < 4:
    piece = looking.recv(1 << 20)
    data += piece
events = data.count(b"\\n\\n")
print(events >= 4, len(turns) <= 10 * events)
looking.close(), monitor.close()
tao.monitor_on(monitor.address[1]).close()
os.close(let_go), os.waitpid(child, 0)
sock.close(), client.close(), pool.stop(), server.stop()
"""


def test_a_monitor_in_a_child() -> None:
    """The child does not disturb the parent's clients, thread or port."""
    assert forking(MONITOR) == ["True True"]


# A message makes a handler fork and report how the child ended; the connection continues.
HAVE_FORKED = """
sock.sendall(bytes([9, 0, 0, 0, 0, 0, 0, 0]))
print(recv_exactly(sock, 9)[8:].decode(), asks(sock, "after"))
sock.close(), client.close(), pool.stop()
print(server.stop().clean)
"""
IN_A_HANDLER = """
seen = []
@server.handler(type("Fork", (Text,), {"message_number": 9}))
def fork(ctx, conn):
    child = os.fork()
    if not child:
        try:
            conn.write(Text("from the child"))
        except tao.ConnectionClosed:
            os._exit(7)
        os._exit(1)
    conn.write(Text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))))
"""


@READERS
def test_a_handler_may_fork(readers: str) -> None:
    """Its connection is closed in the child, and continues in the parent."""
    assert forking(IN_A_HANDLER + HAVE_FORKED, readers) == ["7 True", "True"]


RETURNS = """
@server.handler(type("Fork", (Text,), {"message_number": 9}), dispatch="inline")
def fork(ctx, conn):
    child = os.fork()
    if child:
        conn.write(Text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))))
"""


@READERS
def test_the_child_of_a_handler_ends_when_it_returns(readers: str) -> None:
    """The child has only the thread of the connection, which is closed there."""
    assert forking(RETURNS + HAVE_FORKED, readers) == ["0 True", "True"]


def test_multiprocessing_by_fork() -> None:
    """A child of multiprocessing does not disturb its parent's connections."""
    program = (
        "import multiprocessing\n"
        "def work(): print(server.running, flush=True)\n"
        "process = multiprocessing.get_context('fork').Process(target=work)\n"
        "process.start(), process.join()\n"
        "print(process.exitcode, asks(sock, 'after'), client.connected)\n"
        "sock.close(), client.close(), pool.stop(), server.stop()\n"
    )
    assert forking(program) == ["False", "0 True True"]


# -- private data


SECRET = "swordfish"


@pytest.fixture
def log_text() -> Iterator[list[str]]:
    """Yield all log lines above TRACE with tracebacks, as in a file."""
    lines: list[str] = []
    sink = loguru.logger.add(
        lines.append,  # type: ignore[arg-type]
        level="DEBUG",
        format="{level} {message} {extra}\n{exception}",
        backtrace=True,
        diagnose=False,
    )
    loguru.logger.enable("tao")
    yield lines
    loguru.logger.disable("tao")
    loguru.logger.remove(sink)


class Amount:
    """A message with a deserializer that quotes invalid input in its exception."""

    message_number = 5

    def __init__(self, value: int) -> None:
        self.value = value

    def serialize(self) -> bytes:
        return str(self.value).encode()

    @classmethod
    def deserialize(cls, data: bytes) -> Amount:
        return cls(int(data))


class Quoting(Codec):
    """A codec with a decoder that quotes its input in its exception."""

    def encode(self, message: Message) -> bytes:
        return message.serialize()

    def decoder(self, registry: Registry) -> QuotingDecoder:
        return QuotingDecoder()


class QuotingDecoder:
    def feed(self, data: bytes, batch: Batch) -> None:
        raise LookupError(data)


def end_of(end: End) -> None:
    try:
        end.read_to_end()
    except ConnectionResetError:
        pass
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)


def test_errors_of_deserializers_are_not_quoted(open_end: OpenEnd, log_text: list[str]) -> None:
    """The log has location and class of the exception; ``on_error`` gets all of it."""
    errors = Seen()
    registry = Registry()
    registry.register(5, Amount.deserialize)
    end = open_end(registry=registry, on_error=lambda conn, error: errors.add(error))
    end.send(frame(5, SECRET.encode()))
    end_of(end)
    assert end.conn.close_reason == (
        "protocol error: message 5 could not be deserialized: ValueError"
    )
    assert SECRET in str(errors.wait()[0].__cause__)
    text_of_log = "".join(log_text)
    assert "in deserialize" in text_of_log and "connection lost" in text_of_log
    assert SECRET not in text_of_log


def test_errors_of_decoders_are_not_quoted(open_end: OpenEnd, log_text: list[str]) -> None:
    """This also holds for a custom codec."""
    end = open_end(codec=Quoting(), heartbeat=None)
    end.send(SECRET.encode())
    end_of(end)
    assert end.conn.close_reason == "protocol error: the decoder raised LookupError"
    assert log_text and SECRET not in "".join(log_text)


def test_a_handlers_error_shows_no_values(open_end: OpenEnd, log_text: list[str]) -> None:
    """The traceback has source lines, but no values of variables."""
    registry, errors = Registry(), Seen()

    @registry.handler(Text)
    def fail(ctx: Context, conn: Any) -> None:
        password = ctx.message.text
        raise RuntimeError("not allowed" if password else "")

    end = open_end(registry=registry, on_error=lambda conn, error: errors.add(error))
    end.send(text(SECRET))
    errors.wait()
    wait_until(lambda: any("RuntimeError: not allowed" in line for line in log_text))
    assert SECRET not in "".join(log_text)


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({}, frame(77, SECRET.encode())),
        ({}, b"\1\0\0\0\xff\xff\xff\xff" + SECRET.encode()),
        ({"frame_timeout": 0.01}, text(SECRET)[:-1]),
        ({"message_rate": 1e-6, "message_burst": 1, "over_rate": "close"}, text(SECRET) * 2),
        ({"byte_rate": 1e-6, "byte_burst": 1}, text(SECRET)),
        ({"idle_timeout": 0.01}, text(SECRET)),
    ],
    ids=["unregistered", "too long", "not whole", "too many", "too many bytes", "idle"],
)
def test_limits_do_not_quote_messages(
    open_end: OpenEnd, log_text: list[str], options: dict[str, Any], data: bytes
) -> None:
    """For any invalid data, the log has only numbers and reasons."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: None)
    end = open_end(registry=registry, **options)
    end.send(data)
    wait_until(lambda: log_text or end.conn.closed)
    end.peer.close()
    end.conn.close()
    assert end.conn.wait_closed(PATIENCE)
    assert SECRET not in "".join(log_text)


def test_unsent_messages_are_not_quoted(open_end: OpenEnd, log_text: list[str]) -> None:
    """They are only counted."""
    end = open_end(queue_size=3, slow_consumer="close")
    with pytest.raises(ConnectionClosed):
        while True:
            end.conn.write(Text(SECRET * 10_000))
    end_of(end)
    assert "could not be sent" in "".join(log_text)
    assert SECRET not in "".join(log_text)


def test_the_stack_of_a_hanging_handler_shows_no_values(
    open_end: OpenEnd, log_text: list[str]
) -> None:
    """The logged stack has only source lines."""
    registry, leave = Registry(), threading.Event()

    @registry.handler(Text)
    def hang_about(ctx: Context, conn: Any) -> None:
        password = ctx.message.text
        leave.wait(PATIENCE if password else 0)

    end = open_end(registry=registry, handler_warn_after=0.02)
    end.send(text(SECRET))
    wait_until(lambda: "in hang_about" in "".join(log_text))
    leave.set()
    assert SECRET not in "".join(log_text)


def fetch(url: str) -> str:
    """Return a page of the monitor, including error pages."""
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            page: bytes = answer.read()
    except HTTPError as error:
        page = error.read()
        error.close()
    return page.decode()


def test_the_monitor_does_not_quote_messages(make_server: MakeServer) -> None:
    """No page shows the content of a message, whatever happened to it."""
    registry, errors = Registry(), Seen()
    registry.register(5, Amount.deserialize)

    @registry.handler(Text)
    def fail(ctx: Context, conn: Any) -> None:
        raise LookupError(ctx.message.text)

    _, address = make_server(registry=registry, on_error=lambda conn, error: errors.add(error))
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(text(SECRET) + frame(77, SECRET.encode()) + frame(5, SECRET.encode()))
        errors.wait(2)
        with monitor_on(0) as pages:
            assert pages.address[0] == "127.0.0.1"
            _, _, listed = fetch(f"{pages.url}/nothing").partition("\n")
            assert "/debug/vars" in listed
            for path in listed.split():
                if path != "/events":  # it never ends, and has the data of /debug/vars
                    assert SECRET not in fetch(f"{pages.url}{path}"), path
