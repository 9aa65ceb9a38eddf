"""The send queue of one connection: order, bounds, and as few system calls as can be.

Guarantees:

- Frames leave in the order of `SendQueue.write` calls, each whole; bytes of two never mix.
- The queue never holds more frames than its limit, nor more bytes unless it is one frame that does;
  those of a preface (see `SendQueue.attach`) have as much room of their own. Threads that write at
  the very same moment may exceed the limit by one frame each.
- `write` does not block unless it is given time to.
- A frame is forgotten only when the kernel has taken all of it. If the transport breaks, what is
  left is kept, from the first frame that is not wholly gone, for the next transport or the report.
- A write may be called from anywhere, also by a signal handler or a finalizer that interrupts
  another one, and an exception may be raised between any two bytecodes of it. Afterwards its frame
  is queued or sent as a whole, or it is not; or else the connection is given up, with the reason.

Mechanism: *flat combining* (Hendler, Incze, Shavit and Tzafrir, 2010). What a thread wants is first
noted where any thread may note it, in one step: a frame in ``_intake``, the wish to end in
``_seal``. Then the thread *tries* to take the turn. If it gets it, it does all that is due, by
`_advance`, for itself and for others, and looks once more after it has let go of the turn. If it
does not get it, the thread whose turn it is will see what was noted, and nobody waits. That thread
may be this one, interrupted in the midst of its turn.

Who writes while nothing waits sends at once, without blocking, and is done. Only what the kernel
does not take is left to the writer thread, which waits for the socket outside of any turn; from
then on all frames line up behind. While a batch of messages is being handled, small frames are only
collected in the intake, so that the replies leave together.

What an exception interrupts is repaired by the thread that it hits, or if that cannot even do so
(the stack is full), by the next that gets the turn: the backlog's journal says what
was under way, and `Transport.settle` how much the kernel has taken.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from tao.connection.backlog import UNCOUNTED, Backlog, TrackedFrame, move
from tao.errors import ConnectionClosed, TaoError, WouldBlock
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import Wakeup
from tao.transport.error_text import explain
from tao.transport.stream import Transport

__all__ = ["SendQueue", "Ticket"]

T = TypeVar("T")

# So many frames are collected at most, each shorter than so many bytes.
_COLLECT_FRAMES, _COLLECT_BYTES = 128, 16 * 1024
_INTERRUPTED = "a write was interrupted, and what the kernel took of it is not known"


class SendQueue:
    """A queue of frames that empties itself into a transport.

    Any thread may call `write`, `withdraw`, `seal`, `give_up`, `release` and `flush`. The others
    are for the connection's own threads.

    Args:
        limit: how many frames may wait.
        start_writer: starts the thread that runs `run_writer`; called when that is first needed,
            and again only if it raised.
        slow_consumer: what a write does when the queue is full: ``"raise"`` raises `WouldBlock`,
            ``"drop_newest"`` and ``"drop_oldest"`` drop a frame and count it, ``"close"`` seals the
            queue and gives up.
        keep: frames written while there is no transport wait for the next one.
        limit_bytes: how many bytes may wait, beside ``limit``; None: any number.
    """

    __slots__ = (
        "_backlog", "_blocked", "_collect_most", "_collecting", "_due", "_failures", "_final",
        "_holds_back", "_intake", "_intake_ahead", "_keep", "_limit", "_limit_bytes", "_open",
        "_polling", "_preface", "_seal", "_shut", "_slow_consumer", "_start_writer",
        "_transport", "_turn", "_waiters", "_writable", "_writer_started", "_writer_wanted",
        "bytes_sent", "dropped", "error", "frames_sent", "last_sent", "on_crowded", "send_time",
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
        self._limit: int = limit
        self._limit_bytes: int | None = limit_bytes
        self._slow_consumer: str = slow_consumer
        self._holds_back: bool = slow_consumer == "raise"
        self._start_writer = start_writer
        self._keep: bool = keep
        # Any thread appends to these, or assigns; each is one step. `_due` is set afterwards.
        self._intake: deque[bytes] = deque()
        self._intake_ahead: deque[bytes] = deque()  # of the preface
        self._failures: deque[tuple[OSError, Transport | None]] = deque()  # see give_up
        self._seal: str | None = None  # why nothing may be written
        self._final: bool = False  # ... nor on another transport
        self._writable: Transport | None = None  # the writer has waited for it
        self._collecting: bool = False
        self._waiters: deque[Wakeup] = deque()  # threads that wait for room, or for the end
        self._due: bool = False  # whether there may be something to do
        # Its owner has the turn, and owns all below. It is reentrant only so that the owner is
        # known, and is waited for only by the connection's own threads.
        self._turn: Any = threading.RLock()
        self._backlog = Backlog()
        self._transport: Transport | None = None
        self._open: bool = False  # there is one, no preface is under way, and nothing sealed
        self._blocked: bool = False  # the kernel did not take all: the writer is on it
        self._preface: int | None = None  # the thread whose frames go ahead, see attach
        self._shut: bool = False  # the peer has been told the end
        self._writer_started: bool = False
        self._polling: bool = False  # whether the writer thread is in the transport; its own
        # Joins this queue with the writer thread: a transport to wait for, or None for the end.
        # It is a SimpleQueue because only that one's put may be called by a finalizer that
        # interrupts get.
        self._writer_wanted: queue.SimpleQueue[Transport | None] = queue.SimpleQueue()
        self.error: OSError | None = None  #: what broke the transport
        #: When the kernel last took bytes, or began to refuse them.
        self.last_sent: float = monotonic()
        self.send_time: float = 0.0  #: seconds that the kernel needed to take them
        self.frames_sent: int = 0
        self.bytes_sent: int = 0
        self.dropped: int = 0
        #: Called when the queue is more than half full, by any thread; it must do no more than note
        #: that.
        self.on_crowded: Callable[[], object] = bool
        self._collect_most: int = min(limit // 2, _COLLECT_FRAMES)
        if limit_bytes is not None:
            self._collect_most = min(self._collect_most, limit_bytes // _COLLECT_BYTES)

    # -- for everyone

    def write(self, frame: bytes, timeout: float | None = None) -> None:
        """Send or queue a frame.

        Args:
            frame: one whole message.
            timeout: seconds to wait for room; None does not wait. A call that interrupts another
                one on the same thread does not wait either: only that one could make room.

        Raises:
            WouldBlock: there was no room, or not in time; the frame was not queued.
            ConnectionClosed: nothing can be sent any more; the frame was not queued.
        """
        if (
            self._collecting
            and 0 < len(frame) < _COLLECT_BYTES
            and len(self._intake) < self._collect_most
        ):
            self._intake.append(frame)
            if not self._collecting:  # somebody has ended that, and may not have seen the frame
                self._check_sealed(frame, self._intake)  # type: ignore[unreachable]
                self._settle()
            return
        if timeout:
            self._write_patiently(frame, Deadline(timeout))
            return
        turn = self._turn
        if turn._is_owned():  # by a write that this one has interrupted, and which goes on later
            self._hand_in(frame)
            self._due = True
            return
        try:
            if turn.acquire(False):
                backlog = self._backlog
                if self._open and frame and not backlog.size and not self._intake:
                    backlog.size = UNCOUNTED
                    backlog.frames.append(frame)
                    if not self._send_all(frame):  # as a rule it is sent
                        self._check_broken(frame)
                else:
                    self._write_in_turn(frame)
                turn.release()
                if not (self._due or self._intake or self._failures):
                    return
            else:
                self._hand_in(frame)
            self._settle()
        except BaseException:
            try:
                self._recover()
            finally:
                # Here, as a call that was too deep for the interpreter's limit may be so again.
                if turn._is_owned():
                    turn.release()
            raise

    def reply(self, frame: bytes, timeout: float) -> None:
        """Write, and wait for room as long as there is a transport; for a handler.

        Without one there is no room before the next, which is not made while a handler runs.
        """
        self._write_patiently(frame, Deadline(timeout), lambda: self._transport is not None)

    def tracked(self, frame: bytes) -> TrackedFrame:
        """Return a frame for `write` that can be withdrawn."""
        self._backlog.tracked = True
        return TrackedFrame(frame)

    def withdraw(self, frame: TrackedFrame) -> bool:
        """Take a frame back; True if the kernel does not have all of it, and never will.

        Called by a signal handler or finalizer that interrupts this thread in the midst of a
        write to the same connection, it changes nothing and returns False.
        """
        return not self._turn._is_owned() and self._in_turn(self._withdraw, frame)

    def _withdraw(self, frame: TrackedFrame) -> bool:
        self._take_in()
        index = self._backlog.find(frame)
        if index is not None and self._transport is None:
            self._backlog.rewind()
        if index is not None and index >= self._first_untouched():
            self._backlog.remove(index)
            index = None
        self._wake()
        return index is None and not frame.sent

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return len(self._backlog) + len(self._intake) + len(self._intake_ahead)

    @property
    def bytes_waiting(self) -> int:
        """How many bytes of the frames that wait the kernel does not have."""
        return self._backlog.waiting

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full, and a peer there that could change that.

        It never is if a full queue drops frames, or closes the connection.
        """
        if (
            not self._holds_back
            or not (self._backlog.size or self._intake)
            or self._transport is None
        ):
            return False
        most = self._limit_bytes
        return self.waiting > self._limit // 2 or (
            most is not None and self._backlog.waiting > most // 2
        )

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling thread has interrupted itself in the midst of its turn."""
        return bool(self._turn._is_owned())

    @property
    def waiters(self) -> int:
        """How many threads wait for room in the queue, or for its end."""
        return len(self._waiters)

    def wait_uncrowded(self) -> None:
        """Wait while the queue is more than half full. It may end at any time."""
        self._wait(lambda: not self.crowded, Deadline(None))

    # -- for the thread that handles a batch

    def collect(self) -> None:
        """Hold frames back until `release`, or until they are many."""
        # Where frames wait already, the writer sends them together anyway.
        self._collecting = self._open and not self._blocked
        if self._seal is not None:  # meanwhile
            self._collecting = False

    def release(self) -> None:
        """Send what was held back and hold nothing more."""
        self._collecting = False
        if self._intake:
            self._settle()

    def flush(self) -> None:
        """Send what was held back so far."""
        if self._intake:
            self._settle()

    # -- for the connection

    def attach(self, transport: Transport) -> None:
        """Send into this transport from now on.

        Until `open`, only frames that the calling thread writes go out, the preface, ahead of those
        that wait: on a new connection, who talks first must not be overtaken by the backlog.
        """
        self._in_turn(self._attach, transport)

    def _attach(self, transport: Transport) -> None:
        self._transport = transport
        self._preface = threading.get_ident()
        self.error = None

    def open(self) -> None:
        """End the preface and send what waits."""
        self._in_turn(self._open_up)

    def _open_up(self) -> None:
        self._preface = None
        self._open = self._transport is not None and self._seal is None
        self._advance()

    def detach(self) -> int:
        """Take an aborted transport away; when this returns, no thread is in it.

        What is not wholly sent is kept, but nothing of the preface: on the next connection, there
        will be a new one.

        Returns:
            how many frames of the preface were dropped.
        """
        self._leave()
        dropped = self._in_turn(self._backlog.rewind)
        if not self._final:
            self._seal = None
        return dropped

    def seal(self, reason: str) -> None:
        """Let nothing more be written; when all is sent, tell the peer so."""
        if self._seal is None:
            self._seal = reason
        self._final = True
        self._collecting = self._open = False
        self._settle()

    def wait_sent(self, deadline: Deadline) -> bool:
        """Wait until all is sent and the peer told, or nothing can be; tell whether it is."""
        self._wait(lambda: self._shut or self._transport is None, deadline)
        return self._shut

    def give_up(self, error: OSError, transport: Transport | None = None) -> None:
        """Note that the transport is broken, or that the peer takes nothing, and abort it.

        If the transport is named, one that came after it is left alone.
        """
        self._failures.append((error, transport))
        self._settle()

    @property
    def blocked(self) -> bool:
        """Whether the kernel has not taken all: the peer does not read, or not fast enough."""
        return self._blocked

    @property
    def shut(self) -> bool:
        """Whether all is sent and the peer has been told that nothing more comes."""
        return self._shut

    def stop(self) -> tuple[int, int]:
        """End the writer thread and return the number of frames, and of bytes, never sent.

        All is sent, or the transport is aborted already, and no thread is in it afterwards.
        """
        self._writer_wanted.put(None)
        self._leave()
        return len(self._backlog), self._backlog.waiting

    def run_writer(self) -> None:
        """The writer thread: send what the kernel did not take at once."""
        try:
            self._run_writer()
        except BaseException:
            self._polling = False  # as nobody is in the transport; `_leave` waits for that
            self._wake()
            raise

    def _run_writer(self) -> None:
        wanted = self._writer_wanted
        while True:
            transport = wanted.get()
            if transport is None:
                # If an interrupted write has started another writer, that ends too.
                wanted.put(None)
                return
            # In this order: `_leave` takes the transport away, and then looks whether this is set.
            self._polling = True
            try:
                if transport is self._transport:
                    transport.wait_writable()
            finally:
                self._polling = False
                self._wake()
            self._writable = transport
            self._settle()

    def renew_turn(self) -> None:
        """In a child process: nobody has the turn."""
        self._turn = threading.RLock()

    def after_fork(self, reason: str) -> None:
        """In a child process: be the send queue of a connection that has ended."""
        self.renew_turn()
        self._transport = self._writable = None
        self._collecting = self._open = self._blocked = False
        self._seal, self._final = self._seal or reason, True
        for frames in (self._intake, self._intake_ahead, self._waiters, self._failures):
            frames.clear()
        self._backlog = Backlog()

    # -- taking turns

    def _settle(self) -> None:
        """Have all that was noted be done: here and now, or by the thread that has the turn."""
        self._due = True
        turn = self._turn
        if turn._is_owned():
            return  # this call has interrupted it
        try:
            while self._due and turn.acquire(False):
                self._due = False
                self._advance()
                turn.release()
        except BaseException:
            try:
                self._recover()
            finally:
                # Here, as a call that was too deep for the interpreter's limit may be so again.
                if turn._is_owned():
                    turn.release()
            raise

    def _in_turn(self, function: Callable[..., T], *args: Any) -> T:
        """Wait for the turn, and call a function in it. Not for a call that interrupts a turn."""
        turn = self._turn
        try:
            turn.acquire()
            result = function(*args)
            turn.release()
            if self._due or self._intake or self._failures:
                self._settle()
            return result
        except BaseException:
            try:
                self._recover()
            finally:
                # Here, as a call that was too deep for the interpreter's limit may be so again.
                if turn._is_owned():
                    turn.release()
            raise

    def _recover(self) -> None:
        """Put right what an exception has interrupted on this thread, and let go of the turn."""
        try:
            self._put_right()
        except BaseException:
            self._put_right()  # another exception has come in the midst of that
            raise

    def _put_right(self) -> None:
        turn = self._turn
        if turn._is_owned():
            self._repair()
            turn.release()
        if not isinstance(sys.exc_info()[1], TaoError):
            self._wake()  # there may be room, of which nobody has told
        self._settle()

    def _repair(self) -> None:
        """Finish the step that was interrupted, or give the transport up. Needs the turn."""
        backlog, transport = self._backlog, self._transport
        if backlog.repair():
            taken = None if transport is None else transport.settle()
            if taken is None:
                self._break(ConnectionAbortedError(_INTERRUPTED))
                backlog.journal = None
            else:
                self.bytes_sent += taken
                self.frames_sent += backlog.forget(taken)

    # -- in the turn

    def _advance(self) -> None:
        """Do all that is due. Needs the turn."""
        intake, backlog = self._intake, self._backlog
        if self._open and not backlog.size and 0 < len(intake) <= self._limit:  # a batch's replies
            backlog.size = UNCOUNTED
            move(intake, backlog.frames)
            self._send_all(b"".join(backlog.frames))
        self._take_in()
        while self._failures:
            error, transport = self._failures[0]
            if transport is None or transport is self._transport:
                self._break(error)
            self._failures.popleft()
        if self._seal is not None:
            self._wake()
        if not self._blocked or self._writable is self._transport:
            self._send()

    def _take_in(self) -> None:
        """Queue what others have noted, or a batch collected. Needs the turn."""
        backlog = self._backlog
        if backlog.journal is not None or backlog.size < 0:
            self._repair()  # who was interrupted could not do so
        if self._intake_ahead:
            move(self._intake_ahead, backlog.ahead)
            backlog.recount()
        if self._intake:
            if self._slow_consumer != "raise" and self.waiting > self._limit:
                self._take_in_singly()
                return
            nothing = not backlog.size
            count = move(self._intake, backlog.frames)
            if nothing:
                backlog.size = sum(map(len, backlog.frames))
            else:
                backlog.size += sum(len(backlog.frames[-1 - back]) for back in range(count))
            if self.crowded:
                self.on_crowded()

    def _take_in_singly(self) -> None:
        """Queue what others have noted, as far as there is room. Needs the turn."""
        while self._intake:
            try:
                self._line_up(self._intake.popleft())
            except TaoError:
                self.dropped += 1

    def _send(self) -> None:
        """Give the kernel what it takes, and leave the rest to the writer. Needs the turn."""
        transport, backlog = self._transport, self._backlog
        if transport is None:
            return
        try:
            while data := backlog.next_bytes(self._preface is not None):
                if not self._give(transport, data):
                    self._block(transport)
                    return
            if self._seal is not None and not backlog and not self._shut:
                if not transport.shutdown_write():
                    self._block(transport)
                    return
                self._shut = True
                self._wake()
            self._blocked = False
        except OSError as error:
            self._break(error)

    def _give(self, transport: Transport, data: bytes | memoryview) -> int:
        """Have the kernel take what it can, and forget that. Needs the turn."""
        transport.answers.clear()
        started = monotonic()
        self._backlog.journal = True
        try:
            taken = transport.send(data)
        except OSError:
            self._backlog.journal = None
            raise
        sent = self._backlog.forget(taken)
        now = monotonic()
        self.send_time += now - started
        if taken:
            self.last_sent = now
            self.bytes_sent += taken
            self.frames_sent += sent
            if self._waiters:
                self._wake()
        return taken

    def _block(self, transport: Transport) -> None:
        """Leave the rest to the writer thread. Needs the turn."""
        if not self._writer_started:
            self._start_writer()  # if no thread can be had, the next to write tries again
            self._writer_started = True
        self._collecting = False
        self._writable = None
        # Either the wait begins now, or the socket was writable a moment ago: under TLS, the kernel
        # may take bytes for long before it has all that a frame became.
        self.last_sent = monotonic()
        self._writer_wanted.put(transport)
        self._blocked = True

    def _break(self, error: OSError) -> None:
        """Be done with a transport that takes nothing any more. Needs the turn."""
        if self.error is None:
            self.error = error
        if self._transport is not None:
            self._transport.abort()
        self._blocked = False
        self._collecting = self._open = False
        if not self._keep and self._seal is None:
            self._seal = explain(error)
        self._transport = None
        self._wake()

    def _leave(self) -> None:
        """Let no thread be in the transport; wait for the writer, which is in it for a moment."""
        self._in_turn(self._let_go)
        self._wait(lambda: not self._polling, Deadline(None))

    def _let_go(self) -> None:
        self._transport = None
        self._preface = None
        self._collecting = self._open = False
        self._take_in()
        self._blocked = False
        self._wake()

    # -- writing

    def _send_all(self, data: bytes) -> bool:
        """Send all that waits, when nothing else did before, and tell whether the kernel took it.

        It is what `_send` does, for that case: only what it needs, as each reply bears the cost.
        Needs the turn.

        Args:
            data: the frames of the backlog, joined. Their size is not counted yet.
        """
        backlog, transport = self._backlog, self._transport
        assert transport is not None
        backlog.size = size = len(data)
        transport.answers.clear()
        started = monotonic()
        backlog.journal = True
        try:
            taken = transport.send(data)
        except OSError as error:
            backlog.journal = None
            self._break(error)
            return False
        if taken == size:
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
        self.frames_sent += backlog.forget(taken)
        self.bytes_sent += taken
        self._send()
        if self.crowded:
            self.on_crowded()
        return False

    def _write_in_turn(self, frame: bytes, patiently: bool = False) -> None:
        """Queue a frame, and send what can be sent; if ``patiently``, raise in place of any policy.

        Needs the turn.
        """
        self._take_in()
        self._line_up(frame, patiently)
        self._check_broken(frame)

    def _check_broken(self, frame: bytes) -> None:
        """Raise if the frame added last cannot be sent any more. Needs the turn."""
        if self.error is not None and not self._keep:
            self._take_back(frame)
            raise ConnectionClosed(self._seal or "connection broken")

    def _hand_in(self, frame: bytes) -> None:
        """Note a frame for the thread that has the turn."""
        if self._seal is not None:
            raise ConnectionClosed(self._seal)
        ahead = self._preface == threading.get_ident()
        if self._slow_consumer == "raise":
            if self._full(len(frame), ahead):
                raise self._would_block()
        elif len(self._intake) >= self._limit:
            self.dropped += 1
            return
        intake = self._intake_ahead if ahead else self._intake
        if frame:
            intake.append(frame)
            self._check_sealed(frame, intake)
            if self.crowded:
                self.on_crowded()

    def _check_sealed(self, frame: bytes, intake: deque[bytes]) -> None:
        """Raise if a frame was noted too late: nothing may be written any more."""
        if self._seal is not None:
            try:
                intake.remove(frame)
            except ValueError:
                return  # it was in time
            raise ConnectionClosed(self._seal)

    def _line_up(self, frame: bytes, patiently: bool = False) -> None:
        """Queue a frame behind those that wait, or drop one. Needs the turn."""
        size, ahead = len(frame), self._preface == threading.get_ident()
        while self._seal is None and self._full(size, ahead):
            if self._transport is not None and self._preface is None and not self._blocked:
                self._send()  # what a batch held back; whatever comes of it, this is not so again
            elif patiently:
                raise self._would_block()
            elif not self._overflow(size):
                return
        if self._seal is not None:
            raise ConnectionClosed(self._seal)
        if not frame:
            return  # a kernel that takes nothing of it would look like one that is full
        self._backlog.append(frame, ahead=ahead)
        if not self._blocked:
            self._send()
        if self.crowded:
            self.on_crowded()

    def _take_back(self, frame: bytes) -> None:
        """Forget the frame added last: whoever wrote it is told that it cannot be sent."""
        backlog = self._backlog
        for lane in (backlog.ahead, backlog.frames):
            if lane and lane[-1] is frame:
                lane.pop()
                break
        if not backlog:
            backlog.offset = 0
        backlog.recount()

    def _full(self, size: int, ahead: bool) -> bool:
        """Whether a limit is reached: of the preface for the thread that writes it, or the rest."""
        backlog = self._backlog
        lane, intake = (
            (backlog.ahead, self._intake_ahead) if ahead else (backlog.frames, self._intake)
        )
        count = len(lane) + len(intake)
        if count >= self._limit:
            return True
        if self._limit_bytes is None or not count:
            return False
        return backlog.lane_size(ahead) + size > self._limit_bytes

    def _overflow(self, size: int) -> bool:
        """Do what is to be done with a consumer too slow; False: drop the new frame."""
        policy, backlog = self._slow_consumer, self._backlog
        if policy in ("drop_oldest", "drop_newest"):
            self.dropped += 1
            last = len(backlog.frames)
            oldest = self._first_untouched() if policy == "drop_oldest" else last
            if oldest == last or not backlog.would_fit(size, self._limit_bytes, oldest):
                return False
            backlog.remove(oldest)
            return True
        if policy == "close" and self._transport is not None:
            self._break(TimeoutError("send queue full: the peer reads too slowly"))
            return True
        raise self._would_block()

    def _first_untouched(self) -> int:
        """The index of the first frame of which nothing has left. Needs the turn."""
        transport = self._transport
        return self._backlog.first_untouched(0 if transport is None else transport.committed_bytes)

    def _would_block(self) -> WouldBlock:
        what = "" if self._limit_bytes is None else f" with {self.bytes_waiting} bytes"
        return WouldBlock(f"the send queue is full: {self.waiting} messages wait{what}")

    # -- waiting

    def _write_patiently(
        self, frame: bytes, deadline: Deadline, hopeful: Callable[[], bool] = lambda: True
    ) -> None:
        """Write as soon as there is room; at the deadline, or without hope, do as without it."""
        while hopeful() and not deadline.expired and not self._turn._is_owned():
            room = Wakeup()
            self._waiters.append(room)  # before it is tried, so that room made since is noticed
            try:
                if self._write_if_room(frame):
                    return
                room.wait(deadline.remaining())
            finally:
                self._no_longer(room)
        self.write(frame)

    def _write_if_room(self, frame: bytes) -> bool:
        """Write a frame; False: there was no room."""
        try:
            self._in_turn(self._write_in_turn, frame, True)
            return True
        except WouldBlock:
            return False

    def _wait(self, condition: Callable[[], bool], deadline: Deadline) -> None:
        """Wait until a condition holds, which `_wake` follows, or the deadline has passed."""
        while not condition() and not deadline.expired:
            changed = Wakeup()
            self._waiters.append(changed)
            try:
                if not condition():
                    changed.wait(deadline.remaining())
            finally:
                self._no_longer(changed)

    def _no_longer(self, wakeup: Wakeup) -> None:
        try:
            self._waiters.remove(wakeup)
        except ValueError:
            pass  # it has been woken

    def _wake(self) -> None:
        """Have all that wait look again."""
        waiters = self._waiters
        while waiters:
            try:
                waiters.popleft().set()
            except IndexError:
                return


class Ticket:
    """Of one message that was submitted. Any thread may use it."""

    __slots__ = ("_frame", "_send_queue")

    def __init__(self, send_queue: SendQueue, frame: TrackedFrame) -> None:
        self._send_queue = send_queue
        self._frame = frame

    @property
    def sent(self) -> bool:
        """Whether the kernel has taken the last byte of the message."""
        return self._frame.sent

    def withdraw(self) -> bool:
        """Take the message back if it has not been sent.

        Returns:
            True if it was not sent and never will be: it is certain that the peer does not handle
            it, and to write it again is safe. False if the kernel has it, or a part of it: the peer
            may have handled it, or may yet do so.
        """
        return self._send_queue.withdraw(self._frame)
