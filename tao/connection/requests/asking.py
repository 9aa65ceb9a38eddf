"""Waiting for the reply to a request, wherever it is made.

A handler may ask its own peer, although its messages are handled one at a time and perhaps on the
thread that reads. So before it waits, its thread gives the reading away at once. If the inbox is or
gets full meanwhile, reading goes on into a spill, which is bounded as well: when that is full, the
reply could not come any more, and the request fails.

A worker that waits does not count as one of the workers.

A client that reconnects does so when its handlers have returned. So the request of one does not
wait for the next connection, and is sent although the peer has told this side to leave.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from tao.connection.application import ApplicationLink
from tao.connection.greetings import Greetings
from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.lifecycle import Lifecycle, Phase
from tao.connection.options.definitions import Settings
from tao.connection.readiness import Readiness
from tao.connection.receiving.reading import Reader
from tao.connection.requests.exchange import Exchange
from tao.connection.requests.making import Requests
from tao.connection.requests.pending import Request, RequestFuture
from tao.connection.sending.send_queue import SendQueue
from tao.errors import RequestTimeout, WouldDeadlock
from tao.runtime.deadline import Deadline
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.worker_pool import lend_this_worker
from tao.transport.stream import Transport

__all__ = ["AskingHost", "ask", "ask_later"]

# How many bytes may be read into the spill.
_SPILL_BYTES = 1024 * 1024


class AskingHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    dispatcher: Dispatcher
    exchange: Exchange
    greetings: Greetings
    lifecycle: Lifecycle
    reader: Reader
    readiness: Readiness
    send_queue: SendQueue
    settings: Settings
    transport: Transport | None
    wheel: TimingWheel


def ask(host: AskingHost, requests: Requests, request: Request) -> object:
    """Make a request and wait for its reply.

    Raises:
        RequestError, ConnectionClosed: it failed.
        Exception: it could not be sent.
    """
    if host.greetings.resumes_here:
        raise WouldDeadlock(
            "on_resume must not wait for a reply: nothing is read before it returns"
        )
    if _in_callback(host):
        _ask_in_callback(host, requests, request)
    else:
        with lend_this_worker():
            _wait(host, requests, request)
    return request.result()


def ask_later(requests: Requests, request: Request) -> RequestFuture:
    """Make a request whose reply completes its future."""
    future = request.future
    assert future is not None
    future.give_up = lambda: requests.cancel(request)
    requests.watch(request)
    try:
        requests.submit(request)
    except BaseException:
        requests.cancel(request)  # it may have been sent, and nobody gets its future
        raise
    return future


def _in_callback(host: AskingHost) -> bool:
    """Whether the calling thread runs a handler or another callback of this connection."""
    if host.greetings.speaks_here:
        return True
    application = host.application.find()
    return application is not None and application.variables.entered_here


def _ask_in_callback(host: AskingHost, requests: Requests, request: Request) -> None:
    """Wait for a reply without keeping the connection from being read."""
    status = host.lifecycle.status
    if status.phase is Phase.GREETING and host.greetings.speaks_here:
        host.readiness.read_meanwhile()
    if not status.open and host.readiness.speaks_here():
        request.preface_of = threading.get_ident()
    elif host.transport is not None:  # there is no other before the calling function has returned
        request.only_if_connected = True
    dispatcher, exchange = host.dispatcher, host.exchange
    before = exchange.spill  # of a handler, if this is another callback beside it
    try:
        exchange.spill = _Spill(host, requests, request)
        dispatcher.note_spill()
        while dispatcher.occupies_reader:
            dispatcher.relieve()
            time.sleep(0)  # if another thread has its turn; never for long
        with lend_this_worker():
            _wait(host, requests, request)
    finally:
        exchange.spill = before


def _wait(host: AskingHost, requests: Requests, request: Request) -> None:
    """Make a request and wait for its outcome."""
    deadline = request.deadline
    if host.wheel is not host.wheel.in_real_time:  # a clock that a test advances
        requests.watch(request)
        deadline = Deadline(None)
    try:
        requests.submit(request)
        while True:
            in_time = request.wait(deadline.remaining())
            if not in_time:
                requests.expire(request)
            if request.outcome is not None:
                return
            if not in_time:
                raise RequestTimeout("no reply came in time", sent=True)
            _try_again(host, requests, request, deadline)
    except BaseException:
        requests.cancel(request)
        raise


def _try_again(host: AskingHost, requests: Requests, request: Request, deadline: Deadline) -> None:
    """Send a request that could not be sent before, once there is room."""
    if request.crowded:
        request.crowded = False
        hopeful = lambda: request.outcome is None  # noqa: E731
        host.send_queue.transmitter.wait_for_progress(hopeful, deadline.remaining())
    requests.launch()


class _Spill:
    """Whether reading may go on although the inbox is full. Called by the reading role.

    Args:
        host: the connection's core.
        requests, request: what fails when the spill is full.
    """

    __slots__ = ("_begun_at", "_full", "_host", "_request", "_requests")

    def __init__(self, host: AskingHost, requests: Requests, request: Request) -> None:
        self._host = host
        self._requests = requests
        self._request = request
        self._begun_at: int | None = None  # how many bytes had come when the inbox was full
        self._full: bool = False

    def __call__(self) -> bool:
        host, received = self._host, self._host.reader.bytes_in
        if self._begun_at is None:
            self._begun_at = received
        inbox = host.dispatcher.inbox
        if inbox.spilt < host.settings.queue_size and received - self._begun_at < _SPILL_BYTES:
            return True
        if not self._full:
            self._full = True
            # Not here: the dispatcher is in the midst of something.
            host.wheel.in_real_time.run_clock(0, lambda _: self._fail())
        return False

    def _fail(self) -> None:
        text = "so many messages wait to be handled that the reply cannot be read"
        self._requests.give_up_soon(self._request, WouldDeadlock, text)
