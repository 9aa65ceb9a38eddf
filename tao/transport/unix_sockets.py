"""Unix sockets that listen, and the files they leave in the file system.

Binding a Unix socket makes a file, which stays when its process is killed. Then it has no listener,
and its path cannot be bound. So a file that is in the way is probed, and replaced if there is no
answer.

A file is removed only by the server that has made it, which knows it by device and inode: another
server may have the path by now. The inode of a bound socket is not used again until the socket is
closed, so the file has to be removed before. Whoever looks at a file and then acts on it holds a
lock on the directory, lest two servers replace each other's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tao.transport.addresses import is_abstract

__all__ = ["SocketFile", "bind_unix"]

# How often to try to lock a directory, and how long to wait in between, in seconds. It is locked
# for microseconds as a rule; it also works without the lock.
_TRIES, _PAUSE = 50, 0.005

_Identity = tuple[int, int]


class SocketFile:
    """The file of a listening Unix socket.

    Args:
        path: of the file, which is there and belongs to the caller's socket.
    """

    def __init__(self, path: str) -> None:
        # Absolute, as the working directory may be another one in the end.
        self.path: str = os.path.abspath(path)
        #: Device and inode.
        self.identity: _Identity | None = _identity(path)

    def remove(self) -> None:
        """Remove the file, unless it is another one by now. Call it before closing the socket.

        Raises:
            OSError: it cannot be removed.
        """
        with _directory_locked(self.path):
            _remove(self.path, self.identity)


def bind_unix(sock: socket.socket, address: str, backlog: int) -> SocketFile | None:
    """Have a Unix socket listen; return its file, None for an abstract address.

    Args:
        sock: new.
        address: as `unix_address` returns it.
        backlog: how many connections may wait in the kernel.

    Raises:
        OSError: it cannot listen there.
    """
    if is_abstract(address):
        sock.bind(address)
        sock.listen(backlog)
        return None
    with _directory_locked(address):
        try:
            sock.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(address)
            sock.bind(address)
        file = SocketFile(address)
        try:
            sock.listen(backlog)
        except BaseException:
            _remove(file.path, file.identity)
            raise
    return file


def _remove_stale(path: str) -> None:
    """Remove the socket file at ``path`` if it has no listener any more.

    Raises:
        OSError: it has a listener, is no socket, or cannot be removed.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    if _is_refused(path):
        _remove(path, (found.st_dev, found.st_ino))
    # Else bind says once more that it is in use.


def _is_refused(path: str) -> bool:
    """Return whether connecting to ``path`` is refused, so that no process listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # the backlog of a server that is there may be full
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _identity(path: str) -> _Identity | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove(path: str, identity: _Identity | None) -> None:
    """Remove the file at ``path`` if it is the one with this identity."""
    if identity is not None and _identity(path) == identity:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


@contextmanager
def _directory_locked(path: str) -> Iterator[None]:
    """Hold a lock on the directory of ``path``, if it can be had."""
    descriptor = None
    try:
        try:
            descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
            _lock(descriptor)
        except OSError:
            pass  # it may not be read, or its file system knows no locks
        yield
    finally:
        if descriptor is not None:
            _unlock(descriptor)
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_PAUSE)


def _unlock(descriptor: int) -> None:
    try:
        # Closing is not enough: a process forked meanwhile has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError:
        pass
