"""Annotated dumps: the parts of a frame with their offsets, bytes, names and values.

A dump shows what can be read, and says what is wrong with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tao.errors import BadData
from tao.framing.layout import Layout
from tao.framing.parts import Bits, Body, Checksum, Field, Length, Part
from tao.framing.steps import make_steps

__all__ = ["count", "explain", "hex_lines"]

# How many bytes of a part are on a line, and how many are shown at most.
_ON_A_LINE, _MOST_BYTES = 12, 48


def explain(layout: Layout, data: bytes) -> str:
    """Return the dump of a frame.

    Args:
        layout: the places of its parts.
        data: its bytes; more or fewer than there should be are noted.
    """
    return "\n".join(_Dump(layout, data).lines())


class _Dump:
    """One frame on its way to a dump."""

    def __init__(self, layout: Layout, data: bytes) -> None:
        self._layout: Layout = layout
        self._data: bytes = bytes(data)
        self._values: list[Any] = []
        self._begins: list[int] = []  # of each part
        self._starts: list[int] = []  # of each step of the head, and of the body

    def lines(self) -> Iterator[str]:
        at = 0
        try:
            for part in self._layout.parts:
                self._begins.append(at)
                end = self._end_of_body(at) if isinstance(part, Body) else self._read(part, at)
                yield from self._part_lines(part, at, end)
                if isinstance(part, Length) and part.zero_is_keepalive and not self._values[-1]:
                    yield "a keep-alive"
                    break
                at = end
            else:
                yield from self._check_lines(at)
        except BadData as error:
            yield from hex_lines(at, self._data[at:], f"! {error}")
            return
        if end < len(self._data):
            yield from hex_lines(end, self._data[end:], "! more than the frame")

    def _read(self, part: Part, at: int) -> int:
        """Read the values of a part; return where it ends."""
        [step] = make_steps([part], self._layout.byte_order, self._layout.slots)
        end = step.read(self._data, at, len(self._data), self._values)
        if end < 0:
            raise BadData(f"incomplete: {part.name} is missing")
        return end

    def _end_of_body(self, at: int) -> int:
        layout = self._layout
        index = 0
        for step in layout.head:
            self._starts.append(self._begins[index])
            index += len(step.parts)
        self._starts.append(at)
        if layout.tail is not None:
            end = self._find_tail(layout.tail.value, at)
            if end < 0:
                raise BadData(f"incomplete: {layout.tail.name} is missing")
            return end
        end = layout.body_end(self._values, self._starts, len(self._data))
        if end > len(self._data):
            raise BadData(f"incomplete: {end - len(self._data)} bytes of the body are missing")
        return end

    def _find_tail(self, tail: bytes, at: int) -> int:
        """Return where the tail is, or -1."""
        escape = self._layout.body.escape
        if escape is None or not escape.doubled:
            return self._data.find(tail, at)
        while True:
            at = self._data.find(escape.doubled, at)
            if at < 0 or self._data.startswith(tail, at):
                return at
            at += 2

    def _part_lines(self, part: Part, at: int, end: int) -> Iterator[str]:
        raw = self._data[at:end]
        if isinstance(part, Bits):
            yield from hex_lines(at, raw, f"{part.name:<14}")
            for field in part.fields:
                yield _line("", "", f"  {field.name:<12} {self._text(field)}")
        elif isinstance(part, Body):
            yield from hex_lines(at, raw, f"{part.name:<14} {count(len(raw))}")
        else:
            yield from hex_lines(at, raw, f"{part.name:<14} {self._text(part)}")

    def _text(self, part: Part) -> str:
        value = self._values[self._layout.slots[part.name]]
        if isinstance(part, Length):
            return f"{value}, {count(value * part.unit)} of {part.covers}"
        text = "absent" if value is None else f"{value!r}"
        if isinstance(part, Checksum):
            text = f"{value:#x}, {part.algorithm.name} over {part.over}"
        if isinstance(part, Field) and part.number:
            text += ", the message number"
        for slot, wanted, name in self._layout.constants:
            if name == part.name and self._values[slot] != wanted:
                text += f"  ! must be {wanted!r}"
        return text

    def _check_lines(self, end: int) -> Iterator[str]:
        """Yield what is wrong with checksums."""
        body_end = end - self._layout.trail_size
        for check in self._layout.checks:
            wanted = self._layout.checksum(check, self._data, self._starts, body_end)
            if self._values[check.slot] != wanted:
                yield f"! {check.checksum.name} should be {wanted:#x}"


def hex_lines(at: int, raw: bytes, text: str) -> Iterator[str]:
    """Yield the lines of some bytes with their offset; the text is on the first."""
    for start in range(0, min(len(raw), _MOST_BYTES) or 1, _ON_A_LINE):
        yield _line(str(at + start), raw[start : start + _ON_A_LINE].hex(" "), text)
        text = ""
    if len(raw) > _MOST_BYTES:
        yield _line("", f"... {count(len(raw) - _MOST_BYTES)} more", "")


def _line(at: str, raw: str, text: str) -> str:
    return f"{at:>6}  {raw:<{3 * _ON_A_LINE}} {text}".rstrip()


def count(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size} byte{'' if size == 1 else 's'}"
