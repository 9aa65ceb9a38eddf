"""``tao top``: its output for real monitors, and for arbitrary responses."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

import tao
from tao.cli.common import Failed
from tao.cli.figures import Table, Watch
from tao.cli.main import main
from tests.ends import MakeServer
from tests.programs import LONG, Program
from tests.support import wait_until

Pages = dict[str, Any]


@contextmanager
def monitor(pages: Pages) -> Iterator[tuple[str, int]]:
    """Answer as a monitor with these pages, given as JSON values or as raw bytes."""

    class Request(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            body = page if isinstance(page, bytes) else json.dumps(page).encode()
            status = page if isinstance(page, int) else 200
            self.send_response(status if page is not None else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Request)) as port:
        yield "127.0.0.1", port


@contextmanager
def monitor_that_says(response: bytes) -> Iterator[int]:
    """Answer each request with these bytes."""

    class Request(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(response)

    with serving(TCPServer(("127.0.0.1", 0), Request)) as port:
        yield port


@contextmanager
def serving(server: TCPServer) -> Iterator[int]:
    """Run a server in a thread; yield its port."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="test-monitor")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(LONG)


def variables(**figures: Any) -> Pages:
    """Return the statistics of one server."""
    server = {"name": "server-1", "state": "running", "uptime": 10.0, **figures}
    return {"TotalConn": 3, "QPS": 2.5, "servers": {"server-1": server}, "clients": {}}


def connection(number: int, **figures: Any) -> dict[str, Any]:
    return {"id": number, "name": f"c{number}", "peer": "127.0.0.1:5", "age": 1.0, **figures}


