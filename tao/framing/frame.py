"""A frame, declared by its parts: a codec with encoder, decoder and annotated dumps."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from tao.callables import check_callable
from tao.framing.declared_decoder import DeclaredDecoder, PlainDecoder, Plan, is_plain
from tao.framing.decoder import check_max_bytes
from tao.framing.encoder import FrameEncoder
from tao.framing.explain import explain
from tao.framing.kinds import ByteOrder
from tao.framing.layout import Layout
from tao.framing.parts import MISSING, Field, Part
from tao.framing.resync import resync_budget, wants_resync
from tao.wire.codec import Codec
from tao.wire.message import Message, Registry
from tao.wire.numbers import MessageNumber, check_number

__all__ = ["Frame"]


class Frame(Codec):
    """A protocol's frame: a codec for servers and clients.

    A message class stays what it is: ``message_number``, ``serialize()`` for the body, and
    ``deserialize(data)``. The other fields are attributes of ``ctx.header`` in a handler.

    Its methods may be called from any thread.

    Args:
        parts: `Magic`, `Field`, `Bits`, `Length`, `Body`, `Checksum` and `Tail`, in their order on
            the wire.
        max_bytes: the longest frame allowed, in bytes, all parts counted. A longer one is rejected
            as soon as its length is known.
        byte_order: of numbers that do not say: ``"big"`` or ``"little"``.
        number: the message number of all frames, if no field has it.
        numbers: names of the fields that make up the number, if it is a tuple of several.
        on_error: what an invalid frame does: ``"close"`` the connection, or ``"resync"``, which
            searches for the next magic. That needs a checksum, as any bytes could look like a frame
            otherwise.
        resync_bytes: how many bytes may be looked at in vain before the connection is closed after
            all; by default 16 times ``max_bytes``.
        heartbeats: numbers of messages that only show that the peer is alive. Without a handler
            they are skipped.
        heartbeat: the frame that says that this side is alive, or a function that makes it for a
            connection. By default a length of zero where that is a keep-alive, or none.
        reply_when: tells a reply from a request: takes header and number, returns a bool.

    Attributes:
        parts: as given.
        correlate: the name of the field that a reply shares with its request, or None.
        greatest_id: the greatest value of that field.
        echo: the names of the fields that a reply takes over from its request.
        header_fields: the names of the fields that a message may be given a value for.
        gives_headers: whether decoded messages come with a header.
        resyncs: whether it searches for the next frame after an error.
        has_checksum: whether it has one.

    Raises:
        TypeError, ValueError: the declaration contradicts itself; the text names the part.
    """

    #: That the results of `encode` need no check. Not so for a subclass with its own.
    checks_itself: ClassVar[bool] = True
    #: That `encode` takes a header.
    takes_headers: ClassVar[bool] = True

    def __init__(
        self,
        *parts: Part,
        max_bytes: int,
        byte_order: ByteOrder = "big",
        number: MessageNumber = 1,
        numbers: Sequence[str] = (),
        on_error: Literal["close", "resync"] = "close",
        resync_bytes: int | None = None,
        heartbeat: bytes | Callable[[Any], bytes] | None = None,
        heartbeats: Collection[Any] = (),
        reply_when: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        if byte_order not in ("big", "little"):
            raise ValueError(f"byte_order must be 'big' or 'little', not {byte_order!r}")
        check_number(number)
        if reply_when is not None:
            check_callable("reply_when", reply_when, "header", "number")
        layout = Layout(parts, byte_order)
        self.layout: Layout = layout
        self.parts: tuple[Part, ...] = layout.parts
        self.max_bytes: int = check_max_bytes(max_bytes)
        if max_bytes < layout.least:
            raise ValueError(f"max_bytes is {max_bytes}, but a frame has {layout.least} or more")
        self._fields: list[Field] = list(layout.fields())
        number_slots = self._find_number(numbers)
        self.correlate: str | None = self._only("correlate")
        self.echo: tuple[str, ...] = tuple(each.name for each in self._fields if each.echo)
        self.reply_when: Callable[[Any, Any], bool] | None = reply_when
        self.header_fields: tuple[str, ...] = tuple(
            each.name
            for each in self._fields
            if each.const is MISSING and layout.slots[each.name] not in number_slots
        )
        self.gives_headers: bool = bool(self.header_fields)
        self._plan: Plan = Plan(
            layout=layout,
            max_bytes=max_bytes,
            number=number,
            number_slots=number_slots,
            header=self._header_maker() if self.gives_headers else None,
            magic=self._find_magic(on_error),
            budget=resync_budget(on_error, resync_bytes, max_bytes),
        )
        self.resyncs: bool = self._plan.magic is not None
        self.has_checksum: bool = bool(layout.checks)
        self._encoder: FrameEncoder = FrameEncoder(layout, max_bytes, number_slots, self.correlate)
        self.greatest_id: int = self._encoder.most_id
        if isinstance(heartbeats, (str, bytes)):
            raise TypeError(f"heartbeats must be a collection of numbers, not {heartbeats!r}")
        self._heartbeats: frozenset[Any] = frozenset(heartbeats)
        if heartbeat is None:
            heartbeat = self._encoder.keepalive()
        elif not isinstance(heartbeat, bytes):
            check_callable("heartbeat", heartbeat, "conn")
        self._heartbeat: bytes | Callable[[Any], bytes] = heartbeat

    # -- the codec

    def encode(self, message: Message, header: Mapping[str, Any] | None = None) -> bytes:
        """Return the frame of a message.

        Args:
            message: its ``serialize()`` is the body.
            header: values of fields, by name. A field without one has its ``const`` or ``default``;
                a ``correlate`` field a new id.

        Raises:
            BadData: the frame would be too long, or a value does not fit or is missing; the text
                names the field.
        """
        return self._encoder.encode(message, header)

    def decoder(self, registry: Registry) -> DeclaredDecoder:
        if self.layout.body.rest:
            raise ValueError(
                f"{self.layout.body} is the rest of what is between delimiters: give the frame to "
                "Delimited(frame=...)"
            )
        return self.inner_decoder(registry)

    def inner_decoder(self, registry: Registry) -> DeclaredDecoder:
        """Return a decoder whose ``whole`` is given what is between two delimiters."""
        return (PlainDecoder if is_plain(self._plan) else DeclaredDecoder)(registry, self._plan)

    def heartbeat(self, conn: Any) -> bytes:
        made = self._heartbeat
        return made(conn) if callable(made) else made

    def is_heartbeat(self, number: Any) -> bool:
        """Return whether messages of this number only show that the peer is alive."""
        return number in self._heartbeats

    def check_number(self, number: Any) -> None:
        """Check whether a message can have a number.

        Raises:
            TypeError, ValueError: none can; the text names the field that cannot hold it.
        """
        self._encoder.check_number(number, self._plan.number)

    def reply_header(self, header: Any) -> dict[str, Any]:
        """Return what a reply takes over from its request, for ``write(reply, header=...)``.

        Args:
            header: of the request, ``ctx.header``.
        """
        names = self.echo if self.correlate is None else (self.correlate, *self.echo)
        return {name: getattr(header, name) for name in names}

    def explain(self, data: bytes) -> str:
        """Return an annotated dump of a frame: offset, bytes, name and value of each part."""
        return explain(self.layout, data)

    def __repr__(self) -> str:
        return f"Frame({', '.join(part.name for part in self.layout.parts)})"

    # -- the declaration

    def _only(self, role: str) -> str | None:
        """Return the name of the field that has a role, or None."""
        names = [field.name for field in self._fields if getattr(field, role)]
        if len(names) > 1:
            hint = f"; for a tuple of several write numbers={tuple(names)}"
            raise ValueError(
                f"two fields are declared {role}=True: {names[0]!r} and {names[1]!r}"
                f"{hint if role == 'number' else ''}"
            )
        return names[0] if names else None

    def _find_number(self, numbers: Sequence[str]) -> tuple[int, ...]:
        """Return the slots of the fields that are the message number."""
        if isinstance(numbers, str):
            raise TypeError(f"numbers= must be a tuple of names, not {numbers!r}")
        one = self._only("number")
        if numbers and one is not None:
            raise ValueError(f"{one!r} is the number, and numbers= names others")
        known = {field.name: field for field in self._fields}
        names = tuple(numbers) or (() if one is None else (one,))
        for name in names:
            if name not in known:
                raise ValueError(f"numbers= names {name!r}, which is no field")
            if known[name].when is not None:
                raise ValueError(f"{known[name]} is optional, so it cannot be the number")
        return tuple(self.layout.slots[name] for name in names)

    def _header_maker(self) -> Callable[[Sequence[Any]], Any]:
        """Return what makes a header of the values of a frame."""
        make: Any = namedtuple  # type checkers want its names to be literal
        return partial(tuple.__new__, make("Header", self.layout.slots))

    def _find_magic(self, on_error: str) -> bytes | None:
        """Return what to search for after an error; None: the connection is closed."""
        if not wants_resync(on_error):
            return None
        if not self.layout.magic:
            first = self.layout.parts[0]
            raise ValueError(f"on_error='resync' needs a Magic to search for, not {first}")
        if not self.layout.checks:
            raise ValueError(
                "on_error='resync' needs a Checksum: without one, any bytes may look like a frame"
            )
        return self.layout.magic
