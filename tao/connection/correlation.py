"""How a reply is told to be the reply to a certain request.

Between two tao peers, requests and replies travel in an envelope with an id (``wire/envelope.py``).
In other protocols a field of the frame has the id, or the message itself, or replies just come in
the order of the requests.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

from tao.atomic import AtomicInt64
from tao.callables import check_callable
from tao.connection.requests.pending import Request
from tao.safe_text import FORMATTING_ERRORS, safe_repr
from tao.wire.codec import serialized
from tao.wire.envelope import cancel_frame, request_frame

__all__ = [
    "LATE",
    "UNKNOWN",
    "Correlate",
    "Correlation",
    "EnvelopeCorrelation",
    "FieldCorrelation",
    "Ids",
    "InOrder",
    "MessageCorrelation",
    "OrderCorrelation",
]

Pending = Mapping[Any, Request]
#: Encodes a message with other fields of its frame.
Encode = Callable[[Any, Mapping[str, Any] | None], bytes]

# Ids begin at a random number below this, so that what belongs to another connection fits none.
_FIRST_ID = 2**62
# How many ids of requests that were given up are not used again for now.
_GIVEN_UP_MOST = 1024
# Of requests that are over, at least so many ids are remembered, and at most twice as many.
_OVER_LEAST = 256

#: In place of an id: a reply that nobody waits for any more, or one to no request that is known.
LATE: Any = object()
UNKNOWN: Any = object()
# In place of a message number: any number.
_ANY: Any = object()
# Classes of ids that compare without running code of the application.
_PLAIN_IDS = frozenset((bool, bytes, float, int, str))


class InOrder:
    """Replies come in the order of the requests, and carry no id: the option ``correlation``.

    A request that is given up after it was sent closes the connection, as what comes next could not
    be told apart. On a server, replies leave in the order of the requests, whenever they are ready;
    a handler that raises closes the connection when its turn to reply comes, for the same reason.
    One that returns without a reply is taken to handle a message that needs none.

    A client that makes requests takes every other message for a reply. One that comes while no
    request is in flight, such as a second reply, is dropped and counted.

    Args:
        unsolicited: returns whether a message is no reply (on a server: no request), such as a
            notification; None: there are none. It is called where the connection is read, so it
            must be quick. If it raises, the connection ends.
    """

    def __init__(self, unsolicited: Callable[[Any], bool] | None = None) -> None:
        if unsolicited is not None:
            check_callable("unsolicited", unsolicited, "message")
        self.unsolicited = unsolicited

    def pushes(self, message: Any) -> bool:
        """Return whether a message is no reply, and no request."""
        return self.unsolicited is not None and bool(self.unsolicited(message))


class Correlate:
    """Messages themselves tell which request they belong to: the option ``correlation``.

    On a connection that makes requests, a reply whose request is not in flight is dropped and
    counted: it comes too late, for the second time, or is to a message that was no request.

    Args:
        request: returns the id of a message that is asked, called by the thread that asks.
        reply: returns the id of the request that a message replies to; None if it is no reply. It
            is called where the connection is read, so it must be quick. If it raises, that is
            passed to ``on_error``, and the message is taken for no reply.
    """

    def __init__(
        self,
        *,
        request: Callable[[Any], Hashable],
        reply: Callable[[Any], Hashable | None],
    ) -> None:
        check_callable("request", request, "message")
        check_callable("reply", reply, "message")
        self.request = request
        self.reply = reply


class Correlation(Protocol):
    """How the requests of one connection get ids, are sent, and find their replies."""

    #: Whether the peer has to say that it answers requests, before the first one is sent.
    negotiates: bool
    #: Whether a request that was sent and is given up makes the connection unusable.
    breaks: bool

    def next_key(self, request: Request, pending: Pending) -> Any:
        """Return the id of a request, which none in flight has. In the turn of the table.

        Raises:
            Exception: there is none; it is the request's error.
        """

    def prepare(self, request: Request) -> None:
        """Take what is sent of a request, as its message may be changed while it waits.

        Raises:
            Exception: it cannot be encoded.
        """

    def frame(self, request: Request, key: Any) -> bytes:
        """Return what is sent of a request.

        Raises:
            Exception: it cannot be encoded.
        """

    def cancellation(self, key: Any) -> bytes:
        """Return what tells the peer that nobody waits any more; b"" if there is no such thing."""

    def give_up(self, key: Any) -> None:
        """Note that the reply to a request that was sent is not waited for any more.

        In the turn of the table, and before the request is taken out of that.
        """

    def find(self, number: Any, message: Any, header: Any, pending: Pending) -> Any:
        """Return the id of the request that a message replies to. By the reading role.

        Returns:
            `LATE` or `UNKNOWN` if it is a reply that nobody waits for, None if it is none.
        """


class EnvelopeCorrelation:
    """That of two peers which speak tao's own framing. Their replies do not come as messages.

    Args:
        encode: makes frames, for the envelope.
    """

    __slots__ = ("_encode", "_ids")

    negotiates = True
    breaks = False

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._ids = itertools.count(random.randrange(_FIRST_ID))

    def next_key(self, request: Request, pending: Pending) -> int:
        return next(self._ids)

    def prepare(self, request: Request) -> None:
        request.body = self._encode(request.message, request.header)

    def frame(self, request: Request, key: Any) -> bytes:
        return request_frame(key, request.deadline.remaining(), request.body)

    def cancellation(self, key: Any) -> bytes:
        return cancel_frame(key)

    def give_up(self, key: Any) -> None:
        pass

    def find(self, number: Any, message: Any, header: Any, pending: Pending) -> Any:
        return None


class Ids:
    """The ids of all frames of one connection, in a field of some width. Any thread may use it.

    Args:
        greatest: the greatest id; 0 is one, too.
        first: the first one.
    """

    __slots__ = ("_count", "_given_up", "_greatest", "_over", "pending")

    def __init__(self, greatest: int, first: int = 0) -> None:
        self._greatest = greatest
        self._count = AtomicInt64(first)
        #: The requests in flight, by their ids.
        self.pending: Pending = {}
        # The two below are changed in single steps, and have the oldest first.
        # Of the requests that were given up lately, so that a late reply meets no newer request.
        self._given_up: dict[int, None] = {}
        # Of requests that are over, with the number of the reply, as there may come another one. An
        # id that is used anew is not in here.
        self._over: dict[int, Any] = {}

    @property
    def most(self) -> int:
        """How many requests may be in flight, so that some ids are left for others."""
        return max(1, (self._greatest + 1) // 2)

    def take(self) -> int:
        """Return an id that no request in flight has, and none that was given up lately."""
        found = 0
        for _ in range(self._greatest + 1):
            found = self._count.get_and_increment() % (self._greatest + 1)
            if found not in self.pending and found not in self._given_up:
                break
        # Else it is for a plain write, while all are in use.
        self._over.pop(found, None)
        return found

    def answered(self, key: int, number: Any) -> None:
        """Note that a reply has come, before its request is taken out. By the reading role."""
        self._over[key] = number
        if len(self._over) > 2 * _OVER_LEAST:
            _drop_oldest(self._over, _OVER_LEAST)

    def give_up(self, key: int) -> None:
        """Note that a reply is not waited for any more. Needs the turn of the requests."""
        self.answered(key, _ANY)
        self._given_up[key] = None
        most = min(_GIVEN_UP_MOST, (self._greatest + 1) // 4)
        if len(self._given_up) > most:
            _drop_oldest(self._given_up, most)

    def is_late(self, key: int, number: Any) -> bool:
        """Whether a message replies to a request that is over. By the reading role."""
        if key in self._given_up:
            self.answered(key, _ANY)  # first, as any thread may take an id that is free
            self._given_up.pop(key, None)
            return True
        known = self._over.get(key, LATE)
        return known is _ANY or bool(known == number)


def _drop_oldest(ids: dict[int, Any], most: int) -> None:
    """Drop what there is above a number of ids."""
    for key in list(ids)[:-most] if most else list(ids):
        ids.pop(key, None)


class _Serialized:
    """A message as it was when it was serialized."""

    __slots__ = ("_value", "message_number")

    def __init__(self, message: Any) -> None:
        self._value = serialized(message)
        self.message_number: Any = message.message_number

    def serialize(self) -> bytes:
        return self._value


class FieldCorrelation:
    """A field of the frame has the id.

    Args:
        ids: of the connection.
        field: its name.
        encode: makes frames.
        declared: whether all that ``encode`` uses of a message is its number and ``serialize()``.
        reply_when: tells a reply by header and number. None: a message is one if its id is in
            flight, or was given up lately, or if a reply of its number to this id has just come.
    """

    __slots__ = ("_declared", "_encode", "_field", "_ids", "_reply_when")

    negotiates = False
    breaks = False

    def __init__(
        self,
        ids: Ids,
        field: str,
        encode: Encode,
        reply_when: Callable[[Any, Any], bool] | None,
        *,
        declared: bool,
    ) -> None:
        self._ids = ids
        self._field = field
        self._declared = declared
        self._encode = encode
        self._reply_when = reply_when

    def next_key(self, request: Request, pending: Pending) -> int:
        self._ids.pending = pending
        return self._ids.take()

    def prepare(self, request: Request) -> None:
        request.header = dict(request.header or {})
        if self._declared:
            request.message = _Serialized(request.message)
        else:
            request.message = copy.copy(request.message)
            self.frame(request, 0)  # raises now if it would raise later

    def frame(self, request: Request, key: Any) -> bytes:
        return self._encode(request.message, {**(request.header or {}), self._field: key})

    def cancellation(self, key: Any) -> bytes:
        return b""

    def give_up(self, key: Any) -> None:
        self._ids.give_up(key)

    def find(self, number: Any, message: Any, header: Any, pending: Pending) -> Any:
        key: Any = getattr(header, self._field, None)
        if type(key) is not int:  # of a class of the application's, in its own codec
            key = int.__int__(key) if isinstance(key, int) else None
        told = self._reply_when
        if told is not None and (header is None or not told(header, number)):
            return None
        if key in pending:
            self._ids.answered(key, number)
            return key
        if self._ids.is_late(key, number):
            return LATE
        return None if told is None else UNKNOWN


class OrderCorrelation:
    """The oldest request in flight gets the next message that is a reply.

    Args:
        order: the option.
        encode: makes frames.
    """

    __slots__ = ("_encode", "_ids", "_order")

    negotiates = False
    breaks = True

    def __init__(self, order: InOrder, encode: Encode) -> None:
        self._order = order
        self._encode = encode
        self._ids = itertools.count()

    def next_key(self, request: Request, pending: Pending) -> int:
        return next(self._ids)

    def prepare(self, request: Request) -> None:
        request.body = self._encode(request.message, request.header)

    def frame(self, request: Request, key: Any) -> bytes:
        return request.body

    def cancellation(self, key: Any) -> bytes:
        return b""

    def give_up(self, key: Any) -> None:
        pass  # the connection is closed

    def find(self, number: Any, message: Any, header: Any, pending: Pending) -> Any:
        if self._order.pushes(message):
            return None
        while True:
            try:
                return next(iter(pending), UNKNOWN)
            except RuntimeError:
                continue  # a request has been added at this very moment


class _OwnId:
    """An id of a class of the application's: comparing it raises nothing, and its hash stays."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Hashable) -> None:
        self._value = value
        self._hash: int = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        try:
            return bool(self._value == (other._value if isinstance(other, _OwnId) else other))
        except FORMATTING_ERRORS:
            return False

    def __repr__(self) -> str:
        return safe_repr(self._value)


