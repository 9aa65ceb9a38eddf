"""The parts that a frame is declared of, in the order in which they are on the wire."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

from tao.callables import checked_flag
from tao.framing import checksums
from tao.framing.checksums import Algorithm, ChecksumFunction
from tao.framing.stuffing import Stuffing
from tao.safe_text import safe_repr

__all__ = ["MISSING", "Bits", "Body", "Checksum", "Field", "Length", "Magic", "Part", "Tail"]

#: Stands for a value that is not given.
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


class Part:
    """Something that has a place in the frame.

    Attributes:
        name: what ranges, headers, errors and dumps call it.
        when: the field whose value decides whether it is there; None: it always is.
    """

    when: str | None = None

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a {type(self).__name__} must be a string, not {name!r}")
        if not name.isidentifier() or iskeyword(name) or name.startswith("_"):
            raise ValueError(f"{name!r} cannot be the name of a {type(self).__name__}")
        self.name: str = name

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.name!r}"


class Magic(Part):
    """Bytes that are always the same. A frame with others is invalid.

    Args:
        value: the bytes.
        name: for ranges, if there are several.
    """

    def __init__(self, value: bytes, name: str = "magic") -> None:
        super().__init__(name)
        if not isinstance(value, bytes):
            raise TypeError(f"{self} must be bytes, not {safe_repr(value)}")
        if not value:
            raise ValueError(f"{self} is empty")
        self.value: bytes = value


class Tail(Magic):
    """Bytes that are always the same, after the body.

    In a frame without a `Length` whose body has no size, the body extends to the first occurrence
    of the tail that follows it.
    """

    def __init__(self, value: bytes, name: str = "tail") -> None:
        super().__init__(value, name)


class Field(Part):
    """A value in the header.

    A handler finds it in ``ctx.header``. A message that is written takes it from
    ``conn.write(message, header={...})``, or else from ``const`` or ``default``.

    Args:
        name: an identifier.
        kind: how it is written, see `kinds`; inside of `Bits`, its number of bits.
        const: the only value it may have.
        default: its value if a written message does not say.
        number: whether it is the message number, which the registry looks up.
        correlate: whether it is the id that a reply shares with its request.
        echo: whether a reply takes it over from its request.
        end: what a kind without a size ends with.
        when: the name of an earlier field; this one is there only if that is not zero.
    """

    def __init__(
        self,
        name: str,
        kind: str | int,
        *,
        const: Any = MISSING,
        default: Any = MISSING,
        number: bool = False,
        correlate: bool = False,
        echo: bool = False,
        end: bytes | None = None,
        when: str | None = None,
    ) -> None:
        super().__init__(name)
        self.kind: str | int = kind
        self.const: Any = const
        self.default: Any = default
        self.number = checked_flag("number", number)
        self.correlate = checked_flag("correlate", correlate)
        self.echo = checked_flag("echo", echo)
        self.end: bytes | None = end
        self.when = when
        given = [
            each
            for each, value in (
                ("const", const is not MISSING),
                ("number", number),
                ("correlate", correlate),
            )
            if value
        ]
        if len(given) > 1:
            raise ValueError(f"{self} cannot be {' and '.join(given)} at once")
        if const is not MISSING and (default is not MISSING or echo):
            raise ValueError(f"{self} is constant; it needs no default and no echo")


class Length(Part):
    """The size of a part of the frame, from which the size of the body follows.

    Args:
        kind: how it is written, see `kinds`; inside of `Bits`, its number of bits.
        covers: what it counts, by name: ``"body"``, or the first and the last as in
            ``"unit..body"``. It may count itself: ``"length..body"``.
        unit: how many bytes it counts as one.
        zero_is_keepalive: whether zero stands for a keep-alive, a frame without anything that is
            covered, which no handler gets.
        end: what a kind without a size ends with.
    """

    def __init__(
        self,
        kind: str | int,
        covers: str,
        *,
        unit: int = 1,
        zero_is_keepalive: bool = False,
        name: str = "length",
        end: bytes | None = None,
    ) -> None:
        super().__init__(name)
        if not isinstance(unit, int) or isinstance(unit, bool) or unit < 1:
            raise ValueError(f"the unit of {self} must be 1 or more, not {unit!r}")
        self.kind: str | int = kind
        self.covers: str = covers
        self.unit: int = unit
        self.zero_is_keepalive = checked_flag("zero_is_keepalive", zero_is_keepalive)
        self.end: bytes | None = end


class Bits(Part):
    """Fields that share an integer, the most significant first.

    Args:
        kind: of the integer: ``"u8"`` to ``"u64"``.
        fields: a `Field` or `Length` each, with a number of bits as its kind. Together they fill
            the integer.
    """

    def __init__(self, kind: str, *fields: Field | Length, name: str = "bits") -> None:
        super().__init__(name)
        if not fields:
            raise ValueError(f"{self} has no fields")
        for field in fields:
            if not isinstance(field, (Field, Length)):
                raise TypeError(f"{self} is made of Field and Length, not {safe_repr(field)}")
            if not isinstance(field.kind, int) or isinstance(field.kind, bool) or field.kind < 1:
                raise ValueError(f"in Bits, the kind of {field} must be a number of bits")
            if field.when is not None or getattr(field, "zero_is_keepalive", False):
                raise ValueError(f"{field} is among bits; it cannot be optional or a keep-alive")
        self.kind: str = kind
        self.fields: tuple[Field | Length, ...] = fields


class Body(Part):
    """The bytes of the message: what ``serialize()`` returns and ``deserialize()`` takes.

    Args:
        size: its size in bytes, if it is constant.
        escape: how it is kept free of the `Tail` that follows it, if nothing else says where it
            ends: `DLE`, or another `Stuffing`.
        rest: whether it is all that is left between delimiters, see the ``frame`` of `Delimited`.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        escape: Stuffing | None = None,
        rest: bool = False,
        name: str = "body",
    ) -> None:
        super().__init__(name)
        self.rest = checked_flag("rest", rest)
        if escape is not None and not isinstance(escape, Stuffing):
            raise TypeError(
                f"the escape of {self} must be a Stuffing such as DLE, not {safe_repr(escape)}"
            )
        self.escape: Stuffing | None = escape
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise ValueError(f"the size of {self} must be a number of bytes, not {size!r}")
        if rest and (size is not None or escape is not None):
            raise ValueError(f"{self} is the rest, so it has no size and no escape")
        self.size: int | None = size


class Checksum(Part):
    """A checksum over a part of the frame.

    Args:
        algorithm: a name such as ``"crc16-modbus"``, see `checksums`; or a function that takes the
            bytes covered and returns an integer.
        over: what is covered, by name: the first and the last, as in ``"length..body"``.
        escaped: whether an escaped body is covered as it is on the wire, or (by default) as it was
            before.
        kind: how it is written; a function needs this, a name implies it. Text is possible too:
            ``"hex2"``.
    """

    def __init__(
        self,
        algorithm: str | ChecksumFunction,
        over: str,
        *,
        escaped: bool = False,
        kind: str | None = None,
        name: str = "crc",
    ) -> None:
        super().__init__(name)
        if callable(algorithm):
            if kind is None:
                raise ValueError(f"{self} is a function; say its kind as well, such as kind='u16'")
            found = Algorithm(getattr(algorithm, "__name__", name), algorithm, kind)
        elif isinstance(algorithm, str):
            found = checksums.algorithm(algorithm)
        else:
            raise TypeError(f"{self} must be a name or a function, not {safe_repr(algorithm)}")
        self.algorithm: Algorithm = found
        self.kind: str = kind or found.kind
        self.over: str = over
        self.escaped = checked_flag("escaped", escaped)
