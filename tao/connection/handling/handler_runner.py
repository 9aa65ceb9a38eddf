"""Calling the handlers of one connection, batch by batch, on the thread that handles.

Here is learned how quick each handler is (``handler_trust.py``), and thus which handlers the
reading thread may run itself. The replies to a run of quick handlers are collected and leave
together. They leave at once before a handler that is not known to be quick, and when a handler gets
stuck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import floor
from operator import length_hint
from threading import get_ident
from time import monotonic
from typing import Any, Protocol

from tao.connection.application import Application, is_heartbeat
from tao.connection.handling.block_watch import BlockWatch
from tao.connection.handling.handler_trust import (
    QUICK,
    TRUST_MOST,
    TRUST_NEEDED,
    DispatchHost,
    call,
    doing,
    learn,
    note,
)
from tao.connection.handling.inbox import CALL
from tao.connection.handling.slow_handlers import calls_handlers
from tao.connection.sending.send_queue import SendQueue
from tao.runtime.context import Context
from tao.runtime.histogram import NEAR, NEAR_PER_SECOND, Latencies
from tao.wire.codec import Batch
from tao.wire.message import ANY, Handler, Registration, UnknownMessage
from tao.wire.middleware import around

__all__ = ["HandlerRunner", "RunnerOwner"]


def _skip(context: Context, conn: Any) -> None:
    """Handle a message that only shows that the peer is alive."""


_NO_MESSAGES: Iterator[Any] = iter(())


class RunnerOwner(Protocol):
    """What this asks of the dispatcher."""

    @property
    def pending(self) -> int:
        """How many messages wait or are being handled."""

    def relieve(self) -> None:
        """Have the other thread read on, as a handler blocks."""


class HandlerRunner:
    """Calls handlers, one at a time. Unless noted otherwise, methods are for the handling thread.

    Args:
        host: the connection's core.
        owner: the dispatcher.
        send_queue: the connection's.
        watch: finds handlers that are stuck.
        mode: ``"auto"``, ``"pool"`` or ``"inline"``, for handlers that do not say.
        latencies: where to note how long handlers take.
        watch_inline: whether the watch looks after batches that the reading thread runs.
    """

    __slots__ = (
        "_cells", "_discard", "_find", "_halt", "_host", "_latencies", "_messages", "_mode",
        "_owner", "_running", "_runs", "_seen", "_seen_since", "_send_queue", "_transmitter",
        "_watch", "_watch_inline", "_wrap", "busy_time", "handled", "needed", "replies_wait",
        "stuck",
    )  # fmt: skip

    def __init__(
        self,
        host: DispatchHost,
        owner: RunnerOwner,
        send_queue: SendQueue,
        watch: BlockWatch,
        *,
        mode: str,
        latencies: Latencies,
        watch_inline: bool = True,
    ) -> None:
        self._host = host
        self._owner = owner
        self._send_queue = send_queue
        self._transmitter = send_queue.transmitter
        self._watch = watch
        self._watch_inline: bool = watch_inline
        self._mode: str = mode
        #: How much trust the handlers need that do not say, for the reading thread to run them.
        self.needed: int = TRUST_NEEDED[mode]
        self._latencies: Latencies = latencies
        # Returns what is called for a number, see `_resolve`.
        self._find: Callable[..., tuple[Registration | None, Handler | None, bool]] = self._resolve
        # What is put around each handler; None: nothing.
        self._wrap: Callable[[Handler | None, bool], Handler] | None = None
        self._cells = latencies.cells
        self._discard: bool = False  # nothing more is run; set by any thread
        # Owned by the thread that runs a batch, one at a time; others read them.
        self._runs: int = 0  # batches begun
        self._messages: Iterator[Any] = _NO_MESSAGES  # the rest of the current batch
        self.handled: int = 0
        self.busy_time: float = 0.0  #: seconds spent in handlers, but not in sending
        #: Whether the watch found that a handler blocks; until that has ended. Set by the watch.
        self.stuck: bool = False
        #: Whether a handler's write has found the send queue more than half full, see `held_back`.
        self.replies_wait: bool = False
        # Whether to stop and look after the present handler: it was stuck, or replies wait. Set by
        # any thread.
        self._halt: bool = False
        # Whether a batch is run, and not only about to be: until then nothing can be stuck.
        self._running: bool = False
        # Owned by the watch: the last state it saw, as (_runs, messages left), and since when.
        self._seen: tuple[int, int] = (0, 0)
        self._seen_since: float = 0.0

    # -- for any thread

    def discard(self) -> None:
        """Run no more handlers, and drop the rest of the current batch."""
        self._discard = True
        deque(self._messages, maxlen=0)  # its iterator is used up

    def start_over(self) -> None:
        """Run handlers again, after `discard`."""
        self._discard = self.stuck = self._halt = False

    def note_replies_wait(self) -> None:
        """Note that a handler's write has found the send queue more than half full."""
        self.replies_wait = self._halt = True

    @property
    def held_back(self) -> bool:
        """Whether the next message has to wait, as replies do.

        Only messages written by handlers of this connection count. If a message had to wait for
        those of other threads, two ends that send to each other without a pause would both stop
        reading for ever.
        """
        if self.replies_wait and not self._send_queue.stays_crowded():
            self.replies_wait = False
        return self.replies_wait

    def recover(self, application: Application | None) -> None:
        """Run nothing, as an exception has hit the calling thread."""
        self._watch.running.discard(self)
        if application is not None and application.variables.entered_here:
            application.variables.thread = None

    def wrap_handlers(self, wrap: Callable[[Handler | None, bool], Handler]) -> None:
        """Call what ``wrap`` makes of each handler from now on. By the reading role.

        Args:
            wrap: takes a handler or None, and whether it is one for a certain message.
        """

        def find(
            application: Application, number: Any
        ) -> tuple[Registration | None, Handler | None, bool]:
            entry, handler, trusted = self._resolve(application, number)
            able = entry is not None and entry.handler is not None
            return entry, wrap(handler, able), trusted

        self._find, self._wrap = find, wrap

    def use_watch(self, watch: BlockWatch) -> None:
        """In a child process: be looked after by another watch, before anything is run."""
        self._watch = watch

    # -- running

    def trusts(self, application: Application, number: Any) -> bool:
        """Whether the reading thread may run the handler of a number."""
        return self._resolve(application, number)[2]

    def find_handler(self, application: Application, number: Any) -> Handler | None:
        """Return what handles the messages of a number, if anything does."""
        return self._resolve(application, number)[1]

    def _resolve(
        self, application: Application, number: Any
    ) -> tuple[Registration | None, Handler | None, bool]:
        """Return registration and handler of a number, and whether the reader may run that."""
        entry = application.entries.get(number)
        if entry is None:
            if number is CALL:
                return None, call, False
            return self._resolve_unregistered(application, number)
        handler = entry.handler
        if handler is None:
            on_message = application.on_message
            if on_message is None or is_heartbeat(application, number, self._host.report):
                return entry, None, True
            handler = around(
                lambda context, conn: on_message(context.message, conn),
                application.registry.middleware,
            )
        return entry, handler, entry.trust >= TRUST_NEEDED[entry.dispatch or self._mode]

    def _resolve_unregistered(
        self, application: Application, number: Any
    ) -> tuple[Registration | None, Handler | None, bool]:
        """Do the same for a number that is not registered."""
        if is_heartbeat(application, number, self._host.report):
            return None, None, True
        entry = application.entries.get(ANY)
        if entry is None or entry.handler is None:
            undefined = self._host.undefined
            return None, lambda context, conn: undefined(number), True
        handler = entry.handler

        def handle(context: Any, conn: Any) -> None:
            if context.message is None:  # from a decoder that does not keep it
                context.message = UnknownMessage(number, None)
            handler(context, conn)

        return entry, handle, entry.trust >= TRUST_NEEDED[entry.dispatch or self._mode]

    @calls_handlers
    def run_alone(
        self, application: Application, entry: Any, number: Any, message: Any, thread: int
    ) -> None:
        """Do what `run` does inline, for a single message with a trusted handler, in fewer steps.

        Args:
            entry: the registration of the number.
            thread: the calling one.
        """
        host, transmitter, variables = self._host, self._transmitter, application.variables
        # What is called from variables is found faster than what is an attribute.
        make_context, enter = application.make_context, variables.enter
        handler, find_conn = entry.handler, application.find_conn
        if self._wrap is not None:
            handler = self._wrap(handler, True)
        conn = find_conn()
        handling: Context | None = None
        self.stuck = False
        self._runs += 1
        if self._watch_inline:
            self._watch.enter(self)
        else:
            self._send_queue.collect()
        variables.thread = thread
        self._running = True
        started = monotonic() - transmitter.send_time
        try:
            handling = make_context(host.context, message)
            enter(handler, handling, conn)
        except BaseException as error:
            enter(host.report, error, doing(number), handling)
        elapsed = monotonic() - transmitter.send_time - started
        self._running = False
        variables.thread = None
        if self._watch_inline:
            self._watch.running.discard(self)
        else:
            self._send_queue.collecting = 0
        cells = self._cells.get(number)
        if cells and entry.trust == TRUST_MOST and not self.stuck and 0.0 <= elapsed <= QUICK:
            cells[NEAR[floor(elapsed * NEAR_PER_SECOND)]] += 1  # as nearly always
            self.busy_time += elapsed
            self.handled += 1
        else:
            self._note_run(entry, elapsed, 1, number)

    def run_inline(self, application: Application, batch: Batch) -> Batch:
        """Run a batch on the reading thread, as far as its handlers are trusted."""
        if self._watch_inline:
            self._watch.enter(self)
        rest = self.run(application, batch, inline=True)
        self._send_queue.release()
        application.variables.thread = None
        return rest

    def run_pooled(self, application: Application, batch: Batch) -> Batch:
        """Run a batch on the handling thread or on a worker; return the rest of it."""
        self._watch.enter(self)
        rest = self.run(application, batch)
        self._send_queue.release()
        return rest

    @calls_handlers
    def run(self, application: Application, batch: Batch, inline: bool = False) -> Batch:
        """Handle a batch and return the part of it that is not for this thread, or not for now.

        Messages of the same number in a row are a group, for which everything is looked up, timed
        and counted once. It ends with a handler that the watch found to block.
        """
        host, send_queue, context = self._host, self._send_queue, self._host.context
        group: Any = self  # no number is equal to it
        entry: Registration | None = None
        handle: Handler = _skip
        collecting, count = False, 0
        handling: Context | None = None
        rest: Batch = []
        messages = self._begin(batch)
        watch, variables, conn = self._watch, application.variables, application.find_conn()
        make_context = application.make_context
        variables.thread = get_ident()
        started = monotonic() - self._transmitter.send_time
        try:
            for number, message in messages:
                if number != group:
                    if count:
                        started = self._account(entry, started, count, group)
                        count = 0
                    entry, handler, trusted = self._find(application, number)
                    handle = handler or _skip
                    if (inline and not trusted) or self._discard:
                        rest = [(number, message), *messages]
                        break
                    if collecting is not (trusted and len(batch) > 1):
                        collecting = not collecting
                        (send_queue.collect if collecting else send_queue.release)()
                    group = number
                count += 1
                try:
                    handle(handling := make_context(context, message), conn)
                except BaseException as error:
                    host.report(error, doing(number), None if number is CALL else handling)
                if self._halt:
                    self._halt = False
                    if self.stuck:
                        started = self._account(entry, started, count, group)
                        group, count = self, 0
                        watch.enter(self)  # which has lost interest in it
                    if self.held_back:
                        rest = list(messages)
                        break
        finally:
            self._running = False
            watch.running.discard(self)
        if count:
            self._account(entry, started, count, group)
        return [] if self._discard else rest

    def _begin(self, batch: Batch) -> Iterator[Any]:
        """Note that a batch is run from now on; return its messages."""
        self.stuck = self._halt = False
        self._runs += 1
        self._messages = messages = iter(batch)
        self._running = True
        return messages

    def _account(
        self, entry: Registration | None, started: float, count: int, number: object
    ) -> float:
        """Note a group that was run; return the time now.

        Time spent sending does not count, as other threads may have taken the interpreter lock
        then.
        """
        now = monotonic() - self._transmitter.send_time
        self._note_run(entry, now - started, count, number)
        return now

    def _note_run(
        self, entry: Registration | None, elapsed: float, count: int, number: object
    ) -> None:
        """Count messages that were handled, and learn from how long that took.

        In the histogram each message of a group counts with the mean of all, except one that
        blocks: the watch knows its start to a few milliseconds.
        """
        self.busy_time += elapsed
        stuck, self.stuck = self.stuck, False
        if entry is not None:
            mean = elapsed / count  # below zero when another thread was sending meanwhile
            if 0.0 <= mean <= QUICK and entry.trust == TRUST_MOST and not stuck:
                try:
                    self._cells[entry.number][NEAR[floor(mean * NEAR_PER_SECOND)]] += count
                    self.handled += count
                    return
                except KeyError:
                    pass  # the first of its number here
            blocked = monotonic() - self._seen_since if stuck else None
            mean = note(self._latencies, entry, elapsed, count, blocked)
            learn(entry, mean, stuck, self._watch.lateness)
        if number is not CALL:
            self.handled += count  # last, so that a reader of it finds the rest updated

    # -- for the watch

    @property
    def host(self) -> DispatchHost:
        """The connection's core."""
        return self._host

    @property
    def pending(self) -> int:
        """How many messages wait or are being handled."""
        return self._owner.pending

    def note_stuck(self) -> None:
        """Note that the present handler blocks, so that it is not looked at until the next."""
        self._watch.blocks(self)
        self.stuck = self._halt = True

    @property
    def progress(self) -> tuple[int, int]:
        """How far it is: the batches begun, and the messages left of the present one.

        The batch's iterator knows its position, so no counting is needed.
        """
        return self._runs, length_hint(self._messages)

    def since(self) -> tuple[tuple[int, int], float]:
        """Return the progress that was seen last, and since when it has been the same."""
        return self._seen, self._seen_since

    def seen(self, progress: tuple[int, int], now: float) -> None:
        """Note a progress that is new. By the watch."""
        self._seen, self._seen_since = progress, now

    def look(self, now: float, grace: float) -> None:
        """Check the batch that was running at the last check, see `Watched`."""
        if not self._running:
            return
        seen = self.progress
        before, self._seen = self._seen, seen
        if before != seen:
            self._seen_since = now
            if before[0] == seen[0]:
                # The handler continues, but replies have waited for long enough.
                self._send_queue.flush()
        elif now - self._seen_since >= grace:
            self._owner.relieve()
