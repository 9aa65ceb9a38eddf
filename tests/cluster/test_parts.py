"""The parts of a supervisor, each by itself."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tao.cluster.processes.channel import Channel
from tao.cluster.processes.draining import drain
from tao.cluster.processes.load_table import LoadRow, LoadTable
from tao.cluster.processes.pid_file import PidFile
from tao.cluster.processes.restarts import Restarts
from tao.cluster.processes.slots import Slot
from tao.cluster.processes.systemd import notify, sockets_of_systemd
from tao.server.server import Server, server_core_of
from tao.wire.message import Registry
from tests.ends import MakeServer, Text, text
from tests.support import PATIENCE, recv_exactly, together, wait_until


class Worker:
    """A worker that only records when it was asked to leave."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []
        self.heir: object = None

    def leave(self, spread: float | None = None, heir: object = None) -> None:
        self.asked.append(spread)
        self.heir = heir


def test_a_successor() -> None:
    """The old worker is asked to leave when its successor is ready, not before."""
    slot, old, new = Slot[Worker](1, 30.0), Worker(), Worker()
    slot.started(old)
    slot.ready(old)
    slot.started(new)
    assert (slot.current, slot.successor, old.asked) == (old, new, [])
    slot.ready(new)
    assert (slot.current, slot.successor, old.asked) == (new, None, [30.0])
    assert old.heir is new
    assert not slot.gone(old)
    assert slot.gone(new)


def test_a_successor_that_never_is_ready() -> None:
    """The old worker stays; a later reload replaces the successor at once."""
    slot, old, hung, new = Slot[Worker](1, 30.0), Worker(), Worker(), Worker()
    slot.started(old)
    slot.started(hung)
    slot.started(new)
    assert (slot.current, slot.successor, hung.asked) == (old, new, [None])
    assert not slot.gone(new)
    assert (slot.current, old.asked) == (old, [])


def test_a_crash_while_the_successor_boots() -> None:
    """Nobody is missing: the successor takes the place."""
    slot, old, new = Slot[Worker](1, 30.0), Worker(), Worker()
    slot.started(old)
    slot.started(new)
    assert not slot.gone(old)
    slot.ready(new)
    assert slot.current is new


def test_waits_between_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They double with each crash of a slot, up to a bound, and old crashes are forgotten."""
    now = [0.0]
    monkeypatch.setattr("tao.cluster.processes.restarts.monotonic", lambda: now[0])
    restarts = Restarts(10)
    assert [restarts.crashed(1) for _ in range(3)] == pytest.approx([0.1, 0.2, 0.4])
    assert restarts.crashed(2) == pytest.approx(0.1)
    assert [restarts.crashed(1) for _ in range(5)][-1] == pytest.approx(10.0)
    assert not restarts.too_many
    restarts.crashed(2)
    assert restarts.too_many
    now[0] = 61.0
    assert restarts.crashed(1) == pytest.approx(0.1)
    assert not restarts.too_many


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = map(Channel, socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_of_any_size(channels: tuple[Channel, Channel]) -> None:
    """What the kernel does not take at once follows, without blocking; the order stays."""
    ours, theirs = channels
    messages: list[dict[str, Any]] = [{"a": "x" * 3_000_000}, {"b": 1}, {"c": [None]}]
    for message in messages:
        ours.send(message)
    found: list[dict[str, Any]] = []
    while len(found) < 3:
        found += theirs.receive()
        ours.flush()
    assert found == messages
    assert not ours.ended


def test_the_end_of_a_channel(channels: tuple[Channel, Channel]) -> None:
    """What was sent before is still read; sending into nothing is no error."""
    ours, theirs = channels
    ours.send({"last": 1})
    ours.close()
    assert theirs.receive() == [{"last": 1}]
    assert theirs.ended
    theirs.send({"late": 1})


@pytest.fixture
def rows() -> Iterator[list[LoadRow]]:
    table = LoadTable(3)
    yield [LoadRow(table.descriptor, row) for row in range(3)]
    table.close()


def test_the_least_loaded(rows: list[LoadRow]) -> None:
    """A worker with clearly more connections than others gives way, as far as it knows these."""
    assert not rows[0].exceeds(1000)  # nobody else is there
    rows[1].write(20)
    rows[2].write(30)
    assert [rows[0].exceeds(count) for count in (20, 22, 23)] == [False, False, True]
    rows[1].withdraw()
    assert not rows[0].exceeds(23)


def test_a_worker_that_does_not_answer(
    rows: list[LoadRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it."""
    rows[1].write(0)
    assert rows[0].exceeds(5)
    later = time.monotonic() + 2
    monkeypatch.setattr("tao.cluster.processes.load_table.time.monotonic", lambda: later)
    assert not rows[0].exceeds(5)


@pytest.mark.parametrize("readers", ["own", "shared"])
def test_giving_way(readers: Any) -> None:
    """A listener leaves a connection to others for a moment, and takes it if they do not."""
    asked: list[int] = []  # how many connections there were
    server = Server(registry=Registry(), readers=readers)
    core = server_core_of(server)
    core.give_way = lambda: asked.append(len(core.acceptor.connections)) is None
    with server, socket.create_connection(server.start(("127.0.0.1", 0)), PATIENCE):
        wait_until(lambda: server.connections)
        assert asked.count(0) == 5  # it may be asked for the next one already


def test_draining(make_server: MakeServer) -> None:
    """Connections are closed over a time, but none before its first message was handled."""
    server, address = make_server(registry=Registry())

    @server.handler(Text)
    def echo(ctx: Any, conn: Any) -> None:
        conn.write(ctx.message)

    served, fresh = (socket.create_connection(address, PATIENCE) for _ in range(2))
    with served, fresh:
        served.sendall(text("a"))
        assert recv_exactly(served, 9) == text("a")
        wait_until(lambda: len(server.connections) == 2)

        def use() -> None:
            assert served.recv(1) == b""
            assert server.state == "draining"
            fresh.sendall(text("b"))
            assert recv_exactly(fresh, 9) == text("b")
            assert fresh.recv(1) == b""

        together(use, lambda: drain(server, 0.01))
    assert server.stop().clean


def test_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is told the state; sockets that belong to another process are left alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY")
        assert systemd.recv(100) == f"READY=1\nMAINPID={os.getpid()}".encode()
        notify("RELOADING")
        assert b"\nMONOTONIC_USEC=" in systemd.recv(100)
    notify("STOPPING")  # systemd is gone
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert sockets_of_systemd() == []
    assert "LISTEN_FDS" not in os.environ


def test_a_pid_file_at_any_path(tmp_path: Path) -> None:
    """The path may be a str, bytes or a `Path`."""
    path = tmp_path / "pid"
    for each in (path, str(path), os.fsencode(path)):
        file = PidFile(each)  # type: ignore[arg-type]
        file.write()
        assert path.exists()
        file.remove()
        assert not path.exists()


def test_a_pid_file(tmp_path: Path) -> None:
    """It has the number of the process, and is removed unless another process has replaced it."""
    path = tmp_path / "pid"
    file = PidFile(str(path))
    assert not path.exists()
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()
    assert not path.exists()
    file = PidFile(str(path))
    file.write()
    path.write_text("1\n")
    file.remove()
    assert path.exists()
