"""What a write does when the send queue is full: wait, raise, drop a frame, or give the peer up.

All of it is part of the outbox (``outbox.py``), and needs its mutex.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING

from tao.errors import ConnectionClosed, WouldBlock
from tao.threads import Deadline

if TYPE_CHECKING:
    from tao.outbox import Outbox

__all__ = ["make_room"]


def make_room(outbox: Outbox, size: int, timeout: float | None) -> bool:
    """Make room for a frame of so many bytes, or raise; False: the frame itoutbox is dropped.

    Needs the mutex, and gives it up while it waits.
    """
    deadline = Deadline(timeout or 0.0)
    while outbox._seal is None and _full(outbox, size):
        if outbox._transport is not None and outbox._preface is None and not outbox._blocked:
            outbox._send()  # what a batch held back; whatever comes of it, this is not so again
        elif not deadline.expired:
            outbox._waiting += 1
            outbox.not_full.wait(deadline.remaining())
            outbox._waiting -= 1
        elif not _overflow(outbox, size):
            return False
    if outbox._seal is not None:
        raise ConnectionClosed(outbox._seal)
    return True


def _full(outbox: Outbox, size: int) -> bool:
    """Whether a limit is reached: of the preface for who writes it, else of the rest."""
    mine = outbox._preface == threading.get_ident()
    count = outbox._ahead if mine else len(outbox.queue) - outbox._ahead
    if count >= outbox.maxsize:
        return True
    if outbox._limit_bytes is None or not count:
        return False
    waiting = outbox.bytes_waiting
    if outbox._ahead:
        ahead = sum(map(len, islice(outbox.queue, outbox._ahead))) - outbox._offset
        waiting = ahead if mine else waiting - ahead
    return waiting + size > outbox._limit_bytes


def _overflow(outbox: Outbox, size: int) -> bool:
    """Do what is to be done with a consumer too slow; False: drop the new frame."""
    policy = outbox._slow_consumer
    if policy in ("drop_oldest", "drop_newest"):
        outbox.dropped += 1
        oldest = _droppable(outbox) if policy == "drop_oldest" else len(outbox.queue)
        if oldest == len(outbox.queue) or not _would_fit(outbox, size, oldest):
            return False
        outbox._bytes -= len(outbox.queue[oldest])
        del outbox.queue[oldest]
        return True
    if policy == "close" and outbox._transport is not None:
        outbox._break(TimeoutError("send queue full: the peer reads too slowly"))
        return True
    what = "" if outbox._limit_bytes is None else f" with {outbox.bytes_waiting} bytes"
    raise WouldBlock(f"the send queue is full: {len(outbox.queue)} messages wait{what}")


def _would_fit(outbox: Outbox, size: int, kept: int) -> bool:
    """Whether a frame would fit if only the first ``kept`` were left. Needs the mutex."""
    if outbox._limit_bytes is None or not kept:
        return True
    left = sum(map(len, islice(outbox.queue, kept))) - outbox._offset
    return left + size <= outbox._limit_bytes


def _droppable(outbox: Outbox) -> int:
    """The index of the first frame that has not begun to leave, and is not of the preface."""
    begun = outbox._offset
    if outbox._transport is not None:
        begun += outbox._transport.begun
    index = 0
    while begun > 0:
        begun -= len(outbox.queue[index])
        index += 1
    return max(index, outbox._ahead)
