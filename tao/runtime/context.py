"""Contexts: a tree of things that can be cancelled, with values on the way.

A context stands for something going on: a server, a connection, one request. Cancelling it cancels
all below it and nothing above. Go's ``context`` package is the model; a ``threading.Event`` takes
the place of its channel, so whoever waits is woken, and nobody polls.

A request's context is made for every message, and most are never asked whether they are cancelled.
So a context is two fields, and the machinery for waiting, a ``Scope``, is made when first wanted.
It says what it guarantees to threads, signal handlers and finalizers; a context guarantees the
same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from tao.callables import check_quickly
from tao.errors import Cancelled, DeadlineExceeded
from tao.runtime.cancel_scope import Scope
from tao.runtime.timing_wheel import TimingWheel, shared_wheel

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    MessageT_co = TypeVar("MessageT_co", covariant=True, default=Any)
else:  # that of the older versions of Python knows no default
    from typing import TypeVar

    MessageT_co = TypeVar("MessageT_co", covariant=True)

MessageT = TypeVar("MessageT")

__all__ = [
    "ConnectionContext",
    "Context",
    "RequestContext",
    "background",
    "context_with_message",
    "context_with_net_id",
    "message_from_context",
    "net_id_from_context",
    "server_from_context",
]

MESSAGE = object()
NET_ID = object()
SERVER = object()


class _Fallen:
    """In place of the scope of a context that was cancelled before it had one."""

    __slots__ = ("_scopes", "error")

    def __init__(self, error: Cancelled) -> None:
        self.error: Cancelled = error
        self._scopes: list[Scope] = []  # the first counts

    def scope(self) -> Scope:
        """Return a scope that is cancelled, for who wants one after all."""
        if not self._scopes:
            scope = Scope(None)
            scope.fall(self.error)
            self._scopes.append(scope)
        return self._scopes[0]


class _TimedScope(Scope):
    """The scope of a context with a deadline, which the shared timing wheel keeps until then."""

    def __init__(self, parent: Scope, seconds: float) -> None:
        self._wheel: TimingWheel | None = None
        self._timer: int = 0
        super().__init__(parent)
        try:
            wheel = self._wheel = shared_wheel.acquire(self)
            self._timer = wheel.reserve_id()
            wheel.run_after(seconds, lambda _: self._expire(seconds), self._timer)
            if self.error is not None:
                self._give_back()
        except BaseException:
            self._give_back()
            raise

    def fall(self, error: Cancelled) -> None:
        super().fall(error)
        self._give_back()

    def _expire(self, seconds: float) -> None:
        """The deadline has come; on the wheel's thread, which callbacks must not hold."""
        wheel, error = self._wheel, DeadlineExceeded(f"deadline of {seconds} s exceeded")
        assert wheel is not None
        self.cancel_aside(error, partial(wheel.hand_over, self.start_runner))

    def _give_back(self) -> None:
        """Need the wheel no more; any number of times."""
        if self._wheel is not None:
            self._wheel.cancel(self._timer)
        shared_wheel.release(self)


# What contexts are about to have for a scope, of which the first that is put in here counts: it
# stays until the context has it. Contexts are the keys, so that none is taken for another.
_chosen: dict[Context, Scope | _Fallen] = {}


