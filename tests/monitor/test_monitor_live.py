"""The monitor's connections, stacks and live statistics, and the event stream."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.connection import core_of
from tao.connection.handling.slow_handlers import current_frames
from tao.connection.options.reconnecting import Reconnect
from tao.monitor import http as module
from tao.monitor import live as monitor_live
from tao.monitor.monitor import Monitor, monitor_on
from tao.server.server import Server, server_core_of
from tao.session.frames import ID_SIZE
from tao.session.sessions import Sessions
from tao.testing import FaultProxy
from tao.wire.message import Registry, UnknownMessage
from tests.connection.test_numbers import Verbal
from tests.ends import Number, Text
from tests.support import PATIENCE, ends, needs_stacks, wait_until

SECRET = "the combination of the safe"


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Monitor]:
    """A monitor that shows only objects of the test."""
    monkeypatch.setattr("tao.connection.reports.statistics._all", {})
    with monitor_on(0) as made:
        yield made


@pytest.fixture
def server(monitor: Monitor) -> Iterator[Server]:
    """A server that echoes a text, and blocks on a number until it is released."""
    with Server(registry=Registry()) as made:
        made.release = threading.Event()  # type: ignore[attr-defined]

        @made.handler(Text)
        def echo(ctx: Any, conn: Any) -> None:
            if ctx.message.text == SECRET:
                raise ValueError(SECRET)
            conn.write(ctx.message)

        @made.handler(Number)
        def keep(ctx: Any, conn: Any) -> None:
            made.release.wait(PATIENCE)  # type: ignore[attr-defined]

        made.start(("127.0.0.1", 0))
        yield made
        made.release.set()  # type: ignore[attr-defined]


@pytest.fixture
def client(server: Server) -> Iterator[ClientConn]:
    with ClientConn(server.address, registry=Registry()) as made:
        made.handler(Text)(lambda ctx, conn: None)
        wait_until(lambda: server.connections)
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that advances the feed's clock by seconds."""
    now = [1000.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def time() -> float:
            return 1e9 + now[0]

    monkeypatch.setattr(monitor_live, "time", Clock)

    def tick(seconds: float) -> None:
        now[0] += seconds

    return tick


def ask(
    monitor: Monitor, path: str, method: str = "GET", **headers: str
) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection(*monitor.address, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


def connections(monitor: Monitor, query: str = "") -> dict[str, Any]:
    answer, text = ask(monitor, f"/connections{query}")
    assert answer.status == 200, text
    found: dict[str, Any] = json.loads(text)
    return found


def many(server: Server, count: int) -> list[socket.socket]:
    """Connect ``count`` plain sockets in turn."""
    before = server.connection_count
    socks = []
    for number in range(count):
        socks.append(socket.create_connection(server.address, PATIENCE))
        wait_until(lambda number=number: server.connection_count == before + number + 1)
    return socks


def end(news: str, name: str) -> dict[str, Any]:
    return next(each for each in json.loads(news)["ends"] if each["name"] == name)


# -- /connections


def test_the_row_of_a_connection(monitor: Monitor, server: Server, client: ClientConn) -> None:
    """It has all fields of the connection, for both ends, which are in one process here."""
    client.write(Text("hello"))
    wait_until(lambda: client.snapshot().handled == 1)
    server.connections[0].name = "meter"
    found = connections(monitor)
    assert found["total"] == 2
    row = next(each for each in found["connections"] if each["server"] == server.snapshot().name)
    assert (row["id"], row["name"], row["tls"]) == (1, "meter", None)
    assert row["peer"] == "{}:{}".format(*client.local_address)
    assert (row["messages_in"], row["bytes_in"], row["messages_out"]) == (1, 13, 1)
    assert (row["send_queue"], row["pending"], row["running"]) == (0, 0, None)
    assert 0 <= row["last_heartbeat"] <= row["age"] < PATIENCE


@needs_stacks
def test_a_running_handler(monitor: Monitor, server: Server, client: ClientConn) -> None:
    """The row has the number of the message, and how long its handler has been running."""
    client.write(Number(1))
    name = server.snapshot().name

    def row() -> dict[str, Any]:
        found: dict[str, Any] = connections(monitor, f"?server={name}")["connections"][0]
        return found

    wait_until(lambda: row()["running_for"] > 0.01)
    assert (row()["running"], row()["pending"]) == (2, 1)


def test_numbers_of_all_kinds(monitor: Monitor) -> None:
    """Each has a label of its own in the figures, and is shown as text unless it is an int."""
    numbers: list[Any] = [7, "7", b"7", ("a", b"\1", 7), "other"]
    blocks = threading.Event()
    codec = Verbal()
    with Server(registry=Registry(), codec=codec, heartbeat=None) as server:
        for each in numbers:
            server.registry.register(each, bytes, lambda ctx, conn: blocks.wait(PATIENCE))
        server.start(("127.0.0.1", 0))
        with socket.create_connection(server.address) as sock:
            sock.sendall(b"".join(codec.encode(UnknownMessage(each, b"")) for each in numbers))
            row = next(iter(connections(monitor)["connections"]), None)
            while current_frames() and not (row and row["running"]):
                row = next(iter(connections(monitor)["connections"]), None)
            blocks.set()
            wait_until(lambda: server.snapshot().handled == len(numbers))
            shown = ["7", "'7'", "b'7'", "('a', b'\\x01', 7)", "'other'"]
            assert list(server.snapshot().latency) == shown
            rows = end(monitor_live.Feed().news(), "everything")["handlers"]
            assert {each["number"] for each in rows} == {7, *shown[1:]}
            found = re.findall(
                r'tao_handler_seconds_count\{.*number="(.*)"', ask(monitor, "/metrics")[1]
            )
            assert [each.replace(r"\\", "\\") for each in found] == shown


def test_the_session_of_a_connection(monitor: Monitor) -> None:
    """It is shown in its row at both ends, and counted."""
    with Server(registry=Registry(), sessions=Sessions()) as server:
        address = server.start(("127.0.0.1", 0))
        with ClientConn(address, registry=Registry(), session=True, reconnect=True) as client:
            wait_until(lambda: server.connections)
            shown = client.session
            assert shown is not None
            rows = connections(monitor, "?sort=-session")["connections"]
            assert [row["session"]["id"] for row in rows[:2]] == [shown.id, shown.id]
            assert rows[0]["session"]["connected"] and rows[0]["session"]["resumes"] == 0
            core_of(client).transport.outlives("the test says so")
            wait_until(lambda: server.snapshot().session_resumes == 1)
            assert (server.snapshot().sessions, client.snapshot().sessions_lost) == (1, 0)
            wait_until(lambda: client.connected)
            _, text = ask(monitor, "/metrics")
            assert f'tao_session_resumes_total{{name="{server.snapshot().name}"}} 1.0' in text


def test_a_session_that_lingers(monitor: Monitor) -> None:
    """Its row has what either side has not acknowledged, and its server counts it."""
    may_handle = threading.Event()
    server = Server(registry=Registry(), sessions=Sessions(), queue_size=4)
    with server, FaultProxy(server.start(("127.0.0.1", 0))) as proxy:
        client = ClientConn(
            proxy.address, registry=Registry(), session=True, reconnect=Reconnect(initial=60)
        )
        for each in (server, client):
            each.handler(Number)(lambda ctx, conn: may_handle.wait(PATIENCE))
        with client:
            wait_until(lambda: server.connections)
            conn = server.connections[0]
            for value in range(3):
                client.write(Number(value))
            conn.write(Number(9))
            wait_until(lambda: conn.session.unhandled == 48 and client.session.unhandled == 16)

            def row() -> Any:
                rows = connections(monitor, f"?server={server.snapshot().name}")["connections"]
                return rows[0]["session"]

            assert row() == {
                "id": conn.session.id,
                "connected": True,
                "resumes": 0,
                "unacknowledged": 16,
                "unhandled": 48,
            }
            assert len(row()["id"]) == 16 < 2 * ID_SIZE  # in hexadecimal digits
            proxy.refuse()
            proxy.reset()
            wait_until(lambda: not row()["connected"])
            shown = end(monitor_live.Feed().news(), server.snapshot().name)
            names = ("sessions", "sessions_lingering", "sessions_lost", "session_bytes")
            assert [shown[name] for name in names] == [1, 1, 0, 16]
            may_handle.set()
            client.abort()
            conn.abort()
            conn.wait_closed(PATIENCE)
        shown = end(monitor_live.Feed().news(), server.snapshot().name)
        assert [shown[name] for name in names] == [0, 0, 0, 0]


def test_figures_of_sessions(monitor: Monitor) -> None:
    """Each has its name in ``/metrics``; the old name of one is still there."""
    lost = threading.Event()
    options: dict[str, Any] = {"on_session_lost": lambda conn, messages: lost.set()}
    server = Server(registry=Registry(), sessions=Sessions(linger=0.05), **options)
    with server, FaultProxy(server.start(("127.0.0.1", 0))) as proxy:
        with ClientConn(
            proxy.address, registry=Registry(), session=True, reconnect=Reconnect(initial=60)
        ):
            wait_until(lambda: server.connections)
            proxy.refuse()
            proxy.reset()
            assert lost.wait(PATIENCE)
            _, text = ask(monitor, "/metrics")
        label = f'{{name="{server.snapshot().name}"}}'
        assert f"tao_sessions_lost_total{label} 1.0" in text
        for name in (
            *("tao_sessions", "tao_sessions_lingering", "tao_sessions_waiting"),
            *("tao_session_bytes", "tao_session_resumes_total", "tao_sessions_moved_total"),
            *("tao_session_links_passed_total", "tao_session_links_relayed_total"),
        ):
            assert f"{name}{label}" in text
        with pytest.warns(DeprecationWarning, match="sessions_lingering"):
            assert server.snapshot().sessions_waiting == server.snapshot().sessions_lingering


def test_pages_of_connections(monitor: Monitor, server: Server) -> None:
    """``offset`` and ``limit`` select a part of the list; past its end it is empty."""
    socks = many(server, 5)
    found = connections(monitor, "?offset=1&limit=2")
    assert (found["total"], [each["id"] for each in found["connections"]]) == (5, [2, 3])
    assert connections(monitor, "?offset=5") == {"total": 5, "offset": 5, "connections": []}
    assert connections(monitor, "?server=nobody")["total"] == 0
    for sock in socks:
        sock.close()


def test_sorting_and_filtering(monitor: Monitor, server: Server) -> None:
    """Rows are sorted by any field in both orders, and filtered by their text."""
    socks = many(server, 4)
    socks[2].sendall(b"\x01\x00\x00\x00\x02\x00\x00\x00hi" * 3)
    wait_until(lambda: server.snapshot().handled == 3)
    server.connections[1].name = "PUMP"

    def ids(query: str) -> list[int]:
        return [each["id"] for each in connections(monitor, query)["connections"]]

    assert ids("?sort=-id") == [4, 3, 2, 1]
    assert ids("?sort=age") == [4, 3, 2, 1]
    assert ids("?sort=-messages_in&limit=1") == [3]
    assert ids("?sort=-running_for&filter=pump") == [2]
    assert ids(f"?filter={socks[3].getsockname()[1]}") == [4]
    for column in connections(monitor)["connections"][0]:
        if column not in ("running", "send_queue_limit"):
            assert len(ids(f"?sort=-{column}")) == 4
    for sock in socks:
        sock.close()


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("limit=-1", "limit must be a number"),
        ("limit=10001", "limit must be a number from 0 to 10000"),
        ("offset=x", "offset must be a number"),
        ("offset=" + "9" * 5000, "offset must be a number"),
        ("sort=colour", "sort must be one of id, server"),
        ("colour=red", "there is no colour"),
    ],
)
def test_invalid_queries(monitor: Monitor, query: str, why: str) -> None:
    """The response says what is valid."""
    answer, text = ask(monitor, f"/connections?{query}")
    assert answer.status == 400 and why in text


