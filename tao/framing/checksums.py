"""Checksums by name: CRCs of the reveng catalogue, sums and exclusive-or.

Names are compared without case and punctuation: ``"crc16-x25"`` is the catalogue's "CRC-16/X-25".
A CRC is calculated a byte at a time with a table that is built on first use (D. Sarwate,
"Computation of cyclic redundancy checks via table look-up", 1988). Where the standard library has
the same CRC in C, that is used.
"""

from __future__ import annotations

import binascii
import difflib
import zlib
from collections.abc import Callable
from functools import lru_cache, partial, reduce
from operator import xor
from typing import NamedTuple

from tao.framing.crc_catalogue import ALIASES, CRCS, Crc

__all__ = ["Algorithm", "ChecksumFunction", "algorithm"]

#: Takes the bytes covered and returns the checksum as an integer.
ChecksumFunction = Callable[[bytes], int]


class Algorithm(NamedTuple):
    """A checksum algorithm.

    Attributes:
        name: as in the catalogue.
        function: calculates it.
        kind: how it is written on the wire, unless the declaration says otherwise.
    """

    name: str
    function: ChecksumFunction
    kind: str


def _normalised(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _sum(modulus: int, data: bytes) -> int:
    return sum(data) % modulus


def _xor(data: bytes) -> int:
    return reduce(xor, data, 0)


_SIMPLE = {
    "sum8": Algorithm("sum8", partial(_sum, 1 << 8), "u8"),
    "sum16": Algorithm("sum16", partial(_sum, 1 << 16), "u16"),
    "xor8": Algorithm("xor8", _xor, "u8"),
    "mod256": Algorithm("mod256", partial(_sum, 256), "digits3"),
}
_NAMES = {
    **{_normalised(name): name for name in (*_SIMPLE, *CRCS)},
    **{_normalised(alias): name for alias, name in ALIASES.items()},
}


def algorithm(name: str) -> Algorithm:
    """Return the algorithm of that name.

    Args:
        name: ``"sum8"``, ``"sum16"``, ``"xor8"``, ``"mod256"`` (three decimal digits, as in FIX),
            or a CRC of the catalogue by its name or an alias.

    Raises:
        ValueError: there is none of that name.
    """
    known = _NAMES.get(_normalised(name))
    if known is None:
        close = difflib.get_close_matches(_normalised(name), _NAMES, 1)
        hint = f"; did you mean {_NAMES[close[0]]!r}?" if close else ""
        raise ValueError(f"there is no checksum {name!r}{hint}")
    if known in _SIMPLE:
        return _SIMPLE[known]
    return Algorithm(known, _crc_function(known), f"u{CRCS[known].width}")


def _crc_function(name: str) -> ChecksumFunction:
    crc = CRCS[name]
    if name == "CRC-32/ISO-HDLC":
        return zlib.crc32
    if (crc.width, crc.poly, crc.reflected) == (16, 0x1021, False):
        return lambda data: binascii.crc_hqx(data, crc.init) ^ crc.xorout
    table = _table(crc.width, crc.poly, crc.reflected)
    return partial(_reflected_crc if crc.reflected else _plain_crc, crc, table)


def _reflected_crc(crc: Crc, table: tuple[int, ...], data: bytes) -> int:
    register = _mirrored(crc.init, crc.width)
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ crc.xorout


def _plain_crc(crc: Crc, table: tuple[int, ...], data: bytes) -> int:
    register, shift, mask = crc.init, crc.width - 8, (1 << crc.width) - 1
    for byte in data:
        register = table[(register >> shift) ^ byte] ^ ((register << 8) & mask)
    return register ^ crc.xorout


@lru_cache
def _table(width: int, poly: int, reflected: bool) -> tuple[int, ...]:
    """Return what each value of the byte that leaves the register adds to it."""
    table = []
    for byte in range(256):
        register = (_mirrored(byte, 8) if reflected else byte) << (width - 8)
        for _ in range(8):
            register <<= 1
            if register >> width:
                register ^= poly | 1 << width
        table.append(_mirrored(register, width) if reflected else register)
    return tuple(table)


def _mirrored(value: int, width: int) -> int:
    return int(f"{value:0{width}b}"[::-1], 2)
