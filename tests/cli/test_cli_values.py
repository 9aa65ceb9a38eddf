"""Conversion of lines and messages for ``tao connect``, without sockets and threads."""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

import tao
from tao.cli.common import parse_address, parse_monitor, size_text
from tao.cli.values import Raw, RawCodec, deserializers_of, parse_line, value_text
from tao.errors import BadData
from tao.safe_text import printable


@pytest.mark.parametrize(
    ("line", "number", "value"),
    [
        ("1 hello there", 1, b"hello there"),
        ("1  two spaces ", 1, b" two spaces "),
        ("-7 hex:00Ff 10", -7, b"\x00\xff\x10"),
        ("2 hex:", 2, b""),
        ('2 json:{"a": [1, "ä"]}', 2, '{"a":[1,"ä"]}'.encode()),
        ('2 json:"\\ud800"', 2, b'"\\ud800"'),
        ("1 text:hex:00", 1, b"hex:00"),
        ("1 note: this", 1, b"note: this"),
        ("3", 3, b""),
        ("1 \udcff", 1, b"\xff"),
    ],
)
def test_a_line(line: str, number: int, value: bytes) -> None:
    """A line is a number, a space, and the value in one of four forms."""
    assert parse_line(line) == Raw(number, value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hello", "expected a message number from -2147483648 to 2147483647, not 'hello'"),
        ("2147483648 x", "not '2147483648'"),
        ("1 hex:0", "expected pairs of hexadecimal digits, not '0'"),
        ("1 json:{", "invalid JSON"),
        ("1 json:NaN", "invalid JSON"),
        ("1 json:1e999", "invalid JSON"),
        ("1 json:" + "9" * 5000, "invalid JSON"),
        ("1 json:" + "[" * 100_000, "the JSON is nested too deeply"),
        ('1 json:"\udcff"', "the JSON is not UTF-8"),
        ("9" * 5000, "not '9{60}'\\.\\.\\."),
    ],
)
def test_a_wrong_line(line: str, words: str) -> None:
    """The error says what is wrong."""
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=words):
        parse_line(line)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", "1 (0 bytes)"),
        (b"x", "1 (1 byte) x"),
        ("grün 木".encode(), "1 (9 bytes) grün 木"),
        (b"a\nb\tc", r"1 (5 bytes) a\nb\tc"),
        (b"\x1b[2J", "1 (4 bytes) hex:1b5b324a"),
        (b"\xff\xfe", "1 (2 bytes) hex:fffe"),
        (b"hex:00", "1 (6 bytes) text:hex:00"),
        (b"0123456789abc", "1 (13 bytes) 0123456789 ... and 3 more bytes"),
        (b"123456789\xe6\x9c\xa8", "1 (12 bytes) 123456789 ... and 2 more bytes"),
        (b"\0" * 11, "1 (11 bytes) hex:" + "00" * 10 + " ... and 1 more bytes"),
    ],
)
def test_a_message(value: bytes, text: str) -> None:
    """Text is shown as text, other bytes as hex, without control characters, up to a limit."""
    assert value_text(Raw(1, value), {}, 10) == text


@given(some.binary(max_size=50))
def test_a_shown_value_can_be_typed(value: bytes) -> None:
    """Parsing a shown value returns the same bytes, unless it contains line breaks."""
    shown = value_text(Raw(5, value), {}, 100).partition(") ")[2]
    if not set(value) & set(b"\n\r\t") and not value.endswith(b" "):
        assert parse_line(f"5 {shown}") == Raw(5, value)


class Plain:
    message_number = 4

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def deserialize(cls, data: bytes) -> Plain:
        return cls(data.decode())


class Told(Plain):
    message_number = 5

    def __repr__(self) -> str:
        return f"<{self.text}>"


