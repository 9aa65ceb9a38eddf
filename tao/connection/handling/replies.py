"""Handlers whose writes find the send queue full: they wait for room, up to ``reply_timeout``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tao.connection.application import ApplicationLink
from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.options.definitions import Settings
from tao.connection.sending.send_queue import SendQueue
from tao.errors import WouldBlock

__all__ = ["Replies", "RepliesHost"]


class RepliesHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    runner: HandlerRunner
    send_queue: SendQueue
    settings: Settings

    def lend_worker(self) -> AbstractContextManager[object]:
        """Return a context in which a waiting handler does not count as one of the workers."""


class Replies:
    """What the handlers of a connection write. Any thread may call any method.

    Args:
        host: the connection's core.
    """

    __slots__ = ("_host", "_timed_out_at")

    def __init__(self, host: RepliesHost) -> None:
        self._host = host
        # How many frames had been sent when a handler's write last timed out. Changed in one step.
        self._timed_out_at: int = -1
        host.send_queue.when_crowded(self._note_crowded)

    @property
    def may_wait(self) -> bool:
        """Whether a write that found no room waits for it: one of a handler of this connection.

        Once a write has timed out, further writes do not wait until the peer takes something.
        """
        host, send_queue = self._host, self._host.send_queue
        application, transmitter = host.application.find(), send_queue.transmitter
        return (
            application is not None
            and application.variables.entered_here
            and host.settings.slow_consumer == "raise"
            # There is a peer that makes room, and may have done so since.
            and transmitter.transport is not None
            and (not transmitter.preface_only or send_queue.crowded)
            and self._timed_out_at != send_queue.frames_sent
        )

    def deliver(self, frame: bytes) -> None:
        """Send or queue a frame; on a thread whose writes wait for room, wait for it.

        Raises:
            WouldBlock: there was none, or not within ``reply_timeout``.
            ConnectionClosed: nothing can be sent any more.
        """
        try:
            self._host.send_queue.write(frame)
        except WouldBlock:
            if not self.may_wait:
                raise
            self.write(frame)

    def write(self, frame: bytes) -> None:
        """Send or queue the frame of a handler once there is room.

        Raises:
            WouldBlock: there was none within ``reply_timeout``.
        """
        host = self._host
        with host.lend_worker():
            try:
                host.send_queue.reply(frame, host.settings.reply_timeout)
            except WouldBlock:
                self._timed_out_at = host.send_queue.frames_sent
                raise

    def _note_crowded(self) -> None:
        """A write has found the send queue more than half full; note it if it is a handler's."""
        application = self._host.application.find()
        if application is not None and application.variables.entered_here:
            self._host.runner.note_replies_wait()
