"""Modules that are executed again, and numbers that are unregistered."""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tao
from tao.errors import AlreadyRegistered, NotRegistered
from tao.wire.message import Registry
from tests.ends import End, Text, frame, text
from tests.support import ends, together

MESSAGES = """
class Text:
    message_number = 77
    def __init__(self, text):
        self.text = text
    def serialize(self):
        return self.text.encode()
    @classmethod
    def deserialize(cls, data):
        return cls(data.decode())
"""
HANDLER = """
def handle(ctx, conn):
    seen.append(ctx)
"""

#: Complete ways to declare one message.
WAYS = {
    "function": MESSAGES + HANDLER + "tao.register(77, Text.deserialize, handle)",
    "no handler": MESSAGES + "tao.register(77, Text.deserialize)",
    "decorator": MESSAGES + "@tao.default_registry.handler(Text)" + HANDLER,
    "both": MESSAGES
    + "tao.register(77, Text.deserialize)\n@tao.default_registry.handler(Text)"
    + HANDLER,
    "from elsewhere": "tao.register(77, bytes.decode)",
    "lambdas": "tao.register(77, lambda data: data, lambda ctx, conn: None)",
    "partials": "from functools import partial\n"
    "tao.register(77, partial(int, base=16), partial(print, 'a message'))",
    "instances": MESSAGES
    + "class Handler:\n"
    + "    def __call__(self, ctx, conn): ...\n"
    + "    def handle(self, ctx, conn): ...\n"
    + "tao.register(77, Text.deserialize, Handler().handle)",
    "undecorated name": MESSAGES
    + "def plain(function):\n    return lambda ctx, conn: function(ctx, conn)\n"
    + "@tao.default_registry.handler(Text)\n@plain"
    + HANDLER,
    "within a function": "def declare():\n    tao.register(77, lambda data: data)\ndeclare()",
}


