"""The threads of a loop that reads for many connections, and what they play a role of.

What handlers write in their turns is collected, and leaves a moment later, for some connections one
right after another. A peer that runs on the same machine is woken by a send and soon waits again:
if a message of another connection were handled after each send, it would wait before each, and have
to be woken by each. And what sends and what handles are each found in the processor's caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tao.connection.shared_reading.breaks import Resting
from tao.runtime.wakeup import Wakeup

__all__ = ["NO_OUTBOX", "SOON", "Member", "Outbox", "Polled"]

#: What was collected leaves so soon after the first turn it is of, in seconds, or after the turn
#: that takes longer. It is some dozens of short turns.
SOON = 0.2e-3


class Outbox(Protocol):
    """What sends the replies of a connection."""

    @property
    def noted(self) -> Sequence[bytes]:
        """What was collected, or is noted anyway."""

    def send_collected(self, now: float) -> None:
        """Send what was collected; the time is monotonic. By the thread of the turn."""

    def flush(self) -> None:
        """Send what was collected. Any thread may call it."""


class _NoOutbox:
    """Of what sends nothing."""

    noted = ()

    def send_collected(self, now: float) -> None:
        """See `Outbox`."""

    def flush(self) -> None:
        """See `Outbox`."""


NO_OUTBOX: Outbox = _NoOutbox()


class Polled(Resting, Protocol):
    """What the loop plays a role of: one connection."""

    outbox: Outbox  #: has what a turn has not sent

    def turn(self, events: int, now: float = 0.0) -> None:
        """Do what can be done without waiting, as the descriptor is ready for these events.

        Args:
            now: the time, monotonic, if it is known.
        """

    def struck(self, error: BaseException) -> object:
        """End, as this was raised in `turn`."""

    def look(self, now: float, grace: float) -> None:
        """See whether a handler blocks the leader; see `Watched.look`."""

    def abandoned(self) -> None:
        """End, as the loop has ended, and nothing waits for its descriptor any more."""


class Member:
    """A thread of the loop, which leads, follows, or is blocked in a handler."""

    __slots__ = ("awake", "called", "serving", "unsent")

    def __init__(self) -> None:
        self.called = Wakeup()  # to lead
        #: Whether it leads and may serve. Set *before* it looks whether to kick the watchdog, so
        #: that this finds it set, however late the thread gets to the first connection.
        self.awake: bool = False
        #: The connection whose turn it is in. Owned by the thread, read by the watch.
        self.serving: Polled | None = None
        #: The connections of which something is collected. The same.
        self.unsent: list[Polled] = []

    def send_collected(self, now: float) -> None:
        """Send what is collected; whatever is raised, this thread answers for `serving`.

        Args:
            now: the time, monotonic.
        """
        unsent = self.unsent
        unsent.reverse()  # so that the first is taken out first, and each at once
        while unsent:
            self.serving = each = unsent[-1]
            unsent.pop()
            each.outbox.send_collected(now)

    def flush(self) -> None:
        """Send what is collected, as the thread is in a turn that takes long. Any thread may."""
        for each in list(self.unsent):
            each.outbox.flush()
