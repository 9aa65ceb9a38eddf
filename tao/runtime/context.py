"""Contexts: a tree of operations that can be cancelled and carry values.

A context represents an operation: a server, a connection, one request. Cancelling it cancels all
contexts below it and none above. The model is Go's ``context`` package, with a ``threading.Event``
in place of the channel, so waiting threads are woken and need not poll.

A context is made for every message, and most are never checked for cancellation. So a context has
only two fields; its ``CancelScope``, the machinery for waiting, is made on demand. They give the
same guarantees to threads, signal handlers and finalizers as ``cancel_scope.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from tao.callables import check_quickly
from tao.errors import Cancelled, DeadlineExceeded
from tao.runtime.cancel_scope import CancelScope
from tao.runtime.timing_wheel import TimingWheel, shared_wheel

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    MessageT_co = TypeVar("MessageT_co", covariant=True, default=Any)
else:  # older versions of Python do not support a default
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
HEADER = object()
ANSWER = object()
NET_ID = object()
SERVER = object()


class _Fallen:
    """Stands in for the scope of a context that was cancelled before it had one."""

    __slots__ = ("_scopes", "error")

    def __init__(self, error: Cancelled) -> None:
        self.error: Cancelled = error
        self._scopes: list[CancelScope] = []  # the first counts

    def scope(self) -> CancelScope:
        """Return a cancelled scope, made on first use."""
        if not self._scopes:
            scope = CancelScope(None)
            scope.fall(self.error)
            self._scopes.append(scope)
        return self._scopes[0]


class _TimedScope(CancelScope):
    """The scope of a context with a deadline; a timer keeps it alive until then."""

    def __init__(self, parent: CancelScope, seconds: float) -> None:
        self._wheel: TimingWheel | None = None
        self._timer: int = 0
        super().__init__(parent)
        try:
            wheel = self._wheel = shared_wheel.acquire(self)
            self._timer = wheel.reserve_id()
            wheel.run_until_done(seconds, lambda _: self._expire(seconds), self._timer)
            if self.error is not None:
                self._give_back()
        except BaseException:
            self._give_back()
            raise

    def fall(self, error: Cancelled) -> None:
        super().fall(error)
        self._give_back()

    def _expire(self, seconds: float) -> None:
        """Cancel the scope at its deadline. Runs on the wheel's thread, so not the callbacks."""
        wheel = self._wheel
        assert wheel is not None
        # An earlier call may have been interrupted.
        error = self.error or DeadlineExceeded(f"deadline of {seconds} s exceeded")
        self.cancel_aside(error, partial(wheel.hand_over, self.start_runner))

    def _give_back(self) -> None:
        """Release the wheel. May be called repeatedly."""
        if self._wheel is not None:
            self._wheel.cancel(self._timer)
        shared_wheel.release(self)


# The scopes that contexts are about to get. The first entry for a context counts, and stays until
# the context has its scope. The keys are the contexts themselves, as an id() may be reused.
_chosen: dict[Context, CancelScope | _Fallen] = {}


