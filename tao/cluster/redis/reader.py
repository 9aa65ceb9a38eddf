"""Reads the streams of a cluster over Redis: the thread ``tao-redis-reader``.

It finds the ends of the streams once, and then asks for what follows concrete ids, over all breaks
of the connection; so nothing is missed that Redis still has. What Redis has no more is noticed:

- The offset jumps: Redis has trimmed the stream, and the jump says how many records are missing.
- A new epoch begins: the data was flushed or has gone back in time; how much is missing is unknown.
- The record that was read last is another one now: a replica was promoted that had not got it, and
  others have published there since.

A connection may seem alive and bring nothing, for instance from a former master. So the ends of the
streams are looked for again every `_PROBE` seconds.

The thread continues after an unexpected exception; the record that it was taking in counts as
missed. The next XREAD brings the rest of its entry again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from tao.cluster.redis.client import RedisConnection
from tao.cluster.redis.scripts import RESOLVE
from tao.cluster.redis.wire import HEAD_SIZE, Record, Signer
from tao.cluster.redis.writer import Backoff, Position, stream_key
from tao.connection.options.cluster_url import ClusterUrl
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.rate_limits import FloodLog
from tao.runtime.threads import gather, spawn
from tao.runtime.wakeup import Notifier

__all__ = ["ReaderSide", "RedisReader"]

# How many entries are read at once, from each stream. Most have up to 1 MiB, some are larger.
_TOGETHER: Final = 16
# How long one XREAD waits, and how much later its answer may come, in seconds.
_BLOCK, _GRACE = 3.0, 3.0
# Seconds between two looks for the ends of the streams.
_PROBE: Final = 30.0
# How many nodes' last numbers are kept.
_MOST_NODES: Final = 10_000


class ReaderSide(Protocol):
    """What the reader tells the engine. Called by its thread."""

    def take(self, partition: int, record: Record) -> None:
        """Take in a record, in its turn."""

    def missed(self, partition: int, missing: int | None) -> None:
        """Note that records were missed: so many, or None if that is not known."""

    def reading(self, error: BaseException | None) -> None:
        """Note that reading begins, or why it has ended."""

    def looked(self) -> None:
        """Do what is to be done now and then."""


class RedisReader:
    """Reads for one node.

    Args:
        node: its name.
        url: where Redis is.
        signer: reads records.
        side: of the engine.
        acknowledged: returns how far the publisher of this node has got in a partition.
    """

    def __init__(
        self,
        node: str,
        url: ClusterUrl,
        signer: Signer,
        side: ReaderSide,
        acknowledged: Callable[[int], Position],
    ) -> None:
        self._node = node
        self._url = url
        self._signer = signer
        self._side = side
        self._acknowledged = acknowledged
        self._streams = [stream_key(url.prefix, each) for each in range(url.partitions)]
        self._partitions = {key.encode(): each for each, key in enumerate(self._streams)}
        # The thread's own: what was read last in each partition, its place and how it begins, and
        # the last number of each node there.
        self._cursors: list[Position] = [(0, 0)] * url.partitions
        self._heads: list[bytes] = [b""] * url.partitions
        self._numbers: dict[tuple[int, str], int] = {}
        # The partition of the record that is being taken in.
        self._taking: int | None = None
        self._floods = FloodLog()  # for entries that are refused
        self._wake = Notifier()
        self._ended: bool = False
        self._conn: RedisConnection | None = None
        self._thread = spawn(self._run, name="tao-redis-reader", failed=self._run)

    @property
    def resolved(self) -> bool:
        """Whether the ends of all streams were found."""
        return all(epoch for epoch, _ in self._cursors)

    def seen(self, partition: int) -> Position:
        """Return the place of what was read last."""
        return self._cursors[partition]

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._thread.start()

    def close(self, deadline: Deadline) -> None:
        """End."""
        self._ended = True
        self._wake.notify_all()
        conn = self._conn
        if conn is not None:
            conn.interrupt()
        gather([self._thread], deadline)

    def abandon(self) -> None:
        """Close the child's copy of the socket."""
        self._ended = True
        if self._conn is not None:
            self._conn.abandon()

    # -- the thread

    def _run(self, interrupted: BaseException | None = None) -> None:
        """Read until the end. If this is interrupted, it is called again."""
        if interrupted is not None:
            self._recover(interrupted)
        backoff = Backoff()
        while not self._ended:
            try:
                name = f"tao-reader-{self._node}"
                self._conn = RedisConnection(self._url.redis, name, _BLOCK + _GRACE)
                with self._conn:
                    self._read(self._conn, backoff)
            except Exception as error:
                if not self._ended:
                    self._recover(error)
                    self._wake.wait_for(lambda: self._ended, backoff.take())

    def _recover(self, error: BaseException) -> None:
        if self._taking is not None:
            self._side.missed(self._taking, None)
            self._taking = None
        self._side.reading(error)

    def _read(self, conn: RedisConnection, backoff: Backoff) -> None:
        """Read until the connection fails, or the end."""
        probe_at = 0.0
        while not self._ended:
            if monotonic() >= probe_at:
                self._probe(conn)
                backoff.reset()
                probe_at = monotonic() + _PROBE
            ids = [f"{epoch}-{offset}" for epoch, offset in self._cursors]
            words = ("COUNT", _TOGETHER, "BLOCK", int(_BLOCK * 1000), "STREAMS")
            for key, entries in conn.call("XREAD", *words, *self._streams, *ids) or ():
                partition = self._partitions[key]
                for name, fields in entries:
                    self._taking = partition
                    self._take_entry(partition, name, fields)
                    self._taking = None
            self._side.looked()

    def _probe(self, conn: RedisConnection) -> None:
        """Look for the ends of all streams.

        Raises:
            ConnectionError: this is a replica.
        """
        if not conn.is_master():
            raise ConnectionError("connected to a replica")
        for partition, stream in enumerate(self._streams):
            self._resolve(conn, partition, stream)
        self._side.reading(None)

    def _resolve(self, conn: RedisConnection, partition: int, stream: str) -> None:
        cursor = self._cursors[partition]
        epoch, offset = max(cursor, self._acknowledged(partition))
        name = f"{cursor[0]}-{cursor[1]}"
        found = conn.run(RESOLVE, [stream], epoch, offset, name if cursor[0] else "+")
        if not cursor[0]:  # for the first time
            self._cursors[partition] = (int(found[0]), int(found[1]))
        elif found[2] and self._heads[partition]:
            head = _head_at(cursor, *found[2][0])
            if head is not None and head != self._heads[partition]:
                self._heads[partition] = b""
                self._side.missed(partition, None)

    def _take_entry(self, partition: int, name: bytes, fields: list[bytes]) -> None:
        """Take in what follows the cursor of an entry."""
        epoch, first, last = _span(name, fields)
        before, offset = self._cursors[partition]
        if before != epoch or offset < first - 1:
            self._cursors[partition] = epoch, first - 1
            self._side.missed(partition, first - 1 - offset if before == epoch else None)
            offset = first - 1
        for place in range(offset + 1, last + 1):
            data = fields[2 * (place - first) + 1]
            self._cursors[partition] = epoch, place
            self._heads[partition] = data[:HEAD_SIZE]
            if fields[2 * (place - first)] == b"p":
                self._take(partition, data)

    def _take(self, partition: int, data: bytes) -> None:
        try:
            record = self._signer.read(partition, data)
            if self._is_new(partition, record):
                self._side.take(partition, record)
        except ValueError as error:
            text = "an entry of stream {} is refused: {}"
            self._floods.warn(logger, text, partition, error)

    def _is_new(self, partition: int, record: Record) -> bool:
        """Whether a record is not the repetition of an earlier one."""
        key = partition, record.node
        last = self._numbers.pop(key, 0)  # the node moves to the end
        self._numbers[key] = max(last, record.number)
        if len(self._numbers) > _MOST_NODES:
            del self._numbers[next(iter(self._numbers))]
        return record.number > last


def _span(name: bytes, fields: list[bytes]) -> tuple[int, int, int]:
    """Return the epoch of an entry, and the offsets of its first and its last field."""
    epoch, _, last = name.partition(b"-")
    return int(epoch), int(last) + 1 - len(fields) // 2, int(last)


def _head_at(place: Position, name: bytes, fields: list[bytes]) -> bytes | None:
    """Return how the record at that place begins; None if the entry does not have it."""
    epoch, first, last = _span(name, fields)
    if place[0] != epoch or not first <= place[1] <= last:
        return None
    return fields[2 * (place[1] - first) + 1][:HEAD_SIZE]
