"""Sessions that move to the new processes at a reload."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.fleet import Fleet, exists, kill
from tests.cluster.session_fleet import KINDS, ONE, Client, cutting, handled_by, workers
from tests.ends import Text
from tests.programs import LONG
from tests.support import wait_until
from tests.tls_pairs import CA

pytestmark = pytest.mark.xdist_group("cluster")

COUNT = 1000
# Of random cuts; another one with each run that sets it.
SEED = int(os.environ.get("SESSION_SEED", "1"))

#: Answers each message with the number of the process and what it was told of this connection, and
#: speaks by itself when asked to. What it has spoken it counts, so that another process goes on.
APP = r"""
import json, os, threading, time, tao

class Text:
    message_number = 1
    def __init__(self, text=""):
        self.text = text
    def serialize(self):
        return self.text.encode()
    @classmethod
    def deserialize(cls, data):
        return cls(data.decode())

log = os.open("handled", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def wait_for(what):
    if os.path.exists(f"{what} waits"):
        note(f"{what}s {os.getpid()}")
    while os.path.exists(f"{what} waits"):
        time.sleep(0.01)

def begin(conn, told, spoken, most):
    conn.state.told, conn.state.spoken, conn.state.most = told, spoken, most
    conn.state.lock = threading.Lock()

def opened(conn):
    begin(conn, ["connect"], 0, 0)

def save(conn):
    if os.path.exists("save fails"):
        raise ValueError("save fails")
    wait_for("save")
    with conn.state.lock:
        state = conn.state
        return json.dumps([state.told, state.spoken, state.most]).encode()

def load(conn, data):
    if os.path.exists("load fails"):
        raise ValueError("load fails")
    wait_for("load")
    told, spoken, most = json.loads(data)
    begin(conn, [*told, "load"], spoken, most)
    if spoken < most:
        threading.Thread(target=speak, args=(conn,)).start()

def note(what):
    os.write(log, f"{what}\n".encode())

server = tao.Server(
    registry=tao.Registry(), sessions=tao.Sessions(save=save, load=load), drain_timeout=5,
    on_connect=opened, on_close=lambda conn: note(f"close {os.getpid()}"),
    on_resume=lambda conn: conn.state.told.append("resume"),
    on_session_lost=lambda conn, messages: note(f"lost {os.getpid()} {len(messages)}"),
    **OPTIONS
)

@server.handler(Text)
def answer(ctx, conn):
    text = ctx.message.text
    if text == "told":
        conn.write(Text(" ".join([str(os.getpid()), *conn.state.told])))
    elif text == "who":
        conn.write(Text(" ".join([str(conn.identity), *sorted(conn.groups)])))
    elif text.startswith("join "):
        conn.join(text[5:])
        conn.identify(f"I {text[5:]}")
        conn.write(Text("joined"))
    elif text.startswith("all "):
        server.group(text.split()[1]).broadcast(Text(text))
    elif text.startswith("speak "):
        conn.state.most = int(text[6:])
        threading.Thread(target=speak, args=(conn,)).start()
    else:
        note(text)
        conn.write(Text(f"{os.getpid()} {text}"), timeout=20)

def speak(conn):
    state = conn.state
    try:
        while state.spoken < state.most:
            with state.lock:
                conn.write(Text(f"spoken {state.spoken}"), timeout=20)
                state.spoken += 1
    except tao.ConnectionClosed:
        pass  # another process goes on
"""


@pytest.fixture(scope="module", params=ONE)
def long_lived(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Two workers."""
    folder = tmp_path_factory.mktemp("fleet")
    CA.issue().write(folder / "server.pem", folder / "key.pem")
    (folder / "ca.pem").write_bytes(CA.certificate)
    app = f"import tao\nOPTIONS = dict({KINDS[request.param]})\n{APP}"
    with Fleet(folder, 2, "--drain-spread", 0.3, "--monitor", 0, app=app) as fleet:
        assert fleet.port
        fleet.tls = "TLS" in request.param
        yield fleet


@pytest.fixture
def fleet(long_lived: Fleet) -> Iterator[Fleet]:
    """The same, whose connections are closed after each test."""
    wait_until(lambda: not long_lived.page("connections")["connections"], LONG)
    (long_lived.module.parent / "handled").write_bytes(b"")
    with long_lived.cleanup:
        yield long_lived


def reload(fleet: Fleet) -> None:
    """Replace all processes, and wait until the old ones have ended."""
    before = workers(fleet)
    fleet.send(signal.SIGHUP)
    wait_until(lambda: not any(map(exists, before)), LONG)


@contextmanager
def told(fleet: Fleet, what: str) -> Iterator[None]:
    """A file that the application looks for."""
    path = fleet.module.parent / what
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def noted(fleet: Fleet) -> list[str]:
    """What the processes have noted besides numbers."""
    lines = (fleet.module.parent / "handled").read_text().splitlines()
    return [line for line in lines if not line.isdigit()]


@pytest.mark.parametrize("cut", [False, True])
def test_under_load(fleet: Fleet, cut: bool) -> None:
    """All is handled once and in order, both ways, while the session moves twice."""
    with Client(fleet) as client:
        if cut:
            client.proxy.plan = cutting(SEED)
            client.proxy.reset()
        client.conn.write(Text(f"speak {2 * COUNT}"))
        number, pause = 0, threading.Event()
        for _ in range(2):
            before = workers(fleet)
            fleet.send(signal.SIGHUP)
            begun = number
            while any(map(exists, before)) or number < begun + COUNT:
                for each in range(number, number := number + 100):
                    client.conn.write(Text(str(each)), timeout=LONG)
                    pause.wait(0.001)
        client.proxy.plan = None
        client.lose()
        heard = [each.split() for each in client.heard.wait(number, LONG)]
        assert [text for _, text in heard] == [str(each) for each in range(number)]
        assert client.spoken.wait(2 * COUNT, LONG) == [f"spoken {n}" for n in range(2 * COUNT)]
        assert client.events.items == ["connect"]
        assert handled_by(fleet) == list(range(number))
        assert len({pid for pid, _ in heard}) == 3
        assert noted(fleet) == []


def test_what_moves(fleet: Fleet) -> None:
    """Groups, identity and what save returns; on_connect is not called again."""
    with Client(fleet) as client:
        pid, *_ = client.ask("told").split()
        assert client.ask("join us") == "joined"
        reload(fleet)
        # Another time, if the next link was one with TLS to a process that had no successor yet.
        wait_until(lambda: client.conn.session and client.conn.session.resumes, LONG)
        now, *told = client.ask("told").split()
        assert now != pid and told[:3] == ["connect", "load", "resume"]
        assert set(told[3:]) <= {"resume"}
        assert client.ask("who") == "I us us"
        assert client.ask("all us") == "all us"
        assert client.events.items == ["connect"]
        assert noted(fleet) == []
    wait_until(lambda: noted(fleet) == [f"close {now}"], LONG)


def test_reloads_in_quick_succession(fleet: Fleet) -> None:
    """The session moves on from a process that is replaced before the first one has ended."""
    with Client(fleet) as client:
        client.conn.write(Text(f"speak {COUNT}"))
        for number in range(3):
            ready = len(fleet.lines("is ready; .* drains"))
            fleet.send(signal.SIGHUP)
            wait_until(
                lambda ready=ready: len(fleet.lines("is ready; .* drains")) == ready + 2, LONG
            )
            client.conn.write(Text(str(number)), timeout=LONG)
        assert client.spoken.wait(COUNT, LONG) == [f"spoken {n}" for n in range(COUNT)]
        client.heard.wait(3, LONG)
        assert client.events.items == ["connect"]
        assert handled_by(fleet) == [0, 1, 2] and noted(fleet) == []
        wait_until(lambda: len(workers(fleet)) == 2, LONG)


@pytest.mark.parametrize("what", ["save fails", "load fails"])
def test_what_cannot_move(fleet: Fleet, what: str) -> None:
    """Both sides are told, once, and the client begins anew."""
    with Client(fleet) as client:
        pid, *_ = client.ask("told").split()
        with told(fleet, what):
            reload(fleet)
            client.events.wait(3, LONG)
        now, *history = client.ask("told").split()
        assert now != pid and history == ["connect"]
        events, ends = client.events.items, noted(fleet)
        # Twice, if the second session was with a process that had no successor yet.
        assert events == ["connect", *[("lost", []), "close", "connect"] * (len(events) // 3)]
        assert ends[:2] == [f"lost {pid} 0", f"close {pid}"]
        assert len(ends) == len(set(ends)) == 2 * (len(events) // 3)


@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_client_that_is_away(fleet: Fleet, when: str) -> None:
    """Its session moves all the same, and goes on when it comes."""
    with Client(fleet) as client:
        pid, *_ = client.ask("told").split()
        client.proxy.refuse()
        client.proxy.reset()
        client.conn.write(Text("1"))
        before = workers(fleet)
        fleet.send(signal.SIGHUP)
        if when == "while":
            wait_until(lambda: fleet.lines("is ready; .* drains"), LONG)
        if when != "after":
            client.proxy.accept()
        wait_until(lambda: not any(map(exists, before)), LONG)
        client.proxy.accept()
        assert client.heard.wait(2, LONG)[1].split()[1] == "1"
        assert client.ask("told").split()[0] != pid
        assert client.events.items == ["connect"] and noted(fleet) == []
        assert handled_by(fleet) == [1]


@pytest.mark.parametrize(("what", "killed"), [("save", "old"), ("load", "old"), ("load", "new")])
def test_a_process_that_is_killed_meanwhile(fleet: Fleet, what: str, killed: str) -> None:
    """The client is told, and the application where the other process is left, once."""
    with Client(fleet) as client:
        old, *_ = client.ask("told").split()
        before = workers(fleet)
        with told(fleet, f"{what} waits"):
            fleet.send(signal.SIGHUP)
            wait_until(lambda: noted(fleet), LONG)
            note, pid = noted(fleet)[0].split()
            assert note == f"{what}s" and (pid == old) is (what == "save")
            kill(int(old if killed == "old" else pid))
        wait_until(lambda: not any(map(exists, before)), LONG)
        assert client.events.wait(4, LONG) == ["connect", ("lost", []), "close", "connect"]
        left = old if killed == "new" else pid
        ends = [] if what == "save" else [f"lost {left} 0", f"close {left}"]
        wait_until(lambda: how_it_ended(fleet) == ends, LONG)


def how_it_ended(fleet: Fleet) -> list[str]:
    """What the processes have noted of ends."""
    return [each for each in noted(fleet) if each.startswith(("lost", "close"))]
