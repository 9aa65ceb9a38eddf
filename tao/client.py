"""The client, as the application holds it.

A client lives in two objects. Its threads hold the core (``reconnect.py``), and the application
holds a `ClientConn`, which holds the core. What belongs to the application (handlers, callbacks,
timers, values) is held by the `ClientConn`, and the core finds it by a weak reference: for it may
refer to the client, as a method of the object that has made the client does. So if the application
forgets a client without closing it, the garbage collector finds out, and the client is closed.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from datetime import datetime
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any

from tao.callables import check_callable, check_quickly
from tao.connection import Connection
from tao.context import Context
from tao.dialling import Dialler, Source
from tao.message import (
    Dispatch,
    Message,
    ReadableT,
    Registration,
    Registry,
    ResultT,
    default_registry,
)
from tao.metrics import Snapshot
from tao.option_help import takes_options
from tao.option_types import CommonOptions
from tao.options import ClientSettings, Reconnect, make_settings
from tao.places import places_of
from tao.reconnect import ClientCore, Owner
from tao.timers import ConnectionTimer, HasTimers

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tao.message import HandlerDecorator

__all__ = ["ClientConn", "ClientOptions", "connect"]


class ClientOptions(CommonOptions, total=False):
    """The options of a `ClientConn`, as a type for functions of your own; see `ServerOptions`."""

    on_connect: Callable[[ClientConn], object] | None
    on_message: Callable[[Any, ClientConn], object] | None
    on_close: Callable[[ClientConn], object] | None
    on_error: Callable[[ClientConn, BaseException], object] | None
    reconnect: bool | Reconnect
    connect_timeout: float
    source_address: tuple[str, int] | None
    socket_options: Collection[tuple[int, int, int | bytes]]
    server_hostname: str | None


class ClientConn(Connection):
    """A client's end of a connection. All methods may be called from any thread.

    With ``reconnect`` it outlives its transports: when one is lost it dials again; what was written
    meanwhile, and what was not wholly sent, waits and then goes out in order, after what
    ``on_connect`` writes. Timers and values stay; ``context`` is a new one for each. To the server
    each is a connection of its own: what came on the one before may still be handled beside what
    comes on the next, as order is kept within a connection only.

    Keep a reference to a client, and close it in the end. One that is forgotten, which means that
    nothing but its own handlers, callbacks, timers and values refers to it, is closed, with a
    `ResourceWarning`.

    In a child of ``os.fork`` one that was started is closed, see ``tao/forks.py``.

    Args:
        address: where to connect to: ``(host, port)``, the path of a Unix socket, a function that
            returns a connected socket, a socket that is connected already, or a list of these, each
            a server that will do; see ``dialling.py``. Names are resolved anew for each attempt.
            What is made of a socket belongs to the client.
        options: see `ClientOptions`; all are keyword-only.

    Raises:
        TypeError, ValueError: an option is unknown or wrong; the text names it.
    """

    # What is not found here, the core has: see __getattr__, and the end of this module.

    _core: ClientCore
    #: What this client knows beside the default registry, or the registry it was given.
    registry: Registry
    #: How many times the connection came back.
    reconnects: int

    @takes_options(ClientSettings, explain=True)
    def __init__(self, address: Any, **options: Unpack[ClientOptions]) -> None:
        """Make a client that is not started yet."""
        checked = make_settings(ClientSettings, "ClientConn", options)
        registry = checked.registry or Registry(default_registry)
        link = _Link(self)
        weak_options, weak_registry = _weak_options(checked, link), _WeakRegistry(registry, link)
        # Directly, as __setattr__ is for what comes later.
        own = self.__dict__
        own["registry"], own["_given"], own["_weak_registry"] = registry, checked, weak_registry
        own["_link"], own["_values"], own["_kept_timers"], own["_functions"] = link, {}, {}, []
        source = address if isinstance(address, Source) else self._dialler(address, weak_options)
        own["_core"] = ClientCore(source, weak_options, weak_registry, link, _caller())

    def __getattr__(self, name: str) -> Any:
        # Not called for what the class or the object has.
        try:
            core = self.__dict__["_core"]
        except KeyError:
            raise AttributeError(name) from None
        return getattr(core, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__ and hasattr(self.__dict__.get("_core"), name):
            setattr(self._core, name, value)
        else:
            super().__setattr__(name, value)

    def __del__(self) -> None:
        core = self.__dict__.get("_core")
        if core is not None and not sys.is_finalizing():
            core.forget(self)

    # -- what users call

    def start(self, keep_trying: bool = False) -> ClientConn:
        """Connect.

        Args:
            keep_trying: if nobody answers, go on in the background as after a lost connection
                (``reconnect`` must be set), and return at once; see `wait_connected`.

        Returns:
            the client itself, connected unless it keeps trying.

        Raises:
            ConnectFailed: nobody answered; it may be tried again.
            HandshakeFailed: TLS was not agreed upon.
            ConnectionClosed: closed meanwhile, or refused by ``on_connect``.
        """
        self._core.start(keep_trying)
        return self

    def close(self) -> None:
        """End the connection in order, for good, and wait until it has ended.

        What was written before is sent if there is a peer that reads it, within ``drain_timeout``;
        what came and was not handled yet is dropped. Back-off ends at once. Called by one of tao's
        threads (in a handler, say), or by a signal handler in the midst of a write to this very
        connection, it does not wait.
        """
        self._core.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._core.connected

    def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait until there is a connection, ``timeout`` seconds at most; tell whether there is.

        It also returns, False, when the client is closed.
        """
        return self._core.wait_connected(timeout)

    def write(self, message: Message, timeout: float | None = None) -> None:
        self._core.write(message, timeout)  # written out, as it is called for each message

    def handler(
        self, message_class: type[ReadableT], *, dispatch: Dispatch | None = None
    ) -> HandlerDecorator[ReadableT, ClientConn, ResultT]:
        """Make the decorated function the handler of a message class, on this client only."""
        return self.registry.handler(message_class, dispatch=dispatch)

    def value(self, key: Hashable) -> Any:
        return self._values.get(key)

    def set_value(self, key: Hashable, value: Any) -> None:
        self._values[key] = value

    def cancel_timer(self, timer_id: int) -> bool:
        cancelled = self._core.cancel_timer(timer_id)
        self._kept_timers.pop(timer_id, None)
        return cancelled

    def snapshot(self) -> Snapshot:
        """Return the figures of this client as they are now."""
        return self._core.snapshot()

    def __enter__(self) -> ClientConn:
        """Connect, unless that is done."""
        self._core.enter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- what is held here

    def _dialler(self, address: Any, options: ClientSettings) -> Dialler:
        """Return what connects to an address, whose functions are held here."""
        places = places_of(address)
        for place in places:
            if place.function is not None:
                self._functions.append(place.function)
                place.function = _weak_function(len(self._functions) - 1, self._link)
        return Dialler(places, options)

    run_at = HasTimers.run_at
    run_after = HasTimers.run_after
    run_every = HasTimers.run_every

    def _add_timer(self, seconds: float, callback: ConnectionTimer, *, periodic: bool) -> int:
        if not callable(callback):
            raise TypeError(f"a timer's callback must be callable, not {callback!r}")
        check = check_callable if periodic else check_quickly
        check("callback", callback, "due", "conn")
        timer = _Timer(callback)
        call = _weak_timer(timer, self._link, periodic)
        timer_id = self._core.add_timer(seconds, call, periodic=periodic)
        self._kept_timers[timer_id] = timer
        timer.number = timer_id
        if timer.over:  # it was due before this thread came so far
            self._kept_timers.pop(timer_id, None)
        return timer_id

    def _end(self) -> None:
        """The core has ended: no timer is called any more."""
        self._kept_timers.clear()
        # What this client has learned of the handlers, others begin with.
        for number, learned in list(self._weak_registry.entries.items()):
            entry = self.registry.entries.get(number)
            if entry is not None:
                entry.trust = learned.trust


