"""How two taos find out that they answer requests, and how others are left alone."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.connection.connection import core_of
from tao.connection.requests import negotiation
from tao.errors import RequestsNotSupported, RequestTimeout
from tao.testing import Clock
from tao.testing.fault_proxy import FaultProxy, Faults
from tao.wire.capabilities import ANSWER, ASK, REQUESTS, capability_frame
from tao.wire.codec import TypeLengthValueCodec, TypeLengthValueDecoder
from tao.wire.envelope import LEAVE_FRAME
from tests.asking import Peers, agree, echo, in_thread, known, read_asked, read_other
from tests.ends import End, Number, Seen, Text, frame, text
from tests.support import PATIENCE, wait_until

OpenEnd = Callable[..., End]
READERS = pytest.mark.parametrize("readers", ["own", "shared"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a short silence for an answer."""
    monkeypatch.setattr(negotiation, "_PATIENCE", 0.05)


def nonce_of(value: bytes) -> int:
    nonce: int = struct.unpack_from("<Q", value, 24)[0]
    return nonce


def test_a_plain_connection_sends_not_one_byte_more(open_end: OpenEnd) -> None:
    """Neither when it begins, nor when it writes, answers and ends."""
    registry = known()
    registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    end = open_end(registry=registry)
    end.send(text("hi"))
    assert end.read(10) == text("hi")
    end.conn.write(Text("bye"))
    threading.Thread(target=end.conn.close, name="test-close").start()
    assert end.read_to_end() == text("bye")


def test_the_first_request_asks_once(open_end: OpenEnd) -> None:
    """Byte by byte; the requests follow the answer."""
    end = open_end()
    futures = [end.conn.request_async(Text(str(i))) for i in range(3)]
    number, value = end.read_frame()
    magic = b"\x93TAO\r\n\x1a\xff"
    assert (number, value[8:24]) == (0, magic + b"\1\1\0\0\1\0\0\0")
    end.send(capability_frame(0, ANSWER, REQUESTS, nonce_of(value)))
    assert [read_asked(end).value for _ in futures] == [b"0", b"1", b"2"]
    assert all(future.cancel() for future in futures)


def test_a_client_may_ask_at_once() -> None:
    """With ``requests=True`` the first request need not wait."""
    with Peers(requests=True) as peers:
        wait_until(lambda: core_of(peers.client).exchange.negotiation.supported)
        assert core_of(peers.conn).exchange.negotiation.supported


@pytest.mark.parametrize("answer", ["", "echo", "other nonce", "no such capability"])
def test_a_peer_that_does_not_answer_gets_no_request(
    open_end: OpenEnd, impatient: None, answer: str
) -> None:
    """It sees nothing but a heartbeat, and an echo of that is no answer."""
    end = open_end()
    result = in_thread(lambda: end.conn.request(Text("hi")))
    _, value = end.read_frame()
    nonce = nonce_of(value)
    end.send(
        {
            "": b"",
            "echo": struct.pack("<iI", 0, 32) + value,
            "other nonce": capability_frame(0, ANSWER, REQUESTS, nonce ^ 1),
            "no such capability": capability_frame(0, ANSWER, 0, nonce),
        }[answer]
    )
    with pytest.raises(RequestsNotSupported):
        result()
    with pytest.raises(RequestsNotSupported):  # which is remembered
        end.conn.request(Text("hi"))
    end.conn.write(Text("on"))
    assert end.read_frame() == (1, b"on")


def test_a_late_answer_lifts_the_refusal(open_end: OpenEnd, impatient: None) -> None:
    """And the next request is sent."""
    end = open_end()
    future = end.conn.request_async(Text("hi"))
    _, value = end.read_frame()
    assert isinstance(future.exception(PATIENCE), RequestsNotSupported)
    end.send(capability_frame(0, ANSWER, REQUESTS, nonce_of(value)))
    wait_until(lambda: core_of(end.conn).exchange.negotiation.supported)
    future = end.conn.request_async(Text("again"))
    assert read_asked(end).value == b"again"
    assert future.cancel()


