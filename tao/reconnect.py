"""The core of a client: connecting, losing the connection, and connecting again.

The application holds a `ClientConn` (``client.py``), and the threads of the connection hold the
core. Only the first refers to the second, so that the garbage collector can tell whether anybody
still wants the connection.
"""

from __future__ import annotations

import itertools
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Protocol

from tao.codec import Batch
from tao.connection import Connection
from tao.context import background
from tao.dialling import Source
from tao.errors import ConnectFailed, ConnectionClosed
from tao.forks import renew_after_fork, renew_client
from tao.message import HEARTBEAT, Registry
from tao.metrics import Snapshot, Tally
from tao.options import ClientSettings, Reconnect
from tao.threads import as_tao_thread, in_tao_thread
from tao.timers import ConnectionTimer
from tao.timing import shared_wheel
from tao.transport import Transport
from tao.wakeup import Wakeup

__all__ = ["ClientCore", "Owner"]

_ids = itertools.count(1)
# What closing in order may take beyond the drain timeout, before close() returns regardless.
_SLACK = 5.0
# Which warnings were shown, as the module warnings keeps that: once for each line of a program.
_shown: dict[Any, Any] = {}
_PLAYER = "player"
# A connection that lasts for so many seconds, and longer than any wait of the back-off, is of use.
_LASTING = 10.0


class Owner(Protocol):
    """What a core knows of the application's object."""

    __slots__ = ()

    def keep(self, owner: Any) -> None:
        """Keep the object, which the application has forgotten, until `end`."""

    def end(self) -> None:
        """Tell the object, if it is there, that nothing is called any more."""


class _Claim:
    """Who plays the first role: a thread in `ClientCore.start`, then one that it starts.

    Taking it over is one step of the interpreter, so that after an exception there is always one
    who has it.
    """

    __slots__ = ("_ident", "_takers")

    def __init__(self) -> None:
        self._ident: int = threading.get_ident()
        self._takers: dict[str, str] = {}  # under one key, who has taken it over: the first

    def give_up(self) -> bool:
        """Take it back, unless the thread has taken it over; again, too."""
        return self._takers.setdefault("taker", "starter") == "starter"

    @property
    def given_up(self) -> bool:
        """Whether it was taken back, maybe by one who was interrupted before the next step."""
        return self._takers.get("taker") == "starter"

    def hand_over(self, target: Callable[..., object], *args: Any) -> None:
        """Play, on the thread that was started for it."""
        if self._takers.setdefault("taker", "thread") == "thread":
            target(*args)

    @property
    def waits_for_this_thread(self) -> bool:
        """Whether it is this thread that has it, interrupted in the midst of starting."""
        return not self._takers and self._ident == threading.get_ident()


