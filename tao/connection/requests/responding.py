"""Answering the requests of the peer: once each, from a handler or later.

The reading role makes an `Answer` of each request and puts it into the batch, in place of the
message. The handler gets a context whose ``reply`` belongs to it. When the handler returns without
a reply, the peer is told so; of an exception it learns no more than that there was one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

from tao.connection.application import ApplicationLink
from tao.connection.handling.replies import Replies
from tao.connection.lifecycle import Lifecycle, Phase
from tao.connection.sending.send_queue import SendQueue
from tao.connection.timers import TimerSet
from tao.errors import ConnectionClosed, RemoteError, TaoError, WouldBlock
from tao.runtime.combining import Combiner
from tao.runtime.context import ANSWER, HEADER, Context, RequestContext
from tao.safe_text import safe_str
from tao.wire.arrival import Arrival
from tao.wire.envelope import NO_LIMIT, Inside, error_frame, reply_frame
from tao.wire.message import Handler

__all__ = [
    "Answer",
    "ReplyOrder",
    "Responder",
    "ResponderHost",
    "answering_context",
    "answering_handler",
]

# When replies that find the send queue full are tried again, in seconds.
_AGAIN = 0.02
# The codes of errors that are no handler's own.
_ERROR, _NO_REPLY, NO_HANDLER = "error", "no_reply", "no_handler"
# Why a connection is closed.
_MISSING = "a handler has failed, and replies without an id cannot tell which one is missing"
_DOUBTFUL = "sending a reply was interrupted, and replies without an id must not be sent twice"


class ResponderHost(Protocol):
    """What this asks of a connection's core."""

    application: ApplicationLink
    context: Context
    lifecycle: Lifecycle
    replies: Replies
    send_queue: SendQueue
    timers: TimerSet

    def begin_close(self, reason: str, *, drain: bool, timeout: float | None) -> None:
        """Begin to close the connection."""


class Responder:
    """Answers for the handlers of one connection. Any thread may call any method.

    Args:
        host: the connection's core.
    """

    __slots__ = ("_host", "asked")

    def __init__(self, host: ResponderHost) -> None:
        self._host = host
        #: The peer's requests that are not answered, by their ids. Changed in single steps.
        self.asked: dict[int, Answer] = {}

    def accept(self, inside: Inside, message: Any) -> Answer:
        """Note a request of the peer. By the reading role."""
        answer = EnvelopeAnswer(self, self._host.context, inside, message)
        self.asked[inside.request_id] = answer
        return answer

    def cancel(self, request_id: int) -> None:
        """Cancel a request, as nobody waits for its answer any more. By the reading role."""
        answer = self.asked.pop(request_id, None)
        if answer is not None:
            answer.cancel()

    def reply(self, message: Any) -> None:
        """Write a message plainly, as a handler of a message that was no request does."""
        self.send(self.encode(message))

    def defer(self) -> None:
        """Nobody waits for what is written plainly, so it may come at any time."""

    def answer_to(self, header: Any) -> HeaderAnswer:
        """Return what replies to a message with other fields."""
        return HeaderAnswer(self, header)

    def encode(self, message: Any, header: Any = None) -> bytes:
        """Return the frame of a message.

        Args:
            header: of the request, if its frame has other fields.

        Raises:
            ConnectionClosed: the application is gone.
        """
        application = self._host.application.find()
        if application is None:
            raise ConnectionClosed("the connection is closed")
        repeat = None if header is None else getattr(application.codec, "reply_header", None)
        if repeat is None:
            return application.encode(message)
        return application.encode_with(message, repeat(header))

    def send(self, frame: bytes) -> None:
        """Send or queue a frame; a handler of this connection waits for room."""
        self._host.replies.deliver(frame)

    def is_current(self, context: Context) -> bool:
        """Whether a request still belongs to the present transport."""
        host = self._host
        lost = host.lifecycle.phase is Phase.LOST or host.send_queue.over
        return host.context is context and not lost


