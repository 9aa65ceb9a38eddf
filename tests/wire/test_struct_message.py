"""Declared values: their bytes, there and back, and what is refused."""

from __future__ import annotations

import struct
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tao
from tao import framing as f
from tao.errors import BadData
from tao.wire import struct_compiler

U16 = st.integers(0, 65535)


class Point(tao.StructMessage):
    """Only nested in others."""

    x: f.i16
    y: f.i16 = 0


class Position(tao.StructMessage, number=7, byte_order="big"):
    device: f.u32
    latitude: f.f64
    valid: bool
    kind: Annotated[bytes, f.Sized(2)]
    name: Annotated[str, f.Sized(6)]
    where: Point
    note: Annotated[str, f.Counted("u8")] = ""


POSITION = Position(1, 0.5, True, b"ab", "caf\u00e9", Point(-1, 2), "hi")
WIRE = bytes.fromhex("00000001 3fe0000000000000 01 6162 636166c3a900 ffff 0002 02 6869")


def test_its_bytes() -> None:
    """They are those of the fields, in their order, and are read again."""
    assert POSITION.serialize() == WIRE
    assert Position.deserialize(WIRE) == POSITION
    assert Rest.deserialize(bytearray(b"\1ab")).rest == b"ab"
    assert tao.TypeLengthValueCodec().encode(POSITION)[:4] == b"\7\0\0\0"


def test_what_a_class_has() -> None:
    """A constructor, equality, a repr, and patterns, as a data class has."""
    assert Point(3) == Point(x=3, y=0) != Point(3, 1)
    assert Point(3) != (3, 0) and repr(Point(3)) == "Point(x=3, y=0)"
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))
    POSITION.note = "changed"
    assert Position.deserialize(POSITION.serialize()).note == "changed"
    POSITION.note = "hi"
    with pytest.raises(TypeError, match="Point has no message_number"):
        tao.Registry().handler(Point)


class Track(tao.StructMessage, number=8, byte_order="little"):
    """Lists of all kinds."""

    three: Annotated[list[f.u16], f.Sized(3)]
    two: Annotated[list[Point], f.Sized(2)]
    numbers: Annotated[list[f.u16], f.Counted("u16")]
    points: Annotated[list[Point], f.Counted("u8")]
    texts: Annotated[list[Annotated[str, f.Counted("u8")]], f.Counted("u8")]
    pairs: Annotated[list[Annotated[list[f.u8], f.Sized(2)]], f.Counted("u8")]
    tags: list[Annotated[bytes, f.Sized(2)]]


def test_lists() -> None:
    """Of numbers, nested messages, texts and lists, of constant size, counted, or the rest."""
    points = [Point(1, 2), Point(3)]
    track = Track([1, 2, 3], points, [7, 8], points[:1], ["a", "", "bc"], [[1, 2]], [b"ab", b"cd"])
    wire = bytes.fromhex(
        "0100 0200 0300  0001 0002 0003 0000  0200 0700 0800  01 0001 0002  03 01 61 00 02 6263"
        "01 01 02  6162 6364"
    )
    assert track.serialize() == wire
    assert Track.deserialize(wire) == track
    assert Track.deserialize(Track([0] * 3, points, [], [], [], [], []).serialize()).tags == []


@given(
    st.builds(
        Track,
        st.lists(U16, min_size=3, max_size=3),
        st.just([Point(0), Point(1)]),
        st.lists(U16),
        st.lists(st.builds(Point, st.integers(-9, 9)), max_size=200),
        st.lists(st.text(max_size=30), max_size=20),
        st.just([]),
        st.lists(st.binary(min_size=2, max_size=2)),
    )
)
def test_there_and_back(track: Track) -> None:
    """Any values."""
    assert Track.deserialize(track.serialize()) == track


@given(st.binary(max_size=60))
def test_garbage(data: bytes) -> None:
    """It is a message, which has these bytes, or it is refused."""
    for kind in (Track, Position, Rest):
        try:
            message = kind.deserialize(data)
        except BadData as error:
            assert str(error).startswith(kind.__name__)
        else:
            # A text of constant size may end with zero bytes in several ways, and a bool be 2.
            again = message.serialize()
            assert len(again) == len(data) and (kind is Position or again == data)


class Rest(tao.StructMessage, number=9):
    first: f.u8
    rest: bytes


class Little(tao.StructMessage, byte_order="little"):
    value: f.u16


class LittleRest(Little):
    rest: str


class Outer(tao.StructMessage, number="outer"):
    """With another byte order within; the last field of the nested message is the rest of all."""

    size: f.u16
    items: Annotated[list[Little], f.Counted("u8")]
    inner: LittleRest


def test_nested_byte_orders() -> None:
    """Each message has its own."""
    message = Outer(1, [Little(1), Little(2)], LittleRest(3, "end"))
    assert message.serialize() == b"\0\1\2\1\0\2\0\3\0end"
    assert Outer.deserialize(message.serialize()) == message


