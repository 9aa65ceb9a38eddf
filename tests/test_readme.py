"""The README is correct: its code runs, and its commands, names and limits exist."""

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
from tests.documents import Block, blocks_of, run
from tests.ends import text
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
    """Give each program its own default registry."""
    monkeypatch.setattr("tao.server.server.default_registry", tao.Registry())


def test_the_chat_server_and_its_client(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clients receive what one says, and the server has at most 50 lines."""
    assert len(CHAT.code.splitlines()) <= 50
    names = names_after(CHAT)
    server = names["server"]
    address = server.start(("127.0.0.1", 0))
    with socket.create_connection(address, PATIENCE) as listener:
        listener.sendall(text("first"))
        assert recv_exactly(listener, 13) == text("first")
        # They are two files, and one imports the other.
        monkeypatch.setitem(sys.modules, "chat", SimpleNamespace(**names))
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
        run([CLIENT._replace(code=CLIENT.code.replace("12345", str(address[1])))], "client")
        assert recv_exactly(listener, 13) == text("hello")
    server.stop()
    assert "client 1 joined from" in capsys.readouterr().out


def test_embedding(capsys: pytest.CaptureFixture[str]) -> None:
    """The server starts, broadcasts and stops cleanly."""
    names = names_after(CHAT, block('server.start(("127.0.0.1", 0))  # port 0'))
    assert names["report"].clean


def test_a_protocol_in_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """It is Modbus, and a request arrives with its header."""
    protocol = block("f.Frame(")
    assert len(protocol.code[: protocol.code.index("device =")].strip().splitlines()) <= 11
    names = names_after(CHAT, protocol)
    with names["device"] as server:
        address = server.start(("127.0.0.1", 0))
        with socket.create_connection(address, PATIENCE) as sock:
            sock.sendall(bytes.fromhex("0001 0000 0006 11 03 006b 0003"))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
    assert capsys.readouterr().out == "unit 17 has no function 3\n"


def test_every_block_is_run() -> None:
    """The tests above run every block of code in the README."""
    assert len(BLOCKS) == 4


def test_it_is_a_front_page() -> None:
    """The README is short, and renders on sites without the other files of the repository."""
    assert len(README.splitlines()) <= 250
    directives = set(re.findall(r"^ *\.\. ([\w-]+)::", README, re.MULTILINE))
    assert directives == {"code-block"}


def test_what_it_points_at_exists() -> None:
    """The modules in the picture and the linked pages of the guide exist."""
    modules = re.findall(r"tao/[\w/]+\.py", README)
    assert len(modules) > 5
    pages = re.findall(r"<(examples/[\w/.]+)>`_", README)
    for path in (*modules, *pages):
        assert (ROOT / path).exists(), path
    guide = (path.relative_to(ROOT) for path in ROOT.glob("examples/guide/*.rst"))
    assert {str(path) for path in guide if path.stem != "index"} == set(pages)


def test_the_commands_exist() -> None:
    """Each target of make and each module that the README names exists."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for example in ("chat", "echo", "pingpong", "timer", "embedded", "secure", "modbus", "fix"):
        assert example in README
        for end in ("server", "client"):
            assert (ROOT / "examples" / example / f"{end}.py").exists()
