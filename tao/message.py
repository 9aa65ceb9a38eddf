"""Messages, and the registry that knows them by number.

A message is any object with a ``message_number`` and a ``serialize()``; for reading there is a
function that makes one from bytes. A registry joins the three: number, deserializer, handler.

Registries form layers. Every server and client has one of its own above the default registry, so
what the whole program declares is known to all of them, and what one server declares stays its
own. A layer keeps a flat copy of all that it inherits: a look-up is one ``dict.get``, which is all
the decoder pays for a message.
"""

from __future__ import annotations

import inspect
import struct
import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from tao.errors import AlreadyRegistered, NotRegistered

__all__ = [
    "HEARTBEAT",
    "Deserializer",
    "Handler",
    "HeartbeatMessage",
    "Message",
    "Registration",
    "Registry",
    "default_registry",
    "register",
]

#: The number of the heartbeat message.
HEARTBEAT = 0

_MIN_NUMBER, _MAX_NUMBER = -(2**31), 2**31 - 1
_NANOSECONDS = struct.Struct("<q")

Deserializer = Callable[[bytes], Any]
# (Context, Connection) -> None; written with Any because this storey knows neither.
Handler = Callable[[Any, Any], object]
_HandlerT = TypeVar("_HandlerT", bound=Handler)


@runtime_checkable
class Message(Protocol):
    """What can be written to a connection. Subclassing is welcome but not needed.

    Attributes:
        message_number: which message this is on the wire, an int32. Zero is the heartbeat's.
    """

    # Read-only, so that type checkers take a class attribute for it as well as an instance's.
    @property
    def message_number(self) -> int: ...

    def serialize(self) -> bytes:
        """Return the value of the message on the wire, without any header."""
        ...


class HeartbeatMessage:
    """Says that its sender is alive. tao sends and takes it by itself.

    Args:
        timestamp: when it was sent, in nanoseconds since the Unix epoch; 0 if the peer did not say.
    """

    __slots__ = ("timestamp",)
    message_number: ClassVar[int] = HEARTBEAT

    def __init__(self, timestamp: int) -> None:
        self.timestamp: int = timestamp

    def serialize(self) -> bytes:
        return _NANOSECONDS.pack(self.timestamp)

    @classmethod
    def deserialize(cls, data: bytes) -> HeartbeatMessage:
        """Take a heartbeat of any length: it is a sign of life, whatever it says.

        The original encodes all of its heartbeats in one buffer that its goroutines share, so what
        a busy Go server sends is now and then empty, or of twice the length.
        """
        if len(data) < _NANOSECONDS.size:
            return cls(0)
        return cls(_NANOSECONDS.unpack_from(data)[0])

    def __repr__(self) -> str:
        return f"HeartbeatMessage({self.timestamp})"


class Registration:
    """One number of a registry: how to read its messages and who handles them.

    Attributes:
        number: the message number.
        deserialize: makes a message from the bytes of its value.
        handler: called with ``(ctx, conn)``, or None: then ``on_message`` is.
        dispatch: ``"auto"``, ``"pool"`` or ``"inline"`` for this handler, or None: as its
            connection does.
        trust: how far it is trusted to be quick, see ``dispatch.py``, which owns it.
    """

    __slots__ = ("deserialize", "dispatch", "handler", "number", "trust")

    def __init__(
        self,
        number: int,
        deserialize: Deserializer,
        handler: Handler | None = None,
        dispatch: str | None = None,
    ) -> None:
        self.number: int = number
        self.deserialize: Deserializer = deserialize
        self.handler: Handler | None = handler
        self.dispatch: str | None = dispatch
        self.trust: int = 0

    def __repr__(self) -> str:
        return f"Registration({self.number}, {self.deserialize!r}, handler={self.handler!r})"


