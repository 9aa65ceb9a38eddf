"""What the README shows is true: its code runs, its commands, names and limits exist."""

from __future__ import annotations

import io
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tao
from tao.options import ClientSettings, ServerSettings
from tests.documents import Block, blocks_of, run
from tests.ends import Seen, text
from tests.support import PATIENCE, recv_exactly

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")
BLOCKS = blocks_of(ROOT / "README.rst")


def names_after(*blocks: Block) -> dict[str, Any]:
    """Run blocks of the README one after another, as one program, and return its names."""
    return run(list(blocks), "readme", tao=tao)


def block(containing: str) -> Block:
    (found,) = [each for each in BLOCKS if containing in each.code]
    return found


CHAT, CLIENT = block("def pass_on"), block("reconnect=True")


@pytest.fixture(autouse=True)
def fresh_default_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program has the default registry to itself."""
    monkeypatch.setattr("tao.server.default_registry", tao.Registry())


def test_the_chat_server_and_its_client(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one says, all hear, and the server is at most 50 lines long."""
    assert len(CHAT.code.splitlines()) <= 50
    names = names_after(CHAT)
    server = names["server"]
    address = server.start(("127.0.0.1", 0))
    with socket.create_connection(address, PATIENCE) as listener:
        listener.sendall(text("first"))
        assert recv_exactly(listener, 13) == text("first")
        # They are two files, of which one imports the other.
        monkeypatch.setitem(sys.modules, "chat", SimpleNamespace(**names))
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
        run([CLIENT._replace(code=CLIENT.code.replace("12345", str(address[1])))], "client")
        assert recv_exactly(listener, 13) == text("hello")
    server.stop()
    assert "client 1 came from" in capsys.readouterr().out


def test_embedding(capsys: pytest.CaptureFixture[str]) -> None:
    """The server starts, broadcasts and stops cleanly."""
    names = names_after(CHAT, block('server.start(("127.0.0.1", 0))  # port 0'))
    assert names["report"].clean


def test_tls() -> None:
    """The lines on TLS make a connection, by TLS 1.3 as they say."""
    names_after(block("self_signed_certificate"))


def test_heartbeats_and_coming_back() -> None:
    """The options and calls exist and work together."""
    names_after(CHAT, block("idle_timeout=15"))


def test_a_codec_of_its_own() -> None:
    """JSON lines go in and out."""
    names = names_after(CHAT, block("class JsonLines"))
    seen, server = Seen(), names["server"]

    @server.handler(names["ChatMessage"])
    def answer(ctx: Any, conn: Any) -> None:
        seen.add(ctx.message.text)
        conn.write(ctx.message)

    with server, socket.create_connection(server.start(("127.0.0.1", 0)), PATIENCE) as sock:
        line = b'{"number": 1, "text": "json"}\n'
        sock.sendall(line[:10])
        sock.sendall(line[10:])
        assert recv_exactly(sock, len(line)) == line
    assert seen.items == ["json"]


def test_every_block_is_run() -> None:
    """No code stands in the README that the tests above leave out."""
    assert len(BLOCKS) == 6


def test_the_table_of_names_is_right() -> None:
    """Each name on the right of the table exists, as a name of tao's, a method or an option."""
    table = README.split("What the original has")[1].split("On the wire")[0]
    right = " ".join(line[39:] for line in table.splitlines())
    owners = (tao, tao.Server, tao.ClientConn, tao.Context, ServerSettings, ClientSettings)
    for name in re.findall(r"``@?(?:server\.|conn\.)?([A-Za-z_]\w*)", right):
        assert (
            name == "ctx"
            or any(hasattr(each, name) for each in owners)
            or name in (ServerSettings.__dataclass_fields__ | ClientSettings.__dataclass_fields__)
        ), name


def test_the_limits_are_right() -> None:
    """Each default that the table of limits gives is the default."""
    table = README.split("Limits, and what")[1]
    options = ServerSettings()
    for name, value in re.findall(r"``(\w+)``,? \((\d+)(?: s)?\)", table):
        assert getattr(options, name) == float(value), name
    for name, value in re.findall(r"\(``(\w+)``, (\d+)\)", table):
        assert getattr(options, name) == float(value), name
    for name in re.findall(r"``(\w+)`` \(off\)", table):
        assert getattr(options, name) is None, name
    assert tao.TypeLengthValueCodec().max_bytes == 8 * 1024 * 1024


def test_the_commands_exist() -> None:
    """Each target of make, and each module that the README names, is there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for example in ("chat", "echo", "pingpong", "timer", "embedded", "secure"):
        assert f"{example}" in README
        for end in ("server", "client"):
            assert (ROOT / "examples" / example / f"{end}.py").exists()
