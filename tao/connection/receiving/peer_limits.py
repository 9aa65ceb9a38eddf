"""What a peer may send: how many messages and bytes a second, and how slowly.

A connection has these limits only if one of the options ``message_rate``, ``byte_rate`` and
``frame_timeout`` is set; else the reader goes straight from the decoder to the dispatcher.

Messages above the rate wait here, and meanwhile nothing is read, so that TCP holds the peer back.
What waits is what one ``recv`` brought. The wait ends with the connection: a reading thread of its
own waits for its context; where reading is shared, a clock has the reading go on. Bytes are counted
when they are here; the next are read once they are paid for.

A message that has begun must be whole in time, whatever else comes: a peer that sends a byte now
and then is not idle, but holds a place for nothing (R. Hansen's "Slowloris", 2009). The clock is
set while the decoder says that it holds a part of one. As with the other clocks it is not set anew
for each message: when it is due it looks since when the present one has been waited for. Time in
which this side does not read does not count.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import Settings
from tao.connection.reading_gate import ReadingGate
from tao.connection.reports.error_reporting import ErrorReports
from tao.connection.timers import TimerSet
from tao.runtime.context import Context
from tao.runtime.rate_limits import TokenBucket
from tao.runtime.timing_wheel import TimingWheel
from tao.wire.codec import Batch

__all__ = ["PeerLimits", "limits_for"]

# Waiting messages are released in portions of about this many seconds of the rate, not singly.
_PORTION = 0.05
# Why reading pauses.
_RATE = "rate"


class PeerLimitsHost(Protocol):
    """What this asks of a connection's core."""

    context: Context
    dispatcher: Dispatcher
    gate: ReadingGate
    lifecycle: Lifecycle
    error_reports: ErrorReports
    timers: TimerSet
    wheel: TimingWheel

    def drop(self, reason: str) -> None:
        """Do without the peer."""

    def protocol_error(self, error: BaseException) -> None:
        """End the connection, as the decoder has raised this."""

    def heard(self) -> None:
        """Take the present for when something last came."""


def limits_for(conn: PeerLimitsHost, options: Settings) -> PeerLimits | None:
    """Return the limits that the options ask for, if any."""
    if options.message_rate is None and options.byte_rate is None and options.frame_timeout is None:
        return None
    return PeerLimits(conn, options)


