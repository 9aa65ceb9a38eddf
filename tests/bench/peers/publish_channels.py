"""Publishing with channels_redis: groups of both of its layers, lists of messages and pub/sub."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from tests.bench.publishing import repeat_async

_GROUP = "bench"


def _layer(way: str, url: str) -> Any:
    hosts = [{"address": url, "socket_timeout": None}]
    if way == "pubsub":
        return RedisPubSubChannelLayer(hosts=hosts)
    # By default it drops what exceeds a hundred messages.
    return RedisChannelLayer(hosts=hosts, capacity=1_000_000)


class Sender:
    """Sends to a group as several consumers do."""

    def __init__(self, way: str, url: str) -> None:
        self._layer = _layer(way, url)
        self._loop = asyncio.new_event_loop()

    def run(self, seconds: float, pace: float | None) -> int:
        """Send for so long; return how many that were."""
        return self._loop.run_until_complete(repeat_async(self._send, seconds, pace))

    async def _send(self, text: str) -> None:
        await self._layer.group_send(_GROUP, {"type": "message", "text": text})


class Listener:
    """A consumer that is in the group."""

    def __init__(self, way: str, url: str, arrived: Callable[[str], None]) -> None:
        listening = _listen(_layer(way, url), arrived)
        threading.Thread(target=asyncio.run, args=(listening,), daemon=True).start()


async def _listen(layer: Any, arrived: Callable[[str], None]) -> None:
    channel = await layer.new_channel()
    await layer.group_add(_GROUP, channel)
    while True:
        arrived((await layer.receive(channel))["text"])
