"""Flat combining: a critical section that is entered by trying, and never waited for.

A thread first notes what it wants, in one step that needs no lock. Then it *tries* to get the turn.
If it gets the turn, it does all the work that is due, its own and that of other threads, and looks
once more after it has released the turn. If it does not, the thread that has the turn will see the
note, and nobody waits. That thread may be this one: a signal handler or a finalizer may interrupt a
turn and want something of the same object.

The method is that of Hendler, Incze, Shavit and Tzafrir (Flat Combining and the
Synchronization-Parallelism Tradeoff, 2010).

An exception may be raised between any two bytecodes. The thread that it hits puts right what it
interrupted and releases the turn, even if a second exception interrupts that.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tao.errors import TaoError

__all__ = ["Combiner"]

T = TypeVar("T")


class Combiner:
    """The turn, and whether there is work for the thread that has it.

    Args:
        work: does all that is due; called in the turn.
        repair: puts right what an exception interrupted; called in the turn, perhaps twice.
        notify: has the threads that wait look again; called outside of the turn.
    """

    __slots__ = ("_notify", "_repair", "_work", "due", "turn")

    def __init__(
        self, work: Callable[[], None], repair: Callable[[], None], notify: Callable[[], None]
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
        """Wait for the turn, and call a function in it. Not for a call that interrupts a turn."""
        turn = self.turn
        try:
            turn.acquire()
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
        """In an ``except`` clause: put right what was interrupted, and release the turn."""
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