class Answer(Arrival):
    """A request of the peer, which is to be answered once.

    Args:
        responder: the connection's.
        of: the context of the transport by which it came.
        message: the message.
        header: the other fields of its frame.
    """

    __slots__ = ("_answered", "_context", "_of", "cancelled", "deferred", "responder")

    def __init__(self, responder: Responder, of: Context, message: Any, header: Any) -> None:
        self.message = message
        self.header = header
        self.responder = responder
        self._of = of
        # Each is changed in one step, by any thread. The first entry answers.
        self._answered: dict[str, object] = {}
        self.deferred: bool = False
        self.cancelled: bool = False
        self._context: Context | None = None  # the handler's

    @property
    def wanted(self) -> bool:
        """Whether the peer still waits for it."""
        return not self.cancelled

    def begin(self, context: Context) -> None:
        """Note the context of the handler, which a cancellation is for."""
        self._context = context
        if self.cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the handler's context; the handler may not have begun."""
        self.cancelled = True
        context = self._context
        if context is not None:
            context.cancel_aside("the peer does not wait for the answer any more")

    def reply(self, message: Any) -> None:
        """Answer with a message, or refuse with a `RemoteError`.

        Raises:
            RuntimeError: it is answered already.
            WouldBlock: the send queue is full; nothing was answered.
            ConnectionClosed: the connection by which the request came is over.
            Exception: what ``serialize()`` raises; nothing was answered.
        """
        frame = self.refusal(message) if isinstance(message, RemoteError) else self.frame(message)
        mine = object()
        if self._answered.setdefault("by", mine) is not mine:
            raise RuntimeError("this request is answered already")
        try:
            if not self.responder.is_current(self._of):
                raise ConnectionClosed("the connection by which the request came is over")
            if not self.cancelled:
                self.send(frame)
        except BaseException:
            self._answered.pop("by", None)  # so that it can be tried again
            raise
        self.drop()

    def frame(self, message: Any) -> bytes:
        """Return the frame of a reply."""
        raise NotImplementedError

    def refusal(self, error: RemoteError) -> bytes:
        """Return the frame that refuses the request; b"" if the protocol has none."""
        return b""

    def send(self, frame: bytes) -> None:
        """Send a reply, or a refusal."""
        if frame:
            self.responder.send(frame)

    def defer(self) -> None:
        """Have the answer come later, from any thread."""
        self.deferred = True

    def drop(self) -> None:
        """Forget the request, as it is answered or nobody wants it to be any more."""
        self._context = None  # which refers to this

    def finish(self, code: str, error: RemoteError | None = None) -> None:
        """Refuse it, as its handler has ended, unless it is answered.

        Args:
            code: of the refusal.
            error: the refusal itself, if there is more to say than its code.

        Raises:
            WouldBlock: the send queue is full, so the peer is not told.
        """
        if self._answered:
            return
        try:
            self.reply(error or RemoteError(code))
        except WouldBlock:
            raise
        except (TaoError, RuntimeError):
            pass  # nobody is there to be told
        finally:
            self.drop()


class EnvelopeAnswer(Answer):
    """A request in an envelope, from another tao.

    Args:
        inside: id, remaining time and number.
    """

    __slots__ = ("_due", "_id")

    def __init__(self, responder: Responder, of: Context, inside: Inside, message: Any) -> None:
        super().__init__(responder, of, message, None)
        self._id: int = inside.request_id
        # When the peer stops waiting, monotonic.
        self._due: float | None = None
        if inside.milliseconds != NO_LIMIT:
            self._due = monotonic() + inside.milliseconds / 1000

    @property
    def wanted(self) -> bool:
        return not self.cancelled and (self._due is None or monotonic() < self._due)

    def frame(self, message: Any) -> bytes:
        return reply_frame(self._id, self.responder.encode(message))

    def refusal(self, error: RemoteError) -> bytes:
        return error_frame(self._id, safe_str(error.code), safe_str(error.text))

    def drop(self) -> None:
        super().drop()
        self.responder.asked.pop(self._id, None)


