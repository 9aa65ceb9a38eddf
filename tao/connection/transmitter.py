"""Giving the frames of a backlog to the kernel, and keeping account of what it accepted.

One thread at a time may use it, see ``send_queue.py``; any thread may read the figures. While the
kernel may have accepted more than the backlog says, the backlog's journal is set, so that `repair`
can put right what an exception interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from tao.connection.backlog import Backlog
from tao.connection.writer import Writer
from tao.runtime.wakeup import Notifier
from tao.transport.stream import Transport

__all__ = ["Transmitter"]

_INTERRUPTED = "a write was interrupted, and it is not known how much of it was sent"


class Transmitter:
    """A backlog on its way into one transport after another.

    Args:
        start_writer: starts the thread that runs ``writer.run``, see `Writer`.
        on_writable: called by that thread when the transport may accept more.
        stopped: called when nothing can be sent for now or, with an error, on this transport.
        changed: notified when frames have been sent, or can be sent no longer.
    """

    __slots__ = (
        "_changed", "_on_writable", "_stopped", "_writable", "backlog", "blocked", "bytes_sent",
        "error", "failure", "fin_sent", "frames_sent", "last_sent", "preface_only", "seal",
        "send_time", "transport", "writer",
    )  # fmt: skip

    def __init__(
        self,
        start_writer: Callable[[], None],
        on_writable: Callable[[], None],
        stopped: Callable[[OSError | None], None],
        changed: Notifier,
    ) -> None:
        self._on_writable = on_writable
        self._stopped = stopped
        self._changed = changed
        self.backlog = Backlog()
        self.transport: Transport | None = None
        self._writable: Transport | None = None  # the one that the writer last waited for
        self.preface_only: bool = False  #: whether only frames of the preface may be sent
        #: Why nothing more may be written; the peer is told the end after the last frame.
        self.seal: str | None = None
        self.blocked: bool = False  #: whether the kernel is full, and the writer waits for it
        self.fin_sent: bool = False  #: whether the peer has been told the end
        self.error: OSError | None = None  #: what broke the transport
        self.failure: OSError | None = None  #: what `send_all` met
        #: When the kernel last accepted bytes, or began to refuse them (``time.monotonic``).
        self.last_sent: float = monotonic()
        self.send_time: float = 0.0  #: seconds that sending has taken
        self.frames_sent: int = 0
        self.bytes_sent: int = 0
        self.writer = Writer(start_writer, self._uses, self._now_writable, changed)

    def attach(self, transport: Transport) -> None:
        """Send into this transport from now on, the preface first."""
        self.transport = transport
        self.preface_only = True
        self.error = self.failure = None

    def let_go(self) -> None:
        """Send into no transport."""
        self.transport = self._writable = None
        self.preface_only = self.blocked = False

    def _uses(self, transport: Transport) -> bool:
        return transport is self.transport

    def _now_writable(self, transport: Transport) -> None:
        self._writable = transport
        self._on_writable()

    def send_if_writable(self) -> None:
        """Send, unless the writer still waits for the transport."""
        if not self.blocked or self._writable is self.transport:
            self.send()

    @property
    def ready(self) -> bool:
        """Whether `send` can send whatever waits."""
        return self.transport is not None and not self.preface_only and not self.blocked

    def send_all(self, data: bytes) -> bool:
        """Send the whole backlog, if nothing of it has been sent or counted before.

        Does what `send_some` does for the usual case, in as few steps as possible: every reply goes
        through here.

        Args:
            data: the frames of the backlog, joined.

        Returns:
            whether the kernel accepted all of it. If not, ``failure`` may be set.
        """
        backlog, transport = self.backlog, self.transport
        assert transport is not None
        backlog.size = size = len(data)
        transport.answers.clear()
        started = monotonic()
        backlog.journal = True
        try:
            accepted = transport.send(data)
        except OSError as error:
            backlog.journal = None
            self.failure = error
            return False
        if accepted == size:
            if backlog.tracked:
                backlog.mark_sent()
            count = len(backlog.frames)
            backlog.frames.clear()
            backlog.size = 0
            backlog.journal = None
            self.last_sent = now = monotonic()
            self.send_time += now - started
            self.bytes_sent += size
            self.frames_sent += count
            return True
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
        """Send what the kernel accepts, and leave the rest to the writer."""
        transport, backlog = self.transport, self.backlog
        if transport is None:
            return
        try:
            while data := backlog.next_bytes(self.preface_only):
                if not self._send_some(transport, data):
                    self._block(transport)
                    return
                self._changed.notify_all()
            if self.seal is not None and not backlog and not self.fin_sent:
                if not transport.shutdown_write():
                    self._block(transport)
                    return
                self.fin_sent = True
                self._changed.notify_all()
            self.blocked = False
        except OSError as error:
            self.give_up(error)

    def _send_some(self, transport: Transport, data: bytes | memoryview) -> int:
        """Send what the kernel accepts of the next bytes; return how many that were.

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
        """Finish what an exception interrupted, or give the transport up if that is impossible."""
        if self.backlog.repair():
            accepted = None if self.transport is None else self.transport.settle()
            if accepted is None:
                self.give_up(ConnectionAbortedError(_INTERRUPTED))
                self.backlog.journal = None
            else:
                self.bytes_sent += accepted
                self.frames_sent += self.backlog.forget(accepted)

    def first_untouched(self) -> int:
        """Return the index of the first of ``backlog.frames`` of which nothing has been sent."""
        transport = self.transport
        return self.backlog.first_untouched(0 if transport is None else transport.committed_bytes)
