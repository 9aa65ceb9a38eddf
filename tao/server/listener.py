"""Listening: from an address to accepted sockets, however accepting may fail.

The thread that accepts a connection serves it, see ``runtime/leader_followers.py``. Accepting never
ends because of an error: out of descriptors, memory or threads, a listener logs that, waits, longer
each time, and goes on, even if the logging raises. An error of one connection costs that connection
only. There is one exception: if something else has closed the listening socket, or shut it down,
the listener logs an error and ends, and `Listener.lost` is True.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any, NamedTuple

from tao.errors import ServerClosed
from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import LeaderFollowers, Run
from tao.runtime.log import logger
from tao.runtime.rate_limits import TokenBucket
from tao.runtime.threads import Joinable
from tao.runtime.wakeup import Wakeup
from tao.transport.addresses import Address, Target, address_text, normalized, parse, resolve
from tao.transport.error_text import explain
from tao.transport.tls_credentials import Credentials
from tao.transport.unix_sockets import SocketFile, bind_unix

__all__ = ["Bound", "Listener", "listen"]

# After a failed accept, wait for so long, doubling up to the most, in seconds.
_BACKOFF_LEAST, _BACKOFF_MOST = 0.005, 1.0
# Errors of accept that concern one connection that has gone again, not the listener.
_PASSING = frozenset((errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EAGAIN))
# Errors that mean that the listening socket is gone.
_GONE = frozenset((errno.EBADF, errno.ENOTSOCK, errno.EINVAL))
# How often to check the listening socket while no connection comes, in seconds.
_LOOK = 30.0
# Errors that the next connection would meet too: out of descriptors or memory. (If no thread can be
# started, that is a RuntimeError.)
_SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN))
# Errors of binding that mean that this machine lacks this address; it may have another of the name.
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Listener:
    """A listening socket and the threads that accept from it.

    Args:
        bound: as `listen` returns it; the listener owns it from now on.
        admit: called with each accepted socket, the peer's address, and a list to which it may add
            what the accepting thread does next. An exception costs that connection, but
            `ServerClosed` ends the accepting.
        failed: called for each failure, to count it.
        credentials: the TLS context of the connections accepted here, which may be replaced.
        pace: has a token for each connection that may be accepted; connections without one wait in
            the listen backlog.
        delayed: called when connections have to wait.
        on_lost: called if accepting has ended without `stop`.
        cpus: the CPUs that the threads are pinned to, or None.
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
        cpus: Set[int] | None = None,
    ) -> None:
        self._bound = bound
        self._sock = sock = bound.sock
        self._admit = admit
        self._failed = failed
        self.credentials: Credentials = credentials or Credentials(None)
        self._pace = pace
        self._delayed = delayed
        self._on_lost = on_lost
        self.address: Any = normalized(sock.getsockname())
        # Whether each connection has this address, and not one of its own.
        self._concrete: bool = bound.given is None and self.address[:1] not in (
            ("0.0.0.0",),
            ("::",),
        )
        # Wakes the accepting thread on every platform, without touching a socket that others share.
        self._wake, self._woken = socket.socketpair()
        # Set for good, by `stop` and when the socket is gone.
        self._stopping: bool = False
        #: Set when accepting has ended and the socket is closed.
        self.closed = Wakeup()
        self._socket_gone: bool = False
        #: Whether it was told to end while the server goes on.
        self.given_up: bool = False
        self._turns = LeaderFollowers(
            self._accept_next, f"tao-acceptor-{_port_of(self.address)}", cpus
        )
        # Owned by the accepting thread.
        self._poll, self._poll_wake = select.poll(), select.poll()
        self._poll.register(sock, select.POLLIN)
        for poll in (self._poll, self._poll_wake):
            poll.register(self._woken, select.POLLIN)
        self._backoff: float = _BACKOFF_LEAST

    def start(self) -> None:
        """Begin to accept.

        Raises:
            RuntimeError: no thread can be started; the socket is closed then.
        """
        try:
            self._turns.start()
        except BaseException:
            self._stopping = True
            self._free()
            raise

    @property
    def accepting(self) -> bool:
        """Whether a thread accepts connections."""
        return not self._stopping and self._turns.led

    @property
    def lost(self) -> bool:
        """Whether accepting has ended without `stop`."""
        return self._socket_gone or not (self._stopping or self._turns.led)

    def stop(self) -> None:
        """Accept no more. See `closed` and `join`."""
        # In this order: once it is told to stop, the accepting thread may close this socket.
        try:
            self._wake.send(b"x")
        except OSError:
            pass  # accepting has ended already
        self._stopping = True

    @property
    def ended(self) -> bool:
        """Whether it was given up, and none of its threads is left."""
        return self.given_up and self.closed.is_set() and not self._turns.begun

    def give_up(self) -> None:
        """Accept no more, while the server goes on."""
        self.given_up = True
        self.stop()

    def abandon(self) -> None:
        """Close this process's copies of what is the parent's, in the child of a fork."""
        self._stopping = True
        self._turns.abandon()
        for sock in (self._sock, self._bound.given, self._wake, self._woken):
            if sock is not None:
                sock.close()

    def discard(self) -> None:
        """End it, whether it has begun to accept or not."""
        self.stop()
        if not (self._turns.begun or self.closed.is_set()):
            self._free()

    def join(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        """Wait, after `stop`, for the threads; return those that did not end in time.

        Args:
            stuck: runs that are not waited for.
        """
        self.closed.wait(deadline.remaining())
        return self._turns.join(deadline, stuck)

    def local_address(self, sock: socket.socket) -> Any:
        """Return this side's address of a connection accepted here."""
        return self.address if self._concrete else normalized(sock.getsockname())

    # -- accepting, by the leader; what is raised here ends nothing, as LeaderFollowers calls again

    def _accept_next(self, found: list[Run]) -> bool:
        """Accept until something is found to do; False: accept no more."""
        while not (found or self._stopping):
            try:
                if self._poll.poll(_LOOK * 1000):
                    self._accept_one(found)
                else:
                    self._look()
                self._backoff = _BACKOFF_LEAST
            except ServerClosed:
                self._pause(_BACKOFF_MOST)  # until `stop` is called, which is about to be
            except BaseException as error:
                self._back_off(error)
        if not found:
            self._free()
        return bool(found)

    def _accept_one(self, found: list[Run]) -> None:
        """Accept a connection, and append what this thread does for it."""
        if self._pace is not None and not self._keep(self._pace):
            return
        try:
            sock, address = self._sock.accept()
        except OSError as error:
            if error.errno in _GONE:
                self._lose(error)
            elif error.errno not in _PASSING:
                raise
            return  # gone again, or this thread was woken to stop
        try:
            if self._pace is not None:
                self._pace.lend(1)
            self._turns.provide()
            self._admit(sock, normalized(address), found)
        except BaseException as error:
            while found:
                found.pop().fail(error)
            sock.close()
            if isinstance(error, ServerClosed) or _is_shortage(error):
                raise
            self._tell(error)

    def _look(self) -> None:
        """Check that the listening socket still exists, as poll() may not notice when it goes."""
        try:
            listens = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            self._lose(error)
        else:
            if not listens:
                self._lose(OSError(errno.EINVAL, os.strerror(errno.EINVAL)))

    def _keep(self, pace: TokenBucket) -> bool:
        """Wait for the rate limit; return False if the listener is stopped meanwhile."""
        seconds = pace.wait_for()
        if seconds and not self._stopping:
            self._delayed()
            self._pause(seconds)
        return not self._stopping

    def _pause(self, seconds: float) -> None:
        """Wait, or until the listener is stopped."""
        self._poll_wake.poll(seconds * 1000)

    def _back_off(self, error: BaseException) -> None:
        """Wait after an error that the next connection would meet too."""
        wait, self._backoff = self._backoff, min(2 * self._backoff, _BACKOFF_MOST)
        try:
            self._failed()
            text = "accepting at {} failed, again in {} s: {}"
            logger.warning(text, address_text(self.address), wait, explain(error))
        finally:
            self._pause(wait)

    def _tell(self, error: BaseException) -> None:
        """Log why one connection could not be made."""
        text = "a connection accepted at {} could not be made: {}"
        if isinstance(error, OSError):  # the peer has gone again
            logger.debug(text, address_text(self.address), explain(error))
            return
        self._failed()
        where, why = address_text(self.address), explain(error)
        logger.opt(exception=error).error(text, where, why)

    def _lose(self, error: OSError) -> None:
        """End, as something else has closed the listening socket or shut it down."""
        if error.errno != errno.EINVAL:
            self._sock.detach()  # if its number is in use, then for something else
        self._socket_gone = self._stopping = True
        try:
            where, why = address_text(self.address), explain(error)
            logger.error("{} is not listened at any more: the socket is gone ({})", where, why)
        finally:
            self._on_lost()

    def _free(self) -> None:
        try:
            self._bound.close()
        except OSError as error:
            logger.warning("{} cannot be removed: {}", address_text(self.address), explain(error))
        finally:
            self._wake.close()
            self._woken.close()
            self.closed.set()


def _is_shortage(error: BaseException) -> bool:
    """Tell whether the next connection would meet this error too."""
    if isinstance(error, OSError):
        return error.errno in _SHORT
    no_thread = isinstance(error, RuntimeError) and "new thread" in explain(error)
    return no_thread or isinstance(error, MemoryError)


class Bound(NamedTuple):
    """A listening, non-blocking socket.

    Attributes:
        sock: the socket.
        file: what it has in the file system, or None.
        given: the socket that was handed in, of which `sock` is a duplicate, so that its former
            owner may close it; None: the socket was made here.
    """

    sock: socket.socket
    file: SocketFile | None = None
    given: socket.socket | None = None

    def close(self) -> None:
        """Listen no more.

        Raises:
            OSError: the file cannot be removed; the socket is closed.
        """
        try:
            if self.file is not None:
                self.file.remove()  # first, see transport/unix_sockets.py
        finally:
            self.sock.close()
            if self.given is not None:
                self.given.close()

    def discard(self) -> None:
        """Close it before use; a socket that was handed in stays the caller's."""
        if self.given is None:
            self.close()
        else:
            self.sock.close()


def listen(address: Address | socket.socket, backlog: int) -> Bound:
    """Listen at an address, or at a socket that is bound to one.

    If a name has several addresses, this takes an IPv4 address if there is one, as Go does, else
    the first that this machine has.

    Args:
        address: in any form of ``transport/addresses.py``, or a stream socket that is bound, and
            maybe listens already.
        backlog: how many connections may wait in the listen backlog.

    Raises:
        OSError: listening failed; the text names the address.
        TypeError, ValueError: it is no address, or a socket that cannot accept connections; the
            text says why.
    """
    if isinstance(address, socket.socket):
        bound = Bound(_listening(address, backlog).dup(), given=address)
    else:
        bound = _listening_at(parse(address, listening=True), backlog)
    bound.sock.setblocking(False)
    return bound


def _listening_at(address: tuple[Any, ...] | str, backlog: int) -> Bound:
    *others, last = _targets(address)
    for target in others:
        try:
            return _bind(target, address, backlog)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
    return _bind(last, address, backlog)


def _targets(address: tuple[Any, ...] | str) -> list[Target]:
    """Return the addresses to try, in order; one is enough."""
    if not address[0]:
        if socket.has_dualstack_ipv6():
            return [Target(socket.AF_INET6, ("::", address[1]))]
        return [Target(socket.AF_INET, ("0.0.0.0", address[1]))]
    try:
        targets = resolve(address)
    except OSError as error:
        raise _refused(address, error) from None
    return sorted(targets, key=lambda target: target.family != socket.AF_INET)


def _bind(target: Target, address: Any, backlog: int) -> Bound:
    """Listen at a target of an address."""
    sock, file = None, None
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        if target.family == socket.AF_UNIX:
            file = bind_unix(sock, target.address, backlog)
        else:
            _bind_tcp(sock, target, backlog, everywhere=not address[0])
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, (OSError, OverflowError)):
            raise _refused(address, error) from None
        raise
    return Bound(sock, file)


