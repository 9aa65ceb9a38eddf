"""Publishing with tao: a `Publisher`, and the engine that a server of the cluster has."""

from __future__ import annotations

from collections.abc import Callable

import tao
from tao.cluster.engine import Publication
from tao.cluster.redis.engine import RedisEngine
from tests.bench.peers.wire import HEADER, EchoMessage
from tests.bench.publishing import repeat

# Each so many publications are waited for, so that no more than that wait.
_WINDOW = 4096
_PATIENCE = 30.0


class Sender:
    """Publishes from one thread."""

    def __init__(self, way: str, url: str) -> None:
        self._publisher = tao.Publisher(url)
        self._count = 0

    def run(self, seconds: float, pace: float | None) -> int:
        """Publish for so long; return how many that were."""
        return repeat(self._send, seconds, pace)

    def _send(self, text: str) -> None:
        self._count += 1
        confirm = None if self._count % _WINDOW else _PATIENCE
        self._publisher.broadcast(EchoMessage(text.encode()), confirm=confirm)


class Listener:
    """Receives what a server would send to its connections."""

    def __init__(self, way: str, url: str, arrived: Callable[[str], None]) -> None:
        self._arrived = arrived
        self._engine = RedisEngine(url)
        self._engine.start("0123456789ab", self)

    def deliver(self, publication: Publication) -> None:
        """Take a publication."""
        self._arrived(publication.frame[HEADER.size :].decode())

    def gap(self, partition: int, missing: int | None) -> None:
        """What is missing is found by counting."""
