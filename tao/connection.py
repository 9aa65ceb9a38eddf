"""A connection: what both ends share, from the socket to the handler and back.

Three threads belong to it: one reads, one handles, one writes; reading and handling are roles that
two of the threads may swap (see ``dispatch.py``), and only the first is started before it is
needed.

How it ends, whoever begins it:

1. ``_begin_close`` notes the reason, of which the first counts, cancels the context and the timers.
2. When the last handler that is still to run has returned, the send queue is sealed. ``close()``
   seals it at once.
3. When the send queue is empty, the peer is sent the end (FIN), and reads everything before it.
4. The peer closes too, which the reading thread sees. If it does not, or will not take what waits,
   the timing wheel aborts the connection after a while.
5. The reading thread sees the others leave, calls ``on_close``, frees the socket, and is gone.

So nobody has to be told to hurry: each step is done by whoever completes the one before.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tao.backlog import TrackedFrame
from tao.codec import Decoder, unintended
from tao.codec_checks import checked_decoder, checked_encoder
from tao.context import ConnectionContext, Context
from tao.dispatch import Dispatcher
from tao.ending import EndClock
from tao.errors import BadData, ConnectionClosed, WouldBlock
from tao.keepalive import KeepAlive
from tao.message import Message, Registry
from tao.metrics import Counts, Tally
from tao.options import Settings
from tao.overdue import telling_if_long
from tao.reader import Reader
from tao.reporter import Reporter
from tao.safe_text import safe_str
from tao.send_queue import SendQueue, Ticket
from tao.threads import Deadline, Joinable, gather, spawn
from tao.timers import HasTimers, TimerSet
from tao.timing import TimingWheel
from tao.transport import Transport, address_text, explain
from tao.transport_access import HasTransport
from tao.variables import Variables
from tao.wakeup import Wakeup
from tao.watch import watch_on

__all__ = ["Connection"]

# Who sends more than so many bytes after the end may fill its receive window.
_MUCH = 64 * 1024

_ABORTED = "aborted by this side"
# So many times the end of a connection is tried again when that raises, too.
_TRIES = 3
# What a thread may take to end when a handler has been given up: that is one that runs no handler.
_MOMENT = 0.05


class Connection(HasTimers, HasTransport):
    """One end of a connection. All public methods may be called from any thread, at any time.

    What users meet are its subclasses `ServerConn` and `ClientConn`.

    Args:
        net_id: the number of the connection, unique within its server or the process's clients.
        options: checked.
        registry: messages and handlers.
        wheel: for heartbeats, timeouts and timers, and to find handlers that block.
        run: runs a function on the workers and waits for it; None: on the handling thread.
        parent: the context above the connection's.
        tally: where the connection's counts go when it ends.
        keep: whether what is written without a transport waits for the next.
        variables: what the context variables of its callbacks begin with; None: the caller's.
    """

    _label: str = "{}"  # how threads are numbered

    def __init__(
        self,
        net_id: int,
        options: Settings,
        *,
        registry: Registry,
        wheel: TimingWheel,
        run: Callable[[Callable[[], object]], object] | None,
        parent: Context,
        tally: Tally,
        keep: bool = False,
        variables: contextvars.Context | None = None,
    ) -> None:
        self.net_id: int = net_id
        #: What the connection is called in logs; settable.
        self.name: str = str(net_id)
        self.remote_address: Any = None
        self.local_address: Any = None
        self._options = options
        self._registry = registry
        self._codec = options.codec
        self._encode = checked_encoder(options.codec)
        self._wheel = wheel
        self._tally = tally
        self._parent_context = parent
        #: Cancelled when the connection ends; what its handlers get are children of it.
        self.context: Context = self._new_context()
        self._send_queue = SendQueue(
            options.queue_size,
            self._start_writer,
            limit_bytes=options.queue_bytes,
            slow_consumer=options.slow_consumer,
            keep=keep,
        )
        self._variables = Variables(variables)
        self._dispatcher = Dispatcher(
            self,
            registry,
            self._send_queue,
            watch_on(wheel.in_real_time),
            run=run,
            mode=options.dispatch,
            limit=options.queue_size,
            on_message=options.on_message,
            latencies=tally.latencies,
            variables=self._variables,
        )
        self._send_queue.on_crowded = self._dispatcher.send_queue_filled
        self._timers = TimerSet(wheel, self._dispatcher.post)
        self._reporter = Reporter(self, options.on_error, self._variables.run)
        self._end_clock = EndClock(self)
        # No lock guards the fields below, as any thread may close a connection at any moment, also
        # one that is interrupted in the midst of closing it. Each is changed in one step, and the
        # first reason counts (setdefault). Where two threads each say something and then look at
        # what the other says, at least one of them sees both.
        self._first: dict[str, str] = {}
        self._reason: str | None = None  # why it ends, once it does; the first of them
        self._lost: str | None = None  # why the last transport ended, if there may be another
        self._values: dict[Hashable, Any] = {}
        self._over: bool = False  # the last steps have begun
        self._counted: bool = False  # what it did has been added to the tally's counts
        self._finisher: dict[str, int] = {}  # the thread that does the last steps: the first
        self._threads: list[Joinable] = []
        self._transport: Transport | None = None
        self._ready: bool = False  # the handshake is done
        self._established: bool = False  # on_connect agreed, and on_close was not called yet
        # Owned by the reading role, which one thread at a time plays.
        self._decoder: Decoder = checked_decoder(self._codec, registry)
        self._reader = Reader(self)
        #: Whether the peer has ended its direction, and this side goes on (``half_close``).
        self.peer_finished: bool = False
        self._unsent: int = 0
        self._cut: bool = False  # it was aborted, as it did not end in time
        # How many frames had been sent when a handler last waited for room in vain.
        self._waited_in_vain: int = -1
        self._in_flight: int = 0  # bytes on their way to the peer when it was cut off
        self._keep_alive = KeepAlive(self)
        # Set when all is over but the last thread's last step; then _stuck holds the threads whose
        # handler never returned.
        self._stuck: list[Joinable] = []
        self._finished = Wakeup()

    # -- what users call

    def write(self, message: Message, timeout: float | None = None) -> None:
        """Send a message, or queue it behind those that wait. What it takes is sent in order.

        The peer handles the messages of one connection in that order; those of a connection before,
        of a client that has come back, may still be handled beside them.

        Args:
            message: anything with a ``message_number`` and a ``serialize()``; it is encoded here,
                in the caller's thread.
            timeout: seconds to wait for room in the send queue. None does not wait, but in a
                handler or timer of this same connection up to ``reply_timeout``.

        Raises:
            WouldBlock: the send queue is full; the message was not queued.
            ConnectionClosed: the connection is closed; the message was not queued.
            Exception: whatever ``serialize()`` raises; nothing was sent.
        """
        frame = self._encode(message)
        try:
            self._send_queue.write(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._may_wait():
                raise
            self._reply(frame)

    def write_frame(self, frame: bytes, timeout: float | None = None) -> None:
        """Send bytes that the codec made before, for many receivers of one; else as `write`.

        Args:
            frame: one whole message. A ``bytearray`` or ``memoryview`` is copied.

        Raises:
            TypeError: it is not bytes.
        """
        frame = _own_bytes(frame)
        try:
            self._send_queue.write(frame, timeout)
        except WouldBlock:
            if timeout is not None or not self._may_wait():
                raise
            self._reply(frame)

    def submit(self, message: Message, timeout: float | None = None) -> Ticket:
        """Send or queue a message as `write` does, and return a `Ticket` that can take it back.

        For a message that must not be sent any more once its caller has given up, a request say:
        ``ticket.withdraw()`` is True if it was not sent and never will be.
        """
        frame = self._send_queue.tracked(self._encode(message))
        self.write_frame(frame, timeout)
        return Ticket(self._send_queue, frame)

    def _reply(self, frame: bytes) -> None:
        """Send or queue a handler's frame when there is room again."""
        with self._lend_worker():
            try:
                self._send_queue.reply(frame, self._options.reply_timeout)
            except WouldBlock:
                self._waited_in_vain = self._send_queue.frames_sent
                raise

    def _may_wait(self) -> bool:
        """Whether a write waits for room: one of a handler of this connection.

        Not where one has waited in vain, and the peer has taken nothing since.
        """
        return (
            self._variables.entered_here
            and self._options.slow_consumer == "raise"
            and self._send_queue.crowded
            and self._waited_in_vain != self._send_queue.frames_sent
        )

    def _lend_worker(self) -> AbstractContextManager[object]:
        """While a handler waits in this, it does not count as one of the workers."""
        return nullcontext()

    def close(self) -> None:
        """End the connection in order; return at once, see `wait_closed`.

        What was written before is sent if the peer reads it; what came and was not handled yet is
        dropped. Closing twice is harmless.
        """
        self._begin_close("closed by this side", drain=False)

    def abort(self) -> None:
        """End the connection now, for good; return at once, see `wait_closed`.

        What waits to be sent is discarded, here and in the kernel, and the peer sees a reset or the
        end of the stream. Handlers that run have ``drain_timeout`` to return, as after `close`.
        Aborting what is closing already, or twice, is harmless.
        """
        self._begin_close(_ABORTED, drain=False)
        self._send_queue.give_up(ConnectionAbortedError(_ABORTED))
        transport = self._transport
        if transport is not None:
            transport.abort(reset=True)

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until the connection is over and none of its threads is left; tell whether it is.

        A handler that did not return within ``drain_timeout`` of a close is not waited for.

        Not to be called by a handler of this connection: it would wait for itself.
        """
        deadline = Deadline(timeout)
        if not self._finished.wait(deadline.remaining()):
            return False
        ending = [thread for thread in self._all_threads() if thread not in self._stuck]
        return not (gather(ending, deadline) or self._stuck)

    @property
    def closed(self) -> bool:
        """Whether the connection is over or about to be: nothing new is read or may be written."""
        return self._reason is not None

    @property
    def close_reason(self) -> str | None:
        """Why the connection ended or is ending, in words; None while it lives."""
        return self._reason or self._lost

    @property
    def last_heartbeat(self) -> float:
        """When something last came from the peer, in seconds since the Unix epoch.

        The time of day is read when the connection is made, and goes on by the monotonic clock:
        setting the system's clock does not move it. How long ago that was, `idle_time` tells.
        """
        return self._keep_alive.last_heartbeat

    @property
    def idle_time(self) -> float:
        """For how long nothing has come from the peer, in seconds."""
        return self._keep_alive.idle_time

    @property
    def unhandled(self) -> int:
        """How many messages were read and are not handled to the end, or not yet."""
        return self._reader.messages_in - self._dispatcher.handled

    @property
    def send_queue_length(self) -> int:
        """How many messages wait to be sent."""
        return self._send_queue.waiting

    def value(self, key: Hashable) -> Any:
        """Return what was set for ``key``, or None."""
        return self._values.get(key)

    def set_value(self, key: Hashable, value: Any) -> None:
        """Keep something with the connection."""
        self._values[key] = value

    def __repr__(self) -> str:
        state = self._reason or ("open" if self._established else "connecting")
        what = f"{type(self).__name__} {safe_str(self.name)}"
        return f"<{what} {address_text(self.remote_address)}: {state}>"

    # -- beginning

    def _new_context(self) -> Context:
        return ConnectionContext(self._parent_context, self.net_id, self._server())

    def _server(self) -> Any:
        return None

    def _establish(self, transport: Transport) -> None:
        """Make a transport the connection's: handshake, ``on_connect``, clocks.

        Raises:
            HandshakeFailed: TLS was not agreed upon.
            ConnectionClosed: refused by ``on_connect``, or closed before that was asked.
        """
        self._transport = transport
        self._raise_if_closed()  # whoever closes later finds the transport, and aborts it
        self._shake_hands(transport)
        self._ready = True
        if self._reason is not None:
            self._ready = False
            raise ConnectionClosed(self._reason)
        self._decoder = checked_decoder(self._codec, self._registry)
        self.peer_finished = False
        self._keep_alive.set_time()
        self._send_queue.attach(transport)
        if not self._ask_on_connect():
            raise ConnectionClosed("refused by on_connect")
        self._lost = None
        # Also if it was closed meanwhile: to each on_connect that agreed belongs an on_close.
        self._established = True
        self._tally.established(self)
        self._send_queue.open()
        self._keep_alive.start()

    def _shake_hands(self, transport: Transport) -> None:
        transport.handshake(self._options.handshake_timeout)

    def _raise_if_closed(self) -> None:
        if self._reason is not None:
            raise ConnectionClosed(self._reason)

    def _ask_on_connect(self) -> bool:
        return self._call("on_connect", self._options.on_connect)

    def _call(self, what: str, callback: Callable[[Any], object] | None) -> bool:
        """Call ``on_connect`` or ``on_close``; False if it returned that, or raised."""
        if callback is None:
            return True
        try:
            with telling_if_long(self, what):
                return self._variables.run(callback, self) is not False
        except BaseException as error:
            if not isinstance(error, Exception) and self._in_call_of_application():
                raise
            self.report(error, f"in {what}")
            return False

    def _in_call_of_application(self) -> bool:
        """Tell whether an exception that is raised here reaches a caller of the application's."""
        return False

    # -- threads

    def _thread(
        self,
        role: str,
        failed: Callable[[BaseException], object],
        target: Callable[..., object],
        *args: Any,
    ) -> threading.Thread:
        name = self._thread_name(role)
        thread = spawn(target, *args, name=name, cpus=self._options.cpus, failed=failed)
        self._threads.append(thread)
        return thread

    def _thread_name(self, role: str) -> str:
        return f"tao-{role}-{self._label.format(self.net_id)}"

    def _all_threads(self) -> list[Joinable]:
        return list(self._threads)

    def _start_writer(self) -> None:
        """Start the third thread. Called by the send queue, in its turn."""
        try:
            self._thread("writer", self.collapse, self._send_queue.run_writer).start()
        except RuntimeError as error:  # the peer can be sent no more than the kernel takes now
            raise OSError(str(error)) from error

    def start_handler(self) -> None:
        """Start the second thread; if that cannot be, there is an end to the connection."""
        try:
            self._thread("handler", self._struck, self._play, False).start()
        except RuntimeError as error:
            self.collapse(error)

    def _begin(self, open_up: Callable[[], bool]) -> None:
        """A reading thread that has to ``open_up`` first, and ends here if that returns False."""
        try:
            opened = open_up()
        except BaseException as error:
            self.collapse(error)
            opened = False
        if opened:
            self._play(reading=True)
        else:
            self._finish()

    def _play(self, reading: bool) -> None:
        """A reading or handling thread, in the one role and then in the other."""
        thread = threading.current_thread()
        failed: list[BaseException] = []
        while len(failed) <= _TRIES:
            try:
                if failed:
                    self.collapse(failed[-1])
                    if reading:
                        self._finish()
                    return
                while True:
                    thread.name = self._thread_name("reader" if reading else "handler")
                    if not reading:
                        if not self._dispatcher.handle():
                            return
                        reading = True
                    elif self._read():
                        reading = False
                    elif not self._renew():
                        return
            except BaseException as error:
                failed.append(error)

    def _struck(self, error: BaseException) -> None:
        """End what a reading or handling thread has been kept from; it may have had either role."""
        if not self._finished.is_set():
            self.collapse(error)
            self._finish()

    def _read(self) -> bool:
        """Read until the end, or (True) until the other thread has taken over."""
        assert self._transport is not None
        return self._reader.read(self._transport, self._decoder)

    def _renew(self) -> bool:
        """The transport has ended. Get another and return True, or finish."""
        self._finish()
        return False

    # -- ending

    def _transport_failed(self, error: OSError) -> None:
        """Reading has failed. Called by the reading role, as are the next two."""
        self._send_queue.give_up(error)
        self._failed(error, explain(error), ended=True)

    def _transport_ended(self) -> None:
        """The peer has sent the end, or this side has ended the transport itself."""
        if (
            self._options.half_close
            and self.close_reason is None
            and self._send_queue.error is None
            and self._transport is not None
        ):
            self.peer_finished = True
            limit = self._options.half_close_timeout
            if not self._transport.wait_hung_up(limit):
                self._drop(f"peer closed, and this side did not within {limit:g} s")
                return
        unsendable = self._send_queue.error
        if unsendable is None:
            self._drop("peer closed", ended=True)
        else:  # it was this side that ended it, because sending failed
            self._failed(unsendable, explain(unsendable), ended=True)

    def _protocol_broken(self, error: BaseException) -> None:
        """The decoder can make nothing of what the peer sends, or has a bug."""
        if not isinstance(error, BadData):
            error = unintended(f"the decoder raised {type(error).__name__}", error)
        self._failed(error, f"protocol error: {safe_str(error)}")

    def _failed(self, error: Exception, reason: str, *, ended: bool = False) -> None:
        """Give the peer up because of an error: its own, the network's or the decoder's."""
        # Nobody needs to hear what a peer does wrong to a connection that ends anyway.
        if self.close_reason is None or getattr(error, "unintended", False):
            self._reporter.lost(reason, error)
            self._reporter.tell(error)
        self._drop(reason, ended=ended)

    def _drop(self, reason: str, *, ended: bool = False) -> None:
        """Do without this transport, which may have ``ended`` already."""
        self._begin_close(reason, drain=True, ended=ended)

    def _begin_close(
        self, reason: str, *, drain: bool, timeout: float | None = None, ended: bool = False
    ) -> None:
        """Start the orderly end, or make a draining one hasty.

        Args:
            drain: handle what was received first.
            timeout: seconds that all of it may take; None: what the options say.
            ended: the transport has ended. Then nobody needs to see to that, and a handler of the
                last messages may take its time.
        """
        seconds = self._options.drain_timeout if timeout is None else timeout
        try:
            self._reason = self._first.setdefault("reason", reason)
            self._take_first_steps(self._reason, drain)
            if not ended:
                self._end_clock.start(seconds)
        except BaseException:
            if not ended:  # whatever was left out, it ends
                self._end_clock.start(seconds)
            raise

    def _take_first_steps(self, reason: str, drain: bool) -> None:
        self._timers.close(reason)
        self.context.cancel_aside(reason)
        transport = self._transport
        if not self._ready and transport is not None:
            transport.abort()
        if drain:
            self._dispatcher.finish()
        else:
            self._dispatcher.finish(discard=True)
            self.drained()

    def collapse(self, error: BaseException) -> None:
        """End at once, for lack of a thread or because of an error that nobody foresaw."""
        self._dispatcher.recover()
        self.report(error, "which ends the connection")
        self._begin_close(f"error: {explain(error)}", drain=False, timeout=0)

    def drained(self) -> None:
        """Have the peer told the end, as all is handled. Called by the dispatcher."""
        self._send_queue.seal(self._reason or "closed")

    def _unacknowledged(self) -> int:
        """How many bytes that the kernel took are still on their way to the peer."""
        transport = self._transport
        count = 0 if transport is None else transport.unacknowledged()
        # The end itself (FIN), which comes last, counts for one.
        return max(0, count - self._send_queue.shut)

    def _cut_off(self) -> None:
        """Abort what does not end by itself."""
        self._cut = True
        self._in_flight = self._unacknowledged()
        self._send_queue.give_up(TimeoutError("the peer took too long"))
        transport = self._transport
        if transport is not None:
            transport.abort()

    def _end_session(self) -> bool:
        """After reading: see handlers and writer through; tell whether all handlers returned."""
        idle = self._dispatcher.wait_idle()
        if self._transport is not None:
            deadline = self._end_clock.deadline or Deadline(self._options.drain_timeout)
            if not self._send_queue.wait_sent(deadline):
                self._transport.abort()
        return idle

    def _finish(self) -> None:
        """The last steps, by the reading thread; it repeats them if they are interrupted.

        A thread that was relieved of the reading, and interrupted before it knew, may come here
        too; only the first does them.
        """
        me = threading.get_ident()
        try:
            if self._finisher.setdefault("thread", me) == me:
                self._take_last_steps()
        except BaseException:
            if self._finisher.get("thread") == me:
                self._finisher.clear()  # so that it, or another, can begin anew
            raise

    def _take_last_steps(self) -> None:
        idle = self._end_session()
        self._dispatcher.stop()
        frames, size = self._send_queue.stop()
        if not self._over:
            self._over = True
            self._count_unsent(frames, size)
        self._timers.end()
        self._stuck = gather(self._all_threads(), Deadline(None if idle else _MOMENT))
        self._call_on_close()
        if self._transport is not None:
            if self._cut and self._reader.discarded > _MUCH:
                self._transport.reset()
            self._transport.close()
        self._forget()
        self._finished.set()

    def _count_unsent(self, frames: int, size: int) -> None:
        """Count, and tell of, what will not reach the peer."""
        if frames:
            self._unsent += frames
            self._tell_unsent(f"{frames} messages ({size} bytes) could not be sent: {self._reason}")
        elif self._in_flight:
            self._tell_unsent(
                f"{self._in_flight} bytes that were sent did not reach the peer in time"
            )

    def _tell_unsent(self, what: str) -> None:
        if self._reason != _ABORTED:  # else that was the purpose
            self._reporter.undelivered(ConnectionClosed(what), "closing")

    def _forget(self) -> None:
        """Have the owner forget the connection."""
        if not self._counted or self in self._tally.living():  # an interruption may have undone it
            self._counted = True
            self._tally.ended(self)

    def _call_on_close(self) -> None:
        if self._established:
            self._established = False
            self._call("on_close", self._options.on_close)

    # -- errors and figures

    def report(self, error: BaseException, doing: str) -> None:
        """Log an exception with its traceback, count it, and pass it to ``on_error``."""
        self._reporter.raised(error, doing)

    def undefined(self, number: int) -> None:
        """Count a message whose number is not registered, and log the first of each number."""
        self._reporter.unregistered(number)

    def counts(self) -> Counts:
        """Return what this connection has done so far."""
        intake = self._reader.intake
        return Counts(
            messages_in=self._reader.messages_in,
            bytes_in=self._reader.bytes_in,
            messages_out=self._send_queue.frames_sent,
            bytes_out=self._send_queue.bytes_sent,
            handled=self._dispatcher.handled,
            handle_time=self._dispatcher.busy_time,
            errors=self._reporter.errors,
            undefined=self._reporter.undefined,
            dropped=self._send_queue.dropped,
            unsent=self._unsent,
            over_rate=0 if intake is None else intake.over_rate,
            frame_timeouts=0 if intake is None else intake.frame_timeouts,
            overdue=self._reporter.overdue,
        )


def _own_bytes(frame: Any) -> bytes:
    """Return a frame as bytes that nobody can change."""
    if type(frame) is bytes or type(frame) is TrackedFrame:
        return frame
    if isinstance(frame, (bytes, bytearray, memoryview)):
        return bytes(frame)
    raise TypeError(f"a frame must be bytes, not {type(frame).__name__}")
