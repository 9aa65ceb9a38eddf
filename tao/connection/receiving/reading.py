"""The reading role of a connection: from the socket to the dispatcher.

One ``recv`` takes as much as the peer has sent, up to a bound; all messages that are whole by then
are decoded into one batch and dispatched together. So what a system call and a turn of this loop
cost is shared by as many messages as there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic, thread_time
from typing import Protocol

from tao.connection.application import ApplicationLink
from tao.connection.options.definitions import Settings
from tao.connection.receiving.peer_limits import PeerLimits, PeerLimitsHost, limits_for
from tao.connection.sending.send_queue import SendQueue
from tao.runtime.turnstile import departures
from tao.transport.stream import Transport
from tao.wire.codec import Batch

__all__ = ["Reader", "ReadingHost"]

# How much one recv asks for: it grows while the peer fills it and shrinks again, so that an idle
# connection holds little memory.
_RECV_LEAST, _RECV_MOST = 4 * 1024, 1024 * 1024
# A receive that asks for more than this holds no memory while it waits.
_RECV_HELD = 64 * 1024
# It does not grow beyond what so many messages take: a batch keeps its replies waiting, and other
# connections too, as it is long before a thread that computes gives the interpreter lock away.
_BATCH_MOST = 1024
# Nor does it beyond what is handled in this time, in seconds. A thread that reads one connection
# measures that where so much has come; less is handled soon enough.
_TURN_MOST, _MUCH = 2e-3, 16 * 1024

#: Is called with a batch, and returns what is left of it.
Look = Callable[[Batch], Batch]


class ReadingHost(PeerLimitsHost, Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    send_queue: SendQueue
    settings: Settings
    transport: Transport | None

    def transport_failed(self, error: OSError) -> None:
        """Go on without the transport: receiving has raised this."""

    def stream_ended(self) -> None:
        """Go on after the end of the stream."""


class Reader:
    """Reads one connection. Used by the thread that plays the role, one at a time.

    Args:
        conn: the connection's core.
        settings: the options.
    """

    __slots__ = (
        "_application", "_broken", "_conn", "_dispatcher", "_enough", "_filled_at", "_fitting",
        "_lifecycle", "_looks", "_recv_most", "_size", "_usual", "_watching", "bytes_in",
        "discarded", "early", "last_received", "limits", "messages_in", "on_batch", "recv_size",
        "take_late",
    )  # fmt: skip

    def __init__(self, conn: ReadingHost, settings: Settings) -> None:
        self._conn = conn
        self._application = conn.application
        self._dispatcher = conn.dispatcher
        self._lifecycle = conn.lifecycle
        # What the decoder has raised, until the thread that reads on reports it to the connection.
        self._broken: BaseException | None = None
        #: What limits the peer, or None if no option does.
        self.limits: PeerLimits | None = limits_for(conn, settings)
        most = None if self.limits is None else self.limits.recv_most
        self._recv_most: int = min(most or _RECV_MOST, _RECV_MOST)
        #: How much the next receive asks for.
        self.recv_size: int = min(_RECV_LEAST, self._recv_most)
        # With so many bytes it may be time to ask for more, or for less.
        self._enough: int = self.recv_size
        # How much came last when that was much, and how much is handled within a turn.
        self._size: int = 0
        # How much had come by the last receive that brought as much as was asked for, or much.
        self._filled_at: int = -1
        self._fitting: int = self._recv_most
        #: When something last came, monotonic.
        self.last_received: float = monotonic()
        # What is called with each batch, and whether after all others. Changed in single steps, by
        # any thread, which then arranges the next two.
        self._watching: dict[Look, bool] = {}
        self._looks: tuple[Look, ...] = ()  # the same, in order
        #: Called with each batch, unless it is None; returns what is to be dispatched of it.
        self.on_batch: Look | None = None
        self._usual: bool = self.limits is None  # whether nothing looks at messages before that
        #: What came of the stream before it was read. Set before that.
        self.early: bytes = b""
        #: Called with what comes when the connection is ending, unless it is None.
        self.take_late: Callable[[bytes], object] | None = None
        self.bytes_in: int = 0
        self.discarded: int = 0  #: bytes that came when the connection was ending
        self.messages_in: int = 0

    def watch(self, look: Look, *, last: bool = False) -> None:
        """Call a function with each batch, after those that are called already; see `on_batch`.

        Any thread may call this and `unwatch`.

        Args:
            last: also after those that are added later, so that it sees just what is dispatched.
        """
        self._watching[look] = last
        self._arrange()

    def unwatch(self, look: Look) -> None:
        """Call a function no more."""
        self._watching.pop(look, None)
        self._arrange()

    def _arrange(self) -> None:
        """Note what is called, in order; again if another thread has changed that meanwhile."""
        while True:
            watching = dict(self._watching)
            self._looks = looks = tuple(sorted(watching, key=watching.__getitem__))
            self.on_batch = None if not looks else looks[0] if len(looks) == 1 else self._look
            self._usual = not looks and self.limits is None
            if watching == dict(self._watching):
                return

    def _look(self, batch: Batch) -> Batch:
        for look in self._looks:
            batch = look(batch)
        return batch

    def read(self) -> bool:
        """Read the transport until the end, or (True) until the other thread has taken over."""
        conn = self._conn
        transport, take = conn.transport, self.take
        assert transport is not None
        recv, recv_much = transport.recv, transport.recv_much
        if not self.go_on(transport) or (self.early and not self.take_early()):
            return True
        while True:
            try:
                size = self.recv_size
                if size <= _RECV_HELD:
                    data = recv(size)
                else:
                    data = b""  # frees what came last
                    data = recv_much(size)
            except OSError as error:
                self._go_on_in_turn(partial(conn.transport_failed, error))
                return False
            if not data:
                self._go_on_in_turn(self.take_end)
                return False
            if not (take(data) if len(data) < _MUCH else self._take_much(data)):
                return True

    def _take_much(self, data: bytes) -> bool:
        """Do as `take` does, and see how long that takes without the waits for other threads."""
        started = thread_time()
        reads_on = self.take(data)
        if reads_on:
            self.took(thread_time() - started)
        return reads_on

    def _go_on_in_turn(self, go_on: Callable[[], None]) -> None:
        """Go on after the end of the stream, which that of many others may accompany."""
        try:
            if not self.waits_at_end:
                departures.enter()
            go_on()
        finally:
            departures.leave()

    def start_over(self) -> None:
        """Forget what came of a transport that is not read any more."""
        self._broken, self.early = None, b""

    def go_on(self, transport: Transport) -> bool:
        """Begin with a transport, or go on where another thread was relieved; as `take`."""
        if self._broken is not None:
            self._break()  # the other thread has taken over in the midst of what came before
        return self.limits is None or self.limits.resume(transport)

    def restart(self) -> None:
        """Begin with another link of a session, while nothing is read.

        What the last one had begun to bring comes again, and its silence does not count.
        """
        self.last_received = monotonic()
        if self.limits is not None:
            self.limits.restart()

    def take_early(self) -> bool:
        """Do as `take` does with what came before the stream was read."""
        data, self.early = self.early, b""
        return self.take(data)

    def take(self, data: bytes, now: float = 0.0) -> bool:
        """Decode and dispatch what was received.

        Args:
            now: the time, monotonic, if it is known.

        Returns:
            False if another thread has taken over the reading; the caller must then call
            `Dispatcher.handle`.
        """
        self.last_received, size = now or monotonic(), len(data)
        self.bytes_in += size
        if self._lifecycle.ended:
            self.discarded += size
            if self.take_late is not None:
                self.take_late(data)
            return True  # only waiting for the end
        batch: Batch = []
        broken: BaseException | None = None
        dispatcher = self._dispatcher
        find = self._application.find  # is found faster when it is not called at once
        application = find()
        if application is not None:
            try:
                application.decoder.feed(data, batch)
            except BaseException as error:
                broken = error
        if size >= self._enough:
            self._adapt(size, len(batch))
        if len(batch) == 1 and self._usual and broken is None and application is not None:
            self.messages_in += 1
            reads_on = dispatcher.dispatch_alone(application, batch)
            if reads_on is None:
                application = None  # which may not be held while this waits
                reads_on = dispatcher.dispatch(batch)
            return reads_on
        application = None
        if self.on_batch is not None:
            batch = self.on_batch(batch)
        self.messages_in += len(batch)
        if self.limits is not None:
            return self.limits.take_in(batch, size, self._held(), broken)
        self._broken = broken
        if batch and not dispatcher.dispatch(batch):
            return False
        if broken is not None:
            self._break()
        return True

    @property
    def waits_at_end(self) -> bool:
        """Whether `take_end` would wait, as this side may still send (``half_close``)."""
        conn = self._conn
        return (
            conn.settings.half_close
            and not self._lifecycle.status.ended
            and conn.send_queue.error is None
        )

    def take_end(self) -> None:
        """Go on after the end of the stream."""
        conn, application = self._conn, self._application.find()
        end = None if application is None else getattr(application.decoder, "end", None)
        if not (end is None or self._lifecycle.ended or conn.send_queue.error is not None):
            try:  # this side has not ended it, so the decoder checks whether it may end here
                end()
            except BaseException as error:
                conn.protocol_error(error)
        conn.stream_ended()

    @property
    def over_rate(self) -> int:
        """How many times the peer has exceeded a rate."""
        return 0 if self.limits is None else self.limits.over_rate

    @property
    def frame_timeouts(self) -> int:
        """How many messages were not complete in time."""
        return 0 if self.limits is None else self.limits.frame_timeouts

    def _adapt(self, size: int, count: int) -> None:
        """Choose how much to ask for, after so many bytes with so many messages arrived."""
        self._size = size
        if size == self.recv_size or size >= _MUCH:
            self._filled_at = self.bytes_in
        if size == self.recv_size or count > _BATCH_MOST:
            enough = max(_RECV_LEAST, size * _BATCH_MOST // (count or 1))
            self.recv_size = min(4 * size, enough, self._fitting)
            # Handlers may have become quicker.
            self._fitting = min(self._fitting + self._fitting // 8, self._recv_most)
        elif 4 * size < self.recv_size > _RECV_LEAST:
            self.recv_size //= 2
        self._enough = self.recv_size if self.recv_size <= _RECV_LEAST else 0

    def took(self, seconds: float) -> bool:
        """Ask for less if it took long to handle what came last, as others have to wait.

        Returns:
            whether that was so much that probably more waits to be received.
        """
        if seconds > _TURN_MOST:
            self._fitting = max(
                min(_RECV_LEAST, self._recv_most), int(self._size * _TURN_MOST / seconds)
            )
            self.recv_size = min(self.recv_size, self._fitting)
            self._enough = 0
        return self._filled_at == self.bytes_in

    def _break(self) -> None:
        """Report what the decoder raised, once the messages before it are dispatched."""
        broken, self._broken = self._broken, None
        if broken is not None:
            self._conn.protocol_error(broken)

    def _held(self) -> int:
        """How many bytes of a message that is not whole the decoder has, if it says so."""
        application = self._application.find()
        return 0 if application is None else getattr(application.decoder, "pending", 0)
