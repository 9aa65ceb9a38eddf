"""What can be cancelled: the tree below the contexts, where its waiting threads and callbacks are.

Guarantees:

- Every method may be called from any thread, callback, signal handler or finalizer, in the midst of
  any other. None waits, except for callbacks where it says so, and `Scope.wait`.
- Each callback is called once or was taken back, whoever cancels, adds and takes back meanwhile.
- After an exception that was raised between any two bytecodes of one of these methods, what it was
  to do has happened or has not: no thread goes on waiting below what is cancelled, and no callback
  of it is left uncalled.

There is no lock. A scope is linked to its parent before it looks whether that is cancelled, which
notes the error before it looks for children: one of the two sees the other. The same holds for
callbacks. What is noted is one step of the interpreter each, and of several that note an error the
first counts; so each method may be repeated, and goes on where an exception interrupted it.

Parents hold their children weakly, so a scope nobody uses any more vanishes by itself. (Whoever
holds the event uses it.) One that has callbacks to run is held (`Scope.pinned`) until they have run
or are taken back.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial

from tao.atomic import pop_and_call
from tao.errors import Cancelled
from tao.runtime.log import logger
from tao.runtime.threads import spawn
from tao.runtime.wakeup import Wakeup

__all__ = ["Scope"]


class _Callback:
    """What is to be called upon cancellation."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] = call


class Scope(threading.Event):
    """A node of the tree, and the event that is set when it is cancelled.

    It is the event, instead of having one, so that it lives as long as somebody waits for it. Of
    ``threading.Event`` it has the type only: that one cannot be set from everywhere.

    Attributes:
        parent: the scope above, which cancels this one too.
        children: the scopes below. Each takes itself out when it dies, in whatever thread.
        pinned: those below that have callbacks, by the keys of these.
        callbacks: those neither called nor taken back, in the order in which they were added.
            Whoever takes one out owns it.
        runners: the threads that run callbacks of a cancellation here or below.
    """

    def __init__(self, parent: Scope | None) -> None:
        super().__init__()
        self._wakeup = Wakeup()
        self._errors: list[Cancelled] = []  # the first counts
        self.parent: Scope | None = parent
        self.children: set[weakref.ref[Scope]] = set()
        self.pinned: dict[object, Scope] = {}
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
        """Why it was cancelled, or None."""
        errors = self._errors
        return errors[0] if errors else None

    def fall(self, error: Cancelled) -> None:
        """Note that this one is cancelled, if it is not yet, and wake who waits for that."""
        if not self._errors:
            self._errors.append(error)
        self.set()

    def cancel(self, error: Cancelled) -> None:
        """Cancel this and all below, and run the callbacks, those of the scopes below first.

        If it is cancelled already, nothing happens.
        """
        fallen: list[Scope] = []  # once more if it is interrupted, and held meanwhile
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
        """Cancel this and all below, and have the callbacks run on a thread of their own.

        Args:
            post: is given what runs them, and hands that to `start_runner`; None: just that.
        """
        post = post or self.start_runner
        fallen: list[Scope] = []
        try:
            self._spread(error, fallen)
            _post_callbacks(fallen, post)
        except BaseException:
            self._spread(error, fallen)
            _post_callbacks(fallen, post)
            raise

    def start_runner(self, run: Callable[[], object]) -> None:
        """Start a thread that runs callbacks; if there is none to be had, the caller's does."""
        thread = spawn(self._run, run, name="tao-after-cancel")
        for scope in self._line():
            scope.runners[thread] = None
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self._forget_runner(thread)
            run()

    def _run(self, run: Callable[[], object]) -> None:
        try:
            run()
        finally:
            self._forget_runner(threading.current_thread())

    def _forget_runner(self, thread: threading.Thread) -> None:
        for scope in self._line():
            scope.runners.pop(thread, None)

    def _spread(self, error: Cancelled, fallen: list[Scope]) -> None:
        """Let this and all below fall, and add those that this error has made fall to the list."""
        reached: list[Scope] = [self]
        for scope in reached:  # which grows on the way down
            if scope.error is None or scope.error is error:
                scope.fall(error)
                fallen.append(scope)
                reached += [child for ref in list(scope.children) if (child := ref()) is not None]

    # -- callbacks

    def add_callback(self, callback: Callable[[], object]) -> Callable[[], bool]:
        """Have ``callback`` run upon cancellation, or now if it is too late; return what undoes it.

        That tells whether it came in time.
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
        """Let the scopes above forget this, as far as it depends on this callback."""
        for _, scope in self._links():
            scope.pinned.pop(key, None)

    def _line(self) -> Iterator[Scope]:
        """This one and all above."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def _links(self) -> Iterator[tuple[Scope, Scope]]:
        """The links on the way up: a scope and its parent."""
        for scope in self._line():
            if scope.parent is not None:
                yield scope, scope.parent


def _post_callbacks(scopes: list[Scope], post: Callable[[Callable[[], object]], object]) -> None:
    if any(scope.callbacks for scope in scopes):
        post(partial(_run_callbacks, scopes))


def _run_callbacks(scopes: list[Scope]) -> None:
    """Run the callbacks that are left, of the last scope first.

    Raises:
        KeyboardInterrupt: in the midst of one; but after all have run.
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


def _run_callback(scope: Scope, key: object) -> None:
    """Run a callback if nobody else has taken it out, and log what it raises.

    Raises:
        KeyboardInterrupt: it did, and that is meant for the main thread rather than for the log.
    """
    callback = scope.callbacks.get(key)
    scope.unpin(key)
    try:
        pop_and_call(scope.callbacks, key, "call")
    except BaseException as error:
        if key in scope.callbacks:
            raise  # it has not been called: somebody has interrupted this
        logger.exception("after_cancel callback {!r} raised", callback and callback.call)
        if isinstance(error, KeyboardInterrupt):
            raise
