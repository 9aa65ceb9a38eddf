"""How a server is left by its clients before it stops, without all of them coming back at once."""

from __future__ import annotations

import heapq
import itertools
import random
from time import monotonic
from typing import Any, Final

from tao.connection.connection import core_of
from tao.connection.sessions.agreeing import session_of
from tao.errors import TaoError
from tao.runtime.deadline import Deadline
from tao.server.server import Server, server_core_of
from tao.server.sessions.moves import Move, gives_sessions, moves

__all__ = ["drain"]

# How long a connection that has had no answer yet is kept, in seconds.
_FRESH: Final = 5.0
# How long a client that was told to leave may take, in seconds.
_LEAVING: Final = 5.0
# How long to wait for a connection that is busy before looking again, in seconds.
_AGAIN: Final = 0.1
_REASON: Final = "the server is being replaced"


def drain(server: Server, spread: float) -> None:
    """Accept no more, have the connections end at random moments, and begin to stop the server.

    A client of tao's that connects again is told to leave, if it is known to be one: it finishes
    what is under way, so that nothing is lost. Other connections are closed while they are idle:
    nothing that was received waits to be handled, and nothing that was written waits to be sent.
    Neither happens before the first message was handled, or 5 seconds have passed since the
    connection was made. A client whose session lingers can come back, and is told then. What is
    still there after ``spread`` and 5 seconds more ends with the server.

    A session moves to the process that replaces this one, if there is such a process, and if the
    application knows how to save and load what it has of it.

    Args:
        spread: seconds over which the ends are spread; with 0 the server is stopped as soon as the
            sessions have moved.
    """
    core = server_core_of(server)
    replaced = core.session_port is not None and core.session_port.heir is not None
    if spread > 0 or replaced:
        server.stop_listening()
        for listener in list(core.listeners.all):
            listener.closed.wait(_FRESH)  # a connection accepted meanwhile belongs to those below
        _end_all(core, spread)
    server.stop()


def _end_all(core: Any, spread: float) -> None:
    begun, order = monotonic(), itertools.count()
    end, known = Deadline(spread + _FRESH), 0
    gives = gives_sessions(core.settings, core.session_port)
    left: list[tuple[float, int, _Departure]] = []
    looked = 0.0
    while not (end.expired or core.stopping.begun):
        if monotonic() >= looked + _AGAIN:
            # Again, as sessions may come from a process that was replaced before.
            looked = monotonic()
            for net_id, conn in sorted(dict(core.acceptor.connections).items()):
                if net_id > known and (spread > 0 or gives):
                    due = begun + random.uniform(0, spread)
                    departure = _Departure(core, core_of(conn), spread == 0)
                    heapq.heappush(left, (due, next(order), departure))
                known = max(known, net_id)
        if not left:
            return
        due, _, departure = left[0]
        if due > monotonic():
            core.stopping.done.wait(min(due - monotonic(), _AGAIN))
            continue
        heapq.heappop(left)
        wait = departure.proceed()
        if wait is not None:
            heapq.heappush(left, (monotonic() + wait, next(order), departure))


class _Departure:
    """One connection on its way out.

    Args:
        core: of the server.
        conn: the connection's core.
        moves_only: whether it ends with the server unless it has a session that moves.
    """

    def __init__(self, core: Any, conn: Any, moves_only: bool) -> None:
        self._core = core
        self._conn = conn
        self._moves_only = moves_only
        self._patience: Deadline | None = None  # with a peer that may leave by itself
        self._move: Move | None = None
        self._stays: bool = False  # whether its session does not move

    def proceed(self) -> float | None:
        """Take the next step that is possible now.

        Returns:
            the seconds until the one after that; None: there is none.
        """
        conn = self._conn
        if conn.finished.is_set():
            return None
        if self._move is None and not self._stays:
            if moves(conn, self._core.session_port):
                self._move = Move(conn)
            elif self._moves_only and conn.welcomed:
                return None  # its session, if any, ends with the server
        if self._move is not None:
            wait = self._move.proceed()
            if wait is not None:
                return wait
            self._move, self._stays = None, True
        if not self._served() or self._waits_for_client():
            return _AGAIN
        if self._patience is None:
            try:
                self._patience = Deadline(_LEAVING if conn.exchange.send_away() else 0)
            except TaoError:  # its send queue is full, or it has ended meanwhile
                return _AGAIN
        if not (self._patience.expired or conn.peer_finished):
            return _AGAIN
        if conn.dispatcher.pending or conn.send_queue.waiting:
            return _AGAIN
        conn.begin_close(_REASON, drain=True, timeout=self._core.settings.drain_timeout)
        return None

    def _waits_for_client(self) -> bool:
        """Whether it has a session that lingers."""
        stream = session_of(self._conn.transport)
        return stream is not None and not stream.connected

    def _served(self) -> bool:
        """Whether the peer has had an answer, or time enough."""
        since = self._core.statistics.living().get(self._conn)
        if since is None:
            return False  # not established yet
        return bool(self._conn.counts().handled) or monotonic() - since >= _FRESH
