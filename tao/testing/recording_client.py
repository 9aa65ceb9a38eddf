"""A client that records what it receives, to check a server from outside."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tao.client.client import ClientConn, ClientOptions
from tao.connection.connection import core_of
from tao.connection.options.definitions import ClientSettings
from tao.connection.options.help import Shown, takes_options
from tao.runtime.deadline import Deadline
from tao.server.server import Server, server_core_of
from tao.testing.memory import MemoryClient
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import ANY, Deserializer, Registration, Registry, default_registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PATIENCE", "RecordingClient", "Unregistered"]

#: The default timeout in seconds; generous, for machines under load.
PATIENCE = 10.0

# How many messages an error text shows.
_SHOWN = 5

MessageT = TypeVar("MessageT")


class Unregistered:
    """Stands for a message that arrived with an unregistered number.

    Attributes:
        message_number: the number.
        data: the bytes of its value.
    """

    def __init__(self, message_number: Any, data: Any) -> None:
        self.message_number: Any = message_number
        self.data: Any = data


class RecordingClient:
    """A client that records received messages, for tests of a server.

    It connects when it is made. It uses the server's message registrations, including later ones,
    but not the handlers. It counts heartbeats, and sends none by default. Methods may be called
    from any thread.

    ::

        import tao
        from tao.testing import RecordingClient, serving

        class Line:
            message_number = 1

            def __init__(self, text):
                self.text = text

            def serialize(self):
                return self.text.encode()

            @classmethod
            def deserialize(cls, data):
                return cls(data.decode())

        with serving() as server:

            @server.handler(Line)
            def shout(ctx, conn):
                conn.write(Line(ctx.message.text.upper()))
                if ctx.message.text == "bye":
                    conn.close()

            with RecordingClient(server) as client:
                client.send(Line("hello"))
                client.expect(Line, text="HELLO")
                client.send(Line("bye"))
                client.expect(Line, text="BYE")
                assert client.expect_closed() == "peer closed"
                assert len(client.received) == 2

    Args:
        target: a listening server, whose first address, codec and messages are used; or an
            address.
        messages: additional message classes.
        registry: the messages to use; None: those of the server or of the default registry.
        memory: connect without a socket; the server need not listen.
        accepted: with a server, also wait until it has accepted the connection: its ``on_connect``
            has returned, it is in ``server.connections``, and its timers run.
        options: of the client, as for `ClientConn`; ``heartbeat`` is off by default.

    Raises:
        ConnectFailed, HandshakeFailed: as for `ClientConn.start`.
        TimeoutError: the server's ``on_connect`` has not returned in time.
    """

    @takes_options(ClientSettings, codec=Shown("the server's"), heartbeat=None)
    def __init__(
        self,
        target: Server | tuple[str, int] | str,
        *,
        messages: Collection[Any] = (),
        memory: bool = False,
        accepted: bool = True,
        **options: Unpack[ClientOptions],
    ) -> None:
        # Guards the fields below; notified when a message arrives, and at the end.
        self._changed = threading.Condition()
        self._received: list[Any] = []
        self._expected: int = 0  # how many of them `expect` has taken
        self._heartbeats: int = 0
        self._on_close_called: bool = False
        self._on_close = options.pop("on_close", None)
        source = options.get("registry") or (
            target.registry if isinstance(target, Server) else default_registry
        )
        codec = options.get("codec") or (
            server_core_of(target).settings.codec
            if isinstance(target, Server)
            else TypeLengthValueCodec()
        )
        known = _RecordingRegistry(
            source,
            self._record,
            self._count_heartbeat,
            getattr(codec, "is_heartbeat", lambda number: False),
        )
        for message_class in messages:
            known.know(message_class)
        options = {"heartbeat": None, **options, "registry": known, "on_close": self._closed}
        #: The connection itself.
        self.conn: ClientConn = _client(target, memory, options)
        self.conn.start()
        if accepted and isinstance(target, Server):
            self._wait_accepted(target)

    # -- sending

    def send(self, message: Any) -> None:
        """Send or queue a message, as `Connection.write` does."""
        self.conn.write(message)

    def send_bytes(self, data: bytes) -> None:
        """Send raw bytes, which need not be a valid message."""
        self.conn.write_frame(data)

    def close(self) -> None:
        """Close gracefully and wait for the end. Closing twice is harmless."""
        self.conn.close()

    def __enter__(self) -> RecordingClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- receiving

    @property
    def received(self) -> list[Any]:
        """All messages that have arrived so far, in order, except heartbeats."""
        with self._changed:
            return list(self._received)

    @property
    def heartbeats(self) -> int:
        """How many heartbeats were received."""
        return self._heartbeats

    @property
    def closed(self) -> bool:
        """Whether the connection is closed or closing, whichever side closed it."""
        return self.conn.closed

    @property
    def close_reason(self) -> str | None:
        """Why it is closed, for example ``"peer closed"``; None while it is open."""
        return self.conn.close_reason

    @overload
    def wait_for(self, what: int, timeout: float = PATIENCE) -> list[Any]: ...

    @overload
    def wait_for(self, what: Callable[[Any], object], timeout: float = PATIENCE) -> Any: ...

    def wait_for(self, what: Any, timeout: float = PATIENCE) -> Any:
        """Wait until messages have been received; earlier ones count as well.

        Args:
            what: a number of messages, or a function that returns true for the wanted one.
            timeout: in seconds.

        Returns:
            all messages so far, or the first one for which the function is true.

        Raises:
            AssertionError: it was not received in time, or the connection has ended without it.
        """
        if isinstance(what, int):
            if self._wait(lambda: len(self._received) >= what, timeout):
                return self.received
            wanted = f"{what} messages"
        else:
            found: list[Any] = []

            def look() -> bool:
                found[:] = [message for message in self._received if what(message)]
                return bool(found)

            if self._wait(look, timeout):
                return found[0]
            wanted = f"a message for which {getattr(what, '__qualname__', what)} is true"
        raise AssertionError(f"expected {wanted}, but {self._instead(timeout, 0)}")

    def expect(
        self, message_class: type[MessageT], timeout: float = PATIENCE, **attributes: Any
    ) -> MessageT:
        """Take the next message that no earlier `expect` has taken, and check it.

        Args:
            message_class: its required class.
            timeout: how long to wait for it, in seconds.
            attributes: its required attributes: ``client.expect(ChatMessage, text="hello")``.

        Raises:
            AssertionError: another message was received, or none in time, or the connection has
                ended.
        """
        wanted = _wanted(message_class, attributes)
        if not self._wait(lambda: len(self._received) > self._expected, timeout):
            raise AssertionError(f"expected {wanted}, but {self._instead(timeout, self._expected)}")
        with self._changed:
            before = self._received[: self._expected]
            message = self._received[self._expected]
            self._expected += 1
        right = isinstance(message, message_class) and all(
            hasattr(message, name) and getattr(message, name) == value
            for name, value in attributes.items()
        )
        if not right:
            raise AssertionError(
                f"expected {wanted}, but {_shown(message)} came; before it: {_listed(before)}"
            )
        matching: MessageT = message
        return matching

    def expect_closed(self, timeout: float = PATIENCE) -> str:
        """Wait until the connection has ended, and return the reason.

        Raises:
            AssertionError: it has not ended within ``timeout`` seconds.
        """
        if not self.conn.wait_closed(timeout):
            raise AssertionError(
                f"expected the connection to end, but after {timeout} s it has not; "
                f"received: {_listed(self.received)}"
            )
        return self.conn.close_reason or ""

    def __repr__(self) -> str:
        return f"<RecordingClient {len(self._received)} received, {self.conn!r}>"

    # -- inside

    def _wait_accepted(self, server: Server) -> None:
        """Wait until the server has done all it does before it reads, or has refused."""
        conn, never, deadline = self.conn, threading.Event(), Deadline(PATIENCE)
        # There is no signal for this, as only tests need it.
        while conn.connected and not any(
            core_of(each).welcomed and _port(each.remote_address) == _port(conn.local_address)
            for each in server.connections
        ):
            if deadline.expired:
                conn.close()
                raise TimeoutError(f"the server's on_connect has not returned after {PATIENCE} s")
            never.wait(0.001)

    def _record(self, ctx: Any, conn: Any) -> None:
        with self._changed:
            self._received.append(ctx.message)
            self._changed.notify_all()

    def _count_heartbeat(self, ctx: Any, conn: Any) -> None:
        with self._changed:
            self._heartbeats += 1
            self._changed.notify_all()

    def _closed(self, conn: Any) -> None:
        with self._changed:
            self._on_close_called = True
            self._changed.notify_all()
        if self._on_close is not None:
            self._on_close(conn)

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait for a condition on the messages, or for the end; return whether it is true."""
        # on_close is called when the last message has been handled.
        conn = self.conn
        with self._changed:
            self._changed.wait_for(
                lambda: condition() or (conn.closed and self._on_close_called), timeout
            )
            return condition()

    def _instead(self, timeout: float, since: int) -> str:
        with self._changed:
            before, after = self._received[:since], self._received[since:]
        reason = self.close_reason
        if reason is not None:
            what = f"the connection ended: {reason}"
        elif after or not since:
            what = f"it did not come within {timeout} s"
        else:
            what = f"nothing more came within {timeout} s"
        return f"{what}; received: {_listed(before + after)}"


