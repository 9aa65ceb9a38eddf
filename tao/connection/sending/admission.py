"""The way of a frame into the backlog: noted by any thread, then admitted, refused or dropped.

Any thread may call `Admission.hand_in` and `Admission.check_sealed`; the other methods that change
something need the turn of the send queue.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

from tao.connection.sending.backlog import TrackedFrame, move
from tao.connection.sending.keyed_frames import KeyedFrame
from tao.connection.sending.send_limits import SendLimits
from tao.connection.sending.transmitter import Transmitter
from tao.errors import ConnectionClosed, TaoError, WouldBlock

__all__ = ["Admission"]


class Admission:
    """Lets frames into the backlog of a transmitter, or refuses or drops them.

    Args:
        keep: whether frames wait for the next transport if this one is broken.
    """

    __slots__ = (
        "_backlog", "_keep", "_limits", "_taken", "_transmitter", "dropped", "frames",
        "in_preface", "on_crowded", "preface_frames",
    )  # fmt: skip

    def __init__(self, limits: SendLimits, transmitter: Transmitter, *, keep: bool) -> None:
        self._limits = limits
        self._keep = keep
        self._transmitter = transmitter
        self._backlog = transmitter.backlog
        # Any thread appends to these, in one step; the thread that has the turn empties them.
        self.frames: list[bytes] = []  #: noted or collected
        self.preface_frames: list[bytes] = []  #: noted, of the preface
        # The frame that is being lined up, as long as it is nowhere else. Needs the turn.
        self._taken: list[bytes] = []
        #: Returns whether what the calling code writes is of the preface; None: there is none.
        self.in_preface: Callable[[], bool] | None = None
        self.dropped: int = 0  #: how many frames the policy has dropped
        self.on_crowded: Callable[[], object] = bool  #: see `SendQueue.when_crowded`

    @property
    def waiting(self) -> int:
        """How many frames wait, here and in the backlog."""
        return len(self._backlog) + len(self.frames) + len(self.preface_frames)

    @property
    def noted(self) -> bool:
        """Whether frames are noted or collected that the backlog does not have."""
        return bool(self.frames or self.preface_frames)

    @property
    def crowded(self) -> bool:
        """Whether more than half of the room is used, and there is a peer that can change that.

        Always false if a full queue drops frames or closes the connection.
        """
        limits, transmitter, backlog = self._limits, self._transmitter, self._backlog
        if not limits.raises or transmitter.transport is None:
            return False
        if transmitter.preface_only:  # the peer cannot make room for the other frames
            return limits.more_than_half(self._lane(preface=True), backlog.lane_size(True))
        return limits.more_than_half(self.waiting, backlog.waiting)

    def _lane(self, *, preface: bool) -> int:
        """Return how many frames wait in one lane, here and in the backlog."""
        if preface:
            return len(self._backlog.preface_frames) + len(self.preface_frames)
        return len(self._backlog.frames) + len(self.frames)

    @property
    def _preface(self) -> bool:
        """Whether what the calling code writes is of the preface."""
        return self.in_preface is not None and self.in_preface()

    def hand_in(self, frame: bytes) -> None:
        """Note a frame for the thread that has the turn."""
        if self._transmitter.seal is not None:
            raise ConnectionClosed(self._transmitter.seal)
        preface = self._preface
        if self._limits.raises and self._full(len(frame), preface):
            raise self._would_block()
        lane = self.preface_frames if preface else self.frames
        if not self._limits.raises and len(lane) >= self._limits.frames:
            self.dropped += 1
            if not self._limits.drops_oldest:
                return
            try:
                lane.pop(0)
            except IndexError:
                self.dropped -= 1  # the thread that has the turn has just taken them
        if frame:
            lane.append(frame)
            self.check_sealed(frame, lane)
            self.check_crowded()

    def check_sealed(self, frame: bytes, lane: list[bytes]) -> None:
        """Raise if a frame was noted too late, after nothing may be written any more.

        A thread notes its frame, and then looks for the seal. The thread that sends the end of the
        stream sees the seal, and then looks for frames. So at least one of them notices the other.
        """
        if self._transmitter.seal is not None:
            try:
                lane.remove(frame)
            except ValueError:
                return  # it was in time
            raise ConnectionClosed(self._transmitter.seal)

    def take_in(self) -> None:
        """Add all noted and collected frames to the backlog. Needs the turn."""
        if self._transmitter.fin_sent:
            return  # what comes now comes too late: `check_sealed` removes it
        backlog = self._backlog
        if backlog.journal is not None or backlog.size < 0:
            self._transmitter.repair()  # the thread that was interrupted could not do so
        if self._taken:
            self.put_back()
        if self.preface_frames:
            move(self.preface_frames, backlog.preface_frames)
            backlog.recount()
        if self.frames:
            if not self._limits.raises and self.waiting > self._limits.frames:
                self._take_in_singly()
                return
            backlog.take(self.frames)
            self.check_crowded()

    def seal_at_once(self, reason: str) -> bool:
        """Seal, and take the end for sent, if nothing waits; return whether it is. Needs the turn.

        False also if something was noted meanwhile: then it is sealed only.
        """
        transmitter, backlog = self._transmitter, self._backlog
        if backlog.size or backlog.journal is not None or self._taken:
            return False
        transport = transmitter.transport
        ended = transmitter.parting or transmitter.seal is not None
        if ended or transmitter.blocked or transport is None or not transport.close_ends:
            return False
        transmitter.seal = reason
        if self.frames or self.preface_frames:
            return False  # in time; the next ones see the seal, see `check_sealed`
        transmitter.fin_sent = True
        return True

    def _take_in_singly(self) -> None:
        while self.frames:
            try:
                # In one step, so that an exception finds the frame in one of the two.
                self._taken.extend(map(self.frames.pop, (0,)))
            except IndexError:
                return  # another thread has dropped the oldest, to note its own
            try:
                self._line_up(self._taken, preface=False)
            except TaoError:
                self.dropped += 1
            self._taken.clear()

    def put_back(self) -> None:
        """Note a frame again that an exception has kept from being lined up. Needs the turn."""
        self.frames[:0] = map(self._taken.pop, repeat(0, len(self._taken)))

    def write(self, frame: bytes, patiently: bool = False) -> None:
        """Add a frame after all others, see `_line_up`, or raise. Needs the turn."""
        self.take_in()
        self._line_up([frame], preface=self._preface, patiently=patiently)
        self.check_broken(frame)

    def check_broken(self, frame: bytes) -> None:
        """Raise if the frame that was added last cannot be sent any more. Needs the turn."""
        if self._transmitter.error is not None and not self._keep:
            self._backlog.take_back(frame)
            raise ConnectionClosed(self._transmitter.seal or "connection broken")

    def _line_up(self, source: list[bytes], *, preface: bool, patiently: bool = False) -> None:
        """Add a frame to the backlog and send as much as possible, or drop one. Needs the turn.

        Args:
            source: has the frame, until it is in the backlog.
            preface: whether it is of the preface.
            patiently: whether to raise `WouldBlock` if there is no room, whatever the policy is.
        """
        frame, transmitter = source[0], self._transmitter
        size = len(frame)
        if type(frame) is KeyedFrame and not preface and self._replace(frame):
            return
        if transmitter.ready and self._full(size, preface):
            transmitter.send()  # afterwards all collected frames are sent, blocked or failed
        # If it is sent, there is room, although other threads may have noted more meanwhile.
        while transmitter.seal is None and not transmitter.ready and self._full(size, preface):
            if patiently:
                raise self._would_block()
            if not self._make_room(size, preface):
                return
        if transmitter.seal is not None:
            raise ConnectionClosed(transmitter.seal)
        if not frame:
            return  # if the kernel accepted none of it, the queue would look full
        self._backlog.append(source, preface=preface)
        if not transmitter.blocked:
            transmitter.send()
        self.check_crowded()

    def _replace(self, frame: KeyedFrame) -> bool:
        """Put a frame in the place of one that waits with its key; tell whether. Needs the turn."""
        backlog, transmitter, limits = self._backlog, self._transmitter, self._limits
        index = backlog.find_key(frame.key)
        if transmitter.seal is not None or index is None or index < transmitter.first_untouched():
            return False
        more = len(frame) - len(backlog.frames[index])
        if limits.size is not None and more > 0 and backlog.waiting + more > limits.size:
            return False  # it has to find room like any other
        backlog.replace(index, frame)
        return True

    def _full(self, size: int, preface: bool) -> bool:
        """Whether there is no room for a frame, in the preface or after it."""
        backlog, limits = self._backlog, self._limits
        lane_size = 0 if limits.size is None else backlog.lane_size(preface)
        return limits.exceeded(self._lane(preface=preface), lane_size, size)

    def _make_room(self, size: int, preface: bool) -> bool:
        """Apply the policy for a full queue; False: drop the new frame. Needs the turn."""
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
        # Frames that wait for the end of the preface are not the peer's fault.
        peer_is_slow = transmitter.transport is not None and (
            preface or not transmitter.preface_only
        )
        if not limits.raises and peer_is_slow:
            transmitter.give_up(TimeoutError("send queue full: the peer reads too slowly"))
            return True
        raise self._would_block()

    def _would_block(self) -> WouldBlock:
        return self._limits.would_block(self.waiting, self._backlog.waiting)

    def withdraw(self, frame: TrackedFrame) -> bool:
        """Take a frame back; return whether the kernel does not have all of it. Needs the turn."""
        self.take_in()
        backlog, transmitter = self._backlog, self._transmitter
        index = backlog.find(frame)
        if index is not None and transmitter.transport is None:
            backlog.rewind()
        if index is not None and index >= transmitter.first_untouched():
            backlog.remove(index)
            index = None
        return index is None and not frame.sent

    def check_crowded(self) -> None:
        """Call ``on_crowded`` if it is."""
        if self.crowded:
            self.on_crowded()

    def clear(self) -> None:
        """Forget all that was noted."""
        self._taken.clear()
        self.frames.clear()
        self.preface_frames.clear()
