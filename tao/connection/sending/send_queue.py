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
frame in `Admission.frames`, the seal, a failure or the end of a preface in ``_notes``. Then it
tries to get the turn, and `_advance` does whatever is due.

A thread that writes while nothing waits sends at once, without blocking. Only what the kernel does
not accept is left to the writer thread, which waits for the socket outside of any turn; from then
on all frames queue up. While a batch of messages is handled, small frames are only collected there,
so that the replies are sent together; in shared reading also those of messages that come alone.

What an exception interrupted is repaired by the thread that it hit or, if not even that is possible
because the stack is full, by the next thread that has the turn: the backlog's journal says what was
being done, and `Transport.settle` how much the kernel has accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tao.connection.sending.admission import Admission
from tao.connection.sending.backlog import UNCOUNTED, TrackedFrame, move
from tao.connection.sending.keyed_frames import KeyedFrame
from tao.connection.sending.send_figures import SendFigures
from tao.connection.sending.send_limits import COLLECTED_FRAME, send_limits
from tao.connection.sending.transmitter import Transmitter, WriterFactory
from tao.connection.sending.waiting_writes import written_in_time
from tao.connection.sending.writer import Writer
from tao.runtime.combining import Combiner
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import ListenedNotifier
from tao.transport.error_text import explain
from tao.transport.stream import Transport

__all__ = ["SendQueue"]


