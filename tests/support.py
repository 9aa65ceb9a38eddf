"""What many tests need: waiting for a condition, running things at once, reading exactly."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tao.connection.slow_handlers import current_frames

#: How long a test waits for what should come at once, in seconds: long, for machines under load.
PATIENCE = 20.0

#: For tests of what is read from the stacks of running threads.
needs_stacks = pytest.mark.skipif(
    not current_frames(), reason="without the interpreter lock stacks cannot be looked at"
)


def wait_until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Return as soon as ``condition()`` is true; fail after ``timeout`` seconds.

    For what has no event to wait on. It looks every millisecond or so.
    """
    never = threading.Event()
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not true within {timeout} s: {condition}"
        never.wait(0.001)


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Call all functions at once, each in a thread, and return their results in order.

    What one of them raises is raised here, after all have ended.
    """
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        start.wait(PATIENCE)
        return function()

    with ThreadPoolExecutor(len(functions), "test-together") as pool:
        return list(pool.map(run, functions))


def ends(function: Callable[[], object]) -> bool:
    """Call ``function`` in a thread and tell whether it came back: for what might dead-lock."""
    thread = threading.Thread(target=function, name="test-ends", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def recv_exactly(sock: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes; fewer only if the peer closes before."""
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
