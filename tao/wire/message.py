"""Messages, and the registry that maps their numbers.

A message is any object with a ``message_number`` and a ``serialize()``. A deserializer is a
function that makes a message from bytes. A registry maps a number to a deserializer and a handler.

Registries form layers. Every server and client has its own registry on top of the default registry.
Declarations in the default registry are shared by all of them; those in a server's registry apply
to that server only. A layer keeps a flat copy of the entries that it inherits, so a lookup by the
decoder costs one ``dict.get`` a message.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeVar,
    cast,
    runtime_checkable,
)

from tao.atomic import AtomicReference
from tao.callables import check_callable, name_of
from tao.errors import NotRegistered
from tao.safe_text import number_text, safe_repr
from tao.wire.middleware import Chain, Middleware, Step, extended
from tao.wire.numbers import ANY_NUMBER, HEARTBEAT, MessageNumber, check_number
from tao.wire.registration import Deserializer, Handler, Registration, handled, registered
from tao.wire.reloading import module_execution

if TYPE_CHECKING:
    from tao.runtime.context import Context

__all__ = [
    "ANY",
    "HEARTBEAT",
    "AnyMessage",
    "Deserializer",
    "Dispatch",
    "Handler",
    "HeartbeatMessage",
    "Message",
    "MessageNumber",
    "MiddlewareT",
    "ReadableT",
    "Registration",
    "Registry",
    "ResultT",
    "UnknownMessage",
    "check_callable",
    "default_registry",
    "register",
    "unknown",
    "unregister",
]

_NANOSECONDS = struct.Struct("<q")

#: Number to registration. (`ANY` is among the keys if it has a handler.)
Entries = dict[Any, Registration]
#: Where a handler runs.
Dispatch = Literal["auto", "pool", "inline"]
MiddlewareT = TypeVar("MiddlewareT", bound=Middleware)
_HandlerT = TypeVar("_HandlerT", bound=Handler)
_MessageT = TypeVar("_MessageT")
_ConnT = TypeVar("_ConnT")
#: The return type of a handler; the value is ignored.
ResultT = TypeVar("ResultT")


@runtime_checkable
class Message(Protocol):
    """An object that can be written to a connection. Subclassing is allowed but not needed.

    Attributes:
        message_number: identifies the message on the wire. With tao's own framing it is an int32,
            and zero is the heartbeat; other codecs may have a str, bytes, or a tuple of these.
    """

    # Read-only, so that type checkers accept a class attribute as well as an instance attribute.
    @property
    def message_number(self) -> MessageNumber: ...

    def serialize(self) -> bytes:
        """Return the value of the message on the wire, without any header."""
        ...


class _MessageByClass(Protocol):
    """The same with the number declared as a ``ClassVar``, which Pyright treats differently."""

    message_number: ClassVar[Any]

    def serialize(self) -> bytes: ...


#: What can be written, as type checkers see it.
AnyMessage = Message | _MessageByClass


class _Readable(Protocol):
    """A message that can be received: its class has a number and a ``deserialize``."""

    @property
    def message_number(self) -> MessageNumber: ...

    def deserialize(self, data: Any, /) -> Any: ...


class _ReadableByClass(Protocol):
    """The same with the number declared as a ``ClassVar``, which Pyright treats differently."""

    message_number: ClassVar[Any]

    def deserialize(self, data: Any, /) -> Any: ...


#: A message whose class can be given to `Registry.handler`.
ReadableT = TypeVar("ReadableT", bound=_Readable | _ReadableByClass)


if TYPE_CHECKING:
    #: Takes a handler for one message class and one connection class, and returns it.
    HandlerDecorator = Callable[
        [Callable[[Context[_MessageT], _ConnT], ResultT]],
        Callable[[Context[_MessageT], _ConnT], ResultT],
    ]


class HeartbeatMessage:
    """Shows that its sender is alive. tao sends and receives it automatically.

    Args:
        timestamp: when it was sent, in nanoseconds since the Unix epoch; 0 if unknown.
    """

    __slots__ = ("timestamp",)
    message_number: ClassVar[int] = HEARTBEAT

    def __init__(self, timestamp: int) -> None:
        self.timestamp: int = timestamp

    def serialize(self) -> bytes:
        return _NANOSECONDS.pack(self.timestamp)

    @classmethod
    def deserialize(cls, data: bytes) -> HeartbeatMessage:
        """Accept a heartbeat of any length: it shows that the peer is alive, whatever it contains.

        The Go original encodes heartbeats in one buffer that its goroutines share, so a busy Go
        server occasionally sends one that is empty or twice as long.
        """
        if len(data) < _NANOSECONDS.size:
            return cls(0)
        return cls(_NANOSECONDS.unpack_from(data)[0])

    def __repr__(self) -> str:
        return f"HeartbeatMessage({self.timestamp})"


class UnknownMessage:
    """A message whose number is not registered; what a handler of `ANY` gets.

    Args:
        number: its message number.
        value: its value, which would be given to ``deserialize``: bytes with tao's own framing.
    """

    __slots__ = ("number", "value")

    def __init__(self, number: MessageNumber, value: Any) -> None:
        self.number: MessageNumber = number
        self.value: Any = value

    @property
    def message_number(self) -> MessageNumber:
        """The number, so that the message can be written to another connection."""
        return self.number

    def serialize(self) -> Any:
        return self.value

    if TYPE_CHECKING:

        @classmethod
        def deserialize(cls, data: Any) -> UnknownMessage: ...

    def __repr__(self) -> str:
        return f"UnknownMessage({number_text(self.number)}, {safe_repr(self.value)})"


#: Given to `Registry.handler`, stands for all numbers that are not registered.
ANY: type[UnknownMessage] = cast(Any, ANY_NUMBER)  # the class, for type checkers


def unknown(entries: Entries, number: MessageNumber, value: Any) -> UnknownMessage | None:
    """Return what a decoder appends for an unregistered number: None unless `ANY` has a handler."""
    return UnknownMessage(number, value) if ANY in entries else None


class Registry:
    """Message numbers with their deserializers and handlers. Any thread may register at any time.

    A number can be declared only once; a second declaration is an error. There are two exceptions:
    a module that is executed again, for example by ``importlib.reload``, and a function or class
    that is defined again under the same qualified name. The new declaration then replaces the old
    one, for open connections too.

    Args:
        parent: a registry whose entries this one inherits, including later ones, unless it has its
            own entry for the same number.
    """

    def __init__(self, parent: Registry | None = None) -> None:
        if parent is not None and not isinstance(parent, Registry):
            raise TypeError(f"the parent of a registry must be a Registry, not {parent!r}")
        self._parent: Registry | None = parent
        # The declarations made here; None once a number was unregistered.
        self._own: dict[Any, AtomicReference[Registration | None]] = {}
        # Raises if a number cannot occur in the protocol.
        self._check: Callable[[Any], object] | None = None
        # Each reference is removed when its layer dies, in any thread, so only operations that
        # CPython performs in one step are allowed on the set. (WeakSet takes several.)
        self._layers: set[weakref.ref[Registry]] = set()
        # The middleware declared here.
        self._used: AtomicReference[Chain] = AtomicReference(())
        #: The middleware in effect, the inherited first. Read-only.
        self.middleware: Chain = ()
        #: Number to registration, inherited ones included. Read-only; used by the decoders.
        self.entries: Entries = self._new_entries()
        if parent is not None:
            # Linked first, so that the parent passes on what is registered during the copy.
            parent._layers.add(weakref.ref(self, parent._layers.discard))
            self._compose()
            for number in list(parent.entries):
                self._refresh(number)

    def register(
        self,
        number: MessageNumber,
        deserialize: Callable[[Any], _MessageT],
        handler: Callable[[Context[_MessageT], Any], object] | None = None,
        *,
        dispatch: Dispatch | None = None,
    ) -> None:
        """Declare a message.

        Args:
            number: an int32 for tao's own framing, where negative numbers are legal; an int, str,
                bytes or a tuple of these for other codecs.
            deserialize: makes a message from its value, which is ``bytes`` unless the codec says
                otherwise. If it raises, the connection is closed. `BadData` blames the peer; any
                other exception is logged as an error.
            handler: called as ``handler(ctx, conn)`` for each message of this number.
            dispatch: where the handler runs: ``"auto"``, ``"pool"``, ``"inline"``; None: the
                setting of the connection.

        Raises:
            AlreadyRegistered: the number is taken in this registry, and this is not the same
                declaration executed again.
            TypeError, ValueError: an argument is of the wrong type or out of range.
        """
        self._check_number(number)
        check_callable("deserialize", deserialize, "data")
        if handler is not None:
            check_callable("handler", handler, "ctx", "conn")
        _check_dispatch(dispatch)
        new = Registration(number, deserialize, handler, dispatch, module_execution())
        self._declare(number, lambda known: registered(known, new))

    def unregister(self, number: MessageNumber | type[UnknownMessage]) -> None:
        """Remove this registry's entry for a number, including its handler.

        An entry inherited from the parent takes effect again. Without one, later messages of that
        number are skipped.

        Raises:
            NotRegistered: this registry has no entry of its own for the number.
            TypeError: the number is invalid.
        """
        if number is not ANY:
            check_number(number)
        self._declare(number, lambda known: self._given_back(known, number))

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, Any, ResultT]:
        """Make the decorated function the handler of a message class.

        The class is registered too, unless it already is. Type checkers see that the function
        takes a ``Context`` of that class. To use one function for several classes, call this for
        each of them: ``registry.handler(Ping)(answer)``.

        Args:
            message_class: has ``message_number`` and a ``deserialize`` class method. Or `ANY`: the
                function gets an `UnknownMessage` for each message whose number is not registered.
            dispatch: as for `register`.

        Raises:
            AlreadyRegistered: the number has a handler in this registry, or belongs to another
                class, and this is not the same declaration executed again.
            TypeError, ValueError: the class has no ``message_number`` or no ``deserialize``, or an
                argument is out of range.
        """
        number, deserialize = self._read(message_class)
        _check_dispatch(dispatch)

        def decorate(function: _HandlerT) -> _HandlerT:
            check_callable("handler", function, "ctx", "conn")
            execution = module_execution()
            new = Registration(number, deserialize, function, dispatch, execution)
            self._declare(number, lambda known: handled(known, new))
            return function

        return decorate

    def use(self, middleware: MiddlewareT) -> MiddlewareT:
        """Call a function around every handler, for open connections too; usable as a decorator.

        It is called as ``function(ctx, conn, call_next)`` in place of the handler, also of those
        that are declared later, of `ANY` and of ``on_message``. ``call_next(ctx, conn)`` calls the
        next function, or the handler; without it, the message is handled by nobody. The functions
        of a registry are called in the order in which they were added, after those that it
        inherits. Handler and functions together count as one handler, for ``dispatch`` and in the
        figures.

        Raises:
            AlreadyRegistered: the function is in use in this registry.
            TypeError: it cannot be called in that way.
        """
        check_callable("middleware", middleware, "ctx", "conn", "call_next")
        step = Step(middleware, module_execution())
        try:
            self._used.update(lambda chain: extended(chain, step))
        finally:
            self._compose()
        return middleware

    def lookup(self, number: MessageNumber | type[UnknownMessage]) -> Registration:
        """Return the registration of a number.

        Raises:
            NotRegistered: the number is not registered.
        """
        try:
            return self.entries[number]
        except KeyError:
            raise NotRegistered(f"message number {number_text(number)} is not registered") from None

    def __contains__(self, number: object) -> bool:
        return number in self.entries

    def restrict(self, check: Callable[[Any], object]) -> None:
        """Have ``check(number)`` refuse numbers that cannot occur in the protocol, by raising.

        It is called with each number that is declared here from now on, and was declared before.
        """
        for number in list(self._own):
            if number is not ANY:
                check(number)
        self._check = check

    def _check_number(self, number: Any) -> None:
        check_number(number)
        if self._check is not None:
            self._check(number)

    def _read(self, message_class: Any) -> tuple[Any, Deserializer]:
        """Return number and deserializer of a message class."""
        if message_class is ANY:
            return ANY, cast(Any, UnknownMessage)  # which is not called
        number = getattr(message_class, "message_number", None)
        if number is None or isinstance(number, property):
            if not isinstance(message_class, type):
                raise TypeError(
                    "handler() takes a message class, as in @server.handler(ChatMessage), not "
                    f"{name_of(message_class)}"
                )
            raise TypeError(f"{name_of(message_class)} has no message_number")
        self._check_number(number)
        deserialize = getattr(message_class, "deserialize", None)
        if deserialize is None:
            raise TypeError(f"{name_of(message_class)} has no deserialize(data) class method")
        check_callable("deserialize", deserialize, "data")
        return number, deserialize

    # -- layers. There is no lock here, because a finalizer or a signal handler may declare a
    # message during another declaration. A declaration that was interrupted by an exception can be
    # repeated, which completes it.

    def _declare(
        self, number: Any, change: Callable[[Registration | None], Registration | None]
    ) -> None:
        """Replace this registry's entry by ``change(known)``, and update the layers above."""
        own: AtomicReference[Registration | None] = AtomicReference(None)
        try:
            self._own.setdefault(number, own).update(change)
        finally:
            self._refresh(number)

    def _refresh(self, number: Any) -> None:
        """Update the entry of a number from this registry and its parent."""
        while True:
            source, middleware = self._source(number), self.middleware
            if source is None:
                self.entries.pop(number, None)
            else:
                self.entries[number] = self._as_seen(source.within(middleware))
            # Repeat if it has changed meanwhile: another thread may have written the newer entry
            # first.
            if self._source(number) is source and self.middleware is middleware:
                break
        for ref in list(self._layers):
            layer = ref()
            if layer is not None:
                layer._refresh(number)

    def _compose(self) -> None:
        """Update the middleware in effect, here and in the layers above, and all entries."""
        while True:
            used = self._used.get()
            inherited = () if self._parent is None else self._parent.middleware
            self.middleware = inherited + used
            if self._used.get() is used and (
                self._parent is None or self._parent.middleware is inherited
            ):
                break
        for number in list(self.entries):
            self._refresh(number)
        for ref in list(self._layers):
            layer = ref()
            if layer is not None:
                layer._compose()

    def _source(self, number: Any) -> Registration | None:
        """Return the registration in effect: this registry's own, or its parent's."""
        own = self._own.get(number)
        found = None if own is None else own.get()
        if found is None and self._parent is not None:
            # Not the ``get`` of a subclass, which may invent entries.
            found = dict.get(self._parent.entries, number)
        return found

    def _given_back(self, known: Registration | None, number: Any) -> None:
        if known is None:
            hint = ", but inherited: unregister it where it was registered"
            raise NotRegistered(
                f"message number {number_text(number)} is not registered here"
                f"{hint if number in self.entries else ''}"
            )

    def _new_entries(self) -> Entries:
        """Return the dict for `entries`; for subclasses."""
        return {}

    def _as_seen(self, registration: Registration) -> Registration:
        """Return the value in `entries` for a registration; for subclasses."""
        return registration


def _check_dispatch(dispatch: str | None) -> None:
    if dispatch not in (None, "auto", "pool", "inline"):
        raise ValueError(f"dispatch must be 'auto', 'pool' or 'inline', not {dispatch!r}")


#: The registry that every server and client inherits from unless it is given its own.
default_registry = Registry()


def register(
    number: MessageNumber,
    deserialize: Callable[[Any], _MessageT],
    handler: Callable[[Context[_MessageT], Any], object] | None = None,
    *,
    dispatch: Dispatch | None = None,
) -> None:
    """Register a message in the default registry; see `Registry.register`."""
    default_registry.register(number, deserialize, handler, dispatch=dispatch)


def unregister(number: MessageNumber | type[UnknownMessage]) -> None:
    """Remove a message from the default registry; see `Registry.unregister`."""
    default_registry.unregister(number)
