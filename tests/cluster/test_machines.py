"""Machines, each a network namespace of its own, with a Redis that loses one of them for a while.

It takes half a minute, and only ``make cluster`` runs it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.fleet import APP, answer, ask
from tests.cluster.redis_server import program
from tests.ends import frame
from tests.programs import LONG, ROOT
from tests.support import wait_until

pytestmark = [
    pytest.mark.skipif("PUBLICATIONS" not in os.environ, reason="make cluster runs it"),
    pytest.mark.skipif(program() is None, reason="there is no redis-server or valkey-server"),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and iproute2",
    ),
]
NAMES = [f"tao-{os.getpid()}-{name}" for name in ("redis", "a", "b")]
#: Longer than a server waits for an answer of Redis, in seconds.
LONG_ENOUGH = 9.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def network() -> Iterator[None]:
    """Three namespaces; the first one is joined with each of the others."""
    with ExitStack() as stack:
        for name in NAMES:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, name in enumerate(NAMES[1:], 1):
            near = f"to-{number}"
            pair = ("link", "add", near, "type", "veth", "peer", "name", "far", "netns", name)
            ip("-n", NAMES[0], *pair)
            for side, link, host in ((NAMES[0], near, 1), (name, "far", 2)):
                ip("-n", side, "address", "add", f"10.203.{number}.{host}/24", "dev", link)
                ip("-n", side, "link", "set", link, "up")
        yield


@pytest.fixture
def clients(network: None) -> Iterator[list[socket.socket]]:
    """A client of each of two servers of two processes, on sockets of the file system."""
    with tempfile.TemporaryDirectory(prefix="tao-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "app.py").write_text(APP, encoding="utf-8")

        def start(namespace: str, *words: str) -> None:
            command = ["ip", "netns", "exec", namespace, *words]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL)
            stack.callback(process.wait, LONG)
            stack.callback(process.terminate)

        start(NAMES[0], str(program()), "--save", "", "--protected-mode", "no")
        for number, machine in enumerate(NAMES[1:], 1):
            path, url = str(folder / str(number)), f"redis://10.203.{number}.1/0?prefix=machines"
            words = ("serve", "app", "--unix", path, "--processes", "2", "--cluster", url)
            start(machine, sys.executable, "-m", "tao", *words)
        yield [stack.enter_context(connect(folder / str(number))) for number in (1, 2)]


def connect(path: Path) -> socket.socket:
    """Connect to a server as soon as it listens."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LONG)
    wait_until(lambda: sock.connect_ex(str(path)) == 0, LONG)
    ask(sock)  # it serves
    return sock


def publish(sock: socket.socket, text: str) -> None:
    """Have the server broadcast that to all connections of all servers."""
    sock.sendall(frame(1, f"all {text}".encode()))


def test_a_machine_that_redis_loses(clients: list[socket.socket]) -> None:
    """Afterwards it gets all that others have published, in order, and they get its message."""
    for sock in clients:
        publish(sock, "hello")
        while answer(sock) != "all hello":
            pass
    publish(clients[1], "begin")
    for sock in clients:
        while answer(sock) != "all begin":
            pass
    ip("-n", NAMES[0], "link", "set", "to-1", "down")
    publish(clients[0], "from the lost one")
    # They reach the lost machine at once, so that no more than a send queue holds.
    expected = [f"all {number}" for number in range(200)]
    for each in expected:
        publish(clients[1], each.removeprefix("all "))
    assert [answer(clients[1]) for _ in expected] == expected
    hears_nothing(clients[0], LONG_ENOUGH)
    ip("-n", NAMES[0], "link", "set", "to-1", "up")
    for sock in clients:
        others = [answer(sock) for _ in range(201 if sock is clients[0] else 1)]
        assert others.pop(others.index("all from the lost one"))
        assert others in ([], expected)


def hears_nothing(sock: socket.socket, seconds: float) -> None:
    """Check that nothing but heartbeats arrives for so long."""
    sock.settimeout(seconds)
    with pytest.raises(TimeoutError):
        answer(sock, seconds)
    sock.settimeout(LONG)
