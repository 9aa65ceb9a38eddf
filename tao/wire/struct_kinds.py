"""The kinds of fields of a `StructMessage`, as annotations say them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from tao.safe_text import safe_repr

__all__ = [
    "Array",
    "Counted",
    "Kind",
    "Nested",
    "Scalar",
    "Sized",
    "Text",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "kind_of",
    "u8",
    "u16",
    "u32",
    "u64",
]

_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


class Scalar(NamedTuple):
    """A number, by its code in the module `struct`."""

    code: str


class Sized:
    """The size of bytes or a text, or how many items a list has: ``Annotated[str, Sized(16)]``.

    A shorter text is filled up with zero bytes, which are removed when it is read; bytes and lists
    have exactly this size.

    Args:
        size: a number of bytes or of items.
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"a size must be an int from 0 on, not {safe_repr(size)}")
        self.size: int = size


class Counted:
    """Bytes, a text or a list with its size in front: ``Annotated[bytes, Counted("u16")]``.

    Args:
        kind: of the size: ``"u8"``, ``"u16"``, ``"u32"`` or ``"u64"``. It counts bytes, of a list
            items.
    """

    def __init__(self, kind: str) -> None:
        if kind not in _CODES:
            raise ValueError(f"a count must be one of {', '.join(_CODES)}, not {safe_repr(kind)}")
        self.code: str = _CODES[kind]


#: How the size of a field is known; None: it is the rest of the message.
Extent = Sized | Counted | None


class Text(NamedTuple):
    """Bytes, or a text in UTF-8."""

    is_text: bool
    extent: Extent


class Nested(NamedTuple):
    """Another `StructMessage`."""

    message_class: Any


class Array(NamedTuple):
    """A list of items of one kind."""

    item: Kind
    extent: Extent


Kind = Scalar | Text | Nested | Array

u8 = Annotated[int, Scalar("B")]
u16 = Annotated[int, Scalar("H")]
u32 = Annotated[int, Scalar("I")]
u64 = Annotated[int, Scalar("Q")]
i8 = Annotated[int, Scalar("b")]
i16 = Annotated[int, Scalar("h")]
i32 = Annotated[int, Scalar("i")]
i64 = Annotated[int, Scalar("q")]
f32 = Annotated[float, Scalar("f")]
f64 = Annotated[float, Scalar("d")]


def kind_of(name: str, hint: Any, is_message: Any) -> Kind:
    """Return the kind that an annotation says.

    Args:
        name: of the field, for errors.
        hint: the annotation.
        is_message: tells whether a class is one that may be nested.

    Raises:
        TypeError: it says none.
    """
    extent: Extent = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        scalars = [each for each in extras if isinstance(each, Scalar)]
        extents = [each for each in extras if isinstance(each, (Sized, Counted))]
        if scalars:
            return scalars[0]
        extent = extents[0] if extents else None
    if hint is bool:
        return Scalar("?")
    if hint in (bytes, str):
        return Text(hint is str, extent)
    if get_origin(hint) is list:
        [item] = get_args(hint)
        kind = kind_of(name, item, is_message)
        if is_rest(kind):
            raise TypeError(f"{name}: the items of a list need a size, Sized or Counted")
        return Array(kind, extent)
    if isinstance(hint, type) and is_message(hint):
        return Nested(hint)
    wanted = {int: "u8, i8, ... u64 or i64", float: "f32 or f64", list: "list[...]"}.get(hint)
    raise TypeError(
        f"{name}: {'its size is unknown: write ' + wanted if wanted else _cannot(hint)}"
    )


def _cannot(hint: Any) -> str:
    return (
        "a field is a number (u8 ... f64), a bool, bytes, a str, a list or another StructMessage, "
        f"not {getattr(hint, '__name__', None) or safe_repr(hint)}"
    )


def is_rest(kind: Kind) -> bool:
    """Return whether a field is the rest of the message, so that nothing can follow it."""
    if isinstance(kind, Nested):
        fields: Mapping[str, Kind] = kind.message_class.struct_fields
        return any(map(is_rest, fields.values()))
    return isinstance(kind, (Text, Array)) and kind.extent is None


def least_size(kind: Kind) -> int:
    """Return how many bytes a field has at least."""
    if isinstance(kind, Scalar):
        return struct.calcsize(f"<{kind.code}")
    if isinstance(kind, Nested):
        return sum(map(least_size, kind.message_class.struct_fields.values()))
    if isinstance(kind.extent, Counted):
        return struct.calcsize(f"<{kind.extent.code}")
    if kind.extent is None:
        return 0
    return kind.extent.size * (least_size(kind.item) if isinstance(kind, Array) else 1)


def is_fixed(kind: Kind) -> bool:
    """Return whether a field always has the same size."""
    if isinstance(kind, Scalar):
        return True
    if isinstance(kind, Nested):
        return all(map(is_fixed, kind.message_class.struct_fields.values()))
    return isinstance(kind.extent, Sized) and not (
        isinstance(kind, Array) and not is_fixed(kind.item)
    )
