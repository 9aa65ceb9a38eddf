"""Convert the lines of ``tao connect`` to messages and back, without I/O.

A value is shown in the form in which it can be typed: as text, or as ``hex:`` and digits if it is
not printable.
"""

from __future__ import annotations

import codecs
import json
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from tao.cli.common import parse_number
from tao.errors import BadData
from tao.safe_text import printable, safe_str
from tao.wire.capabilities import SIZE as CAPABILITIES_SIZE
from tao.wire.codec import Batch, TypeLengthValueCodec
from tao.wire.message import ANY, HEARTBEAT, Registration, Registry, default_registry
from tao.wire.numbers import OWN_NUMBERS

__all__ = [
    "Deserializers",
    "Raw",
    "RawCodec",
    "deserializers_of",
    "parse_line",
    "raw_registry",
    "value_text",
]

#: Maps a message number to the function that makes a message from bytes.
Deserializers = dict[Any, Callable[[bytes], Any]]

_HEADER = struct.Struct("<iI")
_PREFIXES = ("text:", "hex:", "json:")
# Removes the characters that text may contain beside printable ones.
_LAYOUT = str.maketrans("", "", "\n\r\t")
# How much of a message's repr() is shown, in characters.
_LONGEST_REPR = 1000


class Raw(NamedTuple):
    """A message as bytes, without a class; and the fields of its frame, if it has any."""

    message_number: Any
    value: Any
    header: Any = None

    def serialize(self) -> Any:
        return self.value


class RawCodec(TypeLengthValueCodec):
    """The default framing, for a program that shows messages instead of handling them.

    Args:
        came: called with each received message, by the connection's reading thread.
        beat: called when a heartbeat is encoded.
    """

    def __init__(self, came: Callable[[Raw], object], beat: Callable[[], object]) -> None:
        super().__init__()
        self._came = came
        self._beat = beat

    def decoder(self, registry: Registry) -> Any:
        """Return a decoder that passes every message to ``came``, and adds none to the batch."""
        return RawDecoder(self._came, self.max_bytes)

    def is_heartbeat(self, number: Any) -> bool:
        return bool(number == HEARTBEAT)

    def heartbeat(self, nanoseconds: int) -> bytes:
        self._beat()
        return super().heartbeat(nanoseconds)


class RawDecoder:
    """The decoder of `RawCodec`."""

    def __init__(self, came: Callable[[Raw], object], max_bytes: int) -> None:
        self._came = came
        self._max_bytes: int = max_bytes
        self._rest = bytearray()  # the beginning of a message
        #: See `tao.wire.codec.TypeLengthValueDecoder`.
        self.own: Callable[[int, bytes, Batch], object] | None = None

    def feed(self, data: bytes, batch: Batch) -> None:
        rest = self._rest
        rest += data
        while len(rest) >= _HEADER.size:
            number, length = _HEADER.unpack_from(rest)
            if length > self._max_bytes:
                raise BadData(
                    f"message {number} announces {length} bytes, the limit is {self._max_bytes}"
                )
            end = _HEADER.size + length
            if len(rest) < end:
                return
            value = bytes(rest[_HEADER.size : end])
            del rest[:end]
            tells = number == HEARTBEAT and length == CAPABILITIES_SIZE
            if self.own is not None and (tells or number in OWN_NUMBERS):
                self.own(number, value, batch)
            if number not in OWN_NUMBERS:
                self._came(Raw(number, value))


def raw_registry() -> Registry:
    """Return a registry in which every number stands for a `Raw` message."""
    registry = Registry()
    registry.entries = _RawEntries()
    return registry


class _RawEntries(dict[Any, Registration]):
    """Entries whose `get` returns one for every number."""

    def get(self, number: Any, default: Any = None) -> Any:
        return Registration(number, lambda value: Raw(number, value))