@pytest.mark.parametrize("answered", [0, -1])
def test_a_refusal_is_forgotten_after_a_while(open_end: OpenEnd, answered: int) -> None:
    """Then the peer is asked again; its answer to whichever question counts."""
    nonces = []
    with Clock() as clock:
        end = open_end(heartbeat=None)
        for _ in range(6):  # more than are answered
            future = end.conn.request_async(Text("hi"), timeout=1000)
            nonces.append(nonce_of(end.read_frame()[1]))
            clock.advance(2)
            assert isinstance(future.exception(PATIENCE), RequestsNotSupported)
            clock.advance(30)
    end.send(capability_frame(0, ANSWER, REQUESTS, nonces[answered]))
    wait_until(lambda: core_of(end.conn).exchange.negotiation.supported)
    future = end.conn.request_async(Text("again"))
    assert read_asked(end).value == b"again"
    assert future.cancel()


def test_a_request_that_ends_before_is_a_timeout(open_end: OpenEnd) -> None:
    """It does not say that the peer answers no requests; nothing was sent."""
    end = open_end()
    with pytest.raises(RequestTimeout) as caught:
        end.conn.request(Text("hi"), timeout=0.01)
    assert not caught.value.sent


def test_a_question_is_answered_four_times(open_end: OpenEnd) -> None:
    """At most; the answer repeats the nonce, and tells what this side can."""
    end = open_end(registry=known())
    asks = [capability_frame(0, ASK, 0, nonce) for nonce in range(6)]
    end.send(b"".join(asks))
    answers = [end.read_frame() for _ in range(4)]
    assert [value[8:] for _, value in answers] == [
        b"\x93TAO\r\n\x1a\xff" + b"\1\2\0\0\1\0\0\0" + struct.pack("<Q", nonce)
        for nonce in range(4)
    ]
    end.conn.write(Text("end"))
    assert read_other(end) == (1, b"end")


def test_who_cannot_leave_stays(open_end: OpenEnd) -> None:
    """A server, and a client that does not connect again, go on as if they were not told to."""
    end = open_end(registry=known())
    end.send(LEAVE_FRAME)
    future = end.conn.request_async(Text("hi"), timeout=PATIENCE)
    agree(end)
    assert read_asked(end).value == b"hi"
    end.conn.write(Text("on"))
    assert read_other(end) == (1, b"on")
    assert future.cancel()


def test_a_busy_server_answers() -> None:
    """Its only worker is busy, and the inbox of the connection is not empty."""
    leave, begun = threading.Event(), Seen()
    with Peers(server={"workers": 1}) as peers:

        @peers.server.handler(Text, dispatch="pool")
        def wait(ctx: Any, conn: Any) -> None:
            begun.add(ctx)
            leave.wait(PATIENCE)

        peers.client.write(Text("a"))
        peers.client.write(Text("b"))
        begun.wait()
        future = peers.client.request_async(Number(1))
        wait_until(lambda: core_of(peers.client).exchange.requests.in_flight)
        leave.set()
        assert isinstance(future.exception(PATIENCE), tao.NoHandler)


class Busy:
    """A server whose only worker is busy, whose inbox is full, and which therefore reads nothing.

    Args:
        readers: the option of both ends.
    """

    def __init__(self, readers: Any) -> None:
        self.leave = threading.Event()
        options: Any = {"readers": readers, "heartbeat": None}
        server = {**options, "workers": 1, "queue_size": 2}
        self.peers = Peers(**options, server=server)
        self.peers.server.handler(Number)(echo)
        self.peers.server.handler(Text, dispatch="pool")(
            lambda ctx, conn: self.leave.wait(PATIENCE)
        )
        wait_until(
            lambda: self.peers.client.write(Text("a")) or core_of(self.peers.conn).gate.paused
        )

    def ask(self) -> Any:
        """Ask, and return when the question for capabilities has been sent."""
        sent = core_of(self.peers.client).send_queue.frames_sent
        future = self.peers.client.request_async(Number(1), timeout=1000)
        wait_until(lambda: core_of(self.peers.client).send_queue.frames_sent > sent)
        return future

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave.set()
        self.peers.close()


