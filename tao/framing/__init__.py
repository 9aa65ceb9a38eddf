"""Other people's protocols: declare a frame, and have a codec.

Pure, like ``wire``: bytes in and bytes out, no I/O, no threads, no clock.

A `Frame` (``frame.py``) is declared of the ``parts.py``, whose values are of certain ``kinds.py``
and protected by ``checksums.py`` (``crc_catalogue.py``). ``layout.py`` checks the declaration and
places the parts, ``steps.py`` compiles them to `struct` calls; ``encoder.py``,
``declared_decoder.py`` (with ``resync.py``) and ``explain.py`` run them.

``delimited.py`` has frames that end with certain bytes (kept free of them by ``stuffing.py``), and
``values.py`` others that are little more than a value. ``json_lines.py`` has messages as lines of
JSON.

``choice.py`` has several kinds of frames in one stream, ``preamble.py`` bytes before the first
frame, ``presets.py`` well-known protocols.

What cannot be declared is written on the base in ``decoder.py``: the loop, the bounds and the
errors of every decoder here.
"""

from tao.framing import presets
from tao.framing.choice import Choice
from tao.framing.decoder import FrameDecoder
from tao.framing.delimited import Delimited, Lines
from tao.framing.frame import Frame
from tao.framing.parts import Bits, Body, Checksum, Field, Length, Magic, Tail
from tao.framing.preamble import Preamble
from tao.framing.stuffing import COBS, DLE, HDLC, JT808, SLIP, Stuffing
from tao.framing.values import Fixed, Netstring, ValueCodec, Varint
from tao.wire.struct_kinds import (
    Counted,
    Sized,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)

__all__ = [
    "COBS",
    "DLE",
    "HDLC",
    "JT808",
    "SLIP",
    "Bits",
    "Body",
    "Checksum",
    "Choice",
    "Counted",
    "Delimited",
    "Field",
    "Fixed",
    "Frame",
    "FrameDecoder",
    "Length",
    "Lines",
    "Magic",
    "Netstring",
    "Preamble",
    "Sized",
    "Stuffing",
    "Tail",
    "ValueCodec",
    "Varint",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "presets",
    "u8",
    "u16",
    "u32",
    "u64",
]
