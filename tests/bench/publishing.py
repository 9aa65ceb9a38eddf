"""A program that publishes, and another one that listens: ``python -m tests.bench.publishing``.

Each peer has a ``Sender`` and a ``Listener`` in its module; both are in processes of their own. The
sender prints a line of JSON in the end. A message is a text that begins with the time of sending.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import redis

SIZE = 256  # characters of a message
AT_ONCE = 16  # messages that an asynchronous program sends at the same time
QUIET = 2.0  # seconds without an arrival after which nothing more is expected
READY = 20.0  # seconds until the listener must have got a message


def _text() -> str:
    """Return a message; the clock is that of all processes of the machine."""
    return f"{time.monotonic():<{SIZE}.6f}"


def repeat(send: Callable[[str], object], seconds: float, pace: float | None) -> int:
    """Send for so long; return how many messages that were.

    Args:
        pace: messages a second; None: as many as possible.
    """
    count, begun = 0, time.monotonic()
    while (now := time.monotonic()) < begun + seconds:
        if pace is not None and now < begun + count / pace:
            time.sleep(begun + count / pace - now)
        send(_text())
        count += 1
    return count


async def repeat_async(
    send: Callable[[str], Awaitable[object]], seconds: float, pace: float | None
) -> int:
    """Do the same with several tasks; with a pace, one is enough."""
    tasks = 1 if pace is not None else AT_ONCE
    begun = time.monotonic()

    async def one() -> int:
        count = 0
        while (now := time.monotonic()) < begun + seconds:
            if pace is not None and now < begun + count / pace:
                await asyncio.sleep(begun + count / pace - now)
            await send(_text())
            count += 1
        return count

    return sum(await asyncio.gather(*(one() for _ in range(tasks))))


class Arrivals:
    """What the listener has got. Changed by one thread."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0  # when, monotonic
        self.delays: list[float] = []  # in seconds

    def arrived(self, text: str) -> None:
        """Count a message."""
        self.last = now = time.monotonic()
        self.delays.append(now - float(text))
        self.count += 1

    def wait_for(self, count: int) -> None:
        """Wait for so many, or until no more come."""
        asked = time.monotonic()
        while self.count < count and time.monotonic() < max(asked, self.last) + QUIET:
            time.sleep(0.001)


def listen(module: Any, way: str, url: str) -> None:
    """Listen, and tell about it: for each line with a number wait for so many messages."""
    arrivals = Arrivals()
    listener = module.Listener(way, url, arrivals.arrived)
    for line in sys.stdin:
        arrivals.wait_for(int(line))
        delays, arrivals.delays = sorted(arrivals.delays), []
        told = {"count": arrivals.count, "last": arrivals.last, "cpu": time.process_time()}
        for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
            told[name] = delays[int(len(delays) * share)] * 1e6 if delays else 0.0
        print(json.dumps(told), flush=True)
    del listener


class Listening:
    """The listener, as the sender sees it."""

    def __init__(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "tests.bench.publishing", "listen", *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def has(self, count: int) -> dict[str, float]:
        """Wait for so many messages; return how many there are, and more."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        told: dict[str, float] = json.loads(self.process.stdout.readline())
        return told


def _redis_cpu(url: str) -> float:
    """Return the seconds of processor time that Redis has used."""
    with closing(redis.Redis.from_url(url)) as client:
        used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def measured(
    sender: Any, listening: Listening, url: str, count: float, seconds: float, pace: float | None
) -> dict[str, float]:
    """Publish for so long; return the figures.

    Args:
        count: how many messages the listener has.
    """
    before, redis_before = listening.has(0), _redis_cpu(url)
    begun, used = time.monotonic(), time.process_time()
    sent = sender.run(seconds, pace)
    after = listening.has(int(count) + sent)
    cpu = {
        "sender": time.process_time() - used,
        "redis": _redis_cpu(url) - redis_before,
        "listener": after.pop("cpu") - before["cpu"],
    }
    arrived = after["count"] - count
    return {
        **after,
        **{f"{who}_cpu_us": each / sent * 1e6 for who, each in cpu.items()},
        "rate": arrived / (after["last"] - begun) if arrived else 0.0,
        "lost": 100 * (1 - arrived / sent),
    }


def publish(module: Any, words: list[str], warmup: float, seconds: float, pace: float) -> None:
    """Publish, and print the figures."""
    listening, url = Listening(words), words[-1]
    try:
        sender, deadline = module.Sender(*words[1:]), time.monotonic() + READY
        count = 0.0
        while not count:  # it may not listen yet
            sender.run(0.001, 1000.0)
            count = listening.has(1)["count"]
            if time.monotonic() > deadline:
                sys.exit("nothing arrives")
        count = listening.has(sys.maxsize)["count"]
        count += sender.run(warmup, pace or None)
        count = listening.has(int(count))["count"]
        figures = measured(sender, listening, url, count, seconds, pace or None)
    finally:
        listening.process.kill()
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Read the command line: role, peer, way, URL and, of the sender, what is asked for."""
    role, peer, way, url, *rest = sys.argv[1:]
    module = importlib.import_module(f"tests.bench.peers.{peer}")
    if role == "listen":
        listen(module, way, url)
    else:
        publish(module, [peer, way, url], *map(float, rest))


if __name__ == "__main__":
    main()
