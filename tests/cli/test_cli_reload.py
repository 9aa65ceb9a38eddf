"""``tao serve --reload``: changes that restart the server, and every way to end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import LONG, ROOT, Program
from tests.support import wait_until

GATEWAY = """
import tao
import settings
server = tao.Server(registry=tao.Registry())
print("settings", settings.value, flush=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a server's module, one that it imports, and one that is not imported."""
    (tmp_path / "gateway.py").write_text(GATEWAY, encoding="utf-8")
    (tmp_path / "settings.py").write_text("value = 'first'\n", encoding="utf-8")
    (tmp_path / "unused.py").write_text("", encoding="utf-8")
    return tmp_path


def reloading(project: Path) -> Program:
    return Program("tao", "serve", "gateway", "--port", 0, "--reload", cwd=project)


def banners(program: Program) -> int:
    """Return how many times the server has started to serve."""
    return sum("press Ctrl-C to stop" in line for line in program.output)


def serves(program: Program, times: int) -> None:
    """Wait until the server serves for the ``times``-th time."""
    wait_until(lambda: banners(program) == times, LONG)


def write(path: Path, text: str) -> None:
    """Change a file in one step, as editors do."""
    other = path.with_suffix(".new")
    other.write_text(text, encoding="utf-8")
    os.replace(other, path)


def test_a_change(project: Path) -> None:
    """The server is shut down gracefully and restarted with the new content of the file."""
    with reloading(project) as program:
        serves(program, 1)
        write(project / "settings.py", "value = 'the second'\n")
        program.prints("tao: settings.py has changed")
        program.prints("settings the second")
        serves(program, 2)
        program.send(signal.SIGINT)
        assert program.status() == 0
    assert program.output.count("tao: stopped") == 2
    assert program.errors == []


def test_a_change_of_another_file(project: Path) -> None:
    """A file that the server has not imported does not restart it."""
    with reloading(project) as program:
        serves(program, 1)
        write(project / "unused.py", "1 / 0\n")
        write(project / "settings.py", "value = 'the second'\n")
        serves(program, 2)
        program.send(signal.SIGTERM)
        assert program.status() == 0
    assert not any("unused" in line for line in program.output)


def test_an_error_in_a_module(project: Path) -> None:
    """The error is reported, and correcting it restarts the server."""
    write(project / "settings.py", "value =\n")
    with reloading(project) as program:
        program.prints("tao: ended with status 2; restarts after the next change")
        write(project / "settings.py", "value = 'right'\n")
        serves(program, 1)
        program.send(signal.SIGINT)
        assert program.status() == 0
    (line,) = program.errors
    assert "gateway cannot be imported: SyntaxError" in line


def test_the_end_while_nothing_runs(project: Path) -> None:
    """Ctrl-C also ends the command while it waits for a change."""
    write(project / "gateway.py", "1 / 0\n")
    with reloading(project) as program:
        program.prints("restarts after the next change")
        program.send(signal.SIGINT)
        assert program.status() == 0


def test_a_parent_that_is_killed(project: Path) -> None:
    """The server ends with its parent, and its clients see a graceful end."""
    with reloading(project) as program:
        port = int(program.prints(r"listens at 127\.0\.0\.1:(\d+) ")[1])
        serves(program, 1)
        with socket.create_connection(("127.0.0.1", port), LONG) as sock:
            program.send(signal.SIGKILL)
            assert sock.recv(1) == b""
        assert program.status() == -signal.SIGKILL
    assert program.output[-1] == "tao: stopped"


def test_ctrl_c_at_a_terminal(project: Path) -> None:
    """Parent and child both receive the signal, and the server stops once, gracefully."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tao", "serve", "gateway", "--port", "0", "--reload"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout
        while "press Ctrl-C to stop" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(LONG) == 0
    assert rest.splitlines() == ["tao: stopping", "tao: stopped"]
