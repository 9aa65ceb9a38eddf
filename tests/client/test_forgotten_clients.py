"""A client that is garbage-collected without being closed: it is closed, with a warning."""

from __future__ import annotations

import gc
import socket
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn, connect
from tao.connection.options.definitions import Reconnect
from tao.errors import ConnectionClosed
from tao.testing import RecordingClient, serving
from tao.wire.message import Registry
from tests.ends import Seen, Text, text
from tests.injection import opcodes
from tests.support import PATIENCE, wait_until

SOON = Reconnect(initial=0.001, maximum=0.01)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE)
        yield made


class Application:
    """An object in a cycle with a client: through handlers, callbacks, timers and a value."""

    def __init__(self, address: Any, closed: Seen, **options: Any) -> None:
        self.heard = Seen()
        self._address = address
        self.client = ClientConn(
            self.dial,
            registry=Registry(),
            on_connect=self.hello,
            on_message=lambda message, conn: self.heard.add(conn),
            on_error=lambda conn, error: self.heard.add(error),
            on_close=lambda conn: closed.add((conn is self.client, conn.close_reason)),
            **options,
        )
        self.client.handler(Text)(self.hear)
        self.client.set_value("application", self)
        self.client.run_every(0.001, self.tick)
        self.client.run_after(1000, self.tick)
        self.client.start()

    def dial(self) -> socket.socket:
        return socket.create_connection(self._address)

    def hello(self, conn: Any) -> None:
        assert conn is self.client

    def hear(self, ctx: Any, conn: Any) -> None:
        self.heard.add(conn)

    def tick(self, due: Any, conn: Any) -> None:
        self.heard.add(conn)


def forget(make: Callable[[], Any]) -> None:
    """Create an object without references, and run the garbage collector."""
    made = weakref.ref(make())
    # One of its callbacks may just be running.
    wait_until(lambda: gc.collect() >= 0 and made() is None)


@pytest.mark.parametrize("reconnect", [False, SOON], ids=["once", "reconnect"])
def test_it_is_closed_with_a_warning(listener: socket.socket, reconnect: Any) -> None:
    """The peer sees a graceful end, after all written messages."""
    address = listener.getsockname()
    with pytest.warns(ResourceWarning, match="unclosed <ClientConn .*: open>") as warned:
        connect(address, registry=Registry(), reconnect=reconnect).write(Text("bye"))
    assert warned[0].filename == __file__
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        assert sock.makefile("rb").read() == text("bye")


def test_the_warning_says_where_it_was_created(listener: socket.socket) -> None:
    """The warning has the allocation traceback if tracemalloc is active."""
    tracemalloc.start(10)
    try:
        with pytest.warns(ResourceWarning) as warned:
            connect(listener.getsockname(), registry=Registry())
        made = tracemalloc.get_object_traceback(warned[0].source)
        assert made is not None and __file__ in {frame.filename for frame in made}
    finally:
        tracemalloc.stop()
    wait_until(lambda: ended(listener))


def ended(listener: socket.socket) -> bool:
    """Return whether the peer has closed gracefully."""
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        return not sock.makefile("rb").read()


@pytest.mark.parametrize("reconnect", [False, SOON], ids=["once", "reconnect"])
def test_cycles_are_collected(listener: socket.socket, reconnect: Any) -> None:
    """References from its own handlers, callbacks, timers and values do not keep a client alive."""
    closed = Seen()
    address = listener.getsockname()
    with pytest.warns(ResourceWarning, match="unclosed <ClientConn"):
        forget(lambda: Application(address, closed, reconnect=reconnect))
    assert closed.wait() == [(True, "forgotten without close()")]
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b""


def test_it_is_closed_while_it_dials(listener: socket.socket) -> None:
    """A client that keeps trying to connect is closed as well."""
    address = listener.getsockname()
    listener.close()
    with pytest.warns(ResourceWarning, match="unclosed <ClientConn"):
        client = ClientConn(address, registry=Registry(), reconnect=True)
        core = client._core
        client.start(keep_trying=True)
        del client
    assert core.wait_closed(PATIENCE)


def test_a_referenced_client_is_kept(listener: socket.socket) -> None:
    """References from a handler, a bound method or a timer of a live client keep it alive."""
    closed = Seen()
    application = Application(listener.getsockname(), closed)
    heard, write = application.heard, application.client.write
    del application
    gc.collect()
    count = len(heard.items)
    heard.wait(count + 3)  # its timer still fires
    assert closed.items == []
    with listener.accept()[0] as sock:
        sock.sendall(text("hello"))
        wait_until(lambda: len(set(map(id, heard.items))) == 1)
    write.__self__.close()


