"""Guarantees under bad networks and bad peers, tested through `FaultProxy`.

Each test states what happens to every single message, connection or descriptor, and fails if one
of them disappears silently.
"""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectionClosed, WouldBlock
from tao.server.server import Server
from tao.testing.fault_proxy import FaultProxy, Faults
from tao.wire.message import Registry
from tests.crowd import CROWD_PATIENCE, crowd
from tests.ends import MakeServer, Number, Seen, number, text
from tests.support import PATIENCE, recv_exactly, together, wait_until
from tests.tls_pairs import CLIENT, SERVER

SOON = Reconnect(initial=0.001, maximum=0.01)


class Item:
    """A numbered message of any size."""

    message_number = 7

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size

    def serialize(self) -> bytes:
        return struct.pack("<q", self.index) + self.index.to_bytes(4, "little") * (self.size // 4)

    @classmethod
    def deserialize(cls, data: bytes) -> Item:
        (index,) = struct.unpack_from("<q", data)
        item = cls(index, len(data) - 8)
        assert item.serialize() == data, f"item {index} arrived damaged"
        return item


class Scene:
    """A server, a proxy in front of it, and clients of the proxy, with or without TLS.

    Args:
        readers: the option of server and clients.
    """

    def __init__(self, tls: bool, readers: Any) -> None:
        self.tls = tls
        self.readers = readers
        self.server = Server()
        self.clients: list[ClientConn] = []
        self.proxy: FaultProxy
        # The events that the callbacks of server and clients report.
        self.closed, self.server_errors, self.client_errors = Seen(), Seen(), Seen()

    def serve(self, handler: Callable[..., Any], **options: Any) -> FaultProxy:
        """Start the server with a handler of items, and return the proxy in front of it."""
        faults = {key: options.pop(key) for key in ("to_server", "plan", "seed") if key in options}
        registry = Registry()
        registry.handler(Item)(handler)
        self.server = Server(
            registry=registry,
            tls=SERVER if self.tls else None,
            readers=self.readers,
            on_close=lambda conn: self.closed.add(conn.close_reason),
            on_error=lambda conn, error: self.server_errors.add(error),
            **options,
        )
        self.proxy = FaultProxy(self.server.start(("127.0.0.1", 0)), **faults)
        return self.proxy

    def client(self, handler: Callable[..., Any] | None = None, **options: Any) -> ClientConn:
        """Return a client of the proxy, not started."""
        registry = Registry()
        registry.register(Item.message_number, Item.deserialize, handler)
        tls = CLIENT if self.tls else None
        options = {"heartbeat": None, "registry": registry, "tls": tls, **options}
        options["readers"] = self.readers
        client = ClientConn(
            self.proxy.address,
            on_error=lambda conn, error: self.client_errors.add(error),
            **options,
        )
        self.clients.append(client)
        return client

    def close(self) -> None:
        together(self.proxy.close, self.server.stop, *(client.close for client in self.clients))


@pytest.fixture(params=["plain", "tls", "plain-shared", "tls-shared"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A `Scene`, with and without TLS, with both kinds of readers; closed afterwards."""
    kind, _, shared = request.param.partition("-")
    made = Scene(kind == "tls", shared or "own")
    yield made
    made.close()


# -- graceful shutdown


def test_a_stop_sends_the_replies_of_handled_messages(make_server: MakeServer) -> None:
    """While a hundred clients send, each gets the replies of the handlers that finished."""
    server, address = make_server(queue_size=500, workers=4)
    finished: dict[int, list[int]] = defaultdict(list)

    @server.handler(Number)
    def answer(ctx: Any, conn: Any) -> None:
        if ctx.message.value % 100 == 17:
            ctx.wait(0.001)  # some block
        conn.write(ctx.message)
        finished[conn.net_id].append(ctx.message.value)

    requests = b"".join(map(number, range(1, 500)))
    chance = random.Random(5)
    faults = [Faults(split=chance.choice((7, 200, 5000))) for _ in range(100)]
    all_in = threading.Barrier(101)
    report = None

    def client() -> list[int]:
        with socket.create_connection(proxy.address, PATIENCE) as sock:
            sock.sendall(number(0))
            answers = recv_exactly(sock, 16)
            all_in.wait(PATIENCE)
            sock.sendall(requests)
            answers += recv_exactly(sock, len(requests))
        return [value for *_, value in struct.iter_unpack("<iIq", answers)]

    def stop() -> None:
        nonlocal report
        all_in.wait(PATIENCE)
        wait_until(lambda: server.snapshot().handled > 1000)
        report = server.stop(6 * PATIENCE)

    with FaultProxy(address, plan=lambda number: (faults[number % 100], Faults())) as proxy:
        *answered, _ = together(*[client] * 100, stop)
    assert report is not None and report.clean and report.drained > 0
    assert sorted(answered) == sorted(finished.values())
    assert sum(map(len, answered)) < 100 * 500, "the stop came in the middle"


@pytest.mark.parametrize("dispatch", ["pool", "inline"])
def test_a_stop_that_times_out_reports_the_rest(make_server: MakeServer, dispatch: str) -> None:
    """Each message that was received and not handled in time is in the report."""
    server, address = make_server(dispatch=dispatch, workers=8)
    finished: list[int] = []

    @server.handler(Number)
    def handle(ctx: Any, conn: Any) -> None:
        time.sleep(0.001)  # a handler that ignores its context
        finished.append(1)

    socks = [socket.create_connection(address, PATIENCE) for _ in range(8)]
    for sock in socks:
        sock.sendall(b"".join(map(number, range(200))))
    wait_until(lambda: server.snapshot().messages_in == 8 * 200)
    report = server.stop(0.05)
    for sock in socks:
        sock.close()
    assert not report.clean
    assert sum(unhandled for _, unhandled, _ in report.abandoned) >= 8 * 200 - len(finished)


def test_close_delivers_accepted_messages(scene: Scene) -> None:
    """A client with a full queue and a slow peer delivers all messages before the end."""
    received = Seen()
    scene.serve(
        lambda ctx, conn: received.add(ctx.message.index), to_server=Faults(split=9999, rate=5e7)
    )
    client = scene.client(queue_size=100, drain_timeout=PATIENCE).start()
    accepted = fill(client)
    client.close()
    wait_until(lambda: scene.closed.items)
    assert received.items == list(range(accepted))
    assert (client._core.counts().messages_out, client._core.counts().unsent) == (accepted, 0)
    assert scene.client_errors.items == []


def test_close_reports_undelivered_messages(scene: Scene) -> None:
    """If the peer stops reading, each message was sent or is reported as not sent."""
    received = Seen()
    proxy = scene.serve(lambda ctx, conn: received.add(ctx.message.index))
    client = scene.client(queue_size=100, drain_timeout=0.1).start()
    proxy.to_server.stall = True
    accepted = fill(client)
    client.close()
    counts = client._core.counts()
    assert counts.unsent >= 100
    assert counts.messages_out + counts.unsent == accepted
    assert str(scene.client_errors.items[-1]).startswith(f"{counts.unsent} messages (")
    # Messages in the kernel may still arrive; the others must not.
    proxy.to_server.stall = False
    wait_until(lambda: scene.closed.items)
    assert received.items == list(range(len(received.items)))
    assert len(received.items) <= counts.messages_out


def fill(conn: Any, first: int = 0) -> int:
    """Write items from number ``first`` until the queue is full; return how many were accepted."""
    count = 0
    try:
        while True:
            conn.write(Item(first + count, 20_000))
            count += 1
    except WouldBlock:
        return count


def fill_all(conn: Any) -> int:
    """Do the same until the kernel is full, too: the queue may be as its writer had no turn."""
    count = fill(conn)
    while not conn._core.send_queue.blocked:
        count += fill(conn, first=count)
    return count


# -- reconnecting


@pytest.mark.parametrize("seed", range(2))
def test_every_message_has_its_fate(scene: Scene, seed: int) -> None:
    """Each message is received, was sent on a lost connection, or is reported, over a hundred cuts.

    No message arrives damaged, twice or out of order on any connection.
    """
    chance = random.Random(seed)
    received: dict[int, list[int]] = defaultdict(list)

    def plan(number: int) -> tuple[Faults, Faults]:
        where = chance.choice((200, 3_000, 50_000, 400_000))
        faults = Faults(split=chance.choice((None, 100, 5000)))
        setattr(faults, chance.choice(("cut_after", "reset_after")), chance.randrange(where))
        return chance.choice(((faults, Faults()), (faults, Faults(delay=0.0005))))

    proxy = scene.serve(
        lambda ctx, conn: received[conn.net_id].append(ctx.message.index), plan=plan, seed=seed
    )
    client = scene.client(reconnect=SOON, queue_size=50).start(keep_trying=True)
    accepted = 0
    while proxy.accepted <= 100:
        size = chance.choice((0, 10, 100, 5000, 70_000, 300_000))
        try:
            client.write(Item(accepted, size), PATIENCE)
        except ConnectionClosed:
            pytest.fail("a client that comes back takes messages all the time")
        accepted += 1
    proxy.refuse()
    proxy.reset()
    wait_until(lambda: not client.connected)
    accepted += fill(client, first=accepted)
    client.close()
    scene.server.stop()
    check_fates(client, accepted, received, scene.client_errors)


def check_fates(
    client: ClientConn, accepted: int, received: dict[int, list[int]], errors: Seen
) -> None:
    """Add up the fates of the messages that a client accepted."""
    counts = client._core.counts()
    assert counts.messages_out + counts.unsent + counts.dropped == accepted
    arrived = [index for net_id in sorted(received) for index in received[net_id]]
    assert arrived == sorted(set(arrived)), "in order over all connections, and none twice"
    assert len(arrived) <= counts.messages_out
    assert all(index < accepted - counts.unsent for index in arrived), "unsent are the last"
    assert counts.unsent > 0
    assert f"{counts.unsent} messages (" in str(errors.items[-1])
    assert client.reconnects > 10


def test_back_off_follows_the_option(scene: Scene) -> None:
    """The waits between consecutive failures grow as configured, and restart after a success."""
    asked: list[int] = []

    class Noted(Reconnect):
        def delay(self, attempt: int) -> float:
            asked.append(attempt)
            return super().delay(attempt)

    proxy = scene.serve(lambda ctx, conn: conn.write(ctx.message))
    how = Noted(initial=0.01, maximum=0.04, factor=2, jitter=0)
    client = scene.client(reconnect=how).start()
    for _ in range(2):
        asked.clear()
        proxy.refuse()
        started = time.monotonic()
        proxy.cut()
        wait_until(lambda: len(asked) >= 6)
        # 10, 20, 40, 40 and 40 ms have passed.
        assert time.monotonic() - started >= 0.15
        proxy.accept()
        wait_until(lambda: client.connected)
        assert asked == list(range(1, len(asked) + 1))
        before = client._core.counts().bytes_in
        client.write(Item(1, 4))
        wait_until(lambda before=before: client._core.counts().bytes_in > before)


def test_back_off_grows_if_the_server_closes_at_once(scene: Scene) -> None:
    """A server that accepts and closes at once is not dialled without pause."""
    asked: list[int] = []

    class Noted(Reconnect):
        def delay(self, attempt: int) -> float:
            asked.append(attempt)
            return super().delay(attempt)

    proxy = scene.serve(lambda ctx, conn: None)
    scene.client(reconnect=Noted(initial=0.001, maximum=60, factor=1, jitter=0)).start()
    proxy.refuse(hang_up=True)
    proxy.reset()
    wait_until(lambda: len(asked) >= 20)
    assert max(asked) > 10


# -- slow consumers


@pytest.mark.parametrize("policy", ["raise", "drop_oldest", "close"])
def test_one_slow_reader_among_fifty(scene: Scene, policy: str) -> None:
    """Its queue is bounded, and the others are served as usual."""
    ways = [(Faults(), Faults()) for _ in range(50)]
    waiting, lost = Seen(), Seen()

    def answer(ctx: Any, conn: Any) -> None:
        try:
            for _ in range(ctx.message.index):
                conn.write(Item(ctx.message.index, 20_000))
        finally:
            waiting.add((conn.net_id, conn.send_queue_length, conn._core.send_queue.bytes_waiting))

    scene.serve(
        answer,
        plan=lambda number: ways[number - 1],
        queue_size=20,
        slow_consumer=policy,
        drain_timeout=0.1,
    )
    stuck = scene.client(queue_size=500).start()
    wait_until(lambda: scene.server.connections)
    conn = scene.server.connections[0]
    ways[0][1].stall = True

    def other() -> None:
        answers = Seen()
        client = scene.client(
            lambda ctx, conn: answers.add(1), on_close=lambda conn: lost.add(conn.close_reason)
        ).start()
        for count in range(1, 11):
            client.write(Item(1, 4))
            answers.wait(count)
        assert lost.items == []

    def flood() -> None:
        for _ in range(100):
            stuck.write(Item(10, 4))

    together(flood, *[other] * 49)
    if policy == "raise":  # its messages are held back
        wait_until(lambda: conn._core.send_queue.crowded and conn._core.dispatcher.pending)
    else:
        wait_until(
            lambda: conn.closed or sum(each[0] == conn.net_id for each in waiting.items) == 100
        )
    assert max(each[1] for each in waiting.items if each[0] == conn.net_id) <= 20
    assert max(each[2] for each in waiting.items) <= 20 * 20_016
    assert conn.closed is (policy == "close")
    if policy == "drop_oldest":
        assert conn._core.counts().dropped > 0


# -- half-open connections


def test_a_silent_network_is_detected_at_both_ends(scene: Scene) -> None:
    """If no data arrives, ``idle_timeout`` closes both ends, although both send heartbeats."""
    reasons = Seen()
    proxy = scene.serve(lambda ctx, conn: None, heartbeat=0.02, idle_timeout=0.3)
    client = scene.client(
        heartbeat=0.02, idle_timeout=0.3, on_close=lambda conn: reasons.add(conn.close_reason)
    ).start()
    wait_until(lambda: scene.server.connections)
    proxy.to_server.swallow = proxy.to_client.swallow = True
    assert scene.closed.wait() == reasons.wait() == ["idle for 0.3 s"]
    assert client.wait_closed(PATIENCE)


def test_a_vanished_peer_during_a_blocked_send(scene: Scene) -> None:
    """``idle_timeout`` closes this connection as well, and unsent messages are reported."""
    options = {"idle_timeout": 0.5, "drain_timeout": 0.1, "queue_size": 50}
    proxy = scene.serve(lambda ctx, conn: None, **options)
    client = scene.client(**options).start()
    wait_until(lambda: scene.server.connections)
    (conn,) = scene.server.connections
    proxy.to_server.stall = proxy.to_client.stall = True
    for end, accepted in [(end, fill_all(end)) for end in (client, conn)]:
        assert end.wait_closed(PATIENCE)
        assert end.close_reason == "idle for 0.5 s"
        counts = end._core.counts()
        assert counts.unsent >= 50
        assert counts.messages_out + counts.unsent == accepted


def test_a_client_with_a_blocked_send_reconnects(scene: Scene) -> None:
    """The messages are sent on the next connection, complete and in order."""
    received = Seen()
    stuck = Faults()
    proxy = scene.serve(
        lambda ctx, conn: received.add((conn.net_id, ctx.message.index)),
        plan=lambda number: (stuck if number == 1 else Faults(), Faults()),
        heartbeat=0.05,
    )
    client = scene.client(reconnect=SOON, write_timeout=0.2, queue_size=50).start()
    stuck.stall = True
    accepted = fill_all(client)
    wait_until(lambda: received.items[-1:] and received.items[-1][1] == accepted - 1)
    # The proxy may have passed something on before it saw that it is to stall.
    last = [index for net_id, index in received.items if net_id == received.items[-1][0]]
    assert last == list(range(last[0], accepted))
    assert len(last) >= 50
    assert proxy.accepted == 2


# -- slow handshakes


def test_five_hundred_stalled_handshakes(make_server: MakeServer) -> None:
    """Peers that send one byte of TLS do not block others, and are closed after the timeout."""
    registry, got = Registry(), Seen()
    registry.handler(Number)(lambda ctx, conn: conn.write(ctx.message))
    server, address = make_server(
        tls=SERVER, registry=registry, handshake_timeout=2.0, max_connections=501
    )
    mine = Registry()
    mine.register(2, Number.deserialize, lambda ctx, conn: got.add(ctx.message.value))
    began = time.monotonic()
    with (
        crowd(address, 500, b"\x16") as silent,
        # On a busy machine, its own handshake may take too long as well.
        ClientConn(
            address, tls=CLIENT, registry=mine, server_hostname="localhost", reconnect=SOON
        ) as client,
    ):
        client.write(Number(1))
        assert got.wait(1, CROWD_PATIENCE) == [1]
        # All are connected meanwhile, unless the first have timed out already.
        there = server.snapshot().connections
        assert there == 501 or time.monotonic() - began > 2.0
        for sock in silent:
            assert sock.recv(100) == b"", "hung up on"
            sock.close()
        client.write(Number(2))
        assert got.wait(2, CROWD_PATIENCE) == [1, 2]
    wait_until(lambda: server.snapshot().connections == 0, CROWD_PATIENCE)


def test_a_handshake_in_single_bytes(make_server: MakeServer) -> None:
    """The timeout covers the whole handshake; single bytes do not extend it."""
    errors = Seen()
    _, address = make_server(
        tls=SERVER, handshake_timeout=0.3, on_error=lambda conn, error: errors.add(str(error))
    )
    with FaultProxy(address, to_server=Faults(rate=50)) as proxy:
        client = ClientConn(proxy.address, tls=CLIENT, registry=Registry())
        with pytest.raises(ConnectionClosed, match="hung up during"):
            client.start()
        client.close()
    assert "not done after 0.3 s" in errors.wait()[0]


# -- programs

PREAMBLE = """
import socket, struct, sys, threading, time
import tao
from tests.ends import Number
def server(**options):
    made = tao.Server(registry=tao.Registry(), **options)
    made.handler(Number)(lambda ctx, conn: conn.write(ctx.message))
    return made
def number(value):
    return struct.pack("<iIq", 2, 8, value)
"""


def program(source: str) -> subprocess.Popen[str]:
    """Start a Python program that begins with `PREAMBLE`."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_a_program_recovers_from_a_lack_of_descriptors() -> None:
    """Existing connections are served meanwhile, and new ones afterwards, without intervention."""
    with program(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "serving = server()\n"
        "print(serving.start(('127.0.0.1', 0))[1], flush=True)\n"
        "while serving.snapshot().accept_errors < 3:\n"
        "    time.sleep(0.001)\n"
        "print('exhausted', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(serving.snapshot().accept_errors, serving.stop().clean, flush=True)\n"
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        address = ("127.0.0.1", int(child.stdout.readline()))
        socks = [socket.create_connection(address, PATIENCE) for _ in range(100)]
        assert child.stdout.readline() == "exhausted\n"
        inside, outside = socks[0], socks[-1]
        inside.sendall(number(1))
        assert recv_exactly(inside, 16) == number(1)
        outside.sendall(number(2))
        outside.settimeout(0.1)
        with pytest.raises(TimeoutError):
            outside.recv(1)
        outside.settimeout(PATIENCE)
        for sock in socks[:80]:
            sock.close()
        assert recv_exactly(outside, 16) == number(2)
        for sock in socks[80:]:
            sock.close()
        output, errors = child.communicate("\n", timeout=3 * PATIENCE)
    failures, clean = output.split()
    # It backs off: a busy loop would fail thousands of times.
    assert int(failures) < 100 and clean == "True" and errors == ""


def test_a_program_without_descriptors_can_stop() -> None:
    """A stop needs no descriptor."""
    with program(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "serving = server()\n"
        "address = serving.start(('127.0.0.1', 0))\n"
        "socks = []\n"
        "try:\n"
        "    while True: socks.append(socket.create_connection(address))\n"
        "except OSError: pass\n"
        "serving.context.after_cancel(lambda: [sock.close() for sock in socks])\n"
        "print(serving.stop(5).clean)\n"
    ) as child:
        output, errors = child.communicate(timeout=3 * PATIENCE)
    assert (output, errors, child.returncode) == ("True\n", "", 0)


CLIENT_OF_IT = (
    "mine = tao.Registry()\n"
    "mine.register(2, Number.deserialize, lambda ctx, conn: conn.write(ctx.message, 1))\n"
    "client = tao.connect(address, registry=mine, reconnect=True)\n"
)
ENDINGS = {
    "traffic both ways": CLIENT_OF_IT + "for i in range(100): client.write(Number(i))\n",
    "a stopped server and a client that comes back": CLIENT_OF_IT + "serving.stop()\n",
    "a client that was never closed, stuck in a handler": (
        "mine = tao.Registry()\n"
        "entered = threading.Event()\n"
        "mine.register(\n"
        "    2, Number.deserialize, lambda ctx, conn: (entered.set(), threading.Event().wait())\n"
        ")\n"
        "client = tao.connect(address, registry=mine)\n"
        "client.write(Number(1))\n"
        "entered.wait()\n"
    ),
    "timers that run": CLIENT_OF_IT + "client.run_every(0.001, lambda due, conn: None)\n"
    "serving.schedule(0.001, lambda due, conn: None)\n",
    "a stop by atexit": CLIENT_OF_IT + "import atexit\natexit.register(serving.stop)\n"
    "atexit.register(client.close)\n",
    "a stop in order": CLIENT_OF_IT + "client.close()\nassert serving.stop().clean\n",
    "a thread that serves": "threading.Thread(target=serving.serve_forever, daemon=True).start()\n",
    "a log that is on": "import loguru\nloguru.logger.enable('tao')\n"
    + CLIENT_OF_IT
    + "for i in range(100): client.write(Number(i))\nclient.write_frame(bytes([255] * 8))\n"
    "serving.start(('127.0.0.1', 0))\n",
    "sys.exit": CLIENT_OF_IT + "sys.exit(0)\n",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_exits(ending: str) -> None:
    """When the main thread ends, the program exits at once and without output."""
    source = "serving = server()\naddress = serving.start(('127.0.0.1', 0))\n" + ENDINGS[ending]
    with program(source) as child:
        try:
            output, errors = child.communicate(timeout=3 * PATIENCE)
        finally:
            child.kill()
    assert (output, child.returncode) == ("", 0)
    if "log" in ending:
        assert "listening" in errors
        assert "Traceback" not in errors
        assert "Fatal" not in errors
    else:
        assert errors == ""


# -- user code


class Unspeakable(Exception):
    """An exception with a text that raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def misdeeds() -> dict[str, Callable[[Any, Any], object]]:
    """Return things that a handler should not do."""

    def raises(error: BaseException) -> Callable[[Any, Any], object]:
        def handler(ctx: Any, conn: Any) -> None:
            raise error

        return handler

    def writes_after_close(ctx: Any, conn: Any) -> None:
        conn.close()
        conn.write(Number(1))

    def closes_everyone_and_waits(ctx: Any, conn: Any) -> None:
        conn.close()
        assert not conn.wait_closed(0.01), "it would wait for itself"

    def recurses(ctx: Any, conn: Any) -> None:
        recurses(ctx, conn)

    return {
        "exit": lambda ctx, conn: sys.exit(1),
        "interrupt": raises(KeyboardInterrupt()),
        "generator exit": raises(GeneratorExit()),
        "no memory": raises(MemoryError()),
        "would block": raises(WouldBlock("as if")),
        "closed": raises(ConnectionClosed("as if")),
        "unspeakable": raises(Unspeakable()),
        "recursion": recurses,
        "write after close": writes_after_close,
        "wait for oneself": closes_everyone_and_waits,
        "write rubbish": lambda ctx, conn: conn.write("no message"),
        "abort": lambda ctx, conn: conn._core.transport.abort(),
    }


@pytest.mark.parametrize("dispatch", ["inline", "pool", "auto"])
def test_misbehaving_handlers_do_not_affect_others(
    make_server: MakeServer, log_lines: list[Any], dispatch: str
) -> None:
    """It is reported, the connection stays open unless it was closed, and others are served."""
    errors = Seen()

    def on_error(conn: Any, error: BaseException) -> None:
        errors.add(conn.value("deed"))
        raise Unspeakable

    def on_close(conn: Any) -> None:
        sys.exit(2)

    server, address = make_server(dispatch=dispatch, on_error=on_error, on_close=on_close)
    deeds = misdeeds()
    names = list(deeds)
    server.handler(Number)(lambda ctx, conn: conn.write(ctx.message))

    @server.handler(Item)
    def misbehave(ctx: Any, conn: Any) -> None:
        name = names[ctx.message.index]
        conn.set_value("deed", name)
        deeds[name](ctx, conn)

    bad = [socket.create_connection(address, PATIENCE) for _ in deeds]
    with socket.create_connection(address, PATIENCE) as good:
        for index, sock in enumerate(bad):
            value = Item(index, 0).serialize()
            sock.sendall(struct.pack("<iI", 7, len(value)) + value)
            good.sendall(number(index))
            assert recv_exactly(good, 16) == number(index)
        told = set(names) - {"wait for oneself", "abort"}  # those two have the intended effect
        wait_until(lambda: told <= set(errors.items))
        for name, sock in zip(names, bad, strict=True):
            if name in ("write after close", "wait for oneself", "abort"):
                assert sock.recv(16) == b""
            else:
                sock.sendall(number(7))
                assert recv_exactly(sock, 16) == number(7), f"no service after {name}"
            sock.close()
        good.sendall(number(99))
        assert recv_exactly(good, 16) == number(99)
    assert server.stop().clean


def test_undelivered_messages_of_on_connect_are_counted(scene: Scene) -> None:
    """They are reported like any other messages that a lost connection did not deliver."""
    proxy = scene.serve(lambda ctx, conn: None)
    accepted: list[int] = []

    def introduce(conn: Any) -> bool:
        if not accepted:
            proxy.to_server.stall = True
            accepted.append(fill(conn))
            wait_until(lambda: proxy.connections)
            proxy.reset()
            wait_until(lambda: conn._core.send_queue.error)
            proxy.to_server.stall = False
        return True

    client = scene.client(
        queue_size=50,
        reply_timeout=0.05,
        reconnect=Reconnect(initial=0.001),
        on_connect=introduce,
    ).start()
    wait_until(lambda: client.reconnects)
    wait_until(lambda: client._core.counts().unsent)
    client.close()
    counts = client._core.counts()
    assert counts.messages_out + counts.unsent == accepted[0]
    assert "written by on_connect could not be sent" in str(scene.client_errors.items)


@pytest.mark.parametrize("ending", ["close", "stop"])
def test_a_slow_reader_that_keeps_sending_gets_everything(
    make_server: MakeServer, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that the peer sends after this side's end does not cause a reset that loses data."""
    monkeypatch.setattr("tao.connection.shutdown._LINGER", 0.01)
    server, address = make_server(queue_size=1000, drain_timeout=PATIENCE)
    with socket.create_connection(address, PATIENCE) as sock:
        wait_until(lambda: server.connections)
        (conn,) = server.connections
        item = Item(1, 20_000)
        for _ in range(100):
            conn.write(item)
        report = Seen()
        thread = threading.Thread(
            target=lambda: report.add(server.stop() if ending == "stop" else conn.close())
        )
        thread.start()
        wait_until(lambda: conn.closed)
        received = 0
        while data := sock.recv(50_000):
            received += len(data)
            with suppress(OSError):  # once it has all, and the other side is gone
                sock.sendall(text("still here"))
            time.sleep(0.002)  # slower than the checks after the end
        thread_ended = thread.join(PATIENCE) or not thread.is_alive()
    assert thread_ended
    assert received == 100 * (8 + len(item.serialize()))
    assert conn._core.in_flight == 0
    assert ending == "close" or report.items[0].clean


def test_a_peer_that_stops_reading_is_reported(make_server: MakeServer) -> None:
    """Messages that only the kernel has at the deadline make a stop unclean."""
    errors = Seen()
    server, address = make_server(
        queue_size=1000, on_error=lambda conn, error: errors.add(str(error))
    )
    with socket.create_connection(address, PATIENCE) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wait_until(lambda: server.connections)
        (conn,) = server.connections
        while not conn._core.transport.unacknowledged():
            conn.write(Item(1, 20_000), timeout=PATIENCE)
        report = server.stop(0.2)
    assert not report.clean
    assert report.abandoned[0][0] is conn
    assert "did not reach the peer" in errors.items[-1] or "could not be sent" in errors.items[-1]