class ReplyOrder:
    """Has replies leave in the order of the requests, whenever they are ready.

    Args:
        host: the connection's core.
        responder: the connection's.
    """

    __slots__ = ("_answers", "_doubtful", "_host", "_releasing", "_responder", "_stopped")

    def __init__(self, host: ResponderHost, responder: Responder) -> None:
        self._host = host
        self._responder = responder
        # Appended to by the reading role; the thread that has the turn removes the first.
        self._answers: deque[OrderedAnswer] = deque()
        # That thread owns these: whether no more replies may be sent, and whether the first one may
        # be sent already.
        self._stopped: bool = False
        self._doubtful: bool = False
        self._releasing = Combiner(self._release, self._repair)

    def line_up(self, message: Any, header: Any) -> Answer:
        """Note a request whose reply is to follow those of earlier ones. By the reading role."""
        answer = OrderedAnswer(self, self._responder, self._host.context, message, header)
        self._answers.append(answer)
        return answer

    def release(self) -> None:
        """Send the replies that no earlier request holds up. Any thread may call it."""
        self._releasing.settle()

    def clear(self) -> None:
        """Forget all, as their transport is lost."""
        self._answers.clear()

    def _release(self) -> None:
        answers = self._answers
        while answers and not self._stopped and (frame := answers[0].ready) is not None:
            if answers[0].refused:  # the replies after it would be taken for earlier ones
                self._stop(_MISSING)
                return
            self._doubtful = True
            try:
                if frame:
                    self._host.send_queue.write(frame)
            except WouldBlock:
                self._doubtful = False
                self._host.timers.set_clock("replies", _AGAIN, self.release)
                return
            except TaoError:
                pass  # nobody is there to be told
            answers.popleft()
            self._doubtful = False

    def _repair(self) -> None:
        """Send no more if an exception has come before it was noted that a reply was sent."""
        if self._doubtful and not self._stopped:
            self._stop(_DOUBTFUL)

    def _stop(self, why: str) -> None:
        self._host.begin_close(why, drain=True, timeout=None)
        self._stopped = True  # afterwards: an exception may have kept that from being begun


class OrderedAnswer(Answer):
    """A request of a protocol in which replies come in the order of the requests."""

    __slots__ = ("_order", "ready", "refused")

    def __init__(
        self, order: ReplyOrder, responder: Responder, of: Context, message: Any, header: Any
    ) -> None:
        super().__init__(responder, of, message, header)
        self._order = order
        self.ready: bytes | None = None  #: its reply, which may have to wait for earlier ones
        self.refused: bool = False  #: whether its handler has failed, which cannot be told

    def frame(self, message: Any) -> bytes:
        return self.responder.encode(message, self.header)

    def refusal(self, error: RemoteError) -> bytes:
        self.refused = error.code not in (_NO_REPLY, NO_HANDLER)  # such messages may need no reply
        return b""

    def send(self, frame: bytes) -> None:
        self.ready = frame
        self._order.release()


class HeaderAnswer:
    """What replies to a message whose frame has other fields, some of which a reply repeats.

    Args:
        responder: the connection's.
        header: of the message.
    """

    __slots__ = ("_header", "_responder")

    def __init__(self, responder: Responder, header: Any) -> None:
        self._responder = responder
        self._header = header

    def reply(self, message: Any) -> None:
        """Answer with a message. A refusal cannot be told in such a protocol."""
        if isinstance(message, RemoteError):
            raise message
        self._responder.send(self._responder.encode(message, self._header))

    def defer(self) -> None:
        """A reply may come at any time."""


class AnswerContext(RequestContext):
    """The context of a handler that answers a request."""

    __slots__ = ("answer",)

    def __init__(self, parent: Context, answer: Answer) -> None:
        super().__init__(parent, answer.message)
        self.answer = answer
        answer.begin(self)

    def reply(self, message: Any) -> None:
        self.answer.reply(message)

    def value(self, key: Hashable) -> Any:
        if key is ANSWER:
            return self.answer
        return self.answer.header if key is HEADER else super().value(key)


def answering_context(parent: Context, message: Any) -> Context:
    """Return the context of a decoded message, or of a request."""
    if isinstance(message, Answer):
        return AnswerContext(parent, message)
    return RequestContext(parent, message)


def answering_handler(handler: Handler | None, answers: bool) -> Handler:
    """Return a function that calls a handler and, if it handles a request, sees it answered.

    Args:
        handler: what handles a message of this number.
        answers: whether it is one that can answer. If not, requests are refused.
    """

    def answer(context: Any, conn: Any) -> None:
        if context.__class__ is not AnswerContext:
            if handler is not None:
                handler(context, conn)
            return
        asked: Answer = context.answer
        if not asked.wanted:
            asked.drop()
            return
        if handler is None or not answers:
            asked.finish(NO_HANDLER)
            return
        try:
            handler(context, conn)
        except BaseException as error:
            if isinstance(error, RemoteError) and not error.received:
                asked.finish(_ERROR, error)
            else:
                with suppress(WouldBlock):
                    asked.finish(_ERROR)
                raise
        else:
            if not asked.deferred:
                asked.finish(_NO_REPLY)

    return answer
