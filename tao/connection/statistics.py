"""Figures: what was counted, and how the counts of many connections become one.

No counter is shared between threads on the way of a message. Each connection counts for itself, in
fields that one thread or one lock owns, once for a batch; its counts are added to its server's when
it ends. A snapshot adds up the ended and the living, and no count ever falls.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

from tao.atomic import AtomicInt64, AtomicReference
from tao.connection.recent_errors import Failures
from tao.runtime.histogram import Latencies, summed
from tao.runtime.rate_limits import FloodLog

__all__ = ["Counts", "Snapshot", "Tally", "tallies"]


@dataclass
class Counts:
    """What one connection, or many together, did.

    Attributes:
        messages_in, bytes_in: decoded, and received.
        messages_out, bytes_out: wholly taken by the kernel, and taken.
        handled: messages and timer callbacks that ran through.
        handle_time: seconds spent in them.
        errors: exceptions, of handlers, callbacks, codecs and sockets.
        undefined: messages whose number is not registered.
        dropped: messages that a slow consumer did not get, by ``slow_consumer``.
        unsent: messages that were accepted but never sent because the connection ended.
        over_rate: times that a peer was held back, or closed, by ``message_rate`` or ``byte_rate``.
        frame_timeouts: connections closed because a message was not whole in time.
        overdue: handlers that ran for longer than ``handler_warn_after``.
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

    def add(self, other: Counts) -> None:
        """Add another's counts to this one's."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_COUNTS = tuple(field.name for field in fields(Counts))


@dataclass
class Snapshot(Counts):
    """The counts of a server or client at one moment.

    Attributes:
        name: whose; no two of a process have the same.
        kind: ``"server"`` or ``"client"``.
        state: of a server ``"new"``, ``"running"``, ``"draining"`` (after ``stop_listening``),
            ``"failed"`` (it cannot accept any more), ``"stopping"``, ``"stopped"``; of a client
            ``"new"``, ``"connected"``, ``"connecting"``, ``"closed"``.
        address: where a server listens, several separated by commas; where a client connects to.
        uptime: seconds since it started. connections: now open. connections_total: ever
        established. refused: turned away, by a limit or by ``on_connect``. accept_errors: failures
        to accept one. accept_delays: times that accepting paused because of ``accept_rate``.
        workers, workers_busy: of the pool. timers: pending on the timing wheel. reconnects: how
        many times a client came back. latency: how long handlers take, by message number, as
        `tao.runtime.histogram.Latency` tells. error_kinds: how many errors there were of each class
        of exceptions.
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
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    error_kinds: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Counting(Protocol):
    """What a tally asks of a connection."""

    def counts(self) -> Counts:
        """Return what it has done so far."""
        ...


class _Ended(NamedTuple):
    """What the connections that have ended counted. It is replaced, never changed.

    Attributes:
        counts: of them all.
        leaving: those among them that are still listed as living.
    """

    counts: Counts
    leaving: tuple[Counting, ...] = ()

    def plus(self, conn: Counting, counts: Counts) -> _Ended:
        total = replace(self.counts)
        total.add(counts)
        return _Ended(total, (*self.leaving, conn))

    def left(self, conn: Counting) -> _Ended:
        return self._replace(leaving=tuple(each for each in self.leaving if each is not conn))


class Tally:
    """The counts of a server or client over its life.

    No method waits. Any may be called from any thread, a signal handler or a finalizer.

    Args:
        name: whose, for people.
        fill: given a snapshot, fills in what is known only now: the state, the pool, the timers.
    """

    def __init__(self, name: str, fill: Callable[[Snapshot], None]) -> None:
        self.name: str = name
        self._fill = fill
        #: For the warnings that peers can bring about any number of times.
        self.floods = FloodLog()
        #: For those about handlers that run for long, of which several often have one cause.
        self.overdue = FloodLog(burst=20)
        #: How long its handlers take, and what went wrong.
        self.latencies = Latencies()
        self.failures = Failures()
        self._started: float = time.monotonic()
        # The connections that have not ended, and since when they are established.
        self._living: dict[Counting, float] = {}
        self._ended: AtomicReference[_Ended] = AtomicReference(_Ended(Counts()))
        self._established = AtomicInt64()
        self._refused = AtomicInt64()
        self._accept_errors = AtomicInt64()
        self._accept_delays = AtomicInt64()

    def publish(self) -> None:
        """Include it in `tallies`. Its owner must be completely set up by now."""
        _all[weakref.ref(self, _all.pop)] = None

    def established(self, conn: Counting) -> None:
        """Count a connection that came to be, and from now on what it counts."""
        self._living[conn] = time.monotonic()
        self._established.increment_and_get()

    def refused(self) -> None:
        """Count a connection that was turned away."""
        self._refused.increment_and_get()

    def accept_error(self) -> None:
        """Count a failure to accept."""
        self._accept_errors.increment_and_get()

    def accept_delayed(self) -> None:
        """Count a pause in accepting."""
        self._accept_delays.increment_and_get()

    def ended(self, conn: Counting) -> None:
        """Keep what a connection counted, which from now on counts no more. To be called once."""
        counts = conn.counts()
        try:
            self._ended.update(lambda ended: ended.plus(conn, counts))
        finally:
            # Not if an exception came before it was counted.
            if any(each is conn for each in self._ended.get().leaving):
                self._living.pop(conn, None)
                self._ended.update(lambda ended: ended.left(conn))

    def snapshot(self) -> Snapshot:
        """Return all counts as they are now. None is ever lower than it was before."""
        ended, living = self._ended_and_living()
        result = Snapshot(
            **asdict(ended),
            name=self.name,
            uptime=time.monotonic() - self._started,
            connections_total=self._established.get(),
            refused=self._refused.get(),
            accept_errors=self._accept_errors.get(),
            accept_delays=self._accept_delays.get(),
        )
        for conn in living:  # should one end meanwhile, its last counts are still these
            result.add(conn.counts())
        result.latency = {
            str(number): summed(cells).as_dict()
            for number, cells in self.latencies.copies().items()
        }
        result.error_kinds = self.failures.kinds()
        self._fill(result)
        return result

    def living(self) -> dict[Any, float]:
        """Return the connections that have not ended, and since when each is established."""
        return self._living.copy()

    def _ended_and_living(self) -> tuple[Counts, list[Counting]]:
        """Return the counts of those that have ended, and all others: each is in one of them."""
        while True:
            ended = self._ended.get()
            living = list(self._living)
            if self._ended.get() is ended:
                return ended.counts, [
                    conn for conn in living if not any(conn is each for each in ended.leaving)
                ]


# The tallies of all servers and clients that are still referred to.
_all: dict[weakref.ref[Tally], None] = {}


def tallies() -> list[Tally]:
    """Return the tallies of all servers and clients of this process, by name."""
    found = [tally for ref in list(_all) if (tally := ref()) is not None]
    return sorted(found, key=lambda tally: tally.name)
