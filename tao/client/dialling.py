"""Dialling: from what a client is told to connect to, to transports that are connected.

A client may be given several places. They are tried in order, beginning with the one that worked
last. The next is tried as well when one has failed or has not answered for a while; what connects
first is taken. A place is an address (see ``happy_eyeballs.py`` for how one is reached), a function
of the application's that returns a connected socket, or such a socket itself.

One thread does all this, in `Dialler.next`. It waits in one ``poll`` for sockets, for helper
threads and for `Dialler.close`, so nothing that hangs holds it up: neither a name server nor a
function of the application's.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from time import monotonic
from typing import Any, NamedTuple, Protocol

from tao.client.endpoints import Place, check_options, why_not_connected
from tao.client.happy_eyeballs import Race, set_options
from tao.connection.keepalive import set_kernel_clocks
from tao.connection.options import ClientSettings
from tao.errors import ConnectFailed, ConnectionClosed
from tao.runtime.helper_threads import Bell, HelperTask, HelperThreads
from tao.safe_text import safe_str
from tao.transport.addresses import Target, normalized
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport

__all__ = ["Dialler", "Reached", "Source"]

# The next place is tried as well after so many seconds: time for a lost SYN to be sent again, which
# is done after one, and to be answered.
_PLACE_DELAY = 2.0
# How many calls of an application's function may be under way for one client, if they hang.
_MOST_CALLS = 2


class Reached(NamedTuple):
    """A connection that was made."""

    transport: Transport
    remote_address: Any
    local_address: Any


class Source(ABC):
    """Where a client has its connections from.

    `next` and `over` are the thread's that connects, `close` may be called by any.
    """

    #: How many places there are, of which each should have its turn before it counts as a failure.
    size: int = 1
    #: Whether only one connection can be had, so that there is no coming back.
    once: bool = False
    #: What a client of it calls the address of its peer before there is a connection.
    address: Any = None

    @abstractmethod
    def next(self) -> Reached:
        """Return a new connection.

        Raises:
            ConnectFailed: none can be had; it may be tried again.
            ConnectionClosed: `close` was called.
        """

    def over(self, useful: bool) -> None:  # noqa: B027
        """Tell that the connection returned last is over, and whether it was of any use."""

    def close(self) -> None:  # noqa: B027
        """End `next` at once, for good. A signal handler may call it, too."""

    def forked(self) -> None:  # noqa: B027
        """In a child process: free what the parent's `next` uses, without a word to the peer."""


# -- reaching one place


class _Search(Protocol):
    """The search for a connection to one place, as `Race` is."""

    @property
    def over(self) -> bool: ...
    @property
    def due(self) -> float: ...
    @property
    def polled(self) -> Iterable[int]: ...
    @property
    def reason(self) -> str: ...
    @property
    def cause(self) -> BaseException | None: ...
    @property
    def reached(self) -> Target | None: ...  # which of a name's addresses
    def step(self, now: float, ready: set[int]) -> socket.socket | None: ...
    def end(self) -> None: ...


class _Given:
    """The search that ends at once: a socket that was given."""

    polled: Iterable[int] = ()
    due = 0.0
    over = False
    reached: Target | None = None
    cause: BaseException | None = None
    reason = "it was used already, and cannot be connected again"

    def __init__(self, place: Place) -> None:
        self._place = place

    def step(self, now: float, ready: set[int]) -> socket.socket | None:
        self.over = True
        return self._place.take_socket()

    def end(self) -> None:
        pass


class _Call:
    """The search that a function of the application's makes, on a helper thread."""

    polled: Iterable[int] = ()
    reached: Target | None = None

    def __init__(
        self,
        function: Callable[[], Any],
        helpers: HelperThreads,
        options: ClientSettings,
        bell: Bell,
    ) -> None:
        self._timeout: float = options.connect_timeout
        self._bell = bell
        self.due: float = monotonic() + self._timeout
        self.over: bool = False
        self.reason: str = ""
        self.cause: BaseException | None = None
        self._task: HelperTask[Any] = HelperTask(function, _discard)
        self._task.join(bell)
        helpers.submit(self._task)

    def step(self, now: float, ready: set[int]) -> socket.socket | None:
        task = self._task
        if task.done:
            self.over = True
            return self._checked(task.take(self._bell), task.error)
        if now >= self.due:
            self.over = True
            late = "no connection within" if task.begun else "earlier calls hang; none begun within"
            self.reason = f"{late} {self._timeout} s"
            self.cause = TimeoutError(self.reason)
        return None

    def _checked(self, made: Any, error: BaseException | None) -> socket.socket | None:
        if error is None and not (why := why_not_connected(made)):
            sock: socket.socket = made
            return sock
        if error is None:
            _discard(made)
            error = TypeError(f"what it returned is not a connected socket: {why}")
        self.cause = error
        self.reason = explain(error)
        if not isinstance(error, OSError):
            self.reason = f"{type(error).__name__}: {safe_str(error)}"
        return None

    def end(self) -> None:
        self._task.leave(self._bell)


