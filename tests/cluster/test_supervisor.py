"""``tao serve --processes``: workers that crash, hang, do not boot, and are replaced."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tao
from tao.cli.main import main
from tao.cluster.processes.pid_file import PidFile
from tao.cluster.processes.settings import SupervisorSettings
from tao.cluster.processes.supervisor import Supervisor
from tao.transport.addresses import address_text
from tests.cluster.fleet import APP, Fleet, answer, ask, exists, is_closed, kill, refuses, state_of
from tests.ends import Text, frame
from tests.programs import LONG, Program
from tests.support import wait_until

# Several at once would be many processes, which all want to start.
pytestmark = pytest.mark.xdist_group("cluster")

#: How many times in a row all workers are replaced; ``make cluster`` sets it.
RELOADS = int(os.environ.get("RELOADS", "1"))

#: How often a balance is tried: a machine under load may keep a worker from running for long.
ROUNDS = 5


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers that survive what several tests do to them."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, 2, "--drain-spread", 0.3, "--monitor", 0) as fleet:
        yield fleet


@pytest.fixture
def fleet(long_lived: Fleet) -> Iterator[Fleet]:
    """The same, whose connections are closed after each test."""
    with long_lived.cleanup:
        yield long_lived


def test_a_reload(fleet: Fleet) -> None:
    """While clients come and go, all workers are replaced; each attempt gets its answer.

    So does each request of a client that stays: it is told to leave, and comes back.
    """
    failures: list[Exception] = []
    served: set[int] = set()
    over = threading.Event()
    port, registry = fleet.port, tao.Registry()
    registry.register(Text.message_number, Text.deserialize)

    def come_and_go() -> None:
        while not over.wait(0.02):
            try:
                served.add(fleet.once())
            except Exception as error:
                failures.append(error)

    def stay() -> None:
        with tao.connect(("127.0.0.1", port), registry=registry, reconnect=True) as client:
            try:
                while not over.is_set():
                    served.add(int(client.request(Text(""), timeout=LONG).text))
            except Exception as error:
                failures.append(error)
            reconnects.append(client.reconnects)

    reconnects: list[int] = []
    clients = [threading.Thread(target=come_and_go, name=f"test-{n}") for n in range(4)]
    clients.append(threading.Thread(target=stay, name="test-stay"))
    for client in clients:
        client.start()
    for _ in range(RELOADS):
        before = fleet.workers(2)
        served.clear()
        kill(before[0], signal.SIGHUP)  # means the supervisor
        fleet.send(signal.SIGHUP)
        wait_until(lambda: not any(map(exists, before)), LONG)  # noqa: B023
        wait_until(lambda: len(served - set(before)) == 2, LONG)  # noqa: B023
    over.set()
    for client in clients:
        client.join()
    assert not failures
    assert reconnects[0] >= RELOADS
    assert not fleet.lines("was ended by")


def test_a_broadcast(fleet: Fleet) -> None:
    """It reaches the connections of all workers, in the same order."""
    socks = [fleet.connect_to(pid) for pid in fleet.workers(2) for _ in range(2)]
    for number, sock in enumerate(socks):
        sock.sendall(frame(1, b"all %d" % number))
    heard = {tuple(answer(sock) for _ in socks) for sock in socks}
    assert len(heard) == 1
    assert sorted(*heard) == [f"all {number}" for number, _ in enumerate(socks)]


def test_a_worker_that_is_killed(fleet: Fleet) -> None:
    """Another takes its place, and the connections of the others stay."""
    first, second = fleet.workers(2)
    kept = fleet.connect_to(second)
    kill(first)
    fleet.logged(rf"\(process {first}\) was ended by SIGKILL")
    assert first not in fleet.workers(2)
    assert ask(kept) == second


def test_the_monitor(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """One port shows all processes; no count falls when one is killed."""
    first, second = fleet.workers(2)
    kept = fleet.connect_to(second)
    before = fleet.page("debug/vars")
    assert {"server-1@1", "server-1@2"} <= set(before["servers"])
    kill(first)
    assert first not in fleet.workers(2)
    after = fleet.page("debug/vars")
    assert after["TotalHandle"] > before["TotalHandle"]
    for name, figures in before["servers"].items():
        assert after["servers"][name]["messages_in"] >= figures["messages_in"]
    peers = {row["peer"] for row in fleet.page("connections")["connections"]}
    assert address_text(kept.getsockname()) in peers
    assert main(["top", f":{fleet.monitor}", "--once"]) == 0
    assert "server-1@2" in capsys.readouterr().out


def test_a_worker_that_does_not_boot(fleet: Fleet) -> None:
    """At a reload, the old ones stay and the log says why; repaired, the next reload works."""
    before = fleet.workers(2)
    fleet.module.write_text("import nothing_there\n", encoding="utf-8")
    fleet.send(signal.SIGHUP)
    for pid in before:
        line = fleet.logged(rf"\(process {pid}\) stays")
        assert "ModuleNotFoundError: No module named 'nothing_there'" in line
    assert fleet.workers(2) == before
    fleet.module.write_text(APP, encoding="utf-8")
    fleet.send(signal.SIGHUP)
    wait_until(lambda: not any(map(exists, before)), LONG)
    assert len(fleet.workers(2)) == 2


def test_workers_that_hang(tmp_path: Path) -> None:
    """Their stacks are dumped where that is possible, they are killed, and others serve."""
    with Fleet(tmp_path, 2, "--worker-timeout", 1.5) as fleet:
        first, second = hung = fleet.workers(2)
        fleet.connect_to(first).sendall(frame(1, b"hang"))  # in C, with the interpreter lock
        kill(second, signal.SIGSTOP)
        for pid in hung:
            fleet.logged(rf"\(process {pid}\) has not answered for .*; its stacks:")
        waiting = fleet.connect()
        for pid in hung:
            fleet.logged(rf"\(process {pid}\) has not answered for .*: killing it")
        assert fleet.lines("app.py., line .* in answer")
        assert ask(waiting) not in hung


def test_a_worker_that_hangs_at_the_end(tmp_path: Path) -> None:
    """It is killed too, and the status tells that not all could finish."""
    with Fleet(tmp_path, 2, "--worker-timeout", 1.5) as fleet:
        hung, _ = fleet.workers(2)
        ask(fleet.connect_to(hung), "hang")
        fleet.send(signal.SIGTERM)
        assert fleet.status() == 1
        assert fleet.lines(rf"\(process {hung}\) has not answered for .*: killing it")


def test_a_second_interrupt(tmp_path: Path) -> None:
    """It ends all workers at once, whatever they are doing."""
    with Fleet(tmp_path, 1) as fleet:
        (worker,) = fleet.workers(1)
        ask(fleet.connect(), "hang")
        fleet.send(signal.SIGINT)
        fleet.prints("tao: stopping")
        fleet.send(signal.SIGINT)
        assert fleet.status() == 130
        assert fleet.lines("stopping at once")
        assert not exists(worker)


def test_two_signals_at_the_same_moment(tmp_path: Path) -> None:
    """They end all at once as well, and no worker is started in place of those that are killed."""
    with Fleet(tmp_path, 2) as fleet:
        workers = fleet.workers(2)
        fleet.send(signal.SIGSTOP)
        wait_until(lambda: state_of(fleet.pid) == "T", LONG)
        fleet.send(signal.SIGTERM)
        fleet.send(signal.SIGINT)
        fleet.send(signal.SIGCONT)
        assert fleet.status() == 130
        assert len(fleet.lines("stopping at once")) == 1
        assert not fleet.lines("another worker starts")
        assert not any(map(exists, workers))


def test_a_worker_that_boots_slowly(tmp_path: Path) -> None:
    """It may take longer than a worker that serves may be silent."""
    with Fleet(
        tmp_path, 1, "--worker-timeout", 1, app=f"import time\ntime.sleep(3)\n{APP}"
    ) as fleet:
        assert fleet.port
        assert not fleet.lines("has not answered")


def test_balance_and_the_end(tmp_path: Path) -> None:
    """Of 200 connections no worker has more than 1.25 times the mean; Ctrl-C ends all gracefully.

    The exit status is 0 then.
    """
    with Fleet(tmp_path, 4) as fleet:
        assert fleet.pid not in fleet.workers(4)
        for _ in range(ROUNDS):
            fleet.cleanup.close()
            socks = [fleet.connect() for _ in range(200)]
            pids = [ask(sock) for sock in socks]
            most = max(pids.count(pid) for pid in pids)
            if most <= 1.25 * 50:
                break
        assert most <= 1.25 * 50
        fleet.send(signal.SIGINT)
        assert all(map(is_closed, socks))
        assert fleet.status() == 0
        assert fleet.output[-2:] == ["tao: stopping", "tao: stopped"]
    assert not any(map(exists, set(pids)))


def test_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """The workers close their listening sockets and shut down."""
    with Fleet(tmp_path, 2) as fleet:
        workers, port, sock = fleet.workers(2), fleet.port, fleet.connect()
        ask(sock)
        fleet.send(signal.SIGKILL)
        assert is_closed(sock)
        wait_until(lambda: not any(map(exists, workers)) and refuses(port), LONG)


def test_a_server_that_never_boots(tmp_path: Path) -> None:
    """At the start, that ends the supervisor as it ends a single process."""
    with Fleet(tmp_path, 1, app="1 / 0\n") as fleet:
        assert fleet.status() == 2
        assert fleet.lines("module app cannot be imported: ZeroDivisionError")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("server.start(('127.0.0.1', 0))", "the server was started by its module"),
        (
            "tao.Server(registry=tao.Registry(), cluster='local').start(('127.0.0.1', 0))",
            "this process has another one",
        ),
    ],
)
def test_a_server_that_cannot_be_joined(tmp_path: Path, code: str, why: str) -> None:
    """It is refused, as it would not reach the connections of other processes."""
    with Fleet(tmp_path, 1, app=f"{APP}\n{code}\n") as fleet:
        assert fleet.status() == 2
        assert fleet.lines(why)


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """That stops the server, although it sends the signal that asks for a reload."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    words = "'-m', 'tao', 'serve', 'app', '--port', '0', '--processes', '1'"
    launch = f"import pty, sys; pty.spawn([sys.executable, {words}])"
    (tmp_path / "launch.py").write_text(launch, encoding="utf-8")
    with Program("launch", cwd=tmp_path) as terminal:
        port = int(terminal.prints(r"listens at 127\.0\.0\.1:(\d+) ")[1])
        with socket.create_connection(("127.0.0.1", port), LONG) as sock:
            worker = ask(sock)
            terminal.send(signal.SIGKILL)
            assert is_closed(sock)
        wait_until(lambda: not exists(worker) and refuses(port), LONG)


