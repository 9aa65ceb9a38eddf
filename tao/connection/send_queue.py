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
frame in the intake, the seal, a failure in ``_failures``. Then the thread tries to get
the turn, and `_advance` does whatever is due.

A thread that writes while nothing waits sends at once, without blocking. Only what the kernel does
not accept is left to the writer thread, which waits for the socket outside of any turn; from then
on all frames queue up. While a batch of messages is handled, small frames are only collected in
the intake, so that the replies are sent together.

What an exception interrupted is repaired by the thread that it hit or, if not even that is possible
because the stack is full, by the next thread that has the turn: the backlog's journal says what was
being done, and `Transport.settle` how much the kernel has accepted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tao.connection.backlog import UNCOUNTED, TrackedFrame, move
from tao.connection.intake import Intake
from tao.connection.send_limits import COLLECTED_FRAME, SendLimits
from tao.connection.transmitter import Transmitter
from tao.errors import ConnectionClosed, WouldBlock
from tao.runtime.combining import Combiner
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import Notifier
from tao.transport.error_text import explain
from tao.transport.stream import Transport

__all__ = ["SendQueue"]


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
        "_collect_most",
        "_collecting",
        "_combiner",
        "_failures",
        "_final",
        "_frames",
        "_intake",
        "_keep",
        "_limit",
        "_open",
        "_room",
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
        limits = SendLimits(limit, limit_bytes, slow_consumer)
        self._limit: int = limit
        self._collect_most: int = limits.collected
        self._keep: bool = keep
        self._room = Notifier()  # for threads that wait for room, or for the end
        self._combiner = Combiner(self._advance, self._repair, self._room.notify_all)
        # The thread that has the turn owns the transmitter, the backlog and `_open`. Any thread may
        # set the others, or append to them, in one step, and settles afterwards.
        self.transmitter = Transmitter(  #: has the transport and the figures
            start_writer, self._combiner.settle, self._stopped, self._room
        )
        self._backlog = self.transmitter.backlog
        self._open: bool = False  # whether there is a transport, after its preface, and no seal
        self._intake = Intake(limits, self.transmitter)
        self._frames = self._intake.frames
        self._failures: deque[tuple[OSError, Transport | None]] = deque()  # see give_up
        self._final: bool = False  # whether the seal holds for the next transport as well
        self._collecting: bool = False

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
            and len(self._frames) < self._collect_most
        ):
            self._frames.append(frame)
            if not self._collecting:  # it ended meanwhile, and the frame may have been overlooked
                self._intake.check_sealed(frame, self._frames)  # type: ignore[unreachable]
                self._combiner.settle()
            return
        if timeout:
            self._write_patiently(frame, Deadline(timeout))
            return
        combiner = self._combiner
        turn = combiner.turn
        if turn._is_owned():  # by a write that this call has interrupted, and which will go on
            self._intake.hand_in(frame)
            combiner.due = True
            return
        try:
            if turn.acquire(False):
                backlog = self._backlog
                if self._open and frame and not backlog.size and not self._frames:
                    backlog.size = UNCOUNTED
                    backlog.frames.append(frame)
                    if not self.transmitter.send_all(frame):
                        self._send_rest()
                        self._check_broken(frame)
                else:
                    self._write_in_turn(frame)
                turn.release()
                if not (combiner.due or self._frames or self._failures):
                    return
            else:
                self._intake.hand_in(frame)
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
        self._intake.take_in()
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
        return self._intake.waiting

    @property
    def bytes_waiting(self) -> int:
        """How many bytes wait in the backlog that the kernel has not accepted."""
        return self._backlog.waiting

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full, and there is a peer that can change that.

        Always false if a full queue drops frames or closes the connection.
        """
        return bool(self._backlog.size or self._frames) and self._intake.crowded

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

    def when_crowded(self, function: Callable[[], object]) -> None:
        """Have any thread call a function when the queue is `crowded`. It may only note that."""
        self._intake.on_crowded = function

    @property
    def error(self) -> OSError | None:
        """What broke the transport."""
        return self.transmitter.error

    @property
    def blocked(self) -> bool:
        """Whether the kernel is full: the peer reads too slowly, or not at all."""
        return self.transmitter.blocked

    @property
    def fin_sent(self) -> bool:
        """Whether everything is sent, and the peer has been told the end."""
        return self.transmitter.fin_sent

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

    @property
    def dropped(self) -> int:
        """How many frames the policy has dropped."""
        return self._intake.dropped

    # -- for the thread that handles a batch

    def collect(self) -> None:
        """Collect small frames until `release`, or until there are many."""
        # Where frames wait already, the writer sends them together anyway.
        self._collecting = self._open and not self.transmitter.blocked
        if self.transmitter.seal is not None:  # it was sealed meanwhile
            self._collecting = False

    def release(self) -> None:
        """Send what was collected, and collect nothing more."""
        self._collecting = False
        if self._frames:
            self._combiner.settle()

    def flush(self) -> None:
        """Send what was collected so far."""
        if self._frames:
            self._combiner.settle()

    # -- for the connection

    def attach(self, transport: Transport) -> None:
        """Send into this transport from now on.

        Until `open`, only frames that the calling thread writes are sent: the preface. It precedes
        all frames that wait, so that a login, say, is the first message on every new connection.
        """
        self._combiner.run(self._attach, transport)

    def _attach(self, transport: Transport) -> None:
        self._intake.preface_thread = threading.get_ident()
        self.transmitter.attach(transport)

    def open(self) -> None:
        """End the preface and send what waits."""
        self._combiner.run(self._end_preface)

    def _end_preface(self) -> None:
        self._intake.preface_thread = None
        transmitter = self.transmitter
        transmitter.preface_only = False
        self._open = transmitter.transport is not None and self.transmitter.seal is None
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
            self.transmitter.seal = None
        return dropped

    def seal(self, reason: str) -> None:
        """Refuse further writes; when everything is sent, tell the peer that no more follows."""
        if self.transmitter.seal is None:
            self.transmitter.seal = reason
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
            lambda: transmitter.fin_sent or transmitter.transport is None, deadline.remaining()
        )
        return transmitter.fin_sent

    def give_up(self, error: OSError, transport: Transport | None = None) -> None:
        """Abort the transport, because it is broken or the peer accepts nothing.

        If a transport is given, nothing happens to another one that came after it.
        """
        self._failures.append((error, transport))
        self._combiner.settle()

    def stop(self) -> tuple[int, int]:
        """End the writer thread; return how many frames, and bytes, were never sent.

        Everything is sent, or the transport is aborted. Afterwards no thread is in the transport.
        """
        self.transmitter.writer.stop()
        self._leave()
        return len(self._backlog), self._backlog.waiting

    def run_writer(self) -> None:
        """The function of the writer thread: send what the kernel did not accept at once."""
        self.transmitter.writer.run()

    def renew_turn(self) -> None:
        """In a child process: no thread has the turn."""
        self._combiner.after_fork()

    def after_fork(self, reason: str) -> None:
        """In a child process: become the send queue of a connection that has ended."""
        self.renew_turn()
        self._collecting = self._open = False
        self.transmitter.seal, self._final = self.transmitter.seal or reason, True
        self._failures.clear()
        self._intake.clear()
        self.transmitter.let_go()
        self._backlog.clear()

    # -- in the turn

    def _repair(self) -> None:
        self.transmitter.repair()

    def _advance(self) -> None:
        """Do all that is due. Needs the turn."""
        frames, backlog, transmitter = self._frames, self._backlog, self.transmitter
        if self._open and not backlog.size and 0 < len(frames) <= self._limit:  # of a batch
            backlog.size = UNCOUNTED
            move(frames, backlog.frames)
            if not transmitter.send_all(b"".join(backlog.frames)):
                self._send_rest()
        self._intake.take_in()
        while self._failures:
            error, transport = self._failures[0]
            if transport is None or transport is transmitter.transport:
                transmitter.give_up(error)
            self._failures.popleft()
        if self.transmitter.seal is not None:
            self._room.notify_all()
        transmitter.send_if_writable()

    def _send_rest(self) -> None:
        """Go on after `Transmitter.send_all` did not send everything. Needs the turn."""
        self.transmitter.send_rest()
        self._intake.check_crowded()

    def _stopped(self, error: OSError | None) -> None:
        """Note that nothing can be sent for now or, with an error, on this transport."""
        self._collecting = False
        if error is None:
            return
        self._open = False
        if not self._keep and self.transmitter.seal is None:
            self.transmitter.seal = explain(error)

    def _leave(self) -> None:
        """Take the transport away, and wait for the writer thread, which may still be in it."""
        self._combiner.run(self._let_go)
        self.transmitter.writer.wait_left()

    def _let_go(self) -> None:
        self._collecting = self._open = False
        self.transmitter.let_go()
        self._intake.preface_thread = None
        self._intake.take_in()
        self._room.notify_all()

    def _write_in_turn(self, frame: bytes, patiently: bool = False) -> None:
        """Queue a frame, and send what can be sent, see `Intake.line_up`. Needs the turn."""
        self._intake.take_in()
        self._intake.line_up(frame, patiently)
        self._check_broken(frame)

    def _check_broken(self, frame: bytes) -> None:
        """Raise if the frame that was added last cannot be sent any more. Needs the turn."""
        if self.transmitter.error is not None and not self._keep:
            self._backlog.take_back(frame)
            raise ConnectionClosed(self.transmitter.seal or "connection broken")

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
