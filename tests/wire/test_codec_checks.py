"""Mistakes in codecs: found when a server or client is created, or reported when they occur."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao import framing as f
from tao.client.client import ClientConn
from tao.errors import BadData, NotRegistered
from tao.server.server import Server, server_core_of
from tao.wire.codec import Batch, Codec, TypeLengthValueCodec
from tao.wire.message import Registry
from tests.ends import End, MakeServer, Seen, Text, text
from tests.support import PATIENCE, recv_exactly, wait_until

OpenEnd = Callable[..., End]


class Lines:
    """A minimal codec for lines of text; the tests break one part of it."""

    def __init__(self, registry: Any = None) -> None:
        self.rest = b""

    def encode(self, message: Any) -> Any:
        return message.serialize() + b"\n"

    def decoder(self, registry: Registry) -> Any:
        return type(self)()

    def feed(self, data: bytes, batch: Batch) -> Any:
        *lines, self.rest = (self.rest + data).split(b"\n")
        batch += [(1, Text.deserialize(line)) for line in lines]

    @property
    def pending(self) -> Any:
        return len(self.rest)


def spoiled(**attributes: Any) -> Lines:
    """Return a codec, and decoder, with some methods replaced."""
    codec: Lines = type("Spoiled", (Lines,), attributes)()
    return codec


def decoding(decoder: Any) -> Lines:
    """Return a codec with a ``decoder`` that returns this."""
    return spoiled(decoder=lambda self, registry: decoder)


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises."""

    def fail(*args: Any) -> Any:
        raise error

    return fail


def generate(self: Any, data: bytes, batch: Batch) -> Iterator[Any]:
    yield from batch


class Empty(Codec):
    pass


class Half(Codec):
    def encode(self, message: Any) -> bytes:
        return b""


WRONG = [
    (spoiled(encode=None), "codec must have encode()"),
    (spoiled(encode=5), "codec must have encode()"),
    (spoiled(encode=lambda self: b""), "cannot be called as codec.encode(message)"),
    (spoiled(encode=lambda self, message, more: b""), "cannot be called as codec.encode(message)"),
    (spoiled(encode=Codec.encode), "codec must have encode()"),
    (spoiled(decoder=None), "codec must have decoder()"),
    (spoiled(decoder=lambda self: None), "cannot be called as codec.decoder(registry)"),
    (spoiled(decoder=Codec.decoder), "codec must have decoder()"),
    (spoiled(heartbeat=b""), "codec.heartbeat must be callable"),
    (spoiled(heartbeat=lambda self: b""), "cannot be called as codec.heartbeat(conn)"),
    (decoding(None), "Spoiled.decoder() must return an object with feed(data, batch), not None"),
    (decoding("feed"), "must return an object with feed(data, batch), not 'feed'"),
    (decoding(Lines), "feed cannot be called as feed(data, batch): missing a required argument"),
    (spoiled(feed=5), "must return an object with feed(data, batch)"),
    (spoiled(feed=lambda self, data: None), "cannot be called as feed(data, batch)"),
    (spoiled(feed=lambda self, data, batch: [1]), "Spoiled.feed() must append to its batch and"),
    (spoiled(feed=generate), "generate is a generator function"),
    (spoiled(end=5), "end must be callable, not 5"),
    (spoiled(end=lambda self, data: None), "cannot be called as end()"),
    (spoiled(pending=lambda self: 3), "pending of Spoiled must be an int"),
    (spoiled(pending=None), "pending of Spoiled must be an int"),
    (Lines, "codec must be an object, not a class; write Lines()"),
    (functools.partial(Lines), "codec must have encode()"),
    (object(), "codec must have encode()"),
    (type("Tlv", (TypeLengthValueCodec,), {"decoder": lambda self: 1})(), "codec.decoder(registry"),
]


@pytest.mark.parametrize(("codec", "why"), WRONG, ids=[why for _, why in WRONG])
def test_a_mistake_is_found_at_creation(codec: Any, why: str) -> None:
    """Servers, clients and their registries find it; the error names the method."""
    for make in (Server, functools.partial(ClientConn, ("127.0.0.1", 1))):
        with pytest.raises(TypeError) as caught:
            make(codec=codec)
        assert why in str(caught.value)


