"""Middleware: composed with every handler of a registry, in order, once."""

from __future__ import annotations

import importlib
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tao.errors import AlreadyRegistered
from tao.wire.message import ANY, Registry
from tests.ends import Number, Text
from tests.support import together

registry = Registry()


def noting(calls: list[str], name: str) -> Any:
    """A middleware function that notes when it is called and left."""

    def note(ctx: Any, conn: Any, call_next: Any) -> None:
        calls.append(name)
        call_next(ctx, conn)
        calls.append(f"/{name}")

    return note


def handle(ctx: Any, conn: Any) -> None:
    """A handler that notes that it was called."""
    conn.append("handler")


def calls_of(registry: Registry, number: Any = 1) -> str:
    """What is called when a message of a number comes."""
    calls = registry.lookup(number).handler
    assert calls is not None
    seen: list[str] = []
    calls(None, seen)
    return " ".join(seen)


def tag(name: str) -> Any:
    """Middleware that notes its name where the handler notes its own."""

    def middleware(ctx: Any, conn: Any, call_next: Any) -> None:
        conn.append(name)
        call_next(ctx, conn)

    return middleware


def test_functions_are_called_in_order_around_the_handler() -> None:
    """Also around a handler that is declared later, and that of `ANY`."""
    registry, calls = Registry(), list[str]()
    registry.handler(Text)(handle)
    outer, inner = noting(calls, "outer"), noting(calls, "inner")
    assert registry.use(outer) is outer
    registry.use(inner)
    registry.handler(Number)(handle)
    registry.handler(ANY)(handle)
    for number in (1, 2, ANY):
        calls.clear()
        assert calls_of(registry, number) == "handler"
        assert calls == ["outer", "inner", "/inner", "/outer"]


def test_a_layer_has_that_of_its_parent_first() -> None:
    """Around its own handlers as well as inherited ones; the parent knows nothing of it."""
    top = Registry()
    layer, other = Registry(top), Registry(top)
    top.handler(Text)(handle)
    layer.handler(Number)(handle)
    layer.use(tag("layer"))
    assert [calls_of(each) for each in (top, layer, other)] == [
        "handler",
        "layer handler",
        "handler",
    ]
    top.use(tag("top"))
    layer.use(tag("second"))
    assert calls_of(layer) == calls_of(layer, 2) == "top layer second handler"
    assert calls_of(top) == calls_of(other) == calls_of(Registry(other)) == "top handler"
    layer.unregister(2)
    assert 2 not in layer


def test_without_any_nothing_changes() -> None:
    """A layer shares the entry, with what was learned of it, and the handler is the function."""
    top = Registry()
    layer = Registry(top)
    top.handler(Text)(handle)
    top.register(2, Number.deserialize)
    assert layer.lookup(1) is top.lookup(1) and top.lookup(1).handler is handle
    layer.use(tag("layer"))
    assert top.lookup(1).handler is handle and layer.lookup(2) is top.lookup(2)


def test_an_entry_keeps_what_was_declared() -> None:
    """Number, deserializer, dispatch, and the handler's name."""
    registry = Registry()
    registry.use(tag("a"))
    registry.handler(Text, dispatch="inline")(handle)
    entry: Any = registry.lookup(1)
    assert (entry.number, entry.deserialize, entry.dispatch) == (1, Text.deserialize, "inline")
    assert (entry.handler.__name__, entry.handler.__wrapped__) == ("handle", handle)
    with pytest.raises(AlreadyRegistered, match="message number 1 has a handler: handle"):
        registry.handler(Text)(lambda ctx, conn: None)


def test_what_is_no_middleware_is_refused() -> None:
    """So is the same function again; one that is defined again takes the place of the old one."""
    registry = Registry()
    with pytest.raises(TypeError, match=r"cannot be called as middleware\(ctx, conn, call_next\)"):
        registry.use(handle)  # type: ignore[type-var]
    names: dict[str, Any] = {"__name__": "a_notebook"}
    for name in ("one", "two"):
        exec(f"def audit(ctx, conn, next): conn.append('{name}'); next(ctx, conn)", names)
        registry.use(names["audit"])
        registry.use(tag("tag"))
    with pytest.raises(AlreadyRegistered, match="the middleware audit is in use already"):
        registry.use(names["audit"])
    registry.handler(Text)(handle)
    assert calls_of(registry) == "two tag tag handler"


def test_a_module_that_is_executed_again_declares_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reload the new functions stand where the old ones stood."""
    (tmp_path / "has_middleware.py").write_text(
        "from tests.wire.test_middleware import registry, tag\n"
        "for name in ('a', 'b'): registry.use(tag(name))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("has_middleware", None)
    module = importlib.import_module("has_middleware")
    registry.use(tag("c"))
    registry.handler(Text)(handle)
    importlib.reload(module)
    assert calls_of(registry) == "a b c handler"


def test_declaring_handlers_and_middleware_at_once() -> None:
    """Whichever thread comes first, every handler has all of it in the end."""
    top = Registry()
    layers = [Registry(top) for _ in range(3)]

    def register() -> None:
        for number in range(1, 100):
            top.register(number, bytes, handle)

    def use(registry: Registry) -> None:
        for _ in range(5):
            registry.use(tag("m"))

    together(register, lambda: use(top), *[lambda layer=layer: use(layer) for layer in layers])
    for number in range(1, 100):
        assert calls_of(top, number) == "m " * 5 + "handler"
        assert all(calls_of(layer, number) == "m " * 10 + "handler" for layer in layers)


def test_a_decorated_handler_is_a_handler() -> None:
    """One of `functools.wraps`: it is called as it is, and has the name of the function."""

    def twice(function: Any) -> Any:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            function(*args, **kwargs)
            function(*args, **kwargs)

        return wrapper

    registry = Registry()
    registry.handler(Text, dispatch="pool")(twice(handle))
    entry: Any = registry.lookup(1)
    assert calls_of(registry) == "handler handler"
    assert (entry.handler.__name__, entry.dispatch) == ("handle", "pool")
