"""Check callbacks of every kind, flags and counts, where they are given.

The check must know which arguments a callable really accepts. ``inspect.signature`` does not tell:
it reports the signature that a decorator advertises by ``__wrapped__`` (set by ``functools.wraps``)
or ``__signature__``. So the check finds the Python function that is called first, and reads the
signature from its code object.

`renamed` keeps the old spelling of an attribute.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from types import FunctionType, MethodType
from typing import Any

from tao.safe_text import safe_repr, safe_str

__all__ = [
    "check_callable",
    "check_count",
    "check_quickly",
    "checked_flag",
    "name_of",
    "renamed",
    "takes_arguments",
]

_NOTHING = object()
# CPython 3.14 can leave gaps among the positional arguments of a partial.
_GAP = getattr(functools, "Placeholder", _NOTHING)
# The flags of functions that do not run their body when called.
_NOT_RUN = (
    inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_GENERATOR
    | inspect.CO_ASYNC_GENERATOR
)


def check_callable(what: str, value: object, *arguments: str) -> None:
    """Raise ``TypeError`` unless ``value`` is a plain function of these arguments.

    A callable whose signature cannot be determined, as with some written in C, is accepted.

    Args:
        what: the name of the option or argument.
        value: its value.
        arguments: the names of the positional arguments that tao will pass.
    """
    if _is_plainly_right(value, len(arguments)):
        return
    if not callable(value):
        raise TypeError(f"{what} must be callable, not {safe_repr(value)}")
    call = f"{what}({', '.join(arguments)})"
    called, positional, named = _called_first(value, arguments)
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(called):
        raise TypeError(
            f"{_describe(value, called)} is asynchronous, but {call} is called in a thread and not "
            "awaited: write it with def, or hand over to an event loop from there"
        )
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise TypeError(
            f"{_describe(value, called)} is a generator function: {call} would return a generator "
            "and run nothing of it; write it without yield"
        )
    signature = _signature(called)
    if signature is None:
        return
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        raise TypeError(
            f"{_describe(value, called)} cannot be called as {call}: {safe_str(error)}"
        ) from None


def takes_arguments(value: object, *arguments: str) -> bool:
    """Return whether ``value`` can be called with these arguments, as far as that is known."""
    try:
        check_callable("", value, *arguments)
    except TypeError:
        return False
    return True


def check_quickly(what: str, value: object, *arguments: str) -> None:
    """Check like `check_callable`, but only functions and methods, as this is called often.

    Of other callables only what runs nothing when it is called is refused.
    """
    function = value.__func__ if type(value) is MethodType else value
    if type(function) is not FunctionType and callable(value):
        called = _called_first(value, ())[0]
        if type(called) is not FunctionType or not called.__code__.co_flags & _NOT_RUN:
            return
    check_callable(what, value, *arguments)


def name_of(thing: Any) -> str:
    """Return a readable name of a class or a callable."""
    return getattr(thing, "__qualname__", None) or safe_repr(thing)


def _is_plainly_right(value: Any, count: int) -> bool:
    """Return True, quickly, for an ordinary function or method of ``count`` arguments."""
    if type(value) is MethodType:
        value, count = value.__func__, count + 1
    if type(value) is not FunctionType or value.__dict__:
        return False  # a decorator may have marked it
    code = value.__code__
    least = code.co_argcount - len(value.__defaults__ or ())
    most = float("inf") if code.co_flags & inspect.CO_VARARGS else code.co_argcount
    return (
        least <= count <= most
        and code.co_kwonlyargcount == len(value.__kwdefaults__ or ())
        and not code.co_flags & _NOT_RUN
    )


def _called_first(
    value: Any, positional: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return what such a call really calls, with its positional and keyword arguments."""
    named: dict[str, Any] = {}
    while True:
        kind = type(value)
        if issubclass(kind, functools.partial):
            positional = _filled(value.args, positional)
            value, named = value.func, {**value.keywords, **named}
        elif kind is MethodType:
            value, positional = value.__func__, (value.__self__, *positional)
        elif kind is staticmethod:
            value = value.__func__
        elif kind is FunctionType or issubclass(kind, type):
            return value, positional, named
        else:
            call = inspect.getattr_static(kind, "__call__", None)
            if type(call) is FunctionType:
                value, positional = call, (value, *positional)
            elif type(call) is staticmethod:
                value = call.__func__
            else:
                return value, positional, named


def _filled(given: tuple[Any, ...], further: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a partial with gaps filled from ``further``, then the rest of it."""
    rest = iter(further)
    return (*(next(rest, _GAP) if each is _GAP else each for each in given), *rest)


def _signature(called: Any) -> inspect.Signature | None:
    """Return the signature of a callable, or None if it cannot be determined."""
    if type(called) is FunctionType:
        # A function with the same code, but without attributes that override the signature.
        bare = FunctionType(
            called.__code__, {}, called.__name__, called.__defaults__, called.__closure__
        )
        bare.__kwdefaults__ = called.__kwdefaults__
        return inspect.signature(bare)
    if inspect.getattr_static(called, "__wrapped__", None) is not None:
        return None  # a decorator written in C, which may pass on any arguments
    try:
        return inspect.signature(called)
    except (TypeError, ValueError):
        return None


def _describe(value: Any, called: Any) -> str:
    """Name the callable at fault; for a decorated function, that is the decorator's wrapper."""
    code = getattr(called, "__code__", None)
    for each in (called, value):
        wrapped = inspect.getattr_static(each, "__wrapped__", None)
        if code is not None and callable(wrapped):
            # A wrapper has the name of the function that it wraps; its code keeps its own name.
            own = getattr(code, "co_qualname", code.co_name)
            wrapper = own if each is called else called.__qualname__
            return f"{wrapper}, which decorates {name_of(wrapped)},"
    return name_of(value)


def checked_flag(name: str, value: object) -> bool:
    """Return a bool as it is.

    Raises:
        TypeError: the value is none, such as the string ``"false"``, which would count as true.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {safe_repr(value)}")
    return value


def renamed(old: str, new: str) -> Any:
    """Return a property for the old spelling of an attribute, which gives a DeprecationWarning."""

    def value(self: Any) -> Any:
        text = f"{type(self).__name__}.{old} is called {new} now"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(value, doc=f"The old spelling of ``{new}``.")


def check_count(name: str, value: object) -> None:
    """Check the number of things that an option or an argument gives."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {safe_repr(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
