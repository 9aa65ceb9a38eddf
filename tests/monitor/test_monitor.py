"""Statistics over HTTP: the content of the pages, and requests that are refused."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.reports.statistics import Snapshot
from tao.monitor import monitor as module
from tao.monitor import prometheus as monitor_metrics
from tao.monitor.monitor import Monitor, monitor_on
from tao.server.server import Server
from tao.wire.message import Registry
from tests.ends import Number, Text
from tests.support import PATIENCE, wait_until

Get = Callable[..., tuple[HTTPResponse, str]]


@pytest.fixture
def only_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the servers and clients of earlier tests that still exist."""
    monkeypatch.setattr("tao.connection.reports.statistics._all", {})


@pytest.fixture
def monitor(only_new: None) -> Iterator[Monitor]:
    with monitor_on(0) as made:
        yield made


@pytest.fixture
def get(monitor: Monitor) -> Get:
    """A function that requests a page, and returns the response and its text."""

    def ask(path: str, method: str = "GET", body: bytes = b"") -> tuple[HTTPResponse, str]:
        connection = HTTPConnection(*monitor.address, timeout=PATIENCE)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()

    return ask


@pytest.fixture
def server(only_new: None) -> Iterator[Server]:
    """An echo server, not started yet."""
    with Server(registry=Registry()) as made:

        @made.handler(Text)
        def echo(ctx: Any, conn: Any) -> None:
            conn.write(ctx.message)

        yield made


def talk(server: Server, times: int = 1) -> ClientConn:
    """Connect to the server, exchange texts, and return the client, still connected."""
    replies = threading.Semaphore(0)
    client = ClientConn(server.start(("127.0.0.1", 0)), registry=Registry())
    client.handler(Text)(lambda ctx, conn: replies.release())
    client.start()
    for _ in range(times):
        client.write(Text("hello"))
        assert replies.acquire(timeout=PATIENCE)
    return client


def name_of(server: Server) -> str:
    return server.snapshot().name


# -- content


def test_variables(server: Server, get: Get) -> None:
    """The names of the Go original for the process, and all statistics of servers and clients."""
    with talk(server, 3) as client:
        wait_until(lambda: server.snapshot().handled == 3)
        answer, text = get("/debug/vars")
    found = json.loads(text)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert found["TotalConn"] == 2  # both ends are in this process
    assert found["TotalHandle"] == 6
    assert 0 < found["TotalTime"] < PATIENCE
    assert found["QPS"] > 0
    for key, each in (("servers", server.snapshot()), ("clients", client.snapshot())):
        assert list(found[key]) == [each.name]
        shown = found[key][each.name]
        assert set(shown) == {field.name for field in fields(Snapshot)}
        assert (shown["handled"], shown["connections_total"]) == (3, 1)


def test_name_state_and_address_of_an_end(server: Server) -> None:
    """Names are unique; state and address are current."""
    with Server() as other:
        assert name_of(server) != name_of(other)
    assert (server.snapshot().state, server.snapshot().address) == ("new", "")
    client = talk(server)
    host, port = server.address
    for each, state in ((server, "running"), (client, "connected")):
        assert (each.snapshot().state, each.snapshot().address) == (state, f"{host}:{port}")
    client.close()
    server.stop()
    assert (server.snapshot().state, client.snapshot().state) == ("stopped", "closed")


def test_counts_never_fall(server: Server) -> None:
    """The counts of a connection are in the sum before, during and after its end."""
    client = talk(server, 5)
    seen: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(server.snapshot().messages_in)

    watcher = threading.Thread(target=watch, name="test-watcher")
    watcher.start()
    client.close()
    server.stop()
    over.set()
    watcher.join()
    assert set(seen[1:]) <= {5}


def test_health(server: Server, get: Get) -> None:
    """The process is healthy while the server runs; else the server is listed with its state."""
    name = name_of(server)
    assert get("/healthz")[1] == f"{name} (no address): new\n"
    host, port = server.start(("127.0.0.1", 0))
    answer, text = get("/healthz")
    assert (answer.status, text) == (200, "ok\n")
    server.stop()
    answer, text = get("/healthz")
    assert (answer.status, text) == (503, f"{name} ({host}:{port}): stopped\n")