def cells(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_a_real_monitor(make_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A frame shows the server, its activity, and how many of its workers are busy."""
    server, address = make_server(workers=3)
    client = tao.ClientConn(address, registry=tao.Registry())
    with tao.monitor_on(0) as real, client:
        assert main(["top", f":{real.address[1]}", "--once"]) == 0
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    header = next(line for line in lines if line.startswith("SERVER"))
    name = server.snapshot().name
    (row,) = [line for line in lines if re.match(rf"{name}\s", line)]
    assert "HANDLED/s" in header and f"127.0.0.1:{address[1]}" in row and " 0/3 " in row
    assert any(line.startswith("CLIENT") for line in lines) and errors == ""


def test_a_real_connection(make_server: MakeServer) -> None:
    """It shows the peer, the counts, and the message with a handler that does not return."""
    go_on = threading.Event()
    registry = tao.Registry()
    registry.register(7, bytes, lambda ctx, conn: go_on.wait(LONG), dispatch="pool")
    server, address = make_server(registry=registry)
    with tao.monitor_on(0) as real, socket.create_connection(address, LONG) as sock:
        sock.sendall(b"\7\0\0\0\0\0\0\0" * 3)
        wait_until(lambda: server.snapshot().workers_busy)
        frame = Watch(real.address, "running", 10).read()
        go_on.set()
        peer = "127.0.0.1:{1}".format(*sock.getsockname())
    row = next(row for row in cells(frame.tables[-1]) if row["PEER"] == peer)
    assert (row["RUNNING"], row["OF"], row["PENDING"]) == ("7", server.snapshot().name, "3")
    assert row["FOR"] != "-" and row["TLS"] == "-" and frame.note == ""


def test_rates() -> None:
    """The first frame shows rates since the start, later ones rates since the previous frame."""
    pages = {"/debug/vars": variables(messages_in=50, bytes_in=2048, workers=2, workers_busy=2)}
    with monitor(pages) as address:
        watch = Watch(address, "queue", 10)
        (row,) = cells(watch.read().tables[0])
        assert (row["IN/s"], row["WORKERS"], row["UP"]) == ("5.0", "2/2", "10s")
        pages["/debug/vars"] = variables(messages_in=250, bytes_in=4096, uptime=12.0)
        (row,) = cells(watch.read().tables[0])
        assert (row["IN/s"], row["B IN/s"], row["UP"]) == ("100", "1.0 KiB", "12s")
        pages["/debug/vars"] = variables(messages_in=8, uptime=4.0)  # another process
        (row,) = cells(watch.read().tables[0])
        assert row["IN/s"] == "2.0"


@pytest.mark.parametrize(
    ("sort", "order"),
    [("queue", "2431"), ("running", "4321"), ("rate", "1234"), ("age", "3142")],
)
def test_the_sort_order(sort: str, order: str) -> None:
    """Connections are sorted by waiting messages, handler run time, rate or age."""
    known = [
        connection(1, messages_in=900, age=3.0, running_for=None),
        connection(2, send_queue=7, pending=2, running="7", running_for=0.1, messages_in=50),
        connection(3, age=50.0, running_for=0.5, messages_in=600),
        connection(4, pending=1, running="8", running_for=3.0, age=2.0, messages_out=5),
    ]
    pages = {"/debug/vars": variables(), "/connections": {"total": 9, "connections": known}}
    with monitor(pages) as address:
        frame = Watch(address, sort, 10).read()
        assert [row["ID"] for row in cells(frame.tables[1])] == list(order)
        assert frame.note == "4 of 9 connections"
        short = Watch(address, sort, 2).read()
    assert len(short.tables[1].rows) == 2 and short.note == "2 of 9 connections"


def test_a_connection() -> None:
    """A row shows all fields of a connection, and is highlighted if it needs attention."""
    figures = {"send_queue": 4, "pending": 5, "tls": "TLSv1.3", "running": 0, "server": "server-1"}
    known = [connection(7, running_for=75.0, messages_in=3, **figures), connection(8)]
    pages = {"/debug/vars": variables(), "/connections": {"total": 2, "connections": known}}
    with monitor(pages) as address:
        table = Watch(address, "queue", 10).read().tables[1]
    first, second = cells(table)
    assert (first["RUNNING"], first["FOR"], first["TLS"]) == ("0", "1m15s", "TLSv1.3")
    assert (first["QUEUE"], first["PENDING"], first["IN/s"]) == ("4", "5", "3.0")
    assert (first["OF"], second["OF"]) == ("server-1", "-")
    assert (second["RUNNING"], second["FOR"], second["TLS"]) == ("-", "-", "-")
    assert table.bad == [True, False]


def test_untrusted_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters are escaped in names and in errors."""
    known = [connection(1, name="\x1b[2J[red]", peer=None, age="old", pending=[1]), "nonsense"]
    pages = {"/debug/vars": variables(), "/connections": {"total": "x", "connections": known}}
    pages["/debug/vars"] |= {"clients": 5, "QPS": None}
    with monitor(pages) as (_, port):
        assert main(["top", f":{port}", "--once"]) == 0
    output = capsys.readouterr().out
    assert r"\x1b[2J[red]" in output and "\x1b" not in output


@pytest.mark.parametrize("page", [None, b"<html>", [], {"servers": {}}])
def test_another_http_server(capsys: pytest.CaptureFixture[str], page: Any) -> None:
    """A server that answers something else is not a monitor."""
    with monitor({"/debug/vars": page}) as (_, port):
        assert main(["top", f":{port}", "--once"]) == 1
    assert capsys.readouterr().err == f"tao: 127.0.0.1:{port} is not a tao monitor\n"


def test_an_absent_monitor(make_server: MakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A port without a listener or without HTTP is not a monitor."""
    _, address = make_server()
    assert main(["top", f":{address[1]}"]) == 1
    assert "is not a tao monitor" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert main(["top", f":{port}"]) == 1
    assert capsys.readouterr().err == f"tao: cannot reach 127.0.0.1:{port}: connection refused\n"


def test_an_invalid_host_name(capsys: pytest.CaptureFixture[str]) -> None:
    """All commands that connect report it in one line."""
    for command in ("top", "bench", "connect"):
        assert main([command, "a..b:1"]) == 1
        errors = capsys.readouterr().err
        assert "a..b" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("said", [b"", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: "])
def test_a_slow_monitor(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """One timeout covers the response, even if data keeps arriving slowly."""
    monkeypatch.setattr("tao.cli.figures._PATIENCE", 0.2)

    def drip() -> None:
        with listener.accept()[0] as sock:
            try:
                sock.sendall(said)
                while said:
                    sock.sendall(b"x")
                    never.wait(0.01)
                never.wait(LONG)
            except OSError:
                pass  # the client has given up

    never = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, name="test-drip")
        thread.start()
        watch = Watch(listener.getsockname(), "queue", 10)
        with pytest.raises(Failed, match=r"cannot reach 127\.0\.0\.1:\d+: timed out"):
            watch.read()
        never.set()
        thread.join(LONG)


@pytest.mark.parametrize("command", ["top", "bench"])
def test_a_name_server_that_hangs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """The timeout includes name resolution."""
    release = threading.Event()
    monkeypatch.setattr(
        "tao.client.happy_eyeballs.resolve", lambda address: release.wait(LONG) and []
    )
    monkeypatch.setattr("tao.cli.figures._PATIENCE", 0.05)
    monkeypatch.setattr("tao.cli.load._STALLED", 0.05)
    assert main([command, "monitor.invalid:80"]) == 1
    assert "the name was not resolved within 0.0" in capsys.readouterr().err
    release.set()


NONSENSE = [
    b"[" * 100_000,
    b'{"TotalConn": ' + b"9" * 5000 + b"}",
    {"TotalConn": 10**400, "QPS": float("inf"), "servers": {"a": {"messages_in": 10**400}}},
    {"TotalConn": float("nan"), "servers": {"a": {"uptime": float("-inf"), "name": {}}}},
    {"TotalConn": -1e308, "servers": {"a": {"uptime": 1e308, "name": [[1]], "state": {}}}},
    {"TotalConn": 1, "servers": [1], "clients": "abc"},
    {"TotalConn": 1, "servers": {"a": {"name": "x" * 100_000, "errors": True}}},
]
# The heads of responses, and how their bodies begin.
HEADS = [
    b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    b"Content-Length: -1\r\n\r\n{}",
    b"Content-Length: 99\r\n\r\n{}",
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    b"Transfer-Encoding: chunked\r\n\r\n-5\r\n{}",
    b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 100_000,
    b"X: y\r\n" * 1000 + b"\r\n{}",
    b"X: " + b"y" * 100_000,
]


@pytest.mark.parametrize("page", NONSENSE, ids=range(len(NONSENSE)))
def test_invalid_responses(capsys: pytest.CaptureFixture[str], page: Any) -> None:
    """Any response leads to a frame, or to an error that this is not a monitor."""
    with monitor({"/debug/vars": page}) as (_, port):
        status = main(["top", f":{port}", "--once"])
    output, errors = capsys.readouterr()
    assert status == 0 or errors == f"tao: 127.0.0.1:{port} is not a tao monitor\n"
    assert len(output) < 5000


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_invalid_heads_of_responses(capsys: pytest.CaptureFixture[str], head: bytes) -> None:
    """What a head announces and does not keep is no traceback either."""
    with monitor_that_says(b"HTTP/1.1 200 OK\r\n" + head) as port:
        assert main(["top", f":{port}", "--once"]) == 1
    assert capsys.readouterr().err == f"tao: 127.0.0.1:{port} is not a tao monitor\n"


ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=10,
)
FIGURES = ["name", "state", "address", "connections", "messages_in", "uptime", "workers", "errors"]
SEEN = ["id", "server", "name", "peer", "running", "running_for", "send_queue", "age", "tls"]


@given(
    servers=some.lists(some.dictionaries(some.sampled_from(FIGURES), ANYTHING), max_size=2),
    known=some.lists(some.dictionaries(some.sampled_from(SEEN), ANYTHING), max_size=3),
    other=ANYTHING,
)
def test_arbitrary_values(servers: list[Any], known: list[Any], other: Any) -> None:
    """Values of any type can be formatted, also after a frame with other values."""
    watch = Watch(("127.0.0.1", 1), "rate", 2)
    pages = iter(
        [
            {"TotalConn": other, "QPS": other, "servers": dict(enumerate(servers))},
            {"connections": known, "total": other},
        ]
        * 2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "_get", lambda path: next(pages))
        for _ in range(2):
            for table in watch.read().tables:
                assert all(cell.isprintable() for row in table.rows for cell in row)


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_monitor_that_fails(capsys: pytest.CaptureFixture[str], status: int) -> None:
    """The error names the HTTP status."""
    with monitor({"/debug/vars": status}) as (_, port):
        assert main(["top", f":{port}", "--once"]) == 1
    where = f"127.0.0.1:{port}"
    assert capsys.readouterr().err == f"tao: {where} answers /debug/vars with {status}\n"


def test_frames_in_a_pipe() -> None:
    """Frames are printed one below the other, even while the monitor is unavailable."""
    with ExitStack() as here:
        _, port = here.enter_context(monitor({"/debug/vars": variables()}))
        with Program("tao", "top", f":{port}", "--interval", "0.01") as program:
            program.prints("this monitor does not list connections")
            here.close()
            program.prints(f"not updated: cannot reach 127.0.0.1:{port}: connection refused")
            program.send(signal.SIGINT)
            assert program.status() == 130
    assert program.output.count(program.output[2]) > 1
    assert program.errors == []


@pytest.mark.parametrize(("width", "columns"), [(200, 14), (95, 10), (80, 8), (10, 2)])
def test_narrow_terminals(width: int, columns: int) -> None:
    """The least important columns are dropped first, and the rest is not truncated."""
    with monitor({"/debug/vars": variables(address="127.0.0.1:12345")}) as address:
        table = Watch(address, "queue", 10).read().tables[0].fitted(width)
    assert len(table.header) == columns and table.header[0] == "SERVER"
    assert all(len(row) == columns for row in table.rows) and len(table.widths()) == columns
    assert "CONNS" in table.header
