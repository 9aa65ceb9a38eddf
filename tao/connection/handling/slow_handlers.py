"""Handlers that run now, and those that run for too long.

Running a handler records nothing for this, as that would cost time with every message. What runs
where is read from the stacks of the threads (``thread_stacks.py``) when it is asked for, or when
a slow handler is reported. How long it has been running, the watch (``block_watch.py``) knows to a
few milliseconds.

Without the interpreter lock the stacks must not be read: they change while their threads run, and
the interpreter crashes (its manual warns of this under "free threading"). There nothing is
reported.
"""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol, TypeVar

from tao.connection.handling.inbox import CALL
from tao.connection.options.definitions import Settings
from tao.runtime.greenlets import add_frames
from tao.runtime.snapshots import keys_of
from tao.runtime.thread_stacks import frames_by_thread, while_walked
from tao.runtime.timing_wheel import TimingWheel
from tao.safe_text import number_text

__all__ = [
    "Running",
    "SlowHandlerWatch",
    "Watched",
    "Watcher",
    "calls_handlers",
    "current_frames",
    "running_in",
    "telling_if_long",
]

# How often to look after handlers that are known to block, in seconds.
_STEP = 1.0
# The code that calls handlers, see `calls_handlers`.
_callers: set[CodeType] = set()

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
WatchedT = TypeVar("WatchedT", bound="Watched")


def calls_handlers(function: FunctionT) -> FunctionT:
    """Mark a method of a `Watched` that calls handlers, so that it is recognised in a stack.

    Its variables ``self`` and ``number`` say what runs: the `Watched`, and the message's number.
    """
    _callers.add(function.__code__)
    return function


class Watched(Protocol):
    """What runs the handlers of one connection, one at a time."""

    @property
    def host(self) -> Watcher:
        """The connection's core."""

    @property
    def pending(self) -> int:
        """How many messages wait or are being handled."""

    @property
    def progress(self) -> tuple[int, int]:
        """How far it is: the batches begun, and the messages left of the present one."""

    def since(self) -> tuple[tuple[int, int], float]:
        """Return the progress that was seen last, and since when it has been the same."""

    def seen(self, progress: tuple[int, int], now: float) -> None:
        """Note a progress that is new."""


class SlowHandlerReports(Protocol):
    """Where handlers and callbacks that run for too long are reported."""

    def overdue_handler(self, running: Running, stack: str) -> None:
        """Warn of a handler."""

    def overdue_callback(self, what: str, seconds: float, ident: int, stack: str) -> None:
        """Warn of a callback."""


class Watcher(Protocol):
    """What this asks of a connection's core."""

    settings: Settings
    wheel: TimingWheel

    @property
    def error_reports(self) -> SlowHandlerReports:
        """Where to report."""

    @property
    def runner(self) -> Watched:
        """What runs the handlers."""


def current_frames() -> dict[int, FrameType]:
    """Return the stack of each thread by its number; none where they cannot be looked at."""
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    frames = frames_by_thread() if locked else {}
    add_frames(frames)
    return frames


class Running(NamedTuple):
    """A handler, or a timer's callback, that runs."""

    #: The number of its message; None for a timer's callback.
    number: Any
    #: For how long, in seconds; 0 if for less than a few milliseconds.
    seconds: float
    #: The number of its thread, as `threading.get_ident` gives it.
    ident: int

    @property
    def what(self) -> str:
        """Whose handler it is: of which message, or a timer's."""
        return "a timer" if self.number is None else f"message {number_text(self.number)}"


def running_in(runners: Collection[WatchedT]) -> dict[WatchedT, Running]:
    """Return the running handlers by runner; idle runners are left out.

    Any thread may call it. It looks through the stacks of all threads, once, if any of the
    runners has something to do: better ask for many at a time.
    """
    busy = {each for each in runners if each.pending}
    return {each: found.running for each, found in _find(busy).items()}


class _Found(NamedTuple):
    running: Running
    stack: str  # from the dispatcher's call on


def _find(runners: Collection[Watched], *, stacks: bool = False) -> dict[Any, _Found]:
    """Find the running handlers, with their stacks if requested."""
    if not runners:
        return {}
    with while_walked():
        return _walk(runners, stacks)


