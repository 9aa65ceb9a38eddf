"""Whether a client's connection was of use, so that the back-off starts over when it is lost.

A wrong port may accept and send anything: a banner, an error, even a heartbeat. A connection is
useful if it delivered a message that the application knows, or lasted long enough; with
``ready="manual"`` it must have become ready.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.readiness import Readiness
from tao.connection.receiving.reading import Reader
from tao.connection.requests.exchange import Exchange
from tao.runtime.timing_wheel import TimingWheel
from tao.wire.codec import Batch
from tao.wire.message import HeartbeatMessage

__all__ = ["Usefulness", "UsefulnessHost"]

# A connection is useful if it lasts this many seconds and longer than the longest back-off.
_LASTING = 10.0


class UsefulnessHost(Protocol):
    """What this asks of a client's core."""

    application: ApplicationLink
    exchange: Exchange
    reader: Reader
    readiness: Readiness
    wheel: TimingWheel


class Usefulness:
    """Looks at one connection of a client after another. Owned by the reading role.

    Args:
        host: the client's core.
    """

    __slots__ = ("_host", "came_up", "proved")

    def __init__(self, host: UsefulnessHost) -> None:
        self._host = host
        #: When the connection was opened, monotonic; infinity before that.
        self.came_up: float = monotonic()
        #: Whether it has delivered a known message or, with a login, become ready.
        self.proved: bool = False

    def begin(self) -> None:
        """Look at a new connection, which is not open yet."""
        self.came_up, self.proved = math.inf, False
        reader = self._host.reader
        reader.unwatch(self._look_for_proof)
        if not self._host.readiness.manual:
            reader.watch(self._look_for_proof)

    def note_open(self) -> None:
        """Note that it is open."""
        self.came_up, self.proved = monotonic(), self.proved or self._host.readiness.manual

    def _look_for_proof(self, batch: Batch) -> Batch:
        """Note whether a message or a reply proves that the peer is the application's server."""
        application = self._host.application.find()
        known: Any = {} if application is None else application.registry.entries
        if self._host.exchange.answered or any(
            known.get(number) is not None and not isinstance(message, HeartbeatMessage)
            for number, message in batch
        ):
            self.proved = True
            self._host.reader.unwatch(self._look_for_proof)
        return batch

    def judge(self) -> bool:
        """Return whether the connection that was lost was useful, and tell the source of it."""
        application = self._host.application.find()
        if application is None or application.reconnect is None:
            return False
        lasting = max(application.reconnect.maximum, _LASTING)
        proved = self.proved or self._host.exchange.answered
        useful = proved or self._host.wheel.since(self.came_up) > lasting
        application.source.over(useful)
        return useful
