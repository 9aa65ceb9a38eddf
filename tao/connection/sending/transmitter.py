"""Passing the frames of a backlog to the kernel, and counting the bytes that it accepts.

One thread at a time may use it, see ``send_queue.py``; any thread may read the figures. While the
kernel may have accepted more than the backlog says, the backlog's journal is set, so that `repair`
can put right what an exception interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from tao.connection.sending.backlog import Backlog
from tao.runtime.wakeup import Notifier
from tao.transport.stream import Transport

__all__ = ["TransmissionWriter", "Transmitter", "WriterFactory"]

_INTERRUPTED = "a write was interrupted, and it is not known how much of it was sent"


class TransmissionWriter(Protocol):
    """What waits until a transport accepts more, see `Writer`."""

    def start(self) -> None: ...
    def wait_for(self, transport: Transport) -> None: ...
    def stop(self) -> None: ...
    def wait_left(self) -> None: ...
    def run(self) -> None: ...


#: Makes one, given whether a transport is in use, what to call when it is writable, and what to
#: notify when it has left one.
WriterFactory = Callable[
    [Callable[[Transport], bool], Callable[[Transport], None], Notifier], TransmissionWriter
]


class Transmitter:
    """A backlog on its way into one transport after another.

    Args:
        make_writer: makes what waits until a transport accepts more, when that is first needed.
        on_writable: called when the transport may accept more.
        stopped: called when nothing can be sent for now or, with an error, on this transport.
        changed: notified when frames have been sent, or can be sent no longer.
    """

    __slots__ = (
        "_changed", "_make_writer", "_on_writable", "_stopped", "_writable", "_writer", "backlog",
        "blocked", "bytes_sent", "error", "failure", "fin_sent", "frames_sent", "last_sent",
        "parting", "preface_only", "seal", "send_time", "transport", "withheld",
    )  # fmt: skip

    def __init__(
        self,
        make_writer: WriterFactory,
        on_writable: Callable[[], None],
        stopped: Callable[[OSError | None], None],
        changed: Notifier,
    ) -> None:
        self._make_writer = make_writer
        self._on_writable = on_writable
        self._stopped = stopped
        self._changed = changed
        self.backlog = Backlog()
        self.transport: Transport | None = None
        self._writable: Transport | None = None  # the one that the writer last waited for
        self.preface_only: bool = False  #: whether only frames of the preface may be sent
        #: Whether a seal during the preface keeps the other frames from being sent at all.
        self.withheld: bool = False
        #: Why no more frames may be written; the last frame is followed by the end of the stream.
        self.seal: str | None = None
        #: Whether the end of the stream follows what waits; then this transport is let go.
        self.parting: bool = False
        self.blocked: bool = False  #: whether the kernel is full, and the writer waits for it
        #: Whether the end of the stream was sent, or is left to the close of the transport.
        self.fin_sent: bool = False
        self.error: OSError | None = None  #: the error that broke the transport
        self.failure: OSError | None = None  #: the error of `send_all`
        #: When the kernel last accepted bytes, or began to refuse them (``time.monotonic``).
        self.last_sent: float = monotonic()
        self.send_time: float = 0.0  #: seconds that sending has taken
        self.frames_sent: int = 0
        self.bytes_sent: int = 0
        self._writer: TransmissionWriter | None = None  # most connections never need it

    @property
    def writer(self) -> TransmissionWriter:
        """What waits until a transport accepts more; made when first asked for."""
        if self._writer is None:
            self._writer = self._make_writer(self._uses, self.now_writable, self._changed)
        return self._writer

    def wait_left(self) -> None:
        """Wait until the writer is in no transport; the one in use was taken away. Any thread."""
        if self._writer is not None:
            self._writer.wait_left()

    def stop(self) -> None:
        """End the writer, as there will be no other transport. Any thread may call it."""
        if self._writer is not None:
            self._writer.stop()

    def attach(self, transport: Transport, *, withheld: bool) -> None:
        """Send into this transport from now on, the preface first."""
        self.transport = transport
        self.preface_only, self.withheld = True, withheld
        self.error = self.failure = None

    def part(self) -> None:
        """Send what waits, and the end of the stream, and let the transport go."""
        self.parting = True
        self._stopped(None)

    def let_go(self) -> None:
        """Send into no transport."""
        self.transport = self._writable = None
        self.preface_only = self.parting = self.blocked = False

    def wait_for_progress(self, hopeful: Callable[[], bool], timeout: float | None) -> None:
        """Wait until more has been sent, nothing waits, or there is no hope. Any thread may."""
        sent = self.frames_sent
        self._changed.wait_for(
            lambda: (
                self.frames_sent != sent
                or not self.backlog
                or self.seal is not None
                or not hopeful()
            ),
            timeout,
        )

    def _uses(self, transport: Transport) -> bool:
        return transport is self.transport

    def now_writable(self, transport: Transport) -> None:
        """Go on with a transport that may accept more. Any thread may call it."""
        self._writable = transport
        self._on_writable()

    def send_if_writable(self) -> None:
        """Send, unless the writer still waits for the transport."""
        if not self.blocked or self._writable is self.transport:
            self.send()

    @property
    def ready(self) -> bool:
        """Whether `send` can send all waiting frames."""
        return self.transport is not None and not self.preface_only and not self.blocked

    @property
    def busy(self) -> bool:
        """Whether there is more to do than to send frames: to go on, or to end the stream."""
        return self.blocked or self.parting or self.seal is not None

    def send_all(self, data: bytes) -> bool:
        """Send the whole backlog, if no byte of it has been sent or counted before.

        Does what `send_some` does for the usual case, in as few steps as possible: every reply goes
        through here.

        Args:
            data: the frames of the backlog, joined.

        Returns:
            whether the kernel accepted all of it. If not, ``failure`` may be set.
        """
        started = monotonic()
        accepted = self.pass_on(data)
        now = monotonic()
        return self.count_all(len(data), accepted, now, now - started)

    def send_alone(self, frame: bytes, now: float) -> bool:
        """Do as `send_all` does with the only frame of the backlog, outside of handlers.

        Args:
            now: the time, monotonic.
        """
        backlog = self.backlog
        transport: Any = self.transport
        size = backlog.size = len(frame)
        transport.answers.clear()
        backlog.journal = True
        try:
            accepted = transport.send(frame)
        except OSError as error:
            backlog.journal = None
            self.failure = error
            return False
        if accepted != size or backlog.tracked:
            return self.count_all(size, accepted, now, 0.0)
        backlog.frames.clear()
        backlog.size = 0
        backlog.journal = None
        self.last_sent = now
        self.bytes_sent += size
        self.frames_sent += 1
        return True

    def pass_on(self, data: bytes) -> int:
        """Do the first half of `send_all`; `count_all` has to follow.

        Returns:
            how many bytes the kernel accepted; -1 if it refuses all, then ``failure`` is set.
        """
        backlog = self.backlog
        transport: Any = self.transport  # there is one
        backlog.size = len(data)
        transport.answers.clear()
        backlog.journal = True
        try:
            accepted: int = transport.send(data)
            return accepted
        except OSError as error:
            backlog.journal = None
            self.failure = error
            return -1

    def count_all(self, size: int, accepted: int, now: float, seconds: float) -> bool:
        """Do the second half of `send_all`: count what was accepted of the backlog.

        Args:
            size: how many bytes were passed on.
            now: when they were, monotonic.
            seconds: how long that took.
        """
        backlog = self.backlog
        if accepted == size:
            if backlog.tracked:
                backlog.mark_sent()
            frames = backlog.frames
            count = len(frames)
            frames.clear()
            backlog.size = 0
            backlog.journal = None
            self.last_sent = now
            self.send_time += seconds
            self.bytes_sent += size
            self.frames_sent += count
            return True
        if accepted >= 0:
            self.frames_sent += backlog.forget(accepted)
            self.bytes_sent += accepted
        return False

    def send_rest(self) -> None:
        """Go on after `send_all` did not send everything."""
        error = self.failure
        if error is None:
            self.send()
        else:
            self.give_up(error)
            self.failure = None

    def send(self) -> None:
        """Send as much as the kernel accepts, and leave the rest to the writer."""
        transport, backlog = self.transport, self.backlog
        if transport is None:
            return
        try:
            if transport.keeps and not transport.push():
                self._block(transport)
                return
            while data := backlog.next_bytes(self.preface_only):
                if not self._send_some(transport, data):
                    self._block(transport)
                    return
                self._changed.notify_all()
            self.blocked = False
        except OSError as error:
            self.give_up(error)

    def send_end(self, *, final: bool) -> None:
        """Send the end of the stream, unless something waits that is to be sent before it.

        Args:
            final: whether it is the end for good; otherwise the transport is let go, unless it may
                have to send all that again.
        """
        transport = self.transport
        if transport is None or self.fin_sent or self.blocked or self._to_be_sent:
            return
        try:
            if not transport.shutdown_write():
                self._block(transport)
                return
            if final:
                self.fin_sent = True
            elif not transport.resends:
                self.let_go()
            self.parting = False
            self._changed.notify_all()
        except OSError as error:
            self.give_up(error)

    @property
    def _to_be_sent(self) -> bool:
        """Whether anything waits that is to be sent before the end."""
        backlog = self.backlog
        return bool(backlog.preface_frames if self.preface_only and self.withheld else backlog)

    def _send_some(self, transport: Transport, data: bytes | memoryview) -> int:
        """Send as many of the next bytes as the kernel accepts; return their number.

        Raises:
            OSError: the connection is broken.
        """
        transport.answers.clear()
        started = monotonic()
        self.backlog.journal = True
        try:
            accepted = transport.send(data)
        except OSError:
            self.backlog.journal = None
            raise
        frames = self.backlog.forget(accepted)
        now = monotonic()
        self.send_time += now - started
        if accepted:
            self.last_sent = now
            self.bytes_sent += accepted
            self.frames_sent += frames
        return accepted

    def _block(self, transport: Transport) -> None:
        """Leave the rest to the writer thread."""
        self.writer.start()  # if that raises, the next write tries again
        self._stopped(None)
        self._writable = None
        # Either the wait begins now, or the socket was writable a moment ago: with TLS, the kernel
        # may accept bytes for a long time before it has all that a frame was encrypted to.
        self.last_sent = monotonic()
        self.writer.wait_for(transport)
        self.blocked = True

    def give_up(self, error: OSError) -> None:
        """Abort the transport, which accepts nothing any more."""
        if self.error is None:
            self.error = error
        if self.transport is not None:
            self.transport.abort()
        self.blocked = False
        self._stopped(error)
        self.transport = None
        self._changed.notify_all()

    def repair(self) -> None:
        """Finish an interrupted operation, or give the transport up if that is impossible."""
        if self.backlog.repair():
            accepted = None if self.transport is None else self.transport.settle()
            if accepted is None:
                self.give_up(ConnectionAbortedError(_INTERRUPTED))
                self.backlog.journal = None
            else:
                self.bytes_sent += accepted
                self.frames_sent += self.backlog.forget(accepted)
                self._changed.notify_all()

    def first_untouched(self) -> int:
        """Return the index of the first of ``backlog.frames`` with no byte sent."""
        transport = self.transport
        return self.backlog.first_untouched(0 if transport is None else transport.committed_bytes)
