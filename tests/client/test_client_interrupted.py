"""A client whose calls are interrupted: by an exception, a signal handler or a finalizer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tao.client.client import ClientConn, connect
from tao.errors import ConnectionClosed
from tao.server.server import Server
from tao.wire.message import Registry
from tests.ends import MakeServer, Text
from tests.injection import Interruption, opcodes
from tests.support import PATIENCE, ends, wait_until

MODULES = (
    "tao.client.client",
    "tao.client.reconnect",
    "tao.connection.core",
    "tao.connection.roles",
    "tao.connection.teardown",
    "tao.connection.greetings",
    "tao.connection.lifecycle",
)

# A socket that nobody has yet when an exception comes is closed by the garbage collector; and if it
# comes in a finalizer, the interpreter shows it.
pytestmark = [
    pytest.mark.interrupted,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Have it do so before anything is counted."""
    yield
    gc.collect()


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    """A server that says nothing."""
    return make_server(max_connections=10_000)[0]


def client_of(server: Server, **options: Any) -> ClientConn:
    """A client that would notice if its close had to wait for something that does not come."""
    return ClientConn(server.address, registry=Registry(), drain_timeout=1000, **options)


def test_an_exception_while_it_starts(server: Server) -> None:
    """It is as if start() had failed and can be called again, or the client is closed."""
    for moment in opcodes(*MODULES, step=2):
        client = client_of(server, on_connect=lambda conn: True, on_close=lambda conn: None)
        try:
            with moment.raising(Interruption):
                client.start()
        except Interruption:
            pass
        try:
            if not client.connected:
                client.start()
            assert client.connected, moment
        except ConnectionClosed as error:
            assert str(error) == "start() was interrupted", moment
        assert ends(client.close), moment
        assert client.wait_closed(PATIENCE), moment


def test_ctrl_c_in_on_connect(server: Server) -> None:
    """It reaches the caller of start(), as it came; the client may be started again."""
    interrupt = [KeyboardInterrupt]

    def on_connect(conn: Any) -> bool:
        if interrupt:
            raise interrupt.pop()
        return True

    client = client_of(server, on_connect=on_connect)
    with pytest.raises(KeyboardInterrupt):
        client.start()
    client.start()
    client.close()


def test_an_exception_while_an_interrupted_start_is_given_up(server: Server) -> None:
    """At each bytecode: whoever closes the client then need not wait for anybody."""

    def on_connect(conn: Any) -> bool:
        raise KeyboardInterrupt

    for moment in opcodes("tao.client.reconnect"):
        client = client_of(server, on_connect=on_connect)
        with suppress(KeyboardInterrupt, Interruption), moment.raising(Interruption):
            client.start()
        assert ends(client.close), moment
        assert client.wait_closed(PATIENCE), moment


def test_a_signal_handler_that_closes(server: Server) -> None:
    """Close may come in the midst of start and close; neither waits for the other."""
    for moment in opcodes(*MODULES, step=2):
        client = client_of(server)
        with moment.calling(client.close):
            try:
                client.start()
                client.close()
            except ConnectionClosed as error:
                assert str(error) == "closed by this side", moment
        assert client.wait_closed(PATIENCE), moment
        assert not client.connected


def test_an_exception_while_it_closes(server: Server) -> None:
    """Closing again completes it, whether it was started or not."""
    for started in (True, False):
        for moment in opcodes(*MODULES, step=2):
            client = client_of(server)
            if started:
                client.start()
            try:
                with moment.raising(Interruption):
                    client.close()
            except Interruption:
                pass
            assert ends(client.close), moment
            assert client.wait_closed(PATIENCE), moment


def test_a_finalizer_that_finds_a_forgotten_client(server: Server) -> None:
    """The garbage collector may find one inside of anything that another client does."""
    forgotten: list[ClientConn] = []
    modules = (
        *MODULES,
        "tao.runtime.timing_wheel",
        "tao.connection.timers",
        "tao.connection.send_queue",
        "tao.runtime.context",
    )
    for moment in opcodes(*modules, step=11):
        forgotten.append(connect(server.address, registry=Registry()))
        core = forgotten[0]._core
        with moment.calling(forgotten.clear), client_of(server) as client:
            client.run_after(1000, lambda due, conn: None)
            client.write(Text("x"))
        forgotten.clear()
        assert core.wait_closed(PATIENCE), moment
    wait_until(lambda: threading.active_count() < 50)