def parse_line(line: str, number_of: Callable[[str], Any] = parse_number) -> Raw:
    """Parse ``NUMBER VALUE``; ``number_of`` parses the first.

    Raises:
        ValueError, argparse.ArgumentTypeError: the line is invalid; the text says why.
    """
    number, _, text = line.partition(" ")
    return Raw(number_of(number), _parse_value(text))


def _parse_value(text: str) -> bytes:
    kind, _, rest = text.partition(":")
    if kind == "hex":
        try:
            return bytes.fromhex(rest)
        except ValueError:
            raise ValueError(f"expected pairs of hexadecimal digits, not {rest!r}") from None
    if kind == "json":
        return _compact(rest)
    return (rest if kind == "text" else text).encode(errors="surrogateescape")


def _compact(text: str) -> bytes:
    """Return JSON without spaces; refuse NaN and the like, which only Python accepts."""
    try:
        text.encode()  # fails on surrogates, which stand for bytes that are not UTF-8
        value = json.loads(text)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("the JSON is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"invalid JSON: {error}") from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only escape
        return json.dumps(value, separators=(",", ":")).encode()


def value_text(raw: Raw, known: Deserializers, limit: int) -> str:
    """Format a message as one line.

    Args:
        raw: the message.
        known: the deserializers; a message that one of them makes is shown after the bytes.
        limit: how many bytes of the value are shown.
    """
    number, value, header = raw
    if not isinstance(value, bytes):
        return f"{printable(str(number))} {_made(lambda _: value, b'')}"
    line = f"{number} ({len(value)} byte{'' if len(value) == 1 else 's'}) {_shown(value, limit)}"
    if header:
        line += (
            f" {{{', '.join(f'{name}={printable(repr(each))}' for name, each in header.items())}}}"
        )
    if number in known:
        line += f" = {_made(known[number], value)}"
    return line.rstrip(" ")


def _shown(value: bytes, limit: int) -> str:
    head = value[:limit]
    whole = len(head) == len(value)
    try:
        # If the limit falls within a character, the incremental decoder leaves that out.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        text = "\0"
    if text.translate(_LAYOUT).isprintable():
        shown = printable(text)
        if shown.startswith(_PREFIXES):
            shown = f"text:{shown}"
    else:
        shown = f"hex:{head.hex()}"
    return shown if whole else f"{shown} ... and {len(value) - limit} more bytes"


def _made(deserialize: Callable[[bytes], Any], value: bytes) -> str:
    """Return the repr of the message that the application's code makes from a value."""
    try:
        message = deserialize(value)
        text = _repr(message)
    except BaseException as error:  # no error of the application's may close the connection
        text = f"cannot be decoded: {type(error).__name__}: {safe_str(error)}"
    text = printable(text)
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}..."


def _repr(message: Any) -> str:
    kind: Any = type(message)
    if kind.__repr__ is not object.__repr__ or not hasattr(message, "__dict__"):
        return repr(message)
    # The default repr() shows only the class and an address.
    return (
        f"{kind.__name__}({', '.join(f'{name}={each!r}' for name, each in vars(message).items())})"
    )


def _attribute(thing: Any, name: str) -> Any:
    """Return an attribute; None if it does not exist or raises, as a proxy's may."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def deserializers_of(module: ModuleType) -> Deserializers:
    """Return the deserializers of a module's message classes and of all that it registers."""
    found: Deserializers = {}
    registries = [default_registry]
    for value in list(vars(module).values()):
        if issubclass(type(value), type):
            number, deserialize = (
                _attribute(value, name) for name in ("message_number", "deserialize")
            )
            if isinstance(number, (int, str, bytes, tuple)) and callable(deserialize):
                found[number] = deserialize
        else:
            registries += [
                each
                for each in (value, _attribute(value, "registry"))
                if issubclass(type(each), Registry)
            ]
    for registry in registries:
        for number, registration in registry.entries.items():
            found[number] = registration.deserialize
    for number in (HEARTBEAT, ANY):
        found.pop(number, None)
    return found