class Context(Generic[MessageT_co]):
    """Something going on that can be cancelled and carries values.

    What a handler gets is a ``Context[ChatMessage]``, say: so a type checker knows the class of its
    ``message``. Without the brackets that may be anything.

    Any thread, signal handler or finalizer may use it.

    Contexts come from `background`, from tao (a server's, a connection's, a handler's) or from the
    ``with_`` methods of another.
    """

    __slots__ = ("_parent", "_scope")

    def __init__(self, parent: Context | None = None) -> None:
        self._parent: Context | None = parent
        # Set once, by `_choose`: when something needs a scope, or there will be no need for one.
        self._scope: Scope | _Fallen | None = None

    # -- descending

    def with_cancel(self) -> Context[MessageT_co]:
        """Return a child that can be cancelled on its own."""
        return Context(self)

    def with_timeout(self, seconds: float) -> Context[MessageT_co]:
        """Return a child that is cancelled, with `DeadlineExceeded`, in ``seconds``.

        It is kept until then: cancel it when it is not needed any more.

        Raises:
            TypeError, ValueError: ``seconds`` is no number, or a negative one.
        """
        return _TimedContext(self, seconds)

    def with_value(self, key: Hashable, value: Any) -> Context[MessageT_co]:
        """Return a child in which ``value(key)`` is ``value``."""
        return _ValueContext(self, key, value)

    # -- cancellation

    def cancel(self, reason: str | None = None) -> None:
        """Cancel this context and all below it, and run their callbacks; later calls do nothing.

        Args:
            reason: why, for people; the text of ``error``.
        """
        self._cancel(reason, Scope.cancel)

    def cancel_aside(self, reason: str | None = None) -> None:
        """As `cancel`, but without waiting for the callbacks: they run on a thread of their own.

        For tao's own threads, which a callback must not hold up.
        """
        self._cancel(reason, Scope.cancel_aside)

    def callback_threads(self) -> list[threading.Thread]:
        """Return the threads that run callbacks of `cancel_aside`, here or below."""
        scope = self._scope
        return list(scope.runners) if isinstance(scope, Scope) else []

    def _cancel(self, reason: str | None, cancel: Callable[[Scope, Cancelled], object]) -> None:
        error = Cancelled(reason or "cancelled")
        scope = self._scope
        if scope is None:
            # Nobody waits for it and nothing is below: it need not be hung into the tree first.
            scope = self._choose(_Fallen((self._parent and self._parent.error) or error))
        if isinstance(scope, Scope):
            cancel(scope, error)

    @property
    def done(self) -> threading.Event:
        """An event that is set when the context is cancelled. To wait on, not to set."""
        return self._own_scope()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the context is cancelled, ``timeout`` seconds at most; tell whether it is."""
        return self._own_scope().wait(timeout)

    @property
    def cancelled(self) -> bool:
        return self.error is not None

    @property
    def error(self) -> Cancelled | None:
        """Why the context was cancelled (`Cancelled` or `DeadlineExceeded`), or None."""
        context: Context | None = self
        while context is not None:
            scope = context._scope
            if scope is not None and scope.error is not None:
                return scope.error
            context = context._parent
        return None

    def after_cancel(self, callback: Callable[[], object]) -> Callable[[], bool]:
        """Call ``callback()`` when the context is cancelled, at once if it already is.

        It runs on the thread that calls `cancel`, or this if it is too late. When tao cancels,
        because a deadline has come, a connection has ended or a server stops, the callbacks run on
        a thread of their own, one after another: they may take their time, and nothing waits for
        them (a server that stops does, until its deadline). What one raises is logged.

        Returns:
            a function that takes the callback back and tells whether it came in time.
        """
        if not callable(callback):
            raise TypeError(f"an after_cancel callback must be callable, not {callback!r}")
        check_quickly("callback", callback)
        return self._own_scope().add_callback(callback)

    # -- values

    def value(self, key: Hashable) -> Any:
        """Return the value nearest on the way up, or None."""
        return None if self._parent is None else self._parent.value(key)

    @property
    def message(self) -> MessageT_co:
        """The message being handled, or None outside of a handler."""
        message: MessageT_co = self.value(MESSAGE)
        return message

    @property
    def net_id(self) -> int | None:
        """The id of the connection, or None outside of one."""
        result: int | None = self.value(NET_ID)
        return result

    @property
    def server(self) -> Any:
        """The server, or None on a client."""
        return self.value(SERVER)

    def _own_scope(self) -> Scope:
        scope = self._scope
        if scope is None:
            scope = self._choose(Scope(None if self._parent is None else self._parent._own_scope()))
        return scope.scope() if isinstance(scope, _Fallen) else scope

    def _choose(self, scope: Scope | _Fallen) -> Scope | _Fallen:
        """Have this for the scope, unless there is one or is about to be; return what there is."""
        try:
            _chosen.setdefault(self, scope)
            self._settle()
        except BaseException:
            self._settle()
            raise
        return scope if self._scope is None else self._scope

    def _settle(self) -> None:
        """Have what is chosen for the scope, if anything is."""
        chosen = _chosen.get(self)
        # An entry is removed only when the context has its scope. So whoever finds it without one
        # has found the only entry that there was; and a later one is not looked at.
        if self._scope is None and chosen is not None:
            self._scope = chosen
        if self._scope is not None:
            _chosen.pop(self, None)

    def __repr__(self) -> str:
        state = "cancelled: " + str(self.error) if self.cancelled else "active"
        return f"<{type(self).__name__.lstrip('_')} {state}>"


class _Background(Context):
    """The root of all: never cancelled."""

    __slots__ = ()

    def _cancel(self, reason: str | None, cancel: Callable[[Scope, Cancelled], object]) -> None:
        raise RuntimeError(
            "the background context cannot be cancelled; use background().with_cancel()"
        )


class RequestContext(Context[MessageT_co]):
    """What a handler gets: a message on top of its connection's context.

    One is made for each message; being a slot, ``message`` is found without going up the tree.
    """

    __slots__ = ("message",)
    message: MessageT_co

    def __init__(self, parent: Context, message: MessageT_co) -> None:
        self._parent = parent
        self._scope = None
        self.message = message

    def value(self, key: Hashable) -> Any:
        return self.message if key is MESSAGE else self._parent.value(key)  # type: ignore[union-attr]


class ConnectionContext(Context):
    """The context of a connection: knows its number and its server."""

    __slots__ = ("_net_id", "_server")

    def __init__(self, parent: Context, net_id: int, server: Any) -> None:
        super().__init__(parent)
        self._net_id = net_id
        self._server = server

    def value(self, key: Hashable) -> Any:
        if key is NET_ID:
            return self._net_id
        if key is SERVER:
            return self._server
        return super().value(key)


class _ValueContext(Context[MessageT_co]):
    __slots__ = ("_key", "_value")

    def __init__(self, parent: Context[MessageT_co], key: Hashable, value: Any) -> None:
        super().__init__(parent)
        self._key = key
        self._value = value

    def value(self, key: Hashable) -> Any:
        if key is self._key or key == self._key:
            return self._value
        return super().value(key)


class _TimedContext(Context[MessageT_co]):
    """A context with a deadline."""

    __slots__ = ()

    def __init__(self, parent: Context[MessageT_co], seconds: float) -> None:
        super().__init__(parent)
        self._scope = _TimedScope(parent._own_scope(), seconds)


_BACKGROUND = _Background()


def background() -> Context:
    """Return the root of all contexts, which is never cancelled and has no values."""
    return _BACKGROUND


def context_with_message(context: Context, message: MessageT) -> Context[MessageT]:
    """Return a child of ``context`` that carries a message."""
    return context.with_value(MESSAGE, message)


def context_with_net_id(context: Context[MessageT], net_id: int) -> Context[MessageT]:
    """Return a child of ``context`` that carries a connection's id."""
    return context.with_value(NET_ID, net_id)


def message_from_context(context: Context[MessageT]) -> MessageT:
    """Return the message a context carries, or None."""
    return context.message


def net_id_from_context(context: Context) -> int | None:
    """Return the id of the connection a context belongs to, or None."""
    return context.net_id


def server_from_context(context: Context) -> Any:
    """Return the server a context belongs to, or None on a client."""
    return context.server
