"""Kinds of fields: how a value is written on the wire.

========================  =======================================================================
``u8`` ... ``u64``        unsigned integers of 8, 16, 24, 32, 48 or 64 bits; ``i8`` ... are signed
``f32``, ``f64``          floating-point numbers (IEEE 754)
``digits4``               four ASCII decimal digits, an integer
``hex4``                  four ASCII hexadecimal digits, an integer
``bcd6``                  six bytes of two decimal digits each (packed BCD), an integer
``bytes6``, ``text6``     six bytes; six ASCII characters
``varint``, ``varint4``   seven bits a byte, least significant first, the high bit set in all but
                          the last (LEB128); at most 10 bytes, or 4
``digits``, ``text``      of any length, up to the bytes given as ``end``
========================  =======================================================================

Numbers of several bytes have the frame's byte order, or that of a suffix: ``u16le``, ``u16be``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, AnyStr, Literal, NamedTuple

__all__ = ["ByteOrder", "FixedKind", "OpenKind", "parse_kind"]

ByteOrder = Literal["big", "little"]

_PATTERN = re.compile(r"([uif])(8|16|24|32|48|64)(be|le)?|(digits|hex|bcd|bytes|text|varint)(\d*)")
_STRUCT_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f32": "f", "f64": "d"}
_ORDERS: dict[str, ByteOrder] = {"be": "big", "le": "little"}
# How long a field that ends with given bytes may be.
_OPEN_MOST = 255
_VARINT_MOST = 10


class FixedKind(NamedTuple):
    """A kind of constant size.

    Attributes:
        name: as declared.
        size: in bytes.
        code: its code in a `struct` format.
        load: makes the value of what `struct` unpacks; None: it is the value.
        dump: makes what `struct` packs of a value; None: it is the value.
        most: the greatest value, if it is an integer.
    """

    name: str
    size: int
    code: str
    load: Callable[[Any], Any] | None = None
    dump: Callable[[Any], Any] | None = None
    most: int | None = None


class OpenKind(NamedTuple):
    """A kind whose size is seen when it is read.

    Attributes:
        name: as declared.
        least: its size in bytes, at least.
        read: takes the data, the offset of the field and the end of the data; returns the value and
            the offset of what follows, or None if the end of the field is not there yet.
        dump: makes the bytes of a value.
        most: the greatest value, if it is an integer.
    """

    name: str
    least: int
    read: Callable[[bytes, int, int], tuple[Any, int] | None]
    dump: Callable[[Any], bytes]
    most: int | None = None


def parse_kind(name: str, byte_order: ByteOrder, end: bytes | None = None) -> FixedKind | OpenKind:
    """Return the kind of that name.

    Args:
        byte_order: of numbers that do not say.
        end: what a ``digits`` or ``text`` without a size ends with.

    Raises:
        TypeError, ValueError: there is no such kind.
    """
    if not isinstance(name, str):
        raise TypeError(f"its kind must be a string such as 'u16', not {name!r}")
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(f"there is no kind {name!r}; kinds are u8 to u64, digits4, bcd2, ...")
    letter, bits, order, word, size = match.groups()
    if end is not None and (word in (None, "varint") or size):
        raise ValueError(f"a {name} needs no end={end!r}")
    if word is None:
        return _numeric_kind(
            name, f"{letter}{bits}", int(bits) // 8, _ORDERS.get(order, byte_order), byte_order
        )
    if word == "varint":
        most = int(size) if size else _VARINT_MOST
        if not 0 < most <= _VARINT_MOST:
            raise ValueError(f"a varint has 1 to {_VARINT_MOST} bytes, not {most}")
        return OpenKind(
            name, 1, partial(_read_varint, most), partial(_dump_varint, most), (1 << 7 * most) - 1
        )
    if size:
        if not 0 < int(size) <= 65535:
            raise ValueError(f"the size of a {name} must be between 1 and 65535")
        return _sized_kind(name, word, int(size))
    return _ended_kind(word, end)


# -- numbers of constant size


def _numeric_kind(
    name: str, plain: str, size: int, order: ByteOrder, frame_order: ByteOrder
) -> FixedKind:
    signed = plain[0] == "i"
    code = _STRUCT_CODES.get(plain.replace("i", "u"))
    if code is None and plain[0] == "f":
        raise ValueError(f"there is no kind {name!r}; floating-point numbers are f32 and f64")
    most = None if plain[0] == "f" else (1 << 8 * size - signed) - 1
    if code is not None and (size == 1 or order == frame_order):
        return FixedKind(name, size, code.lower() if signed else code, most=most)
    if plain[0] == "f":
        raise ValueError(f"a {name} must have the byte order of its frame")
    return FixedKind(
        name,
        size,
        f"{size}s",
        partial(int.from_bytes, byteorder=order, signed=signed),
        partial(_dump_integer, size, order, signed),
        most,
    )


def _dump_integer(size: int, order: ByteOrder, signed: bool, value: int) -> bytes:
    return value.to_bytes(size, order, signed=signed)


# -- text of constant size


def _sized_kind(name: str, word: str, size: int) -> FixedKind:
    most = {"digits": 10**size - 1, "hex": 16**size - 1, "bcd": 100**size - 1}.get(word)
    loads: dict[str, Callable[[Any], Any] | None] = {
        "digits": _load_digits, "hex": _load_hex, "bcd": _load_bcd, "text": _load_text,
        "bytes": None,
    }  # fmt: skip
    dumps: dict[str, Callable[[int, Any], Any]] = {
        "digits": _dump_digits, "hex": _dump_hex, "bcd": _dump_bcd, "text": _dump_text,
        "bytes": _dump_bytes,
    }  # fmt: skip
    return FixedKind(name, size, f"{size}s", loads[word], partial(dumps[word], size), most)


def _load_digits(raw: bytes) -> int:
    if not raw.isdigit():  # int() would accept spaces and signs
        raise ValueError("is not made of digits")
    return int(raw)


def _dump_digits(size: int, value: int) -> bytes:
    return _fitting(b"%0*d" % (size, _natural(value)), size)


def _load_hex(raw: bytes) -> int:
    if raw.translate(None, b"0123456789ABCDEFabcdef"):  # int() would accept "0x1" and "1_0"
        raise ValueError("is not made of hexadecimal digits")
    return int(raw, 16)


def _dump_hex(size: int, value: int) -> bytes:
    return _fitting(b"%0*X" % (size, _natural(value)), size)


def _load_bcd(raw: bytes) -> int:
    digits = raw.hex()
    if not digits.isdigit():
        raise ValueError("is not made of decimal digits")
    return int(digits)


def _dump_bcd(size: int, value: int) -> bytes:
    return bytes.fromhex(_fitting(f"{_natural(value):0{2 * size}d}", 2 * size))


def _load_text(raw: bytes) -> str:
    return raw.decode("ascii")


def _dump_text(size: int, value: str) -> bytes:
    return _dump_bytes(size, value.encode("ascii"))


def _dump_bytes(size: int, value: bytes) -> bytes:
    if len(value) != size:
        raise ValueError(f"has {len(value)} bytes, not {size}")
    return bytes(value)


def _natural(value: int) -> int:
    if value < 0:
        raise ValueError("is negative")
    return value


def _fitting(text: AnyStr, size: int) -> AnyStr:
    if len(text) != size:
        raise ValueError(f"needs more than {size} digits")
    return text


# -- kinds whose size is seen when they are read


def _read_varint(most: int, data: bytes, start: int, end: int) -> tuple[int, int] | None:
    value = 0
    for count in range(min(most, end - start)):
        byte = data[start + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, start + count + 1
    if end - start >= most:
        raise ValueError(f"has more than {most} bytes")
    return None


def _dump_varint(most: int, value: int) -> bytes:
    rest, encoded = _natural(value), bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    if len(encoded) > most:
        raise ValueError(f"needs more than {most} bytes")
    return bytes(encoded)


def _ended_kind(word: str, end: bytes | None) -> OpenKind:
    if word not in ("digits", "text", "bytes"):
        raise ValueError(f"its kind must have a size, as in '{word}2'")
    if not isinstance(end, bytes) or not end:
        raise ValueError(
            f"its kind {word!r} has no size; write '{word}4', or say what ends it: end=b','"
        )
    load: Callable[[bytes], Any] = {"digits": _load_digits, "text": _load_text}.get(word, bytes)
    most = 10**20 - 1 if word == "digits" else None
    return OpenKind(
        f"{word} up to {end!r}",
        len(end),
        partial(_read_ended, end, load, 20 if word == "digits" else _OPEN_MOST),
        partial(_dump_ended, end, word),
        most,
    )


def _read_ended(
    end_bytes: bytes, load: Callable[[bytes], Any], most: int, data: bytes, start: int, end: int
) -> tuple[Any, int] | None:
    limit = start + most + len(end_bytes)
    stop = data.find(end_bytes, start, min(limit, end))
    if stop >= 0:
        return load(data[start:stop]), stop + len(end_bytes)
    if end >= limit:
        raise ValueError(f"has more than {most} bytes")
    return None


def _dump_ended(end: bytes, word: str, value: Any) -> bytes:
    if word == "digits":
        written = b"%d" % _natural(value)
    else:
        written = value.encode("ascii") if word == "text" else bytes(value)
    if end in written:
        raise ValueError(f"contains {end!r}, which ends it")
    if len(written) > _OPEN_MOST:
        raise ValueError(f"has more than {_OPEN_MOST} bytes")
    return written + end