class SendQueue(SendFigures):
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
        writer: makes what waits for a transport to accept more; None: a `Writer`.
    """

    __slots__ = (
        "_backlog", "_collect_most", "_final", "_keep", "_limit", "_notes", "_open", "collecting",
    )  # fmt: skip

    def __init__(
        self,
        limit: int,
        start_writer: Callable[[], object],
        *,
        slow_consumer: str = "raise",
        keep: bool = False,
        limit_bytes: int | None = None,
        writer: WriterFactory | None = None,
    ) -> None:
        limits = send_limits(limit, limit_bytes, slow_consumer)
        self._limit: int = limit
        self._collect_most: int = limits.collected
        self._keep: bool = keep
        self._room = ListenedNotifier()
        self.combiner = Combiner(self._advance, self._repair, self._room.notify_all)
        # The thread that has the turn owns the transmitter, the backlog and `_open`. Any thread may
        # set the others, or append to them, in one step, and settles afterwards.
        make_writer = writer or partial(Writer, start_writer)
        self.transmitter = Transmitter(make_writer, self.combiner.settle, self._stopped, self._room)
        self._backlog = self.transmitter.backlog
        self._open: bool = False  # whether there is a transport, after its preface, and no seal
        self._admission = Admission(limits, self.transmitter, keep=keep)
        self.noted = self._admission.frames
        # What is to happen, maybe twice, and to which transport; None: the present one. See `note`.
        self._notes: list[tuple[Callable[[], object], Transport | None]] = []
        self._final: str | None = None  # the seal, if it holds for the next transport as well
        #: Up to how many frames are collected now. Set to 0 by the thread that began that, and by
        #: any that has the turn.
        self.collecting: int = 0

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
        most = self.collecting
        if most and frame and len(frame) < COLLECTED_FRAME and len(self.noted) < most:
            try:
                self.noted.append(frame)
                if not self.collecting or self.transmitter.seal is not None:
                    # It ended meanwhile, and the frame may have been overlooked.
                    self._admission.check_sealed(frame, self.noted)
                    self.combiner.settle()
            except BaseException:
                self.combiner.settle()  # the end of the stream may have waited for this frame
                raise
            return
        if timeout:
            self._write_patiently(frame, Deadline(timeout))
            return
        combiner = self.combiner
        turn = combiner.turn
        if turn._is_owned():  # by a write that this call has interrupted, and that will continue
            self._admission.hand_in(frame)
            combiner.due = True
            return
        try:
            if turn.acquire(False):
                backlog = self._backlog
                if self._open and frame and not backlog.size and not self.noted:
                    backlog.size = UNCOUNTED
                    backlog.frames.append(frame)
                    if not self.transmitter.send_all(frame):
                        self._send_rest()
                        self._admission.check_broken(frame)
                else:
                    self._admission.write(frame)
                turn.release()
                if not (combiner.due or self.noted or self._notes):
                    return
            else:
                self._admission.hand_in(frame)
            combiner.settle()
        except BaseException:
            try:
                combiner.recover()
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                if turn._is_owned():
                    turn.release()
            raise

    def write_keyed(self, frame: KeyedFrame, timeout: float | None = None) -> None:
        """Write a frame in the place of one that waits with the same key, if there is one.

        It waits for the turn. Only a call that has interrupted the turn does not, and its frame
        replaces nothing.
        """
        if timeout or self.combiner.interrupted_here:
            self.write(frame, timeout)
        else:
            self.combiner.run(self._admission.write, frame)

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

    def withdraw(self, frame: TrackedFrame, *, wait: bool = True) -> bool:
        """Take a frame back; return whether the kernel does not have all of it, and never will.

        A call that has interrupted a write on the same thread changes nothing and gets False. One
        that is not to ``wait`` raises `Busy` then, and also if another thread has the turn.
        """
        if wait:
            return not self.interrupted_here and self.combiner.run(self._withdraw, frame)
        self.combiner.attempt(self._advance)  # the transport may have been given up
        return self.combiner.attempt(self._withdraw, frame)

    def _withdraw(self, frame: TrackedFrame) -> bool:
        withdrawn = self._admission.withdraw(frame)
        self._room.notify_all()
        return withdrawn

    def in_turn(self, function: Callable[..., object], *args: object) -> None:
        """Call a function while no other thread sends. Not in an interrupted call."""
        self.combiner.run(function, *args)

    def catch_up(self) -> None:
        """Do what other threads have noted, such as a failure. Not in an interrupted call."""
        self.combiner.run(self._advance)

    def when_crowded(self, function: Callable[[], object]) -> None:
        """Have any thread call a function when the queue is `crowded`. It may only note that."""
        self._admission.on_crowded = function

    def when_room(self, function: Callable[[], object]) -> None:
        """Call a function, in the turn, when there may be room, or nothing more can be sent."""
        self._room.listener = function

    # -- for a burst

    def begin(self, frame: bytes) -> bool:
        """Get the turn for `Transmitter.pass_on` and `end`, if the frame can be sent at once.

        Not in an interrupted call. After an exception, `Combiner.recover` has to follow instead.

        Returns:
            False if it has to be written like any other.
        """
        turn, backlog = self.combiner.turn, self._backlog
        if self.collecting or not turn.acquire(False):
            return False
        transport = self.transmitter.transport
        idle = self._open and frame and not backlog.size and not self.noted
        if idle and transport is not None and transport.bare:
            backlog.size = UNCOUNTED
            backlog.frames.append(frame)
            return True
        turn.release()  # to the write that follows, which looks for what was noted meanwhile
        return False

    def end(self, frame: bytes, accepted: int, now: float, seconds: float) -> None:
        """Count what `Transmitter.pass_on` has returned, send the rest, and release the turn.

        Raises:
            ConnectionClosed: the connection is broken. The turn is not released.
        """
        combiner = self.combiner
        if not self.transmitter.count_all(len(frame), accepted, now, seconds):
            self._send_rest()
            self._admission.check_broken(frame)
        combiner.turn.release()
        if combiner.due or self.noted or self._notes:
            combiner.settle()

    # -- for the thread that handles a batch

    def collect(self) -> None:
        """Collect small frames until `release`, or until there are many."""
        # Where frames wait already, the writer sends them together anyway.
        self.collecting = self._collect_most if self._open and not self.transmitter.blocked else 0
        if self.transmitter.seal is not None:  # it was sealed meanwhile
            self.collecting = 0

    def release(self) -> None:
        """Send the collected frames, and stop collecting."""
        self.collecting = 0
        self.flush()

    def send_collected(self, now: float) -> None:
        """Send the collected frames, usually one, in as few steps as possible.

        Args:
            now: the time, monotonic.
        """
        combiner = self.combiner
        turn = combiner.turn
        try:
            if turn.acquire(False):
                noted, backlog = self.noted, self._backlog
                if self._open and len(noted) == 1 and not backlog.size:
                    backlog.size = UNCOUNTED
                    if move(noted, backlog.frames) != 1:
                        backlog.recount()  # another thread has just noted one, or taken it back
                        combiner.due = True
                    elif not self.transmitter.send_alone(backlog.frames[0], now):
                        self._send_rest()
                    if self._room.waiters:
                        self._room.notify_all()
                turn.release()
                if not (combiner.due or noted or self._notes):
                    return
            combiner.settle()
        except BaseException:
            try:
                combiner.recover()
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                if turn._is_owned():
                    turn.release()
            raise

    def flush(self) -> None:
        """Send the frames collected so far."""
        if self.noted:
            self.combiner.settle()

    # -- for the connection

    def attach(
        self, transport: Transport, in_preface: Callable[[], bool], *, withheld: bool = False
    ) -> None:
        """Send into this transport from now on.

        Until `open`, only the frames of the preface are sent. It precedes all frames that wait, so
        that a login, say, is the first message on every new connection.

        Args:
            in_preface: returns whether what the calling code writes is of the preface.
            withheld: whether the other frames are not sent, either, if `seal` comes before `open`.
        """
        self.combiner.run(self._attach, transport, in_preface, withheld)

    def _attach(self, transport: Transport, in_preface: Callable[[], bool], withheld: bool) -> None:
        self._admission.in_preface = in_preface
        self.transmitter.attach(transport, withheld=withheld)

    def open(self, transport: Transport | None = None) -> None:
        """End the preface and send the waiting frames. Any thread may call it.

        If a transport is given, nothing happens to the preface of another one that came after it.
        """
        self.note(self._end_preface, transport)

    def detach(self) -> int:
        """Take away an aborted transport; when this returns, no thread is in it.

        Frames that are not completely sent are kept, except those of the preface: the next
        transport begins with a new one.

        Returns:
            how many frames of the preface were dropped.
        """
        self._leave()
        dropped = self.combiner.run(self._backlog.rewind)
        if self._final is None:
            self.transmitter.seal = None
        if self._final is not None:  # sealed meanwhile
            self.transmitter.seal = self._final
        return dropped

    def seal(self, reason: str) -> None:
        """Refuse further writes; when everything is sent, tell the peer that no more follows."""
        self._final = self.transmitter.seal = self.transmitter.seal or reason
        self.collecting, self._open = 0, False
        self.combiner.settle()

    def give_up(self, error: OSError, transport: Transport | None = None) -> None:
        """Abort the transport, because it is broken or the peer accepts nothing.

        If a transport is given, nothing happens to another one that came after it.
        """
        self.note(partial(self.transmitter.give_up, error), transport)

    def part(self, transport: Transport) -> None:
        """Send what waits, and then the end of the stream, into this transport.

        What is written afterwards waits for the next one. The peer may go on sending.
        """
        self.note(self.transmitter.part, transport)

    def note(self, act: Callable[[], object], transport: Transport | None) -> None:
        """Have something done in the turn, as long as a transport is in use. It does not wait."""
        self._notes.append((act, transport))
        self.combiner.settle()

    def stop(self) -> tuple[int, int]:
        """End the writer thread; return how many frames, and bytes, were never sent.

        Everything is sent, or the transport is aborted. Afterwards no thread is in the transport.
        """
        self._leave()
        self.transmitter.stop()
        return len(self._backlog), self._backlog.waiting

    def leave_at_once(self, reason: str) -> bool:
        """Do what `seal` and `stop` do, if nothing waits, and return True; or they have to follow.

        Afterwards the transport is to be closed, which ends the stream. It raises `Busy` if another
        thread has the turn.
        """
        return self.combiner.attempt(self._leave_at_once, reason)

    def run_writer(self) -> None:
        """The function of the writer thread: send frames that the kernel did not accept at once."""
        self.transmitter.writer.run()

    def renew_turn(self) -> None:
        """In a child process: no thread has the turn."""
        self.combiner.after_fork()

    def after_fork(self, reason: str) -> None:
        """In a child process: become the send queue of a connection that has ended."""
        self.renew_turn()
        self.collecting, self._open = 0, False
        self.transmitter.seal = self._final = self.transmitter.seal or reason
        self._notes.clear()
        self._admission.clear()
        self.transmitter.let_go()
        self._backlog.clear()

    # -- in the turn

    def _advance(self) -> None:
        """Do all that is due. Needs the turn."""
        frames, backlog, transmitter = self.noted, self._backlog, self.transmitter
        if self._open and not backlog.size and 0 < len(frames) <= self._limit:  # of a batch
            backlog.size = UNCOUNTED
            move(frames, backlog.frames)
            if not backlog.frames:
                backlog.size = 0  # other threads have just taken them back
            elif not transmitter.send_all(b"".join(backlog.frames)):
                self._send_rest()
            self._room.notify_all()  # for threads that found all these frames waiting
            if not (backlog.size or self._notes or self._admission.noted or transmitter.busy):
                return  # as nearly always
        self._admission.take_in()
        while self._notes:
            act, transport = self._notes[0]
            if transport is None or transport is transmitter.transport:
                act()
            self._notes.pop(0)
        transmitter.send_if_writable()
        sealed = transmitter.seal is not None
        if sealed or transmitter.parting:
            self._end(sealed)

    def _repair(self) -> None:
        """Put right what an exception interrupted. Needs the turn."""
        self._admission.put_back()
        self.transmitter.repair()

    def _end(self, sealed: bool) -> None:
        """Send the end of the stream after all that was accepted before. Needs the turn."""
        if sealed:
            self.collecting, self._open = 0, False  # a preface may have ended at the same time
            self._room.notify_all()
        if not self._admission.noted:  # else their threads have this done again
            self.transmitter.send_end(final=sealed)

    def _end_preface(self) -> None:
        """Let all frames be sent from now on. Needs the turn."""
        transmitter = self.transmitter
        self._admission.in_preface = None
        transmitter.preface_only = False
        self._open = transmitter.transport is not None and transmitter.seal is None

    def _send_rest(self) -> None:
        """Go on after `Transmitter.send_all` did not send everything. Needs the turn."""
        self.transmitter.send_rest()
        self._admission.check_crowded()

    def _stopped(self, error: OSError | None) -> None:
        """Note that nothing can be sent for now or, with an error, on this transport."""
        self.collecting = 0
        self._open = self._open and error is None and not self.transmitter.parting
        if error is not None and not self._keep and self.transmitter.seal is None:
            self.transmitter.seal = explain(error)

    def _leave(self) -> None:
        """Take the transport away, and wait for the writer thread, which may still be in it."""
        self.combiner.run(self._let_go)
        self.transmitter.wait_left()

    def _leave_at_once(self, reason: str) -> bool:
        if not self._open or self._notes or not self._admission.seal_at_once(reason):
            return False
        self._final, self.collecting, self._open = reason, 0, False
        self.transmitter.let_go()
        self._room.notify_all()
        return True

    def _let_go(self) -> None:
        self.collecting, self._open = 0, False
        self.transmitter.let_go()
        self._admission.in_preface = None
        self._admission.take_in()
        self._room.notify_all()

    def _write_patiently(
        self, frame: bytes, deadline: Deadline, hopeful: Callable[[], bool] = lambda: True
    ) -> None:
        """Write as soon as there is room; at the deadline, or without hope, as `write` does."""
        write = partial(self._admission.write, frame, True)
        if not written_in_time(write, self.combiner, self._room, deadline, hopeful):
            self.write(frame)
