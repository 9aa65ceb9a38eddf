"""Sending one frame on many connections: a broadcast.

A program that receives on many of these connections, or that runs on the same machine, is woken by
a send and soon waits again. If each send is followed by what has to be noted for one connection and
prepared for the next, it waits before each, and most of a broadcast's time is spent on waking it.
So the frame is prepared on some connections, then sent on all of them one right after another, and
then counted. Meanwhile this thread has the turns of all their send queues. It waits for none of
them, nor for anything else.
"""

from __future__ import annotations

from time import monotonic

from tao.connection.sending.send_queue import SendQueue
from tao.errors import TaoError

__all__ = ["BURST", "Burst"]

#: To how many connections to send in one burst. Other threads that write to them queue meanwhile.
BURST = 32


class Burst:
    """One frame for some send queues.

    An exception may come between any two bytecodes. Then what is said of `SendQueue.write` holds
    for each of the queues.

    Args:
        frame: one whole message.
        queues: each of them once.
    """

    __slots__ = ("_frame", "_free", "_others")

    def __init__(self, frame: bytes, queues: list[SendQueue]) -> None:
        self._frame = frame
        # A turn that this thread has already, in a write that this call interrupts, stays as it is.
        self._free = [queue for queue in queues if not queue.combiner.turn._is_owned()]
        self._others = [queue for queue in queues if queue.combiner.turn._is_owned()]

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of a burst."""
        return any(queue.interrupted_here for queue in self._free)

    def send(self) -> list[tuple[SendQueue, TaoError]]:
        """Write the frame once to each queue, as `SendQueue.write` does without a timeout.

        Returns:
            the queues that did not take it, each with the error.
        """
        try:
            failed = self._send_at_once()
        except BaseException:
            try:
                self._recover()
            finally:
                # Released here as well: if the stack is full, a call would fail again.
                for queue in self._free:
                    if queue.combiner.turn._is_owned():
                        queue.combiner.turn.release()
            raise
        for queue in self._others:
            try:
                queue.write(self._frame)
            except TaoError as error:
                failed.append((queue, error))
        return failed

    def _send_at_once(self) -> list[tuple[SendQueue, TaoError]]:
        """Send where nothing waits, and note the other queues."""
        frame = self._frame
        begun: list[SendQueue] = []
        failed: list[tuple[SendQueue, TaoError]] = []
        for queue in self._free:
            (begun if queue.begin(frame) else self._others).append(queue)
        started = monotonic()
        accepted = [queue.transmitter.pass_on(frame) for queue in begun]
        now = monotonic()
        seconds = (now - started) / (len(begun) or 1)
        for queue, size in zip(begun, accepted, strict=True):
            try:
                queue.end(frame, size, now, seconds)
            except TaoError as error:
                queue.combiner.recover()
                failed.append((queue, error))
        return failed

    def _recover(self) -> None:
        """In an ``except`` clause: repair what was interrupted, and release all turns."""
        try:
            self._put_right()
        except BaseException:
            self._put_right()  # a second exception interrupted that
            raise

    def _put_right(self) -> None:
        for queue in self._free:
            queue.combiner.recover()
