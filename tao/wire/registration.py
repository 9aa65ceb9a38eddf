"""One entry of a registry, and which declarations of the same number contradict each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tao.callables import name_of
from tao.errors import AlreadyRegistered
from tao.safe_text import number_text, safe_repr
from tao.wire.middleware import Chain, Handler, around
from tao.wire.numbers import AnyNumber, MessageNumber
from tao.wire.reloading import executed_again, same_definition

__all__ = ["Deserializer", "Handler", "Registration", "handled", "registered"]

#: Makes a message of a value: of bytes, unless the decoder has made something else of them.
Deserializer = Callable[[Any], Any]


class Registration:
    """The entry of one message number: its deserializer and its handler.

    Attributes:
        number: the message number.
        deserialize: makes a message from the bytes of its value.
        handler: called with ``(ctx, conn)``; None: ``on_message`` is called instead.
        dispatch: ``"auto"``, ``"pool"`` or ``"inline"`` for this handler; None: the setting of
            the connection.
        middleware: the functions that are composed with the handler, see ``middleware.py``.
        trust: how far the handler is trusted to be quick; see ``handler_trust.py``.
        declared, handler_declared: the module executions that declared the number and its handler,
            see ``reloading.py``.
    """

    __slots__ = (
        "_plain", "declared", "deserialize", "dispatch", "handler", "handler_declared",
        "middleware", "number", "trust",
    )  # fmt: skip

    def __init__(
        self,
        number: MessageNumber | AnyNumber,
        deserialize: Deserializer,
        handler: Handler | None = None,
        dispatch: str | None = None,
        declared: Any = None,
    ) -> None:
        self.number: MessageNumber | AnyNumber = number
        self.deserialize: Deserializer = deserialize
        self.handler: Handler | None = handler
        self.dispatch: str | None = dispatch
        self.middleware: Chain = ()
        self._plain: Handler | None = handler  # without middleware
        self.trust: int = 0
        self.declared: Any = declared
        self.handler_declared: Any = declared

    def completed(
        self, handler: Handler | None, declared: Any, dispatch: str | None
    ) -> Registration:
        """Return a copy in which these values fill in what is missing here."""
        copy = Registration(
            self.number, self.deserialize, self.handler, self.dispatch or dispatch, self.declared
        )
        if copy.handler is None:
            copy.handler = copy._plain = handler
            copy.handler_declared = declared
        return copy

    def within(self, middleware: Chain) -> Registration:
        """Return a registration whose handler is composed with these functions, and no others."""
        if self._plain is None or middleware == self.middleware:
            return self
        copy = self.completed(None, None, None)
        copy._plain = self._plain
        copy.handler = around(self._plain, middleware)
        copy.handler_declared = self.handler_declared
        copy.middleware = middleware
        return copy

    def __repr__(self) -> str:
        deserialize, handler = safe_repr(self.deserialize), safe_repr(self.handler)
        return f"Registration({number_text(self.number)}, {deserialize}, handler={handler})"


def registered(known: Registration | None, new: Registration) -> Registration:
    """Return the replacement for ``known`` when a message is registered."""
    if known is None:
        return new
    if not _is_reload(known, new):
        raise AlreadyRegistered(
            f"message number {number_text(new.number)} is registered twice: for {_place(known)}, "
            f"and for {_place(new)}"
        )
    # Keep a handler that was declared separately, perhaps in another module.
    return new.completed(known.handler, known.handler_declared, None)


def handled(known: Registration | None, new: Registration) -> Registration:
    """Return the replacement for ``known`` when a handler is declared."""
    if known is None:
        return new
    _check_same_class(known, new)
    _check_no_handler(known, new)
    return new.completed(None, None, known.dispatch)


def _is_reload(known: Registration, new: Registration) -> bool:
    """Return whether a whole registration is that of before, executed again."""
    if executed_again(known.declared, new.declared):
        return True
    renewed = same_definition(known.deserialize, new.deserialize)
    if not renewed and known.deserialize != new.deserialize:
        return False
    if known.handler is None or new.handler is None:
        return renewed
    if known.handler == new.handler:
        return renewed
    return same_definition(known.handler, new.handler)


def _check_same_class(known: Registration, new: Registration) -> None:
    """Raise unless the handler is for the class that the number belongs to."""
    if known.deserialize == new.deserialize or executed_again(known.declared, new.declared):
        return
    if not same_definition(known.deserialize, new.deserialize):
        raise AlreadyRegistered(
            f"message number {number_text(new.number)} belongs to {_owner(known)}, so {_owner(new)}"
            " needs another number, or a registry of its own"
        )


def _check_no_handler(known: Registration, new: Registration) -> None:
    """Raise if the number has a handler, unless the same one is declared again."""
    if known.handler is None or executed_again(known.handler_declared, new.handler_declared):
        return
    class_is_new = known.deserialize != new.deserialize
    if not same_definition(known.handler, new.handler) and not (
        class_is_new and known.handler == new.handler
    ):
        raise AlreadyRegistered(
            f"message number {number_text(new.number)} has a handler: {name_of(known.handler)}"
        )


def _owner(registration: Registration) -> str:
    """Return the name of the class that the deserializer belongs to."""
    owner = getattr(registration.deserialize, "__self__", None)
    if isinstance(owner, type):  # not the class that it inherits the method from
        return name_of(owner)
    return name_of(registration.deserialize).removesuffix(".deserialize")


def _place(registration: Registration) -> str:
    """Return the same name with its module, as a module may be loaded under two names."""
    owner = getattr(registration.deserialize, "__self__", registration.deserialize)
    module = getattr(owner, "__module__", None)
    return f"{module}.{_owner(registration)}" if isinstance(module, str) else _owner(registration)
