"""A write that waits for room in the send queue."""

from __future__ import annotations

from collections.abc import Callable

from tao.errors import WouldBlock
from tao.runtime.combining import Combiner
from tao.runtime.deadline import Deadline
from tao.runtime.wakeup import Notifier

__all__ = ["written_in_time"]


def written_in_time(
    write: Callable[[], object],
    combiner: Combiner,
    room: Notifier,
    deadline: Deadline,
    hopeful: Callable[[], bool],
) -> bool:
    """Write as soon as there is room; return False at the deadline, or without hope.

    A call that has interrupted the turn does not wait: only the interrupted one could make room.

    Args:
        write: writes in the turn, or raises `WouldBlock`.
        combiner: has the turn.
        room: notified when there may be room.
    """
    written = False

    def done() -> bool:
        nonlocal written
        if not written and hopeful():
            try:
                combiner.run(write)
                written = True
            except WouldBlock:
                pass
        return written or not hopeful()

    if not combiner.interrupted_here:
        room.wait_for(done, deadline.remaining())
    return written
