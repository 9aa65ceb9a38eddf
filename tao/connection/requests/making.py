"""The requests that this side makes: those that wait to be sent, and those in flight.

Guarantees:

- Each request has one outcome. The thread that decides it first completes it, outside of all locks.
- A request that was given up before the kernel had its last byte is taken back and never sent. So
  an error whose ``sent`` is false is certain: the peer never executes the request.
- Requests leave in the order of the calls.
- When a transport is lost, the requests that were sent fail at once. The others wait for the next
  transport, or fail too if there is none.

Mechanism: the table is changed in a turn, see ``runtime/combining.py``. A signal handler may hold
it up. So threads that serve other connections too never wait for it: they note that the connection
has ended, or which requests are overdue, and the thread that has the turn sees to that. Each thread
that had it does what is in ``_afterwards``, outside of it. Only the reading role takes a request
out without the turn, in one step, when its reply has come.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from tao.connection.correlation import LATE, UNKNOWN, Correlation
from tao.connection.requests.clock import RequestClock
from tao.connection.requests.host import RequestsHost
from tao.connection.requests.negotiation import Negotiation
from tao.connection.requests.pending import Request
from tao.errors import (
    BadData,
    ConnectionLost,
    RequestCancelled,
    RequestError,
    RequestsNotSupported,
    RequestTimeout,
    TaoError,
    WouldBlock,
    WouldDeadlock,
)
from tao.runtime.combining import Busy, Combiner

__all__ = ["Requests"]

T = TypeVar("T")

# Why a request is given up whose time is over.
_OVERDUE = RequestTimeout, "no reply came in time"
# When to try again what could not be done now, in seconds.
_AGAIN = 0.01


class Requests:
    """The requests of one connection. Any thread may call any method.

    Args:
        host: the connection's core.
        negotiation: knows whether the peer answers requests.
        correlation: gives ids.
        most: how many may be in flight; None: any number.
        limit: how many may wait to be sent whose callers do not wait.
        latency: called with a message number, the seconds until its reply came, and 1.
    """

    __slots__ = (
        "_afterwards", "_clock", "_combiner", "_correlation", "_doomed", "_ended", "_host",
        "_latency", "_limit", "_most", "_negotiation", "_pending", "_waiting", "breaks", "find",
        "late_replies", "replies", "watch",
    )  # fmt: skip

    def __init__(
        self,
        host: RequestsHost,
        negotiation: Negotiation,
        correlation: Correlation,
        *,
        most: int | None,
        limit: int,
        latency: Callable[[Any, float, int], object],
    ) -> None:
        self._host = host
        self._negotiation = negotiation
        self._correlation = correlation
        self._most: float = math.inf if most is None else most
        self._limit: int = limit
        self._latency = latency
        self._combiner = Combiner(self._work, self._repair, lambda: None)
        # All is changed in the turn, except that the reading role takes requests out of `_pending`.
        self._waiting: deque[Request] = deque()
        self._pending: dict[Any, Request] = {}
        #: Tells which request a message replies to, see `Correlation.find`. By the reading role.
        self.find: Callable[..., Any] = partial(correlation.find, pending=self._pending)
        self.breaks: bool = correlation.breaks  #: see `Correlation.breaks`
        self._clock = RequestClock(host, self._settle)
        #: Has a request be given up in time although no thread does so. Before it is made.
        self.watch = self._clock.watch
        # Which requests are to be given up, and for which error. Any thread adds to it.
        self._doomed: dict[Request, tuple[type[RequestError], str]] = {}
        # What is to be done outside of the turn: added in it, removed by any thread that has done
        # it. It may be done twice.
        self._afterwards: dict[Callable[[], object], None] = {}
        self._ended: str | None = None  # why no request can be made any more; set once, anywhere
        # Owned by the reading role.
        self.replies: int = 0  #: that have come
        self.late_replies: int = 0  #: ... to a request that nobody waits for

    # -- making a request

    def submit(self, request: Request) -> None:
        """Send a request, or have it wait for the peer's answer, for room, or for a transport.

        Raises:
            ConnectionLost: the connection has ended.
            RequestsNotSupported: the peer does not answer requests.
            WouldBlock: too many wait, and the caller does not.
            WouldDeadlock: the calling thread is in the midst of another call on this connection.
            Exception: what ``serialize()`` raises.
        """
        if self._host.must_not_wait_here or self._combiner.interrupted_here:
            raise WouldDeadlock("this call has interrupted another one on the same connection")
        self._check(request)
        self._correlation.prepare(request)
        self._combiner.run(self._enter, request)
        if self._afterwards:
            self._do_afterwards()

    def _enter(self, request: Request) -> None:
        """Take a request in, and send what can be sent. Needs the turn."""
        if self._ended is not None:
            raise ConnectionLost(self._ended)
        self._clock.add(request)
        if not self._waiting and self._may_launch:  # as nearly always
            try:
                self._launch(request)
                return
            except WouldBlock:
                pass  # it has to wait for room
            except Exception as error:
                self._fail(request, error)
                return
        self._waiting.append(request)
        self._launch_all()

    @property
    def _may_launch(self) -> bool:
        """Whether a request that no other one precedes may be sent now. Needs the turn."""
        negotiation = self._negotiation
        return (
            self._host.lifecycle.open
            and len(self._pending) < self._most
            and (negotiation.supported or not self._correlation.negotiates)
            and not negotiation.told_to_leave
        )

    def _check(self, request: Request) -> None:
        """Raise if a request cannot be made now."""
        if self._ended is not None:
            raise ConnectionLost(self._ended)
        if request.only_if_connected and not self._host.lifecycle.open:
            raise ConnectionLost("not connected")
        negotiation = self._negotiation
        if (
            self._correlation.negotiates
            and not negotiation.supported
            and (refusal := negotiation.refusal) is not None
        ):
            raise RequestsNotSupported(refusal)
        if request.future is not None and len(self._waiting) >= self._limit:
            raise WouldBlock(f"{len(self._waiting)} requests wait to be sent")

    def launch(self) -> None:
        """Send what can be sent. What cannot any more fails."""
        if self._combiner.interrupted_here:
            self._combiner.settle()
            return
        self._run(self._launch_all)

    def note(self) -> None:
        """Do the same without waiting for another thread that does so. By the reading role."""
        self._settle()
        if not self._host.lifecycle.open:
            for request in list(self._waiting):
                if request.preface_of is not None:
                    request.wake()  # its thread has to send it

    def _run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the turn, which is waited for."""
        try:
            return self._combiner.run(function, *args)
        finally:
            self._do_afterwards()

    def _settle(self) -> None:
        """Have all that is noted be done, here or by the thread that has the turn."""
        try:
            self._combiner.settle()
        finally:
            self._do_afterwards()

    def _do_afterwards(self) -> None:
        """Do what was left for the time after a turn."""
        try:
            for each in list(self._afterwards):
                each()
                self._afterwards.pop(each, None)
        except BaseException:
            self._host.timers.set_clock("requests again", _AGAIN, self._settle, real=True)
            raise

    def _work(self) -> None:
        """Do all that is noted, and send what can be sent. Needs the turn."""
        try:
            if self._ended is not None:
                self._take_all(self._ended)
            if self._clock.rung:
                for request in self._clock.overdue(self._all()):
                    self._doomed.setdefault(request, _OVERDUE)
            self._give_up_doomed()
            if self._clock.rung:
                # If what is to follow is interrupted, the next look does it.
                self._clock.wind(self._all(), at_once=bool(self._afterwards))
        except Busy:  # another thread has the turn of the send queue, or is interrupted in it
            self._host.timers.set_clock("requests again", _AGAIN, self._settle, real=True)
        self._launch_all()

    def _launch_all(self) -> None:
        """Send the requests that wait, as far as possible. Needs the turn."""
        while (request := self._next()) is not None:
            try:
                self._launch(request)
            except WouldBlock as error:
                if request.future is None:
                    request.crowded = True
                    request.wake()  # its thread waits for room, and tries again
                    return
                self._fail(request, error)
            except Exception as error:
                self._fail(request, error)
            self._waiting.remove(request)

    def _next(self) -> Request | None:
        """Return the request that may be sent now, None if there is none. Needs the turn."""
        waiting, lifecycle = self._waiting, self._host.lifecycle
        if not waiting or len(self._pending) >= self._most:
            return None
        first: Request | None = waiting[0]
        if not lifecycle.open:
            if not lifecycle.status.talking:
                return None
            me = threading.get_ident()
            first = next((each for each in waiting if each.preface_of == me), None)
        elif self._negotiation.told_to_leave:  # the others wait for the next transport
            first = next((each for each in waiting if each.only_if_connected), None)
        return first if first is not None and self._peer_answers() else None

    def _peer_answers(self) -> bool:
        """Whether the peer answers requests; ask if that is not known. Needs the turn."""
        negotiation = self._negotiation
        if not self._correlation.negotiates or negotiation.supported:
            return True
        if (refusal := negotiation.refusal) is not None:
            error = RequestsNotSupported(refusal)
            while self._waiting:
                self._fail(self._waiting[0], error)
                self._waiting.popleft()
        else:
            negotiation.ask()
        return False

    def _launch(self, request: Request) -> None:
        """Send a request. Needs the turn.

        Raises:
            WouldBlock: the send queue is full.
            Exception: it cannot be encoded, or sent any more.
        """
        correlation, send_queue = self._correlation, self._host.send_queue
        request.key = key = correlation.next_key(request, self._pending)
        frame = send_queue.tracked(correlation.frame(request, key))
        request.frame, self._pending[key] = frame, request
        try:
            send_queue.write(frame)
        except TaoError as error:
            self._pending.pop(key, None)
            request.frame = None
            raise error if isinstance(error, WouldBlock) else ConnectionLost(str(error)) from None

    def _fail(self, request: Request, error: BaseException) -> None:
        """Have a request fail after the turn. Needs the turn."""
        self._afterwards[partial(request.finish, None, error)] = None

    def _repair(self) -> None:
        """Put right what an exception interrupted. Needs the turn."""
        # Whether such a one was sent is not known, so it counts as if it were.
        for request in [each for each in self._waiting if each.frame is not None]:
            self._waiting.remove(request)

    # -- the reply

    def complete(self, key: Any, reply: Any, error: BaseException | None = None) -> bool:
        """Complete a request whose reply has come, if there is one. By the reading role."""
        request = self._pending.get(key)
        try:
            request = self._pending.pop(key, None)
            if request is None:
                self.late_replies += 1
                return False
            self.replies += 1
            self._latency(request.number, monotonic() - request.asked_at, 1)
            request.finish(reply, error)
        except BaseException:
            if request is not None:
                request.finish(reply, error)  # as nothing else would, once it is taken out
            raise
        if self._waiting and self._most < math.inf:
            self.note()
        return True

    def take(self, key: Any, number: Any, message: Any) -> None:
        """Complete the request that a message replies to, as `find` tells. By the reading role."""
        if key is LATE or key is UNKNOWN:
            self.late_replies += 1
        elif message is None:
            text = f"the reply's message number {number!r} is not registered on this side"
            self.complete(key, None, BadData(text))
        else:
            self.complete(key, message)

    # -- giving up

    def _give_up_doomed(self) -> None:
        """Give up the requests that were noted for that, unless `Busy`. Needs the turn."""
        for request, (kind, text) in dict(self._doomed).items():
            self._give_up(request, kind, text, wait=False)
            self._doomed.pop(request, None)

    def _all(self) -> list[Request]:
        """Return all that are not completed. Needs the turn."""
        return [*list(self._pending.values()), *self._waiting]

    def give_up(self, request: Request, kind: type[RequestError], text: str) -> bool:
        """Give a request up, unless its fate is known; return whether this decided it."""
        if self._host.must_not_wait_here or self._combiner.interrupted_here:
            return False
        error = self._run(self._give_up, request, kind, text)
        self.launch()
        outcome = request.outcome
        return outcome is not None and outcome[1] is error

    def give_up_soon(self, request: Request, kind: type[RequestError], text: str) -> None:
        """Give a request up, unless its fate is known. It waits for nothing."""
        self._doomed.setdefault(request, (kind, text))
        self._settle()

    def expire(self, request: Request) -> bool:
        """Give up a request whose time is over."""
        return self.give_up(request, *_OVERDUE)

    def cancel(self, request: Request) -> bool:
        """Give up a request that nobody wants any more."""
        return self.give_up(request, RequestCancelled, "the request was cancelled")

    def _give_up(
        self, request: Request, kind: type[RequestError], text: str, *, wait: bool = True
    ) -> RequestError:
        """Take a request out, to fail after the turn; return its error. Needs the turn."""
        known, sent = self._withdraw(request, wait)
        error = kind(text, sent)
        self._fail(request, error)
        if known and sent:
            self._afterwards[partial(self._forgo_reply, request)] = None
        return error

    def _withdraw(self, request: Request, wait: bool) -> tuple[bool, bool]:
        """Take a request out of the table, and back from the send queue. Needs the turn.

        Return whether it was in flight, and whether the kernel may have all of it.
        """
        if request.frame is None:
            try:
                self._waiting.remove(request)
            except ValueError:
                pass  # it has failed
            return False, False
        sent, key = not self._host.send_queue.withdraw(request.frame, wait=wait), request.key
        if self._pending.get(key) is not request:
            return False, sent  # its reply has come
        if sent and self.breaks:  # it stays, or another one would get its reply
            request.due = math.inf
            return True, True
        if sent:
            self._correlation.give_up(key)
        return self._pending.pop(key, None) is not None, sent

    def _forgo_reply(self, request: Request) -> None:
        """Do without the reply to a request that was sent: tell the peer, or leave it."""
        key = request.key
        if self.breaks:
            if self._ended is None and self._pending.get(key) is request:
                self._host.drop("a reply was given up, so what follows could not be told apart")
            return
        request.key = None
        frame = b"" if key is None else self._correlation.cancellation(key)
        try:
            if frame:
                self._host.send_queue.write(frame)
        except TaoError:
            pass  # then it answers in vain

    def lose(self, reason: str) -> None:
        """Fail those that were sent, as the send queue was told to give the transport up."""
        self._host.send_queue.catch_up()
        self._run(self._take_lost, reason)

    def _take_lost(self, reason: str) -> None:
        """Take out what fails with the transport. Needs the turn."""
        kept = []
        for key, request in dict(self._pending).items():
            assert request.frame is not None
            sent = not self._host.send_queue.withdraw(request.frame)
            request.frame = None
            if sent:
                self._correlation.give_up(key)
            if sent or request.only_if_connected:
                self._fail(request, ConnectionLost(reason, sent))
            else:
                kept.append(request)
            self._pending.pop(key, None)
        for request in [each for each in self._waiting if each.only_if_connected]:
            self._fail(request, ConnectionLost(reason))
            self._waiting.remove(request)
        self._waiting.extendleft(reversed(kept))

    def end(self, reason: str) -> None:
        """Fail all, and all that come later. It waits for nothing, and may be called again."""
        if self._ended is None:
            self._ended = reason
        self._settle()

    def _take_all(self, reason: str) -> None:
        """Take all out, and back from the send queue, to fail after the turn. Needs the turn.

        `Busy`: another thread has the turn of the send queue.
        """
        withdraw = self._host.send_queue.withdraw
        for key, request in dict(self._pending).items():
            sent = request.frame is not None and not withdraw(request.frame, wait=False)
            self._fail(request, ConnectionLost(reason, sent))
            self._pending.pop(key, None)
        while self._waiting:
            self._fail(self._waiting[0], ConnectionLost(reason))
            self._waiting.popleft()

    # -- figures, and a fork

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread in the midst of a change."""
        return self._combiner.interrupted_here

    @property
    def in_flight(self) -> int:
        """How many are in flight."""
        return len(self._pending)

    @property
    def waiting(self) -> int:
        """How many wait to be sent."""
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """For how many seconds the oldest one in flight has been waited for; 0 if there is none."""
        asked = min((request.asked_at for request in list(self._pending.values())), default=None)
        return 0.0 if asked is None else monotonic() - asked

    def after_fork(self, reason: str) -> None:
        """In a child process: fail all, whatever other threads of the parent were doing."""
        self._combiner.after_fork()
        self._ended = self._ended or reason
        failed = [*self._pending.values(), *self._waiting]
        self._pending.clear()
        self._waiting.clear()
        for request in failed:
            if request.future is not None:
                request.future.after_fork()
            request.finish(None, ConnectionLost(reason, request.frame is not None))
