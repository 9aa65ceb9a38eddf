"""Messages, and the registry that knows them by number.

A message is any object with a ``message_number`` and a ``serialize()``; for reading there is a
function that makes one from bytes. A registry joins the three: number, deserializer, handler.

Registries form layers. Every server and client has one of its own above the default registry, so
what the whole program declares is known to all of them, and what one server declares stays its
own. A layer keeps a flat copy of all that it inherits: a look-up is one ``dict.get``, which is all
the decoder pays for a message.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from tao.atomic import AtomicReference
from tao.callables import check_callable, name_of
from tao.errors import AlreadyRegistered, NotRegistered
from tao.safe_text import safe_repr
from tao.wire.reloading import executed_again, module_execution, same_definition

if TYPE_CHECKING:
    from tao.runtime.context import Context

__all__ = [
    "HEARTBEAT",
    "Deserializer",
    "Dispatch",
    "Handler",
    "HeartbeatMessage",
    "Message",
    "ReadableT",
    "Registration",
    "Registry",
    "ResultT",
    "check_callable",
    "default_registry",
    "register",
    "unregister",
]

#: The number of the heartbeat message.
HEARTBEAT = 0

_MIN_NUMBER, _MAX_NUMBER = -(2**31), 2**31 - 1
_NANOSECONDS = struct.Struct("<q")

#: Where a handler runs.
Dispatch = Literal["auto", "pool", "inline"]
Deserializer = Callable[[bytes], Any]
# (Context, Connection) -> None; written with Any because this storey knows neither.
Handler = Callable[[Any, Any], object]
_HandlerT = TypeVar("_HandlerT", bound=Handler)
_MessageT = TypeVar("_MessageT")
_ConnT = TypeVar("_ConnT")
#: What a handler returns, which nobody looks at.
ResultT = TypeVar("ResultT")


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


class _Readable(Protocol):
    """What a message is that can be read: its class has a number and a ``deserialize``."""

    @property
    def message_number(self) -> int: ...

    def deserialize(self, data: bytes, /) -> Any: ...


class _ReadableByClass(Protocol):
    """The same whose number is declared as a ``ClassVar``, which Pyright tells apart."""

    message_number: ClassVar[int]

    def deserialize(self, data: bytes, /) -> Any: ...


#: A message whose class can be given to `Registry.handler`.
ReadableT = TypeVar("ReadableT", bound=_Readable | _ReadableByClass)


if TYPE_CHECKING:
    #: Takes a handler of one class of messages on one kind of connections, and returns it.
    HandlerDecorator = Callable[
        [Callable[[Context[_MessageT], _ConnT], ResultT]],
        Callable[[Context[_MessageT], _ConnT], ResultT],
    ]


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
        trust: how far it is trusted to be quick, see ``connection/dispatcher.py``, which owns it.
        declared, handler_declared: the executions of modules that declared the number and its
            handler, see ``reloading.py``.
    """

    __slots__ = (
        "declared", "deserialize", "dispatch", "handler", "handler_declared", "number", "trust",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        deserialize: Deserializer,
        handler: Handler | None = None,
        dispatch: str | None = None,
        declared: Any = None,
    ) -> None:
        self.number: int = number
        self.deserialize: Deserializer = deserialize
        self.handler: Handler | None = handler
        self.dispatch: str | None = dispatch
        self.trust: int = 0
        self.declared: Any = declared
        self.handler_declared: Any = declared

    def completed(
        self, handler: Handler | None, declared: Any, dispatch: str | None
    ) -> Registration:
        """Return a copy with these, as far as this one says nothing."""
        copy = Registration(
            self.number, self.deserialize, self.handler, self.dispatch or dispatch, self.declared
        )
        if copy.handler is None:
            copy.handler, copy.handler_declared = handler, declared
        return copy

    def __repr__(self) -> str:
        deserialize, handler = safe_repr(self.deserialize), safe_repr(self.handler)
        return f"Registration({self.number}, {deserialize}, handler={handler})"


