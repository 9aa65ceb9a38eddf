"""From decoded batches to handlers: in order, one at a time, on the cheapest thread.

Guarantees, for each connection:

- Handlers and timer callbacks run in order of arrival, one at a time, whatever thread they run on.
- A handler that blocks never stops its connection from being read.
- What waits is bounded: a full inbox blocks the reading thread, and TCP pushes back on the peer.
- While replies fill more than half of the send queue, no message is handed to a handler: so a peer
  that does not read is held back in the end, and its replies are not lost. It costs no worker.
- `post`, `finish` and `abandon` never wait, wherever they are called.

Two roles are played by two threads, and the threads may swap them. The *reading* role decodes
batches and calls `Dispatcher.dispatch`; the *handling* role, in `Dispatcher.handle`, takes what
waits in the inbox and has it run, on the shared pool for a server. Handing a batch over costs far
more than a quick handler does, so:

- If nothing waits and nothing runs, a batch is run by the reader itself, as far as its handlers are
  known to be quick. This is learned for each message number: a handler starts in the pool, is
  trusted after a few quick runs, and loses that trust by slow ones.
- A wrong guess costs speed only. The watch (``block_watch.py``) finds a reader that is stuck in a
  handler after a few milliseconds and tells the handling thread to take over the reading; the stuck
  thread finishes its batch and takes the other role. This is Leader/Followers (Schmidt et al.,
  Pattern-Oriented Software Architecture 2, 2000) with one follower.

The replies to a run of quick handlers are collected and leave together; before a handler not known
to be quick, and when one of them gets stuck after all, the collected replies leave at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from threading import RLock, get_ident
from typing import Any

from tao.connection.application import Application, ApplicationLink
from tao.connection.handling.block_watch import GRACE, BlockWatch
from tao.connection.handling.dispatch_figures import DispatchFigures
from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.handling.handler_trust import TRUST_NEEDED, DispatchHost
from tao.connection.handling.inbox import CALL, STOP, TAKE_OVER, Inbox
from tao.connection.sending.send_queue import SendQueue
from tao.runtime.histogram import Latencies
from tao.runtime.wakeup import Wakeup
from tao.wire.codec import Batch

__all__ = ["DispatchHost", "Dispatcher"]

# Why reading pauses.
_INBOX = "inbox"


class Dispatcher(DispatchFigures):
    """Runs the handlers of one connection.

    Args:
        host: the connection's core.
        application: where handlers are found.
        send_queue: the connection's.
        watch: finds handlers that are stuck.
        run: runs a function on the pool and waits for it; None runs on the handling thread.
        mode: ``"auto"``, ``"pool"`` or ``"inline"``, for handlers that do not say.
        limit: how many messages may wait.
        latencies: where to note how long handlers take.
        watch_reader: whether the watch is to look after each batch that the reader runs.
    """

    __slots__ = (
        "_abandoned", "_application", "_closed", "_discard", "_due", "_host", "_inbox", "_limit",
        "_posted", "_run_on_pool", "_seal", "_send_queue", "_waiting", "runner", "too_late",
    )  # fmt: skip

    def __init__(
        self,
        host: DispatchHost,
        application: ApplicationLink,
        send_queue: SendQueue,
        watch: BlockWatch,
        *,
        run: Callable[..., Any] | None,
        mode: str,
        limit: int,
        latencies: Latencies | None = None,
        watch_reader: bool = True,
    ) -> None:
        self._host = host
        self._application = application
        self._send_queue = send_queue
        timings = Latencies() if latencies is None else latencies
        #: Calls the handlers.
        self.runner = HandlerRunner(
            host, self, send_queue, watch, mode=mode, latencies=timings, watch_inline=watch_reader
        )
        self._run_on_pool = run
        self._limit: int = limit
        # Any thread changes these in single steps, and sets `_due` after it has added to one.
        self._posted: list[Callable[[], object]] = []  # callbacks that wait to be queued
        self._waiting: list[Wakeup] = []  # threads that wait until nothing is pending
        self._closed: bool = False  # batches are not taken any more
        self._discard: bool = False  # ... and those that wait are not run
        self._seal: bool = False  # call the host's `drained` once nothing is pending
        self._abandoned: bool = False  # pending messages are not waited for
        self._due: bool = False  # whether there may be something to do
        self._turn = RLock()
        # The owner of the turn owns these.
        self._inbox: Inbox | None = None  # made when the handling thread is started
        self._pending = self._inline = 0
        self._relieved = False
        self.too_late: int = 0  #: messages that came when no more were taken

    #: Whether the reading role may be kept waiting by this connection.
    _waits_here: bool = True

    # -- for the reading role

    def dispatch(self, batch: Batch) -> bool:
        """Run a batch, or queue it. Blocks while the inbox is full.

        False: the other thread has taken over reading meanwhile, so the caller must call `handle`.
        """
        application = self._application.find()
        if application is None:
            return True
        turn, runner = self._turn, self.runner
        turn.acquire()
        if (
            self._pending
            and self._waits_here
            and not runner.stuck
            and runner.trusts(application, batch[0][0])
        ):
            # The other thread is about to become idle. If this one queued the batch, it would have
            # to queue all later ones as well while messages keep coming; a short wait avoids that.
            self._release()
            self._wait_idle(GRACE)
            turn.acquire()
        if self._closed:
            self.too_late += len(batch)
            self._release()
            return True
        if self._pending or self._inline or (runner.replies_wait and runner.held_back):
            self._pending += len(batch)
            self._enqueue(batch)
            return True
        self._inline = get_ident()
        turn.release()
        enter = application.variables.enter  # no callback of this connection runs now
        rest = enter(runner.run_inline, application, batch)
        turn.acquire()
        if not (rest or self._posted or self._relieved):
            self._inline = 0
            turn.release()
            if self._due or self._waiting or self._seal:
                self._settle()
            return True  # as nearly always
        return self._end_inline(rest)

    def dispatch_alone(self, application: Application, batch: Batch) -> bool | None:
        """Do as `dispatch` does with a single message, in as few steps as possible.

        It never waits. In shared reading the caller is to send what the handler may have written.

        Returns:
            None if `dispatch` has to be called instead.
        """
        number, message = batch[0]
        entry, runner = application.entries.get(number), self.runner
        if entry is None or entry.handler is None:
            return None
        if entry.trust < (TRUST_NEEDED[entry.dispatch] if entry.dispatch else runner.needed):
            return None
        turn = self._turn
        turn.acquire()
        if self._pending or self._inline or self._closed or runner.replies_wait:
            self._release()
            return None
        self._inline = thread = get_ident()
        turn.release()
        runner.run_alone(application, entry, number, message, thread)
        turn.acquire()
        if self._posted or self._relieved:
            return self._end_inline([])
        self._inline = 0
        turn.release()
        if self._due or self._waiting or self._seal:
            self._settle()
        return True

    def _end_inline(self, rest: Batch) -> bool:
        """Queue what was left or arrived while the reader ran a batch. Has, and ends, the turn."""
        relieved, self._relieved = self._relieved, False
        if relieved:
            # The batch counted as pending from then on; what is left of it is to be run here,
            # before anything that waits in the inbox.
            self._pending += len(rest) - 1
            self._inline = 0
            self._handle_rest(rest)
            return False
        rest += [(CALL, self._posted.pop(0)) for _ in range(len(self._posted))]
        self._pending += len(rest)
        self._inline = 0
        if rest:
            self._enqueue(rest)
        else:
            self._turn.release()
            self._settle()
        return True

    def _handle_rest(self, rest: Batch) -> None:
        """Run what is left of a batch whose reader is the handling thread now. Ends the turn."""
        self._turn.release()
        self._settle()
        self._run_pooled(rest)

    def _enqueue(self, batch: Batch) -> None:
        """Queue a batch that counts as pending, once there is room. Has, and ends, the turn."""
        turn = self._turn
        inbox, start = self._inbox_for_handler()
        self._release()
        if start:
            self._host.start_handler()
        self._host.gate.pause(_INBOX)
        inbox.wait_for_room()
        turn.acquire()
        inbox.push(batch)
        self._host.gate.resume(_INBOX)
        self._release()

    def _inbox_for_handler(self) -> tuple[Inbox, bool]:
        """Return the inbox, and whether to start the thread that empties it. Needs the turn."""
        start = self._inbox is None
        if self._inbox is None:
            self._inbox = Inbox(self._limit, self._host.may_spill)
        return self._inbox, start

    @property
    def inbox(self) -> Inbox:
        """What waits, once the handling thread was wanted."""
        assert self._inbox is not None
        return self._inbox

    def take_role(self) -> bool:
        """Return whether a thread that was started to handle is still wanted."""
        return self._inbox is not None and self._inbox.take_role()

    def note_spill(self) -> None:
        """Have the reading role look again whether a full inbox holds it up."""
        if self._inbox is not None:
            self._inbox.look_again()

    # -- for the timing wheel, and others

    def post(self, callback: Callable[[], object]) -> None:
        """Have ``callback()`` run in its turn, or twice if this is interrupted. By any thread."""
        try:
            if not self._discard:
                self._posted.append(callback)
                self._settle()
        except BaseException:
            self._settle()  # the callback is there, and nothing else may come
            raise

    def finish(self, *, discard: bool = False) -> None:
        """Take no more batches. Any thread may call it, also again.

        With ``discard``, forget what waits, and finish only the running handler. Otherwise, when
        all is handled, `DispatchHost.drained` is called: by any thread, and maybe more than once.
        """
        self._closed = True
        if discard:
            self._discard = True
            self.runner.discard()
        else:
            self._seal = True
        self._settle()

    def wait_idle(self) -> bool:
        """Wait until nothing is pending; False if it is given up, see `abandon`."""
        while self._busy and not self._abandoned:
            self._wait_idle(None)
        return not self._busy

    def abandon(self, *, discard: bool = True) -> None:
        """Run nothing more, and wait for no handler; with ``discard``, no callback waits either."""
        self._closed = self._abandoned = True
        self._discard = self._discard or discard
        self.runner.discard()
        self._settle()

    def stop(self, *, discard: bool = True) -> None:
        """End `handle`, when it gets there, and unless ``discard`` is false, post nothing more."""
        self._discard = self._discard or discard
        try:
            self._turn.acquire()
            if self._inbox is not None:
                self._inbox.end()
            self._turn.release()
        except BaseException:
            self.recover()
            raise

    def stop_at_once(self) -> bool:
        """Do what `finish` and `stop` do, if nothing waits or runs; return whether that is so."""
        return False  # as a thread is there at least

    def recover(self) -> None:
        """Let go of the turn, if an exception has hit the calling thread in the midst of it."""
        try:
            self._let_go()
        except BaseException:
            self._let_go()  # another exception has come in the midst of that
            raise

    def _let_go(self) -> None:
        while self._turn._is_owned():
            self._turn.release()
        if self._inline == get_ident():
            self._inline = 0
        self.runner.recover(self._application.find())

    def start_over(self, lost: int) -> None:
        """Be as new, while no other thread is in here; so many messages, and calls, are lost."""
        self._posted.clear()
        self._inbox, self._pending, self._inline, self._relieved = None, 0, 0, False
        self.too_late += lost
        self.runner.start_over()
        self._closed = self._discard = self._seal = self._abandoned = False
        self._settle()

    def after_fork(self) -> None:
        """In a child process: be the dispatcher of a connection that has ended."""
        self.renew_turn()
        self._closed = self._discard = self._abandoned = True
        self._inline, self._pending, self._inbox = 0, 0, None
        self._posted.clear()

    # -- taking turns: as in the send queue, no call waits to have something done

    def _release(self) -> None:
        """Let go of the turn, and do what others have noted meanwhile."""
        self._turn.release()
        if self._due:
            self._settle()

    def _settle(self) -> None:
        """Have all that was noted be done: here and now, or by the thread that has the turn."""
        self._due = True
        turn = self._turn
        if turn._is_owned():
            return  # this call has interrupted it
        try:
            while self._due and turn.acquire(False):
                self._due = False
                start, drained = self._advance()
                turn.release()
                if start:
                    self._host.start_handler()
                if drained:
                    self._send_queue.release()
                    self._host.drained()
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Let go of the turn, and end the connection, as something may have been lost."""
        try:
            self._give_up(error)
        except BaseException:
            self._give_up(error)  # another exception has come in the midst of that
            raise

    def _give_up(self, error: BaseException) -> None:
        self.recover()
        if not self._closed:  # else it ends anyway
            self._host.collapse(error)

    def _advance(self) -> tuple[bool, bool]:
        """Do all that is due; tell whether to start a handler, and whether all is handled."""
        start = False
        if self._discard:
            self._posted.clear()
        elif self._posted and not self._abandoned and (not self._inline or self._relieved):
            inbox, start = self._inbox_for_handler()
            posted = list(self._posted)
            self._pending += len(posted)
            inbox.push([(CALL, callback) for callback in posted])
            del self._posted[: len(posted)]
        if self._abandoned and self._inbox is not None:
            self._inbox.unbind()
        if self._abandoned or not self._busy:
            for idle in list(self._waiting):
                idle.set()
        return start, self._seal and not self._busy

    def _wait_idle(self, timeout: float | None) -> None:
        """Wait until nothing is pending, or for any other reason."""
        idle = Wakeup()
        try:
            self._waiting.append(idle)
            if self._busy and not self._abandoned:
                idle.wait(timeout)
        finally:
            if idle in self._waiting:
                self._waiting.remove(idle)

    # -- for the handling role

    def handle(self) -> bool:
        """Run what comes into the inbox; True: go on by reading, False: the connection is over."""
        while True:
            batch = self.inbox.get()
            special = batch[0][0]
            if special is STOP or special is TAKE_OVER:
                return special is TAKE_OVER
            stop = batch[-1][0] is STOP
            if stop:
                batch.pop()
            self._run_pooled(batch)
            if stop:
                return False

    def _run_pooled(self, batch: Batch) -> None:
        """Run a batch that counts as pending, on the pool if there is one.

        It is not begun, and not continued after a handler, while replies fill more than half of the
        send queue. That is waited for here, so it costs none of the workers.
        """
        while batch:
            while self.runner.held_back:
                self._send_queue.wait_uncrowded()
            if self._run_on_pool is None:
                batch = self._run_pending(batch)
                continue
            begun: list[bool] = []
            try:
                batch = self._run_on_pool(self._run_pending, batch, begun)
            except (RuntimeError, CancelledError) as error:
                if begun:
                    raise
                # The pool does no more jobs: someone stopped it, or no thread can be had.
                self._host.report(error, f"handing {len(batch)} messages to the workers")
                self.note_done(len(batch))
                return

    def _run_pending(self, batch: Batch, begun: list[bool] | None = None) -> Batch:
        """Run a batch that counts as pending; return what is left. ``begun`` becomes true first."""
        rest: Batch = []
        if begun is not None:
            begun.append(True)
        try:
            application = self._application.find()
            if application is not None and not self._discard:
                rest = application.variables.run(self.runner.run_pooled, application, batch)
        finally:
            self.note_done(len(batch) - len(rest))
        return rest

    def note_done(self, count: int) -> None:
        """Count what was pending as done; -1 counts something that runs beside the handlers."""
        try:
            self._turn.acquire()
            self._pending -= count
            self._turn.release()
            if self._due or not self._busy:
                self._settle()
        except BaseException:
            self.recover()  # here, as it may be a worker's thread
            raise

    # -- for the watch

    def relieve(self) -> None:
        """Have the other thread read on if a handler blocks the reader, and let replies go."""
        turn = self._turn
        if turn._is_owned():
            return
        try:
            if not turn.acquire(False):
                return  # the next look will do; the turn is never held for long
            self.runner.note_stuck()  # before it may enter again
            start = False
            if self._inline and not self._relieved:
                self._relieved = True
                self._pending += 1
                start = self._pass_reading()
            turn.release()
            if start:
                self._host.start_handler()
            self._settle()
            self._send_queue.release()
        except BaseException as error:
            self._fail(error)
            raise

    def _pass_reading(self) -> bool:
        """Have another thread read; return whether to start the handling thread. Needs the turn."""
        inbox, start = self._inbox_for_handler()
        inbox.push([(TAKE_OVER, None)])
        return start
