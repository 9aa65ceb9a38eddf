"""Socket calls that never block, and waiting for a socket with a limit.

A signal handler may raise an exception between any two bytecodes, and even then it must be known
how many bytes the kernel accepted: otherwise a message would be sent twice, or cut. So `send_now`
stores the kernel's answer in the same C call that asks for it, where no signal handler can run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from itertools import starmap

__all__ = ["end_writing_now", "send_now", "wait_for"]

_SEND_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
# A send that fails with one of these accepted nothing, and the connection is fine.
_NOTHING_ACCEPTED = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR))
# Larger sends release the interpreter lock, see _keeping_the_lock.
_QUICK_SEND = 256 * 1024
# The longest timeout that poll() accepts, in milliseconds.
_MAX_POLL = 2**31 - 1


def _keeping_the_lock(name: str) -> Callable[..., int] | None:
    """Return a function of the C library that is called without releasing the interpreter lock.

    The methods of a socket release it, as they must where they may block. Taking it back is
    expensive when other threads want it too: a wait, and two thread switches. A send that does not
    block takes a few microseconds (25 to 40 for 256 KiB). Keeping the lock for that long lets a
    server with many connections answer a third more messages.

    Returns:
        None if the function cannot be called that way, or if there is no interpreter lock.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        # No argument types are declared: checking them takes as long as the call. The arguments are
        # passed as C ints, which libffi extends to the width of a size_t.
        function: Callable[..., int] = getattr(ctypes.PyDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


_quick_send, _quick_shutdown = _keeping_the_lock("send"), _keeping_the_lock("shutdown")


def send_now(sock: socket.socket, data: bytes | memoryview, answers: list[int]) -> int:
    """Send without blocking, and append the kernel's answer to ``answers``.

    Returns:
        how many bytes the kernel accepted. If it accepted none, a number that is not positive has
        been appended, or nothing.

    Raises:
        OSError: the connection is broken.
    """
    if _quick_send is not None and type(data) is bytes and len(data) <= _QUICK_SEND:
        call = sock.fileno(), data, len(data), _SEND_FLAGS
        answers.extend(starmap(_quick_send, (call,)))
        if answers[-1] > 0:
            return answers[-1]
        number = ctypes.get_errno()
        if number in _NOTHING_ACCEPTED:
            return 0
        raise OSError(number, os.strerror(number))
    try:
        answers.extend(starmap(sock.send, ((data, _SEND_FLAGS),)))
    except BlockingIOError:
        return 0
    return answers[-1]


def end_writing_now(sock: socket.socket) -> None:
    """Shut down the sending direction, and keep the interpreter lock meanwhile.

    Raises:
        OSError: the connection is broken.
    """
    if _quick_shutdown is None:
        sock.shutdown(socket.SHUT_WR)
    elif _quick_shutdown(sock.fileno(), socket.SHUT_WR):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def wait_for(sock: socket.socket, event: int, timeout: float | None) -> bool:
    """Wait for an event of ``poll``, an error or a hang-up, at most ``timeout`` seconds.

    Returns:
        whether there was one in time.
    """
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(None if timeout is None else min(timeout * 1000, _MAX_POLL)))