def test_a_client_that_was_closed_or_never_started(listener: socket.socket) -> None:
    """No warning is issued for them, nor for a client with a peer that has closed."""
    ClientConn(listener.getsockname(), registry=Registry())
    ClientConn(listener.getsockname(), registry=Registry()).close()
    with connect(listener.getsockname(), registry=Registry()):
        pass
    client = connect(listener.getsockname(), registry=Registry())
    listener.accept()[0].close()
    listener.accept()[0].close()
    assert client.wait_closed(PATIENCE)
    Application(listener.getsockname(), Seen()).client.close()
    gc.collect()


def refuse(conn: Any) -> None:
    raise ValueError("not this one")


@pytest.mark.parametrize("readers", ["own", "shared"])
@pytest.mark.parametrize("start", ["never", "nobody listens", "on_connect raises", "reset"])
def test_what_it_borrowed_is_not_left_to_the_collector(
    listener: socket.socket, start: str, readers: Any
) -> None:
    """A client that was not started, or could not be, needs no thread when it is dropped."""
    before = set(threading.enumerate())
    options: dict[str, Any] = {"on_connect": refuse} if start == "on_connect raises" else {}

    def connected() -> socket.socket:
        if start == "nobody listens":
            raise ConnectionRefusedError
        sock = socket.create_connection(listener.getsockname())
        if start == "reset":
            listener.accept()[0].close()
        return sock

    gc.disable()
    try:
        client = ClientConn(connected, registry=Registry(), readers=readers, **options)
        if start != "never":
            try:
                client.start()
                client.wait_closed(PATIENCE)
            except ConnectionClosed:
                pass
        del client
        wait_until(lambda: not set(threading.enumerate()) - before)
    finally:
        gc.enable()


def test_a_wrong_option_leaves_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """An object with a failed constructor is not finalized as a client."""
    with pytest.raises(TypeError, match="no option"):
        ClientConn(("localhost", 1), nonsense=1)
    gc.collect()
    assert not recwarn.list


def test_a_recording_client_that_is_forgotten() -> None:
    """A dropped `RecordingClient` is closed with a warning as well."""
    with serving(registry=Registry()) as server:
        with pytest.warns(ResourceWarning, match="unclosed"):
            forget(lambda: RecordingClient(server))
        wait_until(lambda: not server.connections)


def test_nothing_of_it_leaks(listener: socket.socket) -> None:
    """After the end, the core and the object are freed as well."""
    with pytest.warns(ResourceWarning, match="unclosed"):
        application = Application(listener.getsockname(), Seen())
        core = weakref.ref(application.client._core)
        client = weakref.ref(application.client)
        del application
        wait_until(lambda: gc.collect() >= 0 and client() is None)
    wait_until(lambda: gc.collect() >= 0 and core() is None)


def test_attributes_are_those_of_the_client(listener: socket.socket) -> None:
    """Options set later reach the threads; the application's own attributes stay on the client."""

    class Mine(ClientConn):
        def shout(self, words: str) -> None:
            self.write(Text(words.upper()))

    with Mine(listener.getsockname(), registry=Registry()) as client:
        client.name = "mine"
        client.something = object()  # type: ignore[attr-defined]
        assert client._core.name == "mine" and not hasattr(client._core, "something")
        assert repr(client).startswith("<Mine mine 127.0.0.1:")
        client.shout("hi")
        with listener.accept()[0] as sock:
            assert sock.recv(100) == text("HI")
        with pytest.raises(AttributeError, match="nothing"):
            client.nothing  # noqa: B018


@pytest.mark.parametrize("ticks", [True, False])
def test_one_that_was_never_started_ends_with_its_timers(ticks: bool) -> None:
    """And with the thread that these have, whether or not it is the first time that one is due."""
    ticked = Seen()
    client = ClientConn(("localhost", 1), registry=Registry())
    client.run_every(0.001 if ticks else 1000, lambda due, conn: ticked.add(due))
    if ticks:
        ticked.wait()
    core = client._core
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client
        gc.collect()
    assert core.finished.wait(PATIENCE) and not len(core.timers)


@pytest.mark.interrupted
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_exception_at_any_bytecode_of_a_finalizer() -> None:
    """Such as Ctrl-C: the client is closed all the same."""
    for moment in opcodes("tao.client.reconnect", "tao.runtime.timing_wheel"):
        client = ClientConn(("localhost", 1), registry=Registry())
        client.run_after(1000, lambda due, conn: None)
        core = client._core
        with moment.raising():
            client.__del__()
        assert core.finished.wait(PATIENCE), moment
