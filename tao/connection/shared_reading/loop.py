"""Shared reading: one thread waits for many connections, and reads each that is ready.

With ``readers="own"`` a thread of each connection blocks in ``recv``. Where each of many
connections has one message under way, every message is then a change of threads. With
``readers="shared"`` one thread, the *leader*, waits for all of them in the kernel's poller; it
receives without blocking, decodes, and dispatches as a connection's own reader does. Go's runtime
does the same for goroutines that are blocked in a read.

Guarantees:

- The leader waits for nothing but the poller. What may take long (a callback, the last steps of a
  connection whose handler still runs) is left to other threads.
- A handler that blocks the leader holds up its own connection only: after a few milliseconds the
  watch has a follower take the lead. The blocked thread finishes its handler, and becomes a
  follower. This is Leader/Followers (Schmidt et al., Pattern-Oriented Software Architecture 2,
  2000).
- What handlers write in a round leaves together, some dozens of turns at a time. It waits for less
  than a millisecond, and for no handler that takes long; see ``member.py``.
- If many connections end at once, the others are served meanwhile, and new ones; see
  ``departing.py``.
- A turn of one connection is bounded: one receive, of no more than what is handled in about 2 ms,
  see ``reading.py``. A connection whose turn took long, and of which more waits, is not read again
  before the others have had their share, see ``breaks.py``.
- Whatever is raised in these threads, there is a leader until the loop is stopped.

The watch inspects the leader only after a watchdog, which the leader kicks between turns, reports
no progress: each inspection takes the interpreter lock from it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Set
from functools import partial
from itertools import chain
from operator import itemgetter
from threading import RLock, Thread, current_thread
from time import monotonic

from tao.connection.handling.block_watch import GRACE, BlockWatch
from tao.connection.shared_reading.breaks import LONG, QUIET, Breaks, Resting
from tao.connection.shared_reading.departing import FEW, Departing
from tao.connection.shared_reading.member import SOON, Member, Polled
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.watchdog import Watchdog, new_watchdog
from tao.transport.poller import ENDED, READABLE, Poller, new_poller

__all__ = ["ReadingLoop"]

# How long a follower waits for the lead before it ends, in seconds, and the pause after an error
# that the next round might meet too.
_PATIENCE, _PAUSE = 10.0, 0.05
# The watchdog barks when a turn has taken so long, in seconds, and is kicked twice as often.
_WATCHDOG = GRACE / 2
# The bits of an end are the highest among those of events.
_events_of = itemgetter(1)


class ReadingLoop:
    """A leader and its followers. Any thread may call any method.

    Args:
        name: of the leader's thread.
        cpus: the processors that the threads may run on; None: any.
    """

    def __init__(self, name: str, cpus: Set[int] | None = None) -> None:
        self._name = name
        self._cpus = cpus
        # What `start` has made; the first one counts, and each is freed in the end. So nothing is
        # lost if a start is interrupted, or begun once more in its midst.
        self._made: list[tuple[Poller, Watchdog | None]] = []
        # The first one's. The poller is closed by the last thread, or by the stop if there is none.
        # The watchdog has the watch look after the leader; None: where there are none.
        self._poller: Poller | None = None
        self._watchdog: Watchdog | None = None
        #: What is waited for, by descriptor. Changed in single steps.
        self.members: dict[int, Polled] = {}
        # What the leader is to call, and on behalf of which member. Appended to in one step.
        self._calls: deque[tuple[Polled, Callable[[], object]]] = deque()
        # Which thread leads; None: the lead is vacant. Then the thread whose claim is here, under
        # one key, appoints another.
        self._leader: Member | None = None
        self._appointing: dict[str, object] = {}  # changed in single steps
        self._followers: deque[Member] = deque()  # changed in single steps
        self._threads: set[Thread] = set()  # each adds and removes itself
        self._stopped: bool = False
        self._starting = RLock()  # serialises `start`
        self._leading: Thread = current_thread()  # set by each leader
        self._latest = Member()  # the one that leads, or led last; set by each leader
        # Owned by the leader.
        self._breaks = Breaks()
        self._departing = Departing()
        self._kick_at: float = 0.0  # when the watchdog is to be kicked again
        self._watch: BlockWatch | None = None  # set by `start`

    # -- for any thread

    def start(self, watch: BlockWatch) -> None:
        """Start the first leader, unless that is done.

        Args:
            watch: finds out when the leader is blocked.

        Raises:
            OSError: there is no descriptor for the poller.
            RuntimeError: no thread can be started.
        """
        with self._starting:
            if not self._made:
                self._watch, poller = watch, new_poller()
                try:
                    self._made.append((poller, self._new_watchdog()))
                except OSError:
                    poller.close()
                    raise
            self._poller, self._watchdog = self._made[0]
            if not self._stopped:
                if self._watchdog is not None:
                    self._watchdog.start()
                self.pass_lead()
            if self._stopped:
                self.retire()  # which may not have seen what was made meanwhile

    def _new_watchdog(self) -> Watchdog | None:
        name = self._name.replace("reader", "watchdog")
        return new_watchdog(name, _WATCHDOG, self._look_after_leader, self._cpus)

    def change(self, descriptor: int, before: int, now: int) -> None:
        """See `Poller.change`. After the stop it does nothing."""
        poller = self._poller
        if poller is not None and not self._stopped:
            try:
                poller.change(descriptor, before, now)
            except ValueError:  # it has just been closed
                if not self._stopped:
                    raise

    def _wake(self) -> None:
        poller = self._poller
        if poller is not None:
            poller.wake()

    def call_soon(self, member: Polled, function: Callable[[], object]) -> None:
        """Have the leader call a function that does not block, as a turn of a member."""
        self._calls.append((member, function))
        self._wake()

    def vacate_lead(self) -> None:
        """Take the lead away from the leader, which a handler blocks; see `pass_lead`."""
        self._leader = None

    def pass_lead(self) -> None:
        """Give the lead to another thread, if it is vacant.

        Raises:
            RuntimeError, MemoryError: no thread can be started. The lead stays vacant, until this
                is called again, or the blocked thread goes on.
        """
        claim = object()
        try:
            # Whoever is turned away leaves it to the thread that appoints, which looks once more
            # after that.
            while self._leader is None and self._claim(claim) is claim:
                if self._leader is None:
                    self._appoint()
                self._appointing.clear()
        except BaseException:
            try:
                self._withdraw(claim)
            finally:
                self._withdraw(claim)  # again, as the first call may have been interrupted
            raise

    def _claim(self, claim: object) -> object:
        return self._appointing.setdefault("claim", claim)

    def _withdraw(self, claim: object) -> None:
        """Have others appoint a leader, or see that one is appointed, after an exception."""
        if self._appointing.get("claim") is claim:
            self._appointing.clear()
        leader = self._leader
        for each in list(self._followers) if leader is None else [leader]:
            each.called.set()  # it may not have been called, or been turned away

    @property
    def stopped(self) -> bool:
        """Whether the loop has ended, or is about to; never reset."""
        return self._stopped

    @property
    def leader(self) -> Thread:
        """The thread that leads."""
        return self._leading

    def retire(self) -> None:
        """Have the threads end, without waiting for them."""
        self._stopped = True
        self._wake()
        for follower in list(self._followers):
            follower.called.set()
        if self._watch is not None:
            self._watch.running.discard(self)
        self._stop_watchdogs()
        if not self._threads:
            self._end()

    def stop(self, deadline: Deadline, stuck: Set[int | None] = frozenset()) -> list[Thread]:
        """End the loop; return the threads that have not ended in time.

        Args:
            stuck: the idents of threads that are not waited for.
        """
        self.retire()
        threads = [each for each in list(self._threads) if each.ident not in stuck]
        if self._watchdog is not None and self._watchdog.thread is not None:
            threads.append(self._watchdog.thread)
        return gather(threads, deadline)

    def _end(self) -> None:
        """Have what is left end by itself: at the deadline of a stop that may be much."""
        self._stop_watchdogs()  # once more, as that may have been interrupted
        self._close()
        for each in list(self.members.values()):
            try:
                each.abandoned()
            except Exception as error:
                each.struck(error)

    def _close(self) -> None:
        for poller, _ in list(self._made):
            poller.close()

    def _stop_watchdogs(self) -> None:
        for _, watchdog in list(self._made):
            if watchdog is not None:
                watchdog.stop()

    @property
    def threads(self) -> list[Thread]:
        """The leader, the followers, and threads that are blocked in a handler."""
        return list(self._threads)

    def after_fork(self) -> None:
        """In a child process: the threads do not exist, and the sockets are the parent's."""
        self._stopped = True
        self._leader = None
        self._appointing.clear()
        self._threads.clear()
        self._followers.clear()
        self.members.clear()
        for _, watchdog in list(self._made):
            if watchdog is not None:
                watchdog.close()
        self._close()

    # -- the lead

    def _appoint(self) -> None:
        """Give the lead to a follower, or to a new thread."""
        try:
            member = self._followers[-1]
        except IndexError:
            self._start_thread()
            return
        try:
            self._followers.remove(member)
            self._leader = member
        except ValueError:
            pass  # it has just ended
        finally:
            member.called.set()

    def _start_thread(self) -> None:
        member = Member()
        run = partial(self._run, member)
        thread = spawn(run, name=self._name, cpus=self._cpus, failed=run)
        try:
            self._threads.add(thread)
            self._leader = member
            thread.start()
        except BaseException:
            if thread.withdraw():  # otherwise it has begun, and leads
                self._leader = None
                self._threads.discard(thread)
            raise

    def _run(self, me: Member, error: BaseException | None = None) -> None:
        """Lead and follow, until the loop ends or this thread is not needed any more.

        Args:
            error: has interrupted this, which is called again then.
        """
        thread = current_thread()
        try:
            self._threads.add(thread)
            if error is not None:
                self._strike(me, error)
            while not self._stopped and (self._leader is me or self._follow(me)):
                self._leading = thread
                thread.name = self._name
                self._lead(me)
                thread.name = "tao-spare"
        finally:
            self._threads.discard(thread)
            if self._stopped and not self._threads:
                self._end()

    def _follow(self, me: Member) -> bool:
        """Wait for the lead; return False if this thread is not needed."""
        me.send_collected(monotonic())
        me.serving = None
        me.called.clear()
        while not self._stopped:
            if me not in self._followers:  # or no more, as what took it out was interrupted
                self._followers.append(me)
            if self._leader is None:
                self.pass_lead()  # perhaps to this thread
            if self._leader is me or me.called.wait(_PATIENCE):
                return not self._stopped
            try:
                self._followers.remove(me)
            except ValueError:
                continue  # it is about to be called
            return False
        return False

    def _lead(self, me: Member) -> None:
        """Serve what is ready, until another thread has the lead."""
        self._latest, me.awake, me.serving = me, False, None
        while me in self._followers:
            self._followers.remove(me)  # it was interrupted while it followed
        while self._leader is me and not self._stopped:
            try:
                me.send_collected(monotonic())  # of turns that an exception has ended
                self._serve(me)
            except BaseException as error:
                self._stumble(me, error)
        me.serving = None

    def _serve(self, me: Member) -> None:
        watch, members, calls, poller = self._watch, self.members, self._calls, self._poller
        breaks, departing, unsent = self._breaks, self._departing, me.unsent
        assert watch is not None and poller is not None
        while self._leader is me and not self._stopped:
            ready = self._wait(poller)
            if self._leader is not me:
                poller.wake()  # the leader, in case this thread was woken in its stead
                return
            me.awake = True
            now = monotonic()
            if now >= self._kick_at:
                self._kick(now)
            soon = now + SOON
            began, count = now, len(ready) + len(departing)
            to_serve: Iterable[tuple[int, int]] = ready
            if departing or (len(ready) > FEW and max(ready, key=_events_of)[1] & ENDED):
                others = departing.set_aside(ready, members)
                to_serve, now = chain(others, departing.some(members)), monotonic()
            long: list[tuple[Resting, float]] = []
            if calls and not self._make_calls(me):
                return
            for descriptor, events in to_serve:
                each = members.get(descriptor)
                if each is None:
                    continue
                me.serving = each
                each.turn(events, now)
                if each.outbox.noted:
                    unsent.append(each)
                if self._leader is not me:
                    return  # what else is ready is for the new leader
                if events != READABLE and events & ENDED and members.get(descriptor) is each:
                    each.end_break()  # it has waited for its end, which is not reached yet
                started, now = now, monotonic()
                if now >= soon:
                    if now >= self._kick_at:
                        self._kick(now)
                    if now - started > LONG:
                        long.append((each, now - started))
                        began += now - started
                    me.send_collected(now)
                    soon = now + SOON
                if calls and not self._make_calls(me):
                    return
            me.send_collected(now)
            me.awake, me.serving = False, None
            watch.running.discard(self)
            breaks.shared += now - began
            if long:
                breaks.begin(long, contended=count > len(long))

    def _wait(self, poller: Poller) -> list[tuple[int, int]]:
        """Wait until something is ready; during breaks, for others, and for a while only."""
        calls, departing, breaks = self._calls, self._departing, self._breaks
        at_once = calls or departing
        if not breaks:
            return poller.wait(0 if at_once else None)
        began = monotonic()
        ready = poller.wait(0 if at_once else QUIET)
        breaks.waited(monotonic() - began, quiet=not (ready or calls or departing))
        return ready

    def _make_calls(self, me: Member) -> bool:
        """Make the calls that were asked for; return False if this thread has lost the lead."""
        calls = self._calls
        while calls:
            me.serving, call = member, _ = calls[0]  # left there until this thread answers for it
            calls.popleft()
            call()
            if member.outbox.noted:
                me.unsent.append(member)
            if self._leader is not me:
                return False
        return True

    def _stumble(self, me: Member, error: BaseException) -> None:
        """End the connection whose turn has raised; go on after an error of the loop itself."""
        if not self._strike(me, error):
            logger.opt(exception=error).error("{} continues after an error", self._name)
            time.sleep(_PAUSE)

    def _strike(self, me: Member, error: BaseException) -> bool:
        """End the connection that the thread serves, if any; return whether there is one.

        The thread may have lost the lead meanwhile: it still answers for this connection.
        """
        serving, me.serving = me.serving, None
        if serving is None:
            return False
        try:
            serving.struck(error)
        except BaseException as another:
            serving.struck(another)  # it has interrupted that
            raise
        return True

    # -- being watched

    def _kick(self, now: float) -> None:
        """Tell the watchdog that the leader is not blocked. By the leader."""
        watchdog = self._watchdog
        if watchdog is None:
            self._watch_leader()
        else:
            watchdog.kick()
            self._kick_at = now + _WATCHDOG / 2

    def _look_after_leader(self) -> None:
        """Have the watch look at the leader unless it waits. By the watchdog."""
        if self._latest.awake:
            self._watch_leader()

    def _watch_leader(self) -> None:
        if self._watch is not None and not self._stopped:
            self._watch.enter(self)

    # For the watch, which sees the leader as one that runs handlers.

    def look(self, now: float, grace: float) -> None:
        """See whether the leader is blocked by a handler of the connection that it serves.

        Until now it has sent nothing that handlers of other connections have written; that is done.
        """
        self._latest.flush()
        serving = self._latest.serving
        if serving is not None:
            serving.look(now, grace)
