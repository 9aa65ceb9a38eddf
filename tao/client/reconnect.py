"""The core of a client: connecting, and reconnecting when the connection is lost.

The application refers to a `ClientConn` (``client.py``), and the threads of the connection refer to
the core. The core does not refer to the `ClientConn`, so the garbage collector can tell whether the
application still uses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from tao.client.back_off import BackOff
from tao.client.developer_warnings import warn_unclosed, warn_unheard
from tao.client.dialling import Reached
from tao.client.leaving import Leaving
from tao.client.renewal import Renewal
from tao.client.resuming import Resuming
from tao.client.start_claim import StartClaim
from tao.client.usefulness import Usefulness
from tao.connection.application import Application, without_application
from tao.connection.core import ConnectionCore
from tao.connection.handling.block_watch import watch_on
from tao.connection.lifecycle import Event, Phase
from tao.connection.options.definitions import ClientSettings, Reconnect
from tao.connection.reports.statistics import Snapshot, Statistics
from tao.connection.shared_reading.readers import client_readers, giving_back
from tao.connection.shared_reading.roles import SharedRoles
from tao.errors import ConnectFailed, ConnectionClosed
from tao.runtime.combining import in_a_turn
from tao.runtime.context import Context, background
from tao.runtime.forks import renew_after_fork
from tao.runtime.threads import as_tao_thread, in_tao_thread
from tao.runtime.timing_wheel import TimingWheel, shared_wheel
from tao.runtime.wakeup import Wakeup
from tao.transport.error_text import explain
from tao.transport.stream import Transport
from tao.wire.capabilities import LEAVES, REQUESTS

__all__ = ["ClientCore"]

_ids = itertools.count(1)
# How long close() waits beyond the drain timeout, in seconds.
_SLACK = 5.0
_PLAYER = "player"


class ClientCore(ConnectionCore):
    """The implementation of a `ClientConn`. All methods may be called from any thread.

    Args:
        application: the application's objects, including the source of transports.
        settings: validated.
        made_at: file and line of the program that made the client.

    Raises:
        ValueError: the source gives one connection only, so ``reconnect`` is impossible.
    """

    label = "client-{}"

    def __init__(
        self, application: Application, settings: ClientSettings, made_at: tuple[str, int]
    ) -> None:
        reconnect = settings.reconnect
        application.reconnect = Reconnect() if reconnect is True else reconnect or None
        source = application.source
        self._reconnects: bool = application.reconnect is not None
        if source.once and self._reconnects:
            raise ValueError(
                "reconnect: a socket that is connected already cannot be connected again; give a "
                "function that returns a new one each time"
            )
        user = object()
        # Called at the end, or when a client that never started is dropped.
        self._give_back = giving_back(self, shared_wheel.release, user)
        wheel = shared_wheel.acquire(user)
        self._reader_threads = settings.shared_readers if source.polled else 0
        readers, self._give_back_readers = client_readers.lease(self, self._reader_threads, wheel)
        net_id = next(_ids)
        super().__init__(
            net_id,
            without_application(settings, reconnect=False, session=False),
            application,
            wheel=wheel,
            run=None,
            parent=background(),
            statistics=Statistics(f"client-{net_id}", self._fill),
            keep=self._reconnects,
            readers=readers,
        )
        self.remote_address = source.address
        self._where, self._made_at = str(source), made_at  # to be shown
        self._forgotten: bool = False  # the application has dropped it; never reset
        # Under one key, the claim of the thread that starts the client, reads and finishes it; or
        # that only finishes a client that was never started.
        self._claims: dict[str, StartClaim] = {}
        # Owned by the reading thread, once there is one.
        self.usefulness = Usefulness(self)
        self._up = Wakeup()  # set while established
        if self._reconnects:
            self.capabilities = REQUESTS | LEAVES
        self.leaving = Leaving(self)
        self.resuming = Resuming(self, settings)
        self.back_off = BackOff(self, getattr(self.roles, "renew", None))
        self.renewal = Renewal(self)
        #: How many times the client has reconnected.
        self.reconnects: int = 0
        renew_after_fork(self, ClientCore.renew_after_fork)
        if settings.on_message is None:
            self.error_reports.unheard = partial(warn_unheard, made_at)
        self.statistics.client = self
        self.statistics.publish()

    # -- for the application, see ClientConn

    def start(self, keep_trying: bool) -> None:
        """Connect, or start connecting in the background."""
        if keep_trying and not self._reconnects:
            raise ValueError("keep_trying needs the option reconnect")
        claim = StartClaim()
        try:
            try:
                self._start(claim, keep_trying)
            except BaseException:
                self._give_up(claim)
                raise
        except BaseException:
            self._give_up(claim)  # again, as the first call may have been interrupted
            raise

    def _start(self, claim: StartClaim, keep_trying: bool) -> None:
        self._raise_if_closed()
        if self._claims.setdefault(_PLAYER, claim) is not claim:
            self._raise_if_closed()
            raise RuntimeError("the client is started already")
        with as_tao_thread():  # a callback that closes must not wait for this thread
            if keep_trying:
                self.renewal.from_start = True
                self._launch(claim, self.roles.begin, self.renew)
                return
            with self.renewal.by_this_thread():
                self._connect_first()
            self.back_off.first = False
            closed = self.lifecycle.close_reason
            if self.readiness.has_lent_reading():
                claim.hand_over(bool)
            else:  # even if closed: it ends the connection
                self._launch(claim, self.roles.play, True)
        if closed is not None:
            raise ConnectionClosed(closed)

    def _give_up(self, claim: StartClaim) -> None:
        """Undo a start that failed or was interrupted, unless a thread has taken over."""
        if self._claims.get(_PLAYER) is not claim or not claim.give_up():
            return
        if self.transport is not None:
            self.begin_close("start() was interrupted", drain=False)
        self._claims.pop(_PLAYER, None)
        if self.lifecycle.close_reason is not None:
            self._see_off()

    def _raise_if_closed(self) -> None:
        if (reason := self.lifecycle.close_reason) is not None:
            raise ConnectionClosed(reason)

    def close_and_wait(self, reason: str) -> None:
        """Close the connection permanently, and wait until it has ended."""
        self.close(reason)
        self._see_off()
        if not in_tao_thread():
            self.wait_closed(self.settings.drain_timeout + _SLACK)

    @property
    def interrupted_here(self) -> bool:
        return self.in_call_of_application() or super().interrupted_here

    @property
    def must_not_wait_here(self) -> bool:
        return self.interrupted_here and not self.greetings.speaks_here

    def _see_off(self) -> bool:
        """Finish a client that has no thread; return whether it has none."""
        claim = StartClaim()
        try:
            first = self._claims.setdefault(_PLAYER, claim)
            if first is not claim and not first.given_up:
                return False
            with as_tao_thread():
                self.finish()
        except BaseException:
            try:
                claim.leave(self._claims)  # so that closing again does it
            finally:
                claim.leave(self._claims)  # again, as the first call may have been interrupted
            raise
        return True

    @property
    def new(self) -> bool:
        """Whether it was neither started nor closed."""
        return _PLAYER not in self._claims

    @property
    def connected(self) -> bool:
        return self._up.is_set() and self.lifecycle.close_reason is None

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait for a connection or the close of the client; return whether it is connected.

        Like `wait_closed`, it does not wait if it has interrupted a call of tao's.
        """
        self._up.wait(0 if self.interrupted_here or in_a_turn() else timeout)
        return self.connected

    def enter(self) -> None:
        """Connect, unless connected already."""
        if self.new or self.lifecycle.close_reason is not None:
            self.start(keep_trying=False)

    def forget(self, application: Application, client: Any) -> None:
        """Close a client that the application has dropped. Called by a finalizer.

        A finalizer may run at any moment on any thread, so another thread does the work.
        """
        unused = self.new
        self._forgotten = True  # before it looks for a thread, which may just be started
        if self.finished.is_set() or (unused and not (len(self.timers) or self.roles.threads)):
            self._give_all_back()  # not only when the collector finds it
            return
        self.application.hold(application, client)  # for on_close and other callbacks
        if self.lifecycle.close_reason is not None and not unused:
            return
        self._end_soon(unused)
        warn_unclosed(client, application, self._made_at)

    def start_handler(self) -> None:
        super().start_handler()
        if self._forgotten and self.new:  # meanwhile, and the thread may have been overlooked
            self._end_soon(unused=True)

    def _end_soon(self, unused: bool) -> None:
        claim = StartClaim() if unused else None
        try:
            self.wheel.in_real_time.run_clock(0.0, lambda due: self._end_forgotten(claim))
        except RuntimeError:
            self._end_forgotten(claim)  # the wheel was given back, or the connection has ended

    def _end_forgotten(self, claim: StartClaim | None) -> None:
        """Close it; with a claim, also end the thread of its timers. It may be repeated."""
        self.begin_close("forgotten without close()", drain=False)
        if claim is not None and self._claims.setdefault(_PLAYER, claim) is claim:
            self._launch(claim, self.roles.begin, lambda: False)

    # -- getting connected

    def in_call_of_application(self) -> bool:
        claim = self._claims.get(_PLAYER)
        return claim is not None and claim.waits_for_this_thread

    def _launch(self, claim: StartClaim, target: Callable[..., object], *args: Any) -> None:
        try:
            failed = partial(self._kept_from, claim)
            self.roles.launch(failed, claim.hand_over, target, *args)
            claim.note_launched()
        except RuntimeError:  # no thread can be started
            self.begin_close("no thread could be started", drain=False)
            raise

    def _kept_from(self, claim: StartClaim, error: BaseException) -> None:
        """End the client if its first thread has failed, unless start() has given up already."""
        if self._claims.get(_PLAYER) is claim:
            claim.hand_over(self.roles.struck, error)

    def _connect_first(self) -> None:
        """Connect; if a connection ends before it is established, try the next server."""
        application = self.application.find()
        for left in reversed(range(1 if application is None else application.source.size)):
            try:
                self.connect_once()
                return
            except ConnectFailed:
                raise
            except ConnectionClosed as error:
                if self.lifecycle.close_reason is not None or not left:
                    raise
                self.error_reports.log().info("{}; trying the next server", error)

    def connect_once(self) -> None:
        """Dial and establish a connection, or restore the previous state."""
        self.renewal.clear_doubt()
        self._end_attempt(self.transport)  # again, as an exception may have interrupted that
        self._renew_context()
        self.lifecycle.advance(Event.DIAL)
        transport: Transport | None = None
        try:
            transport = self.dial()
            self.usefulness.begin()
            self.readiness.establish(transport)
        except BaseException:
            self._end_attempt(transport)
            raise
        self.renewal.drop_doubtful()

    def _end_attempt(self, transport: Transport | None) -> None:
        if transport is not None:
            self.take_down(transport)
            self._tell_source(useful=False)
        self.lifecycle.apply(Event.FAIL)
        self.call_on_close()

    def shake_hands(self, transport: Transport) -> Transport:
        return self.resuming.agree(super().shake_hands(transport))

    def note_link(self, up: bool) -> None:
        (self._up.set if up or self.lifecycle.ended else self._up.clear)()

    def open_up(self, transport: Transport) -> None:
        super().open_up(transport)
        self.resuming.opened()
        self.usefulness.note_open()  # one that had to be declared ready has proved itself
        self._up.set()
        if not self.lifecycle.open and self.lifecycle.close_reason is None:  # lost meanwhile
            self._up.clear()

    def take_down(self, transport: Transport) -> None:
        """Do without a transport from now on, and close it."""
        try:
            self.readiness.take_reading_back(transport)
            count = self.send_queue.detach()
            self.unsent += count
            if count:
                lost = ConnectionClosed(f"{count} messages written by on_connect could not be sent")
                self.error_reports.undelivered(lost, "connecting")
            self.transport = None
            self.roles.leave()
        finally:
            transport.close()

    def dial(self) -> Transport:
        if (application := self.application.find()) is None:
            raise ConnectionClosed("the client is gone")
        reached: Reached | None = None
        try:
            reached = application.source.next()
            self.remote_address, self.local_address = reached.remote_address, reached.local_address
            return reached.transport
        except ConnectFailed as error:
            if (cause := error.__cause__) and not isinstance(cause, (OSError, ValueError)):
                self.report(cause, "in the function that connects")
            raise
        except ConnectionClosed:
            self._raise_if_closed()
            raise
        except BaseException:
            if reached is not None:
                reached.transport.close()
            raise

    # -- losing the connection, and coming back

    def drop(self, reason: str, *, ended: bool = False) -> None:
        if not self._reconnects:
            super().drop(reason, ended=ended)
            return
        # Read now: the next transport may replace them at any moment.
        context, transport = self.context, self.transport
        try:
            before, now = self.lifecycle.apply(Event.LOSE, reason)
            if now.close_reason is None and before.talking:
                self._leave_off(reason, context, transport)
        except BaseException:  # again now, as a later call would do nothing in this state
            if self.lifecycle.phase is Phase.LOST:
                self._leave_off(reason, context, transport)
            raise
        if now.close_reason is not None:
            super().drop(reason, ended=ended)

    def leave_peer(self, why: str) -> bool:
        if self._reconnects:
            self.leaving.begin(why)
        return self._reconnects

    def _leave_off(self, reason: str, context: Context, transport: Transport | None) -> None:
        """Stop sending to, and reading from, a lost transport."""
        context.cancel_aside(reason)
        # Messages wait for the next transport instead of being lost. If the next one is there
        # already, it is given up as well, as it counts as lost and is not read.
        for each in {transport, self.transport}:
            if each is not None:
                self.send_queue.give_up(ConnectionAbortedError(reason), each)
                each.abort()  # the send queue may have parted with it
        self._up.clear()
        status = self.lifecycle.status
        if status.open or status.close_reason is not None:
            self._up.set()  # reconnected already, or closed: waiting threads must return

    @property
    def ends_at_once(self) -> bool:
        goes_on = self._reconnects and self.lifecycle.close_reason is None
        return not goes_on and not self.back_off.paused and super().ends_at_once

    def renew(self) -> bool | None:
        return self.renewal.go_on() if self._reconnects else super().renew()

    def collapse(self, error: BaseException, *, for_good: bool = False) -> None:
        ends = self.new or self.lifecycle.close_reason is not None or not self._reconnects
        if ends or for_good:
            super().collapse(error)
            return
        self.renewal.doubt = doubt = f"error: {explain(error)}"
        self.dispatcher.recover()
        self.dispatcher.abandon(discard=False)
        self.renewal.doubt = doubt  # again, as the thread that connects may have cleared it before
        self.report(error, "which ends the connection")
        self.drop(doubt)

    def _tell_source(self, *, useful: bool) -> None:
        """Report to the source whether the last connection was useful."""
        application = self.application.find()
        if application is not None:
            application.source.over(useful)

    def _renew_context(self) -> None:
        """Make a new context for the next transport, unless the current one is unused."""
        if self.lifecycle.close_reason is None and self.context.cancelled:
            self.context = self.new_context()
        if (reason := self.lifecycle.close_reason) is not None:  # meanwhile
            self.context.cancel(reason)

    def ask_on_connect(self) -> bool:
        agreed = super().ask_on_connect()
        if not agreed:  # end the work that on_connect has begun with this context
            self.context.cancel_aside("refused by on_connect")
        return agreed

    # -- ending

    def begin_close(
        self, reason: str, *, drain: bool, timeout: float | None = None, ended: bool = False
    ) -> None:
        try:
            super().begin_close(reason, drain=drain, timeout=timeout, ended=ended)
        finally:
            self.back_off.hurry()
            self.resuming.hurry()

    def finish(self) -> None:
        super().finish()
        self._up.set()  # for the threads that wait for a connection
        self.application.release()

    def leave_owner(self) -> None:
        try:
            super().leave_owner()
        finally:
            self._give_all_back()

    def _give_all_back(self) -> None:
        try:
            self._give_back()
        finally:
            self._give_back_readers()

    def _fill(self, snapshot: Snapshot) -> None:
        connected, closed = self.connected, self.lifecycle.close_reason is not None
        snapshot.kind, snapshot.address = "client", self._where
        open_state = "connected" if connected else "new" if self.new else "connecting"
        snapshot.state = "closed" if closed else open_state
        snapshot.connections = int(connected)
        snapshot.reconnects, snapshot.timers = self.reconnects, self.wheel.size

    # -- after a fork

    def renew_after_fork(self, reason: str) -> None:
        """In a child process: close a started client, or make a new one ready to start."""
        if self.new:
            self.wheel = wheel = shared_wheel.wheel
            self.timers.use_wheel(wheel)
            self.runner.use_watch(watch_on(wheel))
            self.dispatcher.renew_turn()
            self.send_queue.renew_turn()
            self._renew_readers(wheel)
            return
        application = self.application.find()
        if application is not None:
            application.source.forked()
        self.after_fork(f"this client {reason}")
        self._up = Wakeup()
        self.back_off.after_fork()
        self._up.set()
        self._give_back()

    def _renew_readers(self, wheel: TimingWheel) -> None:
        readers, give_back = client_readers.lease(self, self._reader_threads, wheel)
        if readers is not None and isinstance(self.roles, SharedRoles):
            self._give_back_readers = give_back
            self.roles.use_readers(readers)
