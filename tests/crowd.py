"""Hundreds of peers that connect at once, send the beginning of a message, and then nothing."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

#: How long to wait for one peer, in seconds. There are many threads, and a machine under load runs
#: them one after another.
CROWD_PATIENCE = 60.0
# How many other descriptors the process may have open.
OTHERS = 200


@contextmanager
def crowd(address: Any, count: int, beginning: bytes) -> Iterator[list[socket.socket]]:
    """Open ``count`` connections that send ``beginning`` and nothing more; close them at the end.

    The server runs in the same process, so each connection takes two descriptors.
    """
    with descriptors(2 * count + OTHERS), ExitStack() as stack:
        socks = []
        for _ in range(count):
            socks.append(stack.enter_context(socket.create_connection(address, CROWD_PATIENCE)))
            socks[-1].sendall(beginning)
        yield socks


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allow this process ``count`` descriptors, or skip the test if that is not possible."""
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