class Context(Generic[MessageT_co]):
    """An operation that can be cancelled and carries values.

    The type parameter is the class of ``message``: a handler may take a ``Context[ChatMessage]``.
    Without it, type checkers accept any message.

    May be used from any thread, signal handler or finalizer.

    Contexts are returned by `background`, made by tao for servers, connections and handlers, or
    derived from another one by its ``with_`` methods.
    """

    __slots__ = ("_parent", "_scope")

    def __init__(self, parent: Context | None = None) -> None:
        self._parent: Context | None = parent
        # Set once, by `_choose`: on first use, or on cancellation before that.
        self._scope: CancelScope | _Fallen | None = None

    # -- derived contexts

    def with_cancel(self) -> Context[MessageT_co]:
        """Return a child that can be cancelled separately."""
        return Context(self)

    def with_timeout(self, seconds: float) -> Context[MessageT_co]:
        """Return a child that is cancelled with `DeadlineExceeded` after ``seconds``.

        It uses memory until then; cancel it when it is no longer needed.

        Raises:
            TypeError, ValueError: ``seconds`` is not a number, or is negative.
        """
        return _TimedContext(self, seconds)

    def with_value(self, key: Hashable, value: Any) -> Context[MessageT_co]:
        """Return a child in which ``value(key)`` is ``value``."""
        return _ValueContext(self, key, value)

    # -- cancellation

    def cancel(self, reason: str | None = None) -> None:
        """Cancel this context and all below it, and run their callbacks; later calls do nothing.

        Args:
            reason: a readable reason; the text of ``error``.
        """
        self._cancel(reason, CancelScope.cancel)

    def cancel_aside(self, reason: str | None = None) -> None:
        """Cancel like `cancel`, but run the callbacks on a separate thread and return at once.

        For tao's own threads, which a callback must not block.
        """
        self._cancel(reason, CancelScope.cancel_aside)

    def thread_starter(self) -> Callable[[Callable[[], object], str], object]:
        """Return what calls a function on a thread of its own, with the name that it is given too.

        The thread is one of `callback_threads`. If an exception from outside interrupts the call,
        it is made again; if no thread can be started, it is made on the calling thread.
        """
        return self._own_scope().start_runner

    def callback_threads(self) -> list[threading.Thread]:
        """Return the threads that run callbacks of `cancel_aside` and the like, here or below."""
        scope = self._scope
        return list(scope.runners) if isinstance(scope, CancelScope) else []

    def _cancel(
        self, reason: str | None, cancel: Callable[[CancelScope, Cancelled], object]
    ) -> None:
        error = Cancelled(reason or "cancelled")
        scope = self._scope
        if scope is None:
            # No thread waits and there are no children, so it need not be linked into the tree.
            scope = self._choose(_Fallen((self._parent and self._parent.error) or error))
        if isinstance(scope, CancelScope):
            cancel(scope, error)

    @property
    def done(self) -> threading.Event:
        """An event that is set when the context is cancelled. Wait on it, do not set it."""
        return self._own_scope()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds until the context is cancelled; return whether it is."""
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
        """Call ``callback()`` when the context is cancelled, or at once if it already is.

        The callback runs on the thread that calls `cancel`, or on this one if the context is
        already cancelled. When tao cancels (a deadline expired, a connection closed, a server
        stops), callbacks run one after another on a separate thread, so they may block. Only a
        stopping server waits for them, until its own deadline. Exceptions are logged. It sees the
        ``contextvars`` of the code that calls this, as they are now.

        Returns:
            a function that removes the callback and returns whether it has prevented the call.
        """
        if not callable(callback):
            raise TypeError(f"an after_cancel callback must be callable, not {callback!r}")
        check_quickly("callback", callback)
        return self._own_scope().add_callback(callback)

    # -- values

    def value(self, key: Hashable) -> Any:
        """Return the value for ``key`` in this context or the nearest one above, or None."""
        return None if self._parent is None else self._parent.value(key)

    @property
    def message(self) -> MessageT_co:
        """The message being handled, or None outside a handler."""
        message: MessageT_co = self.value(MESSAGE)
        return message

    @property
    def header(self) -> Any:
        """The other fields of the message's frame, as attributes; None if its codec has none."""
        return self.value(HEADER)

    def reply(self, message: Any) -> None:
        """Answer the message being handled.

        The reply to a request goes to the call that waits for it. A message that was no request is
        answered by a plain write to its connection, so one handler serves both. Any thread may call
        it: in the handler, or later after `defer`.

        Args:
            message: the reply. A `RemoteError` refuses a request.

        Raises:
            RuntimeError: this is no handler's context, or the request is answered already.
            WouldBlock, ConnectionClosed: as for `Connection.write`; nothing was answered.
        """
        self._answer().reply(message)

    def defer(self) -> None:
        """Have the reply come later: returning from the handler does not end the request."""
        self._answer().defer()

    def _answer(self) -> Any:
        answer = self.value(ANSWER)
        if answer is None:
            raise RuntimeError("there is nothing to reply to: this is not a handler's context")
        return answer

    @property
    def net_id(self) -> int | None:
        """The id of the connection, or None outside a connection."""
        result: int | None = self.value(NET_ID)
        return result

    @property
    def server(self) -> Any:
        """The server, or None on a client."""
        return self.value(SERVER)

    def _own_scope(self) -> CancelScope:
        scope = self._scope
        if scope is None:
            scope = self._choose(
                CancelScope(None if self._parent is None else self._parent._own_scope())
            )
        return scope.scope() if isinstance(scope, _Fallen) else scope

    def _choose(self, scope: CancelScope | _Fallen) -> CancelScope | _Fallen:
        """Set the scope unless one is set or about to be; return the scope in effect."""
        try:
            chosen = _chosen.setdefault(self, scope)
            if self._scope is None:  # as `_settle` does, in fewer steps
                self._scope = chosen
            _chosen.pop(self, None)
        except BaseException:
            self._settle()
            raise
        return self._scope

    def _settle(self) -> None:
        """Copy the chosen scope, if any, into the context."""
        chosen = _chosen.get(self)
        # An entry is removed only when the context has its scope. So while the context has none,
        # this is its only entry, and entries made later are ignored.
        if self._scope is None and chosen is not None:
            self._scope = chosen
        if self._scope is not None:
            _chosen.pop(self, None)

    def __repr__(self) -> str:
        state = "cancelled: " + str(self.error) if self.cancelled else "active"
        return f"<{type(self).__name__.lstrip('_')} {state}>"


class _Background(Context):
    """The root context, which is never cancelled."""

    __slots__ = ()

    def _cancel(
        self, reason: str | None, cancel: Callable[[CancelScope, Cancelled], object]
    ) -> None:
        raise RuntimeError(
            "the background context cannot be cancelled; use background().with_cancel()"
        )


class RequestContext(Context[MessageT_co]):
    """The context of a handler: a message on top of the connection's context.

    One is made for each message; ``message`` is a slot, so reading it need not search the tree.
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
    """The context of a connection, with its id, its server, and what answers for its handlers."""

    __slots__ = ("_answer_plainly", "_net_id", "_server")

    def __init__(self, parent: Context, net_id: int, server: Any, answer: Any = None) -> None:
        super().__init__(parent)
        self._net_id = net_id
        self._server = server
        self._answer_plainly = answer

    def value(self, key: Hashable) -> Any:
        if key is NET_ID:
            return self._net_id
        if key is SERVER:
            return self._server
        if key is ANSWER:
            return self._answer_plainly
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
