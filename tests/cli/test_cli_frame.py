"""``tao frame``, and ``--codec`` of ``tao connect`` and ``tao bench``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import tao
from tao.cli.codecs import ShownCodec, find_codec, parse_any_number, parse_header
from tao.cli.common import WrongCall
from tao.cli.main import main
from tao.cli.values import Raw
from tao.framing import presets
from tests.ends import MakeServer
from tests.programs import LONG

PROTOCOL = """
from tao import framing as f
kind = f.Field("kind", "text1", number=True)
frame = f.Frame(kind, f.Length("u8", "body"), f.Body(), max_bytes=99)
def make():
    return frame
def fails():
    raise ValueError("no")
"""


@pytest.fixture(autouse=True)
def protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with a codec, where modules are searched."""
    (tmp_path / "own_protocol.py").write_text(PROTOCOL, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


class Read:
    """A Modbus request; answered as it is."""

    message_number: ClassVar[int] = 3

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Read:
        return cls(data)


@pytest.fixture
def address(make_server: MakeServer) -> str:
    """Where Modbus requests are answered as they are."""
    codec, registry = presets.modbus_tcp(), tao.Registry()

    @registry.handler(Read)
    def echo(ctx: tao.Context[Read], conn: tao.ServerConn) -> None:
        conn.write(ctx.message, header=codec.reply_header(ctx.header))

    _, bound = make_server(registry=registry, codec=codec, queue_size=4096)
    return f"127.0.0.1:{bound[1]}"


def test_a_frame_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """By a preset or by a module's codec; spaces and colons are for people."""
    assert main(["frame", "modbus_tcp", "0001", "0000", "0006", "11:03:006b0003"]) == 0
    assert (
        "     6  11                                   unit           17\n"
        in capsys.readouterr().out
    )
    for name in ("own_protocol:frame", "own_protocol:make"):
        assert main(["frame", name, "41 01 00"]) == 0
        assert "kind           'A', the message number" in capsys.readouterr().out


def test_a_frame_that_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """What can be read is shown, and the status says that it failed."""
    assert main(["frame", "modbus_tcp", "000100000006"]) == 1
    assert "! incomplete: unit is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("frame morse 00", "there is no preset 'morse'; there are amqp091,"),
        ("frame own_protocol:frames 00", "own_protocol has no frames"),
        ("frame own_protocol:fails 00", "own_protocol:fails() raises: ValueError: no"),
        ("frame tao.framing:Frame 00", "tao.framing:Frame is not a codec"),
        ("frame tao:TypeLengthValueCodec 00", "is not a codec"),
        ("frame gt06 787", "HEX wants pairs of hexadecimal digits, not '787'"),
        ("connect :1 --header unit=1", "--header needs --codec"),
        ("bench :1 --header unit=1", "--header needs --codec"),
        ("bench :1 --codec modbus_tcp", "unit has no value"),
        ("bench :1 --codec modbus_tcp --header unit", "expected NAME=VALUE, not 'unit'"),
        ("bench :1 --codec modbus_tcp --header unit=hex:0", "pairs of hexadecimal digits"),
    ],
)
def test_wrong_calls(capsys: pytest.CaptureFixture[str], arguments: str, text: str) -> None:
    """One line says what is wrong."""
    assert main(arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert text in line


def test_numbers_and_headers() -> None:
    """As they are typed."""
    assert [parse_any_number(text) for text in ("3", "0x10", "AB", "0,1,13")] == [
        3, 16, "AB", (0, 1, 13),
    ]  # fmt: skip
    codec = presets.modbus_tcp()
    words = ["unit=0x11", "name=a=b", "raw=hex:00ff"]
    assert parse_header(words, codec) == {"unit": 17, "name": "a=b", "raw": b"\0\xff"}
    with pytest.raises(WrongCall, match="whose frames have other fields"):
        parse_header(words, tao.TypeLengthValueCodec())


def test_a_conversation_in_another_protocol(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes is shown with the fields of its frame."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("3 hex:006b0003\n99999 x\n3 hello\n"))
    words = f"connect {address} --codec modbus_tcp --header unit=17 --replies 2 --wait {LONG}"
    assert main(words.split()) == 0
    output, errors = capsys.readouterr()
    first, second = output.splitlines()
    assert first.startswith("< 3 (4 bytes) hex:006b0003 {transaction=") and "unit=17}" in first
    assert second.startswith("< 3 (5 bytes) hello {transaction=")
    assert errors.startswith("tao: function: ")


def test_a_number_that_is_a_text() -> None:
    """A digit may be meant as one; the codec tells."""
    from tao.cli.codecs import encode_raw
    from tao.cli.values import Raw

    codec = find_codec("own_protocol:frame")
    assert encode_raw(codec, Raw(8, b"x"), {}) == b"8\x01x"


def test_measuring_another_protocol(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its replies are counted by its decoder."""
    words = f"bench {address} --codec modbus_tcp --header unit=1 --number 3 --size 8 --json"
    assert main([*words.split(), "--duration", "0.2", "--connections", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["messages"] > 10 and result["number"] == 3


def test_values_that_are_no_bytes_are_shown_as_json() -> None:
    """The codec of JSON lines gives dictionaries, and takes JSON that was typed."""
    came: list[Raw] = []
    codec = ShownCodec(find_codec("json_lines"), {}, came.append, lambda: None)
    codec.decoder(tao.Registry()).feed(b'{"type":"move","x":[1, "\xc3\xa9"]}\n', [])
    assert came == [Raw("move", '{"x":[1,"\u00e9"]}'.encode())]
    assert codec.encode(Raw("move", b'{"x": 1}')) == b'{"type":"move","x":1}\n'
