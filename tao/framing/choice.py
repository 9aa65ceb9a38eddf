"""Several frames in one stream, told apart by their first bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tao.errors import BadData
from tao.framing.decoder import Found, FrameDecoder
from tao.framing.frame import Frame
from tao.wire.codec import Batch, Codec
from tao.wire.message import Message, Registry

__all__ = ["Choice"]


class Choice(Codec):
    """A protocol with several kinds of frames, each with a magic of its own.

    A message is written in the first frame that can hold it, or in the one whose magic is given in
    the header: ``header={"magic": b"..."}``.

    Args:
        frames: each begins with a `Magic`, which is not the beginning of another's.

    Attributes:
        correlate, echo, header_fields: of the first frame.

    Raises:
        TypeError, ValueError: a frame cannot be told from another.
    """

    checks_itself: ClassVar[bool] = True
    takes_headers: ClassVar[bool] = True

    def __init__(self, *frames: Frame) -> None:
        if not frames:
            raise ValueError("a Choice needs frames to choose from")
        for index, frame in enumerate(frames):
            if not isinstance(frame, Frame):
                raise TypeError(f"a Choice is made of frames, not {frame!r}")
            magic = frame.layout.magic
            if not magic:
                raise ValueError(f"{frame} has no Magic to choose it by")
            if frame.resyncs:
                raise ValueError(f"{frame} is one of a Choice, which cannot resynchronise")
            for other in frames[:index]:
                first, second = sorted((magic, other.layout.magic), key=len)
                if second.startswith(first):
                    raise ValueError(f"two frames of a Choice begin with {first!r}")
        self.frames: tuple[Frame, ...] = frames
        self.gives_headers: bool = any(frame.gives_headers for frame in frames)
        self.max_bytes: int = max(frame.max_bytes for frame in frames)
        self.correlate: str | None = frames[0].correlate
        self.greatest_id: int = min(frame.greatest_id for frame in frames)
        self.echo: tuple[str, ...] = frames[0].echo
        self.header_fields: tuple[str, ...] = frames[0].header_fields
        self.reply_when = frames[0].reply_when

    def encode(self, message: Message, header: Mapping[str, Any] | None = None) -> bytes:
        """Return the frame of a message, see `Frame.encode`."""
        first: BadData | None = None
        for frame in self.frames if header is None else self._chosen(header):
            try:
                return frame.encode(message, header and _without_magic(header))
            except BadData as error:
                first = first or error
        assert first is not None
        raise first

    def _chosen(self, header: Mapping[str, Any]) -> Sequence[Frame]:
        """Return the frames that may be used."""
        if "magic" not in header:
            return self.frames
        chosen = [frame for frame in self.frames if frame.layout.magic == header["magic"]]
        if not chosen:
            raise BadData(f"magic cannot be {header['magic']!r}: it is that of no frame")
        return chosen

    def decoder(self, registry: Registry) -> FrameDecoder:
        return _ChoiceDecoder(registry, self)

    def heartbeat(self, conn: Any) -> bytes:
        return self.frames[0].heartbeat(conn)

    def is_heartbeat(self, number: Any) -> bool:
        """Return whether messages of this number only show that the peer is alive."""
        return any(frame.is_heartbeat(number) for frame in self.frames)

    def check_number(self, number: Any) -> None:
        """Check whether a message can have a number, see `Frame.check_number`."""
        errors: list[Exception] = []
        for frame in self.frames:
            try:
                frame.check_number(number)
                return
            except (TypeError, ValueError) as error:
                errors.append(error)
        raise errors[0]

    def reply_header(self, header: Any) -> dict[str, Any]:
        """Return what a reply takes over from its request, see `Frame.reply_header`."""
        return self.frames[0].reply_header(header)

    def explain(self, data: bytes) -> str:
        """Return an annotated dump of a frame, see `Frame.explain`."""
        for frame in self.frames:
            if data.startswith(frame.layout.magic):
                return frame.explain(data)
        return self.frames[0].explain(data)


def _without_magic(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in header.items() if name != "magic"}


class _ChoiceDecoder(FrameDecoder):
    """Has a decoder for each frame, which takes one frame at a time."""

    checks_itself: ClassVar[bool] = True

    def __init__(self, registry: Registry, choice: Choice) -> None:
        super().__init__(registry, choice.max_bytes)
        self._decoders: list[tuple[bytes, FrameDecoder]] = [
            (frame.layout.magic, frame.decoder(registry)) for frame in choice.frames
        ]
        for _, decoder in self._decoders:
            decoder.progress = self.progress

    def frame(self, data: memoryview, start: int) -> Found | None:
        decoder = self._choose(data, start)
        return None if decoder is None else decoder.frame(data, start)

    def decode_frames(self, view: memoryview, start: int, stop: int, batch: Batch) -> int:
        while start < stop:
            decoder = self._choose(view, start)
            if decoder is None:
                break
            end = decoder.decode_frames(view, start, start + 1, batch)
            if end == start:
                break
            start = end
        return start

    def _choose(self, data: memoryview, start: int) -> FrameDecoder | None:
        """Return the decoder of the frame at ``start``; None if more bytes are needed."""
        undecided = False
        for magic, decoder in self._decoders:
            head = bytes(data[start : start + len(magic)])
            if head == magic:
                return decoder
            undecided = undecided or magic.startswith(head)
        if undecided:
            return None
        known = " or ".join(repr(magic) for magic, _ in self._decoders)
        raise BadData(f"a frame begins with {known}, not {bytes(data[start : start + 8])!r}")
