"""Telling the peer of a session what was handled: often enough, and not for each message."""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.runtime.timing_wheel import TimingWheel
from tao.session.session import Session

__all__ = ["Acknowledger", "AcknowledgingHost"]

# How long what was handled may wait to be acknowledged, in seconds.
_DELAY = 0.1


class AcknowledgingHost(Protocol):
    """What this asks of a connection's core."""

    runner: HandlerRunner
    send_queue: SendQueue
    timers: TimerSet

    @property
    def wheel(self) -> TimingWheel:
        """The wheel of the connection's timers."""


class Pushed(Protocol):
    """What this asks of the stream of the session."""

    @property
    def connected(self) -> bool:
        """Whether there is a link now."""

    def push(self) -> bool:
        """Send what waits for the link; return whether all is sent."""


class Acknowledger:
    """Acknowledges what was handled in one session.

    Args:
        host: the connection's core.
        session: with both halves.
        stream: sends the acknowledgements.
    """

    __slots__ = ("_host", "_session", "_stream", "_told_at", "clock_set")

    def __init__(self, host: AcknowledgingHost, session: Session, stream: Pushed) -> None:
        self._host = host
        self._session = session
        self._stream = stream
        self._told_at: float = 0.0  # monotonic; set in the turn of the send queue
        #: Whether it will be looked whether anything is to be acknowledged. Set by the reading
        #: role, taken back by the timing wheel before that looks.
        self.clock_set: bool = False

    def set_clock(self, delay: float = _DELAY) -> None:
        """See to it that what has come is acknowledged after a while. By the reading role."""
        self.clock_set = True
        self._host.timers.set_clock("acknowledge", delay, self._ring)

    def _ring(self) -> None:
        self.clock_set = False
        session, stream = self._session, self._stream
        left = _DELAY - self._host.wheel.since(self._told_at)
        if left > 0:  # something was acknowledged meanwhile, without a frame of its own
            self.set_clock(left)
            return
        self._host.send_queue.in_turn(self.acknowledge)
        if stream.connected and (session.incoming.has_to_tell or not session.outgoing.idle):
            self.set_clock()

    def note(self) -> None:
        """Have the next frames be preceded by what is to be told. Needs the turn."""
        incoming, outgoing = self._session.incoming, self._session.outgoing
        before = incoming.acknowledged
        position = incoming.tell(self._host.runner.handled)
        if position > before and not outgoing.ended:
            outgoing.due = position
            self._told_at = monotonic()

    def acknowledge(self) -> None:
        """Tell the peer what is handled, as soon as nothing else is half sent. Needs the turn."""
        self.note()
        outgoing = self._session.outgoing
        outgoing.forget()
        if not (outgoing.idle or outgoing.ended):
            self._stream.push()
