"""The records in the streams of a cluster over Redis, and their signatures.

A record is ``u8 kind | 6 bytes node | u64 number | u16 length of target | u16 length of excluded |
target | excluded | body`` and, if the kind has the bit 0x80, a signature of 32 bytes. The names of
nodes are twelve hexadecimal digits, new for each start. The numbers of a node grow in each
partition::

    PUBLICATION  body: the frame
    COUNTS       body: u32 count | u16 length, name of a group; any number of times
    SNAPSHOT     the same, after all earlier counts of the node are forgotten
    HELLO        body: u16 partitions; everyone answers with its counts
    BEAT         body: u16 partitions; the node lives
    GONE         the node has left

The signature is an HMAC-SHA256 over prefix, partition and all of the record before it. Pure
functions: no I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from tao.cluster.engine import Publication, Target

__all__ = [
    "HEAD_SIZE",
    "Draft",
    "Kind",
    "Record",
    "Signer",
    "count_drafts",
    "draft_of",
    "read_counts",
    "read_partitions",
    "simple_draft",
    "to_publication",
]

_HEAD: Final = struct.Struct("!B6sQ")
_LENGTHS: Final = struct.Struct("!HH")
_COUNT: Final = struct.Struct("!IH")
_PARTITIONS: Final = struct.Struct("!H")
#: The bytes that no other record begins with: kind, node and number.
HEAD_SIZE: Final = _HEAD.size
_SIGNED: Final = 0x80
_MAC: Final = 32
# Separates the connections that a publication leaves out.
_COMMA: Final = ","
# How long the body of one record with counts becomes.
_PIECE: Final = 64 * 1024


class Kind(IntEnum):
    """What a record is."""

    PUBLICATION = 1
    COUNTS = 2
    SNAPSHOT = 3
    HELLO = 4
    BEAT = 5
    GONE = 6


class Draft(NamedTuple):
    """A record that has no number yet: its kind, and what follows the head."""

    kind: Kind
    rest: bytes


class Record(NamedTuple):
    """A record as it was read."""

    kind: int
    node: str
    number: int
    target: str
    excluded: str
    body: bytes


class Signer:
    """Makes records of drafts, and reads them; signs and verifies if there are keys.

    Args:
        prefix: of the cluster.
        keys: the first one signs, and any verifies; empty: nothing is signed or verified.
    """

    def __init__(self, prefix: str, keys: Sequence[bytes] = ()) -> None:
        name = prefix.encode()
        self._prefix: bytes = struct.pack("!H", len(name)) + name
        self._keys: tuple[bytes, ...] = tuple(keys)

    def record(self, node: str, partition: int, number: int, draft: Draft) -> bytes:
        """Return the record with this number."""
        kind = draft.kind | _SIGNED if self._keys else draft.kind
        data = _HEAD.pack(kind, bytes.fromhex(node), number) + draft.rest
        return data + self._mac(self._keys[0], partition, data) if self._keys else data

    def read(self, partition: int, data: bytes) -> Record:
        """Read a record.

        Raises:
            ValueError: it is none, or its signature is missing or wrong.
        """
        try:
            kind, node, number = _HEAD.unpack_from(data)
            target, excluded = _LENGTHS.unpack_from(data, _HEAD.size)
        except struct.error:
            raise ValueError("no record of this version") from None
        end = len(data) - (_MAC if kind & _SIGNED else 0)
        start = _HEAD.size + _LENGTHS.size
        middle, body = start + target, start + target + excluded
        if body > end:
            raise ValueError("no record of this version")
        if self._keys:
            self._verify(partition, data[:end], data[end:])
        return Record(
            kind & ~_SIGNED,
            node.hex(),
            number,
            data[start:middle].decode(),
            data[middle:body].decode(),
            data[body:end],
        )

    def _verify(self, partition: int, data: bytes, mac: bytes) -> None:
        if not mac:
            raise ValueError("not signed")
        if not any(hmac.compare_digest(mac, self._mac(key, partition, data)) for key in self._keys):
            raise ValueError("signed with another cluster_key")

    def _mac(self, key: bytes, partition: int, data: bytes) -> bytes:
        message = b"".join((self._prefix, _PARTITIONS.pack(partition), data))
        return hmac.digest(key, message, hashlib.sha256)


def draft_of(publication: Publication) -> Draft:
    """Return the draft of a publication.

    Raises:
        ValueError: the target or what is excluded is too long.
    """
    target = publication.target.text.encode()
    excluded = _COMMA.join(publication.exclude).encode()
    if max(len(target), len(excluded)) > 0xFFFF:
        raise ValueError("a target, and all that is excluded, may have 65535 bytes at most")
    lengths = _LENGTHS.pack(len(target), len(excluded))
    return Draft(Kind.PUBLICATION, b"".join((lengths, target, excluded, publication.frame)))


def to_publication(record: Record) -> Publication:
    """Return the publication of a record.

    Raises:
        ValueError: the target is none.
    """
    excluded = tuple(record.excluded.split(_COMMA)) if record.excluded else ()
    return Publication(Target.parse(record.target), record.body, excluded)


def simple_draft(kind: Kind, partitions: int) -> Draft:
    """Return the draft of HELLO, BEAT and GONE."""
    return Draft(kind, _LENGTHS.pack(0, 0) + _PARTITIONS.pack(partitions))


def read_partitions(record: Record) -> int:
    """Return what HELLO and BEAT tell; 0 if it is nothing."""
    return int.from_bytes(record.body[:2], "big")


def count_drafts(kind: Kind, counts: Iterable[tuple[str, int]]) -> Iterator[Draft]:
    """Yield drafts with counts of groups: for a snapshot at least one, and COUNTS after it."""
    piece = bytearray(_LENGTHS.pack(0, 0))
    empty = len(piece)
    for group, count in counts:
        name = group.encode()
        piece += _COUNT.pack(count, len(name)) + name
        if len(piece) > _PIECE:
            yield Draft(kind, bytes(piece))
            kind = Kind.COUNTS
            del piece[empty:]
    if len(piece) > empty or kind == Kind.SNAPSHOT:
        yield Draft(kind, bytes(piece))


def read_counts(record: Record) -> Iterator[tuple[str, int]]:
    """Yield groups and their counts.

    Raises:
        ValueError: they are cut off.
    """
    data, start = record.body, 0
    while start < len(data):
        if start + _COUNT.size > len(data):
            raise ValueError("counts that are cut off")
        count, length = _COUNT.unpack_from(data, start)
        start += _COUNT.size + length
        yield data[start - length : start].decode(), count
