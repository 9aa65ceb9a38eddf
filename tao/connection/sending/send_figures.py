"""The figures of a send queue, which any thread may read."""

from __future__ import annotations

from tao.connection.sending.admission import Admission
from tao.connection.sending.transmitter import Transmitter
from tao.runtime.combining import Combiner
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import ListenedNotifier

__all__ = ["SendFigures"]


class SendFigures:
    """What is known of the frames that wait or were sent, and of the transport."""

    __slots__ = ("_admission", "_room", "combiner", "noted", "transmitter")

    _admission: Admission
    _room: ListenedNotifier  # for threads that wait for room, or for the end
    combiner: Combiner  #: has the turn
    noted: list[bytes]  #: frames that are noted or collected, and wait; any thread appends
    transmitter: Transmitter  #: has the transport, and counts

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return self._admission.waiting

    @property
    def crowded(self) -> bool:
        """Whether the queue is more than half full, and there is a peer that can change that.

        Always false if a full queue drops frames or closes the connection.
        """
        return bool(self.transmitter.backlog.size or self.noted) and self._admission.crowded

    def stays_crowded(self) -> bool:
        """Whether it is `crowded`, not counting what is just being sent. Waits for the turn."""
        # A write that is sent at once notifies nobody, though it may fill a small queue meanwhile.
        return self.crowded and self.combiner.run(lambda: self.crowded)

    def wait_uncrowded(self) -> None:
        """Wait while the queue is more than half full. It may return early."""
        self._room.wait_for(lambda: not self.stays_crowded())

    def wait_sent(self, deadline: Deadline) -> bool:
        """Wait until no more can be sent; return whether all is, with the end of the stream."""
        self._room.wait_for(lambda: self.over, deadline.remaining())
        return self.fin_sent

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of its turn."""
        return bool(self.combiner.turn._is_owned())

    @property
    def waiters(self) -> int:
        """How many threads wait for room in the queue, or for its end."""
        return self._room.waiting

    @property
    def dropped(self) -> int:
        """How many frames the policy has dropped."""
        return self._admission.dropped

    @property
    def bytes_waiting(self) -> int:
        """How many bytes wait in the backlog that the kernel has not accepted."""
        return self.transmitter.backlog.waiting

    @property
    def error(self) -> OSError | None:
        """What broke the transport."""
        return self.transmitter.error

    @property
    def blocked(self) -> bool:
        """Whether the kernel is full: the peer reads too slowly, or not at all."""
        return self.transmitter.blocked

    @property
    def fin_sent(self) -> bool:
        """Whether all frames and the end of the stream have been sent."""
        return self.transmitter.fin_sent

    @property
    def over(self) -> bool:
        """Whether nothing more will be sent: all is, and the end, or there is no transport."""
        return self.transmitter.fin_sent or self.transmitter.transport is None

    @property
    def frames_sent(self) -> int:
        """How many frames the kernel has accepted."""
        return self.transmitter.frames_sent

    @property
    def bytes_sent(self) -> int:
        """How many bytes the kernel has accepted."""
        return self.transmitter.bytes_sent

    @property
    def last_sent(self) -> float:
        """When the kernel last accepted bytes, or began to refuse them (``time.monotonic``)."""
        return self.transmitter.last_sent