class Registry:
    """Message numbers with their deserializers and handlers. Any thread may register at any time.

    Args:
        parent: a registry whose entries this one also has, also those that it gets later, until
            it has its own for the same number.
    """

    def __init__(self, parent: Registry | None = None) -> None:
        # Guards _own and _layers. A parent takes its layers' locks while it holds its own.
        self._lock = threading.Lock()
        self._own: dict[int, Registration] = {}
        self._layers: weakref.WeakSet[Registry] = weakref.WeakSet()
        #: Number to registration, inherited ones included. To read only; a decoder looks up here.
        self.entries: dict[int, Registration] = {}
        if parent is None:
            self._add(Registration(HEARTBEAT, HeartbeatMessage.deserialize))
        else:
            with parent._lock:
                parent._layers.add(self)
                self.entries.update(parent.entries)

    def register(
        self,
        number: int,
        deserialize: Deserializer,
        handler: Handler | None = None,
        *,
        dispatch: str | None = None,
    ) -> None:
        """Declare a message.

        Args:
            number: an int32; negative numbers are legal.
            deserialize: makes a message from the bytes of its value; if it raises, the peer's
                connection is closed as having broken the protocol.
            handler: called as ``handler(ctx, conn)`` for each message of this number.
            dispatch: where the handler runs: ``"auto"``, ``"pool"``, ``"inline"``; None as the
                connection does.

        Raises:
            AlreadyRegistered: the number is taken in this registry.
            TypeError, ValueError: an argument is of the wrong type or out of range.
        """
        _check_number(number)
        check_callable("deserialize", deserialize, "data")
        if handler is not None:
            check_callable("handler", handler, "ctx", "conn")
        _check_dispatch(dispatch)
        self._add(Registration(number, deserialize, handler, dispatch))

    def handler(
        self, message_class: Any, *, dispatch: str | None = None
    ) -> Callable[[_HandlerT], _HandlerT]:
        """Make the decorated function the handler of a message class.

        The class is registered on the way unless it already is.

        Args:
            message_class: has ``message_number`` and a ``deserialize`` class method.
            dispatch: as for `register`.

        Raises:
            AlreadyRegistered: the number has a handler in this registry, or belongs to another
                class.
            TypeError, ValueError: the class lacks a ``message_number`` or a ``deserialize``, or an
                argument is out of range.
        """
        number = getattr(message_class, "message_number", None)
        if number is None or isinstance(number, property):
            if not isinstance(message_class, type):
                raise TypeError(
                    "handler() takes a message class, as in @server.handler(ChatMessage), not "
                    f"{_name(message_class)}"
                )
            raise TypeError(f"{_name(message_class)} has no message_number")
        _check_number(number)
        deserialize = getattr(message_class, "deserialize", None)
        if deserialize is None:
            raise TypeError(f"{_name(message_class)} has no deserialize(data) class method")
        check_callable("deserialize", deserialize, "data")
        _check_dispatch(dispatch)

        def decorate(function: _HandlerT) -> _HandlerT:
            check_callable("handler", function, "ctx", "conn")
            self._set_handler(Registration(number, deserialize, function, dispatch))
            return function

        return decorate

    def lookup(self, number: int) -> Registration:
        """Return the registration of a number.

        Raises:
            NotRegistered: there is none.
        """
        try:
            return self.entries[number]
        except KeyError:
            raise NotRegistered(f"message number {number} is not registered") from None

    def __contains__(self, number: object) -> bool:
        return number in self.entries

    def _add(self, registration: Registration) -> None:
        with self._lock:
            if registration.number in self._own:
                raise AlreadyRegistered(f"message number {registration.number} is registered twice")
            self._adopt(registration)

    def _set_handler(self, registration: Registration) -> None:
        with self._lock:
            number = registration.number
            known = self._own.get(number)
            if known is not None and known.deserialize != registration.deserialize:
                raise AlreadyRegistered(
                    f"message number {number} belongs to {_owner(known)}, so {_owner(registration)}"
                    " needs another number, or a registry of its own"
                )
            if known is not None and known.handler is not None:
                raise AlreadyRegistered(
                    f"message number {number} has a handler: {_name(known.handler)}"
                )
            if known is not None and registration.dispatch is None:
                registration.dispatch = known.dispatch
            self._adopt(registration)

    def _adopt(self, registration: Registration) -> None:
        """Take an entry in and hand it down. Needs _lock."""
        assert self._lock.locked()
        self._own[registration.number] = registration
        self.entries[registration.number] = registration
        for layer in list(self._layers):
            layer._inherit(registration)

    def _inherit(self, registration: Registration) -> None:
        with self._lock:
            if registration.number in self._own:
                return
            self.entries[registration.number] = registration
            for layer in list(self._layers):
                layer._inherit(registration)


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or repr(thing)


def _owner(registration: Registration) -> str:
    """The class that a deserializer is of."""
    owner = getattr(registration.deserialize, "__self__", None)
    if isinstance(owner, type):  # and not the one that it has inherited it from
        return _name(owner)
    return _name(registration.deserialize).removesuffix(".deserialize")


def _check_number(number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"message_number must be an int, not {number!r}")
    if not _MIN_NUMBER <= number <= _MAX_NUMBER:
        raise ValueError(f"message_number {number} does not fit an int32")


def check_callable(what: str, value: object, *arguments: str) -> None:
    """Raise a ``TypeError`` unless ``value`` can be called with so many arguments."""
    if not callable(value):
        raise TypeError(f"{what} must be callable, not {value!r}")
    call = f"{what}({', '.join(arguments)})"
    if any(inspect.iscoroutinefunction(each) for each in (value, type(value).__call__)):
        raise TypeError(
            f"{_name(value)} is asynchronous, and {call} is called in a thread, not awaited: "
            "write it with def, or hand over to an event loop from there"
        )
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return  # it is written in C, and does not tell
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{_name(value)} cannot be called as {call}: {error}") from None


def _check_dispatch(dispatch: str | None) -> None:
    if dispatch not in (None, "auto", "pool", "inline"):
        raise ValueError(f"dispatch must be 'auto', 'pool' or 'inline', not {dispatch!r}")


#: The registry that every server and client inherits from unless it is given its own.
default_registry = Registry()


def register(
    number: int,
    deserialize: Deserializer,
    handler: Handler | None = None,
    *,
    dispatch: str | None = None,
) -> None:
    """Declare a message in the default registry; see `Registry.register`."""
    default_registry.register(number, deserialize, handler, dispatch=dispatch)
