"""Sessions with several processes: a client that comes back reaches another one than before."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.fleet import Fleet, exists, kill
from tests.cluster.session_fleet import KINDS, SOME, Client, cutting, handled_by, lost_in, workers
from tests.ends import Text
from tests.programs import LONG
from tests.support import wait_until
from tests.tls_pairs import CA

pytestmark = pytest.mark.xdist_group("cluster")

COUNT = 3000
# Of random cuts; another one with each run that sets it.
SEED = int(os.environ.get("SESSION_SEED", "1"))

#: Answers each message with the number of the process and what it was told of this connection, and
#: speaks by itself when asked to.
APP = r"""
import os, threading, tao

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

def opened(conn):
    conn.state.told = ["connect"]

def lost(conn, messages):
    print("lost", len(messages), flush=True)

server = tao.Server(
    registry=tao.Registry(), sessions=tao.Sessions(), drain_timeout=5, on_connect=opened,
    on_resume=lambda conn: conn.state.told.append("resume"), on_session_lost=lost, **OPTIONS
)

@server.handler(Text)
def answer(ctx, conn):
    text = ctx.message.text
    if text == "told":
        conn.write(Text(" ".join([str(os.getpid()), *conn.state.told])))
    elif text.startswith("speak "):
        threading.Thread(target=speak, args=(conn, int(text[6:]))).start()
    else:
        os.write(log, f"{text}\n".encode())
        conn.write(Text(f"{os.getpid()} {text}"), timeout=20)

def speak(conn, count):
    for number in range(count):
        conn.write(Text(f"spoken {number}"), timeout=20)
"""


@contextmanager
def other_than(fleet: Fleet, client: Client) -> Iterator[Client]:
    """A client whose session another process has."""
    while True:
        with Client(fleet) as other:
            if other.ask("told").split()[0] != client.ask("told").split()[0]:
                yield other
                return


@pytest.fixture(scope="module", params=SOME)
def long_lived(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Three workers."""
    folder = tmp_path_factory.mktemp("fleet")
    CA.issue().write(folder / "server.pem", folder / "key.pem")
    (folder / "ca.pem").write_bytes(CA.certificate)
    app = f"import tao\nOPTIONS = dict({KINDS[request.param]})\n{APP}"
    with Fleet(folder, 3, "--drain-spread", 0.3, "--monitor", 0, app=app) as fleet:
        assert fleet.port
        fleet.tls = "TLS" in request.param
        yield fleet


@pytest.fixture
def fleet(long_lived: Fleet) -> Iterator[Fleet]:
    """The same, whose connections are closed after each test."""
    with long_lived.cleanup:
        yield long_lived


def test_all_is_handled_once_and_in_order(fleet: Fleet) -> None:
    """While the connection is cut at random bytes, and the next one reaches any process."""
    with Client(fleet) as client:
        client.proxy.plan = cutting(SEED)
        client.proxy.reset()
        client.conn.write(Text(f"speak {COUNT}"))
        number = 0
        while number < COUNT or client.conn.session.resumes <= 5:  # how often it is cut is random
            client.conn.write(Text(str(number)), timeout=LONG)
            number += 1
        heard = [each.split() for each in client.heard.wait(number, LONG)]
        assert [text for _, text in heard] == [str(each) for each in range(number)]
        assert client.spoken.wait(COUNT, LONG) == [f"spoken {number}" for number in range(COUNT)]
        assert len({pid for pid, _ in heard}) == 1
        client.proxy.plan = None
        client.lose()  # the last connection would be cut, too
        assert client.events.items == ["connect"]


def test_the_connection_is_the_same(fleet: Fleet) -> None:
    """Its values stay, callbacks tell of each resume, and only one process has it."""
    with Client(fleet) as client:
        pid, *told = client.ask("told").split()
        assert told == ["connect"]
        for _ in range(20):
            client.lose()
        assert client.ask("told").split() == [pid, "connect", *["resume"] * 20]
        assert client.events.items == ["connect"]
        rows = fleet.page("connections")["connections"]
        assert [row["session"]["resumes"] for row in rows] == [20]