def _checked_id(value: Hashable) -> Hashable:
    """Return an id as the table of requests can have it, whatever its class does.

    Raises:
        TypeError: it is not hashable, say.
    """
    return value if type(value) in _PLAIN_IDS else _OwnId(value)


class MessageCorrelation:
    """Requests and replies have the id in themselves.

    Args:
        correlate: the option.
        encode: makes frames.
    """

    __slots__ = ("_correlate", "_encode")

    negotiates = False
    breaks = False

    def __init__(self, correlate: Correlate, encode: Encode) -> None:
        self._correlate = correlate
        self._encode = encode

    def next_key(self, request: Request, pending: Pending) -> Any:
        key = request.key
        if key in pending:
            raise ValueError(f"a request with the id {key!r} is in flight already")
        return key

    def prepare(self, request: Request) -> None:
        key = self._correlate.request(request.message)
        if key is None:
            raise ValueError("the function request of Correlate returned None, which is no id")
        request.key = _checked_id(key)
        request.body = self._encode(request.message, request.header)

    def frame(self, request: Request, key: Any) -> bytes:
        return request.body

    def cancellation(self, key: Any) -> bytes:
        return b""

    def give_up(self, key: Any) -> None:
        pass  # a late reply fits none in flight, unless the application uses the id anew

    def find(self, number: Any, message: Any, header: Any, pending: Pending) -> Any:
        told = None if message is None else self._correlate.reply(message)
        if told is None:
            return None
        key = _checked_id(told)
        return key if key in pending else UNKNOWN
