"""Histograms of how long handlers take: one for each message number, in memory that is bounded.

The buckets are log-linear, as those of HdrHistogram (Gil Tene, http://hdrhistogram.org): each
octave, from one power of two to the next, is cut into 16 of equal width, so that a bucket is at
most a 16th as wide as what it holds is long, and its middle is off by 3 % at most. Of 482 buckets
the first takes all below a microsecond, and the last all above 17 minutes.

A histogram is a plain list of counts, to which threads add without a lock. Under the interpreter
lock no addition gets lost in practice; without it one may, when two connections add to the same
bucket at once, and a histogram can do without that one. Nothing else is ever done on the way of a
message: sums and percentiles are worked out when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, frexp
from typing import Final

__all__ = [
    "NEAR",
    "NEAR_MOST",
    "NEAR_PER_SECOND",
    "OTHER",
    "Latencies",
    "Latency",
    "bucket_of",
    "cumulated",
    "dense",
    "difference",
    "merged",
    "seconds_of",
    "sparse",
    "summed",
]

# How many buckets there are to an octave, and the exponents of the first octave and the last.
_PER_OCTAVE, _FIRST, _LAST = 16, -19, 10
_BUCKETS: Final = (_LAST - _FIRST + 1) * _PER_OCTAVE + 2
# How many numbers have a histogram of their own; a few more if threads come with new ones at once.
_NUMBERS: Final = 256

#: The number under which those are shown that have no histogram of their own.
OTHER: Final = "other"


def bucket_of(seconds: float) -> int:
    """Return the index of the bucket for a time."""
    mantissa, exponent = frexp(seconds)
    if exponent < _FIRST or seconds <= 0:
        return 0
    if exponent > _LAST:
        return _BUCKETS - 1
    return 1 + (exponent - _FIRST) * _PER_OCTAVE + int(mantissa * 2 * _PER_OCTAVE) - _PER_OCTAVE


def seconds_of(bucket: int) -> float:
    """Return the time that stands for a bucket: the middle of it."""
    if bucket == 0:
        return 2.0 ** (_FIRST - 2)
    if bucket == _BUCKETS - 1:
        return 2.0**_LAST
    octave, place = divmod(bucket - 1, _PER_OCTAVE)
    return float((_PER_OCTAVE + place + 0.5) / (2 * _PER_OCTAVE) * 2.0 ** (octave + _FIRST))


#: The buckets of short times, in steps of 50 ns, for who cannot afford a call of `bucket_of`: that
#: of a time from 0 to ``NEAR_MOST`` seconds is ``NEAR[int(time * NEAR_PER_SECOND)]``.
NEAR_PER_SECOND: Final = 2e7
NEAR_MOST: Final = 200e-6
NEAR: Final = tuple(
    bucket_of((step + 0.5) / NEAR_PER_SECOND)
    for step in range(ceil(NEAR_MOST * NEAR_PER_SECOND) + 1)
)


class Latencies:
    """The histograms of a server or client, one for each message number, up to 256.

    All numbers beyond share one more. No method waits. Any may be called from any thread, a signal
    handler or a finalizer.
    """

    def __init__(self) -> None:
        #: Message number to the counts of the buckets, for numbers that `add` was called with. Who
        #: knows the bucket may add to it here.
        self.cells: dict[int, list[int]] = {}
        self._beyond: dict[str, list[int]] = {}  # the one for all numbers beyond, once needed

    def add(self, number: int, seconds: float, count: int) -> None:
        """Count a time ``count`` times; one below zero as no time at all."""
        (self.cells.get(number) or self._begin(number))[bucket_of(seconds)] += count

    def _begin(self, number: int) -> list[int]:
        cells = [0] * _BUCKETS
        if len(self.cells) >= _NUMBERS:
            cells = self._beyond.setdefault(OTHER, cells)
        return self.cells.setdefault(number, cells)

    def copies(self) -> dict[int | str, list[int]]:
        """Return the histograms as they are now, by number, `OTHER` for those that share one."""
        beyond = self._beyond.get(OTHER)
        return {
            OTHER if cells is beyond else number: cells.copy()
            for number, cells in self.cells.copy().items()
        }


@dataclass(frozen=True)
class Latency:
    """What a histogram says: how many there were, and how long they took, in seconds.

    Half of them took ``p50`` at most, 99 of a hundred ``p99``, and none more than ``most``.
    """

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    most: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


#: The shares that `Latency` tells of, in thousandths: of whole numbers there is no rounding.
_SHARES: Final = (500, 900, 990, 999, 1000)


def summed(cells: Sequence[int]) -> Latency:
    """Work out the percentiles of a histogram; all are 0 if nothing was counted."""
    count = sum(cells)
    if not count:
        return Latency(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    found: list[float] = []
    below = 0
    for bucket, here in enumerate(cells):
        if not here:
            continue
        below += here
        while len(found) < len(_SHARES) and 1000 * below >= _SHARES[len(found)] * count:
            found.append(seconds_of(bucket))
    return Latency(count, *found)


def merged(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Add histograms up."""
    return [sum(cells) for cells in zip(*histograms, strict=True)] or [0] * _BUCKETS


def difference(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Return what was counted since a copy was taken, of the same histogram or one less full."""
    return [max(0, new - old) for new, old in zip(now, before, strict=True)]


def sparse(cells: Sequence[int]) -> dict[int, int]:
    """Return a histogram in little memory: the buckets that are not empty."""
    return {bucket: count for bucket, count in enumerate(cells) if count}


def dense(counts: Mapping[int, int]) -> list[int]:
    """Return what `sparse` was given."""
    cells = [0] * _BUCKETS
    for bucket, count in counts.items():
        cells[bucket] = count
    return cells


def cumulated(
    cells: Sequence[int], octaves: Iterable[int]
) -> tuple[list[tuple[float, int]], float]:
    """Return what monitoring systems keep: how many took at most so long, and the sum of all.

    Args:
        cells: the histogram.
        octaves: for which powers of two, in seconds, ascending.

    Returns:
        pairs of a time and how many took at most that, and the seconds that all took together,
        for which each counts as the middle of its bucket.
    """
    pairs = []
    for octave in octaves:
        end = 1 + (octave - _FIRST + 1) * _PER_OCTAVE
        pairs.append((2.0**octave, sum(cells[:end])))
    total = sum(count * seconds_of(bucket) for bucket, count in enumerate(cells) if count)
    return pairs, total