class _Link(Owner):
    """The way from the core to the application's object, which that does not keep alive."""

    __slots__ = ("_client", "_forgotten")

    def __init__(self, client: ClientConn) -> None:
        self._client = weakref.ref(client)
        # Set when the application has forgotten it: for the calls that the end brings about.
        self._forgotten: ClientConn | None = None

    def find(self) -> ClientConn | None:
        """Return the object; None if it is gone, and so nothing of the core's runs any more."""
        client = self._forgotten
        return self._client() if client is None else client

    def keep(self, owner: ClientConn) -> None:
        self._forgotten = owner

    def end(self) -> None:
        client = self.find()
        if client is not None:
            client._end()
        self._forgotten = None


# -- handlers and callbacks that do not keep their client alive


def _weak_options(given: ClientSettings, link: _Link) -> ClientSettings:
    """Return options whose callbacks look for the client and call those that it was given."""

    def on_connect(conn: Any) -> object:
        client = link.find()
        return client is not None and client._given.on_connect(client)

    def on_message(message: Any, conn: Any) -> None:
        client = link.find()
        if client is not None:
            client._given.on_message(message, client)

    def on_close(conn: Any) -> None:
        client = link.find()
        if client is not None:
            client._given.on_close(client)

    def on_error(conn: Any, error: BaseException) -> None:
        client = link.find()
        if client is not None:
            client._given.on_error(client, error)

    callbacks = (on_connect, on_message, on_close, on_error)
    weak: dict[str, Any] = {each.__name__: each for each in callbacks}
    used = {name: weak[name] for name in weak if getattr(given, name) is not None}
    return replace(given, registry=None, **used)