class _RecordingRegistry(Registry):
    """Has the messages of another registry, with a recorder as their handler."""

    def __init__(
        self,
        source: Registry,
        record: Callable[[Any, Any], None],
        count_heartbeat: Callable[[Any, Any], None],
        is_heartbeat: Callable[[Any], bool],
    ) -> None:
        self._record = record
        self._count_heartbeat = count_heartbeat
        self._is_heartbeat = is_heartbeat
        super().__init__(source)

    def know(self, message_class: Any) -> None:
        """Register a message class, unless its number is registered."""
        number = message_class.message_number
        if number not in self:
            self.register(number, message_class.deserialize, self._record, dispatch="inline")

    def _new_entries(self) -> dict[Any, Registration]:
        return _Entries(self.entry)

    def _as_seen(self, registration: Registration) -> Registration:
        return self.entry(registration.number, registration.deserialize)

    def entry(self, number: Any, deserialize: Deserializer) -> Registration:
        """Return an entry that records the messages, or counts them if they are heartbeats."""
        beat = number is not ANY and self._is_heartbeat(number)
        record = self._count_heartbeat if beat else self._record
        return Registration(number, deserialize, record, "inline")


class _Entries(dict[Any, Registration]):
    """Entries of a registry whose `get` returns an entry for every number."""

    def __init__(self, entry: Callable[[Any, Deserializer], Registration]) -> None:
        super().__init__()
        self._entry = entry

    def get(self, number: Any, default: Any = None) -> Any:
        entry = super().get(number, default)
        if entry is None and isinstance(number, (int, str, bytes, tuple)):
            return self._entry(number, lambda data: Unregistered(number, data))
        return entry


