"""Publishing with python-socketio: its Redis managers, of both kinds, with a server that listens.

Idle connections are not to end: recent versions of redis-py end them after a few seconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import socketio

from tests.bench.publishing import repeat, repeat_async

_OPTIONS = {"socket_timeout": None}


class Sender:
    """Emits from one thread, or as several handlers of an asynchronous server do."""

    def __init__(self, way: str, url: str) -> None:
        self._asynchronous = way == "async"
        manager = socketio.AsyncRedisManager if self._asynchronous else socketio.RedisManager
        self._manager: Any = manager(url, write_only=True, redis_options=_OPTIONS)
        self._loop = asyncio.new_event_loop()

    def run(self, seconds: float, pace: float | None) -> int:
        """Emit for so long; return how many that were."""
        emit = self._manager.emit
        if self._asynchronous:
            sending = repeat_async(lambda text: emit("message", text), seconds, pace)
            return self._loop.run_until_complete(sending)
        return repeat(lambda text: emit("message", text), seconds, pace)


class Listener:
    """A server, which hands what it gets to its clients."""

    def __init__(self, way: str, url: str, arrived: Callable[[str], None]) -> None:
        if way == "async":
            threading.Thread(target=asyncio.run, args=(_listen(url, arrived),), daemon=True).start()
            return

        class Manager(socketio.RedisManager):  # type: ignore[misc]
            def _handle_emit(self, message: Any) -> None:
                super()._handle_emit(message)
                arrived(message["data"][0])

        manager = Manager(url, redis_options=_OPTIONS)
        self._server = socketio.Server(async_mode="threading", client_manager=manager)
        manager.initialize()


async def _listen(url: str, arrived: Callable[[str], None]) -> None:
    class Manager(socketio.AsyncRedisManager):  # type: ignore[misc]
        async def _handle_emit(self, message: Any) -> None:
            await super()._handle_emit(message)
            arrived(message["data"][0])

    manager = Manager(url, redis_options=_OPTIONS)
    server = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
    manager.initialize()
    await asyncio.Event().wait()
    del server