class Registry:
    """Message numbers with their deserializers and handlers. Any thread may register at any time.

    A number has one owner: to declare it a second time is an error. But a module that is executed
    again, by ``importlib.reload`` say, may declare again what it has declared before; so may a
    function or class that was defined again under the same qualified name. The new declaration then
    replaces the old one, also for connections that are open.

    Args:
        parent: a registry whose entries this one also has, also those that it gets later, until
            it has its own for the same number.
    """

    def __init__(self, parent: Registry | None = None) -> None:
        self._parent: Registry | None = parent
        # What a number was declared as here, or None when that was taken back.
        self._own: dict[int, AtomicReference[Registration | None]] = {}
        # Each takes itself out when it dies, in whatever thread that is; so only what CPython does
        # in one step may be done with it. (WeakSet takes several.)
        self._layers: set[weakref.ref[Registry]] = set()
        #: Number to registration, inherited ones included. To read only; a decoder looks up here.
        self.entries: dict[int, Registration] = self._new_entries()
        if parent is None:
            beat = Registration(HEARTBEAT, HeartbeatMessage.deserialize)
            self._declare(HEARTBEAT, lambda known: known or beat)
        else:
            # In this order: what the parent gets from now on, it hands down.
            parent._layers.add(weakref.ref(self, parent._layers.discard))
            for number in list(parent.entries):
                self._refresh(number)

    def register(
        self,
        number: int,
        deserialize: Callable[[bytes], _MessageT],
        handler: Callable[[Context[_MessageT], Any], object] | None = None,
        *,
        dispatch: Dispatch | None = None,
    ) -> None:
        """Declare a message.

        Args:
            number: an int32; negative numbers are legal.
            deserialize: makes a message from the bytes of its value. If it raises, the connection
                is closed: `BadData` is the peer's fault, anything else is logged as an error.
            handler: called as ``handler(ctx, conn)`` for each message of this number.
            dispatch: where the handler runs: ``"auto"``, ``"pool"``, ``"inline"``; None as the
                connection does.

        Raises:
            AlreadyRegistered: the number is taken in this registry, and this is not the same
                declaration executed again.
            TypeError, ValueError: an argument is of the wrong type or out of range.
        """
        _check_number(number)
        check_callable("deserialize", deserialize, "data")
        if handler is not None:
            check_callable("handler", handler, "ctx", "conn")
        _check_dispatch(dispatch)
        new = Registration(number, deserialize, handler, dispatch, module_execution())
        self._declare(number, lambda known: _registered(known, new))

    def unregister(self, number: int) -> None:
        """Forget what this registry has for a number, its handler included.

        Messages of that number that come from now on are skipped, unless the registry inherits an
        entry from its parent: that takes effect again.

        Raises:
            NotRegistered: this registry has nothing of its own for the number.
            TypeError, ValueError: it is no message number, or that of the heartbeat in a registry
                without parent.
        """
        _check_number(number)
        if number == HEARTBEAT and self._parent is None:
            raise ValueError("the heartbeat cannot be unregistered")
        self._declare(number, lambda known: self._given_back(known, number))

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, Any, ResultT]:
        """Make the decorated function the handler of a message class.

        The class is registered on the way unless it already is. For a type checker the function
        takes a ``Context`` of that class. To have one function handle several classes, call this
        for each: ``registry.handler(Ping)(answer)``.

        Args:
            message_class: has ``message_number`` and a ``deserialize`` class method.
            dispatch: as for `register`.

        Raises:
            AlreadyRegistered: the number has a handler in this registry, or belongs to another
                class, and this is not the same declaration executed again.
            TypeError, ValueError: the class lacks a ``message_number`` or a ``deserialize``, or an
                argument is out of range.
        """
        number = getattr(message_class, "message_number", None)
        if number is None or isinstance(number, property):
            if not isinstance(message_class, type):
                raise TypeError(
                    "handler() takes a message class, as in @server.handler(ChatMessage), not "
                    f"{name_of(message_class)}"
                )
            raise TypeError(f"{name_of(message_class)} has no message_number")
        _check_number(number)
        deserialize = getattr(message_class, "deserialize", None)
        if deserialize is None:
            raise TypeError(f"{name_of(message_class)} has no deserialize(data) class method")
        check_callable("deserialize", deserialize, "data")
        _check_dispatch(dispatch)

        def decorate(function: _HandlerT) -> _HandlerT:
            check_callable("handler", function, "ctx", "conn")
            execution = module_execution()
            new = Registration(number, deserialize, function, dispatch, execution)
            self._declare(number, lambda known: _handled(known, new))
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

    # -- for layers. Nothing here locks: a finalizer or a signal handler may declare something in
    # the midst of another declaration. After an exception that a signal handler has raised, what
    # was interrupted can be repeated, which completes it.

    def _declare(
        self, number: int, change: Callable[[Registration | None], Registration | None]
    ) -> None:
        """Put ``change(known)`` in place of what this registry has, and hand it down."""
        own: AtomicReference[Registration | None] = AtomicReference(None)
        try:
            self._own.setdefault(number, own).update(change)
        finally:
            self._refresh(number)

    def _refresh(self, number: int) -> None:
        """Have the entry of a number follow what this registry and its parent say."""
        while True:
            source = self._source(number)
            if source is None:
                self.entries.pop(number, None)
            else:
                self.entries[number] = self._as_seen(source)
            # It may have changed meanwhile, and another thread been first to write that down.
            if self._source(number) is source:
                break
        for ref in list(self._layers):
            layer = ref()
            if layer is not None:
                layer._refresh(number)

    def _source(self, number: int) -> Registration | None:
        """Return what counts for a number: this registry's own, or its parent's."""
        own = self._own.get(number)
        found = None if own is None else own.get()
        if found is None and self._parent is not None:
            # Not by a ``get`` of a subclass, which may make something up.
            found = dict.get(self._parent.entries, number)
        return found

    def _given_back(self, known: Registration | None, number: int) -> None:
        if known is None:
            hint = ", but inherited: it goes where it was registered"
            raise NotRegistered(
                f"message number {number} is not registered here"
                f"{hint if number in self.entries else ''}"
            )

    def _new_entries(self) -> dict[int, Registration]:
        """Return what `entries` is to be; for subclasses."""
        return {}

    def _as_seen(self, registration: Registration) -> Registration:
        """Return what `entries` shows for a registration; for subclasses."""
        return registration


