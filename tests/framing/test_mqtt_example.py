"""The MQTT example with paho-mqtt."""

from __future__ import annotations

import queue
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from examples.mqtt.packets import matches
from tests.programs import Program
from tests.support import PATIENCE, recv_exactly

mqtt: Any = pytest.importorskip("paho.mqtt.client")


class Client:
    """A client whose events a test can wait for."""

    def __init__(self, port: int, keepalive: int = 60, will: tuple[Any, ...] = ()) -> None:
        self.came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        version = mqtt.CallbackAPIVersion.VERSION2
        self.paho = paho = mqtt.Client(version, reconnect_on_failure=False)
        if will:
            paho.will_set(*will)
        paho.on_connect = lambda *args: self.came.put(f"connected: {args[3]}")
        paho.on_subscribe = lambda *args: self.came.put([str(each) for each in args[3]])
        paho.on_unsubscribe = lambda *args: self.came.put("unsubscribed")
        paho.on_message = lambda client, data, message: self.came.put(
            (message.topic, message.payload, message.retain)
        )
        paho.connect("127.0.0.1", port, keepalive)
        paho.loop_start()
        assert self.next() == "connected: Success"

    def next(self) -> Any:
        return self.came.get(timeout=PATIENCE)

    def subscribe(self, *patterns: str) -> None:
        self.paho.subscribe([(each, 0) for each in patterns])
        assert self.next() == ["Granted QoS 0"] * len(patterns)

    def stop(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()
        self.paho._reset_sockets()  # which it does by itself only when it is collected


Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of the running example."""
    with Program("examples.mqtt.server", "--port", 0) as server:
        yield int(server.prints(r"listening at 127\.0\.0\.1 port (\d+)")[1])
        assert server.interrupt() == 0


@pytest.fixture
def connect(port: int) -> Iterator[Connect]:
    """A function that connects a client; all are disconnected afterwards."""
    clients: list[Client] = []

    def make(**options: Any) -> Client:
        clients.append(Client(port, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()


def test_publish_and_subscribe(connect: Connect) -> None:
    """A message reaches those who have subscribed to its topic, in order, whatever its size."""
    one, other, sender = connect(), connect(), connect()
    one.subscribe("pumps/+/flow")
    other.subscribe("pumps/#", "valves")
    for number, topic in enumerate(["pumps/1/flow", "pumps/1/heat", "valves", "pumps/2/flow"]):
        sender.paho.publish(topic, b"%d" % number * 100_000)
    assert [one.next()[1][:1] for _ in range(2)] == [b"0", b"3"]
    messages = [other.next() for _ in range(4)]
    assert [(topic, payload[:1]) for topic, payload, _ in messages] == [
        ("pumps/1/flow", b"0"), ("pumps/1/heat", b"1"), ("valves", b"2"), ("pumps/2/flow", b"3")
    ]  # fmt: skip
    one.paho.unsubscribe("pumps/+/flow")
    assert one.next() == "unsubscribed"
    one.subscribe("after")
    sender.paho.publish("pumps/1/flow", b"")
    sender.paho.publish("after", b"it")
    assert one.next() == ("after", b"it", False)


def test_retained_messages(connect: Connect) -> None:
    """Later subscribers get the last one of a topic, until an empty one deletes it."""
    sender, early = connect(), connect()
    early.subscribe("state")
    for payload in (b"on", b"off"):
        sender.paho.publish("state", payload, retain=True)
        assert early.next() == ("state", payload, False)
    late = connect()
    late.subscribe("#")
    assert late.next() == ("state", b"off", True)
    sender.paho.publish("state", b"", retain=True)
    assert early.next() == ("state", b"", False)
    latest = connect()
    latest.subscribe("state", "end")
    sender.paho.publish("end", b"")
    assert latest.next() == ("end", b"", False)


def test_wills(connect: Connect) -> None:
    """The will of a client is published if it vanishes, but not if it disconnects."""
    watcher = connect()
    watcher.subscribe("wills")
    connect(will=("wills", b"polite")).stop()
    rude = connect(will=("wills", b"rude"))
    rude.paho._sock.shutdown(socket.SHUT_RDWR)
    assert watcher.next() == ("wills", b"rude", False)


def connect_packet(keep_alive: int, level: int = 4) -> bytes:
    """Return a CONNECT of the client ``x`` with the will ``silent`` for the topic ``wills``."""
    body = b"\0\4MQTT" + struct.pack(">BBH", level, 6, keep_alive) + b"\0\1x\0\5wills\0\6silent"
    return bytes([0x10, len(body)]) + body


def test_keep_alive(connect: Connect, port: int) -> None:
    """A client that is silent for one and a half keep-alive intervals is disconnected."""
    watcher = connect(keepalive=1)
    watcher.subscribe("wills")
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(connect_packet(1))
        assert recv_exactly(sock, 4) == b"\x20\2\0\0"
        sock.sendall(b"\xc0\0")
        assert recv_exactly(sock, 2) == b"\xd0\0"
        assert sock.recv(1) == b""
    assert watcher.next() == ("wills", b"silent", False)  # whose pings kept it


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\xc0\0", b""),  # not CONNECT
        (connect_packet(0) * 2, b"\x20\2\0\0"),
        (connect_packet(0, level=5), b"\x20\2\0\1"),
        (connect_packet(0) + b"\x32\6\0\1a\0\1x", b"\x20\2\0\0"),  # QoS 1
        (connect_packet(0) + b"\x82\3\0\1\xff", b"\x20\2\0\0"),
        (b"\x10\xff\xff\xff\x7f", b""),  # of 256 MiB
    ],
)
def test_packets_that_are_refused(port: int, data: bytes, answer: bytes) -> None:
    """The connection is closed, after an answer where the protocol has one."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(data)
        received = b""
        try:
            while piece := sock.recv(100):
                received += piece
        except ConnectionResetError:
            pass
        assert received == answer


def test_topic_filters() -> None:
    """The filters match as in the examples of MQTT 3.1.1, section 4.7."""
    for pattern, topics, others in (
        ("sport/tennis/player1/#", ["sport/tennis/player1", "sport/tennis/player1/x/y"], ["sport"]),
        ("sport/+", ["sport/", "sport/x"], ["sport", "sport/x/y"]),
        ("+/+", ["/finance"], ["finance"]),
        ("/+", ["/finance"], ["a/b"]),
        ("#", ["sport", "a/b"], ["$SYS/x"]),
        ("$SYS/#", ["$SYS/x"], ["SYS/x"]),
    ):
        assert all(matches(pattern, each) for each in topics), pattern
        assert not any(matches(pattern, each) for each in others), pattern