def _discard(made: Any) -> None:
    """Close what came too late to be of use."""
    if isinstance(made, socket.socket):
        made.close()


# -- reaching any


class Dialler(Source):
    """A source of connections over sockets.

    Args:
        places: at least one.
        options: checked.

    Raises:
        ValueError: an option does not fit the places; the text names it.
    """

    def __init__(self, places: list[Place], options: ClientSettings) -> None:
        check_options(places, options)
        self._places = places
        self._options = options
        self.size = len(places)
        self.once = all(place.once for place in places)
        self.address = places[0].address
        self._helpers = HelperThreads("tao-dialler", _MOST_CALLS)
        # Owned by the dialling thread.
        self._first: int = 0  # which place to begin with
        # Where the last connection was made, and to which of the addresses there.
        self._last: tuple[Place, Target | None] | None = None
        self._searches: dict[Place, _Search] = {}  # that are under way
        # Written by the dialling thread before it reads _closed; `close` does it the other way
        # round. So at least one of the two sees the other.
        self._bell: Bell | None = None
        self._closed: bool = False

    @property
    def dialling(self) -> bool:
        """Whether `next` is under way."""
        return self._bell is not None

    def next(self) -> Reached:
        try:
            self._bell = Bell()
            place, sock = self._search(self._bell)
        except OSError as error:
            if isinstance(error, ConnectionClosed):
                raise
            raise ConnectFailed(f"cannot connect: {explain(error)}") from error
        finally:
            bell, self._bell = self._bell, None
            if bell is not None:
                bell.close()
            self._end_searches()  # once more, as an exception may interrupt that, too
        try:
            return self._made(place, sock)
        except BaseException as error:
            sock.close()
            if not isinstance(error, (OSError, ValueError)):
                raise
            self.over(useful=False)
            raise _failed({place: explain(error)}, error) from error  # it may be reset already

    def over(self, useful: bool) -> None:
        if self._last is None or useful:
            return
        place, target = self._last
        if target is not None:
            place.memory.failed(target)
        self._first = (self._places.index(place) + 1) % self.size

    def close(self) -> None:
        self._closed = True
        bell = self._bell
        if bell is not None:
            bell.ring()
        for place in self._places:
            _discard(place.take_socket())

    def forked(self) -> None:
        self._helpers = HelperThreads("tao-dialler", _MOST_CALLS)
        for search in self._searches.values():
            search.end()
        if self._bell is not None:
            self._bell.close()

    def __str__(self) -> str:
        return ", ".join(map(str, self._places))

    # -- inside

    def _search(self, bell: Bell) -> tuple[Place, socket.socket]:
        """Try the places until one is reached."""
        waiting = deque(self._places[self._first :] + self._places[: self._first])
        searches = self._searches
        ready: set[int] = set()
        begin = 0.0  # when to try the next place
        try:
            while not self._closed:
                now = monotonic()
                if waiting and (now >= begin or all(each.over for each in searches.values())):
                    place = waiting.popleft()
                    searches[place] = self._searched(place, bell)
                    begin = now + _PLACE_DELAY
                for place, search in searches.items():
                    sock = None if search.over else search.step(now, ready)
                    if sock is not None:
                        self._first = self._places.index(place)
                        self._last = place, search.reached
                        return place, sock
                going_on = [search for search in searches.values() if not search.over]
                if going_on:
                    until = min([each.due for each in going_on] + [begin] * bool(waiting))
                    polled = chain.from_iterable(each.polled for each in going_on)
                    ready = bell.wait(polled, until)
                elif not waiting:
                    reasons = {place: search.reason for place, search in searches.items()}
                    cause = next(each.cause for each in reversed(searches.values()))
                    raise _failed(reasons, cause) from cause
            raise ConnectionClosed("closed by this side")
        finally:
            self._end_searches()

    def _end_searches(self) -> None:
        for search in list(self._searches.values()):
            search.end()
        self._searches.clear()

    def _searched(self, place: Place, bell: Bell) -> _Search:
        if place.address is not None:
            return Race(place.address, place.memory, self._options, bell)
        if place.function is not None:
            return _Call(place.function, self._helpers, self._options, bell)
        return _Given(place)

    def _made(self, place: Place, sock: socket.socket) -> Reached:
        """Make a connection of a connected socket."""
        options = self._options
        sock.setblocking(True)
        remote, local = normalized(sock.getpeername()), normalized(sock.getsockname())
        set_kernel_clocks(sock, options)
        if options.tls is None:
            transport = Transport(sock)
        else:
            host = options.server_hostname or place.host
            transport = TlsTransport(sock, options.tls, server_side=False, server_hostname=host)
        set_options(sock, options)  # once more, as they count for more than what tao sets
        return Reached(transport, remote, local)


def _failed(reasons: dict[Place, str], cause: BaseException | None) -> ConnectFailed:
    told = "; ".join(f"{place.name}: {reason}" for place, reason in reasons.items())
    which = f"any of {len(reasons)} servers: " if len(reasons) > 1 else ""
    return ConnectFailed(f"cannot connect to {which}{told}")
