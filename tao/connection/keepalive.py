"""Keeping a connection alive, and noticing when it is not: heartbeats and timeouts."""

from __future__ import annotations

import socket
import time
from types import EllipsisType
from typing import Protocol

from tao.connection.application import ApplicationLink
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import Settings
from tao.connection.reading_gate import ReadingGate
from tao.connection.receiving.reading import Reader
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.errors import ConnectionClosed, TaoError
from tao.runtime.timing_wheel import TimingWheel
from tao.transport.stream import Transport
from tao.wire.codec_checks import checked_frame, takes_time

__all__ = ["KeepAlive", "set_kernel_clocks"]

# After ``write_timeout`` the kernel gives up so much later than tao, which says better why.
_USER_TIMEOUT_SLACK = 1.0
# The kernel's clocks, absent on some platforms; macOS has another name for the first.
_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
# So many probes go unanswered before the kernel gives up; and its clocks take at most these.
_PROBES, _MOST_SECONDS, _MOST_MILLISECONDS = 3, 32767, 2**31 - 1


def set_kernel_clocks(sock: socket.socket, options: Settings) -> None:
    """Make the kernel detect data that it has accepted and the peer does not acknowledge.

    - ``write_timeout`` becomes TCP_USER_TIMEOUT (RFC 5482). ``idle_timeout`` does not: on Linux it
      would cut off also a peer that is alive and only does not read, and it notices one that
      vanished by itself, since from there nothing comes.
    - ``idle_timeout`` sets the probes of an idle line (RFC 1122, 4.2.3.6): the first after half of
      it, the last in time for it. So the kernel keeps no connection for longer than tao would,
      whatever happens to its process's threads, and firewalls on the way see it used.
    """
    if options.idle_timeout is None and options.write_timeout is None:
        return
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for option, value in _probes(options.idle_timeout):
        _set(sock, option, value)
    if options.write_timeout is not None:
        seconds = options.write_timeout + _USER_TIMEOUT_SLACK
        _set(sock, _USER_TIMEOUT, round(min(seconds * 1000, _MOST_MILLISECONDS)))


def _probes(idle: float | None) -> list[tuple[int | None, int]]:
    """Return the socket options that set the probes of an idle line, for an ``idle_timeout``."""
    if idle is None:
        return []
    return [
        (_IDLE, min(max(1, round(idle / 2)), _MOST_SECONDS)),
        (_INTERVAL, min(max(1, round(idle / 2 / _PROBES)), _MOST_SECONDS)),
        (_COUNT, _PROBES),
    ]


def _set(sock: socket.socket, option: int | None, value: int) -> None:
    if option is None:
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # the peer is gone already, or the kernel knows better: it is an extra


class KeepAliveHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    dispatcher: Dispatcher
    gate: ReadingGate
    lifecycle: Lifecycle
    reader: Reader
    send_queue: SendQueue
    timers: TimerSet
    transport: Transport | None
    wheel: TimingWheel

    def drop(self, reason: str) -> None:
        """Do without the peer."""

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""


