"""The ten most common mistakes, and the errors that tao reports: each names cause and remedy."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from typing import Any

import pytest

import tao
from tests.ends import MakeServer, Seen, Text
from tests.programs import LONG, ROOT
from tests.support import wait_until


def test_a_port_in_use(make_server: MakeServer) -> None:
    """The error names the address, because a program may have several."""
    _, (host, port) = make_server()
    with pytest.raises(OSError, match=f"cannot listen at {host}:{port}: address already in use"):
        tao.Server().start((host, port))


def test_a_handler_with_the_wrong_signature() -> None:
    """The handler is refused when it is declared, and the error shows how it would be called."""
    server = tao.Server(registry=tao.Registry())

    def answer(message: Text) -> None:
        """A handler with one argument instead of two."""

    with pytest.raises(
        TypeError, match=r"answer cannot be called as handler\(ctx, conn\): too many"
    ):
        server.handler(Text)(answer)


def test_an_asynchronous_handler() -> None:
    """A coroutine function is refused in every form, because calling it only makes a coroutine."""
    server = tao.Server(registry=tao.Registry())

    async def answer(ctx: Any, conn: Any) -> None:
        """A handler for an event loop."""

    class Answer:
        async def __call__(self, ctx: Any, conn: Any) -> None:
            """The same as a method."""

    for handler in (answer, partial(answer), Answer()):
        with pytest.raises(TypeError, match=r"is asynchronous, but handler\(ctx, conn\) is called"):
            server.handler(Text)(handler)
    with pytest.raises(TypeError, match=r"answer is asynchronous, but on_message\(message, conn\)"):
        tao.Server(on_message=answer)


def test_a_handler_without_its_message_class() -> None:
    """The error shows how to write the decorator, whatever is given instead of the class."""
    server = tao.Server(registry=tao.Registry())

    def answer(ctx: Any, conn: Any) -> None:
        """A correct handler, but without a message class."""

    with pytest.raises(TypeError, match=r"as in @server\.handler\(ChatMessage\), not .*answer$"):
        server.handler(answer)
    with pytest.raises(TypeError, match=r"handler\(\) takes a message class, .* not 1$"):
        server.handler(1)


@pytest.mark.parametrize(
    ("option", "call"),
    [
        ("on_connect", "conn"),
        ("on_message", "message, conn"),
        ("on_close", "conn"),
        ("on_error", "conn, error"),
    ],
)
def test_a_callback_with_the_wrong_signature(option: str, call: str) -> None:
    """Callbacks are checked in the same way as handlers."""

    def callback() -> None:
        """A callback without arguments."""

    with pytest.raises(TypeError, match=rf"callback cannot be called as {option}\({call}\)"):
        tao.Server(**{option: callback})


def test_a_timer_with_the_wrong_signature(make_server: MakeServer) -> None:
    """Callbacks of timers are checked in the same way."""
    server, address = make_server()

    def callback(conn: Any) -> None:
        """A timer callback that lacks the argument for the time."""

    with tao.connect(address, registry=tao.Registry()) as client:
        for repeat in (server.schedule, client.run_every):
            with pytest.raises(TypeError, match=r"cannot be called as callback\(due, conn\): too"):
                repeat(1, callback)


def test_a_message_without_a_number() -> None:
    """The error names the class and the missing attribute."""

    class Nameless:
        @classmethod
        def deserialize(cls, data: bytes) -> Nameless:
            return cls()

    with pytest.raises(TypeError, match="Nameless has no message_number"):
        tao.Server(registry=tao.Registry()).handler(Nameless)


def test_text_instead_of_bytes(make_server: MakeServer) -> None:
    """``write`` raises an error that names the class and ``serialize``."""
    _, address = make_server()

    class Wrong(Text):
        def serialize(self) -> Any:
            return "text"

    with tao.connect(address, registry=tao.Registry()) as client:
        with pytest.raises(TypeError, match=r"Wrong\.serialize\(\) must return bytes, not str"):
            client.write(Wrong("text"))
        assert not client.closed


def test_connecting_before_the_server_is_up(make_server: MakeServer) -> None:
    """The error names address and reason; with ``keep_trying`` the server may start later."""
    server, (host, port) = make_server()
    server.stop()
    client = tao.ClientConn((host, port))
    with pytest.raises(tao.ConnectFailed, match=f"cannot connect to {host} port {port}: "):
        client.start()
    client.close()


def test_a_plain_client_to_a_tls_port(make_server: MakeServer) -> None:
    """Both sides report the mismatch; the client recognizes the answer as TLS."""
    errors = Seen()
    certificate = tao.self_signed_certificate("localhost")
    _, address = make_server(
        tls=certificate.server_config(), on_error=lambda conn, error: errors.add(str(error))
    )
    client = tao.connect(address, registry=tao.Registry(), heartbeat=None)
    client.write(Text("hello"))
    assert "the peer does not speak TLS" in errors.wait()[0]
    wait_until(lambda: client.closed)
    assert client.close_reason == "protocol error: the peer speaks TLS, but this side does not"
    client.close()


def test_a_tls_client_to_a_plain_port(make_server: MakeServer) -> None:
    """Both sides report the mismatch in this direction too."""
    reasons = Seen()
    _, address = make_server(on_close=lambda conn: reasons.add(conn.close_reason))
    config = tao.self_signed_certificate("localhost").client_config()
    client = tao.ClientConn(("localhost", address[1]), tls=config)
    with pytest.raises(tao.HandshakeFailed, match="does it speak TLS on this port"):
        client.start()
    client.close()
    assert "the peer speaks TLS, but this side does not" in reasons.wait()[0]


def test_blocking_in_on_connect(make_server: MakeServer) -> None:
    """It blocks only its own connection; others connect and disconnect meanwhile."""
    leave, first = threading.Event(), threading.Event()

    def slow_for_the_first(conn: Any) -> None:
        if not first.is_set():
            first.set()
            leave.wait()

    server, address = make_server(on_connect=slow_for_the_first)
    with tao.connect(address, registry=tao.Registry()):
        first.wait()
        with tao.connect(address, registry=tao.Registry()):
            wait_until(lambda: server.connection_count == 1)
        leave.set()


def test_forgetting_to_stop() -> None:
    """The program ends nevertheless."""
    program = (
        "import tao; server = tao.Server(); address = server.start(('127.0.0.1', 0));"
        "client = tao.connect(address); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_writing_after_the_close(make_server: MakeServer) -> None:
    """The error says which side closed the connection."""
    _, address = make_server()
    client = tao.connect(address, registry=tao.Registry())
    client.close()
    with pytest.raises(tao.ConnectionClosed, match="closed by this side"):
        client.write(Text("too late"))


def test_two_messages_with_one_number() -> None:
    """The error names both classes."""

    class Other:
        message_number = Text.message_number

        @classmethod
        def deserialize(cls, data: bytes) -> Other:
            return cls()

    class Derived(Text):
        """A subclass that does not define its own number."""

    registry = tao.Registry()
    registry.handler(Text)(lambda ctx, conn: None)
    for second in (Other, Derived):
        named = rf"belongs to Text, so .*{second.__name__} needs another"
        with pytest.raises(tao.AlreadyRegistered, match=named):
            registry.handler(second)(lambda ctx, conn: None)