@pytest.mark.parametrize("kind", [Empty, Half])
def test_a_codec_without_its_methods_cannot_be_made(kind: Any) -> None:
    """Python's error names the missing methods."""
    with pytest.raises(TypeError, match=r"abstract.*decoder"):
        kind()


def test_an_exception_of_decoder_is_raised_at_once() -> None:
    """It is raised when a server or client is created."""
    codec = spoiled(decoder=raising(ZeroDivisionError("of the codec")))
    with pytest.raises(ZeroDivisionError, match="of the codec"):
        Server(codec=codec)


def test_a_decoder_may_need_later_declarations() -> None:
    """Before the start, an unknown message is not an error."""
    codec = spoiled(decoder=lambda self, registry: Lines(registry.lookup(1)))
    server = Server(codec=codec, registry=Registry())
    with pytest.raises(NotRegistered, match="number 1"):
        server.start(("127.0.0.1", 0))
    server.registry.handler(Text)(lambda ctx, conn: None)
    with server:
        server.start(("127.0.0.1", 0))


@pytest.mark.parametrize(
    "codec",
    [
        Lines(),
        spoiled(feed=raising(IndexError("of no bytes"))),
        spoiled(pending=True, end=lambda self: None, heartbeat=lambda self, now: b""),
        spoiled(encode=staticmethod(lambda message: b""), feed=lambda *args: None),
        TypeLengthValueCodec(),
    ],
)
def test_valid_codecs_are_accepted(codec: Any) -> None:
    """A codec needs no base class, and a decoder need not accept an empty piece."""
    assert server_core_of(Server(codec=codec)).settings.codec is codec


# -- mistakes that show only during use


@pytest.mark.parametrize("frame", [None, "text", 5, [b"line"], Text("")])
def test_the_result_of_encode_is_checked(open_end: OpenEnd, frame: Any) -> None:
    """``write`` and ``broadcast`` raise, and nothing is sent."""
    codec = spoiled(encode=lambda self, message: frame if message is frame else b"right\n")
    end = open_end(codec=codec)
    name = type(frame).__name__
    with pytest.raises(TypeError, match=rf"Spoiled.encode\(\) must return bytes, not {name}$"):
        end.conn.write(frame)
    if end.server is not None:
        with pytest.raises(TypeError, match=r"Spoiled.encode\(\) must return bytes"):
            end.server.broadcast(frame)
    end.conn.write(Text("right"))
    assert end.read(6) == b"right\n"


def test_a_mutable_frame_is_copied(open_end: OpenEnd) -> None:
    """Changes after ``encode`` has returned it do not affect what is sent."""
    frames = [bytearray(b"one\n"), memoryview(bytearray(b"two\n"))]
    end = open_end(codec=spoiled(encode=lambda self, message: message))
    for frame in frames:
        end.conn.write(frame)  # type: ignore[arg-type]
        frame[:] = b"not\n"
    assert end.read(8) == b"one\ntwo\n"


class Own:
    """Overrides ``encode`` of one of tao's codecs, and returns what it is given."""

    def encode(self, message: Any, header: Any = None) -> Any:
        return message


LENGTH, BODY = f.Length("u8", covers="body"), f.Body()
OWN_CODECS = {
    "Frame": lambda: type("OwnFrame", (Own, f.Frame), {})(LENGTH, BODY, max_bytes=99),
    "Choice": lambda: type("OwnChoice", (Own, f.Choice), {})(
        f.Frame(f.Magic(b"x"), LENGTH, BODY, max_bytes=99)
    ),
    "Lines": lambda: type("OwnLines", (Own, f.Lines), {})(),
    "Preamble": lambda: type("OwnPreamble", (Own, f.Preamble), {})(b"x", f.Lines()),
    "Preamble, around its own": lambda: f.Preamble(b"x", spoiled(encode=Own.encode)),
    "an attribute": lambda: with_encode(f.Lines()),
    "an attribute of a Preamble": lambda: with_encode(f.Preamble(b"x", f.Lines())),
}


def with_encode(codec: Any) -> Any:
    codec.encode = lambda message, header=None: message
    return codec


