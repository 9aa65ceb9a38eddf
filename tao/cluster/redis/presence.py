"""Who is in a cluster over Redis, and how many connections each group has there.

Every node publishes its counts when they change, and a sign of life every few seconds, in the
stream of partition 0. A node that gives no sign of life for a while loses its counts. A new node,
and one that has missed something, asks; then all publish all their counts. So nothing is kept in
Redis that somebody would have to clear away.
"""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic
from typing import Final

from tao.cluster.redis.wire import (
    Draft,
    Kind,
    Record,
    count_drafts,
    read_counts,
    read_partitions,
    simple_draft,
)
from tao.runtime.log import logger

__all__ = ["BEAT", "Presence"]

#: Seconds between two signs of life, and without any until a node counts as gone.
BEAT: Final = 5.0
_LEASE: Final = 20.0


class Presence:
    """The nodes of a cluster as one of them sees it.

    Each method says which thread calls it; what they share is changed in single steps.

    Args:
        partitions: of this node; all must have the same.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        # Counts of this node, and the groups whose count has changed since it was published.
        self._own: dict[str, int] = {}
        self._changed: dict[str, int] = {}
        # What is to be published besides. Set by any thread, reset by the writer.
        self._asks: bool = True
        self._tells_all: bool = False
        self._leaves: bool = False
        self._beat_at: float = 0.0  # the writer's
        # Changed by the reader only: the counts of each group in each other node, when a node was
        # last heard of, and the nodes whose number of partitions is known.
        self._others: dict[str, dict[str, int]] = {}
        self._heard: dict[str, float] = {}
        self._compared: set[str] = set()

    # -- any thread

    def set_count(self, group: str, count: int) -> None:
        """Note how many connections of this node are in a group."""
        if count:
            self._own[group] = count
        else:
            self._own.pop(group, None)
        self._changed[group] = count

    def count(self, group: str) -> int:
        """Return how many connections of all nodes are in a group."""
        others = dict(self._others.get(group, {}))
        return self._own.get(group, 0) + sum(others.values())

    def leave(self) -> None:
        """Have the others told that this node leaves."""
        self._leaves = True

    # -- the writer

    @property
    def due(self) -> bool:
        """Whether there is anything to publish."""
        return bool(
            self._changed
            or self._asks
            or self._tells_all
            or self._leaves
            or monotonic() >= self._beat_at
        )

    def drafts(self) -> list[Draft]:
        """Return what is to be published now."""
        found: list[Draft] = []
        if self._asks:
            self._asks = False
            self._tells_all = True
            found.append(simple_draft(Kind.HELLO, self._partitions))
        if self._tells_all:
            self._tells_all = False
            self._changed.clear()  # what changes from now on comes after the snapshot
            found += count_drafts(Kind.SNAPSHOT, dict(self._own).items())
        changes = []
        while self._changed:
            changes.append(self._changed.popitem())
        found += count_drafts(Kind.COUNTS, changes)
        if self._leaves:
            self._leaves = False
            found.append(simple_draft(Kind.GONE, self._partitions))
        elif not found and monotonic() >= self._beat_at:
            found.append(simple_draft(Kind.BEAT, self._partitions))
        if found:
            self._beat_at = monotonic() + BEAT
        return found

    def interrupted(self) -> None:
        """Publish all counts again, as drafts may be lost."""
        self._tells_all = True

    # -- the reader

    def missed(self) -> None:
        """Ask the others for their counts, as some of them may have been missed."""
        self._asks = True

    def resumed(self) -> None:
        """Grant all nodes a new lease: while Redis was away they could not give a sign of life."""
        now = monotonic()
        for node in self._heard:
            self._heard[node] = now

    def take(self, record: Record) -> None:
        """Take in the record of another node, which is no publication.

        Raises:
            ValueError: it is cut off.
        """
        node, kind = record.node, record.kind
        known = node in self._heard
        if kind == Kind.GONE:
            self._forget(node)
            return
        self._heard[node] = monotonic()
        if kind in (Kind.HELLO, Kind.BEAT) and node not in self._compared:
            self._compared.add(node)
            self._compare(node, read_partitions(record))
        if kind == Kind.HELLO:
            self._tells_all = True
        elif kind != Kind.SNAPSHOT and not known:
            self._asks = True  # it has told its counts before
        if kind in (Kind.COUNTS, Kind.SNAPSHOT):
            counts = dict(read_counts(record))
            if kind == Kind.SNAPSHOT:
                self._clear(node, but=counts)
            for group, count in counts.items():
                self._note(node, group, count)

    def expire(self) -> None:
        """Forget the nodes that have given no sign of life for too long."""
        limit = monotonic() - _LEASE
        for node in [node for node, heard in self._heard.items() if heard < limit]:
            logger.warning("node {} of the cluster gives no sign of life", node)
            self._forget(node)

    def _compare(self, node: str, partitions: int) -> None:
        if partitions != self._partitions:
            text = "node {} has partitions={}, this one {}: they miss publications of each other"
            logger.error(text, node, partitions, self._partitions)

    def _forget(self, node: str) -> None:
        self._heard.pop(node, None)
        self._compared.discard(node)
        self._clear(node)

    def _clear(self, node: str, but: Collection[str] = ()) -> None:
        for group in list(self._others):
            if group not in but:
                self._note(node, group, 0)

    def _note(self, node: str, group: str, count: int) -> None:
        nodes = self._others.setdefault(group, {})
        if count:
            nodes[node] = count
        else:
            nodes.pop(node, None)
        if not nodes:
            del self._others[group]
