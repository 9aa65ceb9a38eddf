"""The bytes between the hub of a supervisor and its members: records, each behind its length.

A record is ``u32 length | u8 kind | body``, the length counted from the kind on::

    HELLO        name of the node                             member -> hub, first
    PUBLISH      u64 number | 6 bytes node | u16 length, target | u16 length, excluded | frame
    COUNT        6 bytes node | u32 count | name of the group
    GONE         6 bytes node                                 hub -> member
    GAP          u32 missing                                  hub -> member

The hub passes publications and counts on as they are. The names of nodes are twelve hexadecimal
digits. Pure functions: no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from tao.cluster.engine import Publication, Target

__all__ = [
    "Kind",
    "Record",
    "count_record",
    "gap_record",
    "gone_record",
    "hello_record",
    "publish_record",
    "read_count",
    "read_gap",
    "read_node",
    "read_publication",
    "records",
]

_HEAD: Final = struct.Struct("!IB")
_PUBLISH: Final = struct.Struct("!Q6sHH")
_COUNT: Final = struct.Struct("!6sI")
_GAP: Final = struct.Struct("!I")
# Separates the connections that a publication leaves out.
_COMMA: Final = ","


class Kind(IntEnum):
    """What a record is."""

    HELLO = 1
    PUBLISH = 2
    COUNT = 3
    GONE = 4
    GAP = 5


class Record(NamedTuple):
    """A record in received bytes.

    Attributes:
        kind: as it was sent; it may be unknown.
        start, body, end: where the record, its body and the next record begin.
    """

    kind: int
    start: int
    body: int
    end: int


def records(data: bytes | bytearray) -> Iterator[Record]:
    """Yield the whole records at the beginning of received bytes."""
    start = 0
    while len(data) - start >= _HEAD.size:
        length, kind = _HEAD.unpack_from(data, start)
        end = start + 4 + length
        if end > len(data):
            return
        yield Record(kind, start, start + _HEAD.size, end)
        start = end


def _record(kind: Kind, body: bytes) -> bytes:
    return _HEAD.pack(1 + len(body), kind) + body


def hello_record(node: str) -> bytes:
    """Introduce a member."""
    return _record(Kind.HELLO, bytes.fromhex(node))


def gone_record(node: str) -> bytes:
    """Tell that a member is gone, with its groups."""
    return _record(Kind.GONE, bytes.fromhex(node))


def read_node(data: bytes | bytearray, record: Record) -> str:
    """Read HELLO and GONE."""
    return bytes(data[record.body : record.body + 6]).hex()


def publish_record(node: str, number: int, publication: Publication) -> bytes:
    """Publish.

    Raises:
        ValueError: the target or what is excluded is too long.
    """
    target = publication.target.text.encode()
    excluded = _COMMA.join(publication.exclude).encode()
    if max(len(target), len(excluded)) > 0xFFFF:
        raise ValueError("a target, and all that is excluded, may have 65535 bytes at most")
    head = _PUBLISH.pack(number, bytes.fromhex(node), len(target), len(excluded))
    body = b"".join((head, target, excluded, publication.frame))
    return _record(Kind.PUBLISH, body)


def read_publication(data: bytes | bytearray, record: Record) -> tuple[str, int, Publication]:
    """Return the node that has published, its number, and the publication."""
    number, node, target, excluded = _PUBLISH.unpack_from(data, record.body)
    start = record.body + _PUBLISH.size
    middle, end = start + target, start + target + excluded
    names = bytes(data[middle:end]).decode()
    publication = Publication(
        Target.parse(bytes(data[start:middle]).decode()),
        bytes(data[end : record.end]),
        tuple(names.split(_COMMA)) if names else (),
    )
    return node.hex(), number, publication


def count_record(node: str, group: str, count: int) -> bytes:
    """Tell how many connections of a node are in a group."""
    return _record(Kind.COUNT, _COUNT.pack(bytes.fromhex(node), count) + group.encode())


def read_count(data: bytes | bytearray, record: Record) -> tuple[str, str, int]:
    """Return node, group and count."""
    node, count = _COUNT.unpack_from(data, record.body)
    return node.hex(), bytes(data[record.body + _COUNT.size : record.end]).decode(), count


def gap_record(missing: int) -> bytes:
    """Tell a member that publications were dropped for it."""
    return _record(Kind.GAP, _GAP.pack(missing))


def read_gap(data: bytes | bytearray, record: Record) -> int:
    """Return how many."""
    missing: int = _GAP.unpack_from(data, record.body)[0]
    return missing
