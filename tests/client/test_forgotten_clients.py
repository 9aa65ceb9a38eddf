"""A client that the application forgets without closing it: it is warned of, and closed."""

from __future__ import annotations

import gc
import socket
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn, connect
from tao.connection.options import Reconnect
from tao.testing import RecordingClient, serving
from tao.wire.message import Registry
from tests.ends import Seen, Text, text
from tests.support import PATIENCE, wait_until

SOON = Reconnect(initial=0.001, maximum=0.01)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A place to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE)
        yield made


class Application:
    """An object that holds a client, which holds it: by handlers, callbacks, timers and a value."""

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
    """Make something that nobody refers to, and have the garbage collector find out."""
    made = weakref.ref(make())
    # One of its callbacks may just be running.
    wait_until(lambda: gc.collect() >= 0 and made() is None)


@pytest.mark.parametrize("reconnect", [False, SOON], ids=["once", "reconnect"])
def test_it_is_warned_of_and_closed(listener: socket.socket, reconnect: Any) -> None:
    """The peer sees an orderly end, after what was written."""
    address = listener.getsockname()
    with pytest.warns(ResourceWarning, match="unclosed <ClientConn .*: open>") as warned:
        connect(address, registry=Registry(), reconnect=reconnect).write(Text("bye"))
    assert warned[0].filename == __file__
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        assert sock.makefile("rb").read() == text("bye")


def test_where_it_was_made(listener: socket.socket) -> None:
    """tracemalloc knows, if it runs."""
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
    """Whether who connected has ended in order."""
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        return not sock.makefile("rb").read()


@pytest.mark.parametrize("reconnect", [False, SOON], ids=["once", "reconnect"])
def test_what_refers_only_to_each_other_is_forgotten(
    listener: socket.socket, reconnect: Any
) -> None:
    """A client's own handlers, callbacks, timers and values are no reason to keep it."""
    closed = Seen()
    address = listener.getsockname()
    with pytest.warns(ResourceWarning, match="unclosed <ClientConn"):
        forget(lambda: Application(address, closed, reconnect=reconnect))
    assert closed.wait() == [(True, "forgotten without close()")]
    with listener.accept()[0] as sock:
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b""


def test_it_is_closed_while_it_dials(listener: socket.socket) -> None:
    """One that keeps trying gives up."""
    address = listener.getsockname()
    listener.close()
    with pytest.warns(ResourceWarning, match="unclosed <ClientConn"):
        client = ClientConn(address, registry=Registry(), reconnect=True)
        core = client._core
        client.start(keep_trying=True)
        del client
    assert core.wait_closed(PATIENCE)


def test_who_still_refers_to_it_keeps_it(listener: socket.socket) -> None:
    """A handler that keeps its connection, a method, a timer of a client that somebody holds."""
    closed = Seen()
    application = Application(listener.getsockname(), closed)
    heard, write = application.heard, application.client.write
    del application
    gc.collect()
    count = len(heard.items)
    heard.wait(count + 3)  # its timer goes on
    assert closed.items == []
    with listener.accept()[0] as sock:
        sock.sendall(text("hello"))
        wait_until(lambda: len(set(map(id, heard.items))) == 1)
    write.__self__.close()


def test_a_client_that_was_closed_or_never_started(listener: socket.socket) -> None:
    """There is nothing to warn of; nor is there of one whose peer has closed."""
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


def test_a_wrong_option_leaves_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """An object that was not made is not finalized as a client."""
    with pytest.raises(TypeError, match="no option"):
        ClientConn(("localhost", 1), nonsense=1)
    gc.collect()
    assert not recwarn.list


def test_a_recording_client_that_is_forgotten() -> None:
    """It is a client as well."""
    with serving(registry=Registry()) as server:
        with pytest.warns(ResourceWarning, match="unclosed"):
            forget(lambda: RecordingClient(server))
        wait_until(lambda: not server.connections)


def test_nothing_of_it_is_left(listener: socket.socket) -> None:
    """Once it has ended, the core and the object are freed as well."""
    with pytest.warns(ResourceWarning, match="unclosed"):
        application = Application(listener.getsockname(), Seen())
        core = weakref.ref(application.client._core)
        client = weakref.ref(application.client)
        del application
        wait_until(lambda: gc.collect() >= 0 and client() is None)
    wait_until(lambda: gc.collect() >= 0 and core() is None)


def test_attributes_are_those_of_the_client(listener: socket.socket) -> None:
    """What is set reaches the threads; what is an application's own stays with the client."""

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