def test_a_process_that_is_killed(fleet: Fleet) -> None:
    """The client is told what is uncertain, and begins anew; other sessions go on."""
    (fleet.module.parent / "handled").write_bytes(b"")
    with Client(fleet) as client, other_than(fleet, client) as other:
        pid, *_ = client.ask("told").split()
        wait_until(lambda: client.conn.session and not client.conn.session.unacknowledged)
        for number in range(COUNT):
            if number == COUNT // 2:
                kill(int(pid))
            client.conn.write(Text(str(number)), timeout=LONG)
        client.events.wait(4, LONG)
        client.conn.write(Text("the end"))
        wait_until(lambda: client.heard.items[-1].endswith("the end"), LONG)
        kinds = [each[0] if isinstance(each, tuple) else each for each in client.events.items]
        assert kinds == ["connect", "lost", "close", "connect"]
        uncertain = [int(text) for text in client.events.items[1][1]]
        assert uncertain == list(range(uncertain[0], uncertain[-1] + 1))
        handled = handled_by(fleet)
        assert handled == sorted(set(handled))
        assert set(range(COUNT)) - set(handled) <= set(uncertain)
        other.lose()
        assert other.ask("told").split()[1:] == ["connect", "resume"]


def test_a_process_that_hangs_for_a_while(fleet: Fleet) -> None:
    """The session goes on when it does."""
    with Client(fleet) as client:
        pid, *_ = client.ask("told").split()
        kill(int(pid), signal.SIGSTOP)
        before = client.proxy.accepted
        client.proxy.reset()
        client.conn.write(Text("written meanwhile"))
        wait_until(lambda: client.proxy.accepted > before, LONG)
        kill(int(pid), signal.SIGCONT)
        assert client.heard.wait(2, LONG)[1:] == [f"{pid} written meanwhile"]
        assert client.events.items == ["connect"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_reload(fleet: Fleet, cut: bool) -> None:
    """Sessions end in order with their process; clients go on with a new one, and lose nothing."""
    before, pause = workers(fleet), threading.Event()
    (fleet.module.parent / "handled").write_bytes(b"")
    with Client(fleet) as client:
        if cut:
            client.proxy.plan = cutting(SEED, connections=8)
            client.proxy.reset()
        client.conn.write(Text(f"speak {COUNT}"))
        fleet.send(signal.SIGHUP)
        number = 0
        while any(map(exists, before)) or number < COUNT:
            for each in range(number, number := number + 100):
                client.conn.write(Text(str(each)), timeout=LONG)
                pause.wait(0.001)
        wait_until(lambda: len(client.heard.items) >= number or lost_in(client), LONG)
        client.proxy.plan = None
        client.lose()
        if lost_in(client):
            assert cut  # and the old process has ended before the client has come through
            client.conn.write(Text("the end"))
            wait_until(lambda: client.heard.items[-1].endswith("the end"), LONG)
            handled = handled_by(fleet)
            assert len(handled) == len(set(handled))
            told = {int(text) for text in lost_in(client) if text.isdigit()}
            assert set(range(number)) - set(handled) <= told
            return
        heard = [each.split() for each in client.heard.items]
        assert [text for _, text in heard] == [str(each) for each in range(number)]
        assert client.spoken.wait(COUNT, LONG) == [f"spoken {each}" for each in range(COUNT)]
        # More than two sessions, if the second was with a process that had no successor yet.
        events = client.events.items
        assert events == ["connect", *["close", "connect"] * (len(events) // 2)]
        assert heard[0][0] in map(str, before) and heard[-1][0] not in map(str, before)


def test_a_session_that_is_lost_during_a_reload(tmp_path: Path) -> None:
    """Its process waits for the client, which resumes it and is told to leave then."""
    app = f"OPTIONS = {{}}\n{APP}"
    with Fleet(tmp_path, 2, "--drain-spread", 10, app=app) as fleet, Client(fleet) as client:
        pid, *_ = client.ask("told").split()
        client.proxy.refuse()
        client.proxy.reset()
        client.conn.write(Text("told"))
        fleet.send(signal.SIGHUP)
        wait_until(lambda: len(fleet.lines("is ready; .* drains")) == 2, LONG)
        client.proxy.accept()
        assert client.heard.wait(2, LONG)[1].split() == [pid, "connect", "resume"]
        assert client.events.wait(3, LONG) == ["connect", "close", "connect"]
        assert client.ask("told").split()[0] != pid
