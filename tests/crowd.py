"""Hundreds of peers at once that begin to speak, and stop."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

#: How long to wait for one of them, in seconds: their threads are many, and a machine under load
#: gives each its turn.
CROWD_PATIENCE = 60.0
# What else a process of tests may have open.
OTHERS = 200


@contextmanager
def crowd(address: Any, count: int, beginning: bytes) -> Iterator[list[socket.socket]]:
    """Open so many connections that say ``beginning`` and no more; close them at the end.

    The server is in this process too, so that each of them takes two descriptors.
    """
    with descriptors(2 * count + OTHERS), ExitStack() as stack:
        socks = []
        for _ in range(count):
            socks.append(stack.enter_context(socket.create_connection(address, CROWD_PATIENCE)))
            socks[-1].sendall(beginning)
        yield socks


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allow this process so many descriptors, or skip the test if that cannot be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= count
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft if enough else count, hard))
    except ValueError:
        pytest.skip(f"at most {hard} descriptors are allowed here, {count} are needed")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
