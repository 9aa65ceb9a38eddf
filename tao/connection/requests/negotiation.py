"""Finding out whether the peer answers requests, see ``wire/capabilities.py``.

Nobody is asked unasked: the question goes out with the first request, or at once for a client with
``requests=True``. Silence is an answer, too: after two seconds the peer counts as one that does not
know requests. That is remembered for half a minute, and a late answer lifts it. But a peer that may
still be busy with earlier messages, as it has sent fewer than it got, has half a minute: its inbox
may be full, and the question not be read.

The reading role answers the questions of the peer, at most four of one connection, whatever its
handlers do meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol

from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.options.definitions import Settings
from tao.connection.reading_gate import ReadingGate
from tao.connection.sending.backlog import TrackedFrame
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.errors import TaoError, WouldBlock
from tao.runtime.timing_wheel import TimingWheel
from tao.wire.capabilities import (
    ANSWER,
    ASK,
    LEAVES,
    OFFERS_SESSIONS,
    REQUESTS,
    Capabilities,
    capability_frame,
)

__all__ = ["Negotiation", "NegotiationHost"]

# How long silence is listened to, also of a peer that may be busy, for how long it is remembered,
# and the pause before what finds the send queue full is tried again; in seconds.
_PATIENCE, _BUSY, _MEMORY, _AGAIN = 2.0, 30.0, 30.0, 0.05
_ANSWERS_MOST = 4


class NegotiationHost(Protocol):
    """What this asks of a connection's core."""

    capabilities: int  #: of this side, as a sum
    dispatcher: Dispatcher
    gate: ReadingGate
    settings: Settings
    send_queue: SendQueue
    timers: TimerSet
    wheel: TimingWheel


class Negotiation:
    """What is known of the peer's capabilities.

    Args:
        host: the connection's core.
        write: sends a frame, also before a login; one thread at a time.
        traffic: returns how many messages have left or wait to, and how many have come, by the
            present transport.
        changed: called when something new is known, by the reading role or the timing wheel.
    """

    __slots__ = (
        "_answers", "_asked", "_asked_at", "_before", "_changed", "_host", "_nonce", "_owed",
        "_refused_at", "_traffic", "_write", "capabilities", "question", "told_to_leave",
    )  # fmt: skip

    def __init__(
        self,
        host: NegotiationHost,
        write: Callable[[bytes], object],
        traffic: Callable[[], tuple[int, int]],
        changed: Callable[[], object],
    ) -> None:
        self._host = host
        self._write = write
        self._traffic = traffic
        self._changed = changed
        #: The nonce of what was asked before the first message; None: nothing was.
        self.question: int | None = None
        self.begin()

    def begin(self) -> None:
        """Know nothing, as there is a new transport. By the thread that connects."""
        # Each field is changed in one step.
        self.capabilities: int | None = None  #: of the peer, as a sum; None: not known
        # The same of each question, so that a late answer to an earlier one counts.
        self._nonce: int = random.getrandbits(64)
        self._asked: TrackedFrame | None = None  # the question; None: it is to be asked
        self._asked_at: float = 0.0  # monotonic
        self._before: int | None = None  # how many messages precede the first question
        self._refused_at: float | None = None  # when silence was taken for an answer
        #: Whether the peer has told this side to leave, and it does.
        self.told_to_leave: bool = False
        # Owned by the reading role, except while an answer waits for room in the send queue.
        self._answers: int = 0
        self._owed: int | None = None  # the nonce of the answer that waits

    @property
    def supported(self) -> bool:
        """Whether the peer answers requests."""
        return self.capabilities is not None and bool(self.capabilities & REQUESTS)

    @property
    def leaves(self) -> bool:
        """Whether the peer leaves when it is told to."""
        return self.capabilities is not None and bool(self.capabilities & LEAVES)

    @property
    def refusal(self) -> str | None:
        """Why no request can be made, if that is known."""
        if self.capabilities is not None:
            return None if self.supported else "the peer does not answer requests"
        at = self._refused_at
        if at is not None and self._host.wheel.since(at) < _MEMORY:
            return "the peer has not said in time that it answers requests"
        return None

    def ask(self) -> None:
        """Ask the peer, unless it is asked already. One thread at a time may call it."""
        if self.capabilities is not None or self.refusal is not None:
            return
        if self._asked is not None and self._refused_at is None:
            return
        self._refused_at = None
        host = self._host
        frame = capability_frame(time.time_ns(), ASK, host.capabilities, self._nonce)
        self._asked_at = time.monotonic()
        if self._before is None:
            self._before = self._traffic()[0]
        self._asked = asked = host.send_queue.tracked(frame)
        try:
            self._write(asked)
            host.timers.set_clock("capabilities", _PATIENCE, self._look)
        except WouldBlock:
            self._asked = None
            host.timers.set_clock("capabilities", _AGAIN, self._changed)
        except TaoError:
            self._asked = None  # the connection is over, or the next transport is asked

    def _look(self) -> None:
        """Take silence for an answer, if the question was sent and an answer would be read."""
        host, asked = self._host, self._asked
        if self.capabilities is not None or asked is None:
            return
        unread = not asked.sent or host.gate.paused or host.dispatcher.occupies_reader
        if unread or (self._peer_is_behind and host.wheel.since(self._asked_at) < _BUSY):
            host.timers.set_clock("capabilities", _PATIENCE, self._look)
            return
        self._refused_at = time.monotonic()
        self._changed()

    @property
    def _peer_is_behind(self) -> bool:
        """Whether the peer may be busy with what precedes the question: it has sent less."""
        return self._traffic()[1] < (self._before or 0)

    def take(self, told: Capabilities) -> None:
        """Read what the peer tells. By the reading role."""
        mine = told.nonce in (self._nonce, self.question)
        if told.kind == ASK:
            if mine:
                return  # the peer echoes heartbeats
            if self._answers < _ANSWERS_MOST:
                self._answers += 1
                self._owed = told.nonce
                self._answer()
        elif not mine:
            return
        self.capabilities = told.capabilities
        self._refused_at = None
        self._changed()

    def _answer(self) -> None:
        """Tell the peer the capabilities of this side."""
        nonce, host = self._owed, self._host
        if nonce is None:
            return
        try:
            has_some = getattr(host.settings, "sessions", None) is not None
            offers = OFFERS_SESSIONS if has_some else 0
            mine = host.capabilities | offers
            self._write(capability_frame(time.time_ns(), ANSWER, mine, nonce))
        except WouldBlock:
            host.timers.set_clock("capability answer", _AGAIN, self._answer)
            return
        except TaoError:
            pass  # the connection is over
        self._owed = None
