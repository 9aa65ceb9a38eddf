"""tao's own client as the load: ``python -m tests.bench.streaming port=N connections=C window=W``.

The load generators know no sessions, so what these cost is measured between two tao processes. On
each connection so many messages are under way, and each reply is followed by the next message. It
prints a line of JSON: messages a second, and the processor time that each took in this process.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import tao
from tests.bench.peers.wire import EchoMessage

VALUE = bytes(64)


def clients(port: int, count: int, session: bool, counts: list[int]) -> list[tao.ClientConn]:
    """Connect, with handlers that count each reply and send another message."""
    found = []
    for index in range(count):

        def again(ctx: Any, conn: tao.Connection, index: int = index) -> None:
            counts[index] += 1
            conn.write(ctx.message)

        registry = tao.Registry()
        registry.handler(EchoMessage)(again)
        options: dict[str, Any] = {"session": "required"} if session else {}
        client = tao.connect(("127.0.0.1", port), registry=registry, reconnect=True, **options)
        found.append(client)
    return found


def main() -> None:
    """Send for a while, and print the figures."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    counts = [0] * int(given["connections"])
    session = given.get("session") == "yes"
    conns = clients(int(given["port"]), len(counts), session, counts)
    for conn in conns:
        for _ in range(int(given["window"])):
            conn.write(EchoMessage(VALUE))
    threading.Event().wait(float(given["warmup"]))
    before, started, used = sum(counts), time.perf_counter(), time.process_time()
    print("STARTED", flush=True)
    threading.Event().wait(float(given["seconds"]))
    messages, took = sum(counts) - before, time.perf_counter() - started
    used = time.process_time() - used
    print(json.dumps({"messages": messages, "rate": messages / took, "cpu": used}), flush=True)
    for conn in conns:
        conn.abort()


if __name__ == "__main__":
    main()
