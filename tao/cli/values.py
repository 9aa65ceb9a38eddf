"""Convert the lines of ``tao connect`` to messages and back, without I/O.

A value is shown as it could be typed: as text, or as ``hex:`` and digits if it is not printable.
"""

from __future__ import annotations

import codecs
import json
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from tao.cli.common import harmless, parse_number
from tao.errors import BadData
from tao.safe_text import safe_str
from tao.wire.codec import Batch, TypeLengthValueCodec
from tao.wire.message import HEARTBEAT, Registry, default_registry

__all__ = ["Deserializers", "Raw", "RawCodec", "deserializers_of", "parse_line", "value_text"]

#: Message number to what makes a message of bytes.
Deserializers = dict[int, Callable[[bytes], Any]]

_HEADER = struct.Struct("<iI")
_PREFIXES = ("text:", "hex:", "json:")
# What a text may have in it beside printable characters.
_LAYOUT = str.maketrans("", "", "\n\r\t")
# What of a message's repr() is shown, in characters.
_LONGEST_REPR = 1000


class Raw(NamedTuple):
    """A message of which only the bytes are known."""

    message_number: int
    value: bytes

    def serialize(self) -> bytes:
        return self.value


class RawCodec(TypeLengthValueCodec):
    """The default framing, for a program that looks at messages instead of handling them.

    Args:
        came: called with each message as it comes, by the connection's reading thread.
        beat: called when a heartbeat is made.
    """

    def __init__(self, came: Callable[[Raw], object], beat: Callable[[], object]) -> None:
        super().__init__()
        self._came = came
        self._beat = beat

    def decoder(self, registry: Registry) -> Any:
        """Return a decoder that passes every message to ``came``, and appends none."""
        return RawDecoder(self._came, self.max_bytes)

    def heartbeat(self, nanoseconds: int) -> bytes:
        self._beat()
        return super().heartbeat(nanoseconds)


class RawDecoder:
    """The reading half of `RawCodec`."""

    def __init__(self, came: Callable[[Raw], object], max_bytes: int) -> None:
        self._came = came
        self._max_bytes: int = max_bytes
        self._rest = bytearray()  # the beginning of a message

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
            self._came(Raw(number, value))


def parse_line(line: str) -> Raw:
    """Read ``NUMBER VALUE``.

    Raises:
        ValueError, argparse.ArgumentTypeError: it is something else; the text says what is wrong.
    """
    number, _, text = line.partition(" ")
    return Raw(parse_number(number), _parse_value(text))


def _parse_value(text: str) -> bytes:
    kind, _, rest = text.partition(":")
    if kind == "hex":
        try:
            return bytes.fromhex(rest)
        except ValueError:
            raise ValueError(f"hex: wants pairs of hexadecimal digits, not {rest!r}") from None
    if kind == "json":
        return _compact(rest)
    return (rest if kind == "text" else text).encode(errors="surrogateescape")


def _compact(text: str) -> bytes:
    """Return JSON without what it does not need, and refuse what only Python takes for JSON."""
    try:
        text.encode()  # what is no UTF-8 came as surrogates
        value = json.loads(text)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ValueError("that JSON is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("JSON is UTF-8, and that is not") from None
    except ValueError as error:
        raise ValueError(f"that is no JSON: {error}") from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a pair, which JSON can write, but not as it is
        return json.dumps(value, separators=(",", ":")).encode()


def value_text(raw: Raw, known: Deserializers, limit: int) -> str:
    """Write a message as one line.

    Args:
        raw: the message.
        known: what makes messages of bytes; what it makes is shown as well.
        limit: how many bytes of the value are shown.
    """
    number, value = raw
    line = f"{number} ({len(value)} byte{'' if len(value) == 1 else 's'}) {_shown(value, limit)}"
    if number in known:
        line += f" = {_made(known[number], value)}"
    return line.rstrip(" ")


def _shown(value: bytes, limit: int) -> str:
    head = value[:limit]
    whole = len(head) == len(value)
    try:
        # Where it is cut off in the middle of a character, that is left out.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        text = "\0"
    if text.translate(_LAYOUT).isprintable():
        shown = harmless(text)
        if shown.startswith(_PREFIXES):
            shown = f"text:{shown}"
    else:
        shown = f"hex:{head.hex()}"
    return shown if whole else f"{shown} ... and {len(value) - limit} bytes more"


def _made(deserialize: Callable[[bytes], Any], value: bytes) -> str:
    """Return the text that an application's code makes of a value."""
    try:
        message = deserialize(value)
        text = _repr(message)
    except BaseException as error:  # whatever it is, the connection goes on
        text = f"not readable: {type(error).__name__}: {safe_str(error)}"
    text = harmless(text)
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}..."


def _repr(message: Any) -> str:
    kind: Any = type(message)
    if kind.__repr__ is not object.__repr__ or not hasattr(message, "__dict__"):
        return repr(message)
    # Python's own would tell no more than the class and an address.
    return (
        f"{kind.__name__}({', '.join(f'{name}={each!r}' for name, each in vars(message).items())})"
    )


def _attribute(thing: Any, name: str) -> Any:
    """Return an attribute; None if there is none, or it cannot be had now, as a proxy's may."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def deserializers_of(module: ModuleType) -> Deserializers:
    """Return what a module knows: its message classes, and what it registers anywhere."""
    found: Deserializers = {}
    registries = [default_registry]
    for value in list(vars(module).values()):
        if issubclass(type(value), type):
            number, deserialize = (
                _attribute(value, name) for name in ("message_number", "deserialize")
            )
            if isinstance(number, int) and callable(deserialize):
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
    found.pop(HEARTBEAT, None)
    return found
