"""Accepting: from a socket that listens to connections, whatever waits for them.

Either threads of the listener's own wait, see ``threaded_listener.py``, or a loop that reads
connections does, see ``shared_listener.py``.

Errors do not end the accepting: if descriptors, memory or threads run out, a listener logs that,
accepts nothing for a growing interval, and continues, even if the logging raises. An error of one
connection closes only that connection. There is one exception: if something else has closed the
listening socket or shut it down, the listener logs an error and ends, and `Listener.lost` is True.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from tao.errors import ServerClosed
from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import Run
from tao.runtime.log import logger
from tao.runtime.rate_limits import TokenBucket
from tao.runtime.threads import Joinable
from tao.runtime.wakeup import Wakeup
from tao.server.listening.binding import Bound
from tao.transport.addresses import address_text, normalized
from tao.transport.error_text import explain
from tao.transport.tls_credentials import Credentials

__all__ = ["Listener"]

# The pause after a failed accept, in seconds; it doubles after each, up to the maximum.
_BACKOFF_LEAST, _BACKOFF_MOST = 0.005, 1.0
# Errors of accept that concern one connection that is already closed, not the listener.
_PASSING = frozenset((errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EAGAIN))
# Errors that mean that the listening socket is gone.
_GONE = frozenset((errno.EBADF, errno.ENOTSOCK, errno.EINVAL))
# How often to check the listening socket while no connection arrives, in seconds.
_LOOK = 30.0
# How long to wait for another process to take a connection, in seconds, and how often.
_WAIT, _WAITS = 0.001, 5
# Errors that the next connection would meet too: a lack of descriptors or memory. (If no thread can
# be started, that is a RuntimeError.)
_SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN))


class Listener:
    """A listening socket, and what has to be done to accept from it.

    Any thread may call the methods without another note.

    Args:
        bound: as `listen` returns it; the listener owns it from now on.
        admit: called with each accepted socket, the peer's address, and a list to which it may add
            what is to be done next, where it may take long. An exception costs that connection, but
            `ServerClosed` ends the accepting.
        failed: called for each failure, to count it.
        credentials: the TLS context of the connections accepted here, which may be replaced.
        pace: has a token for each connection that may be accepted; connections without one wait in
            the listen backlog.
        delayed: called when connections have to wait.
        on_lost: called if accepting has ended without `stop`.
        gives_way: tells whether another process should take the next connection.
    """

    def __init__(
        self,
        bound: Bound,
        admit: Callable[[socket.socket, Any, list[Run]], object],
        failed: Callable[[], None],
        *,
        credentials: Credentials | None = None,
        pace: TokenBucket | None = None,
        delayed: Callable[[], object] = bool,
        on_lost: Callable[[], object] = bool,
        gives_way: Callable[[], bool] | None = None,
    ) -> None:
        self._bound = bound
        self._sock = sock = bound.sock
        self._admit = admit
        self._failed = failed
        self.credentials: Credentials = credentials or Credentials(None)
        self._pace = pace
        self._delayed = delayed
        self._on_lost = on_lost
        self._gives_way = gives_way
        self.address: Any = normalized(sock.getsockname())
        # Whether all connections have this local address; False for a wildcard address.
        self._concrete: bool = bound.given is None and self.address[:1] not in (
            ("0.0.0.0",),
            ("::",),
        )
        # Set by `stop` and when the socket is gone; never reset.
        self._stopping: bool = False
        #: Set when accepting has ended and the socket is closed.
        self.closed = Wakeup()
        self._socket_gone: bool = False
        #: Whether `give_up` was called: the listener ends, the server continues.
        self.given_up: bool = False
        # Owned by the thread that accepts, one at a time.
        self._backoff: float = _BACKOFF_LEAST
        self._waited: bool = False  # for a token of the pace, which is there by now
        self._gave_way: int = 0  # how often in succession
        self._look_interval: float = _LOOK

    def start(self) -> None:
        """Begin to accept.

        Raises:
            RuntimeError: no thread can be started. The socket is closed.
            OSError: the socket cannot be waited for. It is closed.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Stop accepting. See `closed` and `join`."""
        raise NotImplementedError

    @property
    def _led(self) -> bool:
        """Whether a thread accepts, or is about to."""
        raise NotImplementedError

    @property
    def _begun(self) -> bool:
        """Whether it has threads of its own."""
        return False

    @property
    def accepting(self) -> bool:
        """Whether connections are accepted."""
        return not self._stopping and self._led

    @property
    def lost(self) -> bool:
        """Whether accepting has ended without `stop`."""
        return self._socket_gone or not (self._stopping or self._led)

    @property
    def ended(self) -> bool:
        """Whether it was given up, and all its threads have ended."""
        return self.given_up and self.closed.is_set() and not self._begun

    def give_up(self) -> None:
        """Stop accepting while the server continues with its other listeners."""
        self.given_up = True
        self.stop()

    def abandon(self) -> None:
        """In a forked child: close this process's copies of the parent's sockets."""
        self._stopping = True
        for sock in (self._sock, self._bound.given):
            if sock is not None:
                sock.close()

    def discard(self) -> None:
        """End the listener, whether or not it has begun to accept."""
        self.stop()

    def join(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """Wait, after `stop`, for its own threads; return those that did not end in time.

        Args:
            stuck: runs that are not joined.
        """
        self.closed.wait(deadline.remaining())
        return []

    def local_address(self, sock: socket.socket) -> Any:
        """Return the local address of a connection accepted here."""
        return self.address if self._concrete else normalized(sock.getsockname())

    # -- accepting, by one thread at a time

    def _step(self, found: list[Run]) -> float | None:
        """Accept a connection, unless it has to wait; append what it needs next to ``found``.

        Returns:
            for how many seconds to accept no other; None: no connection is there.
        """
        try:
            seconds = self._hold_back()
            if seconds:
                return seconds
            accepted = self._accept_one(found)
            self._backoff = _BACKOFF_LEAST
            return 0 if accepted else None
        except ServerClosed:
            return _BACKOFF_MOST  # until `stop`, which is about to be called
        except BaseException as error:
            return self._back_off(error)

    def _hold_back(self) -> float:
        """Return for how many seconds the next connection has to wait."""
        if self._pace is not None and not self._waited:
            seconds = self._pace.wait_for()
            if seconds:
                self._waited = True
                self._delayed()
                return seconds
        if self._gives_way is not None and self._gave_way < _WAITS and self._gives_way():
            self._gave_way += 1
            return _WAIT
        self._waited, self._gave_way = False, 0
        return 0

    def _accept_one(self, found: list[Run]) -> bool:
        """Accept a connection; return False if there is none."""
        try:
            sock, address = self._sock.accept()
        except OSError as error:
            if error.errno in _GONE:
                self._lose(error)
            elif error.errno not in _PASSING:
                raise
            return error.errno != errno.EAGAIN  # it is closed already, but not the next
        try:
            if self._pace is not None:
                self._pace.lend(1)
            self._prepare()
            self._admit(sock, normalized(address), found)
        except BaseException as error:
            while found:
                found.pop().fail(error)
            sock.close()
            if isinstance(error, ServerClosed) or _is_shortage(error):
                raise
            self._tell(error)
        return True

    def _prepare(self) -> None:
        """Provide what an accepted connection needs.

        Raises:
            RuntimeError: no thread can be started.
        """

    def _look(self) -> None:
        """Check that the socket still listens, because a poller may not report its close."""
        try:
            listens = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            self._lose(error)
        else:
            if not listens:
                self._lose(OSError(errno.EINVAL, os.strerror(errno.EINVAL)))

    def _back_off(self, error: BaseException) -> float:
        """Return the pause after an error that the next connection would meet too."""
        wait, self._backoff = self._backoff, min(2 * self._backoff, _BACKOFF_MOST)
        self._failed()
        text = "accepting at {} failed, retrying in {} s: {}"
        logger.warning(text, address_text(self.address), wait, explain(error))
        return wait

    def _tell(self, error: BaseException) -> None:
        """Log why one connection could not be set up."""
        text = "a connection accepted at {} could not be set up: {}"
        if isinstance(error, OSError):  # the peer has already closed
            logger.debug(text, address_text(self.address), explain(error))
            return
        self._failed()
        where, why = address_text(self.address), explain(error)
        logger.opt(exception=error).error(text, where, why)

    def _lose(self, error: OSError) -> None:
        """End, because something else has closed the listening socket or shut it down."""
        if error.errno != errno.EINVAL:
            self._sock.detach()  # its descriptor may already belong to something else
        self._socket_gone = self._stopping = True
        try:
            where, why = address_text(self.address), explain(error)
            logger.error("no longer listening at {}: the socket is gone ({})", where, why)
        finally:
            self._on_lost()

    def _free(self) -> None:
        """Close the socket; the last step."""
        try:
            self._bound.close()
        except OSError as error:
            logger.warning("cannot remove {}: {}", address_text(self.address), explain(error))
        finally:
            self.closed.set()


def _is_shortage(error: BaseException) -> bool:
    """Return whether the next connection would meet this error too."""
    if isinstance(error, OSError):
        return error.errno in _SHORT
    no_thread = isinstance(error, RuntimeError) and "new thread" in explain(error)
    return no_thread or isinstance(error, MemoryError)
