"""Listening: from an address to accepted sockets, however accepting may fail.

Whoever accepts a connection serves it, see ``turns.py``. Accepting never ends because of an error:
out of descriptors, memory or threads, a listener says so, waits a little, longer each time, and
goes on.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any, NamedTuple

from tao.addresses import Address, Target, address_text, normalized, parse, resolve
from tao.credentials import Credentials
from tao.errors import ServerClosed
from tao.limits import TokenBucket
from tao.log import logger
from tao.threads import Deadline, Joinable
from tao.transport import explain
from tao.turns import Run, Turns
from tao.unix_sockets import SocketFile, bind_unix

__all__ = ["Bound", "Listener", "listen"]

# After a failed accept, wait for so long, doubling up to the most, in seconds.
_BACKOFF_LEAST, _BACKOFF_MOST = 0.005, 1.0
# Errors of accept that concern one connection that came and went, not the listener.
_PASSING = (errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EAGAIN)
# Errors of binding that say that this machine has no such address, though it may have another.
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Listener:
    """A listening socket and the threads that accept from it.

    Args:
        bound: as `listen` returns it; it belongs to the listener from now on.
        admit: given each accepted socket and its peer's address; returns what is to be done on the
            thread that accepted it, None if that is nothing. What it raises counts as a failure to
            accept, but `ServerClosed` ends the accepting.
        failed: called for each failure, to count it.
        credentials: what who connects here meets; for `admit` to look up, and others to change.
        pace: has a token for each that may be accepted; who waits for one waits in the kernel.
        delayed: called when someone has to.
        cpus: which the threads are pinned to, or None.
    """

    def __init__(
        self,
        bound: Bound,
        admit: Callable[[socket.socket, Any], Run | None],
        failed: Callable[[], None],
        *,
        credentials: Credentials | None = None,
        pace: TokenBucket | None = None,
        delayed: Callable[[], object] = bool,
        cpus: Set[int] | None = None,
    ) -> None:
        self._bound = bound
        self._sock = sock = bound.sock
        self._admit = admit
        self._failed = failed
        self.credentials: Credentials = credentials or Credentials(None)
        self._pace = pace
        self._delayed = delayed
        self.address: Any = normalized(sock.getsockname())
        # Whether each connection has this address, and not one of its own.
        self._concrete: bool = bound.own and self.address[:1] not in (("0.0.0.0",), ("::",))
        # Wakes who waits on every platform, and leaves alone a socket that others share.
        self._wake, self._woken = socket.socketpair()
        self._stopping = threading.Event()
        #: Set when nobody accepts any more, and the socket is free.
        self.closed = threading.Event()
        self._turns = Turns(self._accept_next, f"tao-acceptor-{_port_of(self.address)}", cpus)
        # Owned by who accepts.
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        self._backoff: float = _BACKOFF_LEAST

    def start(self) -> None:
        """Begin to accept.

        Raises:
            RuntimeError: no thread can be had; the socket is free then.
        """
        try:
            self._turns.start()
        except BaseException:
            self._free()
            raise

    def stop(self) -> None:
        """Accept no more. See `closed` and `join`."""
        # In this order: once it is told to stop, who accepts may free what is written to here.
        try:
            self._wake.send(b"x")
        except OSError:
            pass  # accepting has ended already
        self._stopping.set()

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

    def _accept_next(self) -> Run | None:
        """Accept until there is something to do; None: accept no more."""
        run = None
        try:
            while run is None and not self._stopping.is_set():
                run = self._try_to_accept()
        finally:
            if run is None:
                self._free()
        return run

    def _try_to_accept(self) -> Run | None:
        self._poll.poll()
        try:
            if self._pace is not None and not self._keep(self._pace):
                return None
            run = self._accept_one()
            self._backoff = _BACKOFF_LEAST
            return run
        except ServerClosed:
            self._stopping.wait()  # what `stop` needs is freed only after it
        except BaseException as error:
            self._failed()
            logger.warning(
                "accepting at {} failed, again in {} s: {}",
                address_text(self.address),
                self._backoff,
                explain(error),
            )
            self._stopping.wait(self._backoff)
            self._backoff = min(2 * self._backoff, _BACKOFF_MOST)
        return None

    def _free(self) -> None:
        try:
            self._bound.close()
        except OSError as error:
            logger.warning("{} cannot be removed: {}", address_text(self.address), explain(error))
        self._wake.close()
        self._woken.close()
        self.closed.set()

    def _keep(self, pace: TokenBucket) -> bool:
        """Wait until one more may be accepted; False: none may, as the listener is stopped."""
        seconds = pace.wait_for()
        if seconds and not self._stopping.is_set():
            self._delayed()
            self._stopping.wait(seconds)
        return not self._stopping.is_set()

    def _accept_one(self) -> Run | None:
        """Accept who waits longest, and return what is to be done for it on this thread."""
        try:
            sock, address = self._sock.accept()
        except BlockingIOError:
            return None  # gone again, or it was the bell that rang
        except OSError as error:
            if error.errno in _PASSING:
                return None
            raise
        if self._pace is not None:
            self._pace.lend(1)
        try:
            self._turns.provide()
        except RuntimeError:
            sock.close()
            raise
        return self._admit(sock, normalized(address))


class Bound(NamedTuple):
    """A listening, non-blocking socket.

    Attributes:
        sock: the socket.
        file: what it has in the file system, or None.
        own: whether the socket was made here; else it was handed in.
    """

    sock: socket.socket
    file: SocketFile | None = None
    own: bool = True

    def close(self) -> None:
        """Listen no more.

        Raises:
            OSError: the file cannot be removed; the socket is closed.
        """
        try:
            if self.file is not None:
                self.file.remove()  # first, see unix_sockets.py
        finally:
            self.sock.close()

    def discard(self) -> None:
        """Close what was made here after all; a socket that was handed in stays the caller's."""
        if self.own:
            self.close()


def listen(address: Address | socket.socket, backlog: int) -> Bound:
    """Listen at an address, or at a socket that is bound to one.

    Of several addresses that a name has, an IPv4 address is taken if there is one, as Go does, else
    the first that this machine has.

    Args:
        address: in any form of ``addresses.py``, or a stream socket that is bound, and maybe
            listens already.
        backlog: how many connections may wait in the kernel.

    Raises:
        OSError: the address cannot be had; the text names it.
        TypeError, ValueError: it is no address, or a socket that cannot accept connections; the
            text says why.
    """
    if isinstance(address, socket.socket):
        bound = Bound(_listening(address, backlog), own=False)
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
    """Return where to listen: one place, or several of which one will do."""
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
        kind = getattr(sock.type, "name", sock.type)
        raise ValueError(
            f"the socket is no stream socket but {kind}, as for UDP: it cannot accept connections"
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
