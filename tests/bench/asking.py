"""A client that asks a server as fast as it can: ``python -m tests.bench.asking PEER port=N ...``.

It prints a line of JSON. The load generators speak the wire format only, so each peer has its own
client here, an ``Asker`` in the module of its server.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from typing import Any

VALUE = bytes(64)


def asked(asker: Any, threads: int, window: int, seconds: float) -> float:
    """Ask for so long on so many threads; return how many replies came a second.

    Args:
        window: how many requests a thread makes at once.
    """
    counts = [0] * threads
    begun, end = threading.Barrier(threads + 1), threading.Event()

    def ask(index: int) -> None:
        begun.wait()
        while not end.is_set():
            if window == 1:
                asker.ask(VALUE)
            else:
                asker.ask_many(VALUE, window)
            counts[index] += window

    for index in range(threads):
        threading.Thread(target=ask, args=(index,), daemon=True).start()
    begun.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    replies, took = sum(counts), time.perf_counter() - started
    end.set()
    return replies / took


def main() -> None:
    """Ask, and print the figures."""
    peer, *words = sys.argv[1:]
    given = dict(word.split("=", 1) for word in words)
    threads, window = int(given.get("threads", 1)), int(given.get("window", 1))
    asker = importlib.import_module(f"tests.bench.peers.{peer}").Asker(int(given["port"]))
    asked(asker, threads, window, float(given.get("warmup", 0.2)))
    time.sleep(0.05)
    rate = asked(asker, threads, window, float(given.get("seconds", 1.0)))
    print(json.dumps({"rate": rate}), flush=True)


if __name__ == "__main__":
    main()