def test_a_stopping_server_is_unhealthy(server: Server, get: Get) -> None:
    """It is listed while its last handler runs; a server that was never started does not count."""
    running, release = threading.Event(), threading.Event()

    def block(ctx: Any, conn: Any) -> None:
        running.set()
        release.wait(PATIENCE)

    with Server(registry=Registry()) as never, Server(registry=Registry()) as stopping:
        stopping.handler(Text)(block)
        server.start(("127.0.0.1", 0))
        with ClientConn(stopping.start(("127.0.0.1", 0)), registry=Registry()) as client:
            client.write(Text("x"))
            assert running.wait(PATIENCE)
            stopper = threading.Thread(target=stopping.stop, name="test-stopper")
            stopper.start()
            wait_until(lambda: not stopping.running)
            text = get("/healthz")[1]
            release.set()
            stopper.join()
        assert text.startswith(f"{name_of(stopping)} (") and text.endswith("): stopping\n")
        assert name_of(never) not in text and name_of(server) not in text


def test_a_stopped_server_does_not_matter(server: Server, get: Get) -> None:
    """While another one runs, a stopped server does not make the process unhealthy."""
    with Server(registry=Registry()) as other:
        for each in (server, other):
            each.start(("127.0.0.1", 0))
        server.stop()
        assert (get("/healthz")[0].status, get("/healthz")[1]) == (200, "ok\n")
        other.stop()
        answer, text = get("/healthz")
        assert answer.status == 503 and name_of(server) in text and name_of(other) in text


def test_a_stopping_server_that_is_replaced(server: Server, get: Get) -> None:
    """A stopping server does not count if a running one listens at its address."""
    running, release = threading.Event(), threading.Event()

    @server.handler(Number)
    def block(ctx: Any, conn: Any) -> None:
        running.set()
        release.wait(PATIENCE)

    with socket.create_server(("127.0.0.1", 0)) as sock, Server(registry=Registry()) as successor:
        address = server.start(sock.dup())
        with ClientConn(address, registry=Registry()) as client:
            client.write(Number(1))
            assert running.wait(PATIENCE)
            stopper = threading.Thread(target=server.stop, name="test-stopper")
            stopper.start()
            wait_until(lambda: server.snapshot().state == "stopping")
            assert f":{address[1]}): stopping\n" in get("/healthz")[1]
            successor.start(sock.dup())
            assert get("/healthz")[1] == "ok\n"
            release.set()
            stopper.join()


def test_health_of_one_port(server: Server, get: Get) -> None:
    """A load balancer can query the health of one of several servers by its port."""
    with Server(registry=Registry()) as other:
        port, other_port = (each.start(("127.0.0.1", 0))[1] for each in (server, other))
        other.stop()
        assert get(f"/healthz?port={port}")[1] == "ok\n"
        answer, text = get(f"/healthz?port={other_port}")
        assert answer.status == 503 and text.startswith(name_of(other))
    answer, text = get("/healthz?port=1")
    assert (answer.status, text) == (503, "no server listens on port 1\n")
    assert get("/healthz?port=http")[0].status == 400


def test_clients_do_not_make_a_process_unhealthy(server: Server, get: Get) -> None:
    """A client that is trying to connect is listed after ``ok``."""
    options: Any = {"registry": Registry(), "reconnect": True}
    client = ClientConn(server.start(("127.0.0.1", 0)), **options).start()
    with Server(registry=Registry()) as other:
        other.start(("127.0.0.1", 0))
        assert get("/healthz")[1] == "ok\n"
        server.stop()
        wait_until(lambda: client.snapshot().state == "connecting")
        answer, text = get("/healthz")
        name, address = client.snapshot().name, client.snapshot().address
        assert (answer.status, text) == (200, f"ok\n{name} ({address}): connecting\n")
        client.close()
        assert get("/healthz")[1] == "ok\n"


def test_health_without_servers(get: Get) -> None:
    """A process with only clients is healthy."""
    assert get("/healthz")[0].status == 200


def test_metrics(server: Server, get: Get) -> None:
    """Each count is a counter, the others are gauges, labelled by name."""
    pytest.importorskip("prometheus_client")
    with talk(server, 2):
        wait_until(lambda: server.snapshot().handled == 2)
        answer, text = get("/metrics")
    name = name_of(server)
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    lines = text.splitlines()
    for line in (
        "# TYPE tao_handled_total counter",
        f'tao_handled_total{{name="{name}"}} 2.0',
        "# TYPE tao_open_connections gauge",
        f'tao_open_connections{{name="{name}"}} 1.0',
        f'tao_connections_total{{name="{name}"}} 1.0',
        f'tao_state{{name="{name}",state="running"}} 1.0',
    ):
        assert line in lines


def test_every_statistic_has_a_metric() -> None:
    """Every field of a snapshot has a metric; one has an old name as well."""
    words = {"name", "kind", "state", "address", "latency", "error_kinds", "cluster"}
    words.add("request_latency")  # it has several
    figures = (*monitor_metrics._COUNTERS, *monitor_metrics._GAUGES)
    shown = [each.field for each in figures if each.name != "tao_sessions_waiting"]
    assert sorted(shown) == sorted({field.name for field in fields(Snapshot)} - words)


