"""Every example, as a newcomer runs it: a server, clients, and how they end."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import struct
import urllib.request
from pathlib import Path

import pytest

import tao
from tests.programs import LONG, ROOT, Program
from tests.support import recv_exactly

NAMES = ["chat", "echo", "pingpong", "timer", "embedded", "secure"]


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
    """Where the secure example may put its certificates."""
    return tmp_path / "certificates"


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_in_one_go(name: str) -> None:
    """A few dozen lines each; the chat server, of which the documentation boasts, 50 at most."""
    for path in (ROOT / "examples" / name).glob("*.py"):
        most = 50 if path.match("chat/server.py") else 75
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("name", NAMES)
def test_importing_starts_nothing(name: str) -> None:
    """Each server module has its ``server``, for other programs to start."""
    server = importlib.import_module(f"examples.{name}.server").server
    assert isinstance(server, tao.Server)
    assert not server.running and server.address is None


@pytest.mark.parametrize("name", NAMES)
def test_a_port_in_use_is_one_line(name: str, certificates: Path) -> None:
    """A server that cannot listen says so, without a traceback."""
    arguments = ("--certs", certificates) if name == "secure" else ()
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        serve(name, "--port", sock.getsockname()[1], *arguments) as server,
    ):
        assert server.status() == 1
    assert len(server.errors) == 1
    assert "address already in use" in server.errors[0]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"secure"}))
def test_no_server_is_one_line(name: str) -> None:
    """A client that reaches nobody says so, without a traceback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # but it does not listen
        with Program(f"examples.{name}.client", "--port", sock.getsockname()[1]) as client:
            assert client.status() == 1
    assert len(client.errors) == 1
    assert "connection refused" in client.errors[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_stops_when_told(name: str, number: signal.Signals, certificates: Path) -> None:
    """Ctrl-C and SIGTERM stop it in order, with a peer connected, and its status is 0."""
    arguments = ("--certs", certificates) if name == "secure" else ()
    with serve(name, *arguments) as server:
        with socket.create_connection(("127.0.0.1", port_of(server)), LONG) as sock:
            server.send(number)
            try:
                while sock.recv(1024):
                    pass
            except ConnectionResetError:
                pass  # it was not accepted yet
        assert server.status() == 0
    if name == "embedded":
        assert server.errors[-1] == "workshop: closed"
    else:
        assert server.output[-1].startswith("stopped")
        assert server.errors == []


# -- chat


def test_what_one_says_all_hear() -> None:
    """Three clients chat, and each hears everything, in the same order."""
    with (
        serve("chat") as server,
        client_of("chat", server) as anna,
        client_of("chat", server) as ben,
        client_of("chat", server) as carl,
    ):
        for name, client in (("anna", anna), ("ben", ben), ("carl", carl)):
            client.prints("connected")
            client.type(f"I am {name}")
            client.prints(f"^I am {name}$")  # the server has accepted it
        for client, line in ((anna, "hello"), (ben, "grüß dich"), (carl, "hi")):
            client.type(line)
            for other in (anna, ben, carl):
                other.prints(f"^{line}$")
        assert (
            anna.output[-3:] == ben.output[-3:] == carl.output[-3:] == ["hello", "grüß dich", "hi"]
        )


def test_bye_leaves() -> None:
    """Who says bye is gone; those who stay go on."""
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
    """What was typed before is sent; a last line without an end is none."""
    with serve("chat") as server, client_of("chat", server) as hears:
        hears.prints("connected")
        hears.type("test")
        hears.prints("^test$")  # so the server has let it in
        with client_of("chat", server) as leaves:
            leaves.type("last words")
            leaves.end_input()
            assert leaves.status() == 0
        hears.prints("^last words$")


def test_ctrl_c_in_a_client_is_quiet() -> None:
    """No traceback, and the server sees an orderly end."""
    with serve("chat") as server, client_of("chat", server) as client:
        client.prints("connected")
        assert client.interrupt() == 0
        assert client.errors == []
        server.prints("client 1 left: peer closed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_clients_see_that_the_server_is_gone(number: signal.Signals) -> None:
    """They say so and end, though nobody types anything."""
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
    """Number 1 and UTF-8 text, in the original's framing."""
    with (
        serve(name) as server,
        socket.create_connection(("127.0.0.1", port_of(server)), LONG) as sock,
    ):
        sock.sendall(struct.pack("<iI", 1, 4) + b"ping")
        assert recv_exactly(sock, 12) == struct.pack("<iI", 1, 4) + answer.encode()


# -- the others


def test_echo() -> None:
    """The client gets back what it said, as often."""
    with serve("echo") as server, client_of("echo", server, "--count", 3, "straße") as client:
        assert client.status() == 0
        assert client.output == ["straße"] * 3


def test_pingpong_can_be_watched() -> None:
    """The monitor shows what the client did."""
    with serve("pingpong") as server, client_of("pingpong", server, "--count", 100) as client:
        assert client.status() == 0
        client.prints("100 times ping and pong")
        url = server.prints(r"figures at (http://\S+)")[1]
        with urllib.request.urlopen(url, timeout=LONG) as page:
            assert json.load(page)["TotalHandle"] == 100


def test_the_time_is_told() -> None:
    """The server prints it, the client gets it."""
    with serve("timer") as server, client_of("timer", server, "--count", 1) as client:
        server.prints(r"^\d\d:\d\d:\d\d\.\d{6} UTC$")
        client.prints(r"^\d\d:\d\d:\d\d$")
        assert client.status() == 0


def test_the_server_inside_an_old_program() -> None:
    """Its threads do the work and tell everyone; its log has tao's lines too."""
    with serve("embedded") as server, client_of("embedded", server, 12, 18) as client:
        assert client.status() == 0
        client.prints("^the result is 6$")
        server.send(signal.SIGINT)
        assert server.status() == 0
    assert any(line.startswith("tao.server.core: listening at") for line in server.errors)


def test_both_ends_are_known(certificates: Path) -> None:
    """The server calls its clients by the names in their certificates."""
    with serve("secure", "--certs", certificates) as server:
        for name in ("alice", "bob"):
            arguments = ("--certs", certificates, "--name", name)
            with client_of("secure", server, *arguments) as client:
                assert client.status() == 0
                client.prints(f"^{name}, I know that it was you")
            server.prints(f"^{name} is connected, by TLS")


def test_strangers_are_not_let_in(certificates: Path, tmp_path: Path) -> None:
    """A certificate of another authority is worth nothing, to either side."""
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


def test_certificates_of_others_are_not_used(certificates: Path) -> None:
    """A directory that others could write to is refused by both ends."""
    certificates.mkdir()
    certificates.chmod(0o777)
    for end in ("server", "client"):
        with Program(f"examples.secure.{end}", "--port", 1, "--certs", certificates) as program:
            assert program.status() == 1
            assert len(program.errors) == 1
            assert "must be yours alone" in program.errors[0]
    assert os.listdir(certificates) == []
