"""The states of a server, and what decides which one it is in.

::

    new --start--> running --stop--> stopping --> stopped
                   |  ^
                   v  | start
            draining, failed --stop--> stopping

A server is *draining* while it does not accept because `Server.stop_listening` was called, and
*failed* while it cannot accept because its listening sockets were closed by something else. In both
states it serves its connections, and `Server.start` with another address sets it running again.
A server that was never started goes from *new* to *stopped* at once.

The state is not stored. It follows from facts that each change in one step, so a signal handler or
another thread that changes one never meets a state that is half set.
"""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["Accepting", "ServerState", "StopProgress", "state_of"]

ServerState = Literal["new", "running", "draining", "failed", "stopping", "stopped"]


class Accepting(Protocol):
    """Whether a server accepts connections."""

    @property
    def failed(self) -> bool:
        """Whether it has stopped accepting because of an error."""

    @property
    def given_up(self) -> bool:
        """Whether the application has told it to stop listening."""


class StopProgress(Protocol):
    """The progress of a server's stop."""

    @property
    def begun(self) -> bool:
        """Whether it has begun; never reset."""

    @property
    def over(self) -> bool:
        """Whether it is over; never reset."""


def state_of(started: bool, stop: StopProgress, accepting: Accepting) -> ServerState:
    """Return the state of a server.

    Args:
        started: whether it has acquired its resources; never reset.
    """
    if stop.over:
        return "stopped"
    if stop.begun:
        return "stopping"
    if not started:
        return "new"
    if accepting.failed:
        return "failed"
    return "draining" if accepting.given_up else "running"