def _weak_function(index: int, link: _Link) -> Callable[[], Any]:
    """Return a function that calls one of those by which a client connects."""

    def connect() -> Any:
        client = link.find()
        if client is None:
            raise ConnectionAbortedError("the client is gone")
        return client._functions[index]()

    return connect


class _WeakRegistry(Registry):
    """The messages that a client's registry knows, with handlers that look for the client."""

    def __init__(self, source: Registry, link: _Link) -> None:
        self._link = link
        self._seen = weakref.ref(source)
        super().__init__(source)
        self._parent = None  # as that holds the handlers

    def _new_entries(self) -> dict[int, Registration]:
        source = self._seen()
        if source is None or type(source.entries) is dict:
            return {}
        return _MoreEntries(self._found)  # it may know more than it lists

    def _source(self, number: int) -> Registration | None:
        source = self._seen()
        return None if source is None else dict.get(source.entries, number)

    def _as_seen(self, registration: Registration) -> Registration:
        number = registration.number
        weak = Registration(number, registration.deserialize, None, registration.dispatch)
        weak.trust = registration.trust
        if registration.handler is not None:
            weak.handler = _weak_handler(number, self._link)
        return weak

    def _found(self, number: int) -> Registration | None:
        source = self._seen()
        entry = None if source is None else source.entries.get(number)
        return None if entry is None else self._as_seen(entry)


class _MoreEntries(dict[int, Registration]):
    """Entries of a registry, and those that another finds although it does not list them."""

    def __init__(self, find: Callable[[int], Registration | None]) -> None:
        super().__init__()
        self._find = find

    def get(self, number: Any, default: Any = None) -> Any:
        entry = super().get(number)
        if entry is None and isinstance(number, int):
            entry = self._find(number)
        return default if entry is None else entry


def _weak_handler(number: int, link: _Link) -> Callable[[Context, Any], object]:
    """Return a handler that calls the one that the client's registry has for a number."""

    def handle(context: Context, conn: Any) -> None:
        client = link.find()
        if client is not None:
            entry = client.registry.entries.get(number)
            if entry is not None and entry.handler is not None:
                entry.handler(context, client)

    return handle


class _Timer:
    """A timer's callback, which the client holds."""

    __slots__ = ("__weakref__", "callback", "number", "over")

    def __init__(self, callback: ConnectionTimer) -> None:
        self.callback = callback
        self.number: int = 0  # once it is known
        self.over: bool = False  # it was called, and is not called again


def _weak_timer(timer: _Timer, link: _Link, periodic: bool) -> ConnectionTimer:
    """Return a callback that calls that of a timer if the client still has it."""
    found = weakref.ref(timer)

    def call(due: datetime, conn: Any) -> None:
        timer, client = found(), link.find()
        if timer is None or client is None:
            return
        if not periodic:
            timer.over = True
            client._kept_timers.pop(timer.number, None)
        timer.callback(due, client)

    return call


# -- what the core has


def _forward(kind: type[ClientConn]) -> None:
    """Have what a core can do, and a class does not define itself, asked of the core."""
    for name in dir(ClientCore):
        member = inspect.getattr_static(ClientCore, name)
        if name.startswith("__") or name in vars(kind):
            continue
        if isinstance(member, property):
            setattr(kind, name, _forwarded_property(name, member.__doc__))
        elif inspect.isfunction(member):
            setattr(kind, name, _forwarded_method(name, member))


def _forwarded_property(name: str, doc: str | None) -> property:
    return property(lambda self: getattr(self._core, name), doc=doc)


def _forwarded_method(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def forwarded(self: ClientConn, *args: Any, **options: Any) -> Any:
        return getattr(self._core, name)(*args, **options)

    return forwarded


_forward(ClientConn)


def _caller() -> tuple[str, int]:
    """Return file and line of the code outside of tao that called."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "tao"


@takes_options(ClientSettings)
def connect(address: Any, **options: Unpack[ClientOptions]) -> ClientConn:
    """Make a `ClientConn` and start it."""
    return ClientConn(address, **options).start()
