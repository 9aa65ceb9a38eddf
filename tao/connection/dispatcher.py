"""From decoded batches to handlers: in order, one at a time, on the thread that costs least.

Guarantees, for each connection:

- Handlers and timer callbacks run in order of arrival, one at a time, whatever thread they run on.
- A handler that blocks never stops its connection from being read.
- What waits is bounded: a full inbox blocks the reading thread, and TCP pushes back on the peer.
- While the send queue is more than half full, no message is handed to a handler: so a peer that
  does not read is held back in the end, and its replies are not lost. It costs no worker.
- `post`, `finish` and `abandon` never wait, wherever they are called.

Two roles are played by two threads, and the threads may swap them. The *reading* role decodes
batches and calls `Dispatcher.dispatch`; the *handling* role, in `Dispatcher.handle`, takes what
waits in the inbox and has it run, on the shared pool for a server. Handing a batch over costs far
more than a quick handler does, so:

- If nothing waits and nothing runs, a batch is run by the reader itself, as far as its handlers are
  known to be quick. That is learned, for each message number: a handler starts in the pool, is
  trusted after a few quick runs, and no longer after slow ones.
- A wrong guess costs speed only. The watch (``block_watch.py``) finds a reader that is stuck in a
  handler after a few milliseconds and tells the handling thread to take over the reading; the stuck
  thread finishes its batch and takes the other role. This is Leader/Followers (Schmidt et al.,
  Pattern-Oriented Software Architecture 2, 2000) with one follower.

The replies to a run of quick handlers are collected and leave together; before a handler not known
to be quick, and when one of them gets stuck after all, what is there leaves at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from math import floor
from operator import length_hint
from threading import get_ident
from time import monotonic
from typing import Any

from tao.connection.application import Application, ApplicationLink
from tao.connection.block_watch import GRACE, BlockWatch
from tao.connection.handler_trust import (
    QUICK,
    TRUST_MOST,
    TRUST_NEEDED,
    DispatchHost,
    call,
    doing,
    learn,
    note,
)
from tao.connection.inbox import CALL, STOP, TAKE_OVER, Inbox
from tao.connection.send_queue import SendQueue
from tao.runtime.context import RequestContext
from tao.runtime.histogram import NEAR, NEAR_PER_SECOND, Latencies
from tao.runtime.wakeup import Wakeup
from tao.wire.codec import Batch
from tao.wire.message import HEARTBEAT, Handler, Registration

__all__ = ["DispatchHost", "Dispatcher"]


class Dispatcher:
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
    """

    __slots__ = (
        "_abandoned", "_application", "_cells", "_closed", "_discard", "_due", "_halt", "_host",
        "_inbox", "_inline", "_latencies", "_limit", "_messages", "_mode", "_pending", "_posted",
        "_relieved", "_run_on_pool", "_runs", "_seal", "_seen", "_seen_since", "_send_queue",
        "_stuck", "_turn", "_waiting", "_watch", "busy_time", "handled", "waiting_for_room",
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
    ) -> None:
        self._host = host
        self._application = application
        self._send_queue = send_queue
        self._watch = watch
        self._run_on_pool = run
        self._mode: str = mode
        self._limit: int = limit
        self._latencies: Latencies = latencies or Latencies()
        self._cells = self._latencies.cells
        # Any thread appends to these, or assigns; each is one step. `_due` is set afterwards.
        self._posted: deque[Callable[[], object]] = deque()  # callbacks that wait to be queued
        self._waiting: deque[Wakeup] = deque()  # threads that wait until nothing is pending
        self._closed: bool = False  # batches are not taken any more
        self._discard: bool = False  # ... and those that wait are not run
        self._seal: bool = False  # the host is to be told once nothing is pending any more
        self._abandoned: bool = False  # nobody waits for what is still pending
        self._due: bool = False  # whether there may be something to do
        # Its owner has the turn, and owns the fields below. It is reentrant only so that the owner
        # is known. It is waited for by the connection's own threads alone.
        self._turn: Any = threading.RLock()
        self._inbox: Inbox | None = None  # made when the handling thread is started
        self._pending: int = 0  # messages in the inbox, and those being run by the handling thread
        self._inline: bool = False  # the reading thread runs a batch
        self._relieved: bool = False  # ... and the other thread has taken over the reading
        # Owned by who runs a batch, one at a time; read by the watch and for figures.
        self._runs: int = 0  # batches begun
        self._messages: Iterator[Any] = iter(())  # what is left of the current one
        self._stuck: bool = False  # the watch found that it blocks; until that has ended
        # After the present handler there is something to see to: it was stuck, or the send queue
        # is more than half full. Set by any thread.
        self._halt: bool = False
        self.handled: int = 0
        self.busy_time: float = 0.0  # seconds spent in handlers, but not in sending
        # Owned by the watch: what it saw last, as (_runs, messages left), and since when.
        self._seen: tuple[int, int] = (0, 0)
        self._seen_since: float = 0.0
        # Owned by the reading role.
        self.waiting_for_room: bool = False

    # -- for the reading role

    def dispatch(self, batch: Batch) -> bool:
        """Run a batch, or queue it; False if meanwhile the other thread has taken over the reading.

        The caller then owes a call of `handle`. Blocks while the inbox is full.
        """
        application = self._application.find()
        if application is None:
            return True
        turn = self._turn
        turn.acquire()
        if self._pending and not self._stuck and self._resolve(application, batch[0][0])[2]:
            # What runs elsewhere is about to end: once this thread has to queue, it would have to
            # for as long as messages keep coming, and a moment's wait ends that.
            self._release()
            self._wait_idle(GRACE)
            turn.acquire()
        if self._closed:
            self._release()
            return True
        if self._pending or self._inline or self._send_queue.crowded:
            self._pending += len(batch)
            self._enqueue(batch)
            return True
        self._inline = True
        turn.release()
        run = self._run_alone if len(batch) == 1 else self._run_inline
        # No callback of this connection runs now.
        rest = application.variables.enter(run, application, batch)
        turn.acquire()
        if not (rest or self._posted or self._relieved):
            self._inline = False
            turn.release()
            if self._due or self._waiting or self._seal:
                self._settle()
            return True  # as nearly always
        return self._end_inline(rest)

    def _end_inline(self, rest: Batch) -> bool:
        """See to what was left or came up while the reader ran a batch. Has, and ends, the turn."""
        relieved, self._relieved = self._relieved, False
        if relieved:
            # The batch counted as pending from then on; what is left of it is to be run here,
            # before anything that waits in the inbox.
            self._pending += len(rest) - 1
            self._inline = False
            self._turn.release()
            self._settle()
            self._run_pooled(rest)
            return False
        while self._posted:
            rest.append((CALL, self._posted.popleft()))
        self._pending += len(rest)
        self._inline = False
        if rest:
            self._enqueue(rest)
        else:
            self._turn.release()
            self._settle()
        return True

    def _enqueue(self, batch: Batch) -> None:
        """Queue a batch that counts as pending, once there is room. Has, and ends, the turn."""
        turn = self._turn
        inbox, start = self._inbox_for_handler()
        self._release()
        if start:
            self._host.start_handler()
        self.waiting_for_room = True
        inbox.wait_for_room()
        turn.acquire()
        inbox.push(batch)
        self.waiting_for_room = False
        self._release()

    def _inbox_for_handler(self) -> tuple[Inbox, bool]:
        """Return the inbox, and whether the caller is to start the thread that empties it.

        Needs the turn.
        """
        start = self._inbox is None
        if self._inbox is None:
            self._inbox = Inbox(self._limit)
        return self._inbox, start

    @property
    def inbox(self) -> Inbox:
        """What waits, once the handling thread was wanted."""
        assert self._inbox is not None
        return self._inbox

    # -- for the timing wheel, and others

    def post(self, callback: Callable[[], object]) -> None:
        """Have ``callback()`` run in its turn. Never blocks; any thread may call it.

        How many may wait is the caller's business.
        """
        if not self._discard:
            self._posted.append(callback)
            self._settle()

    def finish(self, *, discard: bool = False) -> None:
        """Take no more batches. Any thread may call it, also again.

        Args:
            discard: forget what waits; only what runs now is finished. Otherwise, when all that was
                taken has been handled, the host is told that it is `DispatchHost.drained`: maybe at
                once, in this thread, and maybe more than once.
        """
        self._closed = True
        if discard:
            self._discard = True
            self._skip()
        else:
            self._seal = True
        self._settle()

    def wait_idle(self) -> bool:
        """Wait until nothing is pending; False if it is given up, see `abandon`."""
        while self._busy and not self._abandoned:
            self._wait_idle(None)
        return not self._busy

    def abandon(self) -> None:
        """Have nobody wait for handlers that do not end. Any thread may call it."""
        self._closed = self._discard = self._abandoned = True
        self._skip()
        self._settle()

    def _skip(self) -> None:
        """Forget what is left of the current batch, by using up its iterator."""
        deque(self._messages, maxlen=0)

    def stop(self) -> None:
        """End `handle`, when it gets there."""
        self._discard = True
        self._turn.acquire()
        if self._inbox is not None:
            self._inbox.push([(STOP, None)])
        self._turn.release()

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
        self._watch.running.discard(self)
        application = self._application.find()
        if application is not None and application.variables.entered_here:
            application.variables.thread = None

    def renew_turn(self) -> None:
        """In a child process: nobody has the turn."""
        self._turn = threading.RLock()

    def use_watch(self, watch: BlockWatch) -> None:
        """In a child process: be looked after by another watch, before anything is dispatched."""
        self._watch = watch

    def after_fork(self) -> None:
        """In a child process: be the dispatcher of a connection that has ended."""
        self.renew_turn()
        self._closed = self._discard = self._abandoned = True
        self._inline, self._pending, self._inbox = False, 0, None
        self._posted.clear()

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling thread has interrupted itself in the midst of its turn."""
        return bool(self._turn._is_owned())

    @property
    def pending(self) -> int:
        """How many messages wait or are being handled."""
        return self._pending + self._inline

    @property
    def reading_stopped(self) -> bool:
        """Whether nothing is read meanwhile: the reader runs handlers, or waits for room."""
        return (self._inline and not self._relieved) or self.waiting_for_room

    # -- taking turns: as in the send queue, nobody waits to have something done

    @property
    def _busy(self) -> bool:
        return self._inline or self._pending > 0

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
        """Let go of the turn, in which an exception has hit this thread, and end the connection.

        Something may have been lost: a callback, or that the other thread is to be started.
        """
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
        """Do all that is due. Needs the turn.

        Returns:
            whether to start the handling thread, and whether to tell the host that all is handled.
        """
        start = False
        if self._discard:
            self._posted.clear()
        elif self._posted and (not self._inline or self._relieved):
            inbox, start = self._inbox_for_handler()
            callbacks: Batch = [(CALL, self._posted.popleft()) for _ in range(len(self._posted))]
            self._pending += len(callbacks)
            inbox.push(callbacks)
        if self._abandoned and self._inbox is not None:
            self._inbox.unbind()
        if self._abandoned or not self._busy:
            while self._waiting:
                self._waiting.popleft().set()
        return start, self._seal and not self._busy

    def _wait_idle(self, timeout: float | None) -> None:
        """Wait until nothing is pending, or for any other reason."""
        idle = Wakeup()
        self._waiting.append(idle)
        if self._busy and not self._abandoned:
            idle.wait(timeout)
        try:
            self._waiting.remove(idle)
        except ValueError:
            pass  # it has been woken

    # -- for the handling role

    def handle(self) -> bool:
        """Run what comes into the inbox; True: go on by reading, False: the connection is over."""
        while True:
            batch = self.inbox.get()
            special = batch[0][0]
            if special is STOP:
                return False
            if special is TAKE_OVER:
                return True
            stop = batch[-1][0] is STOP
            if stop:
                batch.pop()
            self._run_pooled(batch)
            if stop:
                return False

    def _run_pooled(self, batch: Batch) -> None:
        """Run a batch that counts as pending, on the pool if there is one.

        It is not begun, and not continued after a handler, while the send queue is more than half
        full. That is waited for here, so it costs none of the workers.
        """
        while batch:
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
                self._done(len(batch))
                return

    def _run_pending(self, batch: Batch, begun: list[bool] | None = None) -> Batch:
        """Run a batch that counts as pending, and return what is left of it.

        Args:
            begun: becomes true when this has begun.
        """
        rest: Batch = []
        if begun is not None:
            begun.append(True)
        try:
            application = self._application.find()
            if application is not None and not self._discard:
                rest = application.variables.run(self._run, application, batch)
                self._send_queue.release()
        finally:
            self._done(len(batch) - len(rest))
        return rest

    def _done(self, count: int) -> None:
        try:
            self._turn.acquire()
            self._pending -= count
            self._turn.release()
            if self._due or not self._busy:
                self._settle()
        except BaseException:
            self.recover()  # here, as it may be a worker's thread
            raise

    # -- running

    def _resolve(
        self, application: Application, number: Any
    ) -> tuple[Registration | None, Handler | None, bool]:
        """Return registration and handler of a number, and whether the reader may run that."""
        entry = application.entries.get(number)
        if entry is None:
            if number is CALL:
                return None, call, False
            undefined = self._host.undefined
            return None, lambda context, conn: undefined(number), True
        handler = entry.handler
        if handler is None:
            on_message = application.on_message
            if number == HEARTBEAT or on_message is None:
                return entry, None, True
            handler = lambda context, conn: on_message(context.message, conn)  # noqa: E731
        return entry, handler, entry.trust >= TRUST_NEEDED[entry.dispatch or self._mode]

    def _run_alone(self, application: Application, batch: Batch) -> Batch:
        """What `_run` does inline, for one message: only what it needs, as it bears all of it."""
        number, message = batch[0]
        entry = application.entries.get(number)
        if entry is None or entry.handler is None:
            return self._run_inline(application, batch)
        if entry.trust < TRUST_NEEDED[entry.dispatch or self._mode]:
            return batch
        host, watch, variables = self._host, self._watch, application.variables
        self._stuck = self._halt = False
        self._runs += 1
        variables.thread = get_ident()
        watch.running.add(self)
        if not watch.armed:
            watch.arm()
        started = monotonic() - self._send_queue.send_time
        try:
            entry.handler(RequestContext(host.context, message), application.conn)
        except BaseException as error:
            host.report(error, doing(number))
        watch.running.discard(self)
        variables.thread = None
        self._account(entry, started, 1, number)
        return []

    def _run_inline(self, application: Application, batch: Batch) -> Batch:
        """Run a batch on the reading thread, as far as its handlers are trusted."""
        rest = self._run(application, batch, inline=True)
        self._send_queue.release()
        return rest

    def _run(self, application: Application, batch: Batch, inline: bool = False) -> Batch:
        """Handle a batch and return the part of it that is not for this thread, or not for now.

        Messages of the same number in a row are a group, for which everything is looked up, timed
        and counted once. It ends with a handler that the watch found to block.
        """
        host, send_queue, context = self._host, self._send_queue, self._host.context
        group: Any = self  # no number is equal to it
        entry: Registration | None = None
        handle: Handler | None = None
        collecting = False
        count = 0
        rest: Batch = []
        self._stuck = self._halt = False
        self._runs += 1
        self._messages = messages = iter(batch)
        watch, variables, conn = self._watch, application.variables, application.conn
        variables.thread = get_ident()
        watch.enter(self)
        started = monotonic() - send_queue.send_time
        try:
            for number, message in messages:
                if number != group:
                    if count:
                        started = self._account(entry, started, count, group)
                        count = 0
                    entry, handle, trusted = self._resolve(application, number)
                    if (inline and not trusted) or self._discard:
                        rest = [(number, message), *messages]
                        break
                    if collecting is not (trusted and len(batch) > 1):
                        collecting = not collecting
                        if collecting:
                            send_queue.collect()
                        else:
                            send_queue.release()
                    group = number
                count += 1
                if handle is None:
                    continue
                try:
                    handle(RequestContext(context, message), conn)
                except BaseException as error:
                    host.report(error, doing(number))
                if self._halt:
                    self._halt = False
                    if self._stuck:
                        started = self._account(entry, started, count, group)
                        group, count = self, 0
                        watch.enter(self)  # which has lost interest in it
                    if send_queue.crowded:
                        rest = list(messages)
                        break
        finally:
            watch.running.discard(self)
            variables.thread = None
        if count:
            self._account(entry, started, count, group)
        return [] if self._discard else rest

    def _account(
        self, entry: Registration | None, started: float, count: int, number: object
    ) -> float:
        """Learn from a group that was run; return the time now.

        The time that counts is the clock's, less what was spent sending, where others may have
        taken the interpreter lock. In the histogram each message of the group counts as the mean
        of all, except one that blocks: since when, the watch knows to a few milliseconds.
        """
        now = monotonic() - self._send_queue.send_time
        elapsed = now - started
        self.busy_time += elapsed
        stuck, self._stuck = self._stuck, False
        if entry is not None:
            mean = elapsed / count  # below zero when another thread was sending meanwhile
            if 0.0 <= mean <= QUICK and entry.trust == TRUST_MOST and not stuck:
                try:
                    self._cells[entry.number][NEAR[floor(mean * NEAR_PER_SECOND)]] += count
                    self.handled += count
                    return now
                except KeyError:
                    pass  # the first of its number here
            blocked = monotonic() - self._seen_since if stuck else None
            mean = note(self._latencies, entry, elapsed, count, blocked)
            learn(entry, mean, stuck, self._watch.lateness)
        if number is not CALL:
            self.handled += count  # last, so that whoever sees it finds the rest as well
        return now

    # -- for the watch

    @property
    def host(self) -> DispatchHost:
        """The connection's core."""
        return self._host

    @property
    def progress(self) -> tuple[int, int]:
        """How far it is: the batches begun, and the messages left of the present one.

        How far a batch is, its iterator knows: nobody has to count for it.
        """
        return self._runs, length_hint(self._messages)

    def since(self) -> tuple[tuple[int, int], float]:
        """Return the progress that was seen last, and since when it has been the same."""
        return self._seen, self._seen_since

    def seen(self, progress: tuple[int, int], now: float) -> None:
        """Note a progress that is new. By the watch."""
        self._seen, self._seen_since = progress, now

    def look(self, now: float, grace: float) -> None:
        """See what became of the batch that was running at the last look, see `Watched`."""
        seen = self.progress
        before, self._seen = self._seen, seen
        if before != seen:
            self._seen_since = now
            if before[0] == seen[0]:
                # It goes on, but replies have waited for long enough.
                self._send_queue.flush()
        elif now - self._seen_since >= grace:
            self._relieve()

    def _relieve(self) -> None:
        """Have the other thread read on if a handler blocks the reader, and let replies go."""
        turn = self._turn
        if turn._is_owned():
            return
        try:
            if not turn.acquire(False):
                return  # the next look will do; nobody has the turn for long
            self._watch.blocks(self)  # before it may enter again
            self._stuck = self._halt = True
            start = False
            if self._inline and not self._relieved:
                self._relieved = True
                self._pending += 1
                inbox, start = self._inbox_for_handler()
                inbox.push([(TAKE_OVER, None)])
            turn.release()
            if start:
                self._host.start_handler()
            self._settle()
            self._send_queue.release()
        except BaseException as error:
            self._fail(error)
            raise

    def send_queue_filled(self) -> None:
        """Note that the send queue is more than half full."""
        self._halt = True
