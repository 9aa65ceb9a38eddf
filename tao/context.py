"""Contexts: a tree of things that can be cancelled, with values on the way.

A context stands for something going on: a server, a connection, one request. Cancelling it cancels
all below it and nothing above. Go's ``context`` package is the model; a ``threading.Event`` takes
the place of its channel, so whoever waits is woken, and nobody polls.

A request's context is made for every message, and most are never asked whether they are cancelled.
So a context is two fields, and the machinery for waiting (``_Scope``) is made when first wanted.

Parents hold their children weakly, so a context nobody uses any more vanishes by itself. (Whoever
holds its ``done`` uses it.) One that has callbacks to run is held (``_Scope.pinned``) until they
have run or are removed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from tao.callables import check_quickly
from tao.errors import Cancelled, DeadlineExceeded
from tao.log import logger
from tao.timing import TimingWheel, shared_wheel

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

# Guards the links between all scopes, and their errors and callbacks. It is held for a few
# dictionary operations on each scope concerned, never while an event is waited for or a callback
# runs. Reentrant, because the garbage collector may run somebody's finalizer, which may cancel, at
# any point.
_links = threading.RLock()

MESSAGE = object()
NET_ID = object()
SERVER = object()


class _Scope(threading.Event):
    """What can be cancelled: a node of the tree, and the event that is set when it is.

    It is the event, instead of having one, so that it lives as long as somebody waits for it. The
    fields are guarded by _links.
    """

    def __init__(self, parent: _Scope | None) -> None:
        super().__init__()
        self.parent: _Scope | None = parent
        self.error: Cancelled | None = None
        # Each takes itself out when it dies, in whatever thread that is and without the lock; so
        # only what CPython does in one step may be done with it. (WeakSet takes several.)
        self.children: set[weakref.ref[_Scope]] = set()
        self.pinned: set[_Scope] = set()  # the children that have callbacks
        self.callbacks: dict[object, Callable[[], object]] = {}
        if parent is None:
            return
        with _links:
            if parent.error is None:
                parent.children.add(weakref.ref(self, parent.children.discard))
            else:
                self.error = parent.error
                self.set()

    def cancel(self, error: Cancelled) -> None:
        """Cancel this and all below. The callbacks of those below run first."""
        fallen: list[_Scope] = [self]
        callbacks: list[dict[object, Callable[[], object]]] = []
        with _links:
            for scope in fallen:  # which grows on the way down
                if scope.error is not None:
                    continue
                scope.error = error
                callbacks.append(scope.callbacks)
                scope.callbacks = {}
                scope._unpin()
                fallen += [child for ref in list(scope.children) if (child := ref()) is not None]
        for scope in fallen:
            scope.set()
        for of_one in reversed(callbacks):
            for callback in of_one.values():
                _run(callback)

    def add_callback(self, callback: Callable[[], object]) -> Callable[[], bool]:
        """Have ``callback`` run upon cancellation; return what removes it."""
        key = object()
        with _links:
            if self.error is None:
                self.callbacks[key] = callback
                scope = self
                while scope.parent is not None:
                    scope.parent.pinned.add(scope)
                    scope = scope.parent
                return lambda: self._remove_callback(key)
        _run(callback)
        return lambda: False

    def _remove_callback(self, key: object) -> bool:
        with _links:
            callback = self.callbacks.pop(key, None)
            self._unpin()
        # The callback is freed here, outside the lock: what it holds may have a finalizer.
        return callback is not None

    def _unpin(self) -> None:
        """Let the parents forget this, if nothing depends on it. Needs _links."""
        scope: _Scope | None = self
        while scope is not None and not scope.callbacks and not scope.pinned:
            if scope.parent is not None:
                scope.parent.pinned.discard(scope)
            scope = scope.parent


class _Fallen:
    """In place of the scope of a context that was cancelled before it had one."""

    __slots__ = ("error",)

    def __init__(self, error: Cancelled) -> None:
        self.error: Cancelled = error


def _run(callback: Callable[[], object]) -> None:
    try:
        callback()
    except BaseException:
        logger.exception("after_cancel callback {!r} raised", callback)


class Context:
    """Something going on that can be cancelled and carries values. Any thread may use it.

    Contexts come from `background`, from tao (a server's, a connection's, a handler's) or from the
    ``with_`` methods of another.
    """

    __slots__ = ("_parent", "_scope")

    def __init__(self, parent: Context | None = None) -> None:
        self._parent: Context | None = parent
        # Set under _links: when something needs a scope, or when there will be no need for one.
        self._scope: _Scope | _Fallen | None = None

    # -- descending

    def with_cancel(self) -> Context:
        """Return a child that can be cancelled on its own."""
        return Context(self)

    def with_timeout(self, seconds: float) -> Context:
        """Return a child that is cancelled, with `DeadlineExceeded`, in ``seconds``.

        It is kept until then: cancel it when it is not needed any more.

        Raises:
            TypeError, ValueError: ``seconds`` is no number, or a negative one.
        """
        return _TimedContext(self, seconds)

    def with_value(self, key: Hashable, value: Any) -> Context:
        """Return a child in which ``value(key)`` is ``value``."""
        return _ValueContext(self, key, value)

    # -- cancellation

    def cancel(self, reason: str | None = None) -> None:
        """Cancel this context and all below it, and run their callbacks; later calls do nothing.

        Args:
            reason: why, for people; the text of ``error``.
        """
        error = Cancelled(reason or "cancelled")
        with _links:
            if self._scope is None:
                # Nobody waits for it and nothing is below: it need not be hung into the tree first.
                self._scope = _Fallen((self._parent and self._parent.error) or error)
                return
        if isinstance(self._scope, _Scope):
            self._scope.cancel(error)

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

        It runs in the thread that cancels (for a deadline, the timing wheel's), so it should be
        quick. What it raises is logged.

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
    def message(self) -> Any:
        """The message being handled, or None outside of a handler."""
        return self.value(MESSAGE)

    @property
    def net_id(self) -> int | None:
        """The id of the connection, or None outside of one."""
        result: int | None = self.value(NET_ID)
        return result

    @property
    def server(self) -> Any:
        """The server, or None on a client."""
        return self.value(SERVER)

    def _own_scope(self) -> _Scope:
        scope = self._scope
        if isinstance(scope, _Scope):
            return scope
        with _links:
            scope = self._scope
            if isinstance(scope, _Fallen):
                error, scope = scope.error, _Scope(None)
                scope.error = error
                scope.set()
            elif scope is None:
                scope = _Scope(None if self._parent is None else self._parent._own_scope())
            self._scope = scope
        return scope

    def __repr__(self) -> str:
        state = "cancelled: " + str(self.error) if self.cancelled else "active"
        return f"<{type(self).__name__.lstrip('_')} {state}>"


class _Background(Context):
    """The root of all: never cancelled."""

    __slots__ = ()

    def cancel(self, reason: str | None = None) -> None:
        raise RuntimeError(
            "the background context cannot be cancelled; use background().with_cancel()"
        )


class RequestContext(Context):
    """What a handler gets: a message on top of its connection's context.

    One is made for each message; being a slot, ``message`` is found without going up the tree.
    """

    __slots__ = ("message",)
    message: Any

    def __init__(self, parent: Context, message: Any) -> None:
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


class _ValueContext(Context):
    __slots__ = ("_key", "_value")

    def __init__(self, parent: Context, key: Hashable, value: Any) -> None:
        super().__init__(parent)
        self._key = key
        self._value = value

    def value(self, key: Hashable) -> Any:
        if key is self._key or key == self._key:
            return self._value
        return super().value(key)


class _TimedContext(Context):
    """A context with a deadline, kept by the shared timing wheel until it is cancelled."""

    __slots__ = ("_timer", "_wheel")

    def __init__(self, parent: Context, seconds: float) -> None:
        super().__init__(parent)
        self._wheel: TimingWheel = shared_wheel.acquire(self)
        try:
            self._timer: int = self._wheel.run_after(seconds, lambda _: self._expire(seconds))
        except BaseException:
            shared_wheel.release(self)
            raise
        self._own_scope().add_callback(self._give_back)

    def _expire(self, seconds: float) -> None:
        self._own_scope().cancel(DeadlineExceeded(f"deadline of {seconds} s exceeded"))

    def _give_back(self) -> None:
        self._wheel.cancel(self._timer)
        shared_wheel.release(self)


_BACKGROUND = _Background()


def background() -> Context:
    """Return the root of all contexts, which is never cancelled and has no values."""
    return _BACKGROUND


def context_with_message(context: Context, message: Any) -> Context:
    """Return a child of ``context`` that carries a message."""
    return context.with_value(MESSAGE, message)


def context_with_net_id(context: Context, net_id: int) -> Context:
    """Return a child of ``context`` that carries a connection's id."""
    return context.with_value(NET_ID, net_id)


def message_from_context(context: Context) -> Any:
    """Return the message a context carries, or None."""
    return context.message


def net_id_from_context(context: Context) -> int | None:
    """Return the id of the connection a context belongs to, or None."""
    return context.net_id


def server_from_context(context: Context) -> Any:
    """Return the server a context belongs to, or None on a client."""
    return context.server
