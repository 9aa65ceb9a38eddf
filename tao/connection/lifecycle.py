"""The life of a connection as a state machine: its phases, and what moves it from one to another.

No I/O, no threads, no clock. `TRANSITIONS` is the whole machine; `after` applies one event to a
`Status`; `Lifecycle` holds the present status. The parts of a connection are told of changes
through their own methods; none of them infers from fields of another whether the connection is
open.

::

            DIAL             ATTACH            SECURED            ACCEPT
    NEW ---------> CONNECTING ------> HANDSHAKE -------> GREETING -------> OPEN
     ^                  |                 |                 |               |
     +------ FAIL ------+-----------------+-----------------+               | LOSE
                                                                            v
              CONNECTING <----------------- DIAL ------------------------ LOST

    from each of these:   DRAIN -> DRAINING      CLOSE -> CLOSING
    DRAINING -- SEAL, CLOSE -> CLOSING -- TEAR_DOWN -> TEARDOWN -- END -> CLOSED

A server's connection begins with ATTACH. Only a client that reconnects is ever lost.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from tao.atomic import AtomicReference

__all__ = ["TRANSITIONS", "Event", "Lifecycle", "Phase", "Status", "after"]


class Phase(enum.Enum):
    """The phase that a connection is in."""

    NEW = "new"
    CONNECTING = "connecting"
    HANDSHAKE = "in the handshake"
    GREETING = "in on_connect"
    OPEN = "open"
    LOST = "lost"  # between two transports
    DRAINING = "draining"  # what was received is still handled
    CLOSING = "closing"  # what was written is still sent
    TEARDOWN = "tearing down"  # its threads leave
    CLOSED = "closed"


class Event(enum.Enum):
    """What moves a connection to another phase."""

    DIAL = enum.auto()  # a client begins to connect
    ATTACH = enum.auto()  # there is a transport
    SECURED = enum.auto()  # its handshake is done
    ACCEPT = enum.auto()  # on_connect has agreed
    FAIL = enum.auto()  # no connection came of it
    LOSE = enum.auto()  # the transport ended, and another one is wanted
    DRAIN = enum.auto()  # close once what was received is handled
    CLOSE = enum.auto()  # close once what was written is sent
    SEAL = enum.auto()  # all that was received is handled
    TEAR_DOWN = enum.auto()  # the stream has ended
    END = enum.auto()  # nothing is left


_OPENING = (Phase.CONNECTING, Phase.HANDSHAKE, Phase.GREETING)
_LIVING = (Phase.NEW, *_OPENING, Phase.OPEN, Phase.LOST)
_ENDING = (Phase.DRAINING, Phase.CLOSING)

#: Where an event leads from a phase. One that is not listed there changes nothing.
TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.NEW, Event.DIAL): Phase.CONNECTING,
    (Phase.LOST, Event.DIAL): Phase.CONNECTING,
    (Phase.NEW, Event.ATTACH): Phase.HANDSHAKE,
    (Phase.CONNECTING, Event.ATTACH): Phase.HANDSHAKE,
    (Phase.HANDSHAKE, Event.SECURED): Phase.GREETING,
    (Phase.GREETING, Event.ACCEPT): Phase.OPEN,
    **{(phase, Event.FAIL): Phase.NEW for phase in (*_OPENING, Phase.OPEN)},
    (Phase.OPEN, Event.LOSE): Phase.LOST,
    **{(phase, Event.DRAIN): Phase.DRAINING for phase in _LIVING},
    **{(phase, Event.CLOSE): Phase.CLOSING for phase in (*_LIVING, Phase.DRAINING)},
    (Phase.DRAINING, Event.SEAL): Phase.CLOSING,
    **{(phase, Event.TEAR_DOWN): Phase.TEARDOWN for phase in (*_LIVING, *_ENDING)},
    **{(phase, Event.END): Phase.CLOSED for phase in Phase},
}


class Status(NamedTuple):
    """The state of a connection at one moment; immutable."""

    phase: Phase = Phase.NEW
    #: Why it ends, once it does: the first reason given.
    close_reason: str | None = None
    #: Why the last transport ended, until there is another.
    disconnect_reason: str | None = None
    #: Whether the handshake of the present transport is done.
    secured: bool = False
    #: Whether on_connect has agreed, so that on_close is owed.
    on_close_owed: bool = False

    @property
    def open(self) -> bool:
        """Whether messages may be exchanged."""
        return self.phase is Phase.OPEN

    @property
    def ended(self) -> bool:
        """Whether further data from the peer is discarded, as only the end is awaited."""
        return self.close_reason is not None or self.disconnect_reason is not None


def after(status: Status, event: Event, reason: str | None = None) -> Status:
    """Return the status that follows an event.

    Args:
        reason: with CLOSE, DRAIN and LOSE, why.
    """
    phase = TRANSITIONS.get((status.phase, event), status.phase)
    if event in (Event.CLOSE, Event.DRAIN):
        reason = reason if status.close_reason is None else status.close_reason
        return status._replace(phase=phase, close_reason=reason)
    if event is Event.LOSE:
        if phase is Phase.LOST is not status.phase:
            return status._replace(phase=phase, disconnect_reason=reason)
        return status
    if event is Event.ACCEPT:
        # Also if it was closed meanwhile: each on_connect that agreed is followed by an on_close.
        return status._replace(phase=phase, disconnect_reason=None, on_close_owed=True)
    if event is Event.SECURED:
        return status._replace(phase=phase, secured=True)
    if event in (Event.ATTACH, Event.FAIL):
        if phase is Phase.NEW and status.disconnect_reason is not None:
            phase = Phase.LOST
        return status._replace(phase=phase, secured=False)
    return status._replace(phase=phase)


class Lifecycle:
    """The status of one connection.

    Any thread may call any method at any moment, also in a signal handler or a finalizer: a status
    is replaced in one step, and no call waits.
    """

    __slots__ = ("_status", "ended")

    def __init__(self) -> None:
        self._status: AtomicReference[Status] = AtomicReference(Status())
        #: The same as `Status.ended`, for the reading thread, which reads it with each receive.
        self.ended: bool = False

    @property
    def status(self) -> Status:
        """The status now."""
        return self._status.get()

    def apply(self, event: Event, reason: str | None = None) -> tuple[Status, Status]:
        """Apply an event, and return the status before and after it."""
        change = self._status.update(lambda status: after(status, event, reason))
        while True:
            status = self._status.get()
            self.ended = status.ended
            if self._status.get() is status:  # else another thread has applied an event meanwhile
                return change

    def on_close_called(self) -> None:
        """Note that on_close is not owed any more."""
        self._status.update(lambda status: status._replace(on_close_owed=False))

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._status.get().phase

    @property
    def open(self) -> bool:
        """Whether messages may be exchanged now."""
        return self._status.get().phase is Phase.OPEN

    @property
    def close_reason(self) -> str | None:
        """Why the connection ends, once it does."""
        return self._status.get().close_reason