@pytest.mark.parametrize("kind", OWN_CODECS)
def test_an_own_encode_is_checked_whatever_it_is_based_on(open_end: OpenEnd, kind: str) -> None:
    """What it returns is copied if it may change, and refused if it is not bytes."""
    end = open_end(codec=OWN_CODECS[kind]())
    frame: Any = bytearray(b"right\n")
    for wrong in ("text", None, 5):
        with pytest.raises(TypeError, match=r"encode\(\) must return bytes, not"):
            end.conn.write(wrong)  # type: ignore[arg-type]
    assert type(end.conn._encode(frame)) is bytes
    end.conn.write(frame)
    frame[:] = b"wrong\n"
    assert end.read(6).endswith(b"right\n")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda batch: batch, "must append to its batch and return None, not a list"),
        (lambda batch: batch.append("ab"), "must append tuples of a number and a message, not a s"),
        (lambda batch: batch.append((1,)), "must append tuples of a number and a message, not a t"),
        (lambda batch: batch.append(([], 2)), "must append tuples of a number and a message"),
        (lambda batch: batch.append(None), "a number and a message, not a NoneType"),
        (lambda batch: batch.append({1: "a", 2: "b"}), "a number and a message, not a dict"),
        (lambda batch: batch.append({1, 2}), "a number and a message, not a set"),
    ],
)
def test_the_results_of_feed_are_checked(
    open_end: OpenEnd, log_lines: list[Any], wrong: Callable[[Batch], Any], why: str
) -> None:
    """The connection is closed with an error, after the messages before it."""
    registry, seen, errors = Registry(), Seen(), Seen()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))

    def feed(self: Any, data: bytes, batch: Batch) -> Any:
        Lines.feed(self, data, batch)
        return wrong(batch) if data else None

    options = {"registry": registry, "on_error": lambda conn, error: errors.add(error)}
    end = open_end(codec=spoiled(feed=feed), **options)
    end.send(b"one\ntwo\n")
    assert seen.wait(2) == ["one", "two"]
    assert why in str(errors.wait()[0]) and isinstance(errors.items[0], BadData)
    wait_until(lambda: why in str(end.conn.close_reason))
    assert [each["level"].name for each in log_lines if why in each["message"]] == ["ERROR"]


def test_an_exception_takes_precedence_over_wrong_results(open_end: OpenEnd) -> None:
    """If a decoder fails in both ways, the exception is reported."""

    def feed(self: Any, data: bytes, batch: Batch) -> Any:
        batch += [(1, Text("good")), "bad"]  # type: ignore[list-item]
        raise BadData("no such line")

    seen, registry = Seen(), Registry()
    registry.handler(Text)(lambda ctx, conn: seen.add(ctx.message.text))
    end = open_end(codec=spoiled(feed=feed), registry=registry)
    end.send(b"x")
    assert seen.wait() == ["good"]
    wait_until(lambda: end.conn.close_reason == "protocol error: no such line")


def test_an_invalid_heartbeat_frame_is_reported(open_end: OpenEnd, log_lines: list[Any]) -> None:
    """It is passed to ``on_error``, and the connection stays open."""
    errors = Seen()
    codec = spoiled(heartbeat=lambda self, now: "beat")
    end = open_end(codec=codec, heartbeat=0.01, on_error=lambda conn, error: errors.add(error))
    assert str(errors.wait()[0]) == "Spoiled.heartbeat() must return bytes, not str"
    end.conn.write(Text("there"))
    assert end.read(6) == b"there\n"


def test_a_decoder_that_fails_later_closes_its_connection(
    make_server: MakeServer, log_lines: list[Any]
) -> None:
    """The error is logged with a traceback, and the next connection is served."""
    failures: list[BaseException] = []
    decode = lambda self, registry: raising(failures.pop())() if failures else Lines()  # noqa: E731
    server, address = make_server(codec=spoiled(decoder=decode))
    server.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    failures.append(RuntimeError("of the codec"))
    with socket.create_connection(address, PATIENCE) as sock:
        assert sock.recv(1) == b""
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(b"hello\n")
        assert recv_exactly(sock, 6) == b"hello\n"
    errors = [each["exception"].type for each in log_lines if each["level"].name == "ERROR"]
    assert errors == [RuntimeError]


def test_the_default_codec_is_not_slowed_down(open_end: OpenEnd) -> None:
    """Its methods are called directly, without checks."""
    end = open_end(on_message=lambda message, conn: None)
    codec = end.conn._application.codec
    assert end.conn._encode == codec.encode
    assert type(end.conn._application.decoder) is type(codec.decoder(Registry()))
    end.send(text("hello"))
