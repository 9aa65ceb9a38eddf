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
    monkeypatch.setattr("tao.server.server.default_registry", tao.Registry())


def test_the_chat_server_and_its_client(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one client says, all hear, and the server is at most 50 lines long."""
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
    assert "client 1 joined from" in capsys.readouterr().out


def test_embedding(capsys: pytest.CaptureFixture[str]) -> None:
    """The server starts, broadcasts and stops cleanly."""
    names = names_after(CHAT, block('server.start(("127.0.0.1", 0))  # port 0'))
    assert names["report"].clean


def json_lines() -> dict[str, Any]:
    """The names of the chat server, which speaks JSON lines."""
    return names_after(CHAT, block("class JsonLines"))


def test_a_codec_of_its_own() -> None:
    """JSON lines go in and out, and an unknown number is skipped."""
    names = json_lines()
    seen, server = Seen(), names["server"]

    @server.handler(names["ChatMessage"])
    def answer(ctx: Any, conn: Any) -> None:
        seen.add(ctx.message.text)
        conn.write(ctx.message)

    with server, socket.create_connection(server.start(("127.0.0.1", 0)), PATIENCE) as sock:
        sock.sendall(b'{"number": 2, "text": "unknown"}\n')
        line = b'{"number": 1, "text": "json"}\n'
        sock.sendall(line[:10])
        sock.sendall(line[10:])
        assert recv_exactly(sock, len(line)) == line
    assert seen.items == ["json"]
    assert server.snapshot().undefined == 1


@pytest.mark.parametrize(
    "line", [b"no JSON", b"[1]", b'{"number": []}', b'{"number": 1, "text": 2}', b"[" * 60000]
)
def test_the_codec_refuses_other_lines(line: bytes) -> None:
    """By BadData, which blames the peer, and after what came before."""
    decoder = json_lines()["JsonLines"]().decoder(tao.Registry())
    batch: list[Any] = []
    with pytest.raises(tao.BadData):
        decoder.feed(b'{"number": 7, "text": ""}\n' + line + b"\n", batch)
    assert batch == [(7, None)]


def test_the_codec_is_bounded() -> None:
    """A line that is too long is refused, before its end has come and after."""
    names = json_lines()
    long = b'{"number": 7, "text": "' + b"x" * 65536
    for data in (long, long + b'"}\n'):
        with pytest.raises(tao.BadData, match="longer than 65536 bytes"):
            names["JsonLines"]().decoder(tao.Registry()).feed(data, [])


def test_the_codec_is_linear() -> None:
    """It looks at each byte once, in however small pieces a line comes."""
    decoder, looked_at = json_lines()["JsonLines"]().decoder(tao.Registry()), []

    class Counted(bytearray):
        def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
            looked_at.append(len(self) - start)
            return super().find(wanted, start)

    decoder.rest = Counted()
    for _ in range(1000):
        decoder.feed(b"x", [])
    assert (sum(looked_at), decoder.pending) == (1000, 1000)


def test_every_block_is_run() -> None:
    """No code stands in the README that the tests above leave out."""
    assert len(BLOCKS) == 4


def test_it_is_a_front_page() -> None:
    """Short, and shown as it is by sites that have no other file of the repository."""
    assert len(README.splitlines()) <= 250
    directives = set(re.findall(r"^ *\.\. ([\w-]+)::", README, re.MULTILINE))
    assert directives == {"code-block"}


def test_what_it_points_at_exists() -> None:
    """The modules in the picture, and the pages of the guide, each of them."""
    modules = re.findall(r"tao/[\w/]+\.py", README)
    assert len(modules) > 5
    pages = re.findall(r"<(examples/[\w/.]+)>`_", README)
    for path in (*modules, *pages):
        assert (ROOT / path).exists(), path
    guide = (path.relative_to(ROOT) for path in ROOT.glob("examples/guide/*.rst"))
    assert {str(path) for path in guide if path.stem != "index"} == set(pages)


def test_the_commands_exist() -> None:
    """Each target of make, and each module that the README names, is there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for example in ("chat", "echo", "pingpong", "timer", "embedded", "secure"):
        assert example in README
        for end in ("server", "client"):
            assert (ROOT / "examples" / example / f"{end}.py").exists()
