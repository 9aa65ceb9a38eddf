"""``tao serve --reload``: changes that restart the server, and every way to end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
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


#: Modules that are not as usual, and places that are not.
ODD = {
    "computed attributes": """
import sys
class Lazy:
    def __getattr__(self, name): raise ImportError("an extra is not installed")
sys.modules["lazy"] = Lazy()
""",
    "an exit": """
import sys
class Lazy:
    def __getattr__(self, name): sys.exit(name)
sys.modules["lazy"] = Lazy()
""",
    "computed attributes of a module": """
import sys, types
class Lazy(types.ModuleType):
    def __getattribute__(self, name): raise RuntimeError(name)
sys.modules["lazy"] = Lazy("lazy")
""",
    "loaded lazily": """
import importlib.util, sys
open("broken.py", "w").write("1 / 0")
spec = importlib.util.find_spec("broken")
spec.loader = importlib.util.LazyLoader(spec.loader)
sys.modules["broken"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["broken"])
""",
    "elsewhere": "import os\nos.chdir('/')\n",
}


@pytest.mark.parametrize("odd", ODD)
def test_a_change_with_odd_modules(project: Path, odd: str) -> None:
    """The files of the others are watched all the same."""
    write(project / "gateway.py", GATEWAY + ODD[odd])
    changes_and_ends(project)


def test_a_folder_with_any_name(project: Path) -> None:
    """It may be no text, and have several lines."""
    folder = Path(os.fsdecode(os.fsencode(project) + b"/caf\xe9\n"))
    folder.mkdir()
    for name in ("gateway.py", "settings.py"):
        (project / name).rename(folder / name)
    changes_and_ends(folder)


def changes_and_ends(project: Path) -> None:
    with reloading(project) as program:
        serves(program, 1)
        write(project / "settings.py", "value = 'the second'\n")
        program.prints("settings the second")
        serves(program, 2)
        program.send(signal.SIGINT)
        assert program.status() == 0
    assert not any("tao-reload" in line for line in program.errors)


def test_a_file_that_never_rests(project: Path) -> None:
    """A restart waits until it is written; Ctrl-C ends the command meanwhile."""
    over = threading.Event()

    def change() -> None:
        while not over.wait(0.02):
            with (project / "settings.py").open("a", encoding="utf-8") as file:
                file.write("# more\n")

    with reloading(project) as program:
        serves(program, 1)
        writer = threading.Thread(target=change, name="test-writer")
        writer.start()
        try:
            over.wait(1)
            assert program.interrupt() == 0
        finally:
            over.set()
            writer.join()
    assert banners(program) == 1
