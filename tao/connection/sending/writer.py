"""The writer thread of one connection: it waits until the socket accepts more."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

from tao.runtime.wakeup import Notifier
from tao.transport.stream import Transport

__all__ = ["Writer"]


class Writer:
    """Waits for transports, one after another, on a thread that is started when first needed.

    Args:
        start: starts the thread that calls `run`, and returns it; called again only if it raised,
            or if an exception has ended the thread.
        uses: returns whether a transport is the one in use; no other is waited for.
        on_writable: called by the writer thread when a transport may accept more.
        left: notified when the thread has left a transport.
    """

    __slots__ = (
        "_left",
        "_on_writable",
        "_polling",
        "_start",
        "_started",
        "_thread",
        "_uses",
        "_wanted",
    )

    def __init__(
        self,
        start: Callable[[], Any],
        uses: Callable[[Transport], bool],
        on_writable: Callable[[Transport], None],
        left: Notifier,
    ) -> None:
        self._start = start
        self._uses = uses
        self._on_writable = on_writable
        self._left = left
        self._started: bool = False
        self._thread: Any = None  # what `start` has returned
        self._polling: bool = False  # whether the thread may be in a transport
        # A transport to wait for, or None for the end. It is a SimpleQueue because only that has a
        # put that a finalizer may call while it interrupts get.
        self._wanted: queue.SimpleQueue[Transport | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread, unless it has been started. If that fails, it can be tried again."""
        thread = self._thread
        if not self._started or (thread and not thread.is_alive()):
            self._thread = self._start()
            self._started = True

    def wait_for(self, transport: Transport) -> None:
        """Have the thread wait for a transport and then call ``on_writable``."""
        self._wanted.put(transport)

    def stop(self) -> None:
        """End the thread when it has left the transport that it waits for."""
        self._wanted.put(None)

    def wait_left(self) -> None:
        """Wait until the thread is in no transport. The one in use was taken away before."""
        self._left.wait_for(lambda: not self._polling)

    def run(self) -> None:
        """The thread's function."""
        try:
            self._run()
        except BaseException:
            self._polling = self._started = False
            self._left.notify_all()
            raise

    def _run(self) -> None:
        while (transport := self._wanted.get()) is not None:
            # In this order, because a thread removes the transport before it calls `wait_left`.
            self._polling = True
            try:
                if self._uses(transport):
                    transport.wait_writable()
            finally:
                self._polling = False
                self._left.notify_all()
            self._on_writable(transport)
        self._wanted.put(None)  # an interrupted write may have started a second thread