def _registered(known: Registration | None, new: Registration) -> Registration:
    """Return what is to take the place of ``known`` when a message is registered."""
    if known is None:
        return new
    if not _is_reload(known, new):
        raise AlreadyRegistered(
            f"message number {new.number} is registered twice: for {_place(known)}, and for "
            f"{_place(new)}"
        )
    # A handler that is not given was declared by itself, maybe in another module.
    return new.completed(known.handler, known.handler_declared, None)


def _handled(known: Registration | None, new: Registration) -> Registration:
    """Return what is to take the place of ``known`` when a handler is declared."""
    if known is None:
        return new
    _check_same_class(known, new)
    _check_no_handler(known, new)
    return new.completed(None, None, known.dispatch)


def _is_reload(known: Registration, new: Registration) -> bool:
    """Tell whether a whole registration is that of before, executed again."""
    if executed_again(known.declared, new.declared):
        return True
    renewed = same_definition(known.deserialize, new.deserialize)
    if not renewed and known.deserialize != new.deserialize:
        return False
    if known.handler is None or new.handler is None:
        return renewed
    if known.handler == new.handler:
        return renewed
    return same_definition(known.handler, new.handler)


def _check_same_class(known: Registration, new: Registration) -> None:
    """Raise unless a handler is declared for the class that the number belongs to."""
    if known.deserialize == new.deserialize or executed_again(known.declared, new.declared):
        return
    if not same_definition(known.deserialize, new.deserialize):
        raise AlreadyRegistered(
            f"message number {new.number} belongs to {_owner(known)}, so {_owner(new)}"
            " needs another number, or a registry of its own"
        )


def _check_no_handler(known: Registration, new: Registration) -> None:
    """Raise if the number has a handler, unless that is the same one, declared again."""
    if known.handler is None or executed_again(known.handler_declared, new.handler_declared):
        return
    class_is_new = known.deserialize != new.deserialize
    if not same_definition(known.handler, new.handler) and not (
        class_is_new and known.handler == new.handler
    ):
        raise AlreadyRegistered(
            f"message number {new.number} has a handler: {name_of(known.handler)}"
        )


def _owner(registration: Registration) -> str:
    """The class that a deserializer is of."""
    owner = getattr(registration.deserialize, "__self__", None)
    if isinstance(owner, type):  # and not the one that it has inherited it from
        return name_of(owner)
    return name_of(registration.deserialize).removesuffix(".deserialize")


def _place(registration: Registration) -> str:
    """The same with its module, as one may be loaded under two names."""
    owner = getattr(registration.deserialize, "__self__", registration.deserialize)
    module = getattr(owner, "__module__", None)
    return f"{module}.{_owner(registration)}" if isinstance(module, str) else _owner(registration)


def _check_number(number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"message_number must be an int, not {safe_repr(number)}")
    if not _MIN_NUMBER <= number <= _MAX_NUMBER:
        raise ValueError(f"message_number {number} does not fit an int32")


def _check_dispatch(dispatch: str | None) -> None:
    if dispatch not in (None, "auto", "pool", "inline"):
        raise ValueError(f"dispatch must be 'auto', 'pool' or 'inline', not {dispatch!r}")


#: The registry that every server and client inherits from unless it is given its own.
default_registry = Registry()


def register(
    number: int,
    deserialize: Callable[[bytes], _MessageT],
    handler: Callable[[Context[_MessageT], Any], object] | None = None,
    *,
    dispatch: Dispatch | None = None,
) -> None:
    """Declare a message in the default registry; see `Registry.register`."""
    default_registry.register(number, deserialize, handler, dispatch=dispatch)


def unregister(number: int) -> None:
    """Forget a message of the default registry; see `Registry.unregister`."""
    default_registry.unregister(number)
