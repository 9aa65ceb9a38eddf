"""Flat combining: a critical section that is entered by trying, and never waited for.

A thread first notes what it wants, in one step that needs no lock. Then it *tries* to get the turn.
If it gets the turn, it does all the work that is due, its own and that of other threads, and looks
once more after it has released the turn. If it does not, the thread that has the turn will see the
note, and no thread waits. It may be the same thread: a signal handler or a finalizer may interrupt
a turn and use the same object.

The method is that of Hendler, Incze, Shavit and Tzafrir (Flat Combining and the
Synchronization-Parallelism Tradeoff, 2010).

An exception may be raised between any two bytecodes. The thread that it hits puts right what it
interrupted and releases the turn, even if a second exception interrupts that.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from tao.errors import TaoError

__all__ = ["Busy", "Combiner", "acquired", "in_a_turn", "never_waiting"]

T = TypeVar("T")

# The threads that must not wait for a turn now. Each adds and removes itself.
_hurried: set[int] = set()


class Busy(Exception):
    """The turn is taken, and may be for long: a signal handler may have interrupted it."""


def never_waiting(function: Callable[[], T]) -> T:
    """Call a function that is to wait for no turn: `Combiner.run` raises `Busy` instead.

    It is for threads that serve other connections as well. A signal handler of the application may
    have interrupted a turn, and take as long as it likes.
    """
    me = threading.get_ident()
    _hurried.add(me)
    try:
        return function()
    finally:
        _hurried.discard(me)


def acquired(turn: Any) -> bool:
    """Acquire a turn, or a lock like it, which is reentrant, and return True.

    Raises:
        Busy: another thread has it, and this one must not wait.
    """
    if not turn.acquire(False):
        if threading.get_ident() in _hurried:
            raise Busy
        turn.acquire()
    return True


def in_a_turn() -> bool:
    """Return whether the calling code has interrupted a turn on its own thread, of any object.

    It is a signal handler or a finalizer then. Threads that serve many connections may be waiting
    for that turn, so that the end of none of these can be waited for here.

    An object that can have a turn, or a lock like it, tells so by ``interrupted_here``.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        ours = str(frame.f_globals.get("__name__")).startswith("tao.")
        if ours and frame.f_code.co_varnames[:1] == ("self",):
            holder = frame.f_locals.get("self")
            if getattr(holder, "interrupted_here", False):
                return True
        frame = frame.f_back
    return False


class Combiner:
    """The turn, and whether there is work for the thread that has it.

    Args:
        work: does all that is due; called in the turn.
        repair: puts right what an exception interrupted; called in the turn, perhaps twice.
        notify: has the threads that wait look again; called outside of the turn.
    """

    __slots__ = ("_notify", "_repair", "_work", "due", "turn")

    def __init__(
        self,
        work: Callable[[], None],
        repair: Callable[[], object] = bool,
        notify: Callable[[], object] = bool,
    ) -> None:
        self._work = work
        self._repair = repair
        self._notify = notify
        self.due: bool = False  #: whether there may be work; set after it has been noted
        #: For callers to which `run` costs too much; they call `recover` after any exception.
        #: It is reentrant only so that its owner is known.
        self.turn: Any = threading.RLock()

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of its turn."""
        return bool(self.turn._is_owned())

    def settle(self) -> None:
        """Have the work that was noted done: now, or by the thread that has the turn."""
        self.due = True
        turn = self.turn
        if turn._is_owned():
            return  # this call has interrupted it
        try:
            while self.due and turn.acquire(False):
                self.due = False
                self._work()
                turn.release()
        except BaseException:
            try:
                self.recover()
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                if turn._is_owned():
                    turn.release()
            raise

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Wait for the turn, and call a function in it. Not for a call that interrupts a turn.

        Raises:
            Busy: another thread has the turn, and this one must not wait; see `never_waiting`.
        """
        return self._run(True, function, args)

    def attempt(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the turn; for threads that must not wait for it.

        Raises:
            Busy: the turn is taken, by another thread or by a call that this one has interrupted.
        """
        if self.turn._is_owned():
            raise Busy
        return self._run(False, function, args)

    def _run(self, wait: bool, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        turn = self.turn
        try:
            if not (turn.acquire(False) or (wait and acquired(turn))):
                raise Busy
            result = function(*args)
            turn.release()
            if self.due:
                self.settle()
            return result
        except BaseException:
            try:
                self.recover()
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                if turn._is_owned():
                    turn.release()
            raise

    def recover(self) -> None:
        """In an ``except`` clause: repair the interrupted operation, and release the turn."""
        try:
            self._put_right()
        except BaseException:
            self._put_right()  # a second exception interrupted that
            raise

    def _put_right(self) -> None:
        turn = self.turn
        if turn._is_owned():
            self._repair()
            turn.release()
        if not isinstance(sys.exc_info()[1], TaoError):
            self._notify()  # something may have changed, and the interruption kept it a secret
        self.settle()

    def after_fork(self) -> None:
        """In a child process: no thread has the turn."""
        self.turn = threading.RLock()
