"""What is shown of requests: in flight, oldest, late, and how long replies take."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import tao
from tao.errors import RequestTimeout
from tests.asking import Peers, echo
from tests.ends import Number, Seen, Text
from tests.support import wait_until


def fetched(monitor: Any, path: str) -> str:
    host, port = monitor.address
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
        body: str = answer.read().decode()
        return body


def test_requests_are_shown() -> None:
    """In the snapshot, in ``/connections`` and in ``/metrics``."""
    with Peers() as peers, tao.monitor_on(0) as monitor:
        deferred = Seen()

        @peers.server.handler(Text)
        def defer(ctx: Any, conn: Any) -> None:
            ctx.defer()
            deferred.add(ctx)

        peers.server.handler(Number)(echo)
        peers.client.request(Number(1))
        try:
            peers.client.request(Text("late"), timeout=0.05)
        except RequestTimeout:
            pass
        future = peers.client.request_async(Text("on its way"))
        deferred.wait(2)
        found = peers.client.snapshot()
        assert (found.requests, found.requests_in_flight, found.late_replies) == (1, 1, 0)
        assert found.request_latency["2"]["count"] == 1 and found.oldest_request > 0
        rows = json.loads(fetched(monitor, "/connections?sort=-requests"))["connections"]
        assert [row["requests"] for row in rows] == [1, 0]
        metrics = fetched(monitor, "/metrics")
        assert f'tao_requests_in_flight{{name="{found.name}"}} 1.0' in metrics
        assert f'tao_request_seconds{{name="{found.name}",number="2",quantile="0.5"}}' in metrics
        deferred.items[1].reply(Text("here"))
        assert future.result(10).text == "here"
        wait_until(lambda: not peers.client.snapshot().requests_in_flight)