def _walk(runners: Collection[Watched], stacks: bool) -> dict[Any, _Found]:
    found: dict[Any, _Found] = {}
    now = monotonic()
    for ident, top in current_frames().items():
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_code in _callers:
                names = frame.f_locals
                each, number = names.get("self"), names.get("number")
                if each is not None and each in runners and number is not None:
                    running = Running(None if number is CALL else number, _since(each, now), ident)
                    found[each] = _Found(running, _stack(top, frame) if stacks else "")
            frame = frame.f_back
    return found


def _since(runner: Watched, now: float) -> float:
    """For how long it has run the same."""
    seen, since = runner.since()
    return now - since if seen == runner.progress else 0.0


def _stack(top: FrameType | None, end: FrameType | None) -> str:
    """The calls below ``end``, up to ``top``, as a traceback shows them."""
    frames = []
    frame = top
    while frame is not None and frame is not end:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    frames.reverse()
    return "".join(traceback.StackSummary.extract(iter(frames)).format())


class SlowHandlerWatch:
    """Looks after the handlers that a `BlockWatch` has found to block. All on the wheel's thread.

    A handler that runs for longer than the option ``handler_warn_after`` is reported, once.

    Args:
        wheel: what it looks on.
    """

    def __init__(self, wheel: weakref.ref[TimingWheel]) -> None:
        self._wheel = wheel
        # Connections with a handler that blocks, or did at the last look, and whether it was
        # reported. They are held weakly: when the wheel stops, they are not looked at any more.
        self._told: weakref.WeakKeyDictionary[Watcher, bool] = weakref.WeakKeyDictionary()
        self._armed: bool = False
        self._next: int = 0  # the id of the next look, the highest

    def add(self, runner: Watched) -> None:
        """Watch the handler that the dispatcher runs now."""
        host: Any = runner.host
        if _limit(host) is not None:
            self._told[host] = False
            if not self._armed:
                self._look_later()

    def _look_later(self) -> None:
        shortest = min((_limit(each) or _STEP for each in keys_of(self._told)), default=_STEP)
        wheel = self._wheel()
        self._armed = False
        try:
            if wheel is not None:
                timer_id = wheel.reserve_id()
                wheel.run_clock(min(_STEP, shortest / 4), lambda _: self._look(timer_id), timer_id)
                self._next, self._armed = timer_id, True
        except RuntimeError:
            # The wheel has stopped, so all connections have ended.
            self._told.clear()

    def _look(self, timer_id: int) -> None:
        """Look at all. If this is interrupted, the wheel calls it again."""
        if timer_id < self._next:
            return  # it was, after it had set the next look
        self._look_now()
        self._armed = False
        if self._told:
            self._look_later()

    def _look_now(self) -> None:
        now = monotonic()
        overdue: dict[Watched, Watcher] = {}
        for conn in keys_of(self._told):
            each, told = conn.runner, self._told.get(conn)
            (before, since), state = each.since(), each.progress
            if state[0] != before[0] or not each.pending:
                self._told.pop(conn, None)  # it has ended; the next one is found separately
            elif state != before:
                each.seen(state, now)
                self._told[conn] = False
            elif not told and now - since >= (_limit(conn) or 0.0):
                overdue[each] = conn
        found = _find(overdue, stacks=True)
        for each, conn in overdue.items():
            if each in found:
                self._told[conn] = True
                conn.error_reports.overdue_handler(found[each].running, found[each].stack)
            else:
                each.seen(each.progress, now)  # it waits for a worker: its time has not begun


def _limit(conn: Watcher) -> float | None:
    return conn.settings.handler_warn_after


@contextmanager
def telling_if_long(conn: Watcher, what: str) -> Iterator[None]:
    """Report a callback like a handler if the ``with`` block runs for long."""
    limit = _limit(conn)
    if limit is None:
        yield
        return
    # The frames are this function's, that of the module contextlib, and that of the caller.
    ident, end, wheel = threading.get_ident(), sys._getframe(2), conn.wheel.in_real_time

    def tell(_: datetime) -> None:
        with while_walked():
            stack = _stack(current_frames().get(ident), end)
        conn.error_reports.overdue_callback(what, limit, ident, stack)

    try:
        timer = wheel.run_clock(limit, tell)
    except RuntimeError:  # it has stopped
        timer = 0
    try:
        yield
    finally:
        wheel.cancel(timer)
