"""Histograms of handler durations: one for each message number, in bounded memory.

The buckets are log-linear, as in HdrHistogram (Gil Tene, http://hdrhistogram.org): each octave,
from one power of two to the next, is divided into 16 buckets of equal width. So a bucket is at most
a 16th as wide as the durations in it, and its middle is off by 3 % at most. There are 482 buckets:
the first takes all durations below a microsecond, the last all above 17 minutes.

A histogram is a plain list of counts that threads increment without a lock. With the GIL no
increment is lost in practice. Without it, one may be lost when two connections increment the same
bucket at once, which a histogram can tolerate. An increment is the only cost per message: sums and
percentiles are computed on request.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
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

# Buckets per octave, and the exponents of the first and the last octave.
_PER_OCTAVE, _FIRST, _LAST = 16, -19, 10
_BUCKETS: Final = (_LAST - _FIRST + 1) * _PER_OCTAVE + 2
# How many message numbers have their own histogram; a few more if threads add new ones at once.
_NUMBERS: Final = 256


class _Other:
    """The type of `OTHER`, which is no message number."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "other"


#: Stands for the remaining message numbers, which share a histogram.
OTHER: Final = _Other()


def bucket_of(seconds: float) -> int:
    """Return the index of the bucket for a duration."""
    mantissa, exponent = frexp(seconds)
    if exponent < _FIRST or seconds <= 0:
        return 0
    if exponent > _LAST:
        return _BUCKETS - 1
    return 1 + (exponent - _FIRST) * _PER_OCTAVE + int(mantissa * 2 * _PER_OCTAVE) - _PER_OCTAVE


def seconds_of(bucket: int) -> float:
    """Return the duration that represents a bucket: its middle."""
    if bucket == 0:
        return 2.0 ** (_FIRST - 2)
    if bucket == _BUCKETS - 1:
        return 2.0**_LAST
    octave, place = divmod(bucket - 1, _PER_OCTAVE)
    return float((_PER_OCTAVE + place + 0.5) / (2 * _PER_OCTAVE) * 2.0 ** (octave + _FIRST))


#: A table of buckets for short durations, in steps of 50 ns, which saves a call of `bucket_of`: the
#: bucket of a duration from 0 to ``NEAR_MOST`` seconds is ``NEAR[int(time * NEAR_PER_SECOND)]``.
NEAR_PER_SECOND: Final = 2e7
NEAR_MOST: Final = 200e-6
NEAR: Final = tuple(
    bucket_of((step + 0.5) / NEAR_PER_SECOND)
    for step in range(ceil(NEAR_MOST * NEAR_PER_SECOND) + 1)
)


class Latencies:
    """The histograms of a server or client, one for each message number, up to 256.

    All further numbers share one more. No method blocks. Each may be called from any thread, signal
    handler or finalizer.
    """

    def __init__(self) -> None:
        #: Message number to the counts of its buckets, for numbers that `add` was called with. A
        #: caller that knows the bucket may increment it here.
        self.cells: dict[Hashable, list[int]] = {}
        self._beyond: dict[Hashable, list[int]] = {}  # the shared histogram, once needed

    def add(self, number: Hashable, seconds: float, count: int) -> None:
        """Count a duration ``count`` times; a negative one counts as 0."""
        cells = self.cells.get(number) or self._begin(number)
        near = 0.0 <= seconds < NEAR_MOST
        cells[NEAR[int(seconds * NEAR_PER_SECOND)] if near else bucket_of(seconds)] += count

    def _begin(self, number: Hashable) -> list[int]:
        cells = [0] * _BUCKETS
        if len(self.cells) >= _NUMBERS:
            cells = self._beyond.setdefault(OTHER, cells)
        return self.cells.setdefault(number, cells)

    def copies(self) -> dict[Hashable, list[int]]:
        """Return copies of the histograms by message number; `OTHER` is the shared one."""
        beyond = self._beyond.get(OTHER)
        return {
            OTHER if cells is beyond else number: list(cells)
            for number, cells in dict(self.cells).items()
        }


@dataclass(frozen=True)
class Latency:
    """The summary of a histogram: the count, and percentiles of the durations in seconds.

    Half of the calls took at most ``p50``, 99 % at most ``p99``; ``most`` is the maximum.
    """

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    most: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


#: The percentiles of `Latency`, in thousandths: integers avoid rounding errors.
_SHARES: Final = (500, 900, 990, 999, 1000)


def summed(cells: Sequence[int]) -> Latency:
    """Compute the percentiles of a histogram; all are 0 if it is empty."""
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
    """Return the counts added since ``before``, an earlier copy, was taken."""
    return [max(0, new - old) for new, old in zip(now, before, strict=True)]


def sparse(cells: Sequence[int]) -> dict[int, int]:
    """Return a compact form of a histogram: the buckets that are not empty."""
    return {bucket: count for bucket, count in enumerate(cells) if count}


def dense(counts: Mapping[int, int]) -> list[int]:
    """Return the histogram of a compact form made by `sparse`."""
    cells = [0] * _BUCKETS
    for bucket, count in counts.items():
        cells[bucket] = count
    return cells


def cumulated(
    cells: Sequence[int], octaves: Iterable[int]
) -> tuple[list[tuple[float, int]], float]:
    """Return cumulative counts and the sum, as monitoring systems store histograms.

    Args:
        cells: the histogram.
        octaves: exponents of the bounds, which are powers of two in seconds, ascending.

    Returns:
        pairs of a bound and the number of durations up to it, and the sum of all durations in
        seconds, each counted as the middle of its bucket.
    """
    pairs = []
    for octave in octaves:
        end = 1 + (octave - _FIRST + 1) * _PER_OCTAVE
        pairs.append((2.0**octave, sum(cells[:end])))
    total = sum(count * seconds_of(bucket) for bucket, count in enumerate(cells) if count)
    return pairs, total
