"""Ten thousand connections at once, with one reading thread; run by `make crowd`, printing figures.

The peers are in a process of their own, as one process rarely has descriptors for both ends.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tao.wire.message import Registry
from tests.crowd import descriptors
from tests.ends import MakeServer, Number

ROOT = Path(__file__).parent.parent.parent
COUNT = int(os.environ.get("CROWD", "200"))
# How many descriptors a process needs beside those of the connections.
_OTHERS = 200
# How much an idle connection may take, in KB of resident memory.
_MOST = 40.0

# Connects, tells so, has each connection answered twice, and ends when its input does.
PEERS = """
import socket, sys
from tests.ends import number
from tests.support import PATIENCE, recv_exactly
port, count = map(int, sys.argv[1:])
socks = [socket.create_connection(("127.0.0.1", port), 3 * PATIENCE) for _ in range(count)]
print("connected", flush=True)
for _ in range(2):
    sys.stdin.readline()
    for i, sock in enumerate(socks):
        sock.sendall(number(i))
    print(sum(recv_exactly(sock, 16) == number(i) for i, sock in enumerate(socks)), flush=True)
sys.stdin.readline()
"""


def resident() -> float:
    """Return the resident memory of this process, in KB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


@pytest.fixture
def peers() -> Iterator[list[subprocess.Popen[str]]]:
    """A list of processes that are ended afterwards."""
    started: list[subprocess.Popen[str]] = []
    with descriptors(COUNT + _OTHERS):
        yield started
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_all_of_a_crowd_are_answered(
    make_server: MakeServer, peers: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of very many connections is answered, again and again, and one thread reads them."""
    registry = Registry()
    registry.handler(Number)(lambda ctx, conn: conn.write(ctx.message))
    server, (_, port) = make_server(registry=registry, readers="shared", max_connections=COUNT)
    before = resident()
    process = subprocess.Popen(
        [sys.executable, "-c", PEERS, str(port), str(COUNT)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    peers.append(process)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    for _ in range(2):
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{COUNT}\n"
    each = (resident() - before) / COUNT
    reading = [thread.name for thread in threading.enumerate() if "reader" in thread.name]
    assert server.connection_count == COUNT and reading == ["tao-reader-servers-1"]
    with capsys.disabled():
        print(f"\n{COUNT} connections, {each:.1f} KB each")
    assert each < _MOST
