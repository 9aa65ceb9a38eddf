"""From decoded batches to handlers: in order, one at a time, on the thread that costs least.

Guarantees, for each connection:

- Handlers and timer callbacks run in order of arrival, one at a time, whatever thread they run on.
- A handler that blocks never stops its connection from being read.
- What waits is bounded: a full inbox blocks the reading thread, and TCP pushes back on the peer.

Two roles are played by two threads, and the threads may swap them. The *reading* role decodes
batches and calls `Dispatcher.dispatch`; the *handling* role, in `Dispatcher.handle`, takes what
waits in the inbox and has it run, on the shared pool for a server. Handing a batch over costs far
more than a quick handler does, so:

- If nothing waits and nothing runs, a batch is run by the reader itself, as far as its handlers are
  known to be quick. That is learned, for each message number: a handler starts in the pool, is
  trusted after a few quick runs, and no longer after slow ones.
- A wrong guess costs speed only. The watch (``watch.py``) finds a reader that is stuck in a handler
  after a few milliseconds and tells the handling thread to take over the reading; the stuck thread
  finishes its batch and takes the other role. This is Leader/Followers (Schmidt et al.,
  Pattern-Oriented Software Architecture 2, 2000) with one follower.

The replies to a run of quick handlers are collected and leave together; before a handler not known
to be quick, and when one of them gets stuck after all, what is there leaves at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from math import floor
from operator import length_hint
from time import monotonic
from typing import Any

from tao.codec import Batch
from tao.context import RequestContext
from tao.handling import QUICK, TRUST_MOST, TRUST_NEEDED, DispatchHost, call, doing, learn, note
from tao.histogram import NEAR, NEAR_PER_SECOND, Latencies
from tao.inbox import CALL, STOP, TAKE_OVER, Inbox
from tao.message import HEARTBEAT, Handler, Registration, Registry
from tao.send_queue import SendQueue
from tao.watch import GRACE, BlockWatch

__all__ = ["DispatchHost", "Dispatcher"]


class Dispatcher:
    """Runs the handlers of one connection.

    Args:
        host: the connection.
        registry: where handlers are found.
        send_queue: the connection's.
        watch: finds handlers that are stuck.
        run: runs a function on the pool and waits for it; None runs on the handling thread.
        mode: ``"auto"``, ``"pool"`` or ``"inline"``, for handlers that do not say.
        limit: how many messages may wait.
        on_message: called with ``(message, conn)`` where a number has no handler.
        latencies: where to note how long handlers take.
    """

    __slots__ = (
        "_abandoned",
        "_cells",
        "_closed",
        "_discard",
        "_discarded",
        "_entries",
        "_host",
        "_idle",
        "_inbox",
        "_inline",
        "_late",
        "_latencies",
        "_limit",
        "_lock",
        "_messages",
        "_mode",
        "_on_message",
        "_pending",
        "_relieved",
        "_run_on_pool",
        "_runs",
        "_seen",
        "_seen_since",
        "_send_queue",
        "_stuck",
        "_then",
        "_waiting",
        "_watch",
        "busy_time",
        "handled",
        "waiting_for_room",
    )  # fmt: skip

    def __init__(
        self,
        host: DispatchHost,
        registry: Registry,
        send_queue: SendQueue,
        watch: BlockWatch,
        *,
        run: Callable[[Callable[[], object]], object] | None,
        mode: str,
        limit: int,
        on_message: Callable[[Any, Any], object] | None,
        latencies: Latencies | None = None,
    ) -> None:
        self._host = host
        self._entries: dict[int, Registration] = registry.entries
        self._send_queue = send_queue
        self._watch = watch
        self._run_on_pool = run
        self._mode: str = mode
        self._on_message = on_message
        self._limit: int = limit
        self._latencies: Latencies = latencies or Latencies()
        self._cells = self._latencies.cells
        # Guards the fields below.
        self._lock = threading.Lock()
        self._waiting: int = 0  # threads that wait until nothing is pending any more
        self._idle: threading.Condition | None = None  # ... for this, made when one first does
        self._inbox: Inbox | None = None  # made when the handling thread is started
        self._pending: int = 0  # messages in the inbox, and those being run by the handling thread
        self._inline: bool = False  # the reading thread runs a batch
        self._late: Batch = []  # callbacks that came due meanwhile
        self._relieved: bool = False  # ... and the other thread has taken over the reading
        self._closed: bool = False  # batches are not taken any more
        self._discard: bool = False  # ... and those that wait are not run
        self._then: Callable[[], object] | None = None  # called once nothing is pending any more
        self._discarded: int = 0  # messages that were taken and then forgotten
        self._abandoned: bool = False  # nobody waits for what is still pending
        # Owned by who runs a batch, one at a time; read by the watch and for figures.
        self._runs: int = 0  # batches begun
        self._messages: Iterator[Any] = iter(())  # what is left of the current one
        self._stuck: bool = False  # the watch found that it blocks; until that has ended
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
        with self._lock:
            if self._pending and not self._stuck and self._resolve(batch[0][0])[2]:
                # What runs elsewhere is about to end: once this thread has to queue, it would have
                # to for as long as messages keep coming, and a moment's wait ends that.
                self._wait_idle(GRACE)
            if self._closed:
                return True
            inline = not self._pending and not self._inline
            if inline:
                self._inline = True
            else:
                self._pending += len(batch)
                start = self._wants_handler()
        if not inline:
            self._enqueue(batch, start)
            return True
        rest = self._run_alone(batch) if len(batch) == 1 else self._run(batch, inline=True)
        with self._lock:
            if not (rest or self._late or self._relieved or self._then or self._waiting):
                self._inline = False
                return True  # as nearly always
            rest.extend(self._late)
            self._late = []
            self._inline = False
            relieved, self._relieved = self._relieved, False
            if relieved:
                # The batch counted as pending from then on; what is left of it is to be run here,
                # before anything that waits in the inbox.
                self._pending -= 1
            self._pending += len(rest)
            start = bool(rest) and not relieved and self._wants_handler()
            then = self._settled()
        if then is not None:
            then()
        if relieved:
            self._run_pooled(rest)
            return False
        if rest:
            self._enqueue(rest, start)
        return True

    def _enqueue(self, batch: Batch, start_handler: bool) -> None:
        if start_handler:
            self._host.start_handler()
        self.waiting_for_room = True
        self.inbox.put(batch)
        self.waiting_for_room = False

    def _wants_handler(self) -> bool:
        """Tell whether the handling thread is to be started, by the caller. Needs _lock."""
        start = self._inbox is None
        if self._inbox is None:
            self._inbox = Inbox(self._limit)
        return start

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
        item: Batch = [(CALL, callback)]
        with self._lock:
            if self._discard:
                return
            if self._inline and not self._relieved:
                self._late.extend(item)
                return
            self._pending += 1
            start = self._wants_handler()
            self.inbox.push(item)  # here, so that nothing comes after `stop`
        if start:
            self._host.start_handler()

    def finish(self, then: Callable[[], object] | None, *, discard: bool = False) -> None:
        """Take no more batches. Any thread may call it, also again.

        Args:
            then: called once all that was taken has been handled; maybe at once, in this thread.
            discard: forget what waits; only what runs now is finished.
        """
        with self._lock:
            self._closed = True
            self._discard = self._discard or discard
            self._then = then or self._then
            then = self._settled()
        if discard:
            self._skip()
        if then is not None:
            then()

    def wait_idle(self) -> bool:
        """Wait until nothing is pending; False if it is given up, see `abandon`."""
        with self._lock:
            while (self._pending or self._inline) and not self._abandoned:
                self._wait_idle(None)
            return not (self._pending or self._inline)

    def abandon(self) -> None:
        """Have nobody wait for handlers that do not end. Any thread may call it."""
        with self._lock:
            self._abandoned = self._discard = True
            self._wake()
            if self._inbox is not None:
                self._inbox.unbind()
        self._skip()

    def _skip(self) -> None:
        """Forget what is left of the current batch, by using up its iterator."""
        self._give_up(list(self._messages))

    def _give_up(self, batch: Batch) -> None:
        """Count messages that will not be handled."""
        count = sum(isinstance(number, int) for number, _ in batch)
        with self._lock:
            self._discarded += count

    def stop(self) -> None:
        """End `handle`, when it gets there."""
        with self._lock:
            self._discard = True
            if self._inbox is not None:
                self._inbox.push([(STOP, None)])

    @property
    def pending(self) -> int:
        """How many messages wait or are being handled."""
        return self._pending + self._inline

    @property
    def unhandled(self) -> int:
        """How many messages were taken, and not handled to the end, or not yet."""
        with self._lock:
            waiting = 0 if self._inbox is None else self._inbox.messages
            running = self._inline or self._pending > waiting
            begun = running + length_hint(self._messages) if running else 0
            return self._discarded + waiting + begun

    def _settled(self) -> Callable[[], object] | None:
        """If nothing is pending, wake who waits and return what to call. Needs _lock."""
        if self._pending or self._inline:
            return None
        self._wake()
        then, self._then = self._then, None
        return then

    def _wait_idle(self, timeout: float | None) -> None:
        """Wait until nothing is pending, or for any other reason. Needs _lock."""
        if self._idle is None:
            self._idle = threading.Condition(self._lock)
        self._waiting += 1
        self._idle.wait(timeout)
        self._waiting -= 1

    def _wake(self) -> None:
        """Wake all who wait until nothing is pending. Needs _lock."""
        if self._idle is not None:
            self._idle.notify_all()

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
        """Run a batch that counts as pending, on the pool if there is one."""
        if not batch:
            return
        if self._run_on_pool is None:
            self._run_pending(batch)
            return
        try:
            self._run_on_pool(lambda: self._run_pending(batch))
        except (RuntimeError, CancelledError) as error:
            # The pool does no more jobs: someone stopped it, or no thread can be had.
            self._host.report(error, f"handing {len(batch)} messages to the workers")
            self._give_up(batch)
            self._done(len(batch))

    def _run_pending(self, batch: Batch) -> None:
        if self._discard:
            self._give_up(batch)
        else:
            self._run(batch, inline=False)
        self._done(len(batch))
        self._send_queue.release()

    def _done(self, count: int) -> None:
        with self._lock:
            self._pending -= count
            then = self._settled()
        if then is not None:
            self._send_queue.release()
            then()

    # -- running

    def _resolve(self, number: Any) -> tuple[Registration | None, Handler | None, bool]:
        """Return registration and handler of a number, and whether the reader may run that."""
        entry = self._entries.get(number)
        if entry is None:
            if number is CALL:
                return None, call, False
            undefined = self._host.undefined
            return None, lambda context, conn: undefined(number), True
        handler = entry.handler
        if handler is None:
            on_message = self._on_message
            if number == HEARTBEAT or on_message is None:
                return entry, None, True
            handler = lambda context, conn: on_message(context.message, conn)  # noqa: E731
        return entry, handler, entry.trust >= TRUST_NEEDED[entry.dispatch or self._mode]

    def _run_alone(self, batch: Batch) -> Batch:
        """What `_run` does inline, for one message: only what it needs, as it bears all of it."""
        number, message = batch[0]
        entry = self._entries.get(number)
        if entry is None or entry.handler is None:
            return self._run(batch, inline=True)
        if entry.trust < TRUST_NEEDED[entry.dispatch or self._mode]:
            return batch
        host, watch = self._host, self._watch
        self._stuck = False
        self._runs += 1
        watch.running.add(self)
        if not watch.armed:
            watch.arm()
        started = monotonic() - self._send_queue.send_time
        try:
            entry.handler(RequestContext(host.context, message), host)
        except BaseException as error:
            host.report(error, doing(number))
        watch.running.discard(self)
        self._account(entry, started, 1)
        return []

    def _run(self, batch: Batch, *, inline: bool) -> Batch:
        """Handle a batch and return the part of it that is not for this thread.

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
        self._stuck = False
        self._runs += 1
        self._messages = messages = iter(batch)
        watch = self._watch
        watch.enter(self)
        started = monotonic() - send_queue.send_time
        try:
            for number, message in messages:
                if number != group:
                    if count:
                        started = self._account(entry, started, count)
                        count = 0
                    entry, handle, trusted = self._resolve(number)
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
                    handle(RequestContext(context, message), host)
                except BaseException as error:
                    host.report(error, doing(number))
                if self._stuck:
                    started = self._account(entry, started, count)
                    group, count = self, 0
                    watch.enter(self)  # which has lost interest in it
        finally:
            watch.running.discard(self)
        if count:
            self._account(entry, started, count)
        if inline and collecting:
            send_queue.release()
        if rest and self._discard:
            self._give_up(rest)
            return []
        return rest

    def _account(self, entry: Registration | None, started: float, count: int) -> float:
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
        self.handled += count  # last, so that whoever sees it finds the rest as well
        return now

    # -- for the watch

    def look(self, now: float, grace: float) -> None:
        """See what became of the batch that was running at the last look, see `Watched`."""
        # How far it is, its iterator knows: nobody has to count for it.
        seen = self._runs, length_hint(self._messages)
        before, self._seen = self._seen, seen
        if before != seen:
            self._seen_since = now
            if before[0] == seen[0]:
                # It goes on, but replies have waited for long enough.
                self._send_queue.flush()
        elif now - self._seen_since >= grace:
            self._watch.blocks(self)  # before it may enter again
            self._stuck = True
            self._relieve()

    def _relieve(self) -> None:
        """Have the other thread read on if a handler blocks the reader, and let replies go."""
        with self._lock:
            relieve = self._inline and not self._relieved
            if relieve:
                self._relieved = True
                late, self._late = self._late, []
                self._pending += 1 + len(late)
                start = self._wants_handler()
                # Here, so that nothing comes before it.
                self.inbox.push([(TAKE_OVER, None), *late])
        if relieve and start:
            self._host.start_handler()
        self._send_queue.release()
