"""Relays connections with TLS to the processes that have their sessions.

The state of TLS is in the process that has done the handshake, so such a connection cannot be
passed on. Instead that process passes one end of a pair of Unix sockets, and one thread,
``tao-session-relay``, copies between TLS and the other end, for all such connections. It waits for
nothing but the poller: one side is not read while the other one does not take what was read before.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

from tao.runtime.deadline import Deadline
from tao.runtime.forks import renew_after_fork
from tao.runtime.threads import gather, spawn
from tao.transport.poller import READABLE, WRITABLE, Poller, new_poller
from tao.transport.stream import Transport

__all__ = ["SessionRelay"]

# How much is read at once, in bytes, and how often in a row from one side.
_PIECE, _ROUNDS = 64 * 1024, 16
# How long the client may take to end once the other process has, how often to look for that, and
# how long the thread may take to end; in seconds.
_PARTING, _LOOK, _MOMENT = 5.0, 1.0, 2.0


class SessionRelay:
    """Relays connections until both sides have ended. Any thread may call the public methods.

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self) -> None:
        self._new: deque[_Pair] = deque()  # to be relayed; any thread appends
        self._closing: bool = False
        self._poller: Poller = new_poller()
        # By both descriptors. Owned by the thread.
        self._pairs: dict[int, _Pair] = {}
        renew_after_fork(self, SessionRelay.after_fork)
        self._thread = spawn(self._run, name="tao-session-relay", failed=self._run)
        self._thread.start()

    def add(self, transport: Transport, near: socket.socket) -> None:
        """Relay between a client and another process.

        Args:
            transport: of the client.
            near: joined with the other process. Both belong to the relay from now on.
        """
        self._new.append(_Pair(transport, near, self._poller))
        self._poller.wake()

    def close(self) -> None:
        """End all connections."""
        self._closing = True
        self._poller.wake()
        gather([self._thread], Deadline(_MOMENT))

    def after_fork(self, reason: str) -> None:
        """In a child process: free the descriptors; the parent keeps the connections."""
        self._poller.close()
        for pair in {*self._pairs.values(), *self._new}:
            pair.transport.after_fork()
            pair.near.close()

    # -- the thread

    def _run(self, interrupted: BaseException | None = None) -> None:
        """Relay until the close. If this is interrupted, it is called again.

        What was being copied then may be lost, so that connection ends: its client resumes.
        """
        if interrupted is not None:
            for pair in {*self._pairs.values()}:
                if pair.copies:
                    self._end(pair)
                else:
                    self._advance(pair)  # it may not be waited for yet
        while not self._closing:
            self._step()
        for pair in {*self._pairs.values(), *self._new}:
            pair.close()
        self._poller.close()

    def _step(self) -> None:
        parting = [pair for pair in self._pairs.values() if pair.parting is not None]
        timeout = 0.0 if self._new else _LOOK if parting else None
        due = {self._pairs.get(each) for each, _ in self._poller.wait(timeout)}
        while self._new:
            pair = self._new[0]
            self._pairs.update(dict.fromkeys(pair.descriptors, pair))
            due.add(pair)
            self._new.popleft()
        for each in due.union(parting):
            if each is not None:
                self._advance(each)

    def _advance(self, pair: _Pair) -> None:
        pair.copies = True
        if pair.advance():
            pair.copies = False
        else:
            self._end(pair)

    def _end(self, pair: _Pair) -> None:
        pair.close()
        for descriptor in pair.descriptors:
            self._pairs.pop(descriptor, None)


class _Copy:
    """One direction.

    Args:
        read: returns bytes, ``b""`` at the end; raises `BlockingIOError` if there are none yet.
        send: sends without waiting; returns how many bytes were taken.
        send_end: sends the end; returns whether that was possible.
    """

    def __init__(
        self,
        read: Callable[[], bytes],
        send: Callable[[memoryview], int],
        send_end: Callable[[], bool],
    ) -> None:
        self._read = read
        self._send = send
        self._send_end = send_end
        self._rest = memoryview(b"")  # was read, and is not sent
        self.ended: bool = False  #: whether the end was read
        self.done: bool = False  #: ... and sent, after everything else

    @property
    def reads(self) -> bool:
        """Whether it waits for more to read."""
        return not (self.ended or self._rest)

    @property
    def sends(self) -> bool:
        """Whether it waits to send."""
        return bool(self._rest) or (self.ended and not self.done)

    def advance(self) -> None:
        """Copy what can be copied now.

        Raises:
            OSError: one side is broken.
        """
        for _ in range(_ROUNDS):
            if self._rest:
                self._rest = self._rest[self._send(self._rest) :]
                if self._rest:
                    return
            if self.ended:
                self.done = self.done or self._send_end()
                return
            try:
                data = self._read()
            except BlockingIOError:
                return
            self._rest, self.ended = memoryview(data), not data

    def give_up(self) -> None:
        """Copy nothing any more."""
        self._rest = memoryview(b"")
        self.ended = self.done = True


class _Pair:
    """One connection: a client and another process. Used by the relay's thread."""

    def __init__(self, transport: Transport, near: socket.socket, poller: Poller) -> None:
        near.setblocking(False)
        self.transport = transport
        self.near = near
        self.descriptors: tuple[int, int] = (transport.descriptor, near.fileno())
        #: Until when the client may take to end; None: the other process has not ended.
        self.parting: Deadline | None = None
        #: Whether something may have been read that is not noted.
        self.copies: bool = False
        self._poller = poller
        self._registered: list[int] = [0, 0]  # the events that the poller waits for
        self._to_near = _Copy(self._receive, self._send_near, self._end_near)
        self._to_client = _Copy(
            lambda: near.recv(_PIECE), self._send_client, transport.shutdown_write
        )

    def advance(self) -> bool:
        """Go on as far as that is possible without waiting; return False when it is over."""
        to_near, to_client = self._to_near, self._to_client
        try:
            to_near.advance()
            while self.transport.end_waits and to_near.reads:  # the poller would not tell
                to_near.advance()
        except OSError:
            self._end_near()
            to_near.give_up()
        try:
            to_client.advance()
            if to_client.ended and self.parting is None:
                self.parting = Deadline(_PARTING)
            if self.parting is not None and self.parting.expired:
                return False
            if to_near.done and to_client.done:
                return False
            self._register(0, to_near.reads, to_client.sends)
            self._register(1, to_client.reads, to_near.sends)
        except OSError:
            self.transport.abort()  # the client is gone
            return False
        return True

    def _register(self, index: int, reads: bool, sends: bool) -> None:
        wanted = (READABLE if reads else 0) | (WRITABLE if sends else 0)
        before = self._registered[index]
        if wanted != before:
            self._poller.change(self.descriptors[index], before, wanted)
            self._registered[index] = wanted

    def close(self) -> None:
        """Free the sockets."""
        for index in (0, 1):
            try:
                self._register(index, False, False)
            except OSError:
                pass  # it was not waited for
        if not self._to_client.done:
            self.transport.abort()
        self.transport.close()
        self.near.close()

    def _receive(self) -> bytes:
        return self.transport.receive_now(_PIECE, socket.MSG_DONTWAIT)

    def _send_client(self, data: memoryview) -> int:
        self.transport.answers.clear()
        return self.transport.send(data)

    def _send_near(self, data: memoryview) -> int:
        try:
            return self.near.send(data)
        except BlockingIOError:
            return 0

    def _end_near(self) -> bool:
        try:
            self.near.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other process is gone
        return True
