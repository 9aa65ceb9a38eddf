"""Messages whose value is declared by annotations: numbers, texts, lists, and nested messages."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_origin, get_type_hints

from tao.errors import BadData
from tao.safe_text import safe_repr, safe_str
from tao.wire.numbers import MessageNumber, check_number
from tao.wire.struct_compiler import Reader, Writer, reader, writer
from tao.wire.struct_kinds import Array, Kind, is_rest, kind_of, least_size

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**options: Any) -> Callable[[Any], Any]:
        return lambda cls: cls


__all__ = ["StructMessage"]

_MessageT = TypeVar("_MessageT", bound="StructMessage")
_ORDERS = {"big": ">", "little": "<"}
_MISSING = object()


@dataclass_transform(eq_default=True)
class StructMessage:
    """A message whose fields are annotated: a subclass has constructor, bytes, equality and repr.

    ::

        class Position(tao.StructMessage, number=7, byte_order="big"):
            device: f.u32
            latitude: f.f64
            name: Annotated[str, f.Counted("u8")]
            track: list[Point]

    Fields are numbers (``u8`` to ``u64``, ``i8`` to ``i64``, ``f32``, ``f64``), ``bool`` (a byte),
    ``bytes`` and ``str`` (UTF-8), lists, and other subclasses of `StructMessage`. A size is said by
    ``Annotated``, with ``Sized`` or ``Counted``; bytes, a text or a list without one is the rest of
    the message, and so can only be the last field. A field with a value in the class has that by
    default. Values are checked when they are written.

    Args:
        number: the message number; without one, the class is only nested in others.
        byte_order: of numbers and counts, ``"big"`` or ``"little"``.

    Raises:
        TypeError, ValueError: the declaration is wrong; the text names the field.
    """

    message_number: ClassVar[Any]
    #: The fields, by name, in their order; those of base classes first.
    struct_fields: ClassVar[dict[str, Kind]] = {}
    #: As the module ``struct`` writes it: ``">"`` or ``"<"``.
    struct_order: ClassVar[str] = ">"
    _read: ClassVar[Reader]
    _write: ClassVar[Writer]

    def __init_subclass__(
        cls,
        *,
        number: MessageNumber | None = None,
        byte_order: Literal["big", "little"] | None = None,
        **options: Any,
    ) -> None:
        super().__init_subclass__(**options)
        if number is not None:
            check_number(number)
            cls.message_number = number
        if byte_order is not None:
            if byte_order not in _ORDERS:
                raise ValueError(f"byte_order must be 'big' or 'little', not {byte_order!r}")
            cls.struct_order = _ORDERS[byte_order]
        cls.struct_fields = _fields_of(cls, sys._getframe(1).f_locals)
        type.__setattr__(cls, "__match_args__", tuple(cls.struct_fields))
        cls._read = staticmethod(reader(cls.struct_fields, cls.struct_order))
        cls._write = staticmethod(writer(cls.struct_fields, cls.struct_order))
        if "__init__" not in cls.__dict__:
            cls.__init__ = _constructor(cls)  # type: ignore[method-assign]

    def serialize(self) -> bytes:
        """Return the bytes of the fields.

        Raises:
            BadData: a value does not fit its field; the text names it.
        """
        try:
            return self._write(*[getattr(self, name) for name in self.struct_fields])
        except (BadData, struct.error, AttributeError, OverflowError) as error:
            raise self._blame(error) from None

    @classmethod
    def deserialize(cls, data: bytes) -> Self:
        """Return the message of these bytes.

        Raises:
            BadData: they are too few or too many, or no such message.
        """
        if type(data) is not bytes:
            data = bytes(data)  # so that fields are, too
        message, end = cls.read_struct(data, 0)
        if end != len(data):
            raise BadData(f"{cls.__name__} has {end} bytes, not {len(data)}")
        return message

    @classmethod
    def read_struct(cls, data: bytes, at: int) -> tuple[Self, int]:
        """Return the message at an offset, and the offset of its end, see `deserialize`."""
        try:
            values, end = cls._read(data, at)
        except struct.error:
            raise BadData(f"{cls.__name__} is too short: {len(data) - at} bytes") from None
        except BadData as error:
            raise BadData(f"{cls.__name__}.{error}") from None
        return cls(*values), end

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={safe_repr(value)}"
            for name, value in zip(self.struct_fields, self._values(), strict=True)
        )
        return f"{type(self).__qualname__}({shown})"

    def _values(self) -> list[Any]:
        return [getattr(self, name, None) for name in self.struct_fields]

    def _blame(self, error: Exception) -> BadData:
        """Return the error that names the field that cannot be written."""
        kind = type(self)
        for name, each in self.struct_fields.items():
            try:
                writer({name: each}, self.struct_order)(getattr(self, name))
            except BadData as fault:
                return BadData(f"{kind.__name__}.{fault}")
            except AttributeError:
                return BadData(f"{kind.__name__}.{name} has no value")
            except (struct.error, OverflowError) as fault:
                return BadData(f"{kind.__name__}.{name}: {safe_str(fault)}")
        return BadData(f"{kind.__name__}: {safe_str(error)}")


def _fields_of(cls: type[StructMessage], names: dict[str, Any]) -> dict[str, Kind]:
    """Return the kinds of the annotated fields.

    Args:
        cls: the class.
        names: of where it is declared, which its annotations may use.
    """
    hints = get_type_hints(cls, localns={**names, cls.__name__: cls}, include_extras=True)
    fields = {}
    for name, hint in hints.items():
        if get_origin(hint) is ClassVar or hint is ClassVar:
            continue
        where = f"{cls.__name__}.{name}"
        if hint is cls:
            raise TypeError(f"{where}: a message cannot contain itself")
        fields[name] = kind_of(where, hint, _is_message)
    for name in list(fields)[:-1]:
        if is_rest(fields[name]):
            raise TypeError(
                f"{cls.__name__}.{name} is the rest of the message, so it must be the last field; "
                "or say its size: Annotated[..., Sized(16)] or Annotated[..., Counted('u16')]"
            )
    for name, kind in fields.items():
        if isinstance(kind, Array) and not least_size(kind.item):
            raise TypeError(f"{cls.__name__}.{name}: the items of a list cannot be empty")
        if isinstance(getattr(cls, name, None), (list, bytearray)):
            raise ValueError(f"{cls.__name__}.{name}: a default that can change is shared by all")
    return fields


def _is_message(kind: Any) -> bool:
    return issubclass(kind, StructMessage) and kind is not StructMessage


def _constructor(cls: type[StructMessage]) -> Any:
    """Return an ``__init__`` with the fields as parameters."""
    names: dict[str, Any] = {}
    parameters, seen = ["self"], False
    for name in cls.struct_fields:
        default = getattr(cls, name, _MISSING)
        if default is _MISSING and seen:
            raise TypeError(f"{cls.__name__}.{name} has no default, but follows one that has")
        seen = default is not _MISSING
        names[f"default_{name}"] = default
        parameters.append(f"{name}=default_{name}" if seen else name)
    lines = [f"    self.{name} = {name}" for name in cls.struct_fields] or ["    pass"]
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines), names)
    made = names["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return made
