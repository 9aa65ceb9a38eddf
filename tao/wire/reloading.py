"""Tell a module that is executed again from two conflicting declarations.

``importlib.reload`` executes the body of a module again, and its new declarations replace the old
ones. Two checks recognise a repeated declaration:

- Each execution of a module has its own ``__spec__``: the import system makes one for each import
  and each reload.
- The new object differs from the old one but has the same qualified name, as when a notebook cell
  is executed again.
"""

from __future__ import annotations

import sys
from types import FunctionType, MethodType
from typing import Any

__all__ = ["executed_again", "module_execution", "same_definition"]


def module_execution() -> Any:
    """Return an object that identifies the module execution that the caller is part of.

    None: no module is being executed, or it is a script or a notebook.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_name != "<module>":
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return frame.f_globals.get("__spec__")


def executed_again(before: Any, now: Any) -> bool:
    """Return whether ``now`` is a later execution of the same module as ``before``."""
    if before is None or now is None or before is now:
        return False
    return bool(getattr(before, "name", None) == getattr(now, "name", None))


def same_definition(before: Any, now: Any) -> bool:
    """Return whether two different objects come from one definition that was executed twice."""
    name = _definition(before)
    if name is None or name != _definition(now) or before == now:
        return False
    held, holds = _closure(before), _closure(now)
    return all(_alike(held[each], holds[each]) for each in held.keys() & holds.keys())


def _definition(thing: Any) -> tuple[str, ...] | None:
    """Return the qualified name of a function, class or class method; None if it is ambiguous."""
    owner: tuple[str, ...] = ()
    if type(thing) is MethodType and isinstance(thing.__self__, type):
        # Include the class, as another class may inherit the same method.
        owner, thing = (thing.__self__.__module__, thing.__self__.__qualname__), thing.__func__
    if not isinstance(thing, (FunctionType, type)) or thing.__qualname__.endswith("<lambda>"):
        return None
    return *owner, thing.__module__, thing.__qualname__


def _closure(thing: Any) -> dict[str, Any]:
    """Return the closure variables of a function that are set.

    They tell the functions apart that one factory or decorator returns under the same name.
    """
    function = getattr(thing, "__func__", thing)
    values = {}
    for name, cell in zip(
        getattr(getattr(function, "__code__", None), "co_freevars", ()),
        getattr(function, "__closure__", None) or (),
        strict=False,
    ):
        try:
            values[name] = cell.cell_contents
        except ValueError:
            pass
    return values


def _alike(before: Any, now: Any) -> bool:
    """Return whether two values may correspond to each other in two executions."""
    if isinstance(before, (FunctionType, type)) and isinstance(now, (FunctionType, type)):
        names = [(each.__module__, each.__qualname__) for each in (before, now)]
        return names[0] == names[1]
    if isinstance(before, (str, bytes, int, float)):
        return isinstance(now, type(before)) and bool(before == now)
    return type(before).__qualname__ == type(now).__qualname__
