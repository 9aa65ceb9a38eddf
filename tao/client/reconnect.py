"""The core of a client: connecting, and reconnecting when the connection is lost.

The application refers to a `ClientConn` (``client.py``), and the threads of the connection refer to
the core. The core does not refer to the `ClientConn`, so the garbage collector can tell whether the
application still uses it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from tao.client.developer_warnings import warn_unclosed, warn_unheard
from tao.client.dialling import Reached
from tao.client.start_claim import StartClaim
from tao.connection.application import Application, without_application
from tao.connection.block_watch import watch_on
from tao.connection.core import ConnectionCore
from tao.connection.lifecycle import Event, Phase
from tao.connection.options import ClientSettings, Reconnect
from tao.connection.statistics import Snapshot, Tally
from tao.errors import ConnectFailed, ConnectionClosed
from tao.runtime.context import Context, background
from tao.runtime.forks import renew_after_fork
from tao.runtime.threads import as_tao_thread, in_tao_thread
from tao.runtime.timing_wheel import shared_wheel
from tao.runtime.wakeup import Wakeup
from tao.transport.stream import Transport
from tao.wire.codec import Batch
from tao.wire.message import HEARTBEAT

__all__ = ["ClientCore"]

_ids = itertools.count(1)
# How long close() waits beyond the drain timeout, in seconds.
_SLACK = 5.0
_PLAYER = "player"
# A connection is useful if it lasts this many seconds and longer than the longest back-off.
_LASTING = 10.0


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
        self._give_back = weakref.finalize(self, shared_wheel.release, user)
        wheel = shared_wheel.acquire(user)
        self._give_back.atexit = False
        net_id = next(_ids)
        super().__init__(
            net_id,
            without_application(settings, reconnect=False),
            application,
            wheel=wheel,
            run=None,
            parent=background(),
            tally=Tally(f"client-{net_id}", self._fill),
            keep=self._reconnects,
        )
        self.remote_address = source.address
        self._where = str(source)  # for display
        self._made_at = made_at
        # Under one key, the claim of the thread that starts the client, reads and finishes it; or
        # that only finishes a client that was never started.
        self._claims: dict[str, StartClaim] = {}
        # Owned by the reading thread, once there is one.
        self._attempts: int = 0  # attempts to connect since the last useful connection
        self._came_up: float = monotonic()
        self._proved: bool = False  # whether a known message was received since then
        self._up = Wakeup()  # set while established
        self._hurry = Wakeup()  # set when closing: ends the back-off
        #: How many times the client has reconnected.
        self.reconnects: int = 0
        renew_after_fork(self, ClientCore.renew_after_fork)
        if settings.on_message is None:
            self.reporter.unheard = partial(warn_unheard, made_at)
        self.tally.publish()

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
                self._launch(claim, self.roles.begin, partial(self._come_back, first=True))
                return
            self._connect_first()
            closed = self.lifecycle.close_reason
            self._launch(claim, self.roles.play, True)  # even if closed: it ends the connection
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
        reason = self.lifecycle.close_reason
        if reason is not None:
            raise ConnectionClosed(reason)

    def close_and_wait(self) -> None:
        """Close the connection permanently, and wait until it has ended."""
        self.close()
        if not self._see_off() and not in_tao_thread():
            self.wait_closed(self.settings.drain_timeout + _SLACK)

    @property
    def interrupted_here(self) -> bool:
        claim = self._claims.get(_PLAYER)
        starting = claim is not None and claim.waits_for_this_thread
        return starting or super().interrupted_here

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
            if self._claims.get(_PLAYER) is claim:
                self._claims.pop(_PLAYER, None)  # so that closing again does it
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

        Like `wait_closed`, it does not wait if it has interrupted a call on this connection.
        """
        self._up.wait(0 if self.interrupted_here else timeout)
        return self.connected

    def enter(self) -> None:
        """Connect, unless connected already."""
        if self.new or self.lifecycle.close_reason is not None:
            self.start(keep_trying=False)

    def forget(self, application: Application, client: Any) -> None:
        """Close a client that the application has dropped. Called by a finalizer.

        A finalizer may run at any moment on any thread, so another thread does the work.
        """
        if self.new or self.finished.is_set():
            return
        self.application.hold(application, client)  # for on_close and other callbacks
        if self.lifecycle.close_reason is not None:
            return
        try:
            close = partial(self.begin_close, "forgotten without close()", drain=False)
            self.wheel.in_real_time.run_clock(0.0, lambda due: close())
        except RuntimeError:
            pass  # the wheel has stopped, so the connection has ended
        warn_unclosed(client, application, self._made_at)

    # -- getting connected

    def in_call_of_application(self) -> bool:
        claim = self._claims.get(_PLAYER)
        return claim is not None and claim.waits_for_this_thread

    def _launch(self, claim: StartClaim, target: Callable[..., object], *args: Any) -> None:
        try:
            failed = partial(self._kept_from, claim)
            self.roles.thread("reader", failed, claim.hand_over, target, *args).start()
        except RuntimeError:  # no thread can be started
            self.begin_close("no thread could be started", drain=False)
            raise

    def _kept_from(self, claim: StartClaim, error: BaseException) -> None:
        """End the client if its first thread has failed, unless start() has given up already."""
        if self._claims.get(_PLAYER) is claim:
            claim.hand_over(self.roles.struck, error)

    def _connect_first(self) -> None:
        """Connect; if a connection ends before it is established, try the next server."""
        for left in reversed(range(self._size)):
            try:
                self._connect_once()
                return
            except ConnectFailed:
                raise
            except ConnectionClosed as error:
                if self.lifecycle.close_reason is not None or not left:
                    raise
                self.reporter.log().info("{}; trying the next server", error)

    def _connect_once(self) -> None:
        """Dial and establish a connection, or restore the previous state."""
        self._renew_context()
        self.move(Event.DIAL)
        transport: Transport | None = None
        try:
            transport = self._dial()
            self.establish(transport)
        except BaseException:
            if transport is not None:
                self._take_down(transport)
                self._tell_source(useful=False)
            self.lifecycle.apply(Event.FAIL)
            self.call_on_close()
            raise
        self._up.set()
        if self.lifecycle.status.disconnect_reason is not None:  # meanwhile
            self._up.clear()
        self._came_up, self._proved = monotonic(), False
        self.reader.on_batch = self._look_for_proof

    def _take_down(self, transport: Transport) -> None:
        transport.abort()
        count = self.send_queue.detach()
        if count:
            self.unsent += count
            lost = ConnectionClosed(f"{count} messages written by on_connect could not be sent")
            self.reporter.undelivered(lost, "connecting")
        self.transport = None
        transport.close()

    def _dial(self) -> Transport:
        application = self.application.find()
        if application is None:
            raise ConnectionClosed("the client is gone")
        try:
            reached: Reached = application.source.next()
        except ConnectFailed as error:
            cause = error.__cause__
            if cause is not None and not isinstance(cause, (OSError, ValueError)):
                self.report(cause, "in the function that connects")
            raise
        except ConnectionClosed:
            self._raise_if_closed()
            raise
        self.remote_address, self.local_address = reached.remote_address, reached.local_address
        return reached.transport

    # -- losing the connection, and coming back

    def drop(self, reason: str, *, ended: bool = False) -> None:
        if not self._reconnects:
            super().drop(reason, ended=ended)
            return
        # Read now: the next transport may replace them at any moment.
        context, transport = self.context, self.transport
        try:
            before, now = self.lifecycle.apply(Event.LOSE, reason)
            if now.close_reason is None and before.open:
                self._leave_off(reason, context, transport)
        except BaseException:  # again now, as a later call would do nothing in this state
            if self.lifecycle.phase is Phase.LOST:
                self._leave_off(reason, context, transport)
            raise
        if now.close_reason is not None:
            super().drop(reason, ended=ended)

    def _leave_off(self, reason: str, context: Context, transport: Transport | None) -> None:
        """Stop sending to, and reading from, a lost transport."""
        context.cancel_aside(reason)
        # Messages wait for the next transport instead of being lost. If the next one is there
        # already, it is given up as well, as it counts as lost and is not read.
        for each in {transport, self.transport}:
            if each is not None:
                self.send_queue.give_up(ConnectionAbortedError(reason), each)
        self._up.clear()
        status = self.lifecycle.status
        if status.disconnect_reason is None or status.close_reason is not None:
            self._up.set()  # reconnected already, or closed: waiting threads must return

    def renew(self) -> bool:
        if self.lifecycle.phase is Phase.LOST:
            self._leave()
            if self._come_back():
                return True
        self.finish()
        return False

    def _leave(self) -> None:
        """Finish with a lost transport."""
        why = self.lifecycle.status.disconnect_reason
        self.reporter.log().info("connection lost: {}; connecting again", why)
        # Until the handler has returned, no message of a new connection could be handled anyway.
        self.dispatcher.wait_idle()
        self.call_on_close()
        transport = self.transport
        assert transport is not None
        self._take_down(transport)

    def _come_back(self, first: bool = False) -> bool:
        """Dial until it succeeds; return False if the client gives up or is closed."""
        if not first and self._proved_itself():
            self._attempts = 0
        why = self.lifecycle.status.disconnect_reason
        for attempt in itertools.count(self._attempts + (not first)):
            delay = self._delay(attempt)
            if delay is None:
                self.begin_close(f"gave up after {attempt - 1} attempts: {why}", drain=False)
                return False
            self._attempts = attempt
            if attempt and self.wheel.wait(self._hurry, delay):
                return False
            try:
                self._connect_once()
            except ConnectionClosed as error:
                if self.lifecycle.close_reason is not None:
                    return False
                self.reporter.log().info("attempt {}: {}", attempt, error)
                self.reporter.tell(error)
                why = str(error)
                continue
            self.reconnects += not first
            return True
        return False

    # The application's objects are referenced only while they are used, and never during a wait.

    def _delay(self, attempt: int) -> float | None:
        """Return the seconds to wait before an attempt; None if there are no more attempts."""
        application = self.application.find()
        how = None if application is None else application.reconnect
        if how is None or (how.attempts is not None and attempt > how.attempts):
            return None
        return how.delay(attempt) if attempt else 0.0

    def _tell_source(self, *, useful: bool) -> None:
        """Report to the source whether the last connection was useful."""
        application = self.application.find()
        if application is not None:
            application.source.over(useful)

    @property
    def _size(self) -> int:
        """How many servers there are to connect to."""
        application = self.application.find()
        return 1 if application is None else application.source.size

    def _look_for_proof(self, batch: Batch) -> None:
        """Note whether a received message proves that the peer is the application's server."""
        application = self.application.find()
        known: Any = {} if application is None else application.entries
        if any(number != HEARTBEAT and known.get(number) is not None for number, _ in batch):
            self._proved = True
            self.reader.on_batch = None

    def _proved_itself(self) -> bool:
        """Return whether the lost connection was useful, and report it to the source.

        A wrong port may accept and send anything: a banner, an error, even a heartbeat. A
        connection is useful if it delivered a message that the application knows, or lasted long
        enough. Then the back-off starts over.
        """
        application = self.application.find()
        if application is None or application.reconnect is None:
            return False
        lasting = max(application.reconnect.maximum, _LASTING)
        useful = self._proved or self.wheel.since(self._came_up) > lasting
        application.source.over(useful)
        return useful

    def _renew_context(self) -> None:
        """Make a new context for the next transport, unless the current one is unused."""
        if self.lifecycle.close_reason is None and self.context.cancelled:
            self.context = self.new_context()
        reason = self.lifecycle.close_reason
        if reason is not None:  # meanwhile
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
            self._hurry.set()
            application = self.application.find()
            if application is not None:
                application.source.close()

    def finish(self) -> None:
        super().finish()
        # Wake the threads that wait for a connection.
        self._up.set()
        self.application.release()

    def leave_owner(self) -> None:
        super().leave_owner()
        self._give_back()

    def _fill(self, snapshot: Snapshot) -> None:
        connected = self.connected
        snapshot.kind, snapshot.address = "client", self._where
        if self.lifecycle.close_reason is not None:
            snapshot.state = "closed"
        elif connected:
            snapshot.state = "connected"
        else:
            snapshot.state = "new" if self.new else "connecting"
        snapshot.connections = int(connected)
        snapshot.reconnects = self.reconnects
        snapshot.timers = self.wheel.size

    # -- after a fork

    def renew_after_fork(self, reason: str) -> None:
        """In a child process: close a started client, or make a new one ready to start."""
        if self.new:
            self.wheel = wheel = shared_wheel.wheel
            self.timers.use_wheel(wheel)
            self.runner.use_watch(watch_on(wheel))
            self.dispatcher.renew_turn()
            self.send_queue.renew_turn()
            return
        application = self.application.find()
        if application is not None:
            application.source.forked()
        self.after_fork(f"this client {reason}")
        self._up, self._hurry = Wakeup(), Wakeup()
        self._up.set()
        self._give_back()
