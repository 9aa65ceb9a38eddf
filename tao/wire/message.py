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
# (Context, Connection) -> None; written with Any because this layer imports neither.
Handler = Callable[[Any, Any], object]
_HandlerT = TypeVar("_HandlerT", bound=Handler)
_MessageT = TypeVar("_MessageT")
_ConnT = TypeVar("_ConnT")
#: The return type of a handler; the value is ignored.
ResultT = TypeVar("ResultT")


@runtime_checkable
class Message(Protocol):
    """An object that can be written to a connection. Subclassing is allowed but not needed.

    Attributes:
        message_number: identifies the message on the wire, an int32. Zero is the heartbeat.
    """

    # Read-only, so that type checkers accept a class attribute as well as an instance attribute.
    @property
    def message_number(self) -> int: ...

    def serialize(self) -> bytes:
        """Return the value of the message on the wire, without any header."""
        ...


class _Readable(Protocol):
    """A message that can be received: its class has a number and a ``deserialize``."""

    @property
    def message_number(self) -> int: ...

    def deserialize(self, data: bytes, /) -> Any: ...


class _ReadableByClass(Protocol):
    """The same with the number declared as a ``ClassVar``, which Pyright treats differently."""

    message_number: ClassVar[int]

    def deserialize(self, data: bytes, /) -> Any: ...


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


class Registration:
    """The entry of one message number: its deserializer and its handler.

    Attributes:
        number: the message number.
        deserialize: makes a message from the bytes of its value.
        handler: called with ``(ctx, conn)``; None: ``on_message`` is called instead.
        dispatch: ``"auto"``, ``"pool"`` or ``"inline"`` for this handler; None: the setting of
            the connection.
        trust: how far the handler is trusted to be quick; see ``connection/handler_trust.py``.
        declared, handler_declared: the module executions that declared the number and its handler,
            see ``reloading.py``.
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
        """Return a copy in which these values fill in what is missing here."""
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

    A number can be declared only once; a second declaration is an error. There are two exceptions:
    a module that is executed again, for example by ``importlib.reload``, and a function or class
    that is defined again under the same qualified name. The new declaration then replaces the old
    one, for open connections too.

    Args:
        parent: a registry whose entries this one inherits, including later ones, unless it has its
            own entry for the same number.
    """

    def __init__(self, parent: Registry | None = None) -> None:
        self._parent: Registry | None = parent
        # The declarations made here; None once a number was unregistered.
        self._own: dict[int, AtomicReference[Registration | None]] = {}
        # Each reference is removed when its layer dies, in any thread, so only operations that
        # CPython performs in one step are allowed on the set. (WeakSet takes several.)
        self._layers: set[weakref.ref[Registry]] = set()
        #: Number to registration, inherited ones included. Read-only; used by the decoders.
        self.entries: dict[int, Registration] = self._new_entries()
        if parent is None:
            beat = Registration(HEARTBEAT, HeartbeatMessage.deserialize)
            self._declare(HEARTBEAT, lambda known: known or beat)
        else:
            # Linked first, so that the parent passes on what is registered during the copy.
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
                is closed. `BadData` blames the peer; any other exception is logged as an error.
            handler: called as ``handler(ctx, conn)`` for each message of this number.
            dispatch: where the handler runs: ``"auto"``, ``"pool"``, ``"inline"``; None: the
                setting of the connection.

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
        """Remove this registry's entry for a number, including its handler.

        An entry inherited from the parent takes effect again. Without one, later messages of that
        number are skipped.

        Raises:
            NotRegistered: this registry has no entry of its own for the number.
            TypeError, ValueError: the number is invalid, or is the heartbeat's in a registry
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

        The class is registered too, unless it already is. Type checkers see that the function
        takes a ``Context`` of that class. To use one function for several classes, call this for
        each of them: ``registry.handler(Ping)(answer)``.

        Args:
            message_class: has ``message_number`` and a ``deserialize`` class method.
            dispatch: as for `register`.

        Raises:
            AlreadyRegistered: the number has a handler in this registry, or belongs to another
                class, and this is not the same declaration executed again.
            TypeError, ValueError: the class has no ``message_number`` or no ``deserialize``, or an
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
            NotRegistered: the number is not registered.
        """
        try:
            return self.entries[number]
        except KeyError:
            raise NotRegistered(f"message number {number} is not registered") from None

    def __contains__(self, number: object) -> bool:
        return number in self.entries

    # -- layers. There is no lock here, because a finalizer or a signal handler may declare a
    # message during another declaration. A declaration that was interrupted by an exception can be
    # repeated, which completes it.

    def _declare(
        self, number: int, change: Callable[[Registration | None], Registration | None]
    ) -> None:
        """Replace this registry's entry by ``change(known)``, and update the layers above."""
        own: AtomicReference[Registration | None] = AtomicReference(None)
        try:
            self._own.setdefault(number, own).update(change)
        finally:
            self._refresh(number)

    def _refresh(self, number: int) -> None:
        """Update the entry of a number from this registry and its parent."""
        while True:
            source = self._source(number)
            if source is None:
                self.entries.pop(number, None)
            else:
                self.entries[number] = self._as_seen(source)
            # Repeat if it has changed meanwhile: another thread may have written the newer entry
            # first.
            if self._source(number) is source:
                break
        for ref in list(self._layers):
            layer = ref()
            if layer is not None:
                layer._refresh(number)

    def _source(self, number: int) -> Registration | None:
        """Return the registration in effect: this registry's own, or its parent's."""
        own = self._own.get(number)
        found = None if own is None else own.get()
        if found is None and self._parent is not None:
            # Not the ``get`` of a subclass, which may invent entries.
            found = dict.get(self._parent.entries, number)
        return found

    def _given_back(self, known: Registration | None, number: int) -> None:
        if known is None:
            hint = ", but inherited: unregister it where it was registered"
            raise NotRegistered(
                f"message number {number} is not registered here"
                f"{hint if number in self.entries else ''}"
            )

    def _new_entries(self) -> dict[int, Registration]:
        """Return the dict for `entries`; for subclasses."""
        return {}

    def _as_seen(self, registration: Registration) -> Registration:
        """Return the value in `entries` for a registration; for subclasses."""
        return registration