class KeepAlive:
    """The clocks of an established connection; they run on the timing wheel's thread.

    None is set anew for each message: when one is due it looks how long ago the last was, and sets
    itself for the rest. So they cost nothing while there is traffic.

    Args:
        conn: the connection's core.
        settings: the options.
    """

    __slots__ = ("_conn", "_last_told", "_made", "heartbeat", "idle_timeout", "write_timeout")

    def __init__(self, conn: KeepAliveHost, settings: Settings) -> None:
        self._conn = conn
        # In seconds, None for never. The first two are set by any thread, see `change`.
        self.heartbeat: float | None = settings.heartbeat
        self.idle_timeout: float | None = settings.idle_timeout
        self.write_timeout: float | None = settings.write_timeout
        # When the connection was made, by the monotonic clock and by the time of day.
        self._made: tuple[float, float]
        self.set_time()
        # The same of the last receive, as last returned to a caller. Replaced in one step.
        self._last_told: tuple[float, float] = 0.0, 0.0

    def set_time(self) -> None:
        """Take the present for the time when the connection was made. By its reading thread."""
        self._conn.reader.last_received = now = time.monotonic()
        self._made = now, self._conn.wheel.time_of_day()

    @property
    def last_heartbeat(self) -> float:
        """See `Connection.last_heartbeat`."""
        wheel, last, told = self._conn.wheel, self._conn.reader.last_received, self._last_told
        if last != told[0]:
            made, time_of_day = self._made
            told = last, time_of_day + wheel.since(made) - wheel.since(last)
            self._last_told = told
        return told[1]

    @property
    def idle_time(self) -> float:
        """See `Connection.idle_time`."""
        return max(0.0, self._conn.wheel.since(self._conn.reader.last_received))

    def start(self) -> None:
        """Set the clocks of a transport that is established."""
        self._set("heartbeat", self.heartbeat)
        self._set("idle", self.idle_timeout)
        self._set("write", self.write_timeout)

    def change(
        self,
        heartbeat: float | EllipsisType | None,
        idle_timeout: float | EllipsisType | None,
    ) -> None:
        """Replace the first two for this connection; see `Connection.set_keepalive`.

        Each is replaced before its clock is set anew. A clock that goes off in between looks again
        after it has set itself; and if the connection is not open yet, its clocks are not set.
        """
        if not isinstance(heartbeat, EllipsisType):
            self.heartbeat = heartbeat
        if not isinstance(idle_timeout, EllipsisType):
            self.idle_timeout = idle_timeout
            self._set_probes(idle_timeout)
        if self._conn.lifecycle.open:
            if not isinstance(heartbeat, EllipsisType):
                self._set("heartbeat", self._until_beat(heartbeat))
            if not isinstance(idle_timeout, EllipsisType):
                self._set("idle", idle_timeout)

    def _set_probes(self, idle: float | None) -> None:
        """Have the kernel probe an idle line in time for another ``idle_timeout``."""
        transport = self._conn.transport
        if transport is None:
            return
        for option, value in _probes(idle):
            try:
                if option is not None:
                    transport.option(socket.IPPROTO_TCP, option, value, 0)
            except (OSError, ConnectionClosed):
                return  # it is over, or no TCP

    def _until_beat(self, interval: float | None) -> float | None:
        """Return in how many seconds a heartbeat is due if nothing is sent until then."""
        if interval is None:
            return None
        return max(0.0, interval - self._conn.wheel.since(self._conn.send_queue.last_sent))

    def _set(self, purpose: str, delay: float | None) -> None:
        if delay is not None:
            looks = {"heartbeat": self._beat, "idle": self._look_idle, "write": self._look_stuck}
            self._conn.timers.set_clock(purpose, delay, looks[purpose])

    def _beat(self) -> None:
        """Send a heartbeat if nothing was sent for so long."""
        interval = self.heartbeat
        left = self._until_beat(interval)
        if left == 0:
            left = interval
            self._send_heartbeat()
        self._set("heartbeat", left)
        if self.heartbeat != interval:  # changed meanwhile
            self._set("heartbeat", self._until_beat(self.heartbeat))

    def _send_heartbeat(self) -> None:
        conn = self._conn
        try:
            application = conn.application.find()
            if application is None:
                return
            codec = application.codec
            make = getattr(codec, "heartbeat", None)  # a codec may have none
            made = b""
            if make is not None:
                made = make(time.time_ns() if takes_time(make) else application.find_conn())
            frame = checked_frame(codec, "heartbeat", made)
        except BaseException as error:
            conn.report(error, "in the codec's heartbeat")
            return
        # Where something waits to be sent none is needed: it would take the place of that.
        if frame and conn.lifecycle.open and not conn.send_queue.waiting:
            try:
                conn.send_queue.write(frame)
            except TaoError:
                pass  # it is closed, or other data is queued by now

    def _look_idle(self) -> None:
        """Close if nothing came for so long."""
        conn, limit = self._conn, self.idle_timeout
        if limit is None or not conn.lifecycle.open:
            return  # lost meanwhile; the next transport sets its own
        if conn.gate.paused or conn.dispatcher.occupies_reader:
            # Nothing is read: the reader is busy with handlers, these do not keep up, or a limit
            # says so. That is not silence.
            conn.reader.last_received = time.monotonic()
        left = limit - conn.wheel.since(conn.reader.last_received)
        if left <= 0 and self.idle_timeout == limit:
            if not self._outlived(f"idle for {limit} s"):
                conn.drop(f"idle for {limit} s")
                return
            left = limit
        self._set("idle", max(0.0, left))
        if self.idle_timeout != limit:  # changed meanwhile
            self._set("idle", self.idle_timeout)

    def _outlived(self, reason: str) -> bool:
        """Whether the connection goes on although its peer has failed."""
        transport = self._conn.transport
        return transport is not None and transport.outlives(reason)

    def _look_stuck(self) -> None:
        """Close if the peer took nothing for so long although something waits."""
        send_queue, limit = self._conn.send_queue, self.write_timeout
        assert limit is not None
        transport = self._conn.transport  # of now: the next may be there any moment
        left = limit - self._conn.wheel.since(send_queue.last_sent)
        text = f"the peer took nothing for {limit} s"
        held_up = transport is not None and transport.polls_writable and send_queue.blocked
        if held_up and left <= 0 and not self._outlived(text):
            # The reading thread notices and reports it; doing that here would delay others.
            send_queue.give_up(TimeoutError(text), transport)
        else:
            self._set("write", left if left > 0 else limit)
