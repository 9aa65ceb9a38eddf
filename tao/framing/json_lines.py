"""JSON lines: each line is an object that contains its message number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from tao.errors import BadData
from tao.framing.delimited import DelimitedDecoder, Lines
from tao.framing.values import MAX_BYTES
from tao.safe_text import safe_str
from tao.wire.codec import Batch
from tao.wire.message import Message, Registry
from tao.wire.numbers import check_number

__all__ = ["JsonLines"]


class JsonLines(Lines):
    """A JSON object a line, in UTF-8, of which one member is the message number.

    The body of a message is a dictionary of the other members: ``serialize()`` returns it, or its
    JSON as bytes, and ``deserialize`` is given it. Numbers are ints or strings.

    Args:
        key: the name of the member that is the number.
        max_bytes: the longest line allowed, in bytes.
    """

    checks_itself: ClassVar[bool] = True

    def __init__(self, key: str = "type", max_bytes: int = MAX_BYTES) -> None:
        if not isinstance(key, str):
            raise TypeError(f"key must be a str, not {key!r}")
        super().__init__(max_bytes=max_bytes)
        self.key: str = key

    def encode(self, message: Message, header: object = None) -> bytes:
        body: Any = message.serialize()
        if isinstance(body, bytes):
            body = self._parsed(body)
        if not isinstance(body, Mapping):
            raise TypeError(
                f"{type(message).__name__}.serialize() must return a dict for JSON lines, not "
                f"{type(body).__name__}"
            )
        if self.key in body:
            raise BadData(f"{self.key!r} is the message number, so a message cannot contain it")
        record = {self.key: message.message_number, **body}
        try:
            text = json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            return self.bounded(text.encode() + b"\n")
        except (ValueError, RecursionError) as error:
            if isinstance(error, BadData):
                raise
            raise BadData(f"{type(message).__name__} is no JSON: {safe_str(error)}") from error

    def _parsed(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise BadData("the bytes of a message are no JSON") from None

    def check_number(self, number: Any) -> None:
        if not isinstance(number, (int, str)):
            raise TypeError(
                f"in JSON lines, message_number must be an int or a str, not {number!r}"
            )

    def decoder(self, registry: Registry) -> DelimitedDecoder:
        return _JsonDecoder(registry, self)

    def __repr__(self) -> str:
        return f"JsonLines({self.key!r})"


class _JsonDecoder(DelimitedDecoder):
    def __init__(self, registry: Registry, codec: JsonLines) -> None:
        super().__init__(registry, codec)
        self._key: str = codec.key

    def deliver(self, values: Sequence[bytes], batch: Batch) -> None:
        for line in values:
            try:
                record = json.loads(line, parse_constant=_refuse)
                number = record.pop(self._key)
                check_number(number)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise BadData(f"a line is no JSON object with {self._key!r} in it") from None
            self.deliver_one(number, record, batch)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and the infinities, which only Python takes for JSON
