"""A listener without threads of its own: a loop that reads connections accepts as well.

So a new connection costs no change of threads: the leader of the loop accepts it, sets it up, and
reads it. It must not wait, and nothing that a connection begins with may keep it: a handshake is
done step by step, and where the application wants to be asked first (``on_connect``), a listener
with threads takes the place of this one.

The socket is taken out of the poller while nothing may be accepted: above ``accept_rate``, after an
error that the next connection would meet too, or while another process is given the chance.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from tao.connection.shared_reading.loop import ReadingLoop
from tao.connection.shared_reading.member import NO_OUTBOX, Outbox
from tao.runtime.combining import Combiner
from tao.runtime.leader_followers import Run
from tao.runtime.log import logger
from tao.runtime.timing_wheel import TimingWheel
from tao.server.listening.binding import Bound
from tao.server.listening.listener import Listener
from tao.transport.addresses import address_text
from tao.transport.poller import READABLE

__all__ = ["SharedListener"]

# For how long connections are accepted in one turn, in seconds: a longer one would be followed by a
# break, see ``shared_reading/loop.py``.
_TURN = 0.3e-3
# The pause after an error that was not expected, in seconds.
_PAUSE = 0.05


class SharedListener(Listener):
    """A listening socket, from which the leader of a loop accepts.

    Args:
        bound, admit, failed, options: see `Listener`.
        loop: waits for connections.
        wheel: ends pauses.
    """

    def __init__(
        self,
        bound: Bound,
        admit: Callable[[socket.socket, Any, list[Run]], object],
        failed: Callable[[], None],
        *,
        loop: ReadingLoop,
        wheel: TimingWheel,
        **options: Any,
    ) -> None:
        super().__init__(bound, admit, failed, **options)
        self._loop = loop
        self._wheel = wheel.in_real_time
        self._started: bool = False
        self._descriptor: int = self._sock.fileno()
        # The timer that ends the last pause, and the last one that has rung. The first is set in
        # the turn, the second by the wheel. The numbers of timers ascend.
        self._pause: int = 0
        self._rung: int = 0
        self._look_timer: int = 0  # set by the wheel, and by the start
        # The owner of the turn owns the socket, and this: what the poller waits for.
        self._registered: int = 0
        self._combiner = Combiner(self._apply, self._go_on, self._go_on)

    # -- for any thread

    def start(self) -> None:
        try:
            self._loop.members[self._descriptor] = self
            self._started = True
            self._combiner.settle()
            self._look_later()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._stopping = True
        self._combiner.settle()

    @property
    def _led(self) -> bool:
        return not self._loop.stopped

    def abandon(self) -> None:
        self._combiner.after_fork()
        super().abandon()

    # -- in the turn, by any thread

    def _apply(self) -> None:
        """Have the poller wait for what is wanted now; or end."""
        if self.closed.is_set():
            return
        wanted = READABLE if self._started and self._pause <= self._rung else 0
        if self._stopping:
            wanted = 0
        if wanted != self._registered and not self._socket_gone:
            self._loop.change(self._descriptor, self._registered, wanted)
        self._registered = wanted
        if self._stopping:
            self._free()

    def _go_on(self) -> None:
        """There is nothing to repair: what an interrupted change left undone is done again."""

    def _free(self) -> None:
        for timer in (self._pause, self._look_timer):
            self._wheel.cancel(timer)
        if self._loop.members.get(self._descriptor) is self:
            self._loop.members.pop(self._descriptor, None)
        super()._free()

    # -- by the leader

    outbox: Outbox = NO_OUTBOX  #: see `Polled`

    def turn(self, events: int, now: float = 0.0) -> None:
        """Accept what has come, for as long as a turn may take."""
        if not self._combiner.interrupted_here:
            self._combiner.run(self._accept)

    def took(self, seconds: float) -> bool:
        """See `Resting.took`: its turns are short by themselves."""
        return False

    def take_break(self) -> None:
        """See `Resting.take_break`: there is none, so that connections are always accepted."""

    def end_break(self) -> None:
        """See `Resting.end_break`."""

    def _accept(self) -> None:
        end = time.monotonic() + _TURN
        while not self._stopping and self._registered:
            seconds = self._accept_and_begin()
            if seconds:
                self._rest(seconds)
            if seconds is None or time.monotonic() > end:
                break
        if self._stopping:
            self._apply()

    def _accept_and_begin(self) -> float | None:
        """Do a step, and have the connection that it has found begin; see `Listener._step`."""
        found: list[Run] = []
        try:
            seconds = self._step(found)
            for run in found:
                run.perform_aside()
            found.clear()
        except BaseException as error:
            for run in found:
                run.fail(error)
            raise
        return seconds

    def _rest(self, seconds: float) -> None:
        """Accept nothing for a while."""
        timer = self._wheel.reserve_id()

        def ring(_: object) -> None:
            self._rung = max(timer, self._rung)
            self._combiner.settle()

        try:
            self._wheel.run_clock(seconds, ring, timer)
        except RuntimeError:  # no thread can be had; or the server has stopped, and its wheel
            time.sleep(_PAUSE)
        else:
            self._pause = timer
            self._apply()

    def struck(self, error: BaseException) -> None:
        """See `Polled`: an error while an error was handled."""
        try:
            logger.opt(exception=error).error(
                "accepting at {} continues", address_text(self.address)
            )
        finally:
            self._combiner.run(self._rest, _PAUSE)

    def abandoned(self) -> None:
        """See `Polled`: the stop of the server ends it."""

    def look(self, now: float, grace: float) -> None:
        """See `Polled`: nothing in here runs code of the application that may block."""

    def _look_later(self) -> None:
        """Look at the socket once in a while, as a poller is silent about one that was closed."""
        self._look_timer = timer = self._wheel.reserve_id()
        look = lambda: self._combiner.run(self._look_and_go_on)  # noqa: E731
        self._wheel.run_clock(
            self._look_interval, lambda _: self._loop.call_soon(self, look), timer
        )

    def _look_and_go_on(self) -> None:
        if not self._stopping:
            self._look()
        if self._stopping:
            self._apply()
        else:
            self._look_later()
