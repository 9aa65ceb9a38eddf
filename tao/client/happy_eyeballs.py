"""Reaching one address, or any of those that a name has: RFC 8305, "Happy Eyeballs Version 2".

The families take turns. An attempt is begun a quarter of a second after the one before, or as soon
as that has failed; the first that is connected wins, and the others are given up. What won goes
first the next time; what failed or was outrun goes last, and so does what was connected and then of
no use. So an address that drops what is sent to it costs time once.

Other than the RFC's, the look-up is one for both families: ``getaddrinfo`` offers no more. It runs
on a helper thread, see ``runtime/helper_threads.py``, which is shared by all who ask for the same
name meanwhile.
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

from tao.connection.options import ClientSettings
from tao.runtime.forks import renew_after_fork
from tao.runtime.helper_threads import Bell, HelperTask, HelperThreads
from tao.transport.addresses import Target, address_text, resolve, resolve_literal
from tao.transport.error_text import explain

__all__ = ["Memory", "Race", "set_options"]

# Seconds from the beginning of one attempt to that of the next (RFC 8305, 5).
_ATTEMPT_DELAY = 0.25
# A Unix socket whose server is behind with accepting is tried again after so many seconds.
_UNIX_RETRY = 0.05
# How many look-ups run at once in the process, hanging ones included.
_MOST_LOOKUPS = 16
# On Linux: let the kernel choose the near port when it knows the far end, so that there are enough.
_BIND_ADDRESS_NO_PORT = 24 if hasattr(socket, "SO_BINDTODEVICE") else None


class _Lookup(HelperTask[tuple[list[Target], list[Target]]]):
    """The resolving of an address and of where to come from, which several may wait for."""

    def __init__(self, work: Callable[[], tuple[list[Target], list[Target]]]) -> None:
        super().__init__(work)
        self._maker = threading.get_ident()
        self.submitted: bool = False

    def may_be_joined(self, patience: float) -> bool:
        """Tell whether to wait for it: not if it has hung for so long.

        Nor if this thread is in the midst of beginning it, and was interrupted to ask for the same.
        """
        begun = self.submitted or self._maker != threading.get_ident()
        return begun and not self.done and monotonic() - self.since < patience


_resolvers = HelperThreads("tao-resolver", _MOST_LOOKUPS)
# The look-ups that run, for others to join, by what is looked up.
_lookups: dict[Any, _Lookup] = {}


def _forked(lookups: object, reason: str) -> None:
    """In a child process no thread is left that looks anything up."""
    global _resolvers
    _resolvers = HelperThreads("tao-resolver", _MOST_LOOKUPS)
    _lookups.clear()


renew_after_fork(HelperThreads, _forked)


class Memory:
    """What became of the addresses that one name stands for. Owned by the dialling thread."""

    def __init__(self) -> None:
        self._failures = itertools.count(1)
        # -1: it was the last to win; above zero: it failed, a higher number later.
        self._ranks: dict[Target, int] = {}

    def order(self, targets: Iterable[Target]) -> list[Target]:
        """Return addresses in the order in which to try them; forget what is not among them."""
        by_family: dict[int, deque[Target]] = {}
        for target in targets:
            by_family.setdefault(target.family, deque()).append(target)
        ordered = []
        while queues := [queue for queue in by_family.values() if queue]:
            ordered += [queue.popleft() for queue in queues]
        self._ranks = {each: self._ranks.get(each, 0) for each in ordered}
        return sorted(ordered, key=self._ranks.__getitem__)

    def worked(self, target: Target) -> None:
        """Try this first the next time."""
        self._ranks[target] = -1

    def failed(self, target: Target) -> None:
        """Try this last the next time."""
        self._ranks[target] = next(self._failures)


class Race:
    """One search for a connection to one address. Owned by the dialling thread.

    Whoever runs it polls its sockets, and calls `step` when one is ready, the bell rings, or
    `due` has come, until a socket is returned or it is `over`; and `end` in any case.

    Args:
        address: parsed.
        memory: of the address.
        options: checked.
        bell: rung when a look-up is done.
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
        self._targets: deque[Target] = deque()  # to be tried
        self._sources: list[Target] = []  # where to come from
        self._running: dict[int, tuple[socket.socket, Target]] = {}  # attempts, by descriptor
        self._next: float = 0.0  # when to begin the next attempt, monotonic
        self._failures: list[tuple[Target | None, str]] = []
        #: Which address the socket that was returned is connected to.
        self.reached: Target | None = None
        #: The last error that a reason tells of.
        self.cause: BaseException | None = None
        self._resolve()

    # -- for who runs it

    @property
    def over(self) -> bool:
        """Whether nothing is left to try."""
        return not (self._lookup or self._targets or self._running)

    @property
    def due(self) -> float:
        """When to call `step` at the latest, monotonic."""
        return min(self._deadline, self._next) if self._targets else self._deadline

    @property
    def polled(self) -> Iterable[int]:
        """The descriptors to wait for, until they are writable."""
        return self._running

    @property
    def reason(self) -> str:
        """Why nothing was reached."""
        reasons = dict.fromkeys(why for _, why in self._failures)
        if len(reasons) == 1:
            return next(iter(reasons))
        return "; ".join(
            f"{address_text(target.address)}: {why}" if target else why
            for target, why in self._failures
        )

    def step(self, now: float, ready: set[int]) -> socket.socket | None:
        """Go on as far as possible; return a socket if one is connected.

        Args:
            now: the time, monotonic.
            ready: descriptors at which something has happened.
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
        """Give up what is under way; what was reached stays."""
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
        """Find out what to try, or have it found out."""
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
        """Begin an attempt; return the socket if it is connected at once."""
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
        """Have a socket come from the address that the options name."""
        if self._options.source_address is None or sock.family == socket.AF_UNIX:
            return
        source = next((each for each in self._sources if each.family == sock.family), None)
        if source is None:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        if source.address[1]:
            # Attempts run side by side, and the connection before may linger in the kernel.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif _BIND_ADDRESS_NO_PORT is not None:
            try:
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            except OSError:
                pass  # an old kernel: it chooses the port now
        try:
            sock.bind(source.address)
        except OSError as error:
            why = f"cannot come from {address_text(source.address)}: {explain(error)}"
            raise OSError(error.errno, why) from error

    def _is_connected(self, sock: socket.socket, target: Target, number: int) -> bool:
        """Tell whether an attempt that has ended was a success; if not, its socket is closed."""
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
        # A traceback would keep the frames that are calling this, and all that is in them.
        self.cause = error.with_traceback(None)
        self._failures.append((target, _told(target, error)))

    def _give_up(self) -> None:
        """It has taken too long."""
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
    """Set the options that the application wants of its sockets.

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
    """Return what is wrong with a socket that was connected: an error's number, or 0."""
    if sock.family == socket.AF_UNIX:
        return 0
    try:
        met_itself = sock.getsockname() == sock.getpeername()
    except OSError as error:  # it may be reset already
        return error.errno or errno.ECONNRESET
    # A free port of this machine, chosen as the near end too: TCP then meets itself.
    return errno.ECONNREFUSED if met_itself else 0