def test_a_message_of_a_known_class() -> None:
    """The repr of the message is shown, or its attributes, or why it cannot be decoded."""
    known = {4: Plain.deserialize, 5: Told.deserialize, 6: int}
    assert value_text(Raw(4, b"hi"), known, 99) == "4 (2 bytes) hi = Plain(text='hi')"
    assert value_text(Raw(5, b"a\n"), known, 99) == r"5 (2 bytes) a\n = <a\n>"
    assert value_text(Raw(6, b"7"), known, 99) == "6 (1 byte) 7 = 7"
    assert "hex:ff = cannot be decoded: UnicodeDecodeError: " in value_text(
        Raw(4, b"\xff"), known, 99
    )
    assert value_text(Raw(5, b"x" * 2000), known, 1).endswith("xxx...")


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, RecursionError])
def test_a_message_that_cannot_be_decoded(error: type[BaseException]) -> None:
    """Any exception of user code is shown, even if its text raises."""

    class Unprintable(error):  # type: ignore[valid-type, misc]
        def __str__(self) -> str:
            raise ValueError

    class Message:
        def __repr__(self) -> str:
            raise Unprintable

    def fail(value: bytes) -> Any:
        raise Unprintable

    for deserialize in (fail, lambda value: Message()):
        shown = value_text(Raw(1, b"x"), {1: deserialize}, 10)
        assert shown.startswith("1 (1 byte) x = cannot be decoded: Unprintable: ")


def test_modules_with_proxies() -> None:
    """Attributes of a module may raise when they are read, like a proxy outside a request."""

    class Proxy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("working outside of a request")

    module = ModuleType("proxies")
    registry = tao.Registry()
    registry.register(5, bytes)
    module.__dict__.update(request=Proxy(), kind=type("Kind", (), {}), registry=registry)
    assert deserializers_of(module)[5] is bytes


@given(some.text())
def test_any_line(line: str) -> None:
    """Every line is either parsed or refused with a reason."""
    for text in (line, f"1 {line}", f"1 json:{line}", f"1 hex:{line}"):
        try:
            assert isinstance(parse_line(text), Raw)
        except (ValueError, argparse.ArgumentTypeError) as error:
            assert str(error)


def test_the_deserializers_of_a_module() -> None:
    """They come from classes, registries and objects with a registry; heartbeats are left out."""
    module: Any = ModuleType("some_messages")
    module.Plain, module.number, module.HeartbeatMessage = Plain, 5, tao.HeartbeatMessage
    module.registry = tao.Registry()
    module.registry.register(-1, bytes)
    module.server = tao.Server(registry=tao.Registry())
    module.server.registry.register(-2, int)
    found = deserializers_of(module)
    assert {number: found[number] for number in (-1, -2)} == {-1: bytes, -2: int}
    assert found[4] == Plain.deserialize and 0 not in found


def test_frames_in_pieces() -> None:
    """Messages are complete and in order, however the stream is cut; the batch stays empty."""
    came: list[Raw] = []
    codec = RawCodec(came.append, lambda: None)
    decoder, batch = codec.decoder(tao.Registry()), []
    messages = [Raw(1, b"hello"), Raw(-2, b""), Raw(0, b"12345678")]
    for byte in b"".join(map(codec.encode, messages)):
        decoder.feed(bytes([byte]), batch)
    assert came == messages and batch == []
    with pytest.raises(BadData, match="message 3 announces 16777216 bytes, the limit is 8388608"):
        decoder.feed(b"\3\0\0\0\0\0\0\1", batch)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("example.org:80", ("example.org", 80)),
        (":80", ("127.0.0.1", 80)),
        ("80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("./x.sock", "./x.sock"),
    ],
)
def test_an_address(text: str, address: object) -> None:
    """An address is a host and a port, a port, or a path."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["http://127.0.0.1:8080", "http://127.0.0.1:8080/", ":8080"])
def test_the_address_of_a_monitor(text: str) -> None:
    """The address may be given as `tao serve` prints it."""
    assert parse_monitor(text) == ("127.0.0.1", 8080)


def test_escaped_text_and_sizes() -> None:
    """Control characters are escaped; sizes have units."""
    assert printable("a\x1b[1mb\u202ec") == r"a\x1b[1mb\u202ec"
    assert [size_text(count) for count in (0, 999, 1536, 5e12)] == [
        *("0 B", "999 B", "1.5 KiB", "4.5 TiB")
    ]
