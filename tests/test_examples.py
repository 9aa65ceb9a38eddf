"""Every example, run as a newcomer would: a server, clients, and how they end."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import struct
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

import tao
from examples.chat.messages import ChatMessage
from tests.cluster.redis_server import program
from tests.programs import LONG, ROOT, Program
from tests.support import recv_exactly, wait_until

NAMES = [
    *("chat", "echo", "pingpong", "timer", "embedded", "secure", "modbus", "fix"),
    *("redis", "mqtt", "mllp"),
]
#: Of these, which speak other protocols.
PROTOCOLS = ["modbus", "fix", "redis", "mqtt", "mllp"]
#: Of these, whose clients are other programs.
WITHOUT_CLIENT = {"redis", "mqtt", "mllp"}


def serve(name: str, *arguments: object) -> Program:
    if name == "pingpong":
        arguments = ("--monitor", 0, *arguments)
    return Program(f"examples.{name}.server", "--port", 0, *arguments)


def port_of(server: Program) -> int:
    return int(server.prints(r"listening at 127\.0\.0\.1 port (\d+); to talk to it: ")[1])


def client_of(name: str, server: Program, *arguments: object) -> Program:
    return Program(f"examples.{name}.client", "--port", port_of(server), *arguments)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """Return the directory for the certificates of the secure example."""
    return tmp_path / "certificates"


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name: str) -> None:
    """Each file is short; the chat server has at most 50 lines, as the documentation says."""
    for path in (ROOT / "examples" / name).glob("*.py"):
        most = 50 if path.match("chat/server.py") else 100 if name in PROTOCOLS else 75
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("name", NAMES)
def test_importing_starts_nothing(name: str) -> None:
    """Importing a server module starts nothing; it defines ``server`` for other programs."""
    server = importlib.import_module(f"examples.{name}.server").server
    assert isinstance(server, tao.Server)
    assert not server.running and server.address is None


@pytest.mark.parametrize("name", NAMES)
def test_a_port_in_use_is_reported_in_one_line(name: str, certificates: Path) -> None:
    """A server that cannot listen prints one line, without a traceback."""
    arguments = ("--certs", certificates) if name == "secure" else ()
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        serve(name, "--port", sock.getsockname()[1], *arguments) as server,
    ):
        assert server.status() == 1
    assert len(server.errors) == 1
    assert "address already in use" in server.errors[0]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"secure"} - WITHOUT_CLIENT))
def test_an_absent_server_is_reported_in_one_line(name: str) -> None:
    """A client that cannot connect prints one line, without a traceback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # the socket is bound, but does not listen
        with Program(f"examples.{name}.client", "--port", sock.getsockname()[1]) as client:
            assert client.status() == 1
    assert len(client.errors) == 1
    assert "connection refused" in client.errors[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_server(name: str, number: signal.Signals, certificates: Path) -> None:
    """Ctrl-C and SIGTERM shut it down gracefully with a connected peer, and its status is 0."""
    arguments = ("--certs", certificates) if name == "secure" else ()
    with serve(name, *arguments) as server:
        with socket.create_connection(("127.0.0.1", port_of(server)), LONG) as sock:
            server.send(number)
            try:
                while sock.recv(1024):
                    pass
            except ConnectionResetError:
                pass  # the connection was not accepted yet
        assert server.status() == 0
    if name == "embedded":
        assert server.errors[-1] == "workshop: closed"
    else:
        assert server.output[-1].startswith("stopped")
        assert server.errors == []


# -- chat


def test_all_clients_receive_each_message() -> None:
    """Three clients chat, and all receive every message in the same order."""
    with (
        serve("chat") as server,
        client_of("chat", server) as anna,
        client_of("chat", server) as ben,
        client_of("chat", server) as carl,
    ):
        for name, client in (("anna", anna), ("ben", ben), ("carl", carl)):
            client.prints("connected")
            client.type(f"I am {name}")
            client.prints(f"^I am {name}$")  # the server has accepted this client
        for client, line in ((anna, "hello"), (ben, "grüß dich"), (carl, "hi")):
            client.type(line)
            for other in (anna, ben, carl):
                other.prints(f"^{line}$")
        assert (
            anna.output[-3:] == ben.output[-3:] == carl.output[-3:] == ["hello", "grüß dich", "hi"]
        )


def test_chat_in_several_processes() -> None:
    """Each message reaches all clients, whichever process they are connected to."""
    words = ("serve", "examples.chat.server:server", "--port", 0, "--processes", 4)
    registry = tao.Registry()
    registry.register(ChatMessage.message_number, ChatMessage.deserialize)
    heard: list[list[str]] = [[] for _ in range(12)]
    with Program("tao", *words) as server, ExitStack() as stack:
        address = ("127.0.0.1", int(server.prints(r"listens at 127\.0\.0\.1:(\d+) ")[1]))
        clients = []
        for texts in heard:
            note = lambda message, _, texts=texts: texts.append(message.text)  # noqa: E731
            client = tao.connect(address, registry=registry, on_message=note)
            clients.append(stack.enter_context(client))
            client.write(ChatMessage("hello"))
            wait_until(lambda: "hello" in texts, LONG)  # noqa: B023 - its server has accepted it
        clients[0].write(ChatMessage("first"))
        wait_until(lambda: all(texts[-1] == "first" for texts in heard), LONG)
        clients[-1].write(ChatMessage("last"))
        wait_until(lambda: all(texts[-2:] == ["first", "last"] for texts in heard), LONG)
        assert server.interrupt() == 0


def test_bye_leaves() -> None:
    """A client that says bye is disconnected; the others stay connected."""
    with serve("chat") as server, client_of("chat", server) as stays:
        stays.prints("connected")
        with client_of("chat", server) as leaves:
            leaves.prints("connected")
            leaves.type("bye")
            assert leaves.status() == 0
        server.prints("client 2 left: peer closed")
        stays.type("alone now")
        stays.prints("^alone now$")
        assert leaves.errors == []


def test_the_end_of_the_input_leaves() -> None:
    """Lines typed before the end of input are sent; a last line without a line break is not."""
    with serve("chat") as server, client_of("chat", server) as hears:
        hears.prints("connected")
        hears.type("test")
        hears.prints("^test$")  # so the server has accepted it
        with client_of("chat", server) as leaves:
            leaves.type("last words")
            leaves.end_input()
            assert leaves.status() == 0
        hears.prints("^last words$")


def test_ctrl_c_in_a_client_is_quiet() -> None:
    """The client prints no traceback, and the server sees a graceful end."""
    with serve("chat") as server, client_of("chat", server) as client:
        client.prints("connected")
        assert client.interrupt() == 0
        assert client.errors == []
        server.prints("client 1 left: peer closed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_clients_see_that_the_server_is_gone(number: signal.Signals) -> None:
    """Clients report the lost server and end, without waiting for input."""
    with serve("chat") as server, client_of("chat", server) as client:
        client.prints("connected")
        server.prints("client 1 joined")
        server.send(number)
        assert client.status() == 1
        assert client.errors == ["the server is gone: peer closed"]


@pytest.mark.parametrize(
    ("name", "answer"), [("chat", "ping"), ("echo", "ping"), ("pingpong", "pong")]
)
def test_the_bytes_are_the_original_ones(name: str, answer: str) -> None:
    """The bytes are number 1 and UTF-8 text, in the framing of the Go original."""
    with (
        serve(name) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), LONG) as sock,
    ):
        sock.sendall(struct.pack("<iI", 1, 4) + b"ping")
        assert recv_exactly(sock, 12) == struct.pack("<iI", 1, 4) + answer.encode()


