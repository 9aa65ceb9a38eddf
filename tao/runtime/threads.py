"""Threads: the only place where tao creates threads and joins them.

Every thread is a daemon, so a program that forgets to stop a server can still exit. Its name says
what it does and for which object (``tao-reader-42``). Its outermost frame logs uncaught exceptions.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import traceback
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
    "has_interpreter_lock",
    "in_tao_thread",
    "is_over",
    "mark_tao_thread",
    "pin",
    "spawn",
    "usable_cpus",
]

_usable: Set[int] = frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())
# How many exceptions in a row, each the cause of the next, are looked through.
_CHAIN = 10
# Whether any thread was ever pinned; never reset.
_pinning = False


def spawn(
    target: Callable[..., object],
    *args: Any,
    name: str,
    cpus: Set[int] | None = None,
    failed: Callable[[BaseException], object] | None = None,
) -> StartableThread:
    """Return a thread, not started yet, that runs ``target(*args)``, on ``cpus`` only if given.

    The owner stores the thread before starting it, so that a stop in between does not miss it.

    Args:
        failed: called on the thread, after logging, with the exception that ``target`` raises or
            that prevents its call; called again if it raises itself. It must end what depends on
            the thread, or continue the work.
    """
    return StartableThread(_outermost, (target, args, cpus), name, partial(_died, failed))


def _outermost(target: Callable[..., object], args: tuple[Any, ...], cpus: Set[int] | None) -> None:
    mark_tao_thread()
    pin(cpus)
    target(*args)


def _died(failed: Callable[[BaseException], object] | None, error: BaseException) -> None:
    try:
        mark_tao_thread()  # again, as it may have been interrupted
        name = threading.current_thread().name
        what = "died" if failed is None else "was interrupted"
        logger.opt(exception=error).error("thread {} {}", name, what)
    finally:
        if failed is not None:
            _free_what_it_holds(error)
            failed(error)


def _free_what_it_holds(error: BaseException) -> None:
    """Drop the variables of the calls that an exception has ended, such as sockets.

    The thread keeps the exception, and may continue for a long time.
    """
    one: BaseException | None = error
    for _ in range(_CHAIN):
        if one is None:
            return
        traceback.clear_frames(one.__traceback__)
        one = one.__cause__ or one.__context__


def pin(cpus: Set[int] | None) -> None:
    """Let the calling thread run on these CPUs only; None: on all that the process may use.

    A thread inherits its CPUs from the thread that starts it, so None must reset them. Nothing is
    done until a thread was pinned for the first time.
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
    """Return the CPUs that the process may use; empty where the platform cannot pin threads."""
    return _usable


def has_interpreter_lock() -> bool:
    """Return whether only one thread at a time runs Python code."""
    enabled: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
    return enabled


def mark_tao_thread() -> None:
    """Mark the calling thread as working for tao: it must never wait for tao's threads."""
    _local.marked = True
    note_greenlet()


def in_tao_thread() -> bool:
    """Return whether the caller runs on one of tao's threads, as in a handler or callback.

    Methods that wait for threads to end (``stop()``, ``close()``) do not wait there, because they
    would wait for their own thread, or for one that waits for it. Nor do they wait in an event
    loop, which has to run what they would wait for.
    """
    return getattr(_local, "marked", False) or in_event_loop()


@contextmanager
def as_tao_thread() -> Iterator[None]:
    """Mark an application's thread as one of tao's while it runs callbacks."""
    before = in_tao_thread()
    _local.marked = True
    try:
        yield
    finally:
        _local.marked = before


class Doorbell:
    """Wakes one waiting thread, also when a signal arrives.

    A signal may be delivered to any thread of a process, but its Python handler runs in the main
    thread. If the main thread is blocked on a lock and another thread gets the signal, the handler
    runs only when the lock is released. So the main thread waits for a socket instead, to which
    the C signal handler writes in whatever thread it runs. Use it in a ``with`` block.
    """

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def ring(self) -> None:
        """Wake the waiting thread, or make the next wait return at once.

        May be called from any thread or signal handler.
        """
        try:
            self._far.send(b"x")
        except OSError:
            pass  # the buffer is full, so it rings already; or it is closed

    def wait(self) -> None:
        """Return when the bell rings or after a signal; spurious returns are possible."""
        before: list[int] = []
        try:
            try:
                if threading.current_thread() is threading.main_thread():
                    # One step of the interpreter, so an exception comes before or after it.
                    listen = partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
                    before.extend(map(listen, [self._far.fileno()]))
                self._poll()
            finally:
                self._listen_as_before(before)
        finally:
            self._listen_as_before(before)  # in case an exception has interrupted the first call

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._near, select.POLLIN)
        poll.poll()
        try:
            self._near.recv(4096)
        except BlockingIOError:
            pass  # woken by a signal, which has been handled by now

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
    """A condition on the ``mutex`` of an object, made on first access, under the mutex.

    (``functools.cached_property`` shares one lock among all objects before CPython 3.12.)
    """

    def __set_name__(self, kind: type, name: str) -> None:
        self._name = name

    def __get__(self, thing: Any, kind: type | None = None) -> threading.Condition:
        made: threading.Condition = threading.Condition(thing.mutex)
        thing.__dict__[self._name] = made
        return made


class Joinable(Protocol):
    """The methods of a thread that `gather` needs."""

    @property
    def name(self) -> str: ...
    @property
    def ident(self) -> int | None: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


def is_over(thread: Joinable) -> bool:
    """Return whether a thread from `spawn` has done its work, or will never do it.

    A thread that is not alive may be about to start.
    """
    return isinstance(thread, StartableThread) and thread.over


JoinableT = TypeVar("JoinableT", bound=Joinable)


def gather(threads: Iterable[JoinableT], deadline: Deadline) -> list[JoinableT]:
    """Join threads until the deadline; return those that still run.

    The calling thread and threads not started yet are skipped, as they cannot be joined.
    """
    if in_event_loop():
        return [thread for thread in threads if thread.is_alive()]
    running = []
    for thread in threads:
        # Check is_alive(), not the ident: a thread that is just starting already has one.
        if thread.ident == threading.get_ident() or not thread.is_alive():
            continue
        thread.join(deadline.remaining())
        if thread.is_alive():
            logger.warning("thread {} does not end in time", thread.name)
            running.append(thread)
    return running