class PeerLimits:
    """Between the decoder and the dispatcher. Used by the thread that plays the reading role.

    Args:
        conn: the connection.
        options: checked.
    """

    __slots__ = (
        "_armed", "_batch", "_begun", "_broken", "_bytes", "_close", "_conn", "_debt", "_held",
        "_messages", "_paused", "_paused_at", "_timeout", "_transport", "frame_timeouts",
        "over_rate",
    )  # fmt: skip

    def __init__(self, conn: PeerLimitsHost, options: Settings) -> None:
        self._conn = conn
        self._close: bool = options.over_rate == "close"
        self._timeout: float | None = options.frame_timeout
        self._messages: TokenBucket | None = None
        if options.message_rate is not None:
            self._messages = TokenBucket(options.message_rate, options.message_burst)
        self._bytes: TokenBucket | None = None
        if options.byte_rate is not None:
            self._bytes = TokenBucket(options.byte_rate, options.byte_burst)
        # Owned by the reading role.
        self._transport: object = None  # the one that is read
        self._batch: Batch = []  # messages that are not dispatched yet
        self._broken: BaseException | None = None  # the decoder's exception after it
        self._debt: float = 0.0  # bytes received that were not taken from the bucket yet
        self._held: int = 0  # bytes of a message that has begun, as the decoder says
        # What is waited for while reading pauses: so many tokens of a bucket; and since when.
        self._paused: tuple[TokenBucket, float] | None = None
        self._paused_at: float = 0.0
        # Written by the reading role, and put off by the clock while nothing is read.
        self._begun: float | None = None  # since when the present message is waited for
        # Whether the clock is set. It is cleared *before* the clock looks whether a message has
        # begun, and read *after* one has: so of the two at least one sees the other.
        self._armed: bool = False
        self.over_rate: int = 0  #: how many times a rate was exceeded
        self.frame_timeouts: int = 0

    @property
    def recv_most(self) -> int | None:
        """The most that one ``recv`` should ask for, so that it keeps to the burst; None: any."""
        return None if self._bytes is None else max(1, int(self._bytes.burst))

    # -- for the reading role

    def resume(self, transport: object) -> bool:
        """Begin to read, or continue after another thread was relieved; else as `take_in`."""
        if transport is not self._transport:
            self._transport, self._batch, self._broken = transport, [], None
            self._begun, self._held, self._debt = None, 0, 0.0
            self._end_pause()
        return self.go_on()

    def restart(self) -> None:
        """Wait no longer for a message that has begun: it comes once more, from its beginning."""
        self._begun, self._held = None, 0

    def go_on(self) -> bool:
        """Go on after a pause, if it is over; else as `take_in`."""
        if self._paused is not None and not self._rest(*self._paused):
            return True
        return self._pass_on()

    def take_in(self, batch: Batch, size: int, held: int, broken: BaseException | None) -> bool:
        """Dispatch received messages as fast as the rates allow; return when more may be read.

        Args:
            batch: what became whole.
            size: of what was received, in bytes.
            held: how many bytes of a message that is not whole the decoder has.
            broken: what the decoder raised, if anything.

        Returns:
            False if another thread has taken over the reading, as `Dispatcher.dispatch`.
        """
        if self._timeout is not None:
            # If the decoder's bytes did not only grow, it has made progress.
            if batch or held != self._held + size:
                self._begun = None
            self._held = held
        if self._bytes is not None:
            self._debt += size
        self._batch, self._broken = batch, broken
        return self._pass_on()

    def _pass_on(self) -> bool:
        dispatch = self._conn.dispatcher.dispatch
        while portion := self._next_portion():
            if not dispatch(portion):
                return False
        if self._paused is not None:
            return True
        if self._broken is not None:
            broken, self._broken = self._broken, None
            self._conn.protocol_error(broken)
            return True
        if self._debt:
            self._pay()
        if self._held and self._begun is None and self._timeout is not None:
            self._begun = monotonic()
            if not self._armed:
                self._arm(self._timeout)
        return True

    def _next_portion(self) -> Batch:
        """Wait until messages may be handled, and return them; none if none is left."""
        batch, conn = self._batch, self._conn
        while batch:
            if conn.lifecycle.status.ended:
                self._batch, self._debt = [], 0.0
                break
            bucket = self._messages
            count = len(batch)
            if bucket is not None and not conn.context.cancelled:
                count = bucket.take(count)
            if count:
                self._batch = batch[count:]
                return batch[:count]
            assert bucket is not None
            if self._exceeded(f"more than {bucket.rate:g} messages a second", "message_rate"):
                portion = max(1.0, bucket.rate * _PORTION)
                if not self._rest(bucket, min(len(batch), portion)):
                    break
            batch = self._batch
        return []

    def _pay(self) -> None:
        """Wait until the bytes that were received are within the rate."""
        bucket, debt = self._bytes, self._debt
        assert bucket is not None
        self._debt = 0.0
        if not bucket.lend(debt):
            return
        if self._exceeded(f"more than {bucket.rate:g} bytes a second", "byte_rate"):
            self._rest(bucket, 0.0)

    def _exceeded(self, what: str, option: str) -> bool:
        """Handle an exceeded rate: return True to wait, False if the connection is being closed."""
        conn = self._conn
        if conn.lifecycle.status.ended:
            return False
        self.over_rate += 1
        consequence = "is closed" if self._close else "is held back"
        conn.error_reports.flood("{} came ({}), so it {}", what, option, consequence)
        if self._close:
            conn.drop(f"{what} came ({option})")
        return not self._close

    def _rest(self, bucket: TokenBucket, wanted: float) -> bool:
        """Read nothing until so many tokens are there, or the connection ends.

        Returns:
            False if that is not so yet, and this thread may not wait; then `go_on` will be called.
        """
        conn = self._conn
        if self._paused is None:
            self._paused, self._paused_at = (bucket, wanted), monotonic()
            conn.gate.pause(_RATE)
        while (seconds := bucket.wait_for(wanted)) > 0 and not conn.context.cancelled:
            if not conn.gate.may_wait:
                conn.timers.set_clock("rate", seconds, self._call_back)
                return False
            conn.context.wait(seconds)
        self._end_pause()
        return True

    def _end_pause(self) -> None:
        if self._paused is None:
            return
        conn, now = self._conn, monotonic()
        self._paused = None
        conn.heard()  # silence is this side's doing
        begun = self._begun  # the clock may take it back at any moment
        if begun is not None:
            self._begun = begun + now - self._paused_at
        conn.gate.resume(_RATE)

    @property
    def paused(self) -> bool:
        """Whether what was received waits for a rate."""
        return self._paused is not None

    # -- for the clocks, on the timing wheel's thread

    def _call_back(self) -> None:
        """The pause may be over."""
        self._conn.gate.call_back(self.go_on)

    def _arm(self, delay: float) -> None:
        self._armed = True
        self._conn.timers.set_clock("frame", delay, self._look)

    def _look(self) -> None:
        """Close if the message that has begun is not whole in time."""
        conn, limit = self._conn, self._timeout
        assert limit is not None
        self._armed = False
        begun = self._begun
        if begun is None or not conn.lifecycle.status.talking:
            return
        left = limit - conn.wheel.since(begun)
        if conn.gate.paused:
            left = limit  # it is this side that does not read
        if left > 0:
            self._arm(left)
        elif self._begun == begun:
            self._begun = None
            self.frame_timeouts += 1
            reason = f"a message that began was not whole after {limit:g} s (frame_timeout)"
            conn.error_reports.flood("{}, so it is closed", reason)
            conn.drop(reason)
