"""Statistics: the counts of connections, and how they are summed up.

No counter is shared between threads on the way of a message. Each connection counts for itself, in
fields that one thread or one lock owns, once for a batch; its counts are added to its server's when
it ends. A snapshot adds up the ended and the living, and no count ever falls.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import add, attrgetter
from threading import RLock
from typing import Any, NamedTuple, Protocol

from tao.atomic import AtomicInt64, AtomicReference
from tao.callables import renamed
from tao.connection.reports.recent_errors import Failures
from tao.runtime.histogram import Latencies, summed
from tao.runtime.rate_limits import FloodLog
from tao.runtime.threads import Joinable
from tao.safe_text import number_text

__all__ = ["Counts", "Snapshot", "Statistics", "all_statistics"]


@dataclass
class Counts:
    """What one connection, or many together, did.

    Attributes:
        messages_in, bytes_in: decoded, and received.
        messages_out, bytes_out: wholly taken by the kernel, and taken.
        handled: messages and timer callbacks that ran through.
        handle_time: seconds spent in them.
        errors: exceptions, of handlers, callbacks, codecs and sockets.
        undefined: messages with an unregistered number.
        dropped: messages that a slow consumer did not get, by ``slow_consumer``.
        unsent: messages that were accepted but never sent because the connection ended.
        over_rate: times that a peer was held back, or closed, by ``message_rate`` or ``byte_rate``.
        frame_timeouts: connections closed because a message was not whole in time.
        overdue: handlers that ran for longer than ``handler_warn_after``.
        requests: replies to requests of this side that came. late_replies: those that came when
            nobody waited for them any more.
    """

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    handled: int = 0
    handle_time: float = 0.0
    errors: int = 0
    undefined: int = 0
    dropped: int = 0
    unsent: int = 0
    over_rate: int = 0
    frame_timeouts: int = 0
    overdue: int = 0
    requests: int = 0
    late_replies: int = 0

    def add(self, other: Counts) -> None:
        """Add another's counts to this one's."""
        self.__dict__.update(zip(_COUNTS, map(add, _values(self), _values(other)), strict=True))


_COUNTS = tuple(field.name for field in fields(Counts))
_values: Callable[[Counts], tuple[Any, ...]] = attrgetter(*_COUNTS)


@dataclass
class Snapshot(Counts):
    """The counts of a server or client at one moment.

    Attributes:
        name: the name of the server or client, unique in the process.
        kind: ``"server"`` or ``"client"``.
        state: of a server ``"new"``, ``"running"``, ``"draining"`` (after ``stop_listening``),
            ``"failed"`` (it cannot accept any more), ``"stopping"``, ``"stopped"``; of a client
            ``"new"``, ``"connected"``, ``"connecting"``, ``"closed"``.
        address: where a server listens, several separated by commas; where a client connects to.
        uptime: seconds since it started. connections: now open. connections_total: ever
        established. refused: turned away, by a limit or by ``on_connect``. accept_errors: failures
        to accept one. accept_delays: times that accepting paused because of ``accept_rate``.
        workers, workers_busy: of the pool. timers: pending on the timing wheel. reconnects: how
        many times a client came back. requests_in_flight: requests of this side without a reply;
        oldest_request: for how many seconds the first of them has waited; request_latency: how long
        replies took, as ``latency``. sessions: connections that have one; sessions_lingering: those
        of them that wait to be resumed; session_resumes: how often any was; sessions_lost: how many
        have ended because they could not be; session_bytes: sent in them and not acknowledged.
        sessions_moved: given to the process that replaces this one; session_links_passed: accepted
        here and passed on to the process that has the session; session_links_relayed: the same with
        TLS. latency: how long handlers take, by message number, as
        `tao.runtime.histogram.Latency` tells. error_kinds: how many errors there were of each class
        of exceptions. cluster: of a server in a cluster, its ``state`` there (``"up"``,
        ``"down"``); how many publications it has passed on (``published``), got (``delivered``) and
        missed (``gaps``, and how many in these, ``missing``), how many wait (``queue``), how often
        it has come back (``reconnects``), and how many seconds a publication takes (``lag``).
    """

    name: str = ""
    kind: str = ""
    state: str = ""
    address: str = ""
    uptime: float = 0.0
    connections: int = 0
    connections_total: int = 0
    refused: int = 0
    accept_errors: int = 0
    accept_delays: int = 0
    workers: int = 0
    workers_busy: int = 0
    timers: int = 0
    reconnects: int = 0
    requests_in_flight: int = 0
    oldest_request: float = 0.0
    sessions: int = 0
    sessions_lingering: int = 0
    session_resumes: int = 0
    sessions_lost: int = 0
    session_bytes: int = 0
    sessions_moved: int = 0
    session_links_passed: int = 0
    session_links_relayed: int = 0
    request_latency: dict[str, dict[str, float]] = field(default_factory=dict)
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    error_kinds: dict[str, int] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)

    sessions_waiting = renamed("sessions_waiting", "sessions_lingering")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Counting(Protocol):
    """What these ask of a connection.

    Attributes:
        net_id: its number, unique among those that are counted together.
    """

    net_id: int

    def counts(self) -> Counts:
        """Return the current totals."""
        ...

    def totals(self) -> tuple[Any, ...]:
        """Return the same, in the order of the fields of `Counts`."""
        ...

    def requests_now(self) -> tuple[int, float]:
        """Return how many requests are in flight, and for how long the oldest one."""
        ...


class WithLink(Protocol):
    """What these ask of the stream of a session."""

    @property
    def connected(self) -> bool:
        """Whether there is a link now."""

    def unacknowledged(self) -> int:
        """Return how many bytes the peer has not acknowledged."""


class _Ended(NamedTuple):
    """What the connections that have ended counted. It is replaced, never changed.

    Attributes:
        counts: of them all, in the order of the fields of `Counts`.
        leaving: those among them, by net_id, whose own counts are still kept as well.
    """

    counts: tuple[Any, ...]
    leaving: frozenset[int] = frozenset()

    def plus(self, counts: dict[int, tuple[Any, ...]]) -> _Ended:
        return _Ended(_sum(self.counts, *counts.values()), frozenset(counts))

    def left(self) -> _Ended:
        return _Ended(self.counts)


def _sum(*counts: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(sum, zip(*counts, strict=True)))


def _unless_busy(lock: Any, function: Callable[[], object]) -> None:
    """Call a function with a lock, unless that is held, also by a call that this one interrupts.

    The lock is reentrant only so that its owner is known.
    """
    if lock._is_owned():
        return
    try:
        if lock.acquire(False):
            function()
            lock.release()
    finally:
        if lock._is_owned():  # an exception has come in between
            lock.release()


# The counts of so many that have ended are added up together, as that takes less time.
_TOGETHER = 64


class Statistics:
    """The counts of a server or client over its life.

    No method waits. Any may be called from any thread, a signal handler or a finalizer.

    Args:
        name: the name of the server or client, for display.
        fill: given a snapshot, fills in what is known only now: the state, the pool, the timers.
    """

    def __init__(self, name: str, fill: Callable[[Snapshot], None]) -> None:
        self.name: str = name
        self._fill = fill
        #: For the warnings that peers can bring about any number of times.
        self.floods = FloodLog()
        #: For warnings about slow handlers, because several often have the same cause.
        self.overdue = FloodLog(burst=20)
        #: The run times of its handlers, and its errors.
        self.latencies = Latencies()
        #: How long replies to requests of this side took, by the requests' numbers.
        self.request_latencies = Latencies()
        self.failures = Failures()
        self._started: float = time.monotonic()
        # By net_id, the connections that have not ended, and since when they are established.
        self._living: dict[int, tuple[Counting, float]] = {}
        # Those that have ended while a handler ran: they count until that has returned. With the
        # threads of the handlers. Changed in single steps.
        self._unfinished: dict[int, tuple[Counting, Sequence[Joinable]]] = {}
        self._finishing = RLock()  # for `_unless_busy`
        # The last counts of some that have ended, until they are added to the others'. One that is
        # still listed above has been interrupted, and may be entered here once more.
        self._last: dict[int, tuple[Any, ...]] = {}
        self._adding = RLock()  # for `_unless_busy`: serialises what changes the next
        self._ended: AtomicReference[_Ended] = AtomicReference(_Ended(_values(Counts())))
        self._established = AtomicInt64()
        self._refused = AtomicInt64()
        self._accept_errors = AtomicInt64()
        self._accept_delays = AtomicInt64()
        self._session_resumes = AtomicInt64()
        self._sessions_lost = AtomicInt64()
        self._sessions_moved = AtomicInt64()
        self._links_passed = AtomicInt64()
        self._links_relayed = AtomicInt64()
        #: The connection of a client, which holds what is written before it is established.
        self.client: Any = None
        #: The streams of the sessions that have not ended. Changed in single steps.
        self.sessions: dict[WithLink, None] = {}

    def publish(self) -> None:
        """Include it in `all_statistics`. Its owner must be completely set up by now."""
        _all[weakref.ref(self, _all.pop)] = None

    def established(self, conn: Counting) -> None:
        """Count a new connection, and include its counts from now on."""
        self._living[conn.net_id] = conn, time.monotonic()
        self._established.increment_and_get()

    def refused(self) -> None:
        """Count a connection that was turned away."""
        self._refused.increment_and_get()

    def accept_error(self) -> None:
        """Count a failure to accept."""
        self._accept_errors.increment_and_get()

    def session_resumed(self) -> None:
        """Count that a session goes on over another transport."""
        self._session_resumes.increment_and_get()

    def session_lost(self) -> None:
        """Count a session that has ended because it could not be resumed."""
        self._sessions_lost.increment_and_get()

    def session_moved(self) -> None:
        """Count a session that belongs to another process now."""
        self._sessions_moved.increment_and_get()

    def link_passed_on(self, *, relayed: bool) -> None:
        """Count a connection whose session another process has."""
        (self._links_relayed if relayed else self._links_passed).increment_and_get()

    def accept_delayed(self) -> None:
        """Count a pause in accepting."""
        self._accept_delays.increment_and_get()

    def ended(self, conn: Counting, threads: Sequence[Joinable] = ()) -> None:
        """Keep the final counts of a connection. To be called once.

        Args:
            threads: in which handlers of the connection still run. They may go on counting.
        """
        if threads:
            self._unfinished[conn.net_id] = conn, threads
            self._living.pop(conn.net_id, None)
        else:
            self._keep(conn)
        if self._unfinished:
            _unless_busy(self._finishing, self._finish)

    def _keep(self, conn: Counting) -> None:
        """Keep the last counts. If that is interrupted, it may be repeated."""
        net_id, last = conn.net_id, self._last
        last[net_id] = conn.totals()
        self._living.pop(net_id, None)
        if self._unfinished:
            self._unfinished.pop(net_id, None)
        if len(last) >= _TOGETHER:
            _unless_busy(self._adding, self._add_up)

    def _add_up(self) -> None:
        """Add the last counts of those that have ended to the others'."""
        self._forget_added()
        counts = dict(self._last)
        for net_id in [each for each in counts if each in self._living or each in self._unfinished]:
            del counts[net_id]
        self._ended.update(_Ended.plus, counts)
        self._forget_added()

    def _forget_added(self) -> None:
        for net_id in self._ended.get().leaving:
            self._last.pop(net_id, None)
        self._ended.update(_Ended.left)

    def _finish(self) -> None:
        """Keep the counts of those whose last handlers have returned."""
        for conn, threads in list(self._unfinished.values()):
            if not any(each.is_alive() for each in threads):
                self._keep(conn)

    def snapshot(self) -> Snapshot:
        """Return all counts as they are now. None is ever lower than it was before."""
        _unless_busy(self._finishing, self._finish)
        ended, living = self._ended_and_living()
        result = Snapshot(
            **dict(zip(_COUNTS, ended, strict=True)),
            name=self.name,
            uptime=time.monotonic() - self._started,
            connections_total=self._established.get(),
            refused=self._refused.get(),
            accept_errors=self._accept_errors.get(),
            accept_delays=self._accept_delays.get(),
            sessions=len(streams := list(self.sessions)),
            sessions_lingering=sum(not each.connected for each in streams),
            session_resumes=self._session_resumes.get(),
            sessions_lost=self._sessions_lost.get(),
            session_bytes=sum(each.unacknowledged() for each in streams),
            sessions_moved=self._sessions_moved.get(),
            session_links_passed=self._links_passed.get(),
            session_links_relayed=self._links_relayed.get(),
        )
        for conn in living:  # should one end meanwhile, its last counts are still these
            result.add(conn.counts())
            in_flight, oldest = conn.requests_now()
            result.requests_in_flight += in_flight
            result.oldest_request = max(result.oldest_request, oldest)
        result.request_latency = {
            number_text(number): summed(cells).as_dict()
            for number, cells in self.request_latencies.copies().items()
        }
        result.latency = {
            number_text(number): summed(cells).as_dict()
            for number, cells in self.latencies.copies().items()
        }
        result.error_kinds = self.failures.kinds()
        self._fill(result)
        return result

    def living(self) -> dict[Any, float]:
        """Return the connections that have not ended, and since when each is established."""
        return dict(list(self._living.values()))

    def _ended_and_living(self) -> tuple[tuple[Any, ...], list[Counting]]:
        """Return the counts of those that have ended, and all others: each is in one of them."""
        while True:
            ended = self._ended.get()
            # In this order: one may go from each of these to the next, and then to the ended.
            living = [*list(self._living.values()), *list(self._unfinished.values())]
            last = dict(self._last)
            if self._ended.get() is ended:
                break
        for net_id in ended.leaving:
            last.pop(net_id, None)
        others = {conn.net_id: conn for conn, _ in living}
        for net_id in (*last, *ended.leaving):
            others.pop(net_id, None)
        return _sum(ended.counts, *last.values()), list(others.values())


# Those of all servers and clients that are still referred to.
_all: dict[weakref.ref[Statistics], None] = {}


def all_statistics() -> list[Statistics]:
    """Return those of all servers and clients of this process, by name."""
    found = [statistics for ref in list(_all) if (statistics := ref()) is not None]
    return sorted(found, key=lambda statistics: statistics.name)