def _client(target: Any, memory: bool, options: ClientOptions) -> ClientConn:
    if not isinstance(target, Server):
        if memory:
            raise TypeError(f"memory=True needs a Server, not {target!r}")
        return ClientConn(target, **options)
    if memory:
        return MemoryClient(target, **options)
    if target.address is None:
        raise ValueError("the server does not listen; start it, or say memory=True")
    address = target.address
    if isinstance(address, tuple):
        host, *rest = address
        address = ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), *rest)
    options = {"codec": server_core_of(target).settings.codec, **options}
    return ClientConn(address, **options)


def _port(address: Any) -> Any:
    """Return what distinguishes connections to one server, however its host is written."""
    return address[1] if isinstance(address, tuple) else address


def _wanted(message_class: type, attributes: dict[str, Any]) -> str:
    return (
        f"{message_class.__name__}({_assignments(attributes)})"
        if attributes
        else (f"a {message_class.__name__}")
    )


def _shown(message: Any) -> str:
    """Format a message: by its own ``repr``, or by its attributes if it has none."""
    kind: Any = type(message)
    if kind.__repr__ is object.__repr__:
        return f"{kind.__name__}({_assignments(getattr(message, '__dict__', {}))})"
    return reprlib.repr(message)


def _assignments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={reprlib.repr(value)}" for name, value in values.items())


def _listed(messages: list[Any]) -> str:
    """Format the last few messages."""
    if not messages:
        return "nothing"
    left_out = len(messages) - _SHOWN
    shown = ", ".join(map(_shown, messages[-_SHOWN:]))
    return f"{left_out} messages, then {shown}" if left_out > 0 else shown
