"""The hub of a supervisor: passes publications on to all of its workers, in one order.

Whatever a member publishes goes to all members, to itself too, in the order in which the hub has
read it. A member that reads too slowly, because it hangs for instance, holds up nobody: what waits
for it is bounded, and above that publications are dropped for it. It is told how many, as soon as
there is room again.

One thread uses a hub; it never blocks. Records are passed on as bytes, without looking inside.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import Final

from tao.cluster.hub.wire import (
    Kind,
    count_record,
    gap_record,
    gone_record,
    read_count,
    read_node,
    records,
)

__all__ = ["Hub", "HubMember"]

# How many bytes may wait for a member, before publications are dropped for it.
_MOST_WAITING: Final = 64 * 1024 * 1024
# How much is read from one member before the others get their turn, and sent in one call, in bytes.
_PIECE: Final = 256 * 1024


class HubMember:
    """A worker, as the hub sees it.

    Args:
        sock: joins the two; it belongs to the member.
        limit: bytes that may wait for it.
    """

    def __init__(self, sock: socket.socket, limit: int = _MOST_WAITING) -> None:
        sock.setblocking(False)
        self.sock = sock
        #: The name of its node; empty until it is known.
        self.node: str = ""
        #: How many connections of it are in each group.
        self.counts: dict[str, int] = {}
        self.received = bytearray()
        self._limit = limit
        # What is to be sent, with the number of publications in it; the first may be sent in part.
        self._unsent: deque[tuple[memoryview, int]] = deque()
        self._waiting: int = 0  # bytes in it
        self._missing: int = 0  # publications dropped since the last one that was kept
        #: Whether the other side is gone.
        self.ended: bool = False

    def fileno(self) -> int:
        """The descriptor to poll for `events`."""
        return self.sock.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def pass_on(self, data: bytes, publications: int) -> None:
        """Send whole records, in their turn.

        Args:
            data: the records.
            publications: how many of them are publications; 0 if none may be dropped.
        """
        if publications and self._waiting + len(data) > self._limit:
            self._missing += publications
            return
        if publications and self._missing:
            if self._waiting > self._limit // 2:
                self._missing += publications
                return
            self._tell_gap()
        self._append(data, publications)

    def _tell_gap(self) -> None:
        missing, self._missing = self._missing, 0
        self._append(gap_record(missing), 0)

    def _append(self, data: bytes, publications: int) -> None:
        self._unsent.append((memoryview(data), publications))
        self._waiting += len(data)

    def flush(self) -> None:
        """Send as much as the kernel takes."""
        try:
            while self._unsent and not self.ended:
                data, publications = self._unsent[0]
                sent = self.sock.send(data[:_PIECE])
                self._waiting -= sent
                if sent < len(data):
                    self._unsent[0] = (data[sent:], publications)
                else:
                    self._unsent.popleft()
            if self._missing and not self._unsent:
                self._tell_gap()
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True

    def receive(self) -> None:
        """Read some of what has arrived."""
        try:
            data = self.sock.recv(_PIECE)
            self.received += data
            self.ended = self.ended or not data
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True


class Hub:
    """All members."""

    def __init__(self) -> None:
        self.members: list[HubMember] = []

    def add(self, sock: socket.socket) -> HubMember:
        """Add a member; return it for `serve`."""
        member = HubMember(sock)
        self.members.append(member)
        return member

    def serve(self, member: HubMember) -> None:
        """Do what there is to do for a member whose socket is ready."""
        member.receive()
        self._take(member)
        if member.ended:
            self.remove(member)
        for each in self.members:
            each.flush()

    def remove(self, member: HubMember) -> None:
        """Forget a member, and tell the others."""
        if member not in self.members:
            return
        self.members.remove(member)
        member.sock.close()
        if member.node:
            self._pass_on(gone_record(member.node), 0)

    def close(self) -> None:
        """Forget all."""
        for member in self.members:
            member.sock.close()
        self.members.clear()

    def _take(self, member: HubMember) -> None:
        """Pass on the whole records that a member has sent, as many at a time as there are."""
        data = member.received
        begin = end = publications = 0
        for record in records(data):
            if record.kind == Kind.PUBLISH:
                publications += 1
            else:
                self._pass_on(bytes(data[begin : record.start]), publications)
                begin, publications = record.end, 0
                if record.kind == Kind.HELLO:
                    self._welcome(member, read_node(data, record))
                elif record.kind == Kind.COUNT:
                    whole = bytes(data[record.start : record.end])
                    self._count(member, whole, *read_count(data, record))
            end = record.end
        self._pass_on(bytes(data[begin:end]), publications)
        del data[:end]

    def _pass_on(self, data: bytes, publications: int) -> None:
        if data:
            for each in self.members:
                each.pass_on(data, publications)

    def _welcome(self, member: HubMember, node: str) -> None:
        """Tell a new member the counts of the others."""
        member.node = node
        for each in self.members:
            for group, count in each.counts.items():
                member.pass_on(count_record(each.node, group, count), 0)

    def _count(self, member: HubMember, data: bytes, node: str, group: str, count: int) -> None:
        if count:
            member.counts[group] = count
        else:
            member.counts.pop(group, None)
        self._pass_on(data, 0)
