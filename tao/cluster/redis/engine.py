"""The engine of ``cluster="redis://..."``: joins servers of any machines over Redis or Valkey.

A publication goes into a stream of Redis, where a script gives it its place; each node reads the
stream. One thread of each server writes, another one reads; each has a connection of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from tao.cluster.engine import EngineFigures, EngineState, Publication, Receiver
from tao.cluster.redis.client import FAILURES, check_redis_url
from tao.cluster.redis.presence import Presence
from tao.cluster.redis.reader import RedisReader
from tao.cluster.redis.wire import Draft, Kind, Record, Signer, to_publication
from tao.cluster.redis.writer import Position, RedisWriter
from tao.connection.options.cluster_url import parse_cluster_url
from tao.errors import ClusterUnavailable
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger

__all__ = ["RedisEngine"]


class RedisEngine:
    """See `Engine`. Any thread may call any method.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; see `parse_cluster_url`.
        keys: sign the publications; see the option ``cluster_key``.

    Raises:
        ValueError, TypeError: the URL is wrong.
    """

    def __init__(self, url: str, keys: Sequence[bytes] = ()) -> None:
        self._url = parse_cluster_url(url)
        check_redis_url(self._url.redis)
        self._signer = Signer(self._url.prefix, keys)
        self._presence = Presence(self._url.partitions)
        self._node: str = ""
        # Made by the start, the reader only if there is a receiver.
        self._writer: RedisWriter | None = None
        self._reader: RedisReader | None = None
        self._receiver: Receiver | None = None
        self._closed: bool = False
        # Each changed by one of the threads: why it cannot write or read; empty: it can; None: it
        # has not tried yet.
        self._not_writing: str | None = None
        self._not_reading: str | None = None
        # Counted by the reader.
        self._delivered: int = 0
        self._gaps: int = 0
        self._missing: int = 0
        self._lag: float = 0.0
        # Counted by either thread, when it comes back after a failure.
        self._reconnects: list[int] = [0, 0]
        # A publication that is on its way: partition, number, and since when.
        self._sent: tuple[int, int, float] | None = None

    # -- see Engine

    @property
    def state(self) -> EngineState:
        """What it can do now."""
        if self._closed:
            return "closed"
        if self._writer is None:
            return "new"
        up = self._not_writing == "" and (self._reader is None or self._not_reading == "")
        return "up" if up else "down"

    @property
    def figures(self) -> EngineFigures:
        """The figures as they are now."""
        writer = self._writer
        return EngineFigures(
            published=writer.published if writer else 0,
            delivered=self._delivered,
            gaps=self._gaps,
            missing=self._missing,
            reconnects=sum(self._reconnects),
            queue=writer.waiting if writer else 0,
            lag=self._lag,
        )

    def start(self, node: str, receiver: Receiver | None) -> None:
        """Begin to connect; without a receiver only to publish."""
        self._node, self._receiver = node, receiver
        writer = RedisWriter(node, self._url, self._signer, self)
        if receiver is not None:
            acknowledged = writer.acknowledged
            self._reader = RedisReader(node, self._url, self._signer, self, acknowledged)
        self._writer = writer
        writer.start()
        if self._reader is not None:
            self._reader.start()

    def publish(self, publication: Publication, confirm: float | None = None) -> None:
        """Pass a publication on, or have it wait."""
        writer = self._writer
        if writer is None:
            raise ClusterUnavailable("this node has not joined the cluster")
        writer.publish(publication, confirm)

    def set_count(self, group: str, count: int) -> None:
        """Tell the others how many connections of this node are in a group."""
        self._presence.set_count(group, count)
        if self._writer is not None:
            self._writer.notify()

    def count(self, group: str) -> int:
        """Return how many connections of all living nodes are in a group."""
        return self._presence.count(group)

    def close(self, timeout: float) -> int:
        """Pass on what waits, leave, and end."""
        if self._closed:
            return 0
        deadline = Deadline(timeout)
        if self._reader is not None:
            self._presence.leave()
        left = 0 if self._writer is None else self._writer.close(deadline)
        self._closed = True
        if self._reader is not None:
            self._reader.close(Deadline(1.0))
        return left

    def abandon(self) -> None:
        """Close the child's copies of the sockets."""
        self._closed = True
        for part in (self._writer, self._reader):
            if part is not None:
                part.abandon()

    # -- called by the writer

    def drafts(self) -> list[Draft]:
        """Return what is to be published about the node itself."""
        return [] if self._reader is None else self._presence.drafts()

    def drafts_due(self) -> bool:
        """Whether there is any."""
        return self._reader is not None and self._presence.due

    def may_write(self) -> bool:
        """Whether the node would get its own publications."""
        return self._reader is None or self._reader.resolved

    def seen(self, partition: int) -> Position:
        """Return how far the node has read."""
        return (0, 0) if self._reader is None else self._reader.seen(partition)

    def sending(self, partition: int, number: int, since: float) -> None:
        """Note what is sent, to measure how long it takes."""
        if self._sent is None and self._reader is not None:
            self._sent = partition, number, since

    def writing(self, error: BaseException | None) -> None:
        """Note whether publishing succeeds."""
        before, self._not_writing = self._not_writing, self._why(error)
        self._report("publish", before, error, 0)

    def writer_interrupted(self) -> None:
        """Note that drafts may be lost."""
        self._presence.interrupted()

    # -- called by the reader

    def take(self, partition: int, record: Record) -> None:
        """Deliver a publication, or take in what a node tells of itself."""
        if record.kind != Kind.PUBLICATION:
            if record.node != self._node:
                self._presence.take(record)
                self._notify_if_due()
            return
        publication = to_publication(record)
        if self._receiver is not None:
            self._receiver.deliver(publication)
        self._delivered += 1
        sent = self._sent
        if sent is not None and (record.node, partition) == (self._node, sent[0]):
            if record.number < sent[1]:
                return
            self._lag, self._sent = monotonic() - sent[2], None

    def missed(self, partition: int, missing: int | None) -> None:
        """Count a gap, and tell it."""
        self._gaps += 1
        self._missing += missing or 0
        self._sent = None  # it may be among them
        if self._receiver is not None:
            self._receiver.gap(partition, missing)
        if partition == 0:
            self._presence.missed()
            self._notify_if_due()

    def reading(self, error: BaseException | None) -> None:
        """Note whether reading succeeds."""
        before, self._not_reading = self._not_reading, self._why(error)
        if before != "" and error is None:
            self._presence.resumed()
        if error is None and self._writer is not None:
            self._writer.notify()  # it may wait for the ends of the streams
        self._report("read", before, error, 1)

    def looked(self) -> None:
        """Forget nodes that have gone without a word."""
        self._presence.expire()

    def _notify_if_due(self) -> None:
        if self._presence.due and self._writer is not None:
            self._writer.notify()

    def _why(self, error: BaseException | None) -> str:
        return "" if error is None else str(error) or type(error).__name__

    def _report(
        self, what: str, before: str | None, error: BaseException | None, side: int
    ) -> None:
        """Log that one of the threads can do its work again, or cannot any more."""
        if error is not None and not before:
            log = logger if isinstance(error, FAILURES) else logger.opt(exception=error)
            text = "cannot {} over Redis at {}: {}; trying again"
            log.warning(text, what, self._url.shown, self._why(error))
        elif before and error is None:
            self._reconnects[side] += 1
            logger.info("can {} over Redis at {} again", what, self._url.shown)
