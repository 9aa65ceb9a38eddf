"""The encoder of a declared frame."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from tao.atomic import AtomicInt64
from tao.errors import BadData
from tao.framing.layout import Layout
from tao.framing.parts import MISSING, Field, Magic
from tao.framing.steps import FixedStep, kind_of, make_steps, value_names
from tao.safe_text import safe_repr
from tao.wire.codec import serialized
from tao.wire.message import Message

__all__ = ["FrameEncoder"]


class FrameEncoder:
    """Makes frames of messages. May be used by any thread.

    Args:
        layout: where the parts are.
        max_bytes: the longest frame allowed.
        number_slots: where the message number is, or its parts.
        correlate: the field that has an id, or None.
    """

    def __init__(
        self, layout: Layout, max_bytes: int, number_slots: tuple[int, ...], correlate: str | None
    ) -> None:
        self._layout: Layout = layout
        self._max_bytes: int = max_bytes
        self._number_slots: tuple[int, ...] = number_slots
        self._fields: dict[str, Field] = {field.name: field for field in layout.fields()}
        self._correlate: str | None = correlate
        self._ids = AtomicInt64()
        self.most_id: int = self._find_most_id()  #: the greatest id
        # The values of a frame, as far as they are known.
        self._template: list[Any] = self._make_template()
        self._is_complete: bool = MISSING not in self._template
        self._length_slot: int | None = (
            None if layout.length is None else layout.slots[layout.length.name]
        )
        # The step of the head that has the length; -1: none has.
        self._length_step: int = self._find_length_step()
        # The head, if it is of constant size; what the length covers beside the body.
        self._fixed_head: FixedStep | None = None
        self._length_extra: int = 0
        if len(layout.head) == 1 and isinstance(layout.head[0], FixedStep):
            self._fixed_head = layout.head[0]
            self._length_extra = self._find_length_extra(self._fixed_head.size)
        # Packs the head, if it is of constant size.
        self._pack: Callable[..., bytes] = (
            struct.pack if self._fixed_head is None else self._fixed_head.struct.pack
        )
        # The slots of number and length, if nothing else is to be done.
        self._quick_slots: tuple[int, int] | None = self._find_quick_slots()
        self._check_values()

    def encode(self, message: Message, header: Mapping[str, Any] | None) -> bytes:
        """Return the frame of a message, see `Frame.encode`."""
        values, slots = list(self._template), self._quick_slots
        if slots is not None and not header:
            try:
                body = message.serialize()
                if type(body) is bytes:
                    values[slots[0]] = message.message_number
                    values[slots[1]] = len(body) + self._length_extra
                    frame = self._pack(*values) + body
                    if len(frame) <= self._max_bytes:
                        return frame
            except (AttributeError, TypeError, struct.error):
                pass  # below it is said why
        body = serialized(message)
        if self._number_slots:
            self._put_number(values, message.message_number)
        if header:
            self._put_header(values, header)
            self._check_absent(values, header)
        if not self._is_complete:
            self._fill(values)
        frame = self._assemble(values, body)
        if len(frame) > self._max_bytes:
            raise BadData(
                f"the frame of {type(message).__name__} has {len(frame)} bytes, the limit is "
                f"{self._max_bytes}"
            )
        return frame

    def keepalive(self) -> bytes:
        """Return the frame whose length is zero; b"" if there is none that says so."""
        layout, values = self._layout, self._template
        if layout.length is None or not layout.length.zero_is_keepalive:
            return b""
        head = layout.head[: self._length_step + 1]
        if MISSING in values[: self._length_slot]:
            return b""
        return b"".join(step.dump(values) for step in head)

    # -- values

    def _make_template(self) -> list[Any]:
        values: list[Any] = [0] * len(self._layout.slots)
        for part in self._layout.parts:
            if isinstance(part, Magic):
                values[self._layout.slots[part.name]] = part.value
        for field in self._fields.values():
            slot = self._layout.slots[field.name]
            if slot not in self._number_slots:
                values[slot] = field.default if field.const is MISSING else field.const
        return values

    def _find_length_step(self) -> int:
        length = self._layout.length
        for index, step in enumerate(self._layout.head):
            if any(length in (part, *getattr(part, "fields", ())) for part in step.parts):
                return index
        return -1

    def _find_length_extra(self, size: int) -> int:
        """Return what the length covers beside the body, after a head of constant size."""
        layout = self._layout
        if layout.covers is None:
            return 0
        first, after = (layout.position(index, (0, size), size) for index in layout.covers)
        return after - first

    def _check_values(self) -> None:
        """Refuse constants and defaults that do not fit."""
        layout = self._layout
        values = [0 if value is MISSING else value for value in self._template]
        for field in self._fields.values():
            if field.const is MISSING and field.default is MISSING:
                continue
            for part in layout.parts:
                if field is part or field in getattr(part, "fields", ()):
                    [step] = make_steps([part], layout.byte_order, layout.slots)
                    step.optional = None
                    try:
                        step.dump(values)
                    except BadData as error:
                        raise ValueError(f"{field}: {error}") from None

    def _find_quick_slots(self) -> tuple[int, int] | None:
        layout, head, length = self._layout, self._fixed_head, self._layout.length
        if head is None or not head.is_plain or not self._is_complete or layout.checks:
            return None
        if layout.trail is not None or length is None or length.unit != 1:
            return None
        if length.zero_is_keepalive or len(self._number_slots) != 1:
            return None
        return self._number_slots[0], layout.slots[length.name]

    def _find_most_id(self) -> int:
        """Return the greatest id."""
        if self._correlate is None:
            return 0
        field = self._fields[self._correlate]
        if isinstance(field.kind, int):
            return (1 << field.kind) - 1
        most = kind_of(field, self._layout.byte_order).most
        if most is None:
            raise ValueError(f"{field} must be an integer to correlate requests and replies")
        return most

    def check_number(self, number: Any, constant: Any) -> None:
        """Check a message number, see `Frame.check_number`; ``constant``: if no field has it."""
        if not self._number_slots:
            if number != constant:
                raise ValueError(
                    f"all messages of this frame have the number {constant!r}, so none has "
                    f"{safe_repr(number)}"
                )
            return
        values = [0] * len(self._template)
        self._put_number(values, number)
        for part in self._layout.parts:
            slots = [self._layout.slots[name] for name in value_names(part)]
            if not set(slots).isdisjoint(self._number_slots):
                [step] = make_steps([part], self._layout.byte_order, self._layout.slots)
                try:
                    step.dump(values)
                except BadData as error:
                    raise ValueError(f"message_number {safe_repr(number)}: {error}") from None

    def _put_number(self, values: list[Any], number: Any) -> None:
        slots = self._number_slots
        if len(slots) == 1:
            number = (number,)
        elif not isinstance(number, tuple) or len(number) != len(slots):
            raise TypeError(
                f"message_number must be a tuple of {len(slots)}, not {safe_repr(number)}"
            )
        for slot, value in zip(slots, number, strict=True):
            values[slot] = value

    def _put_header(self, values: list[Any], header: Mapping[str, Any]) -> None:
        for name, value in header.items():
            field = self._fields.get(name)
            if field is None:
                raise BadData(f"the header has no field {name!r}; it has {', '.join(self._fields)}")
            slot = self._layout.slots[name]
            if slot in self._number_slots:
                raise BadData(f"{name} is the message number, so it cannot be given in the header")
            if field.const is not MISSING and value != field.const:
                raise BadData(f"{name} is always {field.const!r}, not {value!r}")
            values[slot] = value

    def _check_absent(self, values: list[Any], header: Mapping[str, Any]) -> None:
        """Refuse values for fields that are not there."""
        for name, value in header.items():
            flag = self._fields[name].when
            if flag is not None and value is not None and not values[self._layout.slots[flag]]:
                raise BadData(f"{name} is there only if {flag} is not zero")

    def _fill(self, values: list[Any]) -> None:
        """Give a new id, and refuse what is missing."""
        slots = self._layout.slots
        for name, field in self._fields.items():
            if values[slots[name]] is not MISSING:
                continue
            if name == self._correlate:
                values[slots[name]] = self._ids.increment_and_get() % (self.most_id + 1)
            elif field.when is None or values[slots[field.when]]:
                raise BadData(
                    f"{name} has no value: write(message, header={{{name!r}: ...}}), or declare a "
                    "default"
                )

    # -- bytes

    def _assemble(self, values: list[Any], body: bytes) -> bytes:
        layout = self._layout
        if layout.body.escape is not None:
            body = layout.body.escape.escape(body)
        elif layout.tail is not None:
            tail = layout.tail.value
            if (body + tail).find(tail) < len(body):  # which may be of both
                raise BadData(f"the body contains {tail!r}, which would end the frame")
        if layout.body.size is not None and len(body) != layout.body.size:
            raise BadData(f"the body has {len(body)} bytes, not {layout.body.size}")
        if self._fixed_head is not None:
            if self._length_slot is not None:
                values[self._length_slot] = self._in_units(len(body) + self._length_extra)
            pieces = [self._fixed_head.dump(values)]
        else:
            pieces = self._dump_head(values, len(body))
        if layout.trail is None and not layout.checks:
            return b"".join((*pieces, body))
        trail = b"" if layout.trail is None else layout.trail.dump(values)
        for check in layout.checks:
            starts, whole = _starts(pieces), b"".join((*pieces, body, trail))
            body_end = starts[-1] + len(body)
            values[check.slot] = layout.checksum(check, whole, starts, body_end)
            if check.slot >= layout.head_values:
                trail = layout.trail.dump(values)  # type: ignore[union-attr]
            else:
                pieces = [step.dump(values) for step in layout.head]
        return b"".join((*pieces, body, trail))

    def _dump_head(self, values: list[Any], body_size: int) -> list[bytes]:
        """Return the bytes of each step; that with the length comes last, as it needs the rest."""
        layout, own = self._layout, self._length_step
        pieces = [
            b"" if index == own else step.dump(values) for index, step in enumerate(layout.head)
        ]
        if own >= 0:
            assert layout.covers is not None and self._length_slot is not None
            # Its size is known, or it does not matter, as a length of open size is not covered.
            pieces[own] = bytes(layout.head[own].least)
            starts = _starts(pieces)
            first, after = (
                layout.position(index, starts, starts[-1] + body_size) for index in layout.covers
            )
            values[self._length_slot] = self._in_units(after - first)
            pieces[own] = layout.head[own].dump(values)
        return pieces

    def _in_units(self, covered: int) -> int:
        """Return the value of the length."""
        length = self._layout.length
        assert length is not None
        if length.unit != 1:
            covered, rest = divmod(covered, length.unit)
            if rest:
                raise BadData(
                    f"{length.covers} must be a multiple of {length.unit} bytes, not "
                    f"{covered * length.unit + rest}"
                )
        if not covered and length.zero_is_keepalive:
            raise BadData("the body is empty, but a length of zero is a keep-alive")
        return covered


def _starts(pieces: Sequence[bytes]) -> list[int]:
    return [0, *accumulate(map(len, pieces))]
