"""Helpers for many tests: wait for a condition, run functions at once, read an exact size."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tao.connection.handling.slow_handlers import current_frames

#: The timeout for an expected event, in seconds: long, for machines under load.
PATIENCE = 20.0

#: Marks tests that need the stacks of running threads.
needs_stacks = pytest.mark.skipif(
    not current_frames(), reason="without the interpreter lock stacks cannot be looked at"
)


def wait_until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Return as soon as ``condition()`` is true; fail after ``timeout`` seconds.

    For conditions without an event to wait on; it polls every millisecond. Time in which the
    machine stands still, or has no turn for this thread, hardly counts.
    """
    never, passed = threading.Event(), 0.0
    while not condition():
        assert passed < timeout, f"not true within {timeout} s: {condition}"
        before = time.monotonic()
        never.wait(0.001)
        passed += min(time.monotonic() - before, 0.1)


def took(function: Callable[[], object]) -> float:
    """Call a function, and return how many seconds that has taken.

    As in `wait_until`, time in which the machine stands still hardly counts.
    """
    over, passed = threading.Event(), 0.0

    def count() -> None:
        nonlocal passed
        while not over.is_set():
            before = time.monotonic()
            over.wait(0.001)
            passed += min(time.monotonic() - before, 0.01)

    counting = threading.Thread(target=count, name="test-took")
    counting.start()
    try:
        function()
    finally:
        over.set()
        counting.join()
    return passed


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Call all functions at once, each in a thread, and return their results in the same order.

    An exception of one of them is raised here, after all have returned.
    """
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        start.wait(PATIENCE)
        return function()

    with ThreadPoolExecutor(len(functions), "test-together") as pool:
        return list(pool.map(run, functions))


def written_here() -> Callable[[], bool]:
    """Return a function for `SendQueue.attach`: what this thread writes belongs to the preface."""
    me = threading.get_ident()
    return lambda: threading.get_ident() == me


def ends(function: Callable[[], object]) -> bool:
    """Call ``function`` in a thread and return whether it returned in time; it may deadlock."""
    thread = threading.Thread(target=function, name="test-ends", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def recv_exactly(sock: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes, or fewer if the peer closes first."""
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