def test_a_worker_that_crashes_at_once(tmp_path: Path) -> None:
    """It is started again, later each time, until that has happened too often in a minute."""
    app = "import os, pathlib, tao; pathlib.Path('n').open('a').write('x'); os._exit(3)"
    with Fleet(tmp_path, 1, "--max-crashes", 3, app=app) as fleet:
        assert fleet.status() == 1
        assert fleet.lines("workers crash again and again: giving up")
        for wait in (0.1, 0.2):
            assert fleet.lines(f"another worker starts in {wait} s")
    assert (tmp_path / "n").read_text() == "xxx"


def test_sockets_of_their_own(tmp_path: Path) -> None:
    """With --reuse-port, a killed worker's successor gets what waited at its socket."""
    with Fleet(tmp_path, 2, "--reuse-port") as fleet:
        first, _ = fleet.workers(2)
        kill(first, signal.SIGSTOP)
        wait_until(lambda: state_of(first) == "T", LONG)
        waiting = [fleet.connect() for _ in range(20)]
        kill(first)
        pids = {ask(sock) for sock in waiting}
        assert len(pids) == 2
        assert first not in pids


def test_a_lack_of_descriptors(tmp_path: Path) -> None:
    """A supervisor that has none left goes on with the workers that it has, and recovers."""
    with Fleet(tmp_path, 2) as fleet:
        before = fleet.workers(2)
        in_use = len(os.listdir(f"/proc/{fleet.pid}/fd"))
        _, most = resource.prlimit(fleet.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(fleet.pid, resource.RLIMIT_NOFILE, (in_use + 3, most))
        fleet.send(signal.SIGHUP)
        wait_until(lambda: len(fleet.lines("a worker cannot be started: ")) == 2, LONG)
        assert fleet.workers(2) == before
        assert len(os.listdir(f"/proc/{fleet.pid}/fd")) == in_use
        resource.prlimit(fleet.pid, resource.RLIMIT_NOFILE, (most, most))
        fleet.send(signal.SIGHUP)
        fleet.logged("is ready; .* drains")


#: A thread that the end of the interpreter waits for.
LINGERING = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"


def test_a_module_that_fails_and_leaves_a_thread(tmp_path: Path) -> None:
    """The worker ends nevertheless, and the supervisor tells why."""
    with Fleet(tmp_path, 1, app=f"{LINGERING}1 / 0\n") as fleet:
        assert fleet.status() == 2
        assert fleet.lines("module app cannot be imported: ZeroDivisionError")


def test_a_worker_whose_threads_do_not_end(tmp_path: Path) -> None:
    """After a reload it is found out and killed, like one that hangs."""
    with Fleet(tmp_path, 1, "--worker-timeout", 1.5, app=f"{APP}\n{LINGERING}") as fleet:
        (before,) = fleet.workers(1)
        fleet.module.write_text(APP, encoding="utf-8")
        fleet.send(signal.SIGHUP)
        fleet.logged(rf"\(process {before}\) has not answered for .*; its stacks:")
        fleet.logged(rf"\(process {before}\) has not answered for .*: killing it")
        assert fleet.workers(1) != [before]


#: A module in whose process some threads cannot be started while a file exists.
NO_THREADS = """
import os, threading
start = threading.Thread.start
def refuse(thread):
    if thread.name in ("tao-drain", "tao-supervised-answer") and os.path.exists("full"):
        open("refused", "w").close()
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
"""


def test_a_worker_without_threads(tmp_path: Path) -> None:
    """A question has no answer then, and an order to stop is carried out once that is possible."""
    app = APP + NO_THREADS
    with Fleet(tmp_path, 1, "--monitor", 0, "--drain-spread", 0.2, app=app) as fleet:
        (before,) = fleet.workers(1)
        full = tmp_path / "full"
        full.touch()
        assert fleet.page("connections")["connections"] == []
        fleet.send(signal.SIGHUP)
        fleet.logged("an order of the supervisor has to wait: can't start new thread")
        assert exists(before)
        full.unlink()
        wait_until(lambda: not exists(before), LONG)
        assert fleet.workers(1) != [before]


def test_the_pid_file_tells_whom_to_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists only while signals are handled, and so is gone when they are not any more."""
    path, handlers = tmp_path / "pid", []
    before = signal.getsignal(signal.SIGHUP)

    def note(*_: object) -> None:
        handlers.append((path.exists(), signal.getsignal(signal.SIGHUP) == before))

    settings = SupervisorSettings(command=["false"], max_crashes=1, pid_file=str(path))
    supervisor = Supervisor(settings)
    note()
    remove = PidFile.remove
    monkeypatch.setattr(PidFile, "remove", lambda file: (note(), remove(file), note()))
    assert supervisor.run(note) == 1
    note()
    assert handlers == [(False, True), (True, False), (True, False), (False, False), (False, True)]
