"""Sends that never block: their answers are stored in the same step."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from tao.transport.nonblocking import QuickSend, quick_send, send_now

Quick = Callable[[list[int]], "QuickSend | None"]
WAYS: list[Quick] = [quick_send, lambda answers: None]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.mark.parametrize("quick", WAYS)
def test_an_answer_is_stored(pair: tuple[socket.socket, socket.socket], quick: Quick) -> None:
    """What the kernel accepted is returned, and noted in the list of that sender only."""
    near, far = pair
    answers: list[int] = []
    others: list[int] = []
    quick(others)
    assert send_now(near, b"abc", answers, quick(answers)) == 3
    assert answers == [3]
    assert others == []
    assert far.recv(9) == b"abc"


@pytest.mark.parametrize("quick", WAYS)
def test_a_full_kernel_accepts_nothing(
    pair: tuple[socket.socket, socket.socket], quick: Quick
) -> None:
    """That is no error, and no number above zero is noted."""
    near, _ = pair
    answers: list[int] = []
    send = quick(answers)
    while send_now(near, b"x" * 65536, answers, send):
        answers.clear()
    assert all(answer <= 0 for answer in answers)


@pytest.mark.parametrize("quick", WAYS)
def test_a_broken_connection_raises(
    pair: tuple[socket.socket, socket.socket], quick: Quick
) -> None:
    """The error is the kernel's, also when the descriptor is gone."""
    near, far = pair
    answers: list[int] = []
    send = quick(answers)
    far.close()
    with pytest.raises(BrokenPipeError):
        send_now(near, b"abc", answers, send)
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        send_now(near, b"abc", answers, send)
