"""Threads: the only place where tao makes one, and waits for some to end.

Every thread is a daemon, so a program that forgets to stop a server can still end, and has a name
that says what it does and for whom (``tao-reader-42``). Its outermost frame logs what escaped.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from tao.runtime.deadline import Deadline
from tao.runtime.greenlets import in_event_loop, is_patched, note_greenlet
from tao.runtime.log import logger
from tao.runtime.log import thread_marks as _local
from tao.runtime.thread_start import StartableThread

__all__ = [
    "Deadline",
    "Doorbell",
    "Joinable",
    "LazyCondition",
    "as_tao_thread",
    "gather",
    "in_tao_thread",
    "mark_tao_thread",
    "pin",
    "spawn",
    "usable_cpus",
]

_usable: Set[int] = frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())
# Whether any thread was ever pinned; only ever set.
_pinning = False


def spawn(
    target: Callable[..., object],
    *args: Any,
    name: str,
    cpus: Set[int] | None = None,
    failed: Callable[[BaseException], object] | None = None,
) -> threading.Thread:
    """Return a thread, not started yet, that runs ``target(*args)``, on ``cpus`` only if given.

    The owner stores it before starting it, so that a stop in between does not miss it.

    Args:
        failed: called on the thread, after it was logged, with what ``target`` raises or what keeps
            it from being called; again if it raises itself. It ends what depends on the thread, or
            goes on with the work.
    """
    return StartableThread(_outermost, (target, args, cpus), name, partial(_died, failed))


def _outermost(target: Callable[..., object], args: tuple[Any, ...], cpus: Set[int] | None) -> None:
    mark_tao_thread()
    pin(cpus)
    target(*args)


def _died(failed: Callable[[BaseException], object] | None, error: BaseException) -> None:
    try:
        mark_tao_thread()  # it may have come to nothing
        name = threading.current_thread().name
        what = "died" if failed is None else "was interrupted"
        logger.opt(exception=error).error("thread {} {}", name, what)
    finally:
        if failed is not None:
            failed(error)


def pin(cpus: Set[int] | None) -> None:
    """Let the calling thread run on these CPUs only; None: on all that the process may use.

    A thread inherits this from the one that starts it, so both are needed. As long as nobody ever
    asked for certain CPUs, nothing is done.
    """
    global _pinning
    if (cpus is None and not _pinning) or is_patched():  # greenlets all run on one thread
        return
    _pinning = True
    try:
        os.sched_setaffinity(0, usable_cpus() if cpus is None else cpus)
    except OSError as error:
        logger.warning("{} cannot be pinned: {}", threading.current_thread().name, error)


def usable_cpus() -> Set[int]:
    """Return the CPUs that the process may use; none where the platform cannot pin threads."""
    return _usable


def mark_tao_thread() -> None:
    """Note that the calling thread works for tao, so it must never wait for tao's threads."""
    _local.marked = True
    note_greenlet()


def in_tao_thread() -> bool:
    """Tell whether the caller is one of tao's threads: in a handler or callback, say.

    What waits for threads to end (``stop()``, ``close()``) does not wait there: it would wait for
    itself, or for another that waits for it. Nor does it in an event loop, which would wait for
    what it is to run itself.
    """
    return getattr(_local, "marked", False) or in_event_loop()


@contextmanager
def as_tao_thread() -> Iterator[None]:
    """Have a thread of the user's count as one of tao's while it runs callbacks."""
    before = in_tao_thread()
    _local.marked = True
    try:
        yield
    finally:
        _local.marked = before


class Doorbell:
    """Wakes one waiting thread, also when a signal comes.

    A signal may be delivered to any thread of a process. Its Python handler runs in the main
    thread, but if that is blocked in a lock, and the signal went to another thread, not before it
    wakes for another reason. So the main thread waits for a socket that the C half of a handler
    writes to, whichever thread it runs in. Use it in a ``with`` block.
    """

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def ring(self) -> None:
        """Wake who waits, or the next who does. Any thread, and a signal handler, may call it."""
        try:
            self._far.send(b"x")
        except OSError:
            pass  # it rings already, or nobody is there any more

    def wait(self) -> None:
        """Return when it rings, or a signal has been handled; maybe without reason."""
        before: list[int] = []
        try:
            try:
                if threading.current_thread() is threading.main_thread():
                    # One step of the interpreter: an exception comes before or after.
                    listen = partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
                    before.extend(map(listen, [self._far.fileno()]))
                self._poll()
            finally:
                self._listen_as_before(before)
        finally:
            self._listen_as_before(before)  # in case that an exception kept it from that

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._near, select.POLLIN)
        poll.poll()
        try:
            self._near.recv(4096)
        except BlockingIOError:
            pass  # interrupted by a signal, which has been handled now

    def _listen_as_before(self, before: list[int]) -> None:
        for descriptor in before:
            signal.set_wakeup_fd(descriptor)
        before.clear()

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._near.close()
        self._far.close()


class LazyCondition:
    """A condition on the ``mutex`` of an object, made when first asked for, under the mutex.

    (``functools.cached_property`` has a lock of its own before CPython 3.12, one for all objects.)
    """

    def __set_name__(self, kind: type, name: str) -> None:
        self._name = name

    def __get__(self, thing: Any, kind: type | None = None) -> threading.Condition:
        made: threading.Condition = threading.Condition(thing.mutex)
        thing.__dict__[self._name] = made
        return made


class Joinable(Protocol):
    """What `gather` asks of a thread."""

    @property
    def name(self) -> str: ...
    @property
    def ident(self) -> int | None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


JoinableT = TypeVar("JoinableT", bound=Joinable)


def gather(threads: Iterable[JoinableT], deadline: Deadline) -> list[JoinableT]:
    """Join threads until the deadline and return those that still run.

    The calling thread and threads not started yet are passed over: neither can be waited for.
    """
    if in_event_loop():
        return [thread for thread in threads if thread.is_alive()]
    running = []
    for thread in threads:
        # Not alive, rather than without ident: one that is just starting has that already.
        if thread.ident == threading.get_ident() or not thread.is_alive():
            continue
        thread.join(deadline.remaining())
        if thread.is_alive():
            logger.warning("thread {} does not end in time", thread.name)
            running.append(thread)
    return running
