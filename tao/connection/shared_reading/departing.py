"""Peers that leave together: their connections end a few at a time, and others are served between.

To end a connection takes as long as some messages do, so a newcomer may not have to wait for the
end of thousands. Those that wait for their end have a break meanwhile, see ``breaks.py``: a poller
that reports all of them again in each round takes as much time as their ends.

No I/O, no threads, no clock. The leader of a loop owns it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from tao.connection.shared_reading.breaks import Resting
from tao.transport.poller import ENDED

__all__ = ["FEW", "Departing"]

#: So many end between two looks for others.
FEW = 64


class Departing:
    """The connections of one loop that wait for their end."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # The first that came is the first. One may be there twice, if it was reported again after
        # its break had begun, or after an exception: its second turn finds nothing to do.
        self._waiting: deque[tuple[int, int, Resting]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def set_aside(
        self, ready: list[tuple[int, int]], members: Mapping[int, Resting]
    ) -> list[tuple[int, int]]:
        """Let those wait whose peers have left; return what else is ready.

        Args:
            ready: descriptors and their events.
            members: by their descriptors.
        """
        others = []
        for descriptor, events in ready:
            member = members.get(descriptor)
            if member is None or not events & ENDED:
                others.append((descriptor, events))
            else:
                self._waiting.append((descriptor, events, member))
                member.take_break()
        return others

    def some(self, members: Mapping[int, Resting]) -> Iterator[tuple[int, int]]:
        """Return the descriptors and events of a few of them; `Resting.end_break` is to be called.

        One waits until its turn is over, so that it is not forgotten whatever happens in that.
        """
        for _ in range(min(FEW, len(self._waiting))):
            descriptor, events, member = self._waiting[0]
            if members.get(descriptor) is member:
                yield descriptor, events
            self._waiting.popleft()
