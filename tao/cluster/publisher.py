"""Publishing from a program that has no server, such as a web application or a job."""

from __future__ import annotations

import atexit
import secrets
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from tao.cluster.engine import EVERYONE, Publication, Target
from tao.connection.options.fields import check_cluster, check_cluster_key
from tao.errors import ClusterUnavailable
from tao.runtime.forks import renew_after_fork
from tao.safe_text import safe_repr
from tao.server.membership.names import addresses_of, check_group_name
from tao.wire.codec import Codec, TypeLengthValueCodec
from tao.wire.codec_checks import checked_encoder
from tao.wire.message import AnyMessage

if TYPE_CHECKING:
    from tao.cluster.redis.engine import RedisEngine

__all__ = ["Publisher", "PublisherGroup"]


class Publisher:
    """Sends messages to the connections of all servers of a cluster over Redis.

    Any thread may use it. It connects with the first message, so one that was made before a fork
    can be used in the children, each of which has a connection of its own. Messages that wait at
    the end of the program are published for up to a second; `close` tells how long, and ``confirm``
    whether.

    Args:
        url: as the option ``cluster`` of the servers.
        codec: the same as theirs; None: the default one.
        cluster_key: the same as theirs.

    Raises:
        TypeError, ValueError: an argument is wrong, or redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        codec: Codec | None = None,
        cluster_key: bytes | Sequence[bytes] | None = None,
    ) -> None:
        check_cluster("url", url)
        if url == "local":
            raise ValueError('url must name a Redis: "local" is for the processes of a server')
        if cluster_key is not None:
            check_cluster_key("cluster_key", cluster_key)
        self._url = url
        self._key = cluster_key
        self._encode = checked_encoder(TypeLengthValueCodec() if codec is None else codec)
        self._make()  # checks the rest
        # Empty until the first message; if two threads make one at once, the first entry counts.
        self._engines: list[RedisEngine] = []
        self._closed: bool = False
        renew_after_fork(self, Publisher._after_fork)

    def broadcast(
        self, message: AnyMessage, exclude: Collection[str] = (), *, confirm: float | None = None
    ) -> None:
        """Send a message to all connections of all servers; it is encoded once.

        Args:
            message: what `Connection.write` takes.
            exclude: the ``address_id`` of connections that do not get it.
            confirm: seconds to wait until the message is certain to reach all servers that can be
                reached; None: do not wait.

        Raises:
            ClusterUnavailable: it was not taken, or not confirmed in time.
        """
        self._publish(EVERYONE, message, exclude, confirm)

    def group(self, name: str) -> PublisherGroup:
        """Return a group of connections, to send to it.

        Raises:
            TypeError, ValueError: that is no name of a group.
        """
        return PublisherGroup(check_group_name(name), self)

    def unicast(
        self, address_id: str, message: AnyMessage, *, confirm: float | None = None
    ) -> None:
        """Send a message to one connection; if it is not there any more, nothing happens.

        Args:
            address_id: of the connection, on any server.
            message: what `Connection.write` takes.
            confirm: as for `broadcast`.

        Raises:
            ClusterUnavailable: it was not taken, or not confirmed in time.
        """
        target = Target("connection", _check_address_id(address_id))
        self._publish(target, message, (), confirm)

    def broadcast_to_group(
        self, name: str, message: Any, exclude: Collection[str], confirm: float | None
    ) -> None:
        """See `PublisherGroup.broadcast`."""
        self._publish(Target("group", name), message, exclude, confirm)

    def close(self, timeout: float = 5.0) -> None:
        """Publish what waits if that can be done in so many seconds, and disconnect.

        Closing twice is harmless. What could not be published is logged.
        """
        self._closed = True
        atexit.unregister(self._close_at_exit)
        for engine in self._engines:
            engine.close(timeout)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _publish(
        self, target: Target, message: Any, exclude: Collection[str], confirm: float | None
    ) -> None:
        left_out = tuple(map(_check_address_id, addresses_of(exclude)))
        publication = Publication(target, self._encode(message), left_out)
        self._engine().publish(publication, confirm)

    def _engine(self) -> RedisEngine:
        if self._closed:
            raise ClusterUnavailable("this publisher is closed")
        if not self._engines:
            engine = self._make()
            engine.start(secrets.token_hex(6), None)
            self._engines.append(engine)
            if self._engines[0] is not engine:
                engine.close(0.0)
            else:
                atexit.register(self._close_at_exit)
        return self._engines[0]

    def _make(self) -> RedisEngine:
        from tao.cluster.link import redis_engine  # only now: most programs need none

        return redis_engine(self._url, self._key)

    def _close_at_exit(self) -> None:
        self.close(1.0)

    def _after_fork(self, reason: str) -> None:
        """In the child of a fork: connect anew with the next message."""
        for engine in self._engines:
            engine.abandon()
        self._engines = []


def _check_address_id(address_id: object) -> str:
    if not isinstance(address_id, str):
        raise TypeError(f"address_id must be that of a connection, not {safe_repr(address_id)}")
    return address_id


class PublisherGroup:
    """The connections of all servers that have joined a name; see `Publisher.group`."""

    __slots__ = ("_name", "_publisher")

    def __init__(self, name: str, publisher: Publisher) -> None:
        self._name = name
        self._publisher = publisher

    def broadcast(
        self, message: AnyMessage, exclude: Collection[str] = (), *, confirm: float | None = None
    ) -> None:
        """Send a message to all members; the arguments are those of `Publisher.broadcast`.

        Raises:
            ClusterUnavailable: it was not taken, or not confirmed in time.
        """
        self._publisher.broadcast_to_group(self._name, message, exclude, confirm)
