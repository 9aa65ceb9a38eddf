"""Threads that serve one connection after another."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tao.spares import Run, Spares
from tao.threads import Deadline
from tests.ends import MakeServer, Seen, Text, text
from tests.support import PATIENCE, recv_exactly, together, wait_until


@pytest.fixture
def spares() -> Iterator[Spares]:
    """Threads to run on, none of which is left afterwards."""
    made = Spares(None)
    yield made
    assert made.stop(Deadline(PATIENCE)) == []


def perform(spares: Spares, name: str = "tao-test") -> tuple[int, str]:
    """Have something run to its end, and return on which thread, and its name meanwhile."""
    seen: list[tuple[int, str]] = []
    run = Run(lambda: seen.append((threading.get_ident(), threading.current_thread().name)), name)
    spares.start(run)
    run.join(PATIENCE)
    assert (run.is_alive(), run.ident) == (False, None)
    return seen[0]


def test_a_thread_serves_again(spares: Spares) -> None:
    """The next run takes the thread of the one before, under its own name."""
    first, _ = perform(spares)
    wait_until(lambda: spares._waiting)
    assert perform(spares, "tao-another") == (first, "tao-another")


def test_runs_at_once_have_a_thread_each(spares: Spares) -> None:
    """Nobody waits for a thread that is not free."""
    meeting = threading.Barrier(4)
    runs = [Run(lambda: meeting.wait(PATIENCE), f"tao-{i}") for i in range(4)]
    for run in runs:
        spares.start(run)
    for run in runs:
        run.join(PATIENCE)
    assert not meeting.broken


def test_a_thread_does_not_wait_for_ever(spares: Spares, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is nothing to serve for a while, it ends; the next run has another."""
    monkeypatch.setattr("tao.spares._PATIENCE", 0.01)
    perform(spares)
    wait_until(lambda: not spares._all)
    perform(spares)


def test_giving_up_and_being_chosen_at_once(
    spares: Spares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is handed to a thread which is just losing patience is performed."""
    monkeypatch.setattr("tao.spares._PATIENCE", 0.0005)
    together(*[lambda: [perform(spares) for _ in range(200)]] * 3)


def test_a_run_that_raises(spares: Spares, log_lines: list[Any]) -> None:
    """It is logged, and its thread serves on."""
    run = Run(lambda: 1 / 0, "tao-raises")
    spares.start(run)
    run.join(PATIENCE)
    wait_until(lambda: spares._waiting)
    assert [record["message"] for record in log_lines] == ["thread tao-raises died"]


def test_stop_ends_those_that_wait_and_those_that_will(spares: Spares) -> None:
    """A thread that is running when its spares are stopped ends with its run."""
    go = threading.Event()
    perform(spares)
    wait_until(lambda: spares._waiting)
    runs = [Run(lambda: go.wait(PATIENCE), f"tao-{i}") for i in range(2)]
    for run in runs:
        spares.start(run)
    assert len(spares.stop(Deadline(0.01))) == 2
    assert spares.stop(Deadline(0.01), runs) == []
    go.set()


def test_a_thread_that_cannot_start(spares: Spares, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is not alive then, and whoever asked is told."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    run = Run(lambda: None, "tao-test")
    with pytest.raises(RuntimeError, match="can't start"):
        spares.start(run)
    assert not run.is_alive()


def test_connections_one_after_another(make_server: MakeServer) -> None:
    """They are served by the same thread, which is called as each of them asks for."""
    server, address = make_server(dispatch="inline")
    names, idents = Seen(), Seen()

    @server.handler(Text)
    def note(ctx: Any, conn: Any) -> None:
        names.add(threading.current_thread().name)
        idents.add(threading.get_ident())
        conn.write(ctx.message)

    for _ in range(3):
        with socket.create_connection(address) as sock:
            sock.sendall(text("x"))
            recv_exactly(sock, len(text("x")))
        wait_until(lambda: server._spares._waiting)
    assert names.items == ["tao-reader-1", "tao-reader-2", "tao-reader-3"]
    assert len(set(idents.items)) == 1
