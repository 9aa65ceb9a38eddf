"""Middleware: functions around every handler, for what all of them need.

The functions of a registry are composed with a handler once, when either is declared, into an
ordinary handler. So they cost one call each and no look-up per message, and without any, nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, NamedTuple

from tao.callables import name_of
from tao.errors import AlreadyRegistered
from tao.safe_text import FORMATTING_ERRORS
from tao.wire.reloading import executed_again, same_definition

__all__ = ["Chain", "Handler", "Middleware", "Step", "around", "extended"]

# (Context, Connection) -> None; written with Any because this layer imports neither.
Handler = Callable[[Any, Any], object]
#: ``function(ctx, conn, call_next)``; it calls ``call_next(ctx, conn)``, or does not.
Middleware = Callable[[Any, Any, Handler], object]


class Step(NamedTuple):
    """A middleware function, and the module execution that declared it, see ``reloading.py``."""

    function: Middleware
    declared: Any


#: Middleware in the order of calls.
Chain = tuple[Step, ...]


def extended(chain: Chain, new: Step) -> Chain:
    """Return a chain with one more function: at its end, or in place of what it was before.

    Raises:
        AlreadyRegistered: the chain has the same function.
    """
    for index, each in enumerate(chain):
        if _is_renewed(each, new):
            return (*chain[:index], new, *chain[index + 1 :])
        if each.function == new.function:
            raise AlreadyRegistered(f"the middleware {name_of(new.function)} is in use already")
    return (*chain, new)


def _is_renewed(before: Step, now: Step) -> bool:
    """Return whether a function is the same as before, from a definition that was executed again.

    Without a reload, functions that a factory has returned are different ones, whatever they hold.
    """
    if executed_again(before.declared, now.declared):
        return before.function == now.function or same_definition(before.function, now.function)
    plain = not getattr(now.function, "__closure__", None)
    return plain and same_definition(before.function, now.function)


def around(handler: Handler, chain: Chain) -> Handler:
    """Return a handler that calls the functions of the chain, the first outermost, around one."""
    for each in reversed(chain):
        handler = _wrapped(each.function, handler)
    return handler


def _wrapped(function: Middleware, call_next: Handler) -> Handler:
    def handle(ctx: Any, conn: Any) -> object:
        return function(ctx, conn, call_next)

    try:
        update_wrapper(handle, call_next)
    except FORMATTING_ERRORS:
        pass  # of a class whose attributes are computed
    return handle
