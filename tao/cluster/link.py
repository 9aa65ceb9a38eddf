"""Joins a server with the engine of its cluster."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tao.cluster.engine import EVERYONE, Engine, EngineState, Publication, Target
from tao.cluster.hub.engine import HubEngine
from tao.cluster.hub.sockets import take_hub_socket
from tao.cluster.processes.settings import WorkerOrder
from tao.errors import TaoError, WouldBlock
from tao.runtime.log import logger
from tao.runtime.snapshots import keys_of
from tao.server.membership.cluster_member import LocalConnections, own_number

if TYPE_CHECKING:
    from tao.cluster.redis.engine import RedisEngine

__all__ = ["ClusterLink", "open_cluster", "redis_engine"]


class ClusterLink:
    """A server's port to its cluster, and the receiver of the engine.

    Args:
        node: the name of the server in the cluster.
        server: sends to the connections of this process.
        engine: reaches the others; it is started here.

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self, node: str, server: LocalConnections, engine: Engine) -> None:
        self._node = node
        self._server = server
        self._engine = engine
        engine.start(node, self)
        _links[self] = None

    @property
    def state(self) -> EngineState:
        """See `Engine.state`."""
        return self._engine.state

    @property
    def figures(self) -> dict[str, Any]:
        """See `Engine.state` and `Engine.figures`."""
        return {"state": self._engine.state, **asdict(self._engine.figures)}

    # -- called by the server

    def broadcast(
        self, frame: bytes, exclude: Collection[str] = (), confirm: float | None = None
    ) -> None:
        """Publish to every connection."""
        self._engine.publish(Publication(EVERYONE, frame, tuple(exclude)), confirm)

    def broadcast_to_group(
        self, group: str, frame: bytes, exclude: Collection[str] = (), confirm: float | None = None
    ) -> None:
        """Publish to the connections of a group."""
        publication = Publication(Target("group", group), frame, tuple(exclude))
        self._engine.publish(publication, confirm)

    def unicast(self, address_id: str, frame: bytes) -> None:
        """Publish to one connection."""
        self._engine.publish(Publication(Target("connection", address_id), frame))

    def set_count(self, group: str, count: int) -> None:
        """Tell the cluster how many connections of this process a group has."""
        self._engine.set_count(group, count)

    def count(self, group: str) -> int:
        """Return how many connections a group has in the whole cluster."""
        return self._engine.count(group)

    def close(self, timeout: float) -> int:
        """Leave the cluster."""
        return self._engine.close(timeout)

    def abandon(self) -> None:
        """Leave it in the child of a fork."""
        self._engine.abandon()

    # -- called by the engine

    def deliver(self, publication: Publication) -> None:
        """Send a publication to the connections of this process that it is for."""
        try:
            failed = self._send(publication)
        except Exception as error:  # the engine continues with the next one
            logger.opt(exception=error).error("a publication could not be delivered")
            return
        full = sum(isinstance(error, WouldBlock) for _, error in failed)
        if full:
            text = "a publication was not sent to {} connections: their send queues are full"
            self._server.statistics.floods.warn(logger, text, full)

    def _send(self, publication: Publication) -> list[tuple[Any, TaoError]]:
        target, frame, exclude = publication
        if target.kind == "connection":
            number = own_number(self._node, target.name)
            return [] if number is None else self._server.send_to_one(number, frame).failed
        found = (own_number(self._node, each) for each in exclude)
        own = {each for each in found if each is not None}
        if target.kind == "group":
            return self._server.send_to_group(target.name, frame, own).failed
        return self._server.send_to_all(frame, own).failed

    def gap(self, partition: int, missing: int | None) -> None:
        """Log that publications were missed, and notify the application."""
        count = "an unknown number of" if missing is None else str(missing)
        logger.warning("{} publications of partition {} were missed", count, partition)
        on_gap = self._server.settings.on_gap
        if on_gap is not None:
            try:
                on_gap(partition, missing)
            except BaseException as error:  # the engine continues, whatever that is
                logger.opt(exception=error).error("on_gap raised")
                self._server.statistics.failures.add(error, "in on_gap", 0, "")


def open_cluster(node: str, server: LocalConnections) -> ClusterLink | None:
    """Open the cluster that the option ``cluster`` names; None: there is no other process.

    Raises:
        ValueError: there is no engine for it.
        RuntimeError: no thread can be started.
    """
    url = server.settings.cluster
    if url == "local":
        sock = take_hub_socket(server)
        if sock is not None:
            return ClusterLink(node, server, HubEngine(sock))
        if WorkerOrder.taken:
            raise ValueError(
                'cluster="local" joins the server that tao serves with those of other processes;'
                " this process has another one"
            )
        return None
    return ClusterLink(node, server, redis_engine(url or "", server.settings.cluster_key))


def redis_engine(url: str, keys: bytes | Sequence[bytes] | None) -> RedisEngine:
    """Return the engine of a URL, not started.

    Args:
        keys: see the option ``cluster_key``.

    Raises:
        ValueError: the URL is wrong, or redis-py is not installed.
    """
    try:
        from tao.cluster.redis.engine import RedisEngine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        text = "cluster: Redis needs redis-py: pip install 'tao-tcp[redis]'"
        raise ValueError(text) from None
    try:
        return RedisEngine(url, [keys] if isinstance(keys, bytes) else keys or ())
    except (TypeError, ValueError) as error:
        raise ValueError(f"cluster: {error}") from None


def _tell_what_is_dropped() -> None:
    """At exit, log the publications of all servers that wait to be passed on."""
    for link in keys_of(_links):
        waiting = 0 if link.state == "closed" else link.figures["queue"]
        if waiting:
            logger.warning("the process ends, so {} publications do not reach the cluster", waiting)


# The links of the process.
_links: weakref.WeakKeyDictionary[ClusterLink, None] = weakref.WeakKeyDictionary()
atexit.register(_tell_what_is_dropped)
