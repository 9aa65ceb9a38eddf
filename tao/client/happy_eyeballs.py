"""Connecting to an address, or to any address of a name: RFC 8305, "Happy Eyeballs Version 2".

Address families alternate. An attempt begins a quarter of a second after the previous one, or as
soon as that has failed. The first to connect wins, and the others are cancelled. Next time the
winner is tried first; addresses that failed, lost, or gave a useless connection are tried last. So
an address that drops packets costs time only once.

Unlike the RFC, one lookup serves both families, as ``getaddrinfo`` offers no more. It runs on a
helper thread, see ``runtime/helper_threads.py``; concurrent lookups of one name share it.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from tao.connection.options.definitions import ClientSettings
from tao.runtime.forks import renew_after_fork
from tao.runtime.helper_threads import Bell, HelperTask, HelperThreads
from tao.transport.addresses import Target, address_text, resolve, resolve_literal
from tao.transport.error_text import explain

__all__ = ["Memory", "Race", "failure_text", "set_options"]

# Seconds between the starts of two attempts (RFC 8305, 5).
_ATTEMPT_DELAY = 0.25
# Seconds until a Unix socket whose backlog was full is tried again.
_UNIX_RETRY = 0.05
# How many lookups run at once in the process, hanging ones included.
_MOST_LOOKUPS = 16
# On Linux: choose the local port only on connect, so that connections to different peers can share
# a port.
_BIND_ADDRESS_NO_PORT = 24 if hasattr(socket, "SO_BINDTODEVICE") else None


class _Lookup(HelperTask[tuple[list[Target], list[Target]]]):
    """The lookup of a remote and a source address; several threads may wait for it."""

    def __init__(self, work: Callable[[], tuple[list[Target], list[Target]]]) -> None:
        super().__init__(work)
        self._maker = threading.get_ident()
        self.submitted: bool = False

    def may_be_joined(self, patience: float) -> bool:
        """Return whether to wait for it: not if it has been hanging for ``patience`` seconds.

        Nor if this thread was interrupted while starting it, and now needs the same lookup.
        """
        begun = self.submitted or self._maker != threading.get_ident()
        return begun and not self.done and monotonic() - self.since < patience


_resolvers = HelperThreads("tao-resolver", _MOST_LOOKUPS)
# The running lookups, which others may join, by address and source.
_lookups: dict[Any, _Lookup] = {}


def _forked(lookups: object, reason: str) -> None:
    """Reset the lookups in a child process, where their threads do not exist."""
    global _resolvers
    _resolvers = HelperThreads("tao-resolver", _MOST_LOOKUPS)
    _lookups.clear()


renew_after_fork(HelperThreads, _forked)


class Memory:
    """The results of earlier attempts for the addresses of a name. Owned by the dialling thread."""

    def __init__(self) -> None:
        self._failures = itertools.count(1)
        # -1: it won last time; above zero: it failed, later failures have higher numbers.
        self._ranks: dict[Target, int] = {}

    def order(self, targets: Iterable[Target]) -> list[Target]:
        """Return addresses in the order in which to try them; forget all others."""
        by_family: dict[int, deque[Target]] = {}
        for target in targets:
            by_family.setdefault(target.family, deque()).append(target)
        ordered = []
        while queues := [queue for queue in by_family.values() if queue]:
            ordered += [queue.popleft() for queue in queues]
        self._ranks = {each: self._ranks.get(each, 0) for each in ordered}
        return sorted(ordered, key=self._ranks.__getitem__)

    def worked(self, target: Target) -> None:
        """Try this address first next time."""
        self._ranks[target] = -1

    def failed(self, target: Target) -> None:
        """Try this address last next time."""
        self._ranks[target] = next(self._failures)


class Race:
    """One attempt to connect to an address. Owned by the dialling thread.

    The thread polls the sockets of the race. It calls `step` when one is ready, the bell rings, or
    `due` has come, until a socket is returned or the race is `over`, and `end` in any case.

    Args:
        address: parsed.
        memory: of the address.
        options: validated.
        bell: rung when a lookup is done.
    """

    def __init__(
        self,
        address: tuple[Any, ...] | str,
        memory: Memory,
        options: ClientSettings,
        bell: Bell,
    ) -> None:
        self._address = address
        self._memory = memory
        self._options = options
        self._bell = bell
        self._deadline: float = monotonic() + options.connect_timeout
        self._lookup: _Lookup | None = None
        self._targets: deque[Target] = deque()  # addresses still to be tried
        self._sources: list[Target] = []  # source addresses to bind to
        self._running: dict[int, tuple[socket.socket, Target]] = {}  # attempts, by descriptor
        self._next: float = 0.0  # when to begin the next attempt, monotonic
        self._failures: list[tuple[Target | None, str]] = []
        #: The address that the returned socket is connected to.
        self.reached: Target | None = None
        #: The last error in `reason`.
        self.cause: BaseException | None = None
        self._resolve()

    # -- called by the dialling thread

    @property
    def over(self) -> bool:
        """Whether nothing is left to try."""
        return not (self._lookup or self._targets or self._running)

    @property
    def due(self) -> float:
        """The latest time to call `step`, monotonic."""
        return min(self._deadline, self._next) if self._targets else self._deadline

    @property
    def polled(self) -> Iterable[int]:
        """The descriptors to poll until they are writable."""
        return self._running

    @property
    def reason(self) -> str:
        """Why no address could be connected to."""
        reasons = dict.fromkeys(why for _, why in self._failures)
        if len(reasons) == 1:
            return next(iter(reasons))
        return "; ".join(
            f"{address_text(target.address)}: {why}" if target else why
            for target, why in self._failures
        )

    def step(self, now: float, ready: set[int]) -> socket.socket | None:
        """Make progress without blocking; return a socket once one is connected.

        Args:
            now: the time, monotonic.
            ready: the descriptors that `Bell.wait` has returned.
        """
        if self._lookup is not None and self._lookup.done:
            self._resolved(self._lookup)
        for descriptor in ready & self._running.keys():
            sock, target = self._running.pop(descriptor)
            if self._is_connected(
                sock, target, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            ):
                return self._won(sock, target)
            self._next = now
        if now >= self._deadline:
            self._give_up()
        while self._targets and now >= self._next:
            self._next = now + _ATTEMPT_DELAY
            target = self._targets.popleft()
            winner = self._begin(target, now)
            if winner is not None:
                return self._won(winner, target)
        return None

    def end(self) -> None:
        """Cancel the remaining attempts; a returned socket stays open."""
        if self._lookup is not None:
            self._lookup.leave(self._bell)
            self._lookup = None
        self._targets.clear()
        while self._running:
            _, (sock, target) = self._running.popitem()
            sock.close()
            if self.reached is not None:
                self._memory.failed(target)

    # -- names

    def _resolve(self) -> None:
        """Determine the addresses to try, or start a lookup."""
        address, source = self._address, self._options.source_address
        try:
            targets = resolve_literal(address)
            sources = [] if source is None else _literal_sources(source)
        except OSError as error:
            self._fail(None, error)
            return
        if targets is None or sources is None:
            self._lookup = _look_up(address, source, self._options.connect_timeout)
            self._lookup.join(self._bell)
        else:
            self._take(targets, sources)

    def _resolved(self, lookup: _Lookup) -> None:
        self._lookup = None
        found = lookup.take(self._bell)
        if found is None:
            self._fail(None, lookup.error or OSError(errno.EIO, os.strerror(errno.EIO)))
        else:
            self._take(*found)

    def _take(self, targets: list[Target], sources: list[Target]) -> None:
        self._targets.extend(self._memory.order(targets))
        self._sources = sources

    # -- attempts

    def _begin(self, target: Target, now: float) -> socket.socket | None:
        """Begin an attempt; return the socket if it connects at once."""
        sock = None
        try:
            sock = socket.socket(target.family, socket.SOCK_STREAM)
            sock.setblocking(False)
            set_options(sock, self._options)
            self._bind(sock)
            return self._connect(sock, target, now)
        except (OSError, OverflowError) as error:
            self._failed(target, error)
            self._next = now
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        if sock is not None:
            sock.close()
        return None

    def _connect(self, sock: socket.socket, target: Target, now: float) -> socket.socket | None:
        number = sock.connect_ex(target.address)
        if number == errno.EINPROGRESS:
            self._running[sock.fileno()] = sock, target
        elif number == errno.EAGAIN and target.family == socket.AF_UNIX:
            sock.close()
            self._targets.appendleft(target)
            self._next = now + _UNIX_RETRY
        elif self._is_connected(sock, target, number):
            return sock
        else:
            self._next = now
        return None

    def _bind(self, sock: socket.socket) -> None:
        """Bind a socket to the option ``source_address``."""
        if self._options.source_address is None or sock.family == socket.AF_UNIX:
            return
        source = next((each for each in self._sources if each.family == sock.family), None)
        if source is None:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        if source.address[1]:
            # Attempts run in parallel, and the previous connection may linger in the kernel.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif _BIND_ADDRESS_NO_PORT is not None:
            try:
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            except OSError:
                pass  # an old kernel chooses the port in bind()
        try:
            sock.bind(source.address)
        except OSError as error:
            why = f"cannot come from {address_text(source.address)}: {explain(error)}"
            raise OSError(error.errno, why) from error

    def _is_connected(self, sock: socket.socket, target: Target, number: int) -> bool:
        """Return whether a finished attempt has succeeded; close its socket if not."""
        number = number or _late_error(sock)
        if number:
            sock.close()
            self._failed(target, OSError(number, os.strerror(number)))
        return not number

    def _won(self, sock: socket.socket, target: Target) -> socket.socket:
        self.reached = target
        self._memory.worked(target)
        return sock

    def _failed(self, target: Target, error: BaseException) -> None:
        self._memory.failed(target)
        self._fail(target, error)

    def _fail(self, target: Target | None, error: BaseException) -> None:
        # A traceback would keep the calling frames and all their variables alive.
        self.cause = error.with_traceback(None)
        self._failures.append((target, failure_text(target, error)))

    def _give_up(self) -> None:
        """Fail all attempts because the timeout has expired."""
        timeout = self._options.connect_timeout
        late = TimeoutError(f"no answer within {timeout} s")
        if self._lookup is not None:
            late = TimeoutError(f"the name was not resolved within {timeout} s")
            if not self._lookup.begun:
                late = TimeoutError(f"{late}, as {_MOST_LOOKUPS} look-ups of other names hang")
            self._fail(None, late)
        waiting = [target for _, target in self._running.values()]
        for target in waiting:
            self._failed(target, late)
        if self._targets and not waiting:
            self._fail(None, late)
        self.end()


def set_options(sock: socket.socket, options: ClientSettings) -> None:
    """Set the socket options that the application has given.

    Raises:
        OSError: one cannot be set; the text names it.
    """
    for option in options.socket_options:
        try:
            sock.setsockopt(*option)
        except (OSError, OverflowError) as error:
            number = error.errno if isinstance(error, OSError) else errno.EINVAL
            raise OSError(number, f"socket option {option}: {explain(error)}") from error


def _late_error(sock: socket.socket) -> int:
    """Return the errno of a fault in a connected socket, or 0."""
    if sock.family == socket.AF_UNIX:
        return 0
    try:
        met_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:  # it may be reset already
        return error.errno or errno.ECONNRESET
    # If the kernel chooses the destination as the local port too, TCP connects to itself.
    return errno.ECONNREFUSED if met_itself else 0


def failure_text(target: Target | None, error: BaseException) -> str:
    """Return why an attempt has failed."""
    if not isinstance(error, OSError) or error.errno is None:
        return explain(error)
    if isinstance(error, socket.gaierror):
        return explain(error)
    # Errors raised above have a more specific text than the errno.
    why = explain(error) if error.strerror == os.strerror(error.errno) else str(error.strerror)
    if error.errno == errno.EINVAL and target and str(target.address[0]).startswith("fe80:"):
        return f"{why} (a link-local address needs its scope, as in fe80::1%eth0)"
    return why


def _literal_sources(source: tuple[Any, ...]) -> list[Target] | None:
    """Return the source address of each family; None if a name must be looked up."""
    host, port, *_ = source
    if host:
        return resolve_literal(source)
    return [
        Target(socket.AF_INET, ("0.0.0.0", port)),
        Target(socket.AF_INET6, ("::", port)),
    ]


def _look_up(address: Any, source: Any, patience: float) -> _Lookup:
    """Start the lookup of an address and a source, or join a running one.

    Args:
        patience: how old a lookup may be to be joined, in seconds. One that hangs must not delay
            lookups made after the name server has recovered.
    """

    def work() -> tuple[list[Target], list[Target]]:
        try:
            sources = [] if source is None else _literal_sources(source) or resolve(source)
            return resolve(address), sources
        finally:
            _lookups.pop(key, None)  # may remove a newer lookup, which others then cannot join

    key = address, source
    lookup = _Lookup(work)
    try:
        known = _lookups.setdefault(key, lookup)
        if known is not lookup and known.may_be_joined(patience):
            return known
        _lookups[key] = lookup
        _resolvers.submit(lookup)
        lookup.submitted = True
    except BaseException:
        _lookups.pop(key, None)
        lookup.fail(OSError(errno.EINTR, os.strerror(errno.EINTR)))
        raise
    if lookup.done:  # no thread could be started
        _lookups.pop(key, None)
    return lookup
