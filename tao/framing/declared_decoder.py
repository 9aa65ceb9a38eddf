"""The decoders of a declared frame: for any layout, and a faster one for the commonest.

The commonest layout is a header of constant size with a length in it: there one `struct` call reads
all of the header, and the end of the frame follows by an addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, cast

from tao.errors import BadData
from tao.framing.decoder import Found, FrameDecoder
from tao.framing.layout import Layout
from tao.framing.resync import Resync
from tao.framing.steps import FixedStep
from tao.wire.arrival import Arrival
from tao.wire.codec import Batch, not_deserialized
from tao.wire.message import Registry, unknown

__all__ = ["DeclaredDecoder", "Located", "PlainDecoder", "Plan", "is_plain"]


class Plan(NamedTuple):
    """What a decoder needs to know of a frame.

    Attributes:
        layout: where the parts are.
        max_bytes: the longest frame allowed.
        number: the message number, if it is constant.
        number_slots: otherwise the slots of its parts.
        header: makes the header of all values; None: there is nothing in it.
        magic: what to look for after an error; None: errors close the connection.
        budget: how many bytes may be looked at in vain.
    """

    layout: Layout
    max_bytes: int
    number: Any
    number_slots: tuple[int, ...]
    header: Callable[[Sequence[Any]], Any] | None
    magic: bytes | None
    budget: int


class Located(NamedTuple):
    """A complete frame.

    Attributes:
        end: where it ends.
        body, body_end: where its body is.
        values: the values of all parts, by slot.
        starts: where each step of the head begins, and then the body.
    """

    end: int
    body: int
    body_end: int
    values: list[Any]
    starts: list[int]
    is_keepalive: bool = False


class DeclaredDecoder(FrameDecoder):
    """Decodes frames of any layout.

    Args:
        registry: the messages.
        plan: the frame.
    """

    checks_itself: ClassVar[bool] = True

    def __init__(self, registry: Registry, plan: Plan) -> None:
        super().__init__(registry, plan.max_bytes)
        self._plan: Plan = plan
        self._layout: Layout = plan.layout
        self._resync: Resync | None = None
        if plan.magic is not None:
            self._resync = Resync(plan.magic, plan.budget)

    @property
    def skipped(self) -> int:
        """How many bytes were skipped after invalid frames."""
        return 0 if self._resync is None else self._resync.skipped

    def frame(self, data: memoryview, start: int) -> Found | None:
        located = self.locate(data, start)
        if located is None:
            return None
        self._verify(data, start, located)
        body: bytes | memoryview = data[located.body : located.body_end]
        if self._layout.body.escape is not None:
            body = self._layout.body.escape.unescape(bytes(body))
        return located.end, self._number(located), body

    def decode_frames(self, view: memoryview, start: int, stop: int, batch: Batch) -> int:
        while start < stop:
            located = None
            try:
                located = self.locate(view, start)
                if located is None:
                    break
                self._verify(view, start, located)
            except BadData as error:
                if self._resync is None:
                    raise
                wasted = 0 if located is None else located.end - start
                start = self._resync.skip(view, start, error, wasted)
                continue
            if self._resync is not None:
                self._resync.good()
            self.append(batch, view, located)
            start = located.end
        return start

    def whole(self, data: bytes) -> Located:
        """Return where the parts of the one frame are of which ``data`` consists.

        Raises:
            BadData: it is invalid, or more or less than one.
        """
        view = memoryview(data)
        located = self.locate(view, 0)
        if located is None or located.end != len(data):
            raise BadData("there is no whole frame between two delimiters")
        self._verify(view, 0, located)
        return located

    def _unknown(self, number: Any, value: bytes, values: Any) -> Any:
        """Return what stands for a message of an unregistered number."""
        message = unknown(self.entries, number, value)
        if self._plan.header is None:
            return message
        return Arrival(message, self._plan.header(values))

    def append(self, batch: Batch, view: memoryview, located: Located) -> None:
        """Append the message of a frame, unless it is a keep-alive."""
        if located.is_keepalive:
            return
        number = self._number(located)
        entry = self.entries.get(number)
        value = bytes(view[located.body : located.body_end])
        if self._layout.body.escape is not None:
            value = self._layout.body.escape.unescape(value)
        if entry is None:
            batch.append((number, self._unknown(number, value, located.values)))
            return
        try:
            message = entry.deserialize(value)
        except Exception as error:
            raise not_deserialized(number, error) from error
        if self._plan.header is not None:
            message = Arrival(message, self._plan.header(located.values))
        batch.append((number, message))

    def _number(self, located: Located) -> Any:
        plan, values = self._plan, located.values
        if located.is_keepalive:
            return None
        if not plan.number_slots:
            return plan.number
        if len(plan.number_slots) == 1:
            return values[plan.number_slots[0]]
        return tuple(values[slot] for slot in plan.number_slots)

    # -- where a frame is

    def locate(self, data: memoryview, start: int) -> Located | None:
        """Find the frame at ``start``; None if it is not complete.

        Raises:
            BadData: it is invalid.
        """
        layout = self._layout
        source, size = cast(bytes, data.obj), len(data)
        values: list[Any] = []
        starts: list[int] = []
        body = layout.read_head(source, start, size, values, starts)
        if body < 0:
            if layout.magic and not layout.magic.startswith(
                source[start : start + len(layout.magic)]
            ):
                raise BadData(f"{layout.parts[0].name} is not {layout.magic!r}")
            self.need(start, layout.size_so_far(start, starts))
            return None
        if layout.is_keepalive(values):
            return Located(body, body, body, values, starts, is_keepalive=True)
        body_end = self._body_end(data, start, values, starts)
        if body_end is None:
            return None
        end = body_end + layout.trail_size
        if end > size or end - start > self.max_bytes:
            self.need(start, end - start)
            return None
        layout.read_trail(source, body_end, values)
        return Located(end, body, body_end, values, starts)

    def _body_end(
        self, data: memoryview, start: int, values: list[Any], starts: list[int]
    ) -> int | None:
        layout = self._layout
        if layout.tail is None:
            return layout.body_end(values, starts, len(data))
        escape = layout.body.escape
        find = self.find_single if escape is not None and escape.doubled else self.find
        found = find(data, start, layout.tail.value, starts[-1] - start)
        return None if found < 0 else found

    def _verify(self, data: memoryview, start: int, located: Located) -> None:
        """Raise `BadData` if a checksum is wrong."""
        if located.is_keepalive:
            return
        for check in self._layout.checks:
            wanted = self._layout.checksum(check, data, located.starts, located.body_end)
            if located.values[check.slot] != wanted:
                raise BadData(
                    f"{check.checksum.name} is {located.values[check.slot]:#x}, not {wanted:#x}"
                )


class PlainDecoder(DeclaredDecoder):
    """Decodes frames of the commonest layout, see `is_plain`."""

    checks_itself: ClassVar[bool] = True

    def __init__(self, registry: Registry, plan: Plan) -> None:
        super().__init__(registry, plan)
        layout, slots = plan.layout, plan.layout.slots
        assert layout.length is not None and layout.covers is not None
        self._head: FixedStep = cast(FixedStep, layout.head[0])
        self._length_slot: int = slots[layout.length.name]
        self._unit: int = layout.length.unit
        # The size of a frame whose length is zero.
        starts = (0, self._head.size)
        covered = layout.position(layout.covers.first, starts, 0)
        uncovered = layout.trail_size - layout.position(layout.covers.after, starts, 0)
        self._size_at_zero: int = covered + uncovered
        self._load = None if self._head.loads_plainly else self._head.load
        # Takes the message number of the values; None: it is constant.
        self._number_of: Callable[[Sequence[Any]], Any] | None = None
        if plan.number_slots:
            self._number_of = itemgetter(*plan.number_slots)
        # Takes the values that must be constant, and what they must be.
        self._constants: Callable[[Sequence[Any]], Any] | None = None
        self._wanted: Any = None
        if layout.constants:
            self._constants = itemgetter(*(slot for slot, _, _ in layout.constants))
            wanted = tuple(value for _, value, _ in layout.constants)
            self._wanted = wanted if len(wanted) > 1 else wanted[0]

    def decode(self, data: bytes, batch: Batch) -> int:
        return self._decode(data, 0, len(data), batch)

    def decode_frames(self, view: memoryview, start: int, stop: int, batch: Batch) -> int:
        source = view.obj
        if type(source) is bytes:
            return self._decode(source, start, stop, batch)
        return super().decode_frames(view, start, stop, batch)

    def _decode(self, data: bytes, start: int, stop: int, batch: Batch) -> int:
        plan, layout, entries, append = self._plan, self._layout, self.entries, batch.append
        unpack, head_size, load = self._head.struct.unpack_from, self._head.size, self._load
        trail, trail_size = layout.trail, layout.trail_size
        length_slot, size_at_zero, unit = self._length_slot, self._size_at_zero, self._unit
        constants, wanted, checks = self._constants, self._wanted, layout.checks
        number, number_of, make_header = plan.number, self._number_of, plan.header
        size, most = len(data), self.max_bytes
        body = start + head_size
        while start < stop and body <= size:
            raw = unpack(data, start)
            values: Sequence[Any] = raw if load is None else load(raw)
            end = start + size_at_zero + values[length_slot] * unit
            body_end = end - trail_size
            good = body <= body_end and end <= size and end - start <= most
            if good and trail is not None:
                values = (*values, *trail.load(trail.struct.unpack_from(data, body_end)))
            if (
                not good
                or (constants is not None and constants(values) != wanted)
                or (checks and self._is_wrong(data, start, body_end, values))
            ):
                # This finds out what it is: incomplete or invalid.
                return super().decode_frames(memoryview(data), start, stop, batch)
            if number_of is not None:
                number = number_of(values)
            entry = entries.get(number)
            if entry is None:
                append((number, self._unknown(number, data[body:body_end], values)))
            else:
                try:
                    message = entry.deserialize(data[body:body_end])
                except Exception as error:
                    raise not_deserialized(number, error) from error
                if make_header is not None:
                    message = Arrival(message, make_header(values))
                append((number, message))
            start = end
            body = start + head_size
        return start

    def _is_wrong(self, data: bytes, start: int, stop: int, values: Sequence[Any]) -> bool:
        """Return whether a checksum is wrong."""
        starts = (start, start + self._head.size)
        return any(
            values[check.slot] != self._layout.checksum(check, data, starts, stop)
            for check in self._layout.checks
        )


def is_plain(plan: Plan) -> bool:
    """Return whether `PlainDecoder` can decode it."""
    layout = plan.layout
    return (
        len(layout.head) == 1
        and isinstance(layout.head[0], FixedStep)
        and layout.head[0].optional is None
        and layout.covers is not None
        and plan.magic is None
        and not (layout.length and layout.length.zero_is_keepalive)
    )
