"""One connection to Redis: redis-py without its retries, and with a way to interrupt it.

redis-py repeats a command whose answer was lost, and so may run it twice. Here nothing is repeated:
whoever calls knows what may be.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from tao.cluster.redis.scripts import Script

__all__ = ["FAILURES", "RedisConnection", "check_redis_url"]

#: What a failed command, or a failed connect, raises.
FAILURES: Final = (RedisError, OSError)
# How long connecting may take, in seconds.
_CONNECT: Final = 2.0


class _Interruptible:
    """What is added to a connection of redis-py."""

    _sock: Any

    def interrupt(self) -> None:
        """End what another thread waits for on this connection."""
        sock = self._sock
        if sock is not None:
            with suppress(OSError):  # it is closed already
                # A TLS socket's own method would change what the other thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Tcp(_Interruptible, Connection):
    pass


class _Tls(_Interruptible, SSLConnection):
    pass


class _Unix(_Interruptible, UnixDomainSocketConnection):
    pass


_KINDS: Final[dict[type, type[Any]]] = {SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


class RedisConnection:
    """A connection that is used by one thread. Use it in a ``with`` block, which connects it.

    Args:
        url: for redis-py.
        name: shown by CLIENT LIST.
        timeout: seconds that an answer may take.
    """

    def __init__(self, url: str, name: str, timeout: float) -> None:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        kind = _KINDS.get(options.pop("connection_class", Connection), _Tcp)
        ours = {
            "client_name": name,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": _CONNECT,
            "socket_timeout": timeout,
        }
        self._conn: Any = kind(**(options | ours))
        self._interrupted: bool = False

    def __enter__(self) -> RedisConnection:
        self._conn.connect()
        if self._interrupted:  # before there was a socket
            self._conn.interrupt()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._conn.disconnect()

    def call(self, *words: Any) -> Any:
        """Run a command and return its answer.

        Raises:
            RedisError: it was refused, or the connection is lost.
        """
        self._conn.send_command(*words, check_health=False)
        return self._conn.read_response()

    def run(self, script: Script, keys: list[str], *words: Any) -> Any:
        """Run a script and return its answer.

        Raises:
            RedisError: it was refused, or the connection is lost.
        """
        try:
            return self.call("EVALSHA", script.digest, len(keys), *keys, *words)
        except NoScriptError:
            return self.call("EVAL", script.text, len(keys), *keys, *words)

    def is_master(self) -> bool:
        """Whether this is no replica, as far as it can be known."""
        try:
            role = self.call("ROLE")
        except ResponseError:
            return True  # it may not be asked
        return bool(role and role[0] == b"master")

    def interrupt(self) -> None:
        """Have the thread that uses it fail, now or at the next command. Any thread may call it."""
        self._interrupted = True
        self._conn.interrupt()

    def abandon(self) -> None:
        """Close the child's copy of the socket, after a fork."""
        self._conn.disconnect()


def check_redis_url(url: str) -> None:
    """Check what redis-py has to understand.

    Raises:
        ValueError, TypeError: it does not.
    """
    RedisConnection(url, "tao", 1.0)
