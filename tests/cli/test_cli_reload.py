"""``tao serve --reload``: changes that start the server again, and every way to end it."""

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
    """A directory with a server's module, one that it imports, and one that nobody does."""
    (tmp_path / "gateway.py").write_text(GATEWAY, encoding="utf-8")
    (tmp_path / "settings.py").write_text("value = 'first'\n", encoding="utf-8")
    (tmp_path / "unused.py").write_text("", encoding="utf-8")
    return tmp_path


def reloading(project: Path) -> Program:
    return Program("tao", "serve", "gateway", "--port", 0, "--reload", cwd=project)


def banners(program: Program) -> int:
    """How many times the server has begun to serve."""
    return sum("Ctrl-C stops it" in line for line in program.output)


def serves(program: Program, times: int) -> None:
    """Wait until it serves for the n-th time."""
    wait_until(lambda: banners(program) == times, LONG)


def write(path: Path, text: str) -> None:
    """Change a file as editors do, in one step."""
    other = path.with_suffix(".new")
    other.write_text(text, encoding="utf-8")
    os.replace(other, path)


def test_a_change(project: Path) -> None:
    """The server is stopped in order and started with what the file holds now."""
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


def test_a_change_elsewhere(project: Path) -> None:
    """A file that the server has not imported is of no interest."""
    with reloading(project) as program:
        serves(program, 1)
        write(project / "unused.py", "1 / 0\n")
        write(project / "settings.py", "value = 'the second'\n")
        serves(program, 2)
        program.send(signal.SIGTERM)
        assert program.status() == 0
    assert not any("unused" in line for line in program.output)


def test_a_mistake(project: Path) -> None:
    """It is told, and its repair starts the server."""
    write(project / "settings.py", "value =\n")
    with reloading(project) as program:
        program.prints("tao: ended with status 2; a change starts it again")
        write(project / "settings.py", "value = 'right'\n")
        serves(program, 1)
        program.send(signal.SIGINT)
        assert program.status() == 0
    (line,) = program.errors
    assert "gateway cannot be imported: SyntaxError" in line


def test_the_end_while_nothing_runs(project: Path) -> None:
    """Ctrl-C ends it also when it waits for a repair."""
    write(project / "gateway.py", "1 / 0\n")
    with reloading(project) as program:
        program.prints("a change starts it again")
        program.send(signal.SIGINT)
        assert program.status() == 0


def test_a_parent_that_is_killed(project: Path) -> None:
    """The server does not outlive it, and its clients get an orderly end."""
    with reloading(project) as program:
        port = int(program.prints(r"listens at 127\.0\.0\.1:(\d+) ")[1])
        serves(program, 1)
        with socket.create_connection(("127.0.0.1", port), LONG) as sock:
            program.send(signal.SIGKILL)
            assert sock.recv(1) == b""
        assert program.status() == -signal.SIGKILL
    assert program.output[-1] == "tao: stopped"


def test_ctrl_c_at_a_terminal(project: Path) -> None:
    """Parent and child both get it, and the server stops once, in order."""
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
        while "Ctrl-C stops it" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(LONG) == 0
    assert rest.splitlines() == ["tao: stopping", "tao: stopped"]