def _registered(known: Registration | None, new: Registration) -> Registration:
    """Return the replacement for ``known`` when a message is registered."""
    if known is None:
        return new
    if not _is_reload(known, new):
        raise AlreadyRegistered(
            f"message number {new.number} is registered twice: for {_place(known)}, and for "
            f"{_place(new)}"
        )
    # Keep a handler that was declared separately, perhaps in another module.
    return new.completed(known.handler, known.handler_declared, None)


def _handled(known: Registration | None, new: Registration) -> Registration:
    """Return the replacement for ``known`` when a handler is declared."""
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
    """Raise unless the handler is for the class that the number belongs to."""
    if known.deserialize == new.deserialize or executed_again(known.declared, new.declared):
        return
    if not same_definition(known.deserialize, new.deserialize):
        raise AlreadyRegistered(
            f"message number {new.number} belongs to {_owner(known)}, so {_owner(new)}"
            " needs another number, or a registry of its own"
        )


def _check_no_handler(known: Registration, new: Registration) -> None:
    """Raise if the number has a handler, unless the same one is declared again."""
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
    """Return the name of the class that the deserializer belongs to."""
    owner = getattr(registration.deserialize, "__self__", None)
    if isinstance(owner, type):  # not the class that it inherits the method from
        return name_of(owner)
    return name_of(registration.deserialize).removesuffix(".deserialize")


def _place(registration: Registration) -> str:
    """Return the same name with its module, as a module may be loaded under two names."""
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
    """Register a message in the default registry; see `Registry.register`."""
    default_registry.register(number, deserialize, handler, dispatch=dispatch)


def unregister(number: int) -> None:
    """Remove a message from the default registry; see `Registry.unregister`."""
    default_registry.unregister(number)
