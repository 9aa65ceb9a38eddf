"""Listening: from an address to accepted sockets, however accepting may fail.

Whoever accepts a connection serves it, see ``turns.py``. Accepting never ends because of an error:
out of descriptors, memory or threads, a listener says so, waits a little, longer each time, and
goes on.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any

from tao.addresses import Address, Target, address_text, parse, resolve
from tao.credentials import Credentials
from tao.errors import ServerClosed
from tao.limits import TokenBucket
from tao.log import logger
from tao.threads import Deadline, Joinable
from tao.transport import explain
from tao.turns import Run, Turns

__all__ = ["Listener", "listen", "unlisten"]

# After a failed accept, wait for so long, doubling up to the most, in seconds.
_BACKOFF_LEAST, _BACKOFF_MOST = 0.005, 1.0
# Errors of accept that concern one connection that came and went, not the listener.
_PASSING = (errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EAGAIN)
# Errors of binding that say that this machine has no such address, though it may have another.
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class Listener:
    """A listening socket and the threads that accept from it.

    Args:
        sock: as `listen` returns it; it belongs to the listener from now on.
        admit: given each accepted socket and its peer's address; returns what is to be done on the
            thread that accepted it, None if that is nothing. What it raises counts as a failure to
            accept, but `ServerClosed` ends the accepting.
        failed: called for each failure, to count it.
        credentials: what who connects here meets; for `admit` to look up, and others to change.
        pace: has a token for each that may be accepted; who waits for one waits in the kernel.
        delayed: called when someone has to.
        path: a file that goes when the listener does: of a Unix socket, if it was made here.
        own: whether the socket was made here, so that it is an ordinary one.
        cpus: which the threads are pinned to, or None.
    """

    def __init__(
        self,
        sock: socket.socket,
        admit: Callable[[socket.socket, Any], Run | None],
        failed: Callable[[], None],
        *,
        credentials: Credentials | None = None,
        pace: TokenBucket | None = None,
        delayed: Callable[[], object] = bool,
        path: str | None = None,
        own: bool = False,
        cpus: Set[int] | None = None,
    ) -> None:
        self._sock = sock
        self._admit = admit
        self._failed = failed
        self.credentials: Credentials = credentials or Credentials(None)
        self._pace = pace
        self._delayed = delayed
        self.address: Any = sock.getsockname()
        self._path = path
        # Whether each connection has this address, and not one of its own.
        self._concrete: bool = own and self.address[:1] not in (("0.0.0.0",), ("::",))
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
        return self.address if self._concrete else sock.getsockname()

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
                self.address,
                self._backoff,
                explain(error),
            )
            self._stopping.wait(self._backoff)
            self._backoff = min(2 * self._backoff, _BACKOFF_MOST)
        return None

    def _free(self) -> None:
        try:
            unlisten(self._sock, self._path)
        except OSError as error:
            logger.warning("{} cannot be removed: {}", self._path, explain(error))
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
        return self._admit(sock, address)


def listen(address: Address | socket.socket, backlog: int) -> socket.socket:
    """Return a listening, non-blocking socket.

    Of several addresses that a name has, an IPv4 address is taken if there is one, as Go does, else
    the first that this machine has.

    Args:
        address: in any form of ``addresses.py``, or a socket that listens already.
        backlog: how many connections may wait in the kernel.

    Raises:
        OSError: the address cannot be had; the text names it.
        TypeError, ValueError: it is no address.
    """
    if isinstance(address, socket.socket):
        address.setblocking(False)
        return address
    parsed = parse(address, listening=True)
    *others, last = _targets(parsed)
    for target in others:
        try:
            return _bind(target, parsed, backlog)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
    return _bind(last, parsed, backlog)


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


def unlisten(sock: socket.socket, path: str | None) -> None:
    """Close a listening socket, and remove the file of a Unix socket if that was made with it."""
    sock.close()
    if path is not None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _bind(target: Target, address: Any, backlog: int) -> socket.socket:
    """Return a socket that listens at a target of an address."""
    sock = None
    try:
        sock = socket.socket(target.family, socket.SOCK_STREAM)
        if target.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if target.family == socket.AF_INET6:
            # Only a server that was given no host takes IPv4 on it as well.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(address[0])))
        sock.bind(target.address)
        sock.listen(backlog)
    except (OSError, OverflowError) as error:
        if sock is not None:
            sock.close()
        raise _refused(address, error) from None
    sock.setblocking(False)
    return sock


def _refused(address: Any, error: BaseException) -> OSError:
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    return OSError(number, f"cannot listen at {address_text(address)}: {explain(error)}")


def _port_of(address: Any) -> Any:
    return address[1] if isinstance(address, tuple) else address
