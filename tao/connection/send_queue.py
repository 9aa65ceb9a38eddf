"""The send queue of one connection: order, limits, and as few system calls as possible.

Guarantees:

- Frames are sent in the order of the calls of `SendQueue.write`, each as a whole; the bytes of two
  never mix.
- The queue never holds more frames than its limit, nor more bytes except for a single frame that is
  larger. A preface (see `SendQueue.attach`) has limits of its own. Threads that write at the very
  same moment may exceed the limit by one frame each.
- `write` does not block unless it is given a timeout.
- A frame is forgotten only when the kernel has accepted all of it. If the transport breaks, what is
  left is kept, from the first frame that is not completely sent, for the next transport or for the
  report.
- A write may be called from anywhere, even by a signal handler or a finalizer that interrupts
  another one, and an exception may be raised between any two of its bytecodes. Afterwards its frame
  is queued or sent as a whole, or not at all, or the connection is aborted with that as its reason.

Mechanism: flat combining, see ``runtime/combining.py``. What a thread wants is noted in one step: a
frame in ``_intake``, the end in ``_seal``, a failure in ``_failures``. Then the thread tries to get
the turn, and `_advance` does whatever is due.

A thread that writes while nothing waits sends at once, without blocking. Only what the kernel does
not accept is left to the writer thread, which waits for the socket outside of any turn; from then
on all frames queue up. While a batch of messages is handled, small frames are only collected in
``_intake``, so that the replies are sent together.

What an exception interrupted is repaired by the thread that it hit or, if not even that is possible
because the stack is full, by the next thread that has the turn: the backlog's journal says what was
being done, and `Transport.settle` how much the kernel has accepted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tao.connection.backlog import UNCOUNTED, TrackedFrame, move
from tao.connection.send_limits import COLLECTED_FRAME, SendLimits
from tao.connection.transmitter import Transmitter
from tao.connection.writer import Writer
from tao.errors import ConnectionClosed, TaoError, WouldBlock
from tao.runtime.combining import Combiner
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import Notifier
from tao.transport.error_text import explain
from tao.transport.stream import Transport

__all__ = ["SendQueue"]

_INTERRUPTED = "a write was interrupted, and it is not known how much of it was sent"


class SendQueue:
    """A queue of frames that empties itself into a transport.

    Any thread may call `write`, `withdraw`, `seal`, `give_up`, `release` and `flush`. The other
    methods are for the connection's own threads.

    Args:
        limit: how many frames may wait.
        start_writer: starts the thread that runs `run_writer`; called when it is first needed, and
            again only if it raised.
        slow_consumer: what a write to a full queue does: ``"raise"`` raises `WouldBlock`,
            ``"drop_newest"`` and ``"drop_oldest"`` drop a frame and count it, ``"close"`` aborts
            the connection.
        keep: whether frames written without a transport wait for the next one.
        limit_bytes: how many bytes may wait, as well as ``limit``; None for any number.
    """

    __slots__ = (
        "_backlog",
        "_blocked",
        "_collect_most",
        "_collecting",
        "_combiner",
        "_failures",
        "_fin_sent",
        "_final",
        "_intake",
        "_keep",
        "_limits",
        "_open",
        "_preface_intake",
        "_preface_thread",
        "_room",
        "_seal",
        "_writable",
        "_writer",
        "dropped",
        "error",
        "on_crowded",
        "transmitter",
    )  # fmt: skip

    def __init__(
        self,
        limit: int,
        start_writer: Callable[[], None],
        *,
        slow_consumer: str = "raise",
        keep: bool = False,
        limit_bytes: int | None = None,
    ) -> None:
        self._limits = SendLimits(limit, limit_bytes, slow_consumer)
        self._collect_most: int = self._limits.collected
        self._keep: bool = keep
        self._room = Notifier()  # for threads that wait for room, or for the end
        self._combiner = Combiner(self._advance, self._repair, self._room.notify_all)
        # Any thread appends to these or assigns them, in one step, and settles afterwards.
        self._intake: deque[bytes] = deque()
        self._preface_intake: deque[bytes] = deque()
        self._failures: deque[tuple[OSError, Transport | None]] = deque()  # see give_up
        self._seal: str | None = None  # why nothing may be written
        self._final: bool = False  # whether that holds for the next transport as well
        self._writable: Transport | None = None  # the transport that the writer last waited for
        self._collecting: bool = False
        # The thread that has the turn owns all fields below.
        self.transmitter = Transmitter()  #: has the figures and the transport
        self._backlog = self.transmitter.backlog
        self._open: bool = False  # whether there is a transport, after its preface, and no seal
        self._blocked: bool = False  # whether the kernel is full, and the writer waits for it
        self._preface_thread: int | None = None  # the thread that writes the preface, see attach
        self._fin_sent: bool = False
        self.error: OSError | None = None  #: what broke the transport
        self.dropped: int = 0  #: how many frames the policy has dropped
        #: Called by any thread when the queue is more than half full. It may only note that.
        self.on_crowded: Callable[[], object] = bool
        self._writer = Writer(start_writer, self.transmitter, self._now_writable, self._room)

    # -- for any thread

    def write(self, frame: bytes, timeout: float | None = None) -> None:
        """Send or queue a frame.

        Args:
            frame: one whole message.
            timeout: seconds to wait for room; None does not wait. A call that interrupts another
                one on the same thread does not wait either: only the other one could make room.

        Raises:
            WouldBlock: there was no room, or not in time; the frame was not queued.
            ConnectionClosed: nothing can be sent any more; the frame was not queued.
        """
        if (
            self._collecting
            and 0 < len(frame) < COLLECTED_FRAME
            and len(self._intake) < self._collect_most
        ):
            self._intake.append(frame)
            if not self._collecting:  # it ended meanwhile, and the frame may have been overlooked
                self._check_sealed(frame, self._intake)  # type: ignore[unreachable]
                self._combiner.settle()
            return
        if timeout:
            self._write_patiently(frame, Deadline(timeout))
            return
        combiner = self._combiner
        turn = combiner.turn
        if turn._is_owned():  # by a write that this call has interrupted, and which will go on
            self._hand_in(frame)
            combiner.due = True
            return
        try:
            if turn.acquire(False):
                backlog = self._backlog
                if self._open and frame and not backlog.size and not self._intake:
                    backlog.size = UNCOUNTED
                    backlog.frames.append(frame)
                    if not self.transmitter.send_all(frame):
                        self._send_rest()
                        self._check_broken(frame)
                else:
                    self._write_in_turn(frame)
                turn.release()
                if not (combiner.due or self._intake or self._failures):
                    return
            else:
                self._hand_in(frame)
            combiner.settle()
        except BaseException:
            try:
                combiner.recover()
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                if turn._is_owned():
                    turn.release()
            raise

    def reply(self, frame: bytes, timeout: float) -> None:
        """Write for a handler: wait for room, but only as long as there is a transport.

        Without one, room comes with the next transport, which is not made while a handler runs.
        """
        connected = lambda: self.transmitter.transport is not None  # noqa: E731
        self._write_patiently(frame, Deadline(timeout), connected)

    def tracked(self, frame: bytes) -> TrackedFrame:
        """Return a frame for `write` that can be withdrawn."""
        self._backlog.tracked = True
        return TrackedFrame(frame)

    def withdraw(self, frame: TrackedFrame) -> bool:
        """Take a frame back; return whether the kernel does not have all of it, and never will.

        A signal handler or finalizer that calls it in the midst of a write to the same connection
        on this thread changes nothing and gets False.
        """
        combiner = self._combiner
        return not combiner.interrupted_here and combiner.run(self._withdraw, frame)

    def _withdraw(self, frame: TrackedFrame) -> bool:
        self._take_in()
        index = self._backlog.find(frame)
        if index is not None and self.transmitter.transport is None:
            self._backlog.rewind()
        if index is not None and index >= self.transmitter.first_untouched():
            self._backlog.remove(index)
            index = None
        self._room.notify_all()
        return index is None and not frame.sent

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return len(self._backlog) + len(self._intake) + len(self._preface_intake)

    @property
    def bytes_waiting(self) -> int:
        """How many bytes wait in the backlog that the kernel has not accepted."""
        return self._backlog.waiting

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full, and there is a peer that can change that.

        Always false if a full queue drops frames or closes the connection.
        """
        if (
            not self._limits.raises
            or not (self._backlog.size or self._intake)
            or self.transmitter.transport is None
        ):
            return False
        return self._limits.more_than_half(self.waiting, self._backlog.waiting)

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of its turn."""
        return self._combiner.interrupted_here

    @property
    def waiters(self) -> int:
        """How many threads wait for room in the queue, or for its end."""
        return self._room.waiting

    def wait_uncrowded(self) -> None:
        """Wait while the queue is more than half full. It may return early."""
        self._room.wait_for(lambda: not self.crowded)

    @property
    def frames_sent(self) -> int:
        """How many frames the kernel has accepted."""
        return self.transmitter.frames_sent

    @property
    def bytes_sent(self) -> int:
        """How many bytes the kernel has accepted."""
        return self.transmitter.bytes_sent

    @property
    def last_sent(self) -> float:
        """When the kernel last accepted bytes, or began to refuse them (``time.monotonic``)."""
        return self.transmitter.last_sent

    # -- for the thread that handles a batch

    def collect(self) -> None:
        """Collect small frames until `release`, or until there are many."""
        # Where frames wait already, the writer sends them together anyway.
        self._collecting = self._open and not self._blocked
        if self._seal is not None:  # it was sealed meanwhile
            self._collecting = False

    def release(self) -> None:
        """Send what was collected, and collect nothing more."""
        self._collecting = False
        if self._intake:
            self._combiner.settle()

    def flush(self) -> None:
        """Send what was collected so far."""
        if self._intake:
            self._combiner.settle()

    # -- for the connection

    def attach(self, transport: Transport) -> None:
        """Send into this transport from now on.

        Until `open`, only frames that the calling thread writes are sent: the preface. It precedes
        all frames that wait, so that a login, say, is the first message on every new connection.
        """
        self._combiner.run(self._attach, transport)

    def _attach(self, transport: Transport) -> None:
        self.transmitter.transport = transport
        self._preface_thread = threading.get_ident()
        self.error = self.transmitter.failure = None

    def open(self) -> None:
        """End the preface and send what waits."""
        self._combiner.run(self._end_preface)

    def _end_preface(self) -> None:
        self._preface_thread = None
        self._open = self.transmitter.transport is not None and self._seal is None
        self._advance()

    def detach(self) -> int:
        """Take away an aborted transport; when this returns, no thread is in it.

        Frames that are not completely sent are kept, except those of the preface: the next
        transport begins with a new one.

        Returns:
            how many frames of the preface were dropped.
        """
        self._leave()
        dropped = self._combiner.run(self._backlog.rewind)
        if not self._final:
            self._seal = None
        return dropped

    def seal(self, reason: str) -> None:
        """Refuse further writes; when everything is sent, tell the peer that no more follows."""
        if self._seal is None:
            self._seal = reason
        self._final = True
        self._collecting = self._open = False
        self._combiner.settle()

    def wait_sent(self, deadline: Deadline) -> bool:
        """Wait until everything is sent and the peer has been told, or nothing can be sent.

        Returns:
            whether everything is sent.
        """
        transmitter = self.transmitter
        self._room.wait_for(
            lambda: self._fin_sent or transmitter.transport is None, deadline.remaining()
        )
        return self._fin_sent

    def give_up(self, error: OSError, transport: Transport | None = None) -> None:
        """Abort the transport, because it is broken or the peer accepts nothing.

        If a transport is given, nothing happens to another one that came after it.
        """
        self._failures.append((error, transport))
        self._combiner.settle()

    @property
    def blocked(self) -> bool:
        """Whether the kernel is full: the peer reads too slowly, or not at all."""
        return self._blocked

    @property
    def fin_sent(self) -> bool:
        """Whether everything is sent, and the peer has been told that nothing more follows."""
        return self._fin_sent

    def stop(self) -> tuple[int, int]:
        """End the writer thread; return how many frames, and bytes, were never sent.

        Everything is sent, or the transport is aborted. Afterwards no thread is in the transport.
        """
        self._writer.stop()
        self._leave()
        return len(self._backlog), self._backlog.waiting

    def run_writer(self) -> None:
        """The function of the writer thread: send what the kernel did not accept at once."""
        self._writer.run()

    def _now_writable(self, transport: Transport) -> None:
        self._writable = transport
        self._combiner.settle()

    def renew_turn(self) -> None:
        """In a child process: no thread has the turn."""
        self._combiner.after_fork()

    def after_fork(self, reason: str) -> None:
        """In a child process: become the send queue of a connection that has ended."""
        self.renew_turn()
        self.transmitter.transport = self._writable = None
        self._collecting = self._open = self._blocked = False
        self._seal, self._final = self._seal or reason, True
        for frames in (self._intake, self._preface_intake, self._failures):
            frames.clear()
        self._backlog.clear()

    # -- in the turn

    def _repair(self) -> None:
        """Finish the step that was interrupted, or give the transport up. Needs the turn."""
        if not self.transmitter.repair():
            self._break(ConnectionAbortedError(_INTERRUPTED))
            self._backlog.journal = None

    def _advance(self) -> None:
        """Do all that is due. Needs the turn."""
        intake, backlog = self._intake, self._backlog
        # Usually these are the replies of a batch.
        if self._open and not backlog.size and 0 < len(intake) <= self._limits.frames:
            backlog.size = UNCOUNTED
            move(intake, backlog.frames)
            if not self.transmitter.send_all(b"".join(backlog.frames)):
                self._send_rest()
        self._take_in()
        while self._failures:
            error, transport = self._failures[0]
            if transport is None or transport is self.transmitter.transport:
                self._break(error)
            self._failures.popleft()
        if self._seal is not None:
            self._room.notify_all()
        if not self._blocked or self._writable is self.transmitter.transport:
            self._send()

    def _take_in(self) -> None:
        """Queue what was noted or collected. Needs the turn."""
        backlog = self._backlog
        if backlog.journal is not None or backlog.size < 0:
            self._repair()  # the thread that was interrupted could not do so
        if self._preface_intake:
            move(self._preface_intake, backlog.preface_frames)
            backlog.recount()
        if self._intake:
            if not self._limits.raises and self.waiting > self._limits.frames:
                self._take_in_singly()
                return
            backlog.take(self._intake)
            if self.crowded:
                self.on_crowded()

    def _take_in_singly(self) -> None:
        """Queue what was noted, as far as there is room. Needs the turn."""
        while self._intake:
            try:
                self._line_up(self._intake.popleft())
            except TaoError:
                self.dropped += 1

    def _send(self) -> None:
        """Send what the kernel accepts, and leave the rest to the writer. Needs the turn."""
        transmitter, backlog = self.transmitter, self._backlog
        transport = transmitter.transport
        if transport is None:
            return
        try:
            while data := backlog.next_bytes(self._preface_thread is not None):
                if not transmitter.send_some(transport, data):
                    self._block(transport)
                    return
                self._room.notify_all()
            if self._seal is not None and not backlog and not self._fin_sent:
                if not transport.shutdown_write():
                    self._block(transport)
                    return
                self._fin_sent = True
                self._room.notify_all()
            self._blocked = False
        except OSError as error:
            self._break(error)

    def _send_rest(self) -> None:
        """Go on after `Transmitter.send_all` did not send everything. Needs the turn."""
        error = self.transmitter.failure
        if error is not None:
            self._break(error)
            self.transmitter.failure = None
            return
        self._send()
        if self.crowded:
            self.on_crowded()

    def _block(self, transport: Transport) -> None:
        """Leave the rest to the writer thread. Needs the turn."""
        self._writer.start()  # if that raises, the next write tries again
        self._collecting = False
        self._writable = None
        # Either the wait begins now, or the socket was writable a moment ago: with TLS, the kernel
        # may accept bytes for a long time before it has all that a frame was encrypted to.
        self.transmitter.wait_begins()
        self._writer.wait_for(transport)
        self._blocked = True

    def _break(self, error: OSError) -> None:
        """Abort the transport, which accepts nothing any more. Needs the turn."""
        if self.error is None:
            self.error = error
        if self.transmitter.transport is not None:
            self.transmitter.transport.abort()
        self._blocked = False
        self._collecting = self._open = False
        if not self._keep and self._seal is None:
            self._seal = explain(error)
        self.transmitter.transport = None
        self._room.notify_all()

    def _leave(self) -> None:
        """Take the transport away, and wait for the writer thread, which may still be in it."""
        self._combiner.run(self._let_go)
        self._writer.wait_left()

    def _let_go(self) -> None:
        self.transmitter.transport = None
        self._preface_thread = None
        self._collecting = self._open = False
        self._take_in()
        self._blocked = False
        self._room.notify_all()

    # -- writing

    def _write_in_turn(self, frame: bytes, patiently: bool = False) -> None:
        """Queue a frame, and send what can be sent. Needs the turn.

        Args:
            patiently: whether to raise `WouldBlock` if there is no room, whatever the policy is.
        """
        self._take_in()
        self._line_up(frame, patiently)
        self._check_broken(frame)

    def _check_broken(self, frame: bytes) -> None:
        """Raise if the frame that was added last cannot be sent any more. Needs the turn."""
        if self.error is not None and not self._keep:
            self._backlog.take_back(frame)
            raise ConnectionClosed(self._seal or "connection broken")

    def _hand_in(self, frame: bytes) -> None:
        """Note a frame for the thread that has the turn."""
        if self._seal is not None:
            raise ConnectionClosed(self._seal)
        preface = self._preface_thread == threading.get_ident()
        if self._limits.raises:
            if self._full(len(frame), preface):
                raise self._would_block()
        elif len(self._intake) >= self._limits.frames:
            self.dropped += 1
            return
        intake = self._preface_intake if preface else self._intake
        if frame:
            intake.append(frame)
            self._check_sealed(frame, intake)
            if self.crowded:
                self.on_crowded()

    def _check_sealed(self, frame: bytes, intake: deque[bytes]) -> None:
        """Raise if a frame was noted too late, after nothing may be written any more."""
        if self._seal is not None:
            try:
                intake.remove(frame)
            except ValueError:
                return  # it was in time
            raise ConnectionClosed(self._seal)

    def _line_up(self, frame: bytes, patiently: bool = False) -> None:
        """Add a frame to the backlog, or drop one. Needs the turn."""
        size, preface = len(frame), self._preface_thread == threading.get_ident()
        while self._seal is None and self._full(size, preface):
            can_send = self.transmitter.transport is not None and self._preface_thread is None
            if can_send and not self._blocked:
                self._send()  # what was collected; afterwards it is sent, blocked or broken
            elif patiently:
                raise self._would_block()
            elif not self._make_room(size):
                return
        if self._seal is not None:
            raise ConnectionClosed(self._seal)
        if not frame:
            return  # if the kernel accepts nothing of it, that would look like a full one
        self._backlog.append(frame, preface=preface)
        if not self._blocked:
            self._send()
        if self.crowded:
            self.on_crowded()

    def _full(self, size: int, preface: bool) -> bool:
        """Whether there is no room for a frame, in the preface or after it."""
        backlog, limits = self._backlog, self._limits
        waiting, intake = (
            (backlog.preface_frames, self._preface_intake)
            if preface
            else (backlog.frames, self._intake)
        )
        lane_size = 0 if limits.size is None else backlog.lane_size(preface)
        return limits.exceeded(len(waiting) + len(intake), lane_size, size)

    def _make_room(self, size: int) -> bool:
        """Do what the policy says about a full queue; False: drop the new frame. Needs the turn."""
        limits, backlog = self._limits, self._backlog
        if limits.drops:
            self.dropped += 1
            if not limits.drops_oldest:
                return False
            oldest = self.transmitter.first_untouched()
            if oldest == len(backlog.frames) or not backlog.would_fit(size, limits.size, oldest):
                return False
            backlog.remove(oldest)
            return True
        if not limits.raises and self.transmitter.transport is not None:
            self._break(TimeoutError("send queue full: the peer reads too slowly"))
            return True
        raise self._would_block()

    def _would_block(self) -> WouldBlock:
        return self._limits.would_block(self.waiting, self.bytes_waiting)

    def _write_patiently(
        self, frame: bytes, deadline: Deadline, hopeful: Callable[[], bool] = lambda: True
    ) -> None:
        """Write as soon as there is room; at the deadline, or without hope, as `write` does."""
        written = False

        def done() -> bool:
            nonlocal written
            written = written or (hopeful() and self._write_if_room(frame))
            return written or not hopeful()

        if not self._combiner.interrupted_here:
            self._room.wait_for(done, deadline.remaining())
        if not written:
            self.write(frame)

    def _write_if_room(self, frame: bytes) -> bool:
        """Write a frame; return False if there was no room."""
        try:
            self._combiner.run(self._write_in_turn, frame, True)
            return True
        except WouldBlock:
            return False