def _bind_tcp(sock: socket.socket, target: Target, backlog: int, everywhere: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if target.family == socket.AF_INET6:
        # Only a server that was given no host takes IPv4 on it as well.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not everywhere))
    sock.bind(target.address)
    sock.listen(backlog)


def _refused(address: Any, error: OSError | OverflowError) -> OSError:
    number = getattr(error, "errno", None) or errno.EINVAL
    why = error.strerror if isinstance(error, FileExistsError) else explain(error)
    return OSError(number, f"cannot listen at {address_text(address)}: {why}")


def _listening(sock: socket.socket, backlog: int) -> socket.socket:
    """Have a socket that was handed in listen, unless it does already.

    Raises:
        ValueError: it cannot accept connections; the text says why.
        OSError: it cannot listen.
    """
    if sock.fileno() < 0:
        raise ValueError("the socket is closed: hand in one that is bound to an address")
    if isinstance(sock, ssl.SSLSocket):
        raise ValueError("hand in the plain socket, and the SSLContext as tls")
    if sock.type != socket.SOCK_STREAM:
        kind = "UDP" if sock.type == socket.SOCK_DGRAM else "another kind"
        raise ValueError(
            f"the socket is of {kind} ({getattr(sock.type, 'name', sock.type)}): it cannot accept "
            "connections; hand in a stream socket"
        )
    if _getpeername(sock) is not None:
        raise ValueError(
            f"the socket is connected to {address_text(_getpeername(sock))}: it cannot accept "
            "connections; hand in one that is bound to an address"
        )
    if not _is_bound(sock):
        raise ValueError("the socket is not bound to an address: nobody could find it")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        try:
            sock.listen(backlog)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise ValueError("the socket was connected: it cannot accept connections") from None
            where = address_text(normalized(sock.getsockname()))
            raise OSError(error.errno, f"cannot listen at {where}: {explain(error)}") from None
    return sock


def _getpeername(sock: socket.socket) -> Any:
    try:
        return normalized(sock.getpeername())
    except OSError:
        return None


def _is_bound(sock: socket.socket) -> bool:
    address = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return bool(address[1])
    return bool(address)


def _port_of(address: Any) -> Any:
    return address[1] if isinstance(address, tuple) else address_text(address)