# -- /stacks


@needs_stacks
def test_stacks(monitor: Monitor, server: Server, client: ClientConn) -> None:
    """Threads are listed by connection and role with their stacks, without values of variables."""
    client.write(Text(SECRET))
    client.write(Number(123456789))
    name = server.snapshot().name
    wait_until(lambda: "handling message 2 for" in ask(monitor, "/stacks")[1])
    text = ask(monitor, "/stacks")[1]
    assert re.search(rf"^{name}, connection 1, 127\.0\.0\.1:\d+$", text, re.MULTILINE)
    for thread in (
        f"tao-acceptor-{server.address[1]}, accepts",
        "tao-timing-wheel, runs",
        "tao-reader-1",
    ):
        assert f"  {thread}" in text
    assert "in keep\n" in text
    assert SECRET not in text and "123456789" not in text


def test_no_stacks_without_the_interpreter_lock(
    monitor: Monitor, client: ClientConn, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the stack of a running thread would crash the interpreter."""
    client.write(Number(1))
    wait_until(lambda: server.connections[0]._core.dispatcher.pending)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    text = ask(monitor, "/stacks")[1]
    assert "stacks are not available" in text
    assert re.search(r"^  tao-reader-1$", text, re.MULTILINE) and "File" not in text
    assert connections(monitor)["connections"][0]["running"] is None


def test_stacks_are_bounded(
    monitor: Monitor, client: ClientConn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit, threads are left out, and the page says so."""
    monkeypatch.setattr("tao.monitor.stacks._MOST", 2)
    text = ask(monitor, "/stacks")[1]
    assert re.match(r"2 of \d+ threads\n", text)
    assert len(re.findall(r"^  tao-", text, re.MULTILINE)) == 2


# -- names from the application


class Unprintable:
    """Raises when it is converted to a string."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or ValueError("no")

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__


class Nameless:
    """A handler without a name."""

    def __call__(self, ctx: Any, conn: Any) -> None:
        pass

    @property
    def __name__(self) -> Any:
        return Unprintable()


NAMES = [
    Unprintable(),
    Unprintable(RecursionError()),
    Unprintable(SystemExit()),
    "\udcff",
    "a\nb",
    b"x",
    7,
    None,
    "x" * 10**6,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("path", ["/connections", "/connections?filter=a&sort=-name", "/stacks"])
def test_arbitrary_names(
    monitor: Monitor, server: Server, client: ClientConn, name: Any, path: str
) -> None:
    """Names and addresses of any type are shown, even if formatting them raises."""
    client.write(Number(1))
    conn: Any = server.connections[0]
    wait_until(lambda: conn._core.dispatcher.pending)
    conn.name = conn.remote_address = name
    answer, text = ask(monitor, path)
    assert answer.status == 200 and len(text) < 200_000
    if "filter" not in path:
        assert server.snapshot().name in text
    if isinstance(name, Unprintable):
        assert "<unprintable Unprintable: " in text or "filter" in path


def test_handlers_without_a_name(monitor: Monitor, server: Server, client: ClientConn) -> None:
    """What can be shown of the handler is shown instead."""
    server.registry.register(7, bytes, Nameless())
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(b"\7\0\0\0\0\0\0\0")
        wait_until(lambda: server.snapshot().handled == 1)
        (row,) = end(monitor._site.feed.news(), server.snapshot().name)["handlers"]
    assert (row["number"], row["name"]) == (7, "<unprintable Unprintable: ValueError>")


# -- the feed


def test_rates_and_percentiles(
    monitor: Monitor, server: Server, client: ClientConn, clock: Callable[[float], None]
) -> None:
    """Rates cover the last second, percentiles the last ten."""
    name = server.snapshot().name
    assert end(monitor._site.feed.news(), name)["rates"]["messages_in"] == 0
    for _ in range(6):
        client.write(Text("hello"))
    wait_until(lambda: server.snapshot().handled == 6)
    wait_until(lambda: server.snapshot().messages_out == 6)
    clock(2)
    found = end(monitor._site.feed.news(), name)
    assert (found["rates"]["messages_in"], found["rates"]["messages_out"]) == (3, 3)
    (row,) = found["handlers"]
    assert row["name"] == "echo"
    assert (row["number"], row["count"], row["total"], row["rate"]) == (1, 6, 6, 3)
    assert 0 < row["p50"] <= row["p99"] <= row["most"] < PATIENCE
    assert found["latency"]["count"] == 6
    clock(15)
    found = end(monitor._site.feed.news(), name)
    assert (found["rates"]["messages_in"], found["handlers"][0]["count"]) == (0, 0)
    assert found["handlers"][0]["total"] == 6


def test_an_update_is_made_once_per_second(
    monitor: Monitor, server: Server, clock: Callable[[float], None]
) -> None:
    """All pages get the same update; the history is kept for later pages."""
    first = monitor._site.feed.news()
    assert monitor._site.feed.news() is first
    for _ in range(400):
        clock(1)
        assert monitor._site.feed.news() != first
    history = json.loads(monitor._site.feed.history())
    assert len(history) == 300
    assert set(history[-1]["points"]) == {"everything", server.snapshot().name}
    assert all(len(kept) <= 62 for kept in monitor._site.feed._readings.values())


def test_the_total(monitor: Monitor, server: Server, client: ClientConn) -> None:
    """The first row is the sum of the others."""
    client.write(Text("hello"))
    wait_until(lambda: client.snapshot().handled == 1)
    total, *others = json.loads(monitor._site.feed.news())["ends"]
    assert total["name"] == "everything"
    assert [each["kind"] for each in others] == ["server", "client"]
    for figure in ("messages_in", "connections", "handled", "workers"):
        assert total[figure] == sum(each[figure] for each in others)
    assert total["handlers"][0]["total"] == 2


def test_many_clients_are_summed_up(
    monitor: Monitor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of an update does not grow with their number."""
    monkeypatch.setattr(monitor_live, "_APART", 2)
    clients = [ClientConn(server.address, registry=Registry()).start() for _ in range(5)]
    shown = json.loads(monitor._site.feed.news())["ends"]
    assert len(shown) == 5
    assert (shown[-1]["name"], shown[-1]["connections"]) == ("3 other clients", 3)
    for each in clients:
        each.close()
    del clients, each


def test_problems(
    monitor: Monitor, server: Server, client: ClientConn, clock: Callable[[float], None]
) -> None:
    """Errors, full queues, slow handlers and busy workers are described, without contents."""
    server_core_of(server).resources.pool.size = 1
    monitor._site.feed.news()
    for _ in range(8):
        client.write(Text(SECRET))
    wait_until(lambda: server.snapshot().errors == 8)
    client.write(Number(1))
    for _ in range(200):
        client.write(Number(2))
    wait_until(lambda: server.connections[0]._core.dispatcher.pending == 201)
    wait_until(lambda: server.snapshot().workers_busy == 1)
    clock(30)
    news = monitor._site.feed.news()
    said = "\n".join(each["text"] for each in json.loads(news)["concerns"])
    assert "8 errors in the last minute, most often ValueError" in said
    assert "201 messages wait for their handler" in said
    assert "all 1 workers are busy" in said
    assert SECRET not in news
    found = end(news, server.snapshot().name)
    assert found["error_kinds"] == {"ValueError": 8}
    assert re.search(
        r"handling message 1: at test_monitor_live.py:\d+ in echo", found["failures"][0]["reason"]
    )
    server.release.set()  # type: ignore[attr-defined]


def test_a_stopped_server_is_a_problem(monitor: Monitor, server: Server) -> None:
    """It is the first problem in the list."""
    server.stop()
    concerns = json.loads(monitor._site.feed.news())["concerns"]
    assert concerns == [{"end": server.snapshot().name, "bad": True, "text": "is stopped"}]


# -- server-sent events


class Listener:
    """Reads events as a browser does."""

    def __init__(self, monitor: Monitor) -> None:
        self.sock = socket.create_connection(monitor.address, PATIENCE)
        self.sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.file = self.sock.makefile("rb")
        self.status = self.file.readline()
        self.head = dict(line.split(": ", 1) for line in iter(self._line, ""))

    def _line(self) -> str:
        return self.file.readline().decode().rstrip("\r\n")

    def event(self) -> tuple[str, Any]:
        """Return the type of the next event and its data."""
        fields = dict(line.split(": ", 1) for line in iter(self._line, ""))
        return fields.get("event", "message"), json.loads(fields["data"])

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def test_events(monitor: Monitor, server: Server) -> None:
    """The history comes first, then the current state once per second."""
    listener = Listener(monitor)
    assert b" 200 " in listener.status
    assert listener.head["Content-Type"] == "text/event-stream"
    assert listener.event() == ("history", [])
    first, second = listener.event()[1], listener.event()[1]
    assert 0.5 < second["time"] - first["time"] < PATIENCE
    assert [each["name"] for each in second["ends"]] == ["everything", server.snapshot().name]
    listener.close()


def test_streams_are_limited(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit, the status is 503; other requests work, and a closed stream makes room."""
    monkeypatch.setattr(monitor._site, "_places", deque([None] * 3))
    listeners = [Listener(monitor) for _ in range(3)]
    for each in listeners:
        each.event()
    for method, text in (("GET", "too many live pages are open"), ("HEAD", "")):
        answer, body = ask(monitor, "/events", method)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert text in body
    assert ask(monitor, "/healthz")[0].status == 200
    listeners.pop().close()
    wait_until(lambda: ask(monitor, "/events", "HEAD")[0].status == 200)
    for each in listeners:
        each.close()


def test_streams_do_not_count_as_requests(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams do not block requests, and are not closed in favour of requests."""
    monkeypatch.setattr(module, "_MOST_PEERS", 2)
    listeners = [Listener(monitor) for _ in range(8)]
    for _ in range(10):
        assert ask(monitor, "/healthz")[0].status == 200
    for each in listeners:
        each.event()
        each.close()


def test_closing_ends_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the monitor ends them at once."""
    monitor = monitor_on(0)
    listener = Listener(monitor)
    listener.event()
    assert ends(monitor.close)
    assert b"retry" not in listener.file.read()
    assert monitor._http._all() == []
    listener.close()


def test_a_stream_that_does_not_read_is_closed(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are not stored for it, and other streams get them meanwhile."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(monitor._http, "_period", 0.001)
    deaf, listener = Listener(monitor), Listener(monitor)
    listener.event()
    monkeypatch.setattr(monitor._http, "_news", lambda: f'data: "{"x" * 1_000_000}"\n\n')
    while len(monitor._http._streams()) > 1:
        listener.event()
    deaf.close()
    listener.close()


# -- security headers


def test_every_response_has_security_headers(monitor: Monitor) -> None:
    """Responses to refused requests have them as well."""
    for path, method in (("/", "GET"), ("/nowhere", "GET"), ("/", "POST"), ("/events", "HEAD")):
        head = ask(monitor, path, method)[0].headers
        assert head["X-Content-Type-Options"] == "nosniff"
        assert head["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in head["Content-Security-Policy"]
    with socket.create_connection(monitor.address, PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n")
        assert b"Content-Security-Policy: " in sock.makefile("rb").read()


def test_the_live_page(monitor: Monitor) -> None:
    """It is one file that loads nothing else, and its policy allows only its own content."""
    answer, text = ask(monitor, "/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert len(re.findall("'sha256-", policy)) == 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "innerHTML" not in text


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "10.evil.example"])
def test_a_foreign_host_name_is_refused(monitor: Monitor, host: str) -> None:
    """A site with a name that resolves to this machine cannot read the pages (DNS rebinding)."""
    answer, text = ask(monitor, "/debug/vars", Host=host)
    assert answer.status == 403 and "localhost" in text


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:8080", "[::1]:80", "tao.localhost"])
def test_local_host_names(monitor: Monitor, host: str) -> None:
    """All names and addresses of this machine are accepted."""
    assert ask(monitor, "/healthz", Host=host)[0].status == 200


def test_any_host_name_for_a_public_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that other machines can reach accepts any host name."""
    with monitor_on(0, "") as monitor:
        address = ("127.0.0.1", monitor.address[1])
        monkeypatch.setattr(monitor, "address", address)
        assert ask(monitor, "/", Host="gateway.example")[0].status == 200


def test_latencies_and_kinds_for_prometheus(
    monitor: Monitor, server: Server, client: ClientConn
) -> None:
    """There is a histogram for each number, and a counter for each class of exceptions."""
    pytest.importorskip("prometheus_client")
    client.write(Text("hello"))
    client.write(Text(SECRET))
    wait_until(lambda: server.snapshot().handled == 2)
    name = server.snapshot().name
    text = ask(monitor, "/metrics")[1]
    lines = text.splitlines()
    for line in (
        "# TYPE tao_handler_seconds histogram",
        f'tao_handler_seconds_bucket{{le="+Inf",name="{name}",number="1"}} 2.0',
        f'tao_handler_seconds_count{{name="{name}",number="1"}} 2.0',
        f'tao_errors_by_kind_total{{kind="ValueError",name="{name}"}} 1.0',
        f'tao_send_queue{{name="{name}"}} 0.0',
    ):
        assert line in lines
    assert SECRET not in text


def test_latencies_in_a_snapshot(server: Server, client: ClientConn) -> None:
    """Latencies are by number, with keys that JSON supports."""
    client.write(Text("hello"))
    wait_until(lambda: server.snapshot().handled == 1)
    found = server.snapshot().as_dict()["latency"]
    assert list(found) == ["1"] and found["1"]["count"] == 1
    assert 0 < found["1"]["p50"] <= found["1"]["most"] < PATIENCE
