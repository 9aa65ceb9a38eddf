"""Requests and replies of one connection: both ends of them, and what tells the peer of either.

The decoder of tao's own framing hands what is not for a handler to `Exchange.take`, while it
decodes: so a reply completes its request at once, in the reading role, whatever the handlers do. A
connection that never meets a request has no part of this but an empty `Exchange`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tao.connection.application import Application, ApplicationLink, is_heartbeat
from tao.connection.correlation import (
    UNKNOWN,
    Correlation,
    EnvelopeCorrelation,
    FieldCorrelation,
    InOrder,
    MessageCorrelation,
    OrderCorrelation,
)
from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.lifecycle import Lifecycle
from tao.connection.options.definitions import ServerSettings, Settings
from tao.connection.receiving.reading import Reader
from tao.connection.reports.statistics import Statistics
from tao.connection.requests.callbacks import CallbacksHost, FutureCallbacks
from tao.connection.requests.host import RequestsHost
from tao.connection.requests.making import Requests
from tao.connection.requests.negotiation import Negotiation, NegotiationHost
from tao.connection.requests.responding import (
    NO_HANDLER,
    ReplyOrder,
    Responder,
    ResponderHost,
    answering_context,
    answering_handler,
)
from tao.errors import BadData, ConnectionLost, NoHandler, RemoteError, RequestsNotSupported
from tao.runtime.deadline import Deadline
from tao.session.frames import CHALLENGE
from tao.wire import capabilities, envelope
from tao.wire.arrival import Arrival
from tao.wire.codec import Batch, TypeLengthValueCodec, not_deserialized
from tao.wire.codec_checks import checks_itself
from tao.wire.message import HEARTBEAT

__all__ = ["Exchange", "ExchangeHost"]


class ExchangeHost(CallbacksHost, NegotiationHost, RequestsHost, ResponderHost, Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    lifecycle: Lifecycle
    reader: Reader
    runner: HandlerRunner
    settings: Settings
    statistics: Statistics

    def report(self, error: BaseException, doing: str) -> None:
        """Tell log and application of an error."""

    def leave_peer(self, why: str) -> bool:
        """Leave the peer when nothing is under way, and connect again; return whether it does."""


class Exchange:
    """The requests of one connection. Any thread may call the methods without another note.

    Args:
        host: the connection's core.
    """

    __slots__ = (
        "_answers", "_came_before", "_host", "_left_before", "_parts", "_replies_before",
        "on_capabilities", "responder", "spill",
    )  # fmt: skip

    def __init__(self, host: ExchangeHost) -> None:
        self._host = host
        #: Answers for the handlers.
        self.responder = Responder(host)
        # Made when first needed, by any thread; the first one counts.
        self._parts: dict[str, Any] = {}
        self._answers: bool = False  # whether handlers see requests answered. By the reading role
        #: Called with what the peer can, once that has come, by the reading role; None: nothing is.
        self.on_capabilities: Callable[[int], object] | None = None
        #: While a handler waits for a reply: whether reading goes on although the inbox is full.
        #: Set by the thread that handles.
        self.spill: Callable[[], bool] | None = None
        # By the thread that connects: how many replies and messages came by earlier transports, and
        # how many messages left.
        self._replies_before: int = 0
        self._came_before: int = 0
        self._left_before: int = 0

    @property
    def speaks_here(self) -> bool:
        """Whether the calling code tells the peer capabilities, so that it precedes all else."""
        return threading.get_ident() in self._parts.get("speakers", ())

    @property
    def negotiation(self) -> Negotiation:
        """What is known of the peer's capabilities."""
        found: Negotiation | None = self._parts.get("negotiation")
        if found is None:
            found = self._parts.setdefault(
                "negotiation",
                Negotiation(self._host, self._tell, self._traffic, self._proceed),
            )
        return found

    @property
    def requests(self) -> Requests:
        """The requests of this side."""
        found: Requests | None = self._parts.get("requests")
        if found is None:
            found = self._parts.setdefault("requests", self._new_requests())
            reason = self._host.lifecycle.close_reason
            if reason is not None:
                found.end(reason)
        return found

    @property
    def callbacks(self) -> FutureCallbacks:
        """What calls the callbacks of futures."""
        found: FutureCallbacks | None = self._parts.get("callbacks")
        if found is None:
            found = self._parts.setdefault("callbacks", FutureCallbacks(self._host))
        return found

    def called_back(self, deadline: Deadline) -> bool:
        """Wait until the callbacks of completed futures have returned; return whether they have."""
        found: FutureCallbacks | None = self._parts.get("callbacks")
        return found is None or found.wait(deadline)

    @property
    def requests_so_far(self) -> Requests | None:
        """The same; None if none was made."""
        return self._parts.get("requests")

    @property
    def interrupted_here(self) -> bool:
        """Whether the calling code has interrupted this thread while it changed the requests."""
        requests: Requests | None = self._parts.get("requests")
        return requests is not None and requests.interrupted_here

    @property
    def answered(self) -> bool:
        """Whether a reply has come by the present transport."""
        requests = self.requests_so_far
        return requests is not None and requests.replies > self._replies_before

    @property
    def told_to_leave(self) -> bool:
        """Whether the peer has told this side to leave, and it does."""
        negotiation: Negotiation | None = self._parts.get("negotiation")
        return negotiation is not None and negotiation.told_to_leave

    @property
    def under_way(self) -> bool:
        """Whether a request is not answered, of either side."""
        requests = self.requests_so_far
        mine = requests is not None and requests.in_flight
        return bool(mine or self.responder.asked)

    def send_away(self) -> bool:
        """Tell the peer to leave; return whether it does.

        Raises:
            WouldBlock: the send queue is full.
            ConnectionClosed: the connection is over.
        """
        negotiation: Negotiation | None = self._parts.get("negotiation")
        if negotiation is None or not negotiation.leaves:
            return False
        self._host.send_queue.write(envelope.LEAVE_FRAME)
        return True

    def _new_requests(self) -> Requests:
        host, settings = self._host, self._host.settings
        application, most = host.application.find(), settings.max_in_flight
        if application is None:
            raise ConnectionLost("the connection is closed")
        correlation = _correlation_of(application, not self.serves)
        if application.ids is not None:
            most = min(most or application.ids.most, application.ids.most)
        if not isinstance(correlation, EnvelopeCorrelation):
            host.reader.watch(self._take_replies)
        return Requests(
            host,
            self.negotiation,
            correlation,
            most=most,
            limit=settings.queue_size,
            latency=host.statistics.request_latencies.add,
        )

    @property
    def serves(self) -> bool:
        """Whether this is a server's end."""
        return isinstance(self._host.settings, ServerSettings)

    def _tell(self, frame: bytes) -> None:
        """Write what tells capabilities, ahead of what waits for a login, say."""
        speakers: set[int] = self._parts.setdefault("speakers", set())
        try:
            speakers.add(threading.get_ident())
            self._host.send_queue.write(frame)
        finally:
            speakers.discard(threading.get_ident())

    def _traffic(self) -> tuple[int, int]:
        """Return how many messages were written to the present transport, and came by it."""
        queue, came = self._host.send_queue, self._host.reader.messages_in
        return queue.frames_sent + queue.waiting - self._left_before, came - self._came_before

    def _proceed(self) -> None:
        """Send the requests that have waited for the peer's answer, or fail them."""
        requests = self.requests_so_far
        if requests is not None:
            requests.note()

    @property
    def replies(self) -> int:
        """How many replies have come."""
        requests = self._parts.get("requests")
        return 0 if requests is None else requests.replies

    @property
    def late_replies(self) -> int:
        """How many replies came when nobody waited for them any more."""
        requests = self._parts.get("requests")
        return 0 if requests is None else requests.late_replies

    # -- told by the connection

    def attached(self, application: Application) -> None:
        """Begin with a new transport, whose decoder is made. By the thread that connects."""
        negotiation: Negotiation | None = self._parts.get("negotiation")
        requests = self.requests_so_far
        self._came_before = self._host.reader.messages_in
        self._left_before = self._host.send_queue.frames_sent
        if negotiation is not None:
            negotiation.begin()
        if requests is not None:
            self._replies_before = requests.replies
        if isinstance(application.correlation, InOrder) and self.serves and not self._answers:
            self._see_answered(application)
            self._parts["order"] = ReplyOrder(self._host, self.responder)
            self._host.reader.watch(partial(self._line_up, application.correlation))
        elif isinstance(application.codec, TypeLengthValueCodec):
            decoder: Any = application.decoder
            if hasattr(decoder, "own"):
                decoder.own = self.take

    def opened(self) -> None:
        """Send what has waited for the transport to be open. By the thread that connects."""
        requests = self.requests_so_far
        if requests is not None:
            requests.note()
        if getattr(self._host.settings, "requests", False):
            self.negotiation.ask()

    def lost(self, reason: str) -> None:
        """Fail the requests that were sent, as the transport is lost. By the reading role."""
        requests = self.requests_so_far
        if requests is not None:
            requests.lose(reason)
        self.responder.asked.clear()
        if "order" in self._parts:
            self._parts["order"].clear()

    def ended(self, reason: str) -> None:
        """Fail all requests. May be called again."""
        requests = self._parts.get("requests")
        if requests is not None:
            requests.end(reason)

    def _see_answered(self, application: Application) -> None:
        """Have requests be answered by their handlers, or else refused."""
        application.make_context = answering_context
        self._host.runner.wrap_handlers(answering_handler)
        self._answers = True

    # -- for other protocols than tao's own, in the reading role

    def _take_replies(self, batch: Batch) -> Batch:
        """Complete the requests that messages reply to; return the other messages."""
        requests = self.requests_so_far
        if requests is None:
            return batch
        rest = []
        for number, message in batch:
            header = None
            if message.__class__ is Arrival:
                message, header = message.message, message.header
            if not self._is_reply(requests, number, message, header):
                rest.append((number, message if header is None else Arrival(message, header)))
        return rest

    def _is_reply(self, requests: Requests, number: Any, message: Any, header: Any) -> bool:
        application, report = self._host.application.find(), self._host.report
        if application is None or is_heartbeat(application, number, report):
            return False
        try:
            key = requests.find(number, message, header)
        except BaseException as error:  # raised by a function of the application
            if requests.breaks:
                raise  # as at a server: what comes next could not be told apart any more
            report(error, "telling replies from other messages")
            return False
        if key is UNKNOWN and (now := self._host.lifecycle.status).talking and not now.open:
            return False  # it may answer a login that was written plainly
        if key is not None:
            requests.take(key, number, message)
        return key is not None

    def _line_up(self, order: InOrder, batch: Batch) -> Batch:
        """Have the replies to the messages of a batch leave in their order."""
        application = self._host.application.find()
        rest: Batch = []
        for number, message in batch:
            header = None
            if message.__class__ is Arrival:
                message, header = message.message, message.header
            if application is None or application.is_heartbeat(number) or order.pushes(message):
                rest.append((number, message if header is None else Arrival(message, header)))
            else:
                rest.append((number, self._parts["order"].line_up(message, header)))
        return rest

    # -- for the decoder, in the reading role

    def take(self, number: int, value: bytes, batch: Batch) -> None:
        """Take a message of tao's own, or a heartbeat of the size of `capabilities`.

        Args:
            batch: gets what is to be handled in its turn.

        Raises:
            BadData: it is malformed.
        """
        if number == HEARTBEAT:
            told = capabilities.read(value)
            if told is not None:
                self.negotiation.take(told)
                if self.on_capabilities is not None and self.negotiation.capabilities is not None:
                    self.on_capabilities(self.negotiation.capabilities)
        elif number == envelope.REPLY:
            self._take_reply(envelope.read_reply(value), batch)
        elif number == envelope.REQUEST:
            self._take_request(envelope.read_request(value), batch)
        elif number == envelope.ERROR:
            request_id, code, text = envelope.read_error(value)
            kind = NoHandler if code == NO_HANDLER else RemoteError
            error = kind(code, text)
            error.received = True
            self._complete(request_id, batch, None, error)
        elif number == envelope.CANCEL:
            self.responder.cancel(envelope.read_cancel(value))
            batch.append((HEARTBEAT, None))
        elif number == envelope.LEAVE:
            self.negotiation.told_to_leave = self._host.leave_peer("the server is about to stop")
            batch.append((HEARTBEAT, None))
        elif number == CHALLENGE:  # this side has not waited for it
            batch.append((HEARTBEAT, None))
        else:
            batch.append((number, None))

    def _take_reply(self, inside: envelope.Inside, batch: Batch) -> None:
        application = self._host.application.find()
        entry = None if application is None else application.registry.entries.get(inside.number)
        if entry is None:
            text = f"the reply's message number {inside.number} is not registered on this side"
            self._complete(inside.request_id, batch, None, BadData(text))
            return
        try:
            reply = entry.deserialize(inside.value)
        except BaseException as error:
            self._complete(inside.request_id, batch, None, not_deserialized(inside.number, error))
        else:
            self._complete(inside.request_id, batch, reply)

    def _complete(
        self, request_id: int, batch: Batch, reply: Any, error: BaseException | None = None
    ) -> None:
        requests = self.requests_so_far
        if requests is None or not requests.complete(request_id, reply, error):
            # Counted as a heartbeat, so that limits of the peer's rate apply to it.
            batch.append((HEARTBEAT, None))

    def _take_request(self, inside: envelope.Inside, batch: Batch) -> None:
        application = self._host.application.find()
        if application is None:
            return
        if not self._answers:
            self._see_answered(application)
        entry = application.registry.entries.get(inside.number)
        message = None
        if entry is not None:
            try:
                message = entry.deserialize(inside.value)
            except Exception as error:
                raise not_deserialized(inside.number, error) from error
        batch.append((inside.number, self.responder.accept(inside, message)))

    # -- after a fork

    def after_fork(self, reason: str) -> None:
        """In a child process: fail all."""
        requests = self.requests_so_far
        if requests is not None:
            self.callbacks.after_fork()
            requests.after_fork(reason)


