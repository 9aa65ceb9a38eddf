"""Steps: what reads and writes consecutive parts of a frame with one call each.

Parts of constant size that follow each other make one step, which is one `struct` call. A part of
open size, such as a varint, is a step of its own, and so are parts that are there only if a flag
says so. A step appends the values of its parts to a list; the position of a value in that list is
called its slot.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any, Protocol, cast

from tao.errors import BadData
from tao.framing.kinds import ByteOrder, FixedKind, OpenKind, parse_kind
from tao.framing.parts import Bits, Body, Checksum, Field, Length, Magic, Part

__all__ = ["FixedStep", "OpenStep", "Step", "kind_of", "make_steps", "unfit", "value_names"]

Kind = FixedKind | OpenKind


class Step(Protocol):
    """Reads and writes consecutive parts.

    Attributes:
        parts: them.
        offsets: the offset of each.
        optional: the slot of the flag that says whether they are there; None: they always are.
        least: their size in bytes, at least.
    """

    parts: tuple[Part, ...]
    offsets: list[int]
    optional: int | None
    least: int

    def read(self, data: bytes, at: int, end: int, values: list[Any]) -> int:
        """Append the values of the parts at ``at``; return where they end, or -1 if not yet."""
        ...

    def dump(self, values: Sequence[Any]) -> bytes:
        """Return the bytes of the parts, of the values of the whole frame."""
        ...


def kind_of(part: Part, byte_order: ByteOrder) -> Kind:
    """Return the kind of a part.

    Raises:
        TypeError, ValueError: there is no such kind; the text names the part.
    """
    try:
        if isinstance(part, Magic):
            return FixedKind("bytes", len(part.value), f"{len(part.value)}s")
        if isinstance(part, (Field, Length)):
            if isinstance(part.kind, int):
                raise ValueError("a number of bits is a kind in Bits only")
            return parse_kind(part.kind, byte_order, part.end)
        assert isinstance(part, (Bits, Checksum))
        return parse_kind(part.kind, byte_order)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{part}: {error}") from None


def value_names(part: Part) -> tuple[str, ...]:
    """Return the names of the values that a part appends."""
    if isinstance(part, Body):
        return ()
    return tuple(field.name for field in part.fields) if isinstance(part, Bits) else (part.name,)


def make_steps(parts: Sequence[Part], byte_order: ByteOrder, slots: dict[str, int]) -> list[Step]:
    """Return as few steps as possible for the parts, which are not the body.

    Args:
        slots: the slots of all values, by name.
    """
    steps: list[Step] = []
    run: list[Part] = []

    def finish() -> None:
        if run:
            steps.append(FixedStep(run, byte_order, slots))
            run.clear()

    for part in parts:
        is_open = isinstance(kind_of(part, byte_order), OpenKind)
        if is_open or (run and part.when != run[0].when):
            finish()
        if is_open:
            steps.append(OpenStep(part, byte_order, slots))
        else:
            run.append(part)
        if isinstance(part, Length) and part.zero_is_keepalive:
            finish()  # nothing follows where it is zero
    finish()
    return steps


class FixedStep:
    """Parts of constant size: one `struct` call."""

    def __init__(self, parts: Sequence[Part], byte_order: ByteOrder, slots: dict[str, int]) -> None:
        self.parts: tuple[Part, ...] = tuple(parts)
        kinds = [_fixed_kind_of(part, byte_order) for part in parts]
        self._codes: list[str] = [kind.code for kind in kinds]
        order = ">" if byte_order == "big" else "<"
        self.struct: struct.Struct = struct.Struct(order + "".join(self._codes))
        #: The offset of each part, and the size of all.
        self.offsets: list[int] = [0, *accumulate(kind.size for kind in kinds)]
        self.size: int = self.offsets.pop()
        self.optional: int | None = slots[parts[0].when] if parts[0].when else None
        self.least: int = self.size if self.optional is None else 0
        self._loads = [_loader(part, kind) for part, kind in zip(parts, kinds, strict=True)]
        #: Whether the values are just those of struct, in both directions.
        self.is_plain: bool = not any(
            isinstance(part, Bits) or kind.load or kind.dump
            for part, kind in zip(parts, kinds, strict=True)
        )
        #: ... and when they are read.
        self.loads_plainly: bool = not any(self._loads)
        first, last = value_names(parts[0])[0], value_names(parts[-1])[-1]
        self._slots = slice(slots[first], slots[last] + 1)
        self._dumps = [_dumper(part, kind, slots) for part, kind in zip(parts, kinds, strict=True)]

    def read(self, data: bytes, at: int, end: int, values: list[Any]) -> int:
        if self.optional is not None and not values[self.optional]:
            values += [None] * sum(len(value_names(part)) for part in self.parts)
            return at
        stop = at + self.size
        if stop > end:
            return -1
        values += self.load(self.struct.unpack_from(data, at))
        return stop

    def load(self, raw: tuple[Any, ...]) -> Sequence[Any]:
        """Return the values, of those of struct.

        Raises:
            BadData: one of them is invalid; the text names its part.
        """
        if self.loads_plainly:
            return raw
        values: list[Any] = []
        for index, (load, value) in enumerate(zip(self._loads, raw, strict=True)):
            if load is None:
                values.append(value)
                continue
            try:
                values += load(value)
            except ValueError as error:
                raise BadData(f"{self.parts[index].name} {error}") from None
        return values

    def dump(self, values: Sequence[Any]) -> bytes:
        if self.optional is not None and not values[self.optional]:
            return b""
        raw: list[Any] = []
        try:
            if self.is_plain:
                raw += values[self._slots]
                return self.struct.pack(*raw)
            for dump in self._dumps:
                raw.append(dump(values))
            return self.struct.pack(*raw)
        except BadData:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise unfit(self.parts[len(raw)].name, error) from None
        except struct.error:
            raise self._guilty(raw) from None

    def _guilty(self, raw: list[Any]) -> BadData:
        """Return the error that names the value that struct refuses."""
        for part, code, value in zip(self.parts, self._codes, raw, strict=True):
            try:
                struct.pack(self.struct.format[0] + code, value)
            except struct.error as error:
                return unfit(part.name, error)
        raise AssertionError("each of them fits")


class OpenStep:
    """A part of open size."""

    def __init__(self, part: Part, byte_order: ByteOrder, slots: dict[str, int]) -> None:
        kind = kind_of(part, byte_order)
        assert isinstance(kind, OpenKind)
        self.parts: tuple[Part, ...] = (part,)
        self.offsets: list[int] = [0]
        self.optional: int | None = slots[part.when] if part.when else None
        self.least: int = kind.least if self.optional is None else 0
        self._kind = kind
        self._slot: int = slots[part.name]

    def read(self, data: bytes, at: int, end: int, values: list[Any]) -> int:
        if self.optional is not None and not values[self.optional]:
            values.append(None)
            return at
        try:
            found = self._kind.read(data, at, end)
        except ValueError as error:
            raise BadData(f"{self.parts[0].name} {error}") from None
        if found is None:
            return -1
        values.append(found[0])
        return found[1]

    def dump(self, values: Sequence[Any]) -> bytes:
        if self.optional is not None and not values[self.optional]:
            return b""
        try:
            return self._kind.dump(values[self._slot])
        except (TypeError, ValueError, AttributeError) as error:
            raise unfit(self.parts[0].name, error) from None


def unfit(name: str, error: Exception) -> BadData:
    """Return the error for a value that cannot be written."""
    return BadData(f"{name} {error}" if isinstance(error, ValueError) else f"{name}: {error}")


def _fixed_kind_of(part: Part, byte_order: ByteOrder) -> FixedKind:
    kind = kind_of(part, byte_order)
    assert isinstance(kind, FixedKind)
    return kind


def _loader(part: Part, kind: FixedKind) -> Callable[[Any], Sequence[Any]] | None:
    """Return what makes the values of a part of what struct unpacks; None: it is the value."""
    if isinstance(part, Bits):
        return partial(_split, _shifts(part))
    if kind.load is None:
        return None
    load = kind.load
    return lambda raw: (load(raw),)


def _dumper(part: Part, kind: FixedKind, slots: dict[str, int]) -> Callable[[Sequence[Any]], Any]:
    """Return what makes, of the values of the frame, what struct packs."""
    if isinstance(part, Bits):
        return partial(_joined, part, _shifts(part), slots[part.fields[0].name])
    slot = slots[part.name]
    if kind.dump is None:
        return itemgetter(slot)
    dump = kind.dump
    return lambda values: dump(values[slot])


def _shifts(bits: Bits) -> list[tuple[int, int]]:
    """Return by how much to shift each field, and its greatest value."""
    widths = [cast(int, field.kind) for field in bits.fields]
    return [(sum(widths[index + 1 :]), (1 << width) - 1) for index, width in enumerate(widths)]


def _split(shifts: list[tuple[int, int]], raw: int) -> list[int]:
    return [raw >> shift & most for shift, most in shifts]


def _joined(bits: Bits, shifts: list[tuple[int, int]], first: int, values: Sequence[Any]) -> int:
    raw = 0
    for index, (shift, most) in enumerate(shifts):
        value = values[first + index]
        if not isinstance(value, int) or not 0 <= value <= most:
            raise BadData(f"{bits.fields[index].name} must be between 0 and {most}, not {value!r}")
        raw |= value << shift
    return raw
