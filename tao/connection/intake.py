"""The way of a frame into the backlog: noted by any thread, then admitted, refused or dropped.

Any thread may call `Intake.hand_in` and `Intake.check_sealed`; the other methods that change
something need the turn of the send queue.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tao.connection.backlog import move
from tao.connection.send_limits import SendLimits
from tao.connection.transmitter import Transmitter
from tao.errors import ConnectionClosed, TaoError, WouldBlock

__all__ = ["Intake"]


class Intake:
    """Lets frames into the backlog of a transmitter, or refuses or drops them."""

    __slots__ = (
        "_backlog", "_limits", "_transmitter", "dropped", "frames", "on_crowded", "preface_frames",
        "preface_thread",
    )  # fmt: skip

    def __init__(self, limits: SendLimits, transmitter: Transmitter) -> None:
        self._limits = limits
        self._transmitter = transmitter
        self._backlog = transmitter.backlog
        # Any thread appends to these, in one step; the thread that has the turn empties them.
        self.frames: deque[bytes] = deque()  #: noted or collected
        self.preface_frames: deque[bytes] = deque()  #: noted, of the preface
        self.preface_thread: int | None = None  #: the thread whose frames are the preface
        self.dropped: int = 0  #: how many frames the policy has dropped
        self.on_crowded: Callable[[], object] = bool  #: see `SendQueue.when_crowded`

    @property
    def waiting(self) -> int:
        """How many frames wait, here and in the backlog."""
        return len(self._backlog) + len(self.frames) + len(self.preface_frames)

    @property
    def crowded(self) -> bool:
        """Whether more than half of the room is used, and there is a peer that can change that.

        Always false if a full queue drops frames or closes the connection.
        """
        if not self._limits.raises or self._transmitter.transport is None:
            return False
        return self._limits.more_than_half(self.waiting, self._backlog.waiting)

    def hand_in(self, frame: bytes) -> None:
        """Note a frame for the thread that has the turn."""
        if self._transmitter.seal is not None:
            raise ConnectionClosed(self._transmitter.seal)
        preface = self.preface_thread == threading.get_ident()
        if self._limits.raises:
            if self._full(len(frame), preface):
                raise self._would_block()
        elif len(self.frames) >= self._limits.frames:
            self.dropped += 1
            return
        lane = self.preface_frames if preface else self.frames
        if frame:
            lane.append(frame)
            self.check_sealed(frame, lane)
            self.check_crowded()

    def check_sealed(self, frame: bytes, lane: deque[bytes]) -> None:
        """Raise if a frame was noted too late, after nothing may be written any more."""
        if self._transmitter.seal is not None:
            try:
                lane.remove(frame)
            except ValueError:
                return  # it was in time
            raise ConnectionClosed(self._transmitter.seal)

    def take_in(self) -> None:
        """Add what was noted or collected to the backlog. Needs the turn."""
        backlog = self._backlog
        if backlog.journal is not None or backlog.size < 0:
            self._transmitter.repair()  # the thread that was interrupted could not do so
        if self.preface_frames:
            move(self.preface_frames, backlog.preface_frames)
            backlog.recount()
        if self.frames:
            if not self._limits.raises and self.waiting > self._limits.frames:
                self._take_in_singly()
                return
            backlog.take(self.frames)
            self.check_crowded()

    def _take_in_singly(self) -> None:
        while self.frames:
            try:
                self.line_up(self.frames.popleft())
            except TaoError:
                self.dropped += 1

    def line_up(self, frame: bytes, patiently: bool = False) -> None:
        """Add a frame to the backlog and send what can be sent, or drop one. Needs the turn.

        Args:
            patiently: whether to raise `WouldBlock` if there is no room, whatever the policy is.
        """
        size, preface = len(frame), self.preface_thread == threading.get_ident()
        transmitter = self._transmitter
        while transmitter.seal is None and self._full(size, preface):
            if transmitter.ready:
                transmitter.send()  # what was collected; afterwards it is sent, blocked or broken
            elif patiently:
                raise self._would_block()
            elif not self._make_room(size):
                return
        if transmitter.seal is not None:
            raise ConnectionClosed(transmitter.seal)
        if not frame:
            return  # if the kernel accepts nothing of it, that would look like a full one
        self._backlog.append(frame, preface=preface)
        if not transmitter.blocked:
            transmitter.send()
        self.check_crowded()

    def _full(self, size: int, preface: bool) -> bool:
        """Whether there is no room for a frame, in the preface or after it."""
        backlog, limits = self._backlog, self._limits
        if preface:
            count = len(backlog.preface_frames) + len(self.preface_frames)
        else:
            count = len(backlog.frames) + len(self.frames)
        lane_size = 0 if limits.size is None else backlog.lane_size(preface)
        return limits.exceeded(count, lane_size, size)

    def _make_room(self, size: int) -> bool:
        """Do what the policy says about a full queue; False: drop the new frame. Needs the turn."""
        limits, backlog, transmitter = self._limits, self._backlog, self._transmitter
        if limits.drops:
            self.dropped += 1
            if not limits.drops_oldest:
                return False
            oldest = transmitter.first_untouched()
            if oldest == len(backlog.frames) or not backlog.would_fit(size, limits.size, oldest):
                return False
            backlog.remove(oldest)
            return True
        if not limits.raises and transmitter.transport is not None:
            transmitter.give_up(TimeoutError("send queue full: the peer reads too slowly"))
            return True
        raise self._would_block()

    def _would_block(self) -> WouldBlock:
        return self._limits.would_block(self.waiting, self._backlog.waiting)

    def check_crowded(self) -> None:
        """Call ``on_crowded`` if it is."""
        if self.crowded:
            self.on_crowded()

    def clear(self) -> None:
        """Forget all that was noted."""
        self.frames.clear()
        self.preface_frames.clear()
