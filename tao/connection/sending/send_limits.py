"""How much may wait in a send queue, and what happens to a frame that finds it full. Pure.

The limits hold for each lane of the backlog by itself: for the preface, and for all other frames.
"""

from __future__ import annotations

import functools

from tao.errors import WouldBlock

__all__ = ["COLLECTED_FRAME", "SendLimits", "send_limits"]

#: Only frames shorter than this are collected while a batch is handled.
COLLECTED_FRAME = 16 * 1024
# How many frames are collected at most.
_COLLECTED_FRAMES = 128


@functools.cache
def send_limits(frames: int, size: int | None, slow_consumer: str) -> SendLimits:
    """Return limits, which all connections with the same options share."""
    return SendLimits(frames, size, slow_consumer)


class SendLimits:
    """The limits of a send queue; they do not change.

    Args:
        frames: how many frames may wait.
        size: how many bytes may wait, None for any number. One larger frame may wait alone.
        slow_consumer: what happens to a frame that finds the queue full, see `SendQueue`.
    """

    __slots__ = ("collected", "drops", "drops_oldest", "frames", "raises", "size")

    def __init__(self, frames: int, size: int | None, slow_consumer: str) -> None:
        self.frames: int = frames
        self.size: int | None = size
        self.raises: bool = slow_consumer == "raise"
        self.drops_oldest: bool = slow_consumer == "drop_oldest"
        self.drops: bool = self.drops_oldest or slow_consumer == "drop_newest"
        #: How many frames may be collected while a batch is handled.
        self.collected: int = min(frames // 2, _COLLECTED_FRAMES)
        if size is not None:
            self.collected = min(self.collected, size // COLLECTED_FRAME)

    def more_than_half(self, frames: int, size: int) -> bool:
        """Whether so many frames and bytes are more than half of what may wait."""
        return frames > self.frames // 2 or (self.size is not None and size > self.size // 2)

    def exceeded(self, frames: int, size: int, new: int) -> bool:
        """Whether ``new`` more bytes, in one frame, would be too much beside those that wait."""
        return frames >= self.frames or (
            self.size is not None and frames > 0 and size + new > self.size
        )

    def would_block(self, frames: int, size: int) -> WouldBlock:
        """Return the error for a frame that is not queued."""
        what = "" if self.size is None else f" with {size} bytes"
        return WouldBlock(f"the send queue is full: {frames} messages wait{what}")
