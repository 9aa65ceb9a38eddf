"""Codecs named on the command line: ``--codec PRESET`` or ``--codec MODULE:FRAME``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from tao.cli.common import WrongCall, import_module, quoted, raised_in
from tao.cli.values import Raw
from tao.errors import BadData
from tao.safe_text import safe_repr
from tao.wire.arrival import Arrival
from tao.wire.codec import Batch, Codec
from tao.wire.message import Registration, Registry

__all__ = [
    "CodecCounter",
    "ShownCodec",
    "encode_raw",
    "find_codec",
    "parse_any_number",
    "parse_header",
]

_WHOLE_NUMBER = re.compile(r"-?\d+|0x[0-9a-fA-F]+")


def find_codec(name: str) -> Any:
    """Return the codec of a name.

    Args:
        name: a preset, or ``MODULE:NAME`` of a codec or of a function that returns one.

    Raises:
        WrongCall: there is none of that name.
    """
    from tao.framing import presets

    if ":" not in name:
        if name not in presets.__all__:
            known = ", ".join(presets.__all__)
            raise WrongCall(f"there is no preset {quoted(name)}; there are {known}")
        return getattr(presets, name)()
    module_name, _, path = name.partition(":")
    found: Any = import_module(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise WrongCall(f"{module_name} has no {path}") from None
    if callable(found) and not isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise raised_in(f"{name}() raises", error, debug=None) from error
    if isinstance(found, type) or not hasattr(found, "encode") or not hasattr(found, "decoder"):
        raise WrongCall(f"{name} is not a codec, which has encode() and decoder()")
    return found


def parse_any_number(text: str) -> Any:
    """Parse a message number of any codec: an int, a text, or several with commas between."""
    parts = [int(each, 0) if _WHOLE_NUMBER.fullmatch(each) else each for each in text.split(",")]
    return parts[0] if len(parts) == 1 else tuple(parts)


def parse_header(words: Sequence[str], codec: Any) -> dict[str, Any]:
    """Return the fields of messages that are sent.

    Args:
        words: ``NAME=VALUE`` each; a value is an int, ``hex:...`` or text.
        codec: what the messages are written with.

    Raises:
        WrongCall: a word is something else.
    """
    if words and not getattr(codec, "takes_headers", False):
        raise WrongCall("--header needs a --codec whose frames have other fields")
    header: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise WrongCall(f"expected NAME=VALUE, not {quoted(word)}")
        value: Any = text
        if _WHOLE_NUMBER.fullmatch(text):
            value = int(text, 0)
        elif text.startswith("hex:"):
            try:
                value = bytes.fromhex(text.removeprefix("hex:"))
            except ValueError:
                raise WrongCall(
                    f"hex: wants pairs of hexadecimal digits, not {quoted(text)}"
                ) from None
        header[name] = value
    return header


def encode_raw(codec: Any, raw: Raw, header: dict[str, Any]) -> bytes:
    """Return the frame of a message whose number was typed: ``8`` may be meant as a text.

    Raises:
        BadData, TypeError: it cannot be encoded.
    """
    number = raw.message_number
    errors: list[Exception] = []
    for meant in (number, str(number), str(number).encode()):
        message = raw._replace(message_number=meant)
        try:
            frame: bytes = codec.encode(message, header) if header else codec.encode(message)
            return frame
        except (BadData, TypeError) as error:
            errors.append(error)
    raise errors[0]


class ShownCodec(Codec):
    """A codec for a program that looks at messages instead of handling them.

    Args:
        codec: the codec that is spoken.
        header: values for the fields of each message that is written.
        came: called with each received message, by the connection's reading thread.
        beat: called when a heartbeat is made.
    """

    def __init__(
        self,
        codec: Any,
        header: dict[str, Any],
        came: Callable[[Raw], object],
        beat: Callable[[], object],
    ) -> None:
        self._codec = codec
        self._header = header
        self._came = came
        self._beat = beat

    def encode(self, message: Any) -> bytes:
        return encode_raw(self._codec, message, self._header)

    def is_heartbeat(self, number: Any) -> bool:
        return is_heartbeat(self._codec, number)

    def decoder(self, registry: Registry) -> Any:
        """Return a decoder that passes every message to ``came``, and appends none."""
        fields = getattr(self._codec, "header_fields", ())
        return _ShownDecoder(self._codec.decoder(_everything()), fields, self._came)

    def heartbeat(self, nanoseconds: int) -> bytes:
        make = getattr(self._codec, "heartbeat", None)
        frame: bytes = b"" if make is None else make(nanoseconds)
        if frame:
            self._beat()
        return frame


class _ShownDecoder:
    """The reading half of `ShownCodec`."""

    def __init__(self, decoder: Any, fields: Sequence[str], came: Callable[[Raw], object]) -> None:
        self._decoder = decoder
        self._fields = fields
        self._came = came

    def feed(self, data: bytes, batch: Batch) -> None:
        found: Batch = []
        try:
            self._decoder.feed(data, found)
        finally:
            for number, each in found:
                if type(each) is Arrival:
                    header = {name: getattr(each.header, name) for name in self._fields}
                    self._came(Raw(number, _bytes_of(each.message), header))
                else:
                    self._came(Raw(number, _bytes_of(each)))

    def end(self) -> None:
        """Reject a stream that ends within a frame, if the codec's decoder does."""
        end = getattr(self._decoder, "end", None)
        if end is not None:
            end()


def _bytes_of(value: Any) -> bytes:
    """Return a value as bytes; one that a codec has made something else of, as JSON."""
    if isinstance(value, bytes):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=safe_repr).encode(
        errors="backslashreplace"
    )


class CodecCounter:
    """Counts the messages in a stream, without heartbeats, as `ReplyCounter` does."""

    def __init__(self, codec: Any) -> None:
        self._decoder = codec.decoder(_everything())
        self._codec = codec

    def feed(self, data: memoryview) -> int:
        """Return the number of messages that ``data`` completes."""
        batch: Batch = []
        self._decoder.feed(bytes(data), batch)
        return sum(not is_heartbeat(self._codec, number) for number, _ in batch)


def is_heartbeat(codec: Any, number: Any) -> bool:
    """Return whether messages of a number only show that the peer is alive; a codec may not say."""
    check = getattr(codec, "is_heartbeat", None)
    return check is not None and bool(check(number))


def _everything() -> Registry:
    """Return a registry in which every number stands for the value itself."""
    registry = Registry()
    registry.entries = _Everything()
    return registry


class _Everything(dict[Any, Registration]):
    """Entries whose `get` returns one for every number."""

    def get(self, number: Any, default: Any = None) -> Any:
        return Registration(number, lambda value: value)
