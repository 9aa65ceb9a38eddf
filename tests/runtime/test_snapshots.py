"""Copies are made in one step of the interpreter, whenever the garbage collector runs."""

from __future__ import annotations

import ast
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tao.runtime.snapshots import keys_of
from tao.runtime.wakeup import Wakeup

PACKAGE = Path(__file__).parents[2] / "tao"
#: What has a ``copy`` of its own: contextvars.Context.
CONTEXTS = {"context", "_context"}


def hazards(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the copies that a collection in their midst may break, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Attribute(value, "copy"), [], []):
                name = getattr(value, "attr", getattr(value, "id", ""))
                if name not in CONTEXTS:
                    yield node.lineno, "copy()"
            case ast.Subscript(_, ast.Slice(None, None, None), ast.Load()):
                yield node.lineno, "[:]"
            case ast.Call(
                ast.Name("list" | "tuple" | "set" | "dict" as kind),
                [ast.Call(ast.Attribute(_, "items"))],
            ):
                yield node.lineno, f"{kind}(items())"
            case ast.Call(ast.Name("tuple"), [ast.Call(ast.Attribute(_, "keys" | "values"))]):
                yield node.lineno, "tuple(values())"


def test_the_reading_of_copies() -> None:
    """Each form that is not one step is found, and no other."""
    source = """
self._all.copy(), each[:], list(self._of.items()), tuple(d.values()), set(d.items())
context.copy(), list(self._all), dict(d).items(), sorted(d.items()), each[1:], d.values()
each[:] = []
"""
    found = list(hazards(ast.parse(source)))
    assert len(found) == 5
    assert {line for line, _ in found} == {2}


def test_copies_are_made_in_one_step() -> None:
    """No module copies a list or a dictionary in a way that a collection may break."""
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {what}"
        for path in PACKAGE.rglob("*.py")
        for line, what in hazards(ast.parse(path.read_text()))
    ]
    assert not found


@contextmanager
def collecting(after: int, change: Callable[[], object]) -> Iterator[None]:
    """Collect garbage after so many objects, and make a change then, as a finalizer might."""

    def on_collection(phase: str, info: Any) -> None:
        if phase == "start":
            change()

    before, on = gc.get_threshold(), gc.isenabled()
    gc.disable()
    gc.collect()
    spare = [[] for _ in range(200)], [{} for _ in range(200)]  # so that new ones are allocated
    gc.callbacks.append(on_collection)
    gc.set_threshold(after, 1000, 1000)
    gc.enable()
    try:
        yield
    finally:
        gc.disable()
        del spare
        gc.callbacks.remove(on_collection)
        gc.set_threshold(*before)
        if on:
            gc.enable()


@pytest.mark.parametrize("after", range(1, 40))
def test_a_thread_that_goes_while_others_are_woken(after: int) -> None:
    """A waiter leaves in the midst of a copy of the list of waiters. It must not crash."""
    wakeup = Wakeup()
    waiting: list[Any] = wakeup.waiters
    waiting.append(type("Lock", (), {"release": lambda self: None})())
    with collecting(after, waiting.clear):
        wakeup.set()
    assert wakeup.is_set() and not waiting


@pytest.mark.parametrize("after", range(1, 40))
def test_a_key_that_comes_while_keys_are_listed(after: int) -> None:
    """Keys come in the midst of listing those of a weak dictionary."""

    class Key:
        pass

    kept = [Key(), Key()]
    weak: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary(dict.fromkeys(kept, 1))

    def change() -> None:
        kept.append(Key())
        weak[kept[-1]] = 1

    known = list(kept)
    with collecting(after, change):
        found = keys_of(weak)
    assert set(known) <= set(found) <= set(kept)
