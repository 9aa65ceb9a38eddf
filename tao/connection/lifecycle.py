"""The life of a connection as a state machine: its phases and their transitions.

No I/O, no threads, no clock. `TRANSITIONS` is the whole machine; `after` applies one event to a
`Status`; `Lifecycle` holds the present status. The parts of a connection are told of changes
through their own methods; none of them infers from fields of another whether the connection is
open.

::

           DIAL            ATTACH           SECURED          ACCEPT         READY
    NEW --------> CONNECTING -----> HANDSHAKE -----> GREETING -----> LOGIN -----> OPEN
     ^                |                |                |              |            |
     +----- FAIL -----+----------------+----------------+--------------+            | LOSE
                                                        |              |            v
              CONNECTING <----------------- DIAL -------+--- LOSE -----+-------> LOST

    from each of these:   DRAIN -> DRAINING      CLOSE -> CLOSING
    DRAINING -- SEAL, CLOSE -> CLOSING -- TEAR_DOWN -> TEARDOWN -- END -> CLOSED

A server's connection begins with ATTACH. Only a client that reconnects is ever lost.

Most connections are ready from the start, so that ACCEPT leads through LOGIN to OPEN at once. Those
that the application declares ready (`Status.manual`) may be so before ACCEPT, too, or while they
drain.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tao.atomic import AtomicReference
from tao.errors import ConnectionClosed

__all__ = ["TRANSITIONS", "Event", "Lifecycle", "Phase", "Status", "after"]


class Phase(enum.Enum):
    """The phase that a connection is in."""

    __hash__ = object.__hash__  # that of Enum is Python code, and takes longer than a look-up

    NEW = "new"
    CONNECTING = "connecting"
    HANDSHAKE = "in the handshake"
    GREETING = "in on_connect"
    LOGIN = "logging in"  # on_connect has agreed, and the connection is not declared ready
    OPEN = "open"
    LOST = "lost"  # between two transports
    DRAINING = "draining"  # received messages are still handled
    CLOSING = "closing"  # written messages are still sent
    TEARDOWN = "tearing down"  # its threads leave
    CLOSED = "closed"


class Event(enum.Enum):
    """What moves a connection to another phase."""

    __hash__ = object.__hash__

    DIAL = enum.auto()  # a client begins to connect
    ATTACH = enum.auto()  # there is a transport
    SECURED = enum.auto()  # its handshake is done
    ACCEPT = enum.auto()  # on_connect has agreed
    READY = enum.auto()  # the application declares it ready
    FAIL = enum.auto()  # no connection came of it
    LOSE = enum.auto()  # the transport ended, and another one is wanted
    DRAIN = enum.auto()  # close once all received messages are handled
    CLOSE = enum.auto()  # close once all written messages are sent
    SEAL = enum.auto()  # all that was received is handled
    TEAR_DOWN = enum.auto()  # the stream has ended
    END = enum.auto()  # nothing is left


_OPENING = (Phase.CONNECTING, Phase.HANDSHAKE, Phase.GREETING, Phase.LOGIN)
# Those in which there is a peer to talk to.
_TALKING = (Phase.GREETING, Phase.LOGIN, Phase.OPEN)
_LIVING = (Phase.NEW, *_OPENING, Phase.OPEN, Phase.LOST)
_ENDING = (Phase.DRAINING, Phase.CLOSING)
# Events that change nothing but the phase.
_MERE_STEPS = frozenset((Event.DIAL, Event.SEAL, Event.TEAR_DOWN))

#: Where an event leads from a phase. One that is not listed there changes nothing.
TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.NEW, Event.DIAL): Phase.CONNECTING,
    (Phase.LOST, Event.DIAL): Phase.CONNECTING,
    (Phase.NEW, Event.ATTACH): Phase.HANDSHAKE,
    (Phase.CONNECTING, Event.ATTACH): Phase.HANDSHAKE,
    (Phase.HANDSHAKE, Event.SECURED): Phase.GREETING,
    (Phase.GREETING, Event.ACCEPT): Phase.LOGIN,
    (Phase.LOGIN, Event.READY): Phase.OPEN,
    **{(phase, Event.FAIL): Phase.NEW for phase in (*_OPENING, Phase.OPEN)},
    **{(phase, Event.LOSE): Phase.LOST for phase in _TALKING},
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
    #: Whether the application declares each new transport ready.
    manual: bool = False
    #: Whether the present transport is ready.
    ready: bool = True
    #: Identifies the present transport, or the last.
    link: object = None

    @property
    def open(self) -> bool:
        """Whether messages may be exchanged."""
        return self.phase is Phase.OPEN

    @property
    def talking(self) -> bool:
        """Whether there is a peer to talk to, if only about the login."""
        return self.phase in _TALKING

    @property
    def released(self) -> bool:
        """Whether what waits may be sent: on_connect has agreed, and the connection is ready."""
        return self.ready and self.on_close_owed

    @property
    def ended(self) -> bool:
        """Whether further data from the peer is discarded, as only the end is awaited."""
        return self.close_reason is not None or (
            self.disconnect_reason is not None and not self.talking
        )


# They are looked up more slowly in their classes.
_OPEN, _CLOSE, _DRAIN, _END = Phase.OPEN, Event.CLOSE, Event.DRAIN, Event.END
# Makes a status of the tuple of its fields.
_status: Callable[[tuple[Any, ...]], Status] = partial(tuple.__new__, Status)


def after(status: Status, event: Event, reason: str | None = None, link: object = None) -> Status:
    """Return the status that follows an event.

    Args:
        reason: with CLOSE, DRAIN and LOSE, why.
        link: with ATTACH, what identifies the new transport; with SECURED, if that has changed.
    """
    phase = TRANSITIONS.get((status.phase, event), status.phase)
    # Runs about seven times per connection; `_replace` alone would double the cost.
    if event in _MERE_STEPS:
        return _status((phase, *status[1:]))
    if event is _DRAIN or event is _CLOSE:
        reason = reason if status.close_reason is None else status.close_reason
        return _status((phase, reason, *status[2:]))
    if event is _END:
        return _status((phase, *status[1:4], False, *status[5:]))  # nothing is owed any more
    if event is Event.LOSE:
        if phase is Phase.LOST is not status.phase:
            return status._replace(phase=phase, disconnect_reason=reason)
        return status
    if event is Event.READY:
        # Also while it drains, so that what was received after the login is handled.
        ready = status.ready or phase in _TALKING or phase is Phase.DRAINING
        return status._replace(phase=phase, ready=ready)
    if event is Event.ACCEPT:
        # Also if it was closed meanwhile: each on_connect that agreed is followed by an on_close.
        if phase is status.phase:
            return status._replace(on_close_owed=True)
        phase = Phase.OPEN if status.ready else phase
        return _status((phase, status.close_reason, None, status.secured, True, *status[5:]))
    if event is Event.SECURED:
        return _status((phase, *status[1:3], True, *status[4:-1], link or status.link))
    if event is Event.ATTACH:
        return _status((phase, *status[1:3], False, *status[4:6], not status.manual, link))
    if event is Event.FAIL:
        if phase is Phase.NEW and status.disconnect_reason is not None:
            phase = Phase.LOST
        return status._replace(phase=phase, secured=False)
    raise ValueError(event)


def _without_on_close(status: Status) -> Status:
    return _status((*status[:4], False, *status[5:]))


class Lifecycle(AtomicReference[Status]):
    """The status of one connection.

    Any thread may call any method at any moment, also in a signal handler or a finalizer: a status
    is replaced in one step, and no call waits.

    Args:
        manual: whether the application declares each transport ready.
    """

    __slots__ = ("ended", "open")

    def __init__(self, *, manual: bool = False) -> None:
        super().__init__(Status(manual=manual))
        # Both are copies, for those who look often: at one object instead of five.
        #: The same as `Status.ended`; the reading thread looks with each receive.
        self.ended: bool = False
        #: Whether messages may be exchanged now; a broadcast looks at each connection.
        self.open: bool = False

    @property
    def status(self) -> Status:
        """The status now."""
        return self.get()

    def apply(
        self, event: Event, reason: str | None = None, link: object = None
    ) -> tuple[Status, Status]:
        """Apply an event, and return the status before and after it; see `after`."""
        state = self._state
        while True:  # as `update` does, in fewer steps
            while len(state) > 1:
                state = state[1]
            before = state[0]
            now = status = after(before, event, reason, link)
            new: list[Any] = [status]
            state.append(new)
            if state[1] is new:
                break
        self._state = new
        self.ended = status.close_reason is not None or status.ended
        self.open = status.phase is _OPEN
        while len(new) > 1:  # another thread has applied an event
            new = new[1]
            status = new[0]
            self.ended, self.open = status.ended, status.open
        return before, now

    def advance(self, event: Event, link: object = None) -> None:
        """Apply an event of a connection that is being established.

        Raises:
            ConnectionClosed: it has been closed.
        """
        status = self.apply(event, link=link)[1]
        if status.close_reason is not None:
            raise ConnectionClosed(status.close_reason)

    def on_close_called(self) -> None:
        """Note that on_close is not owed any more."""
        if self.get().on_close_owed:
            self.update(_without_on_close)

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self.get().phase

    @property
    def close_reason(self) -> str | None:
        """Why the connection ends, once it does."""
        return self.get().close_reason
