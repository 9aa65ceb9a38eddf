"""Dispatch for a connection whose reading role is shared, see ``shared_reading/loop.py``.

As in ``dispatcher.py``, quick handlers run on the thread that reads, and messages are handled in
order, one at a time. Three things differ, as the reading thread serves other connections too:

- It never waits. When the inbox is full, the reading gate is closed until there is room.
- No thread belongs to the handling role. A worker takes the role when something is queued, runs
  what waits, and gives the role up when nothing is left, or when replies have to wait.
- If a handler blocks the reading thread, another thread reads on, for all connections. The blocked
  one plays the handling role until its handler returns; a worker runs what is left.
"""

from __future__ import annotations

from typing import Any, Protocol

from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.handling.inbox import Inbox
from tao.wire.codec import Batch

__all__ = ["SharedDispatcher", "SharingRoles"]

# Why reading pauses: the inbox is full, or what runs now will soon have ended.
_INBOX, _SOON = "inbox", "soon"
_NOTHING: Batch = []  # never changed


class SharingRoles(Protocol):
    """What this asks of the roles of its connection."""

    def blocked(self) -> None:
        """Note that a handler blocks the thread that reads, which then reads no more."""

    def pass_lead(self) -> None:
        """Have another thread read, for all connections; never raises."""

    def unblocked(self) -> None:
        """Note that the thread that was blocked goes on."""

    def call_soon(self) -> None:
        """Have `SharedDispatcher.go_on` called by the reading thread."""