# -- several servers


@pytest.mark.skipif(program() is None, reason="neither redis-server nor valkey-server is installed")
def test_a_cluster() -> None:
    """What a client of one server says arrives at the client of the other one."""
    with Program("examples.cluster", "--port", 0) as cluster:

        def ports() -> list[str]:
            return re.findall(r"listens at 127\.0\.0\.1:(\d+) ", "\n".join(cluster.output))

        wait_until(lambda: len(ports()) == 2, LONG)
        anna, ben = (Program("examples.chat.client", "--port", port) for port in ports())
        with anna, ben:
            for name, client in (("anna", anna), ("ben", ben)):
                client.type(f"I am {name}")
                client.prints(f"^I am {name}$")  # its server is in the cluster
            anna.type("hello")
            ben.prints("^hello$")
        assert cluster.interrupt() == 0


# -- the other examples


def test_echo() -> None:
    """The client receives each of its messages once."""
    with serve("echo") as server, client_of("echo", server, "--count", 3, "straße") as client:
        assert client.status() == 0
        assert client.output == ["straße"] * 3


def test_pingpong_can_be_watched() -> None:
    """The monitor shows the client's activity."""
    with serve("pingpong") as server, client_of("pingpong", server, "--count", 100) as client:
        assert client.status() == 0
        client.prints("100 times ping and pong")
        url = server.prints(r"figures at (http://\S+)")[1]
        with urllib.request.urlopen(url, timeout=LONG) as page:
            assert json.load(page)["TotalHandle"] == 100


def test_the_time_service() -> None:
    """The server prints the time, and the client receives it."""
    with serve("timer") as server, client_of("timer", server, "--count", 1) as client:
        server.prints(r"^\d\d:\d\d:\d\d\.\d{6} UTC$")
        client.prints(r"^\d\d:\d\d:\d\d$")
        assert client.status() == 0


def test_the_server_embedded_in_an_existing_program() -> None:
    """The program's threads do the work and broadcast; its log includes tao's lines."""
    with serve("embedded") as server, client_of("embedded", server, 12, 18) as client:
        assert client.status() == 0
        client.prints("^the result is 6$")
        server.send(signal.SIGINT)
        assert server.status() == 0
    assert any(line.startswith("tao.server.core: listening at") for line in server.errors)


def test_mutual_tls(certificates: Path) -> None:
    """The server names its clients by the names in their certificates."""
    with serve("secure", "--certs", certificates) as server:
        for name in ("alice", "bob"):
            arguments = ("--certs", certificates, "--name", name)
            with client_of("secure", server, *arguments) as client:
                assert client.status() == 0
                client.prints(f"^{name}, I know that it was you")
            server.prints(f"^{name} is connected, by TLS")


def test_unknown_certificates_are_refused(certificates: Path, tmp_path: Path) -> None:
    """Both sides refuse a certificate from another authority."""
    others = tmp_path / "others"
    with (
        serve("secure", "--certs", certificates) as server,
        serve("secure", "--certs", others) as it,
    ):
        port_of(it)
        with client_of("secure", server, "--certs", others) as client:
            assert client.status() == 1
            assert len(client.errors) == 1
            assert "certificate" in client.errors[0]


def test_certificates_in_an_unsafe_directory_are_not_used(certificates: Path) -> None:
    """Both ends refuse a directory that other users can write to."""
    certificates.mkdir()
    certificates.chmod(0o777)
    for end in ("server", "client"):
        with Program(f"examples.secure.{end}", "--port", 1, "--certs", certificates) as program:
            assert program.status() == 1
            assert len(program.errors) == 1
            assert "must be yours alone" in program.errors[0]
    assert os.listdir(certificates) == []
