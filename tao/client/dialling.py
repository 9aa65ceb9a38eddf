"""Dialling: connect to one of several endpoints, and return a transport.

A client may have several endpoints. They are tried in order, beginning with the one that worked
last. The next one is tried when one has failed, or in parallel when one has not answered for a
while; the first to connect wins. An endpoint is an address (``happy_eyeballs.py`` connects to it),
a function of the application that returns a connected socket, or a connected socket.

One thread does all this, in `Dialler.next`. It waits in one ``poll`` for sockets, for helper
threads and for `Dialler.close`, so neither a hanging name server nor a hanging function of the
application blocks it.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from time import monotonic
from typing import Any, NamedTuple, Protocol

from tao.client.endpoints import Endpoint, check_options, why_not_connected
from tao.client.happy_eyeballs import Race, failure_text, set_options
from tao.connection.keepalive import set_kernel_clocks
from tao.connection.options.definitions import ClientSettings
from tao.errors import ConnectFailed, ConnectionClosed
from tao.runtime.helper_threads import Bell, HelperTask, HelperThreads
from tao.safe_text import safe_str
from tao.transport.addresses import Target, normalized
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.transport.tls_stream import TlsTransport

__all__ = ["Dialler", "Reached", "Source"]

# Seconds until the next endpoint is tried in parallel: a lost SYN is sent again after one second,
# and needs time to be answered.
_ENDPOINT_DELAY = 2.0
# How many calls of the application's function may run at once for one client, if they hang.
_MOST_CALLS = 2


class Reached(NamedTuple):
    """An established connection."""

    transport: Transport
    remote_address: Any
    local_address: Any


class Source(ABC):
    """The source of a client's connections.

    The connecting thread calls `next` and `over`; any thread may call `close`.
    """

    #: How many endpoints there are; each is tried before `ClientConn.start` fails.
    size: int = 1
    #: Whether there is only one connection, so that the client cannot reconnect.
    once: bool = False
    #: Whether the kernel can wait for its connections, so that their reading may be shared.
    polled: bool = True
    #: The remote address that the client shows before it is connected.
    address: Any = None

    @abstractmethod
    def next(self) -> Reached:
        """Return a new connection.

        Raises:
            ConnectFailed: connecting failed; it may be tried again.
            ConnectionClosed: `close` was called.
        """

    def over(self, useful: bool) -> None:  # noqa: B027
        """Report that the connection returned last has ended, and whether it was useful."""

    def close(self) -> None:  # noqa: B027
        """End `next` at once and permanently. May be called from a signal handler."""

    def forked(self) -> None:  # noqa: B027
        """Free the resources of `next` in a child process, without sending anything."""


# -- connecting to one endpoint


class _Search(Protocol):
    """An attempt to connect to one endpoint, such as a `Race`."""

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
    """The attempt for a given socket, which ends at once."""

    polled: Iterable[int] = ()
    due = 0.0
    over = False
    reached: Target | None = None
    cause: BaseException | None = None
    reason = "it was used already, and cannot be connected again"

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def step(self, now: float, ready: set[int]) -> socket.socket | None:
        self.over = True
        return self._endpoint.take_socket()

    def end(self) -> None:
        pass


class _Call:
    """The attempt by a function of the application, on a helper thread."""

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
    """Close a socket that is not needed any more."""
    if isinstance(made, socket.socket):
        made.close()


# -- connecting to any endpoint


class Dialler(Source):
    """A source of connections over sockets.

    Args:
        endpoints: at least one.
        options: validated.

    Raises:
        ValueError: an option does not fit the endpoints; the text names it.
    """

    def __init__(self, endpoints: list[Endpoint], options: ClientSettings) -> None:
        check_options(endpoints, options)
        self._endpoints = endpoints
        self._options = options
        self.size = len(endpoints)
        self.once = all(endpoint.once for endpoint in endpoints)
        self.address = endpoints[0].address
        self._helpers = HelperThreads("tao-dialler", _MOST_CALLS)
        # Owned by the dialling thread.
        self._first: int = 0  # index of the endpoint to begin with
        # The endpoint and the address of the last connection.
        self._last: tuple[Endpoint, Target | None] | None = None
        self._searches: dict[Endpoint, _Search] = {}  # attempts in progress
        # The dialling thread writes this before it reads _closed; `close` writes _closed before it
        # reads this. So at least one of the two sees the other.
        self._bell: Bell | None = None
        self._closed: bool = False

    @property
    def dialling(self) -> bool:
        """Whether `next` is running."""
        return self._bell is not None

    def next(self) -> Reached:
        try:
            self._bell = Bell()
            endpoint, sock = self._search(self._bell)
        except OSError as error:
            if isinstance(error, ConnectionClosed):
                raise
            raise ConnectFailed(f"cannot connect: {explain(error)}") from error
        finally:
            bell, self._bell = self._bell, None
            if bell is not None:
                bell.close()
            self._end_searches()  # again, as an exception may have interrupted the first call
        try:
            return self._made(endpoint, sock)
        except BaseException as error:
            sock.close()
            if not isinstance(error, (OSError, ValueError)):
                raise
            self.over(useful=False)
            # It may be reset already, for example.
            raise _failed({endpoint: failure_text(None, error)}, error) from error

    def over(self, useful: bool) -> None:
        if self._last is None or useful:
            return
        endpoint, target = self._last
        if target is not None:
            endpoint.memory.failed(target)
        self._first = (self._endpoints.index(endpoint) + 1) % self.size

    def close(self) -> None:
        self._closed = True
        bell = self._bell
        if bell is not None:
            bell.ring()
        for endpoint in self._endpoints:
            _discard(endpoint.take_socket())

    def forked(self) -> None:
        self._helpers = HelperThreads("tao-dialler", _MOST_CALLS)
        for search in self._searches.values():
            search.end()
        if self._bell is not None:
            self._bell.close()

    def __str__(self) -> str:
        return ", ".join(map(str, self._endpoints))

    # -- inside

    def _search(self, bell: Bell) -> tuple[Endpoint, socket.socket]:
        """Try the endpoints until one is connected."""
        waiting = deque(self._endpoints[self._first :] + self._endpoints[: self._first])
        searches = self._searches
        ready: set[int] = set()
        begin = 0.0  # when to try the next endpoint
        try:
            while not self._closed:
                now = monotonic()
                if waiting and (now >= begin or all(each.over for each in searches.values())):
                    endpoint = waiting.popleft()
                    searches[endpoint] = self._searched(endpoint, bell)
                    begin = now + _ENDPOINT_DELAY
                for endpoint, search in searches.items():
                    sock = None if search.over else search.step(now, ready)
                    if sock is not None:
                        self._first = self._endpoints.index(endpoint)
                        self._last = endpoint, search.reached
                        return endpoint, sock
                going_on = [search for search in searches.values() if not search.over]
                if going_on:
                    until = min([each.due for each in going_on] + [begin] * bool(waiting))
                    polled = chain.from_iterable(each.polled for each in going_on)
                    ready = bell.wait(polled, until)
                elif not waiting:
                    reasons = {endpoint: search.reason for endpoint, search in searches.items()}
                    cause = next(each.cause for each in reversed(searches.values()))
                    raise _failed(reasons, cause) from cause
            raise ConnectionClosed("closed by this side")
        finally:
            self._end_searches()

    def _end_searches(self) -> None:
        for search in list(self._searches.values()):
            search.end()
        self._searches.clear()

    def _searched(self, endpoint: Endpoint, bell: Bell) -> _Search:
        if endpoint.address is not None:
            return Race(endpoint.address, endpoint.memory, self._options, bell)
        if endpoint.function is not None:
            return _Call(endpoint.function, self._helpers, self._options, bell)
        return _Given(endpoint)

    def _made(self, endpoint: Endpoint, sock: socket.socket) -> Reached:
        """Make a transport from a connected socket."""
        options = self._options
        sock.setblocking(True)
        remote, local = normalized(sock.getpeername()), normalized(sock.getsockname())
        set_kernel_clocks(sock, options)
        if options.tls is None:
            transport = Transport(sock)
        else:
            host = options.server_hostname or endpoint.host
            transport = TlsTransport(sock, options.tls, server_side=False, server_hostname=host)
        set_options(sock, options)  # again, as they take precedence over what tao sets
        return Reached(transport, remote, local)


def _failed(reasons: dict[Endpoint, str], cause: BaseException | None) -> ConnectFailed:
    told = "; ".join(f"{endpoint.name}: {reason}" for endpoint, reason in reasons.items())
    which = f"any of {len(reasons)} servers: " if len(reasons) > 1 else ""
    return ConnectFailed(f"cannot connect to {which}{told}")
