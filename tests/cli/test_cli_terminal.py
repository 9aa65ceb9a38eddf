"""The command line on a terminal: line editing, progress bars and tables, with and without rich."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import tao
from tests.ends import MakeServer
from tests.programs import LONG, ROOT
from tests.support import wait_until

pytest.importorskip("readline")


class Text:
    message_number = 1

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Text:
        return cls(data)


class Terminal:
    """``python -m tao`` on its own terminal. Use it in a ``with`` block."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self._screen, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(directory)}
        environment |= {"TERM": "xterm", "INPUTRC": os.devnull}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tao", *map(str, arguments)],
            stdin=end,
            stdout=end,
            stderr=end,
            cwd=directory,
            env=environment,
        )
        os.close(end)
        # Guards the two fields below; notified of each change.
        self._changed = threading.Condition()
        self.text: str = ""
        self._over: bool = False
        self._reader = threading.Thread(target=self._read, name="test-terminal")
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                piece = os.read(self._screen, 65536)
            except OSError:  # the program has ended
                piece = b""
            data += piece
            with self._changed:
                self.text, self._over = data.decode(errors="replace"), not piece
                self._changed.notify_all()
            if not piece:
                return

    def shows(self, pattern: str) -> None:
        """Wait until the screen shows a text that matches the pattern."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or re.search(pattern, self.text), LONG)
            assert re.search(pattern, self.text), self.text

    def type(self, keys: str) -> None:
        """Type when the program reads a line: until then the terminal would interpret the keys.

        It would turn Ctrl-D, for instance, into an end of input of which readline sees a zero.
        """
        wait_until(lambda: not termios.tcgetattr(self._screen)[3] & termios.ICANON)
        os.write(self._screen, keys.encode())

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def status(self) -> int:
        """Wait until the program has ended and its output is complete; return its exit status."""
        status = self._process.wait(LONG)
        self._reader.join(LONG)
        return status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self.status()
        os.close(self._screen)


@pytest.fixture
def server(make_server: MakeServer) -> tao.Server:
    """An echo server."""
    registry = tao.Registry()
    registry.handler(Text)(lambda ctx, conn: conn.write(ctx.message))
    return make_server(registry=registry, queue_size=4096)[0]


@pytest.fixture
def console(server: tao.Server, tmp_path: Path) -> Callable[..., Terminal]:
    """A function that connects a console to the server."""
    address = f"127.0.0.1:{server.address[1]}"
    return lambda *options: Terminal(tmp_path, "connect", address, *options)


Console = Callable[..., Terminal]


@pytest.fixture(params=["with rich", "without rich"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A current directory, in which rich is installed or cannot be imported."""
    if request.param == "without rich":
        (tmp_path / "rich.py").write_text("raise ImportError('no rich')\n", encoding="utf-8")
    else:
        pytest.importorskip("rich")
    return tmp_path


def test_a_conversation(console: Console, tmp_path: Path) -> None:
    """Lines can be edited, are kept in the history, and Ctrl-D ends the console."""
    with console() as terminal:
        terminal.shows(r"connected to 127\.0\.0\.1:\d+ \(no TLS\); try help")
        terminal.type("1 helo\x1b[Dl\r")  # moves one to the left
        terminal.shows(r"< 1 \(5 bytes\) hello")
        terminal.type("\x04")
        assert terminal.status() == 0
    assert (tmp_path / ".tao_history").read_text(encoding="utf-8") == "1 hello\n"
    with console() as terminal:
        terminal.shows("> ")
        terminal.type("\x1b[A\r")  # recalls the previous line
        terminal.shows(r"< 1 \(5 bytes\) hello")
        terminal.type("quit\r")
        assert terminal.status() == 0


def test_a_message_while_a_line_is_typed(console: Console, server: tao.Server) -> None:
    """The message is shown above the line that is being typed, which does not change."""
    with console() as terminal:
        terminal.shows("> ")
        terminal.type("1 ab")
        terminal.shows("> 1 ab")
        wait_until(lambda: server.connection_count)
        server.broadcast(Text(b"news"))
        terminal.shows(r"\r\x1b\[K< 1 \(4 bytes\) news\r\n> 1 ab")
        terminal.type("c\r")
        terminal.shows(r"< 1 \(3 bytes\) abc")


def test_a_lost_connection(console: Console, server: tao.Server) -> None:
    """The loss ends the console without input, and the terminal settings are restored."""
    with console() as terminal:
        terminal.shows("> ")
        before = termios.tcgetattr(terminal._screen)
        terminal.type("1 ab")
        terminal.shows("> 1 ab")
        wait_until(lambda: server.connection_count)
        server.stop()
        terminal.shows("tao: connection lost: peer closed")
        assert termios.tcgetattr(terminal._screen)[3] & termios.ECHO
        assert terminal.status() == 1
    assert before[3] & termios.ICANON == 0


def test_ctrl_c(console: Console) -> None:
    """Ctrl-C ends the console quietly."""
    with console() as terminal:
        terminal.shows("> ")
        terminal.type("1 hello\r")
        terminal.shows("< 1 .5 bytes. hello")
        terminal.send(signal.SIGINT)
        assert terminal.status() == 130
    assert "Traceback" not in terminal.text


def test_a_history_that_cannot_be_saved(console: Console, tmp_path: Path) -> None:
    """The failure is reported, and the status is still 0."""
    with console("--history", tmp_path / "none" / "history") as terminal:
        terminal.shows("> ")
        terminal.type("quit\r")
        assert terminal.status() == 0
    assert re.search(r"tao: cannot save the history: .*: No such file", terminal.text)


def test_the_progress_of_a_measurement(server: tao.Server, directory: Path) -> None:
    """With rich, a progress bar is shown, without it a line per second."""
    address = f"127.0.0.1:{server.address[1]}"
    with Terminal(directory, "bench", address, "--duration", 1.3) as terminal:
        assert terminal.status() == 0
    bar = "rich.py" not in os.listdir(directory)
    assert ("\x1b[" in terminal.text) == bar
    assert re.search(r"[\d,]+ replies per second", terminal.text)
    assert re.search(r"latency +p50 .* max ", terminal.text)


def test_the_screen_of_top(server: tao.Server, directory: Path) -> None:
    """Frames replace each other until Ctrl-C, which restores the screen."""
    with tao.monitor_on(0) as monitor:
        arguments = ("top", f":{monitor.address[1]}", "--interval", "0.01")
        with Terminal(directory, *arguments) as terminal:
            for _ in range(2):
                begin = len(terminal.text)
                terminal.shows(f"(?s).{{{begin}}}.*127.0.0.1:{server.address[1]}")
            terminal.send(signal.SIGINT)
            assert terminal.status() == 130
    assert "Traceback" not in terminal.text and "\x1b[H" in terminal.text
    assert ("\x1b[?1049l" in terminal.text) == ("rich.py" not in os.listdir(directory))


def test_one_frame_of_top(server: tao.Server, directory: Path) -> None:
    """The table fits the terminal."""
    with (
        tao.monitor_on(0) as monitor,
        Terminal(directory, "top", f":{monitor.address[1]}", "--once") as terminal,
    ):
        assert terminal.status() == 0
    assert re.search(rf"127\.0\.0\.1:{server.address[1]} ", terminal.text)