class SharedDispatcher(Dispatcher):
    """See `Dispatcher`, whose further arguments are the same; ``run`` is not used.

    `start_handler` of the host has a worker call `handle` once.

    Args:
        roles: of the connection.
    """

    __slots__ = ("_at_work", "_lead_wanted", "_player", "_rest", "_roles", "_stalled")

    _waits_here = False

    def __init__(self, roles: SharingRoles, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, watch_reader=False, **kwargs)
        self._roles = roles
        # The owner of the turn owns these.
        # What plays the handling role: an object for each time that the role is taken; or None.
        self._player: object = None
        self._at_work: bool = False  # whether it is a worker that has begun
        self._rest: Batch = _NOTHING  # pending, before what is in the inbox
        self._stalled: bool = False  # whether nothing takes the role, as replies have to wait
        self._lead_wanted: bool = False  # whether the reading thread is blocked in here
        self._send_queue.when_room(self._note_room)

    @property
    def inbox(self) -> Inbox:
        """What waits. Made when first needed, which needs the turn."""
        if self._inbox is None:
            self._inbox = Inbox(self._limit, self._host.may_spill)
        return self._inbox

    # -- for the reading role

    def _enqueue(self, batch: Batch) -> None:
        inbox, gate, application = self.inbox, self._host.gate, self._application.find()
        inbox.push(batch)
        if inbox.holds_reader():
            gate.pause(_INBOX)
        if (
            self._at_work
            and not self.runner.stuck
            and not self._host.waits_for_reply
            and application is not None
            and self.runner.trusts(application, batch[0][0])
        ):
            # What runs now will soon have ended. If more were read meanwhile, it would have to be
            # queued as well for as long as messages keep coming.
            gate.pause(_SOON)
        if self.runner.held_back:
            self._stalled = self._stalled or self._player is None
        start = self._claim_role()
        self._release()
        if start:
            self._host.start_handler()
        self.go_on()

    def _inbox_for_handler(self) -> tuple[Inbox, bool]:
        return self.inbox, self._claim_role()

    def _claim_role(self) -> bool:
        """Take the handling role for a worker that is about to be called. Needs the turn."""
        if self._player is not None or self._stalled:
            return False
        self._player, self._at_work = object(), False
        self.inbox.offer_role()
        return True

    def _handle_rest(self, rest: Batch) -> None:
        self._roles.unblocked()
        self._rest = rest
        self._player = None
        start = self._pending > 0 and self._claim_role()
        self._release()
        self._settle()
        if start:
            self._host.start_handler()

    # -- for a worker

    def handle(self) -> bool:
        """Play the handling role until nothing is left to do; always False."""
        player = self._player if self.take_role() else None
        while player is not None and (batch := self._next(player)):
            rest = self._run_pending(batch)
            if rest:
                self._turn.acquire()
                self._rest = rest
                self._release()
        return False

    def refuse(self, error: BaseException) -> None:
        """Drop what waits, as the workers take nothing any more."""
        count = self.drop()
        if count:
            self._host.report(error, f"handing {count} messages to the workers")

    def drop(self) -> int:
        """Drop what waits, as no thread will handle it; return how many messages that is."""
        self._turn.acquire()
        batch, self._rest = self._rest + self.inbox.take(), []
        self._player = None
        self._release()
        if batch:
            self.note_done(len(batch))
        self._open_gate()
        return len(batch)

    def _next(self, player: object) -> Batch:
        """Return what is to be run next; nothing if the role is given up, or not this one's."""
        self._turn.acquire()
        batch: Batch = []
        if self._player is player:
            if self.runner.held_back and not self._discard:
                self._stalled, self._player = True, None
            else:
                batch = self._rest or self.inbox.take()
                self._rest = []
                if not batch:
                    self._player = None
            self._at_work = bool(batch)
        stalled = self._stalled
        self._release()
        if stalled:
            self.go_on()  # there may be room by now
        if not batch or self._inbox is None or not self._inbox.full():
            self._open_gate(soon=not batch)
        return batch

    def _open_gate(self, soon: bool = True) -> None:
        self._host.gate.resume(_INBOX)
        if soon:
            self._host.gate.resume(_SOON)

    # -- for others

    def note_spill(self) -> None:
        """See `Dispatcher.note_spill`; what runs now may take longer than it was trusted to."""
        self._open_gate()

    def _note_room(self) -> None:
        """Note that the send queue may have room again. Any thread may call it; it is quick."""
        if self._stalled:
            self._roles.call_soon()

    def go_on(self) -> None:
        """Have what waits for room in the send queue be handled, if there is room."""
        if self._stalled and (self._discard or not self.runner.held_back):
            self._turn.acquire()
            self._stalled = False
            start = self._pending > 0 and self._claim_role()
            self._release()
            if start:
                self._host.start_handler()

    def stop(self, *, discard: bool = True) -> None:
        """See `Dispatcher.stop`."""
        self._discard = self._discard or discard
        if not discard:
            with self._turn:  # so that none is in there that began before it was abandoned
                self.take_role()  # from a worker that has not begun

    def stop_at_once(self) -> bool:
        """See `Dispatcher.stop_at_once`; it waits for nothing."""
        try:
            if not self._turn.acquire(False):
                return False
            idle = not (self._inline or self._pending or self._posted)
            if idle:
                self._closed = self._discard = True
            self._release()
            return idle
        except BaseException:
            self.recover()
            raise

    def abandon(self, *, discard: bool = True) -> None:
        """See `Dispatcher.abandon`."""
        super().abandon(discard=discard)
        self._open_gate()
        self._roles.call_soon()

    def start_over(self, lost: int) -> None:
        """See `Dispatcher.start_over`."""
        self._player, self._rest = None, []
        self._at_work = self._stalled = self._lead_wanted = False
        super().start_over(lost)

    def finish(self, *, discard: bool = False) -> None:
        """See `Dispatcher.finish`."""
        super().finish(discard=discard)
        if discard:
            self._open_gate()
        if self._stalled or self._host.gate.paused:
            self._roles.call_soon()

    def after_fork(self) -> None:
        """See `Dispatcher.after_fork`."""
        super().after_fork()
        self._player, self._rest, self._stalled = None, [], False

    # -- for the watch

    def relieve(self) -> None:
        """See `Dispatcher.relieve`; a worker that is blocked keeps nothing from being read."""
        super().relieve()
        wanted, self._lead_wanted = self._lead_wanted, False
        if wanted:
            self._roles.pass_lead()
        self._host.gate.resume(_SOON)

    def _pass_reading(self) -> bool:
        self._player = self  # the blocked thread
        self._roles.blocked()
        self._lead_wanted = True
        return False
