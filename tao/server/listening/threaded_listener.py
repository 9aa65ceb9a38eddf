"""A listener with threads of its own.

The thread that accepts a connection serves it, see ``runtime/leader_followers.py``.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any

from tao.runtime.deadline import Deadline
from tao.runtime.leader_followers import LeaderFollowers, Run
from tao.runtime.threads import Joinable
from tao.server.listening.binding import Bound
from tao.server.listening.listener import Listener
from tao.transport.addresses import address_text

__all__ = ["ThreadedListener"]


class ThreadedListener(Listener):
    """A listening socket, and threads that accept from it. Each serves what it has accepted.

    Args:
        bound, admit, failed, options: see `Listener`.
        cpus: the CPUs that the threads are pinned to, or None.
    """

    def __init__(
        self,
        bound: Bound,
        admit: Callable[[socket.socket, Any, list[Run]], object],
        failed: Callable[[], None],
        *,
        cpus: Set[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(bound, admit, failed, **options)
        # Wakes the accepting thread on every platform, without touching a socket that others share.
        self._wake, self._woken = socket.socketpair()
        self._accepting = LeaderFollowers(
            self._accept_next, f"tao-acceptor-{_port_of(self.address)}", cpus
        )
        # Owned by the accepting thread.
        self._poll, self._poll_wake = select.poll(), select.poll()
        self._poll.register(self._sock, select.POLLIN)
        for poll in (self._poll, self._poll_wake):
            poll.register(self._woken, select.POLLIN)

    def start(self) -> None:
        try:
            self._accepting.start()
        except BaseException:
            self._stopping = True
            self._free()
            raise

    def stop(self) -> None:
        # Send before setting _stopping: after that, the accepting thread may close this socket.
        try:
            self._wake.send(b"x")
        except OSError:
            pass  # accepting has ended already
        self._stopping = True

    @property
    def _led(self) -> bool:
        return self._accepting.led

    @property
    def _begun(self) -> bool:
        return self._accepting.begun

    def abandon(self) -> None:
        self._accepting.abandon()
        super().abandon()
        for sock in (self._wake, self._woken):
            sock.close()

    def discard(self) -> None:
        self.stop()
        if not (self._begun or self.closed.is_set()):
            self._free()

    def join(self, deadline: Deadline, stuck: Iterable[Joinable] = ()) -> list[threading.Thread]:
        super().join(deadline)
        return self._accepting.join(deadline, stuck)

    # -- by the leader; an exception here ends nothing, as LeaderFollowers calls again

    def _accept_next(self, found: list[Run]) -> bool:
        """Accept until there is work in ``found``; return False when accepting has ended."""
        while not (found or self._stopping):
            if not self._poll.poll(self._look_interval * 1000):
                self._look()
            elif seconds := self._step(found):
                self._poll_wake.poll(seconds * 1000)
        if not found:
            self._free()
        return bool(found)

    def _prepare(self) -> None:
        self._accepting.provide()

    def _free(self) -> None:
        try:
            super()._free()
        finally:
            self._wake.close()
            self._woken.close()


def _port_of(address: Any) -> Any:
    return address[1] if isinstance(address, tuple) else address_text(address)