def _told(target: Target | None, error: BaseException) -> str:
    """Say why an attempt has failed."""
    if not isinstance(error, OSError) or error.errno is None:
        return explain(error)
    if isinstance(error, socket.gaierror):
        return explain(error)
    # What was raised above says more than the number.
    why = explain(error) if error.strerror == os.strerror(error.errno) else str(error.strerror)
    if error.errno == errno.EINVAL and target and str(target.address[0]).startswith("fe80:"):
        return f"{why} (a link-local address needs its scope, as in fe80::1%eth0)"
    return why


def _literal_sources(source: tuple[Any, ...]) -> list[Target] | None:
    """Return where to come from, in each family; None: a name would have to be looked up."""
    host, port, *_ = source
    if host:
        return resolve_literal(source)
    return [
        Target(socket.AF_INET, ("0.0.0.0", port)),
        Target(socket.AF_INET6, ("::", port)),
    ]


def _look_up(address: Any, source: Any, patience: float) -> _Lookup:
    """Have an address resolved, and where to come from; join who has asked for the same.

    Args:
        patience: how many seconds a look-up may have been under way to be joined. One that hangs
            must not keep those from an answer who ask when the name server is well again.
    """

    def work() -> tuple[list[Target], list[Target]]:
        try:
            sources = [] if source is None else _literal_sources(source) or resolve(source)
            return resolve(address), sources
        finally:
            _lookups.pop(key, None)  # it may be another's by now, which then runs alone

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
    if lookup.done:  # there is no thread for it
        _lookups.pop(key, None)
    return lookup
