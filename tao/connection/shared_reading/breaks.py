"""Breaks: after a turn that took long, a connection lets the others have their share.

It concerns peers that have sent more than one turn takes: a peer that sends without a pause fills
its turns, whatever the others do. It is not read again before the others have had twelve times as
long. Time that is spent waiting for them counts as theirs, as they may be about to answer; but if
nothing at all comes for a millisecond, there is nobody to wait for. Where none but such peers send,
there are no breaks.

No I/O, no threads, no clock. The leader of a loop owns it.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["LONG", "QUIET", "Breaks", "Resting"]

#: A turn is long if it takes longer than this, in seconds.
LONG = 0.5e-3
#: If nothing comes for so long, in seconds, there are no others. It is the least that ``epoll`` can
#: wait.
QUIET = 1e-3
# So many times as long as the turn the others are served meanwhile. Of a very long turn only so
# much counts, in seconds: the thread may have waited for a processor.
_SHARE, _COUNTED = 12, 2e-3


class Resting(Protocol):
    """A connection that can have a break."""

    def took(self, seconds: float) -> bool:
        """Note that a turn has taken long; return whether more waits to be received."""

    def take_break(self) -> None:
        """Receive nothing until `end_break` is called."""

    def end_break(self) -> None:
        """Receive again. It may be called without a break."""


class Breaks:
    """The breaks of the connections of one loop."""

    __slots__ = ("_contended", "_until", "shared")

    def __init__(self) -> None:
        #: Seconds that short turns have taken and, during breaks, the waits for others.
        self.shared: float = 0.0
        # Those that have a break, until ``shared`` is so much.
        self._until: dict[Resting, float] = {}
        self._contended: bool = False  # whether there are others

    def __bool__(self) -> bool:
        return bool(self._until)

    def begin(self, long: list[tuple[Resting, float]], *, contended: bool) -> None:
        """Have those take a break that had a long turn in this round, if there are others.

        Args:
            long: which they are, and how many seconds each turn took.
            contended: whether others had a short turn in this round.
        """
        self._contended = self._contended or contended
        for each, seconds in long:
            if each.took(seconds) and self._contended:
                self._until[each] = self.shared + _SHARE * min(seconds, _COUNTED)
                each.take_break()

    def waited(self, seconds: float, *, quiet: bool) -> None:
        """End the breaks that are over.

        Args:
            seconds: for which the loop has waited.
            quiet: whether nothing has come.
        """
        self.shared += seconds
        self._contended = self._contended and not quiet
        for each, until in dict(self._until).items():
            if quiet or until <= self.shared:
                each.end_break()
                self._until.pop(each, None)