@READERS
def test_a_server_with_a_full_inbox_is_waited_for(readers: Any) -> None:
    """Its silence says nothing while it may still be busy with earlier messages."""
    with Clock() as clock, Busy(readers) as busy:
        future = busy.ask()
        for _ in range(14):
            clock.advance(2)
        assert not future.done()
        busy.leave.set()
        assert future.result(PATIENCE).value == 1


@READERS
def test_a_server_that_is_busy_for_long_is_used_when_it_answers(readers: Any) -> None:
    """Half a minute of silence is a refusal, and any later answer lifts it."""
    with Clock() as clock, Busy(readers) as busy:
        for _ in range(6):  # more than are answered
            future = busy.ask()
            for _ in range(16):
                clock.advance(2)
            assert isinstance(future.exception(PATIENCE), RequestsNotSupported)
            clock.advance(30)
        busy.leave.set()
        wait_until(lambda: core_of(busy.peers.client).exchange.negotiation.supported)
        assert busy.peers.client.request(Number(1)).value == 1


def test_a_peer_that_has_replied_is_not_busy(open_end: OpenEnd) -> None:
    """Two seconds are enough for one that has sent as many messages as it got."""
    with Clock() as clock:
        seen, registry = Seen(), known()
        registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
        end = open_end(registry=registry, heartbeat=None)
        for _ in range(3):
            end.conn.write(Text("hi"))
            end.send(frame(*end.read_frame()))
        seen.wait(3)
        future = end.conn.request_async(Text("hi"), timeout=1000)
        end.read_frame()
        clock.advance(2)
        assert isinstance(future.exception(PATIENCE), RequestsNotSupported)


def test_a_long_way_is_no_refusal(make_server: Any) -> None:
    """150 ms there and 150 ms back."""
    server, address = make_server(registry=known())
    server.handler(Number)(echo)
    with (
        FaultProxy(address, to_server=Faults(delay=0.15), to_client=Faults(delay=0.15)) as proxy,
        tao.connect(proxy.address, registry=known()) as client,
    ):
        assert client.request(Number(1)).value == 1


def test_the_go_original_is_not_disturbed(open_end: OpenEnd, impatient: None) -> None:
    """It gets one heartbeat, of which it reads 8 bytes; all else passes, until it resets."""
    seen, registry = Seen(), known()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    end = open_end(registry=registry)
    future = end.conn.request_async(Text("hi"))
    others = []
    for turn in range(20):
        end.conn.write(Text(str(turn)))
        while (received := end.read_frame())[0] != Text.message_number:
            others.append((received[0], len(received[1])))
        # Its heartbeats come from a buffer that all its connections share.
        end.send(frame(0, bytes(8 + 8 * (turn % 2))) + frame(*received))
    assert seen.wait(20) == [str(turn) for turn in range(20)]
    assert others == [(0, 32)]
    assert isinstance(future.exception(PATIENCE), RequestsNotSupported)
    assert end.conn.close_reason is None
    assert core_of(end.conn).counts().undefined == 0
    end.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.peer.close()
    assert end.conn.wait_closed(PATIENCE)


class _OldDecoder(TypeLengthValueDecoder):
    """Ignores what is tao's own, as the decoders before it did."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, None if name == "own" else value)


class _OldCodec(TypeLengthValueCodec):
    def decoder(self, registry: Any) -> TypeLengthValueDecoder:
        return _OldDecoder(registry, self.max_bytes)


def test_an_older_tao_goes_on(impatient: None) -> None:
    """It takes the question for a heartbeat, and its own messages come as ever."""
    with Peers(server={"codec": _OldCodec()}) as peers:
        peers.server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
        seen = Seen()
        peers.client.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
        with pytest.raises(RequestsNotSupported):
            peers.client.request(Text("hi"))
        peers.client.write(Text("plain"))
        assert seen.wait() == ["plain"]
        assert core_of(peers.conn).counts().undefined == 0


def test_a_server_that_speaks_something_else_is_left_alone(impatient: None) -> None:
    """It gets a heartbeat that it may echo byte by byte."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tao.connect(listener.getsockname(), registry=known()) as client,
        listener.accept()[0] as peer,
    ):
        result = in_thread(lambda: client.request(Text("hi")))
        for _ in range(40):
            peer.sendall(peer.recv(1))
        with pytest.raises(RequestsNotSupported):
            result()