def _correlation_of(application: Application, asks_freely: bool) -> Correlation:
    """Return how the requests of a connection find their replies.

    Args:
        asks_freely: whether this is the end that asks, so that any id in flight means a reply.

    Raises:
        RequestsNotSupported: nothing tells replies to this end.
    """
    chosen, codec = application.correlation, application.codec
    field = getattr(codec, "correlate", None)
    if isinstance(chosen, InOrder):
        if not asks_freely:
            raise RequestsNotSupported("with InOrder a server answers, and cannot ask")
        return OrderCorrelation(chosen, application.encode_as)
    if chosen is not None:
        return MessageCorrelation(chosen, application.encode_as)
    if application.ids is not None and field is not None:
        reply_when = getattr(codec, "reply_when", None)
        if reply_when is None and not asks_freely:
            raise RequestsNotSupported(
                "both ends number on their own, so a server asks only if the codec has a reply_when"
            )
        declared = checks_itself(codec, "encode")
        return FieldCorrelation(
            application.ids, field, application.encode_as, reply_when, declared=declared
        )
    if isinstance(codec, TypeLengthValueCodec):
        return EnvelopeCorrelation(application.encode_as)
    raise RequestsNotSupported(
        f"nothing tells which request a reply of {type(codec).__name__} belongs to: declare a "
        "field of the codec correlate=True, or use the option correlation"
    )
