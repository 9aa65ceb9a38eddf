"""A supervisor with workers, started for real, and clients that ask which process serves them."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

from tests.ends import frame
from tests.programs import LONG, Program
from tests.support import recv_exactly, wait_until

#: What the workers serve: each message is answered with the number of the process.
APP = """
import ctypes, os, tao

class Ask:
    message_number = 1
    def __init__(self, text=""):
        self.text = text
    def serialize(self):
        return self.text.encode()
    @classmethod
    def deserialize(cls, data):
        return cls(data.decode())

server = tao.Server(registry=tao.Registry(), drain_timeout=5, idle_timeout=None)

@server.handler(Ask)
def answer(ctx, conn):
    if ctx.message.text == "hang":
        conn.write(Ask("0"))
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter lock
    elif ctx.message.text == "crash":
        os._exit(3)
    elif ctx.message.text.startswith("all "):
        server.broadcast(Ask(ctx.message.text))
    else:
        ctx.reply(Ask(str(os.getpid())))
"""


class Fleet(Program):
    """``tao serve app --processes N``, at a port of its own. Use it in a ``with`` block."""

    def __init__(self, folder: Path, processes: int, *options: object, app: str = APP) -> None:
        self.module = folder / "app.py"
        self.module.write_text(app, encoding="utf-8")
        self.cleanup = ExitStack()
        words = ("--port", 0, "--processes", processes, "--log-level", "info", *options)
        super().__init__("tao", "serve", "app", *words, cwd=folder)

    def __exit__(self, *exc_info: object) -> None:
        self.cleanup.close()
        self.send(signal.SIGTERM)  # workers are in sessions of their own
        wait_until(self.ended, LONG)
        super().__exit__(*exc_info)

    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        port = int(self.prints(r"listens at 127\.0\.0\.1:(\d+) ")[1])
        self.prints("Ctrl-C stops it")
        return port

    @property
    def monitor(self) -> int:
        return int(self.prints(r"live page at http://127\.0\.0\.1:(\d+),")[1])

    def page(self, path: str) -> Any:
        """Read a page of the monitor."""
        url = f"http://127.0.0.1:{self.monitor}/{path}"
        with urllib.request.urlopen(url, timeout=LONG) as page:
            return json.load(page)

    def connect(self) -> socket.socket:
        """A connection, closed at the end of the block."""
        sock = socket.create_connection(("127.0.0.1", self.port), LONG)
        return self.cleanup.enter_context(sock)

    def connect_to(self, pid: int) -> socket.socket:
        """The same, to one of the processes."""
        while ask(sock := self.connect()) != pid:
            pass
        return sock

    def once(self) -> int:
        """Connect, ask for the process, and leave."""
        with socket.create_connection(("127.0.0.1", self.port), LONG) as sock:
            return ask(sock)

    def logged(self, pattern: str) -> str:
        """Wait for a line of the log."""
        wait_until(lambda: self.lines(pattern) or self.ended(), LONG)
        lines = self.lines(pattern)
        assert lines, f"no {pattern!r} in {self.errors}"
        return lines[0]

    def lines(self, pattern: str) -> list[str]:
        return [line for line in self.errors if re.search(pattern, line)]

    def workers(self, count: int) -> list[int]:
        """Connect until so many processes have answered; return their numbers.

        The connections stay, so that they are spread. While a process starts, there must not be too
        many of them.
        """
        found: set[int] = set()
        pause = threading.Event()
        while len(found) < count:
            found.add(ask(self.connect()))
            pause.wait(0.02)
        return sorted(found)


def ask(sock: socket.socket, text: str = "") -> int:
    """Ask for the number of the process."""
    sock.sendall(frame(1, text.encode()))
    return int(answer(sock))


def answer(sock: socket.socket, timeout: float = LONG) -> str:
    """Read the next message other than a heartbeat; an empty string at the end of the stream.

    Heartbeats do not prolong the time to wait.

    Raises:
        TimeoutError: no message arrives in time.
    """
    deadline = monotonic() + timeout
    while len(head := recv_exactly(sock, 8)) == 8:
        number, length = struct.unpack("<iI", head)
        value = recv_exactly(sock, length)
        if number == 1:
            return value.decode()
        if monotonic() > deadline:
            raise TimeoutError(f"no message within {timeout} s, only heartbeats")
    return ""


def refuses(port: int) -> bool:
    """Whether nobody listens at a port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def exists(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    return state_of(pid) not in ("", "Z")


def state_of(pid: int) -> str:
    """The state of a process, as ps shows it; empty if there is none."""
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout[:1]


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)


def is_closed(sock: socket.socket) -> bool:
    """Whether the stream ends, orderly or not."""
    try:
        return answer(sock) == ""
    except ConnectionError:
        return True
