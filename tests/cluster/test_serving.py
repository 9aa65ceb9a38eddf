"""`tao.serve`, under systemd as well."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tao
from tests.cluster.fleet import APP, ask, exists
from tests.programs import LONG, ROOT, Program

pytestmark = pytest.mark.xdist_group("cluster")

#: Hands over a socket, as systemd does, and becomes the service.
SYSTEMD = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print("port", sock.getsockname()[1], flush=True)
sock.set_inheritable(True)  # its number may be 3 already
os.dup2(sock.fileno(), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "app.py"])
"""
MAIN = """
if __name__ == "__main__":
    import sys
    sys.exit(tao.serve("app:server", processes=2, address=None, drain_spread=0.1, pid_file="pid"))
"""


def test_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves at the sockets of systemd, tells its state, and has a pid file meanwhile."""
    (tmp_path / "launch.py").write_text(SYSTEMD, encoding="utf-8")
    (tmp_path / "app.py").write_text(APP + MAIN, encoding="utf-8")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(LONG)

        def told() -> str:
            return systemd.recv(1000).decode().split("\n")[0]

        with Program("launch", cwd=tmp_path) as program:
            port = int(program.prints(r"port (\d+)")[1])
            assert told() == "READY=1"
            pid = int((tmp_path / "pid").read_text(encoding="ascii"))
            with socket.create_connection(("127.0.0.1", port), LONG) as sock:
                assert ask(sock) != pid
                os.kill(pid, signal.SIGHUP)
                assert [told(), told()] == ["RELOADING=1", "READY=1"]
                assert sock.recv(1) == b""
            program.send(signal.SIGTERM)
            assert told() == "STOPPING=1"
            assert program.status() == 0
    assert not exists(pid)
    assert not (tmp_path / "pid").exists()


def test_a_program_that_serves_itself_again(tmp_path: Path) -> None:
    """A worker that imports the program says where the call belongs."""
    call = 'tao.serve("app:server", processes=1, address=("127.0.0.1", 0))\n'
    (tmp_path / "app.py").write_text(APP + call, encoding="utf-8")
    with Program("app", cwd=tmp_path) as program:
        program.status()
    assert "below if __name__" in str(program.errors)


def test_a_server_that_is_alone() -> None:
    """Nothing of all this is imported."""
    source = """
import sys, tao
with tao.Server() as server:
    server.start(("127.0.0.1", 0))
    tao.connect(server.address).close()
    print([name for name in sys.modules if name.startswith("tao.cluster")])
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, cwd=ROOT)
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"processes": 0}, "processes must be at least 1"),
        ({"worker_timeout": -1}, "worker_timeout must be positive"),
        ({"address": ("127.0.0.1", -1)}, "a port is a number"),
        ({"address": None}, "systemd has handed over no socket"),
        ({"log_level": "loud"}, "log_level must be one of trace, debug, .*, not 'loud'"),
        ({"log_level": None}, "log_level must be one of trace, debug, .*, not None"),
    ],
)
def test_a_wrong_call(wrong: dict[str, object], text: str, tmp_path: Path) -> None:
    """What is wrong is refused before anything is started, and nothing is left."""
    pid_file = tmp_path / "pid"
    with pytest.raises(ValueError, match=text):
        tao.serve("app:server", **{"processes": 1, "pid_file": pid_file, **wrong})  # type: ignore[arg-type]
    assert not pid_file.exists()


@pytest.mark.parametrize("wrong", [None, 5, b"app:server"])
def test_a_wrong_target(wrong: object) -> None:
    """The text says what it has to be."""
    with pytest.raises(TypeError, match="target must be 'module:server', not"):
        tao.serve(wrong, processes=1)  # type: ignore[arg-type]
