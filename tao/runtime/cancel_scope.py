"""Cancel scopes: the tree behind the contexts, with its waiting threads and its callbacks.

Guarantees:

- Every method may be called from any thread, callback, signal handler or finalizer, even during
  another call. None blocks, except `CancelScope.wait` and the methods documented to run callbacks.
- Each callback is either called once or removed, whatever other threads do at the same time.
- If an exception is raised between any two bytecodes of a method, its effect is complete or absent:
  no thread keeps waiting on a cancelled scope, and no callback of it is left uncalled.

There is no lock. A new scope is first linked to its parent, then checks whether the parent is
cancelled. A cancelled scope first stores the error, then looks for children. So one of the two sees
the other. The same holds for callbacks. Each store is one step of the interpreter, and the first
error stored counts. So a method that was interrupted by an exception can be repeated, and completes
what is missing.

Parents hold their children weakly, so an unused scope is freed. (Its event counts as a use.) A
scope that has callbacks to run is kept alive (`CancelScope.pinned`) until they have run or are
removed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial

from tao.atomic import pop_and_call
from tao.errors import Cancelled
from tao.runtime.log import logger
from tao.runtime.threads import spawn
from tao.runtime.wakeup import Wakeup

__all__ = ["CancelScope"]


class _Callback:
    """A callable to be called on cancellation."""

    __slots__ = ("call", "callback")

    def __init__(self, call: Callable[[], object]) -> None:
        self.callback = call
        # In the contextvars context of the code that adds it. All C, so that the call is one step.
        self.call: Callable[[], object] = partial(copy_context().run, call)


class CancelScope(threading.Event):
    """A node of the tree, and the event that is set when it is cancelled.

    The scope is itself the event, so that it lives as long as a thread waits for the event. It
    takes only the type from ``threading.Event``, whose ``set`` may deadlock in a signal handler.

    Attributes:
        parent: the scope above; cancelling it cancels this one too.
        children: the scopes below. Each is removed when it is freed, in any thread.
        pinned: scopes below that have callbacks, by the keys of the callbacks.
        callbacks: those neither called nor removed, in the order in which they were added.
            The thread that removes an entry owns the callback.
        runners: the threads that run callbacks of a cancellation here or below.
    """

    def __init__(self, parent: CancelScope | None) -> None:
        super().__init__()
        self._wakeup = Wakeup()
        self._errors: list[Cancelled] = []  # the first counts
        self.parent: CancelScope | None = parent
        self.children: set[weakref.ref[CancelScope]] = set()
        self.pinned: dict[object, CancelScope] = {}
        self.callbacks: dict[object, _Callback] = {}
        self.runners: dict[threading.Thread, None] = {}
        if parent is not None:
            parent.children.add(weakref.ref(self, parent.children.discard))
            error = parent.error
            if error is not None:
                self.fall(error)

    # -- the event

    def is_set(self) -> bool:
        return self._wakeup.is_set()

    def set(self) -> None:
        self._wakeup.set()

    def clear(self) -> None:
        self._wakeup.clear()

    def wait(self, timeout: float | None = None) -> bool:
        return self._wakeup.wait(timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self.is_set() else 'unset'}>"

    # -- cancelling

    @property
    def error(self) -> Cancelled | None:
        """Why the scope was cancelled, or None."""
        errors = self._errors
        return errors[0] if errors else None

    def fall(self, error: Cancelled) -> None:
        """Mark this scope as cancelled, unless it is, and wake the threads that wait for it."""
        if not self._errors:
            self._errors.append(error)
        self.set()

    def cancel(self, error: Cancelled) -> None:
        """Cancel this scope and all below, and run the callbacks, lower scopes first.

        Does nothing if the scope is cancelled already.
        """
        fallen: list[CancelScope] = []  # keeps them alive, also for the second attempt below
        try:
            self._spread(error, fallen)
            _run_callbacks(fallen)
        except BaseException:
            self._spread(error, fallen)
            _run_callbacks(fallen)
            raise

    def cancel_aside(
        self, error: Cancelled, post: Callable[[Callable[[], object]], object] | None = None
    ) -> None:
        """Cancel this scope and all below, and run the callbacks on a separate thread.

        Args:
            post: called with the function that runs them; must pass it to `start_runner`. None:
                call `start_runner` directly.
        """
        post = post or self.start_runner
        fallen: list[CancelScope] = []
        try:
            self._spread(error, fallen)
            _post_callbacks(fallen, post)
        except BaseException:
            self._spread(error, fallen)
            _post_callbacks(fallen, post)
            raise

    def start_runner(self, run: Callable[[], object], name: str = "tao-after-cancel") -> None:
        """Run callbacks on a new thread, or on this one if no thread can be started."""
        thread = spawn(self._run, run, name=name, failed=lambda _: self._run(run))
        for scope in self._line():
            scope.runners[thread] = None
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self._forget_runner(thread)
            run()

    def _run(self, run: Callable[[], object]) -> None:
        """Run callbacks. If this is interrupted, it is called again and runs those that remain."""
        run()
        self._forget_runner(threading.current_thread())

    def _forget_runner(self, thread: threading.Thread) -> None:
        for scope in self._line():
            scope.runners.pop(thread, None)

    def _spread(self, error: Cancelled, fallen: list[CancelScope]) -> None:
        """Mark this scope and all below; add those that this error has cancelled to the list."""
        reached: list[CancelScope] = [self]
        for scope in reached:  # grows during the iteration
            if scope.error is None or scope.error is error:
                scope.fall(error)
                fallen.append(scope)
                reached += [child for ref in list(scope.children) if (child := ref()) is not None]

    # -- callbacks

    def add_callback(self, callback: Callable[[], object]) -> Callable[[], bool]:
        """Call ``callback`` on cancellation, or now if it is cancelled; return a remove function.

        The remove function returns whether it has prevented the call.
        """
        key = object()
        try:
            self.callbacks[key] = _Callback(callback)
            for below, scope in self._links():
                scope.pinned[key] = below
            if self.error is not None:
                _run_callback(self, key)
            return partial(self._take_back, key)
        except BaseException:
            self._take_back(key)
            raise

    def _take_back(self, key: object) -> bool:
        try:
            taken = self.callbacks.pop(key, None) is not None
            self.unpin(key)
            return taken
        except BaseException:
            self.callbacks.pop(key, None)
            self.unpin(key)
            raise

    def unpin(self, key: object) -> None:
        """Release the references from the scopes above that exist for this callback."""
        for _, scope in self._links():
            scope.pinned.pop(key, None)

    def _line(self) -> Iterator[CancelScope]:
        """Yield this scope and all above."""
        scope: CancelScope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def _links(self) -> Iterator[tuple[CancelScope, CancelScope]]:
        """Yield each scope with its parent, from here to the root."""
        for scope in self._line():
            if scope.parent is not None:
                yield scope, scope.parent


def _post_callbacks(
    scopes: list[CancelScope], post: Callable[[Callable[[], object]], object]
) -> None:
    if any(scope.callbacks for scope in scopes):
        post(partial(_run_callbacks, scopes))


def _run_callbacks(scopes: list[CancelScope]) -> None:
    """Run the remaining callbacks, those of the last scope first.

    Raises:
        KeyboardInterrupt: raised within a callback; re-raised after all have run.
    """
    interrupt: KeyboardInterrupt | None = None
    for scope in reversed(scopes):
        for key in list(scope.callbacks):
            try:
                _run_callback(scope, key)
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt


def _run_callback(scope: CancelScope, key: object) -> None:
    """Run a callback unless another thread has removed it, and log its exception.

    Raises:
        KeyboardInterrupt: raised within the callback; meant for the main thread, not for the log.
    """
    callback = scope.callbacks.get(key)
    scope.unpin(key)
    try:
        pop_and_call(scope.callbacks, key, "call")
    except BaseException as error:
        if key in scope.callbacks:
            raise  # not called: this thread was interrupted before the call
        logger.exception("after_cancel callback {!r} raised", callback and callback.callback)
        if isinstance(error, KeyboardInterrupt):
            raise
