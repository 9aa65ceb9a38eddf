"""The figures of a send queue, which any thread may read."""

from __future__ import annotations

from tao.connection.sending.admission import Admission
from tao.connection.sending.transmitter import Transmitter

__all__ = ["SendFigures"]


class SendFigures:
    """What is known of the frames that were sent, and of the transport."""

    __slots__ = ("_admission", "transmitter")

    _admission: Admission
    transmitter: Transmitter  #: has the transport, and counts

    @property
    def waiting(self) -> int:
        """How many frames wait."""
        return self._admission.waiting

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