class ClientCore(Connection):
    """A client, as its threads know it. All methods may be called from any thread.

    Args:
        source: where connections come from.
        options: checked; the callbacks do not refer to the application's object.
        registry: the messages that are known; the handlers do not either.
        owner: the way to that object.
        made_at: file and line of the program that made the client.

    Raises:
        ValueError: there is no coming back where the connection comes from.
    """

    _label = "client-{}"

    def __init__(
        self,
        source: Source,
        options: ClientSettings,
        registry: Registry,
        owner: Owner,
        made_at: tuple[str, int],
    ) -> None:
        reconnect = options.reconnect
        self._reconnect: Reconnect | None = Reconnect() if reconnect is True else reconnect or None
        self._source = source
        if source.once and self._reconnect is not None:
            raise ValueError(
                "reconnect: a socket that is connected already cannot be connected again; give a "
                "function that returns a new one each time"
            )
        user = object()
        # Given back at the end, or when a client that never started is forgotten.
        self._give_back = weakref.finalize(self, shared_wheel.release, user)
        wheel = shared_wheel.acquire(user)
        self._give_back.atexit = False
        net_id = next(_ids)
        super().__init__(
            net_id,
            options,
            registry=registry,
            wheel=wheel,
            run=None,
            parent=background(),
            tally=Tally(f"client-{net_id}", self._fill),
            keep=self._reconnect is not None,
        )
        self.remote_address = self._source.address
        self._owner = owner
        self._made_at = made_at
        # Under one key, who plays the first role: starts the client, then reads, and sees to its
        # end; or only sees off one that was never started.
        self._claims: dict[str, _Claim] = {}
        # Owned by the reading thread, once there is one.
        self._attempts: int = 0  # to connect, since a connection proved to be one
        self._came_up: float = monotonic()
        self._proved: bool = False  # a message of the application's has come since
        self._up = Wakeup()  # set while established
        self._hurry = Wakeup()  # set when closing: ends the back-off
        #: How many times the connection came back.
        self.reconnects: int = 0
        renew_after_fork(self, renew_client)
        if options.on_message is None:
            self._reporter.unheard = self._warn_unheard
        self._tally.publish()

    # -- for the application, see ClientConn

    def start(self, keep_trying: bool) -> None:
        """Connect, or begin to."""
        if keep_trying and self._reconnect is None:
            raise ValueError("keep_trying needs the option reconnect")
        claim = _Claim()
        try:
            try:
                self._start(claim, keep_trying)
            except BaseException:
                self._give_up(claim)
                raise
        except BaseException:
            self._give_up(claim)  # again, as that may have been interrupted
            raise

    def _start(self, claim: _Claim, keep_trying: bool) -> None:
        self._raise_if_closed()
        if self._claims.setdefault(_PLAYER, claim) is not claim:
            self._raise_if_closed()
            raise RuntimeError("the client is started already")
        with as_tao_thread():  # a callback that closes must not wait for this thread
            if keep_trying:
                self._launch(claim, self._begin, partial(self._come_back, first=True))
                return
            self._connect_first()
            closed = self._reason
            self._launch(claim, self._play, True)  # also then: it sees the connection off
        if closed is not None:
            raise ConnectionClosed(closed)

    def _give_up(self, claim: _Claim) -> None:
        """Starting has failed or was interrupted: leave all as it was, unless a thread goes on."""
        if self._claims.get(_PLAYER) is not claim or not claim.give_up():
            return
        if self._transport is not None:
            self._begin_close("start() was interrupted", drain=False)
        self._claims.pop(_PLAYER, None)
        if self._reason is not None:
            self._see_off()

    def close(self) -> None:
        """End the connection for good, and wait until it has ended."""
        super().close()
        if self._see_off() or in_tao_thread():
            return
        claim = self._claims.get(_PLAYER)
        starting = claim is not None and claim.waits_for_this_thread
        # Nor does a signal handler that has interrupted a write: it would wait for that.
        if not starting and not self._send_queue.interrupted_here:
            self.wait_closed(self._options.drain_timeout + _SLACK)

    def _see_off(self) -> bool:
        """Do the last steps of a client that has no thread; tell whether it has none."""
        claim = _Claim()
        try:
            first = self._claims.setdefault(_PLAYER, claim)
            if first is not claim and not first.given_up:
                return False
            with as_tao_thread():
                self._finish()
        except BaseException:
            if self._claims.get(_PLAYER) is claim:
                self._claims.pop(_PLAYER, None)  # so that closing again does it
            raise
        return True

    @property
    def new(self) -> bool:
        """Whether nobody has started or closed it."""
        return _PLAYER not in self._claims

    @property
    def connected(self) -> bool:
        return self._up.is_set() and self._reason is None

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until there is a connection, or the client is closed; tell whether there is."""
        self._up.wait(timeout)
        return self.connected

    def snapshot(self) -> Snapshot:
        """Return the figures of this client as they are now."""
        return self._tally.snapshot()

    def enter(self) -> None:
        """Connect, unless that is done."""
        if self.new or self.closed:
            self.start(keep_trying=False)

    def add_timer(self, seconds: float, callback: ConnectionTimer, *, periodic: bool) -> int:
        """Call ``callback(due, conn)`` in, or every, so many seconds; return an id."""
        return self._add_timer(seconds, callback, periodic=periodic)

    def forget(self, client: Any) -> None:
        """Close, as the application has no use for the client any more; called by a finalizer.

        That may run at any moment on any thread, inside of anything, so the work is handed over.
        """
        if self.new or self._finished.is_set():
            return
        self._owner.keep(client)  # for on_close, and what else is still to be called
        if self._reason is not None:
            return
        try:
            close = partial(self._begin_close, "forgotten without close()", drain=False)
            self._wheel.in_real_time.run_clock(0.0, lambda due: close())
        except RuntimeError:
            pass  # the wheel has stopped, so it is over
        text = f"unclosed {client!r}: whoever makes a client keeps it, and closes it in the end"
        # Of an object that has a dict, tracemalloc does not know in CPython 3.11 where it was made.
        source = self._owner if sys.version_info[:2] == (3, 11) else client
        warnings.warn_explicit(text, ResourceWarning, *self._made_at, source=source)

    # -- getting connected

    def _in_call_of_application(self) -> bool:
        claim = self._claims.get(_PLAYER)
        return claim is not None and claim.waits_for_this_thread

    def _launch(self, claim: _Claim, target: Callable[..., object], *args: Any) -> None:
        try:
            failed = partial(self._kept_from, claim)
            self._thread("reader", failed, claim.hand_over, target, *args).start()
        except RuntimeError:  # there are too many
            self._begin_close("no thread could be started", drain=False)
            raise

    def _kept_from(self, claim: _Claim, error: BaseException) -> None:
        """End what the first thread has been kept from, unless start() was, and took it back."""
        if self._claims.get(_PLAYER) is claim:
            claim.hand_over(self._struck, error)

    def _connect_first(self) -> None:
        """Connect; a server with which no connection comes to be is passed over for the next."""
        for left in reversed(range(self._source.size)):
            try:
                self._connect_once()
                return
            except ConnectFailed:
                raise
            except ConnectionClosed as error:
                if self._reason is not None or not left:
                    raise
                self._reporter.log().info("{}; trying the next server", error)

    def _connect_once(self) -> None:
        """Dial and establish, or leave everything as it was."""
        self._renew_context()
        transport = self._dial()
        try:
            self._establish(transport)
        except BaseException:
            self._take_down(transport)
            self._source.over(useful=False)
            raise
        self._up.set()
        if self._lost is not None:  # meanwhile
            self._up.clear()
        self._came_up, self._proved = monotonic(), False
        self._reader.on_batch = self._look_for_proof

    def _take_down(self, transport: Transport) -> None:
        transport.abort()
        count = self._send_queue.detach()
        if count:
            self._unsent += count
            lost = ConnectionClosed(f"{count} messages written by on_connect could not be sent")
            self._reporter.undelivered(lost, "connecting")
        self._transport = None
        self._ready = False
        transport.close()

    def _dial(self) -> Transport:
        try:
            reached = self._source.next()
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

    def _drop(self, reason: str, *, ended: bool = False) -> None:
        if self._reconnect is None or self._reason is not None:
            super()._drop(reason, ended=ended)
            return
        # Those of now: at any moment after this, the next ones may be there.
        context, transport = self.context, self._transport
        if self._lost is not None:
            return
        self._lost = reason
        context.cancel_aside(reason)
        # Nothing more goes where it would be lost; it waits for the next. Should that be there
        # already, it is given up as well: a transport that counts as lost is not read.
        for each in {transport, self._transport}:
            if each is not None:
                self._send_queue.give_up(ConnectionAbortedError(reason), each)
        self._up.clear()
        if not self._is_lost:
            self._up.set()  # it is back already, or it is over, and nobody need wait for it

    @property
    def _is_lost(self) -> bool:
        """Whether there is to be another transport."""
        return self._lost is not None and self._reason is None

    def _renew(self) -> bool:
        if self._reason is None and self._lost is not None:
            self._leave()
            if self._come_back():
                return True
        self._finish()
        return False

    def _leave(self) -> None:
        """Be done with a lost transport."""
        self._reporter.log().info("connection lost: {}; connecting again", self._lost)
        # While a handler runs, no message of another connection could be handled anyway.
        self._dispatcher.wait_idle()
        self._call_on_close()
        transport = self._transport
        assert transport is not None
        self._take_down(transport)

    def _come_back(self, first: bool = False) -> bool:
        """Dial until it succeeds; False if there is nothing to come back to."""
        how = self._reconnect
        assert how is not None
        if not first:
            useful = self._proved_itself(how)
            self._source.over(useful)
            if useful:
                self._attempts = 0
        why = self._lost
        for attempt in itertools.count(self._attempts + (not first)):
            if how.attempts is not None and attempt > how.attempts:
                self._begin_close(f"gave up after {attempt - 1} attempts: {why}", drain=False)
                return False
            self._attempts = attempt
            if attempt and self._wheel.wait(self._hurry, how.delay(attempt)):
                return False
            try:
                self._connect_once()
            except ConnectionClosed as error:
                if self._reason is not None:
                    return False
                self._reporter.log().info("attempt {}: {}", attempt, error)
                self._reporter.tell(error)
                why = str(error)
                continue
            self.reconnects += not first
            return True
        return False

    def _look_for_proof(self, batch: Batch) -> None:
        """See whether what was received shows that the peer is a server of this application's."""
        known = self._registry.entries
        if any(number != HEARTBEAT and known.get(number) is not None for number, _ in batch):
            self._proved = True
            self._reader.on_batch = None

    def _proved_itself(self, how: Reconnect) -> bool:
        """Whether the connection just lost was of use.

        A wrong port may accept and send anything: a banner, an error, even a heartbeat. Of use is
        what brought a message that the application knows, or lasted. Then the back-off begins anew.
        """
        lasted = self._wheel.since(self._came_up) > max(how.maximum, _LASTING)
        return self._proved or lasted

    def _renew_context(self) -> None:
        """Have a context for the next transport, unless no transport has had that of now."""
        if self._reason is None and self.context.cancelled:
            self.context = self._new_context()
        if self._reason is not None:  # meanwhile
            self.context.cancel(self._reason)

    def _ask_on_connect(self) -> bool:
        agreed = super()._ask_on_connect()
        if not agreed:  # what it began with this context is to end
            self.context.cancel_aside("refused by on_connect")
        return agreed

    def _warn_unheard(self, number: int) -> None:
        """Say that messages are skipped, where neither the log nor the application hears of it.

        This is a mistake in the program, so it is a warning as Python has them, shown at the line
        that made the client; it is shown unless the program says otherwise.
        """
        text = (
            f"a client made here has received message number {number}, which its registry does "
            "not know; such messages are skipped. Register its class with a handler, or give "
            "on_message to silence this"
        )
        try:
            warnings.warn_explicit(text, RuntimeWarning, *self._made_at, registry=_shown)
        except RuntimeWarning as error:
            # The program wants warnings to be errors, but on this thread there is nobody to raise
            # it to. As an error of the connection's it would hide which error that really had.
            warnings.showwarning(error, RuntimeWarning, *self._made_at)

    # -- ending

    def _begin_close(
        self, reason: str, *, drain: bool, timeout: float | None = None, ended: bool = False
    ) -> None:
        try:
            super()._begin_close(reason, drain=drain, timeout=timeout, ended=ended)
        finally:
            self._hurry.set()
            self._source.close()

    def _finish(self) -> None:
        super()._finish()
        # Who waits for a connection need not wait any longer.
        self._up.set()
        self._owner.end()

    def _forget(self) -> None:
        super()._forget()
        self._give_back()

    def _fill(self, snapshot: Snapshot) -> None:
        connected = self.connected
        snapshot.kind, snapshot.address = "client", str(self._source)
        if self._reason is not None:
            snapshot.state = "closed"
        elif connected:
            snapshot.state = "connected"
        else:
            snapshot.state = "new" if self.new else "connecting"
        snapshot.connections = int(connected)
        snapshot.reconnects = self.reconnects
        snapshot.timers = self._wheel.size