class Source:
    """A module that can be rewritten and imported or reloaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._times = itertools.count(1)

    def __call__(self, name: str, code: str) -> types.ModuleType:
        """Write a module and execute it."""
        (self._folder / f"{name}.py").write_text("import tao\nseen = []\n" + code)
        importlib.invalidate_caches()
        known = sys.modules.get(name)
        return importlib.reload(known) if known else importlib.import_module(name)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """Creates modules; afterwards the modules and their registrations are removed."""
    monkeypatch.syspath_prepend(tmp_path)
    # Bytecode would be reused for a source written within the same second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before, registered = set(sys.modules), set(tao.default_registry.entries)
    yield Source(tmp_path)
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]
    for number in set(tao.default_registry.entries) - registered:
        tao.unregister(number)


@pytest.mark.parametrize("code", WAYS.values(), ids=WAYS)
def test_a_module_that_registers_can_be_reloaded(source: Source, code: str) -> None:
    """This holds for every way to declare messages; the last declaration counts."""
    source("declares", code)
    before = tao.default_registry.lookup(77)
    again = source("declares", code)
    found = tao.default_registry.lookup(77)
    assert found is not before and (found.handler is None) == (before.handler is None)
    if hasattr(again, "Text"):
        assert isinstance(found.deserialize(b"x"), again.Text)
    if (
        hasattr(again, "handle")
        and code.count("handle)") < 2
        and found.handler.__name__ == "handle"
    ):
        assert found.handler is again.handle


@pytest.mark.parametrize("code", WAYS.values(), ids=WAYS)
def test_a_number_declared_twice_in_a_module_is_an_error(source: Source, code: str) -> None:
    """It is an error unless the same definition is executed again."""
    other = MESSAGES.replace("Text", "Other") + "tao.register(77, Other.deserialize)"
    with pytest.raises(AlreadyRegistered):
        source("declares", f"{code}\n{other}")


def test_a_renamed_class_and_handler_replace_the_old(source: Source) -> None:
    """A module that is reloaded after an edit replaces its own declarations."""
    source("declares", WAYS["both"])
    again = source(
        "declares", WAYS["both"].replace("Text", "Line").replace("handle(ctx", "new(ctx")
    )
    assert tao.default_registry.lookup(77).handler is again.new


def test_the_number_of_another_module_is_refused(source: Source) -> None:
    """Importing or reloading a module replaces only its own declarations."""
    source("declares", WAYS["function"])
    for _ in range(2):
        with pytest.raises(AlreadyRegistered):
            source("intrudes", WAYS["function"])
        sys.modules["intrudes"] = types.ModuleType("intrudes")


def test_a_reloaded_class_keeps_a_handler_from_elsewhere(source: Source) -> None:
    """Reloading the module of the messages keeps the handlers of other modules, and vice versa."""
    source("messages", WAYS["no handler"])
    handlers = "from messages import Text\n@tao.default_registry.handler(Text)" + HANDLER
    first = source("handles", handlers).handle
    again = source("messages", WAYS["no handler"])
    found = tao.default_registry.lookup(77)
    assert found.handler is first and isinstance(found.deserialize(b""), again.Text)
    second = source("handles", handlers).handle
    assert tao.default_registry.lookup(77).handler is second is not first


def define(registry: Registry, how: str) -> Any:
    """Define a class and a handler, as a notebook cell does."""

    class Text:
        message_number = 77

        @classmethod
        def deserialize(cls, data: bytes) -> Text:
            return cls()

    @registry.handler(Text)
    def handle(ctx: Any, conn: Any) -> str:
        return how

    return handle


def test_the_same_name_is_a_reload_without_a_module() -> None:
    """A new definition replaces the one of the same name, in lower layers too."""
    registry = Registry()
    layer = Registry(registry)
    define(registry, "")
    again = define(registry, "")
    assert layer.lookup(77).handler is again


def test_results_of_a_factory_are_distinguished() -> None:
    """They all have the same name, which is not sufficient."""
    registry = Registry()
    make = lambda kind: lambda ctx, conn: kind  # noqa: E731
    registry.handler(Text)(make("one"))
    with pytest.raises(AlreadyRegistered):
        registry.handler(Text)(make("other"))

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(ctx: Any, conn: Any) -> Any:
            return function(ctx, conn)

        return inner

    def one(ctx: Any, conn: Any) -> None: ...
    def other(ctx: Any, conn: Any) -> None: ...

    registry = Registry()
    registry.handler(Text)(wrap(one))
    with pytest.raises(AlreadyRegistered, match="has a handler"):
        registry.handler(Text)(wrap(other))
    registry.handler(Text)(wrap(one))


def test_the_same_object_twice_is_no_reload() -> None:
    """Neither are two objects without distinguishing names."""
    registry = Registry()

    def handle(ctx: Any, conn: Any) -> None: ...

    registry.register(1, Text.deserialize, handle)
    for again in (handle, functools.partial(handle), None):
        with pytest.raises(AlreadyRegistered, match="message number 1 is registered twice"):
            registry.register(1, Text.deserialize, again)
    with pytest.raises(AlreadyRegistered, match="has a handler"):
        registry.handler(Text)(handle)


def test_a_reload_reaches_open_connections(source: Source, open_end: Callable[..., End]) -> None:
    """The new handler handles the next message."""
    code = WAYS["decorator"].replace("seen.append(ctx)", "conn.write(Text('VERSION'))")
    source("declares", code.replace("VERSION", "one"))
    end = open_end(registry=Registry(tao.default_registry))
    for version in ("one", "two"):
        source("declares", code.replace("VERSION", version))
        end.send(frame(77))
        assert end.read_frame()[1].decode() == version


def test_a_number_can_be_unregistered(open_end: Callable[..., End]) -> None:
    """Its messages are skipped afterwards, and another class can use the number."""
    registry = Registry()
    registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    end = open_end(registry=registry, on_message=lambda message, conn: None)
    registry.unregister(1)
    assert 1 not in registry
    end.send(text("hello"))
    registry.register(2, Text.deserialize, lambda ctx, conn: conn.write(ctx.message))
    end.send(frame(2, b"skipped"))
    assert end.read_text() == "skipped" and end.conn._core.counts().undefined == 1


def test_unregistering_uncovers_inherited_entries() -> None:
    """A layer loses only its own entry, and those that its parent unregisters."""
    top = Registry()
    middle = Registry(top)
    bottom = Registry(middle)
    top.register(1, len)
    middle.register(1, str)
    assert bottom.lookup(1).deserialize is str
    middle.unregister(1)
    assert bottom.lookup(1) is top.lookup(1) and middle.lookup(1).deserialize is len
    with pytest.raises(NotRegistered, match="number 1 is not registered here, but inherited"):
        bottom.unregister(1)
    top.unregister(1)
    assert set(bottom.entries) == set(middle.entries) == set(top.entries) == set()


@pytest.mark.parametrize(
    ("number", "error"), [(5, NotRegistered), ("1", NotRegistered), (None, TypeError)]
)
def test_an_unknown_number_cannot_be_unregistered(number: Any, error: type[Exception]) -> None:
    """Invalid numbers are refused as such."""
    with pytest.raises(error):
        Registry().unregister(number)


@pytest.mark.parametrize("action", ["register", "unregister", "make"])
def test_nested_declarations(action: str) -> None:
    """A finalizer or signal handler may declare during a declaration, without a deadlock."""
    registry = Registry()
    layers = [Registry(registry) for _ in range(3)]
    registry.register(2, len)

    class Handler:
        def __call__(self, ctx: Any, conn: Any) -> None: ...
        def __eq__(self, other: object) -> bool:  # it is called while the lock is held
            if action == "make":
                layers.append(Registry(registry))
            elif action == "register":
                registry.register(3, len)
            else:
                registry.unregister(2)
            return False

        __hash__ = object.__hash__

    def again() -> None:
        registry.register(1, Text.deserialize, Handler())
        with pytest.raises(AlreadyRegistered):
            registry.register(1, Text.deserialize, Handler())

    assert ends(again)
    expected = {"make": {1, 2}, "register": {1, 2, 3}, "unregister": {1}}[action]
    assert all(set(each.entries) == expected for each in (registry, *layers))


def test_layers_agree_after_concurrent_changes() -> None:
    """After concurrent declarations, removals and new layers, all have the same entries."""
    top, layers = Registry(), []

    def declare() -> None:
        for number in range(1, 200):
            try:
                top.register(number, Text.deserialize)
                if number % 3:
                    top.unregister(number)
            except (AlreadyRegistered, NotRegistered):
                pass

    def make() -> None:
        for _ in range(50):
            layers.append(Registry(layers[-1] if layers else top))

    together(declare, make, declare, make, declare)
    assert len(layers) == 100
    assert all(each.entries == top.entries for each in layers)
