"""What is shown of requests: in flight, oldest, late, and how long replies take."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

import tao
from tao.cli.figures import Watch
from tao.monitor.monitor import Monitor
from tao.wire.envelope import reply_frame
from tests.asking import Peers, echo
from tests.ends import Number, Seen, Text, text
from tests.support import PATIENCE, wait_until


class Asked:
    """A client whose requests have one reply so far, one that came late, and one on its way.

    Args:
        monitor: shows it, and its server.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.peers = Peers()
        self.deferred = Seen()

        @self.peers.server.handler(Text)
        def defer(ctx: Any, conn: Any) -> None:
            ctx.defer()
            self.deferred.add(ctx)

        self.peers.server.handler(Number)(echo)
        self.peers.client.request(Number(1))
        self.future = self.peers.client.request_async(Text("on its way"), timeout=None)
        self.deferred.wait()
        # A handler of tao sends no reply to a request that was given up: one is made by hand.
        self.peers.conn.write_frame(reply_frame(1, text("late")))
        wait_until(lambda: self.peers.client.snapshot().late_replies)
        self.name: str = self.peers.client.snapshot().name

    def fetched(self, path: str) -> str:
        host, port = self.monitor.address
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
            body: str = answer.read().decode()
            return body

    def news(self, name: str) -> dict[str, Any]:
        """What the live page gets of a client, or of everything."""
        with socket.create_connection(self.monitor.address, PATIENCE) as sock:
            sock.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            stream = sock.makefile("r", encoding="utf-8")
            events = (json.loads(line[5:]) for line in stream if line.startswith("data:"))
            ends = next(each["ends"] for each in events if "ends" in each)
        return next(each for each in ends if each["name"] == name)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr("tao.connection.reports.statistics._all", {})
    with tao.monitor_on(0) as monitor:
        made = Asked(monitor)
        yield made
        made.peers.close()


def test_the_snapshot(asked: Asked) -> None:
    """It has all figures, and what is not in flight any more is gone from it."""
    client = asked.peers.client
    found = client.snapshot()
    assert (found.requests, found.requests_in_flight, found.late_replies) == (1, 1, 1)
    assert found.request_latency["2"]["count"] == 1 and found.oldest_request > 0
    asked.deferred.items[0].reply(Text("here"))
    assert asked.future.result(PATIENCE).text == "here"
    wait_until(lambda: not client.snapshot().requests_in_flight)
    assert (client.snapshot().requests, client.snapshot().oldest_request) == (2, 0)


def test_prometheus(asked: Asked) -> None:
    """``/metrics`` has them, with the name of the client."""
    metrics = asked.fetched("/metrics")
    assert f'tao_requests_in_flight{{name="{asked.name}"}} 1.0' in metrics
    assert f'tao_replies_total{{name="{asked.name}"}} 1.0' in metrics
    assert f'tao_late_replies_total{{name="{asked.name}"}} 1.0' in metrics
    assert f'tao_request_seconds{{name="{asked.name}",number="2",quantile="0.5"}}' in metrics
    (oldest,) = re.findall(rf'tao_oldest_request_seconds{{name="{asked.name}"}} (.*)', metrics)
    assert float(oldest) > 0


@pytest.mark.parametrize("key", ["requests", "oldest_request"])
def test_the_rows_of_connections(asked: Asked, key: str) -> None:
    """``/connections`` has a row for each end, and sorts by how much and how long they ask."""
    wait_until(lambda: asked.peers.client.snapshot().oldest_request > 0.001)
    rows = json.loads(asked.fetched(f"/connections?sort=-{key}"))["connections"]
    assert [row["requests"] for row in rows] == [1, 0]
    assert rows[0]["server"] == asked.name
    assert rows[0]["oldest_request"] > 0 == rows[1]["oldest_request"]


def test_the_live_page(asked: Asked) -> None:
    """Its events have what the page shows of each end, and ``/connections`` the columns' keys."""
    total = asked.news("everything")
    found = asked.news(asked.name)
    assert all(total[key] == found[key] for key in ("requests", "late_replies"))
    assert total["requests_in_flight"] == 1 and total["oldest_request"] > 0
    assert (found["requests"], found["requests_in_flight"], found["late_replies"]) == (1, 1, 1)
    assert found["oldest_request"] > 0
    page = asked.fetched("/")
    assert page == files("tao.monitor").joinpath("dashboard.html").read_text()
    assert '["Requests", count(end.requests_in_flight)' in page
    assert set(re.findall(r"\bend\.(\w+)", page)) <= {*found, "name"}
    (row, _) = json.loads(asked.fetched("/connections"))["connections"]
    columns = set(re.findall(r'\{ key: "(\w+)", name:', page))
    assert columns >= {"requests", "session", "running_for"}
    assert columns <= set(row)


def test_tao_top(asked: Asked) -> None:
    """It shows how many requests of a connection are in flight."""
    table = Watch(asked.monitor.address, "queue", 10).read().tables[-1]
    of, count = table.header.index("OF"), table.header.index("ASKED")
    assert {row[of]: row[count] for row in table.rows} == {
        asked.name: "1",
        asked.peers.server.snapshot().name: "0",
    }
