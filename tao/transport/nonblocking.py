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
from typing import Any

__all__ = [
    "QUICK_SEND",
    "SEND_FLAGS",
    "QuickSend",
    "end_writing_now",
    "quick_send",
    "refused",
    "send_now",
    "wait_for",
]

#: What sends without blocking, and without a signal if the connection is broken.
SEND_FLAGS = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
# A send that fails with one of these accepted nothing, and the connection is fine.
_NOTHING_ACCEPTED = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR))
#: Larger sends release the interpreter lock, see `quick_send`.
QUICK_SEND = 256 * 1024
# The longest timeout that poll() accepts, in milliseconds.
_MAX_POLL = 2**31 - 1


def _c_library() -> Any:
    """Return the C library, whose functions are called without releasing the interpreter lock.

    The methods of a socket release it, as they must where they may block. Taking it back is
    expensive when other threads want it too: a wait, and two thread switches. A send that does not
    block takes a few microseconds (25 to 40 for 256 KiB). Keeping the lock for that long lets a
    server with many connections answer a third more messages.

    Returns:
        None if functions cannot be called that way, or if there is no interpreter lock.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        library = ctypes.PyDLL(None, use_errno=True)
        _ = library.send, library.shutdown
    except (AttributeError, OSError, TypeError):
        return None
    return library


_library = _c_library()
_send_address = _library and ctypes.cast(_library.send, ctypes.c_void_p).value

#: Sends without releasing the interpreter lock, see `quick_send`.
QuickSend = Callable[[int, bytes, int, int], object]


def quick_send(answers: list[int]) -> QuickSend | None:
    """Return the C library's ``send``, which appends what the kernel answers to a list.

    Returns:
        None where it cannot be called without releasing the interpreter lock.
    """
    if _library is None:
        return None
    # No argument types are declared: checking them takes as long as the call. The arguments are
    # passed as C ints, which libffi extends to the width of a size_t.
    send = type(_library.send)(_send_address)  # another object than that of the library
    send.restype = answers.append  # called with the result, before the call returns
    return send  # type: ignore[no-any-return]


def send_now(
    sock: socket.socket, data: bytes | memoryview, answers: list[int], quick: QuickSend | None
) -> int:
    """Send without blocking, and append the kernel's answer to ``answers``.

    Args:
        quick: what `quick_send` has returned for this list.

    Returns:
        how many bytes the kernel accepted. If it accepted none, a number that is not positive has
        been appended, or nothing.

    Raises:
        OSError: the connection is broken.
    """
    if quick is not None and type(data) is bytes and (size := len(data)) <= QUICK_SEND:
        quick(sock.fileno(), data, size, SEND_FLAGS)
        accepted = answers[-1]
        return accepted if accepted > 0 else refused()
    try:
        answers.extend(starmap(sock.send, ((data, SEND_FLAGS),)))
    except BlockingIOError:
        return 0
    return answers[-1]


def refused() -> int:
    """Return 0 if a quick send has failed as the kernel accepts nothing for now, or raise why."""
    number = ctypes.get_errno()
    if number in _NOTHING_ACCEPTED:
        return 0
    raise OSError(number, os.strerror(number))


def end_writing_now(sock: socket.socket) -> None:
    """Shut down the sending direction, and keep the interpreter lock meanwhile.

    Raises:
        OSError: the connection is broken.
    """
    if _library is None:
        sock.shutdown(socket.SHUT_WR)
    elif _library.shutdown(sock.fileno(), socket.SHUT_WR):
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
