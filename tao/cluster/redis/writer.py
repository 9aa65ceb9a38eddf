"""Publishes to Redis: the thread ``tao-redis-writer``, which sends together what waits.

What waits is bounded. A batch that fails, whatever the reason, is sent again until it succeeds, and
the script then looks whether it has been added already; the readers drop it if the lost attempt is
carried out later still. So every publication counts once, in the order of the calls, and the thread
needs no more than one request under way. It continues after an unexpected exception.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

from tao.atomic import AtomicInt64
from tao.cluster.engine import Publication, taken_back
from tao.cluster.redis.client import FAILURES, RedisConnection
from tao.cluster.redis.scripts import PUBLISH, RESOLVE
from tao.cluster.redis.wire import Draft, Signer, draft_of
from tao.connection.options.cluster_url import ClusterUrl
from tao.errors import ClusterUnavailable
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.wakeup import Notifier, Wakeup

__all__ = ["Backoff", "Position", "RedisWriter", "Sides", "stream_key"]

# How many publications, and how many bytes of them, may wait to be sent.
_MOST_WAITING, _MOST_BYTES = 65536, 64 * 1024 * 1024
# How many are sent together, and how many bytes of them.
_TOGETHER, _PIECE = 256, 1024 * 1024
# How long an answer of Redis may take, in seconds.
_ANSWER: Final = 5.0
# Seconds after which the thread looks whether it should give a sign of life.
_LOOK: Final = 1.0

#: An epoch and an offset in it.
Position = tuple[int, int]


class Backoff:
    """Waits between attempts: longer each time, a second at most."""

    def __init__(self) -> None:
        self._next: float = 0.02

    def reset(self) -> None:
        """Begin with short waits again."""
        self._next = 0.02

    def take(self) -> float:
        """Return how long to wait now, in seconds."""
        wait, self._next = self._next, min(1.0, self._next * 2)
        return wait * random.uniform(0.5, 1.0)


class Sides(Protocol):
    """What the writer asks of the engine. Called by its thread."""

    def drafts(self) -> list[Draft]:
        """Return what is to be published about the node itself."""

    def drafts_due(self) -> bool:
        """Whether there is any."""

    def may_write(self) -> bool:
        """Whether the node has found the ends of the streams, so that it misses nothing."""

    def seen(self, partition: int) -> Position:
        """Return how far the node has read."""

    def sending(self, partition: int, number: int, since: float) -> None:
        """Note that a publication with this number is sent now, and since when it waits."""

    def writing(self, error: BaseException | None) -> None:
        """Note that publishing has succeeded, or why it has not."""

    def writer_interrupted(self) -> None:
        """Note that drafts may be lost."""


class _Item(NamedTuple):
    """A publication that waits."""

    partition: int
    draft: Draft
    since: float
    #: Set when it is published, or will not be.
    settled: Wakeup | None
    #: Not empty once it is published.
    published: list[bool]


@dataclass
class _Batch:
    """What is sent together and becomes one entry: the records of a partition.

    Attributes:
        size: of the records, in bytes.
        before: how far the stream had got before the first attempt; None: there was none yet.
    """

    partition: int
    records: list[bytes] = field(default_factory=list)
    items: list[_Item] = field(default_factory=list)
    size: int = 0
    before: Position | None = None


class RedisWriter:
    """Publishes for one node.

    Args:
        node: its name.
        url: where Redis is.
        signer: makes records.
        sides: of the engine.
    """

    def __init__(self, node: str, url: ClusterUrl, signer: Signer, sides: Sides) -> None:
        self._node = node
        self._url = url
        self._signer = signer
        self._sides = sides
        self._queue: deque[_Item] = deque()  # changed in single steps
        self._bytes = AtomicInt64()  # in the queue
        self._work = Notifier()  # for the thread
        self._closing: bool = False
        self._ended: bool = False  # no attempt is made any more
        self._over = Wakeup()  # set when the thread has nothing left to do
        # The thread's own: the last number in each partition, how far Redis has got there, and what
        # is under way.
        self._numbers: list[int] = [0] * url.partitions
        self._acknowledged: list[Position] = [(0, 0)] * url.partitions
        self._under_way: deque[_Batch] = deque()
        self._conn: RedisConnection | None = None
        self.published: int = 0
        self._thread = spawn(self._run, name="tao-redis-writer", failed=self._run)

    @property
    def waiting(self) -> int:
        """How many publications are not published yet."""
        return len(self._queue) + sum(len(each.items) for each in list(self._under_way))

    def acknowledged(self, partition: int) -> Position:
        """Return the place of the last publication of this node."""
        return self._acknowledged[partition]

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._thread.start()

    def notify(self) -> None:
        """Look for what is to be published. Any thread may call it."""
        self._work.notify_all()

    def publish(self, publication: Publication, confirm: float | None) -> None:
        """See `Engine.publish`. Any thread may call it."""
        draft, deadline = draft_of(publication), Deadline(confirm)
        if self._closing:
            raise ClusterUnavailable("this node has left the cluster")
        if len(self._queue) >= _MOST_WAITING or self._bytes.get() > _MOST_BYTES:
            raise ClusterUnavailable(f"{len(self._queue)} publications wait for Redis already")
        settled = None if confirm is None else Wakeup()
        item = _Item(self._partition(publication), draft, monotonic(), settled, [])
        self._bytes.add_and_get(len(draft.rest))
        self._queue.append(item)
        if self._ended and taken_back(self._queue, item):
            raise ClusterUnavailable("this node has left the cluster")
        self._work.notify_all()
        if settled is not None:
            if not settled.wait(deadline.remaining()):
                raise ClusterUnavailable(f"not confirmed within {confirm} s")
            if not item.published:
                raise ClusterUnavailable("this node has left the cluster before it was published")

    def _partition(self, publication: Publication) -> int:
        """Return where it belongs: each group has its partition, what is for all the first one."""
        target = publication.target
        if self._url.partitions == 1 or target.kind == "all":
            return 0
        return zlib.crc32(target.text.encode()) % self._url.partitions

    def close(self, deadline: Deadline) -> int:
        """Publish what waits if that can be done until the deadline, and end.

        Returns:
            how many publications were left.
        """
        self._closing = True
        if not self._thread.is_alive():
            self._over.set()  # it was never started, or has ended
        self._work.notify_all()
        self._over.wait(deadline.remaining())
        self._ended = True
        self._interrupt()
        gather([self._thread], Deadline(_LOOK))
        left = self._left()
        if left:
            logger.error("{} publications did not reach the cluster", left)
        return left

    def _interrupt(self) -> None:
        self._work.notify_all()
        conn = self._conn
        if conn is not None:
            conn.interrupt()

    def _left(self) -> int:
        """Settle what is not published, and return how much that is."""
        items = [item for batch in self._under_way for item in batch.items]
        while self._queue:
            items.append(self._queue.popleft())
        self._under_way.clear()
        for item in items:
            if item.settled is not None:
                item.settled.set()
        return len(items)

    def abandon(self) -> None:
        """Close the child's copy of the socket."""
        self._closing = self._ended = True
        if self._conn is not None:
            self._conn.abandon()

    # -- the thread

    def _run(self, interrupted: BaseException | None = None) -> None:
        """Publish until the end. If this is interrupted, it is called again."""
        if interrupted is not None:
            self._recover(interrupted)
        self._publish_all()
        self._over.set()

    def _publish_all(self) -> None:
        backoff = Backoff()
        self._work.wait_for(lambda: self._sides.may_write() or self._closing)
        while not self._finished():
            try:
                name = f"tao-writer-{self._node}"
                self._conn = RedisConnection(self._url.redis, name, _ANSWER)
                with self._conn:
                    self._write(self._conn, backoff)
            except Exception as error:
                if not self._ended:
                    self._recover(error)
                    self._work.wait_for(lambda: self._ended, backoff.take())

    def _recover(self, error: BaseException) -> None:
        self._drop_taken()
        if not isinstance(error, FAILURES):
            self._sides.writer_interrupted()
        self._sides.writing(error)

    def _finished(self) -> bool:
        if self._ended:
            return True
        return self._closing and not (self._queue or self._under_way or self._sides.drafts_due())

    def _write(self, conn: RedisConnection, backoff: Backoff) -> None:
        """Publish until all is done."""
        while not self._finished():
            if not self._under_way:
                self._work.wait_for(self._has_work, _LOOK)
                self._under_way.extend(self._batches())
                self._drop_taken()
            while self._under_way and not self._ended:
                self._send(conn, self._under_way[0])
                self._sides.writing(None)
                backoff.reset()
                self._settle(self._under_way[0])
                self._under_way.popleft()

    def _has_work(self) -> bool:
        return bool(self._queue or self._closing or self._sides.drafts_due())

    def _batches(self) -> list[_Batch]:
        """Return what waits, or as much of it as is sent together, by partition."""
        batches: list[_Batch] = []
        latest: dict[int, _Batch] = {}

        def add(partition: int, draft: Draft) -> _Batch:
            number = self._numbers[partition] = self._numbers[partition] + 1
            batch = latest.get(partition)
            if batch is None or batch.size >= _PIECE:
                batch = latest[partition] = _Batch(partition)
                batches.append(batch)
            record = self._signer.record(self._node, partition, number, draft)
            batch.records.append(record)
            batch.size += len(record)
            return batch

        for draft in self._sides.drafts():
            add(0, draft)
        size = 0
        for place in range(min(len(self._queue), _TOGETHER)):
            item = self._queue[place]
            add(item.partition, item.draft).items.append(item)
            self._sides.sending(item.partition, self._numbers[item.partition], item.since)
            size += len(item.draft.rest)
            if size >= _PIECE:
                break
        return batches

    def _drop_taken(self) -> None:
        """Take what is under way out of the queue."""
        taken = {id(item) for batch in self._under_way for item in batch.items}
        while self._queue and id(self._queue[0]) in taken:
            self._bytes.add_and_get(-len(self._queue.popleft().draft.rest))

    def _send(self, conn: RedisConnection, batch: _Batch) -> None:
        partition, stream = batch.partition, stream_key(self._url.prefix, batch.partition)
        seen = max(self._sides.seen(partition), self._acknowledged[partition])
        if not seen[0]:  # without a reader: a second attempt must know where to look for the first
            seen = self._advance(partition, conn.run(RESOLVE, [stream], 0, 0, "+"))
        before, batch.before = batch.before, batch.before or seen
        after = "" if before is None else f"{before[0]}-{before[1]}"
        words = (*seen, self._url.retain, after, *batch.records)
        self._advance(partition, conn.run(PUBLISH, [stream], *words))

    def _advance(self, partition: int, found: list[Any]) -> Position:
        place = self._acknowledged[partition] = (int(found[0]), int(found[1]))
        return place

    def _settle(self, batch: _Batch) -> None:
        self.published += len(batch.items)
        for item in batch.items:
            item.published.append(True)
            if item.settled is not None:
                item.settled.set()


def stream_key(prefix: str, partition: int) -> str:
    """Return the name of the stream of a partition.

    The braces have Redis Cluster keep what belongs to a partition in one place.
    """
    return f"{{{prefix}:{partition}}}:stream"
