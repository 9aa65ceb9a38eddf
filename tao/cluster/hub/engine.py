"""The engine of ``cluster="local"``: joins the processes of one supervisor through its hub.

Two threads of each server: ``tao-hub-writer`` sends what waits, many publications at a time, and
``tao-hub-reader`` delivers. The hub decides the order. When the supervisor is gone, so is the
cluster: the engine is closed. An unexpected exception in one of the threads closes it as well, as a
record may have been cut off.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections import deque
from time import monotonic
from typing import Final

from tao.atomic import AtomicInt64
from tao.cluster.engine import EngineFigures, EngineState, Publication, Receiver, taken_back
from tao.cluster.hub.wire import (
    Kind,
    Record,
    count_record,
    hello_record,
    publish_record,
    read_count,
    read_gap,
    read_node,
    read_publication,
    records,
)
from tao.errors import ClusterUnavailable
from tao.runtime.deadline import Deadline
from tao.runtime.log import logger
from tao.runtime.threads import gather, spawn
from tao.runtime.wakeup import Notifier, Wakeup

__all__ = ["HubEngine"]

# How many publications, and how many bytes of them, may wait to be sent.
_MOST_WAITING, _MOST_BYTES = 65536, 64 * 1024 * 1024
# How many are sent together.
_TOGETHER: Final = 256
# How much is read in one call, in bytes.
_PIECE: Final = 256 * 1024


class HubEngine:
    """See `Engine`. Any thread may call any method.

    Args:
        sock: joins this process with the hub; it belongs to the engine.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._node: str = ""
        self._numbers = itertools.count(1)
        # Changed in single steps: what is to be sent, or is being sent, and the groups whose count
        # has changed.
        self._queue: deque[bytes] = deque()
        self._changed: dict[str, int] = {}
        self._bytes = AtomicInt64()  # in the queue
        self._work = Notifier()  # for the writer, when one of them has changed
        self._closing: bool = False
        self._closed: bool = False
        # Those who wait for a publication of theirs to come back, by number.
        self._confirmations: dict[int, Wakeup] = {}
        # How many connections of each group this node has, and each other one that has any. Changed
        # in single steps; the others' by the reader only.
        self._own: dict[str, int] = {}
        self._others: dict[str, dict[str, int]] = {}
        # Counted by the writer, and by the reader.
        self._published: int = 0
        self._delivered: int = 0
        self._gaps: int = 0
        self._missing: int = 0
        self._lag: float = 0.0
        # A publication that is on its way, and since when.
        self._probe: tuple[int, float] | None = None
        self._writer = spawn(self._write, name="tao-hub-writer", failed=lambda _: self._end())
        self._reader: threading.Thread | None = None

    # -- see Engine

    @property
    def state(self) -> EngineState:
        """What it can do now."""
        if self._closed or self._closing:
            return "closed"
        return "up" if self._node else "new"

    @property
    def figures(self) -> EngineFigures:
        """The figures as they are now."""
        return EngineFigures(
            published=self._published,
            delivered=self._delivered,
            gaps=self._gaps,
            missing=self._missing,
            queue=len(self._queue),
            lag=self._lag,
        )

    def start(self, node: str, receiver: Receiver) -> None:
        """Begin to deliver."""
        self._node = node
        self._sock.sendall(hello_record(node))  # too short to block
        self._reader = spawn(self._read, receiver, name="tao-hub-reader")
        self._reader.start()
        self._writer.start()

    def publish(self, publication: Publication, confirm: float | None = None) -> None:
        """Pass a publication on."""
        deadline = Deadline(confirm)
        number = next(self._numbers)
        record = publish_record(self._node, number, publication)
        if self.state != "up":
            raise ClusterUnavailable("the supervisor, or this server, is stopping")
        if len(self._queue) >= _MOST_WAITING or self._bytes.get() > _MOST_BYTES:
            raise ClusterUnavailable(f"{len(self._queue)} publications wait for the hub already")
        came = Wakeup()
        if confirm is not None:
            self._confirmations[number] = came
        try:
            self._bytes.add_and_get(len(record))
            self._probe = self._probe or (number, monotonic())
            self._queue.append(record)
            if self._closed and taken_back(self._queue, record):
                raise ClusterUnavailable("the supervisor, or this server, is stopping")
            self._work.notify_all()
            if confirm is not None and not came.wait(deadline.remaining()):
                raise ClusterUnavailable(f"not confirmed within {confirm} s")
        finally:
            self._confirmations.pop(number, None)
        if confirm is not None and self._closed:
            raise ClusterUnavailable("the supervisor is gone")

    def set_count(self, group: str, count: int) -> None:
        """Tell the others how many connections of this node are in a group."""
        if count:
            self._own[group] = count
        else:
            self._own.pop(group, None)
        self._changed[group] = count
        self._work.notify_all()

    def count(self, group: str) -> int:
        """Return how many connections of all nodes are in a group."""
        others = dict(self._others.get(group, {}))
        return self._own.get(group, 0) + sum(others.values())

    def close(self, timeout: float) -> int:
        """Send what waits, and end."""
        deadline = Deadline(timeout)
        self._closing = True
        self._work.notify_all()
        gather([self._writer], deadline)
        left = self._end()
        if self._reader is not None:
            gather([self._reader], deadline)
        return left

    def _end(self) -> int:
        """Be closed, and have both threads end; return how many publications were not sent."""
        self._closed = self._closing = True
        self._work.notify_all()
        left = 0  # taken out before the reader learns of the end, and does the same
        while self._queue:
            try:
                self._queue.popleft()
            except IndexError:
                break  # another thread is here, too
            left += 1
        if left:
            logger.error("{} publications did not reach the cluster", left)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the supervisor is gone
        for came in list(self._confirmations.values()):
            came.set()
        return left

    def abandon(self) -> None:
        """Close the child's copy of the socket, which is the parent's."""
        self._closed = self._closing = True
        self._sock.close()

    # -- the writer

    def _write(self) -> None:
        try:
            while True:
                self._work.wait_for(lambda: self._queue or self._changed or self._closing)
                counts = self._counts()
                publications = [
                    self._queue[place] for place in range(min(len(self._queue), _TOGETHER))
                ]
                if not (counts or publications):
                    if self._closing:
                        return
                    continue
                self._sock.sendall(b"".join(counts + publications))
                for each in publications:
                    self._queue.popleft()  # only now: what an end cuts off is found there
                    self._bytes.add_and_get(-len(each))
                    self._published += 1
        except (OSError, IndexError):
            pass  # the reader learns it too, or the engine has ended

    def _counts(self) -> list[bytes]:
        """Take the counts that have changed."""
        parts: list[bytes] = []
        while self._changed:
            group, count = self._changed.popitem()
            parts.append(count_record(self._node, group, count))
        return parts

    # -- the reader

    def _read(self, receiver: Receiver) -> None:
        received = bytearray()
        try:
            while data := self._sock.recv(_PIECE):
                received += data
                end = 0
                for record in records(received):
                    self._take(received, record, receiver)
                    end = record.end
                del received[:end]
        except OSError:
            pass
        finally:
            if not self._closing:
                logger.warning("the hub is gone: this server is alone")
            self._end()
            self._sock.close()

    def _take(self, data: bytearray, record: Record, receiver: Receiver) -> None:
        if record.kind == Kind.PUBLISH:
            node, number, publication = read_publication(data, record)
            receiver.deliver(publication)
            self._delivered += 1
            if node == self._node:
                self._came_back(number)
        elif record.kind == Kind.COUNT:
            node, group, count = read_count(data, record)
            if node != self._node:
                self._note_count(node, group, count)
        elif record.kind == Kind.GONE:
            node = read_node(data, record)
            for group in list(self._others):
                self._note_count(node, group, 0)
        elif record.kind == Kind.GAP:
            missing = read_gap(data, record)
            self._gaps += 1
            self._missing += missing
            receiver.gap(0, missing)

    def _came_back(self, number: int) -> None:
        came = self._confirmations.pop(number, None)
        if came is not None:
            came.set()
        probe = self._probe
        if probe is not None and number >= probe[0]:
            self._lag, self._probe = monotonic() - probe[1], None

    def _note_count(self, node: str, group: str, count: int) -> None:
        nodes = self._others.setdefault(group, {})
        nodes[node] = count
        if not count:
            del nodes[node]
        if not nodes:
            del self._others[group]
