"""``tao connect`` with pipes: the messages it sends, and what it prints."""

from __future__ import annotations

import io
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tao
from tao.cli.main import main
from tests.ends import MakeServer
from tests.programs import LONG, ROOT, Program
from tests.support import recv_exactly, wait_until
from tests.tls_pairs import SERVER

Talk = Callable[..., int]


class Text:
    message_number = 1

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Text:
        return cls(data)


def echo(ctx: tao.Context, conn: tao.Connection) -> None:
    if ctx.message.data == b"bye":
        conn.close()
    else:
        conn.write(ctx.message)


@pytest.fixture
def server(make_server: MakeServer) -> tao.Server:
    """An echo server that closes the connection at "bye"."""
    return make_server(registry=echoing())[0]


def echoing() -> tao.Registry:
    registry = tao.Registry()
    registry.handler(Text)(echo)
    return registry


@pytest.fixture
def talk(server: tao.Server, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A function that connects to the server, sends lines, and returns the exit status."""

    def talk(lines: str, *options: object) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return main(["connect", tao_address(server), *map(str, options)])

    return talk


def tao_address(server: tao.Server) -> str:
    return f"127.0.0.1:{server.address[1]}"


@contextmanager
def answering(function: Callable[[], None]) -> Iterator[None]:
    """Run a function in a thread during the block."""
    thread = threading.Thread(target=function, name="test-answering")
    thread.start()
    yield
    thread.join(LONG)
    assert not thread.is_alive()


def test_a_conversation(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is sent, and each reply shown; comments and empty lines are skipped."""
    lines = '1 hello\n\n# no\n1 hex:00ff\r\n1 json:{"a": 1}\n1\n'
    assert talk(lines, "--replies", 4, "--wait", LONG) == 0
    output, errors = capsys.readouterr()
    assert output.splitlines() == [
        "< 1 (5 bytes) hello",
        "< 1 (2 bytes) hex:00ff",
        '< 1 (7 bytes) {"a":1}',
        "< 1 (0 bytes)",
    ]
    assert errors == ""


def test_a_question(make_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that begins with ? waits for its reply; a refusal is shown."""
    registry = tao.Registry()
    registry.handler(Text)(lambda ctx, conn: ctx.reply(ctx.message))
    server, _ = make_server(registry=registry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("?1 hello\n1 plain\n?9 nobody\n"))
        assert main(["connect", tao_address(server), "--replies", "2"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "= 1 (5 bytes) hello"
    assert "< 1 (5 bytes) plain" in output.out
    assert "no_handler" in output.err


def test_wrong_lines(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong line is reported in one line, and the next lines are still sent."""
    assert talk("hello\n1 hex:x\n1 fine", "--replies", 1, "--wait", LONG) == 0
    output, errors = capsys.readouterr()
    assert output == "< 1 (4 bytes) fine\n"
    first, second = errors.splitlines()
    assert first.startswith("tao: expected a message number") and second.startswith(
        "tao: expected pairs"
    )


def test_help_and_quit(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """``help`` lists the input forms; after ``quit`` nothing is read or waited for."""
    assert talk("help\nquit\nnonsense\n", "--wait", LONG) == 0
    output, errors = capsys.readouterr()
    assert "NUMBER hex:00ff10" in output and errors == ""


def test_the_end_of_input(talk: Talk) -> None:
    """At the end of input, it ends after ``--wait`` seconds, whatever has arrived."""
    assert talk("", "--wait", "0.01") == 0
    assert talk("", "--wait", "0") == 0


def test_a_missing_reply(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer replies than ``--replies`` are a failure."""
    assert talk("2 nobody knows this\n", "--replies", 1, "--wait", "0.01") == 1
    assert capsys.readouterr().err == "tao: received 0 of 1 replies within 0.01 s\n"


def test_an_absent_server(capsys: pytest.CaptureFixture[str]) -> None:
    """It is reported in one line, and the status is 1."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert main(["connect", f":{port}"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("tao: cannot connect to 127.0.0.1") and errors.count("\n") == 1
    assert errors.endswith("connection refused\n")


def test_a_lost_connection(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss is reported with status 1, even after the last line."""
    assert talk("1 hello\n1 bye\n", "--wait", LONG) == 1
    assert capsys.readouterr().err == "tao: connection lost: peer closed\n"


def test_a_connection_lost_after_all_replies(talk: Talk) -> None:
    """If all expected replies have arrived, the loss is not a failure."""
    assert talk("1 hello\n1 bye\n", "--wait", LONG, "--replies", 1) == 0


def test_a_connection_lost_while_waiting_for_a_line(server: tao.Server) -> None:
    """The loss is reported without waiting for a line."""
    with Program("tao", "connect", tao_address(server)) as program:
        program.type("1 hello")
        program.prints("< 1 .5 bytes. hello")
        server.stop()
        assert program.status() == 1
    assert program.errors == ["tao: connection lost: peer closed"]


def test_broken_data(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that cannot be decoded closes the connection, and the reason is shown."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG)

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"\xff" * 8)
                assert recv_exactly(sock, 1) == b""

        with answering(answer):
            assert main(["connect", f":{listener.getsockname()[1]}", "--wait", str(LONG)]) == 1
    assert "connection lost: protocol error: message -1 announces" in capsys.readouterr().err


def test_a_server_that_does_not_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that cannot be sent for a while is a failure."""
    monkeypatch.setattr("tao.cli.connect._PATIENCE", 0.05)
    monkeypatch.setattr("tao.cli.connect._DRAIN", 0.05)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"1 {'x' * 2**20}\n" * 40))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main(["connect", f":{listener.getsockname()[1]}"]) == 1
    assert capsys.readouterr().err == "tao: the server has not read anything for 0.05 s\n"


def test_too_long_a_message(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """A message that is too long is not sent, and the next one is."""
    lines = f"1 {'x' * (8 * 2**20 + 1)}\n1 short\n"
    assert talk(lines, "--replies", 1, "--wait", LONG) == 0
    output, errors = capsys.readouterr()
    assert output == "< 1 (5 bytes) short\n"
    assert errors == "tao: 8388609 bytes, the limit is 8388608\n"


def test_heartbeats(make_server: MakeServer) -> None:
    """Both ends send heartbeats; ``--heartbeats`` shows them."""
    server, _ = make_server(heartbeat=0.01)
    arguments = ("--heartbeats", "--heartbeat", "0.01")
    with Program("tao", "connect", tao_address(server), *arguments) as program:
        program.prints("^< heartbeat$")
        program.prints("^> heartbeat$")
        program.end_input()
        assert program.status() == 0


def test_heartbeats_unseen(make_server: MakeServer) -> None:
    """By default heartbeats are not shown, but still keep the connection open."""
    server, _ = make_server(heartbeat=0.01, idle_timeout=LONG)
    with Program("tao", "connect", tao_address(server), "--heartbeat", "0.01") as program:
        wait_until(lambda: server.snapshot().messages_in > 2, LONG)
        program.end_input()
        assert program.status() == 0
    assert program.output == program.errors == []


@pytest.fixture
def messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of messages in the current directory; removed from ``sys.modules`` afterwards."""
    source = (
        "import tao\nregistry = tao.Registry()\nregistry.register(1, lambda data: data[::-1])\n"
    )
    (tmp_path / "reversed_messages.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("reversed_messages", None)


@pytest.mark.usefixtures("messages")
def test_messages_that_are_known(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """The message that the module decodes is shown after the bytes."""
    options = ("--messages", "reversed_messages", "--replies", 1, "--wait", LONG)
    assert talk("1 abc\n", *options) == 0
    assert capsys.readouterr().out == "< 1 (3 bytes) abc = b'cba'\n"


def test_long_messages(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    """``--show`` limits how much of a message is shown."""
    assert talk("1 abcdef\n", "--show", 2, "--replies", 1, "--wait", LONG) == 0
    assert capsys.readouterr().out == "< 1 (6 bytes) ab ... and 4 more bytes\n"


@pytest.fixture
def certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The files of ``tao dev-cert``."""
    assert main(["dev-cert", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    return tmp_path


def secure(directory: Path) -> ssl.SSLContext:
    """Return the context of a server that requires client certificates."""
    files = [directory / name for name in ("server.pem", "server-key.pem", "ca.pem")]
    return tao.load_tls_config(files[0], files[1], client_ca=files[2])


def test_tls(
    make_server: MakeServer,
    certificates: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client with the authority's certificate and its own can connect."""
    server, _ = make_server(registry=echoing(), tls=secure(certificates))
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 hello\n"))
    monkeypatch.chdir(certificates)
    options = "--tls --ca ca.pem --cert client.pem --key client-key.pem --replies 1 --wait 60"
    assert main(["connect", tao_address(server), *options.split()]) == 0
    assert capsys.readouterr() == ("< 1 (5 bytes) hello\n", "")


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ("--tls", 1, "TLS handshake failed: the peer's certificate is refused"),
        ("--tls --insecure", 0, ""),
        ("--tls --insecure --server-name other.test", 0, ""),
        ("--tls --ca ca.pem --server-name other.test", 1, "Hostname mismatch"),
        ("", 1, "if the server expects TLS, add --tls"),
    ],
)
def test_which_server_is_trusted(
    make_server: MakeServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: str,
    status: int,
    words: str,
) -> None:
    """A certificate must be from the authority and for the name, unless ``--insecure`` is given."""
    monkeypatch.chdir(tmp_path)
    authority = tao.DevelopmentCA()
    Path("ca.pem").write_bytes(authority.certificate)
    tls = SERVER if "--ca" not in options else authority.issue().server_config()
    server, _ = make_server(registry=echoing(), tls=tls)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 a message long enough for TLS to look at\n"))
    words_of_call = ["connect", tao_address(server), "--replies", "1", "--wait", "60"]
    assert main([*words_of_call, *options.split()]) == status
    assert words in capsys.readouterr().err


def test_a_unix_socket(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address may be the path of a Unix socket."""
    path = str(tmp_path / "here.sock")
    make_server(path, registry=echoing())
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 hello\n"))
    assert main(["connect", path, "--replies", "1", "--wait", str(LONG)]) == 0


def test_ctrl_c(server: tao.Server) -> None:
    """Ctrl-C ends the command quietly."""
    with Program("tao", "connect", tao_address(server)) as program:
        program.type("1 hello")
        program.prints("hello")
        assert program.interrupt() == 130
    assert program.errors == []


def test_closed_standard_output(server: tao.Server) -> None:
    """The command ends without an error message."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tao", "connect", tao_address(server)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stdin
    process.stdout.close()
    process.stdin.write(b"1 hello\n")
    process.stdin.flush()
    assert process.wait(LONG) == 1
    _, errors = process.communicate()
    assert errors == b""


def test_input_that_is_not_utf_8(server: tao.Server) -> None:
    """Piped input may contain any bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "tao", "connect", tao_address(server), "--replies", "1"],
        cwd=ROOT,
        input=b"1 \xff\n",
        capture_output=True,
        check=False,
        timeout=LONG,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"< 1 (1 byte) hex:ff\n", b"")


def test_the_bytes_on_the_wire() -> None:
    """A line is one frame of the default codec, and the connection is closed gracefully."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG)
        with Program("tao", "connect", f":{listener.getsockname()[1]}") as program:
            sock, _ = listener.accept()
            with sock:
                program.type("-5 hello")
                frame = struct.pack("<iI", -5, 5) + b"hello"
                assert recv_exactly(sock, len(frame)) == frame
                program.type("quit")
                assert recv_exactly(sock, 1) == b""
            assert program.status() == 0


def test_sigterm(server: tao.Server) -> None:
    """SIGTERM ends the process as usual."""
    with Program("tao", "connect", tao_address(server)) as program:
        program.type("1 hello")
        program.prints("hello")
        program.send(signal.SIGTERM)
        assert program.status() == -signal.SIGTERM
