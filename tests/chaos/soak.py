"""``python -m tests.chaos.soak``: ordinary traffic for a long time, to find growing memory use.

Clients connect, are disconnected and reconnect, write messages of zero bytes to a megabyte, make
requests, and set timers, with and without TLS. The resources of the process are sampled meanwhile.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
from typing import Any

from tao.client.client import ClientConn
from tao.connection.options.definitions import Reconnect
from tao.errors import RequestError, TaoError, WouldBlock
from tao.server.server import Server
from tao.testing.fault_proxy import FaultProxy, Faults
from tao.wire.message import Registry
from tests.chaos.figures import Curve, Holding, settled
from tests.support import PATIENCE, together
from tests.tls_pairs import CLIENT, SERVER

SIZES = (0, 10, 1_000, 30_000, 250_000, 1024 * 1024)
# The share of the samples that is ignored, because pools and buffers still grow.
WARM_UP = 0.3
# How much each resource may grow after that, absolutely and as a share.
GROWTH, GROWTH_SHARE = {"memory": 16 * 1024, "blocks": 10_000, "threads": 5, "descriptors": 10}, 0.1


class Blob:
    """A message of any bytes."""

    message_number = 3

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data

    @classmethod
    def deserialize(cls, data: bytes) -> Blob:
        return cls(data)


class Query(Blob):
    """A message that is a request."""

    message_number = 4


class Life:
    """The server, its proxies, and the activity of its clients.

    Args:
        seed: of all random choices.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._fate = random.Random(f"{seed}-faults")
        registry = Registry()
        registry.handler(Blob)(lambda ctx, conn: conn.write(ctx.message, PATIENCE))
        registry.handler(Query)(lambda ctx, conn: ctx.reply(ctx.message))
        self.server = Server(
            registry=registry,
            heartbeat=1,
            idle_timeout=10,
            drain_timeout=5,
            readers="shared" if seed % 2 else "own",
        )
        self.server.schedule(0.25, lambda due, conn: conn.write(Blob(b"due")))
        self.proxies = [
            FaultProxy(self.server.start(("127.0.0.1", 0)), plan=self._plan, seed=seed),
            FaultProxy(self.server.start(("127.0.0.1", 0), tls=SERVER), plan=self._plan, seed=seed),
        ]
        self.end = threading.Event()
        # Guards the count.
        self._lock = threading.Lock()
        self.exchanged: int = 0
        self.lives: int = 0

    def _plan(self, number: int) -> tuple[Faults, Faults]:
        faults = Faults(), Faults()
        if number % 3 == 0:
            way = self._fate.choice(faults)
            end = self._fate.choice(("cut_after", "reset_after"))
            setattr(way, end, self._fate.randrange(2_000_000))
        return faults

    def client(self, number: int) -> None:
        """Run one client after another, for varying times."""
        chance = random.Random(f"{self._seed}-{number}")
        while not self.end.is_set():
            self._live(chance, number % 2)
            with self._lock:
                self.lives += 1

    def _live(self, chance: random.Random, tls: int) -> None:
        got = threading.Semaphore(0)
        registry = Registry()
        registry.register(3, Blob.deserialize, lambda ctx, conn: got.release())
        registry.register(4, Query.deserialize)
        client = ClientConn(
            self.proxies[tls].address,
            registry=registry,
            reconnect=Reconnect(initial=0.01, maximum=0.1),
            heartbeat=1,
            idle_timeout=10,
            tls=CLIENT if tls else None,
        ).start(keep_trying=True)
        try:
            timers = [client.run_every(0.05, lambda due, conn: None) for _ in range(3)]
            for _ in range(chance.randrange(30)):
                client.write(Blob(bytes(chance.choice(SIZES))), PATIENCE)
                if got.acquire(timeout=1):  # the reply may be lost
                    with self._lock:
                        self.exchanged += 1
                self._ask(client, chance)
                client.run_after(chance.random(), lambda due, conn: None)
                if timers and chance.random() < 0.2:
                    client.cancel_timer(timers.pop())
                if self.end.wait(chance.random() * 0.05):
                    break
        except TaoError:
            pass  # it was closed meanwhile
        finally:
            client.close()

    def _ask(self, client: ClientConn, chance: random.Random) -> None:
        """Make a request, in one of the ways that there are; it may be lost, or be given up."""
        query, timeout = Query(bytes(chance.choice(SIZES))), chance.choice((0.001, 0.1, 1))
        try:
            if chance.random() < 0.5:
                client.request(query, timeout)
                return
            future = client.request_async(query, timeout)
            if chance.random() < 0.3:
                future.cancel()
            future.result()
        except (RequestError, WouldBlock):
            pass

    def stop(self) -> Any:
        report = self.server.stop()
        together(*(proxy.close for proxy in self.proxies))
        return report


def watch(life: Life, seconds: float, curve: Curve) -> None:
    """Take samples until the time is over, then end everything."""
    step = max(0.1, min(1.0, seconds / 100))
    never = threading.Event()
    for _ in range(int(seconds / step)):
        never.wait(step)
        curve.add()
    life.end.set()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--clients", type=int, default=12, help="every second one speaks TLS")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.clients} clients, {options.minutes:g} min", flush=True)
    before = Holding.now()
    life, curve = Life(options.seed), Curve()
    acts = [lambda number=number: life.client(number) for number in range(options.clients)]
    together(lambda: watch(life, 60 * options.minutes, curve), *acts)
    report = life.stop()
    after = settled(before)
    print(f"{life.lives} lives, {life.exchanged} messages there and back")
    broken = [] if report.clean else [f"the stop was not clean: {report}"]
    for name, (first, last, slope) in curve.trends(WARM_UP).items():
        print(f"{name:12} {first:10.1f} to {last:10.1f}, {slope:+9.2f} a minute")
        if last - first > max(GROWTH[name], GROWTH_SHARE * first):
            broken.append(f"{name}: grow from {first:.0f} to {last:.0f}")
    print(f"before: {before}\nafter:  {after}")
    if after.threads > before.threads or after.descriptors > before.descriptors:
        broken.append("threads or descriptors are left behind")
    for text in broken:
        print(f"BROKEN: {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
