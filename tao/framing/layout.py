"""A declaration, checked and compiled: which steps there are, and where each part is.

Everything that can be wrong with a declaration is refused here, by an error that names the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tao.errors import BadData
from tao.framing.kinds import ByteOrder, FixedKind, OpenKind, parse_kind
from tao.framing.parts import MISSING, Bits, Body, Checksum, Field, Length, Magic, Part, Tail
from tao.framing.steps import FixedStep, Step, kind_of, make_steps, value_names
from tao.safe_text import safe_repr

__all__ = ["Check", "Layout", "Range"]


class Range(NamedTuple):
    """Consecutive parts, by the index of the first and the index after the last."""

    first: int
    after: int


class Constant(NamedTuple):
    """A value that is always the same."""

    slot: int
    value: Any
    name: str


class Check(NamedTuple):
    """A checksum, the slot of its value, and what it covers."""

    checksum: Checksum
    slot: int
    over: Range


class Layout:
    """The places of the parts of a frame.

    Args:
        parts: in their order on the wire.
        byte_order: of numbers that do not say.

    Attributes:
        slots: by name, the index of each value in the list that the steps make.
        head, trail: the steps before and after the body; the trail is one at most.
        trail_size: in bytes.
        magic: what a frame begins with; b"" if that is not always the same.
        least: the size of a frame with an empty body, at least.
        tail: what the body extends to, if nothing else says where it ends.
        covers: what the length covers.
        checks: the checksums.
        constants: the values that are always the same.
    """

    def __init__(self, parts: Sequence[Part], byte_order: ByteOrder) -> None:
        self.parts: tuple[Part, ...] = tuple(parts)
        self.byte_order: ByteOrder = byte_order
        self._indexes: dict[str, int] = {}
        self.slots: dict[str, int] = {}
        self._name_parts()
        first = self.parts[0] if self.parts else None
        self.magic: bytes = first.value if isinstance(first, Magic) else b""
        body = self._only(Body)
        if body is None:
            raise ValueError("a frame needs a Body()")
        self.body: Body = body
        self.length: Length | None = self._only(Length)
        self._body_index: int = self.parts.index(body)
        self._check_order()
        before, after = self.parts[: self._body_index], self.parts[self._body_index + 1 :]
        self.head: list[Step] = make_steps(before, byte_order, self.slots)
        trail = make_steps(after, byte_order, self.slots)
        self.trail: FixedStep | None = None
        if trail:
            assert isinstance(trail[0], FixedStep)
            self.trail = trail[0]
        self.trail_size: int = 0 if self.trail is None else self.trail.size
        self.least: int = sum(step.least for step in self.head) + self.trail_size
        #: How many values the head has.
        self.head_values: int = sum(len(value_names(part)) for part in before)
        self._places: list[tuple[int | None, int]] = list(self._find_places())
        self.covers: Range | None = self._find_covers()
        self.tail: Tail | None = self._find_tail()
        self.checks: list[Check] = [
            Check(part, self.slots[part.name], self._over(part))
            for part in self.parts
            if isinstance(part, Checksum)
        ]
        self.constants: list[Constant] = list(self._find_constants())
        self._head_constants = [each for each in self.constants if each.slot < self.head_values]
        self._trail_constants = [each for each in self.constants if each.slot >= self.head_values]
        # The slot of a length whose zero is a keep-alive; -1: there is none.
        self._keepalive_slot: int = -1
        if self.length is not None and self.length.zero_is_keepalive:
            self._keepalive_slot = self.slots[self.length.name]

    def fields(self) -> Iterator[Field]:
        """Yield all fields, also those of bits."""
        for part in self.parts:
            if isinstance(part, Field):
                yield part
            elif isinstance(part, Bits):
                yield from (field for field in part.fields if isinstance(field, Field))

    def position(self, index: int, starts: Sequence[int], body_end: int) -> int:
        """Return where a part begins.

        Args:
            index: of the part; after the last one, the end of the frame.
            starts: where each step of the head begins, and then the body.
            body_end: where the body ends.
        """
        step, offset = self._places[index]
        if step is None:
            return body_end + offset
        if not offset:
            return starts[step]
        return min(starts[step] + offset, starts[step + 1])  # there is less of what is optional

    # -- reading

    def read_head(
        self, data: bytes, start: int, size: int, values: list[Any], starts: list[int]
    ) -> int:
        """Read what comes before the body; return where the body begins, or -1 if not yet.

        A keep-alive ends with its length, see `is_keepalive`.

        Args:
            data: the bytes of the frame begin at ``start`` and may go on until ``size``.
            values: to append the values to.
            starts: to append the beginning of each step to, and that of the body.

        Raises:
            BadData: something in it is invalid.
        """
        at = start
        for step in self.head:
            starts.append(at)
            at = step.read(data, at, size, values)
            if at < 0:
                return -1
            if self._keepalive_slot == len(values) - 1 and self.is_keepalive(values):
                break
        starts.append(at)
        check_constants(self._head_constants, values)
        return at

    def is_keepalive(self, values: Sequence[Any]) -> bool:
        """Return whether the length says so, of a head that was read."""
        return self._keepalive_slot >= 0 and not values[self._keepalive_slot]

    def size_so_far(self, start: int, starts: list[int]) -> int:
        """Return how long an incomplete head is at least, after `read_head` has returned -1."""
        return starts[-1] - start + max(1, self.head[len(starts) - 1].least)

    def body_end(self, values: Sequence[Any], starts: Sequence[int], size: int) -> int:
        """Return where the body ends, by its size, by the length, or by the end of the data.

        Raises:
            BadData: the length does not even cover what it must.
        """
        if self.body.size is not None:
            return starts[-1] + self.body.size
        if self.body.rest:
            if size - self.trail_size < starts[-1]:
                raise BadData(f"{size} bytes are too few for a frame")
            return size - self.trail_size
        assert self.covers is not None and self.length is not None
        length: int = values[self.slots[self.length.name]]
        covered_end = self.position(self.covers.first, starts, 0) + length * self.length.unit
        body_end = covered_end - self.position(self.covers.after, starts, 0)
        if body_end < starts[-1]:
            raise BadData(
                f"{self.length.name} is {length}, which is too short for {self.length.covers}"
            )
        return body_end

    def read_trail(self, data: bytes, body_end: int, values: list[Any]) -> None:
        """Read what comes after the body; all of it must be there.

        Raises:
            BadData: something in it is invalid.
        """
        if self.trail is not None:
            self.trail.read(data, body_end, body_end + self.trail_size, values)
            check_constants(self._trail_constants, values)

    # -- checksums

    def checksum(
        self, check: Check, data: bytes | memoryview, starts: Sequence[int], body_end: int
    ) -> int:
        """Return what a checksum should be.

        Args:
            data: what has the frame in it.
            starts, body_end: see `position`.
        """
        first, after = (self.position(index, starts, body_end) for index in check.over)
        escape, body = self.body.escape, starts[-1]
        if escape is None or check.checksum.escaped or not first <= body <= body_end <= after:
            covered = bytes(data[first:after])
        else:
            plain = escape.unescape(bytes(data[body:body_end]))
            covered = b"".join((data[first:body], plain, data[body_end:after]))
        return check.checksum.algorithm.function(covered)

    # -- names

    def _name_parts(self) -> None:
        for index, part in enumerate(self.parts):
            if isinstance(part, type):
                raise TypeError(f"a frame is made of parts; write {part.__name__}(...)")
            if not isinstance(part, Part):
                raise TypeError(f"a frame is made of parts such as Field, not {safe_repr(part)}")
            for name in {part.name, *value_names(part)}:
                if name in self._indexes:
                    raise ValueError(f"there are two parts of the name {name!r}; give one a name=")
                self._indexes[name] = index
            for name in value_names(part):
                self.slots[name] = len(self.slots)

    def _only(self, kind: type[Any]) -> Any:
        """Return the part of that kind, or None."""
        every = [each for part in self.parts for each in (part, *getattr(part, "fields", ()))]
        found = [each for each in every if isinstance(each, kind)]
        if len(found) > 1:
            raise ValueError(f"a frame has one {kind.__name__}; there is also {found[1]}")
        return found[0] if found else None

    def range_of(self, owner: Part, text: str) -> Range:
        """Return the parts that ``"name"`` or ``"first..last"`` means.

        Raises:
            TypeError, ValueError: it means none; the text names the owner.
        """
        if not isinstance(text, str):
            raise TypeError(f"what {owner} covers must be 'first..last', not {safe_repr(text)}")
        first, dots, last = text.partition("..")
        for name in (first, last) if dots else (first,):
            if name not in self._indexes:
                known = ", ".join(self._indexes)
                raise ValueError(f"{owner} covers {text!r}, but there is no {name!r} of {known}")
        found = Range(self._indexes[first], self._indexes[last if dots else first] + 1)
        if found.first >= found.after:
            raise ValueError(f"{owner} covers {text!r}, but {first!r} comes after {last!r}")
        return found

    # -- order

    def _check_order(self) -> None:
        flags: set[str] = set()
        for index, part in enumerate(self.parts):
            if isinstance(part, Body):
                continue
            kind = kind_of(part, self.byte_order)
            if part.when is not None and part.when not in flags:
                raise ValueError(f"{part} depends on {part.when!r}, which is no earlier field")
            if isinstance(part, Bits):
                self._check_bits(part, kind)
            if isinstance(part, (Length, Checksum)) and kind.most is None:
                raise ValueError(f"{part} must be an integer, not a {kind.name}")
            if isinstance(part, Checksum):
                self._check_width(part, kind)
            if index > self._body_index:
                self._check_after_body(part, kind)
            flags.update(value_names(part))

    def _check_after_body(self, part: Part, kind: FixedKind | OpenKind) -> None:
        if isinstance(kind, OpenKind) or part.when is not None:
            raise ValueError(f"{part} comes after the body, so its size must be constant")
        fields = part.fields if isinstance(part, Bits) else (part,)
        if any(isinstance(field, Length) for field in fields):
            raise ValueError(f"{part} must come before the body")

    def _check_width(self, checksum: Checksum, kind: FixedKind | OpenKind) -> None:
        """Refuse a kind that cannot hold the checksum."""
        own = parse_kind(checksum.algorithm.kind, self.byte_order)
        if (kind.most or 0) < (own.most or 0):
            raise ValueError(
                f"{checksum} is {checksum.algorithm.name}, which does not fit a {kind.name}"
            )

    def _check_bits(self, bits: Bits, kind: FixedKind | OpenKind) -> None:
        widths = [field.kind for field in bits.fields if isinstance(field.kind, int)]
        if kind.name[:1] != "u" or not isinstance(kind, FixedKind):
            raise ValueError(f"the kind of {bits} must be u8 to u64, not {bits.kind!r}")
        if sum(widths) != 8 * kind.size:
            raise ValueError(f"the fields of {bits} have {sum(widths)} bits of {8 * kind.size}")

    # -- places

    def _find_places(self) -> Iterator[tuple[int | None, int]]:
        """Yield the step and the offset of each part; the step is None after the body."""
        for index, step in enumerate(self.head):
            yield from ((index, offset) for offset in step.offsets)
        yield len(self.head), 0
        if self.trail is not None:
            yield from ((None, offset) for offset in self.trail.offsets)
        yield None, self.trail_size

    def _find_covers(self) -> Range | None:
        length = self.length
        if length is None:
            return None
        if self.body.size is not None:
            raise ValueError(f"the size of {self.body} is constant, so {length} has no use")
        if self.body.rest:
            raise ValueError(f"{length} says where {self.body} ends, so that is not the rest")
        covers = self.range_of(length, length.covers)
        if not covers.first <= self._body_index < covers.after:
            raise ValueError(
                f"{length} covers {length.covers!r}, which says nothing about the body"
            )
        own = self._indexes[length.name]
        if covers.first <= own and isinstance(kind_of(self.parts[own], self.byte_order), OpenKind):
            raise ValueError(f"{length} cannot cover itself, as its size is not constant")
        if length.zero_is_keepalive and covers != Range(own + 1, len(self.parts)):
            raise ValueError(f"{length} must cover all that follows if zero is a keep-alive")
        return covers

    def _find_tail(self) -> Tail | None:
        if self.length is not None or self.body.size is not None:
            if self.body.escape is not None:
                raise ValueError(f"{self.body} is escaped, so it must extend to a Tail")
            return None
        if self.body.rest:
            return None
        following = self.parts[self._body_index + 1 :][:1]
        if not following or not isinstance(following[0], Tail):
            raise ValueError(
                f"nothing says where {self.body} ends: a frame needs a Length, a Body(size), a "
                "Tail that follows the body, or Body(rest=True) between delimiters"
            )
        escape = self.body.escape
        if escape is not None and following[0].value != escape.end:
            raise ValueError(
                f"{escape} keeps {self.body} free of {escape.end!r}, but {following[0]} is "
                f"{following[0].value!r}"
            )
        return following[0]

    def _over(self, checksum: Checksum) -> Range:
        over = self.range_of(checksum, checksum.over)
        if over.first <= self._indexes[checksum.name] < over.after:
            raise ValueError(f"{checksum} covers {checksum.over!r}, so it would cover itself")
        return over

    def _find_constants(self) -> Iterator[Constant]:
        for part in self.parts:
            if isinstance(part, Magic):
                yield Constant(self.slots[part.name], part.value, part.name)
        for field in self.fields():
            if field.const is not MISSING:
                yield Constant(self.slots[field.name], field.const, field.name)


def check_constants(constants: Sequence[Constant], values: Sequence[Any]) -> None:
    """Raise `BadData` if a value is not what it must be."""
    for slot, wanted, name in constants:
        if slot < len(values) and values[slot] != wanted and values[slot] is not None:
            raise BadData(f"{name} is {values[slot]!r}, not {wanted!r}")