def test_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """All fields of constant size in a row, nested ones and counts too, are one layout."""
    made: list[str] = []

    class Counting(struct.Struct):
        def __init__(self, layout: str) -> None:
            made.append(layout)
            super().__init__(layout)

    monkeypatch.setattr(struct_compiler.struct, "Struct", Counting)
    Position.__init_subclass__()
    assert made == [">Id?2s6shhB"] * 2


def test_inheritance() -> None:
    """The fields of a base class come first; its number and byte order are inherited."""

    class Base(tao.StructMessage, number=3, byte_order="little"):
        kind: ClassVar[str] = "base"
        a: f.u16

    class More(Base, number=4):
        b: f.u16 = 5

    assert (
        More(1).serialize() == b"\1\0\5\0" and More.message_number == 4 and Base(1).kind == "base"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "Position is too short: 0 bytes"),
        (WIRE[:-1], "Position.note counts 2, but 1 bytes are missing"),
        (WIRE + b"!", "Position has 28 bytes, not 29"),
        (WIRE[:-1] + b"\xff", "Position.note is not UTF-8"),
    ],
)
def test_bytes_that_are_none(data: bytes, text: str) -> None:
    """The error names the class and the field."""
    with pytest.raises(BadData, match=text):
        Position.deserialize(data)


def test_counts_are_checked_before_anything_is_made() -> None:
    """A count that announces more than there is."""

    class Many(tao.StructMessage):
        texts: Annotated[list[Annotated[str, f.Counted("u8")]], f.Counted("u32")]

    with pytest.raises(BadData, match="texts counts 4294967295, but 4294967295 bytes are missing"):
        Many.deserialize(b"\xff\xff\xff\xff")
    with pytest.raises(BadData, match="numbers counts 65535"):
        Track.deserialize(bytes(14) + b"\xff\xff")
    with pytest.raises(BadData, match=r"Track.tags has 1 bytes, but its items have 2 each"):
        Track.deserialize(bytes(14) + bytes(2) + bytes(3) + b"x")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"device": -1}, "Position.device: argument out of range|Position.device: .*"),
        ({"device": "1"}, "Position.device: required argument is not an integer"),
        ({"latitude": None}, "Position.latitude: required argument is not a float"),
        ({"kind": b"a"}, "Position.kind must have 2 bytes, not 1"),
        ({"kind": "ab"}, "Position.kind must be bytes, not str"),
        ({"name": "seven.."}, "Position.name can have 6 bytes, not 7"),
        ({"name": b"x"}, "Position.name must be a str, not bytes"),
        ({"note": "x" * 256}, "Position.note has 256, but its count can be 255 at most"),
        ({"note": "\ud800"}, "Position.note cannot be written as UTF-8"),
        ({"where": 5}, "Position.where must be a Point, not int"),
        ({"where": Point(40_000)}, "Position.where: .*"),
    ],
)
def test_values_that_do_not_fit(change: dict[str, Any], text: str) -> None:
    """The error names the field, when the message is written."""
    message = Position.deserialize(WIRE)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(BadData, match=text):
        message.serialize()


def declare(annotations: dict[str, Any], **options: Any) -> Any:
    values = options.pop("values", {})
    return type(
        "Wrong", (tao.StructMessage,), {"__annotations__": annotations, **values}, **options
    )


@pytest.mark.parametrize(
    ("annotations", "options", "text"),
    [
        ({"a": int}, {}, "Wrong.a: its size is unknown: write u8, i8, ... u64 or i64"),
        ({"a": float}, {}, "Wrong.a: its size is unknown: write f32 or f64"),
        ({"a": dict}, {}, "Wrong.a: a field is a number .*, not dict"),
        ({"a": bytes, "b": f.u8}, {}, "Wrong.a is the rest of the message, so it must be the last"),
        ({"a": list[bytes]}, {}, "Wrong.a: the items of a list need a size"),
        ({"a": Rest, "b": f.u8}, {}, "Wrong.a is the rest of the message"),
        ({"a": list[declare({})]}, {}, "Wrong.a: the items of a list cannot be empty"),
        ({"a": list[f.u8]}, {"values": {"a": []}}, "Wrong.a: a default that can change"),
        ({"a": f.u8, "b": f.u8}, {"values": {"a": 1}}, "Wrong.b has no default, but follows"),
        ({}, {"number": 1.5}, "message_number must be an int"),
        ({}, {"byte_order": "middle"}, "byte_order must be 'big' or 'little'"),
    ],
)
def test_declarations_that_are_refused(annotations: Any, options: Any, text: str) -> None:
    """With a sentence that names the field and says what to write."""
    with pytest.raises((TypeError, ValueError), match=text):
        declare(annotations, **options)


def test_sizes_that_are_refused() -> None:
    """When they are written down."""
    with pytest.raises(ValueError, match="a count must be one of u8, u16, u32, u64, not 'i8'"):
        f.Counted("i8")
    with pytest.raises(ValueError, match="a size must be an int from 0 on, not -1"):
        f.Sized(-1)
