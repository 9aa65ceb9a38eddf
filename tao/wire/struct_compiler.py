"""Compile the fields of a `StructMessage` to functions that read and write them.

The source of two functions is generated and compiled, as the standard library does for data
classes. Fields of constant size that follow each other are read and written by one call of a
`struct.Struct`, nested messages and counts of what follows included.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from tao.errors import BadData
from tao.wire.struct_kinds import (
    Array,
    Counted,
    Kind,
    Nested,
    Scalar,
    Sized,
    Text,
    is_fixed,
    least_size,
)

__all__ = ["Reader", "Writer", "reader", "writer"]

#: Takes bytes and an offset; returns the values and the offset after them.
Reader = Callable[[bytes, int], tuple[tuple[Any, ...], int]]
#: Takes values and returns their bytes.
Writer = Callable[..., bytes]


def reader(fields: Mapping[str, Kind], order: str) -> Reader:
    """Return a function that reads fields; it raises `BadData` that names the field."""
    made = _ReaderSource(order)
    values = [made.value(name, kind) for name, kind in fields.items()]
    made.flush()
    function: Reader = made.compiled(
        "data, at", [*made.lines, f"return ({''.join(f'{v}, ' for v in values)}), at"]
    )
    return function


def writer(fields: Mapping[str, Kind], order: str) -> Writer:
    """Return a function that writes fields.

    It raises `BadData` that names the field, or what `struct` raises for a number.
    """
    made = _WriterSource(order)
    names = [f"value{index}" for index in range(len(fields))]
    for source, (name, kind) in zip(names, fields.items(), strict=True):
        made.value(name, source, kind)
    made.flush()
    whole = (
        made.pieces[0]
        if len(made.pieces) == 1
        else f"b''.join(({''.join(f'{p}, ' for p in made.pieces)}))"
    )
    function: Writer = made.compiled(", ".join(names), [*made.lines, f"return {whole}"])
    return function


class _Source:
    """The source of a function, and the objects that it uses."""

    def __init__(self, order: str) -> None:
        self.order: str = order
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self._run: list[str] = []  # the codes of what one struct call reads or writes
        self._count: int = 0

    def new(self, value: Any = None, prefix: str = "v") -> str:
        """Return a new name, of an object or of a variable."""
        self._count += 1
        name = f"{prefix}{self._count}"
        if value is not None:
            self.names[name] = value
        return name

    def compiled(self, arguments: str, lines: list[str]) -> Any:
        body = "\n".join(f"    {line}" for line in lines)
        scope = dict(self.names)
        exec(f"def function({arguments}):\n{body}", scope)
        return scope["function"]


class _ReaderSource(_Source):
    """Reading: each field becomes an expression, to be evaluated after the lines."""

    def __init__(self, order: str) -> None:
        super().__init__(order)
        self._values: int = 0  # how many values the run has
        self._tuple: str = self.new(prefix="t")

    def value(self, name: str, kind: Kind) -> str:
        """Return the expression of a field."""
        if isinstance(kind, Scalar):
            return self._scalar(kind.code)
        if isinstance(kind, Nested):
            return self._nested(name, kind)
        if isinstance(kind, Text):
            return self._text(name, kind)
        if isinstance(kind.extent, Sized):
            if isinstance(kind.item, Scalar):
                first, size = self._values, kind.extent.size
                self._add(f"{size}{kind.item.code}", size)
                return f"list({self._tuple}[{first}:{first + size}])"
            items = [self.value(name, kind.item) for _ in range(kind.extent.size)]
            return f"[{', '.join(items)}]"
        return self._array(name, kind)

    def flush(self) -> None:
        """Read what is collected."""
        if self._run:
            made = struct.Struct(self.order + "".join(self._run))
            read = self.new(made.unpack_from, "read")
            self.lines += [f"{self._tuple} = {read}(data, at)", f"at += {made.size}"]
            self._run, self._values, self._tuple = [], 0, self.new(prefix="t")

    def _add(self, code: str, values: int = 1) -> None:
        self._run.append(code)
        self._values += values

    def _scalar(self, code: str) -> str:
        self._add(code)
        return f"{self._tuple}[{self._values - 1}]"

    def _nested(self, name: str, kind: Nested) -> str:
        message_class = kind.message_class
        if message_class.struct_order != self.order:
            self.flush()
            read, value = self.new(message_class.read_struct, "read"), self.new()
            self.lines.append(f"{value}, at = {read}(data, at)")
            return value
        values = [
            self.value(f"{name}.{key}", each) for key, each in message_class.struct_fields.items()
        ]
        return f"{self.new(message_class, 'make')}({', '.join(values)})"

    def _text(self, name: str, kind: Text) -> str:
        decode = f"{self.new(_decode, 'decode')}({{}}, {name!r})" if kind.is_text else "{}"
        if isinstance(kind.extent, Sized):
            raw = self._scalar(f"{kind.extent.size}s")
            return decode.format(f"{raw}.rstrip(b'\\0')" if kind.is_text else raw)
        value = self.new()
        self.lines += [f"{value} = {decode.format('data[at:' + self._end(name, kind, 1) + ']')}"]
        self.lines += ["at = end"]
        return value

    def _end(self, name: str, kind: Text | Array, size: int) -> str:
        """Add lines that find the end of what follows, and return its name."""
        if kind.extent is None:
            self.flush()
            self.lines.append("end = len(data)")
            if size > 1:
                uneven = self.new(_uneven, "uneven")
                self.lines.append(
                    f"if (end - at) % {size}: raise {uneven}({name!r}, end - at, {size})"
                )
        else:
            assert isinstance(kind.extent, Counted)
            count = self._scalar(kind.extent.code)
            self.flush()
            short = self.new(_short, "short")
            self.lines += [
                f"end = at + {count} * {size}",
                f"if end > len(data): raise {short}({name!r}, {count}, end - len(data))",
            ]
        return "end"

    def _array(self, name: str, kind: Array) -> str:
        """Read a list whose length is counted, or that is the rest."""
        value, size = self.new(), least_size(kind.item)
        if is_fixed(kind.item) and _order(kind.item, self.order) == self.order:
            item = _ReaderSource(self.order)
            read = item.value(name, kind.item)
            layout = struct.Struct(self.order + "".join(item._run))
            self._end(name, kind, size)
            if isinstance(kind.item, Scalar):
                unpack = self.new(struct.unpack_from, "unpack")
                code = f"f'{self.order}{{(end - at) // {size}}}{kind.item.code}'"
                self.lines.append(f"{value} = list({unpack}({code}, data, at))")
            else:
                make = item.compiled(item._tuple, [f"return {read}"])
                each, make_name = self.new(layout.iter_unpack, "each"), self.new(make, "make")
                self.lines.append(f"{value} = [{make_name}(t) for t in {each}(data[at:end])]")
            self.lines.append("at = end")
            return value
        read_item = self.new(reader({name: kind.item}, self.order), "read")
        if kind.extent is None:
            self.flush()
            self.lines += [f"{value} = []", "while at < len(data):"]
        else:  # the count is checked against the least that so many items take
            self._end(name, kind, size)
            count = f"(end - at) // {size}"
            self.lines += [f"{value} = []", f"for _ in range({count}):"]
        self.lines += [f"    (item,), at = {read_item}(data, at)", f"    {value}.append(item)"]
        return value


class _WriterSource(_Source):
    """Writing: pieces of bytes, of which most are a struct call."""

    def __init__(self, order: str) -> None:
        super().__init__(order)
        self.pieces: list[str] = []  # expressions
        self._arguments: list[str] = []

    def flush(self) -> None:
        """Write what is collected."""
        if self._run:
            pack = self.new(struct.Struct(self.order + "".join(self._run)).pack, "pack")
            self.pieces.append(f"{pack}({', '.join(self._arguments)})")
            self._run, self._arguments = [], []
        if not self.pieces:
            self.pieces.append("b''")

    def value(self, name: str, source: str, kind: Kind) -> None:
        """Add a field, whose value is a Python expression."""
        if isinstance(kind, Scalar):
            self._add(kind.code, source)
        elif isinstance(kind, Nested):
            self._nested(name, source, kind)
        elif isinstance(kind, Text):
            self._text(name, source, kind)
        elif isinstance(kind.extent, Sized):
            items, check = self.new(), self.new(_exactly, "exactly")
            self.lines.append(f"{items} = {check}({name!r}, {source}, {kind.extent.size})")
            if isinstance(kind.item, Scalar):
                self._add(f"{kind.extent.size}{kind.item.code}", f"*{items}")
            else:
                for index in range(kind.extent.size):
                    self.value(name, f"{items}[{index}]", kind.item)
        else:
            self._array(name, source, kind)

    def _add(self, code: str, argument: str) -> None:
        self._run.append(code)
        self._arguments.append(argument)

    def _nested(self, name: str, source: str, kind: Nested) -> None:
        message_class = kind.message_class
        nested, check = self.new(), self.new(_instance, "instance")
        class_name = self.new(message_class, "kind")
        self.lines.append(f"{nested} = {check}({name!r}, {source}, {class_name})")
        if message_class.struct_order != self.order:
            self.flush()
            self.pieces.append(f"{nested}.serialize()")
            return
        for key, each in message_class.struct_fields.items():
            self.value(f"{name}.{key}", f"{nested}.{key}", each)

    def _text(self, name: str, source: str, kind: Text) -> None:
        raw, encode = self.new(), self.new(_encode if kind.is_text else _raw, "encode")
        self.lines.append(f"{raw} = {encode}({name!r}, {source})")
        if isinstance(kind.extent, Sized):
            check = self.new(_fits if kind.is_text else _exactly, "fits")
            self.lines.append(f"{check}({name!r}, {raw}, {kind.extent.size})")
            self._add(f"{kind.extent.size}s", raw)
            return
        if isinstance(kind.extent, Counted):
            self._add(kind.extent.code, self._counted(name, raw, kind.extent))
        self.flush()
        self.pieces.append(raw)

    def _counted(self, name: str, items: str, extent: Counted) -> str:
        check = self.new(_countable, "countable")
        most = 256 ** struct.calcsize(f"<{extent.code}") - 1
        return f"{check}({name!r}, {items}, {most})"

    def _array(self, name: str, source: str, kind: Array) -> None:
        items = self.new()
        self.lines.append(f"{items} = {self.new(_items, 'items')}({name!r}, {source})")
        if isinstance(kind.extent, Counted):
            self._add(kind.extent.code, self._counted(name, items, kind.extent))
        self.flush()
        if isinstance(kind.item, Scalar):
            pack = self.new(struct.pack, "pack")
            code = f"f'{self.order}{{len({items})}}{kind.item.code}'"
            self.pieces.append(f"{pack}({code}, *{items})")
        else:
            write = self.new(writer({name: kind.item}, self.order), "write")
            self.pieces.append(f"b''.join([{write}(item) for item in {items}])")


def _order(kind: Kind, order: str) -> str:
    """Return the byte order of a field of constant size."""
    if isinstance(kind, Array):
        return _order(kind.item, order)
    if not isinstance(kind, Nested):
        return order
    own: str = kind.message_class.struct_order
    inner = [_order(each, own) for each in kind.message_class.struct_fields.values()]
    return own if all(each == own for each in inner) else ""


# -- what the generated functions call


def _short(name: str, count: int, missing: int) -> BadData:
    return BadData(f"{name} counts {count}, but {missing} bytes are missing")


def _uneven(name: str, size: int, item: int) -> BadData:
    return BadData(f"{name} has {size} bytes, but its items have {item} each")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadData(f"{name} is not UTF-8") from None


def _encode(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise BadData(f"{name} must be a str, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadData(f"{name} cannot be written as UTF-8") from None


def _raw(name: str, value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise BadData(f"{name} must be bytes, not {type(value).__name__}")
    return bytes(value)


def _items(name: str, value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise BadData(f"{name} must be a list, not {type(value).__name__}")
    return value


def _exactly(name: str, value: Any, size: int) -> Any:
    if not isinstance(value, bytes):
        _items(name, value)
    if len(value) != size:
        what = "bytes" if isinstance(value, bytes) else "items"
        raise BadData(f"{name} must have {size} {what}, not {len(value)}")
    return value


def _fits(name: str, value: bytes, size: int) -> None:
    if len(value) > size:
        raise BadData(f"{name} can have {size} bytes, not {len(value)}")


def _countable(name: str, value: Any, most: int) -> int:
    if len(value) > most:
        raise BadData(f"{name} has {len(value)}, but its count can be {most} at most")
    return len(value)


def _instance(name: str, value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted):
        raise BadData(f"{name} must be a {wanted.__name__}, not {type(value).__name__}")
    return value