def test_metrics_without_the_package(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says what to install, and the others work."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # importing it fails
    answer, text = get("/metrics")
    assert answer.status == 501
    assert "pip install 'tao-tcp[monitor]'" in text
    assert get("/debug/vars")[0].status == 200


def test_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate covers about the last ten seconds, however often it is read."""
    now = 1000.0
    monkeypatch.setattr("tao.monitor.monitor.time.monotonic", lambda: now)
    rate = module._Rate(0)
    assert rate.now(0) == 0
    for second in range(1, 31):
        now = 1000.0 + second
        assert rate.now(100 * second) == 100
        assert len(rate._readings.get()) <= 12
    now += 3600  # no reading for an hour
    assert rate.now(3000 + 36) == pytest.approx(0.01, rel=0.3)
    assert rate.now(0) == 0  # a garbage-collected server takes its count with it


# -- HTTP


def test_an_unknown_path(get: Get) -> None:
    """The response lists the pages."""
    answer, text = get("/nowhere")
    assert answer.status == 404
    assert all(path in text for path in ("/debug/vars", "/metrics", "/healthz"))


@pytest.mark.parametrize("path", ["/healthz?verbose=1", "/healthz/"])
def test_variants_of_a_path(get: Get, path: str) -> None:
    """A query and a trailing slash do not matter."""
    assert get(path)[0].status == 200


def test_head(get: Get) -> None:
    """The response to HEAD is that to GET without the body."""
    answer, text = get("/healthz", "HEAD")
    assert (answer.status, answer.headers["Content-Length"], text) == (200, "3", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "XYZ"])
def test_other_methods_are_refused(get: Get, method: str) -> None:
    """The response arrives although the request's body was not read."""
    answer, _ = get("/debug/vars", method, b"x" * 300_000)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_a_query_with_too_many_fields(get: Get, log_lines: list[Any]) -> None:
    """It is refused, and not logged as an error."""
    answer, body = get("/connections?" + "a=1&" * 21)
    assert (answer.status, body) == (400, "a query may have at most 20 fields\n")
    assert not [each for each in log_lines if each["level"].no >= 30]


@pytest.mark.parametrize("head", [b"\x16\x03\x01\x00\xee\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000])
def test_malformed_requests(monitor: Monitor, head: bytes) -> None:
    """The response is an error or nothing, and the next request is answered."""
    with socket.create_connection(monitor.address, PATIENCE) as sock:
        sock.sendall(head)
        assert not sock.makefile("rb").read().startswith(b"HTTP/1.0 200")
    with socket.create_connection(monitor.address, PATIENCE) as sock:
        sock.sendall(b"GET /healthz HTTP/1.0\n\n")
        assert sock.makefile("rb").read().startswith(b"HTTP/1.0 200")


# -- addresses


def test_localhost_is_the_default() -> None:
    """By default, only this machine can connect."""
    with monitor_on(0) as monitor:
        assert monitor.address[0] == "127.0.0.1"
        assert monitor.url == f"http://127.0.0.1:{monitor.address[1]}"
    with monitor_on(0, "") as monitor:
        assert monitor.address[0] == "0.0.0.0"


def test_ipv6() -> None:
    """The URL contains an IPv6 address in brackets."""
    try:
        monitor = monitor_on(0, "::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    with monitor:
        assert monitor.url == f"http://[::1]:{monitor.address[1]}"


def test_a_port_in_use(monitor: Monitor) -> None:
    """The error names the address."""
    with pytest.raises(
        OSError, match=rf"127\.0\.0\.1:{monitor.address[1]}: address already in use"
    ):
        monitor_on(monitor.address[1])


@pytest.mark.parametrize(
    ("port", "error"), [(65536, ValueError), (-1, ValueError), ("80", TypeError), (True, TypeError)]
)
def test_an_invalid_port(port: Any, error: type[Exception]) -> None:
    """It is refused before any socket is opened."""
    with pytest.raises(error, match="port"):
        monitor_on(port)


def test_closing_during_a_request() -> None:
    """A request that arrives at the same moment wakes the thread, and closing logs nothing."""
    for _ in range(50):
        monitor = monitor_on(0)
        stop = threading.Event()

        def call(address: tuple[str, int] = monitor.address, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                try:
                    # If the queue is full, the kernel drops it and the client tries again later.
                    socket.create_connection(address, 0.1).close()
                except OSError:
                    return

        caller = threading.Thread(target=call, name="test-caller")
        caller.start()
        monitor.close()
        stop.set()
        caller.join(PATIENCE)
        assert not caller.is_alive()
