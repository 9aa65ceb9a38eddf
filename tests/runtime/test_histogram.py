"""Latency histograms: accuracy, range, and derived statistics."""

from __future__ import annotations

import random

import pytest

from tao.runtime.histogram import (
    NEAR,
    NEAR_MOST,
    NEAR_PER_SECOND,
    OTHER,
    Latencies,
    bucket_of,
    cumulated,
    dense,
    difference,
    merged,
    seconds_of,
    sparse,
    summed,
)

EMPTY = dense({})


@pytest.mark.parametrize("seconds", [1.1e-6, 9.99e-6, 1e-4, 0.001, 0.0333, 0.5, 1.0, 77.7, 1000.0])
def test_the_accuracy_of_a_bucket(seconds: float) -> None:
    """Its middle differs from the values in it by at most 3 %."""
    assert seconds_of(bucket_of(seconds)) == pytest.approx(seconds, rel=1 / 31)


def test_buckets_are_ordered() -> None:
    """Longer times are never in earlier buckets, and no bucket is skipped."""
    times = [1.01**step * 1e-7 for step in range(2400)]
    buckets = [bucket_of(each) for each in times]
    assert buckets == sorted(buckets)
    assert set(buckets) == set(range(len(EMPTY)))


@pytest.mark.parametrize("seconds", [-1.0, -1e-9, 0.0, 1e-9])
def test_times_that_are_too_short(seconds: float) -> None:
    """They are in the first bucket, even if a clock returns a negative time."""
    assert bucket_of(seconds) == 0


def test_times_that_are_too_long() -> None:
    """Hours are in the last bucket."""
    assert bucket_of(1e5) == bucket_of(1e9) == len(EMPTY) - 1


def test_the_table_for_short_times() -> None:
    """It matches the function, to within one bucket."""
    for step in range(1, 20_000):
        seconds = step * NEAR_MOST / 20_000
        assert abs(NEAR[int(seconds * NEAR_PER_SECOND)] - bucket_of(seconds)) <= 1 or seconds < 2e-6
    assert NEAR[int(NEAR_MOST * NEAR_PER_SECOND)] == bucket_of(NEAR_MOST)


def test_percentiles() -> None:
    """They match those of the times themselves, to 5 %."""
    chance = random.Random(1)
    times = sorted(chance.lognormvariate(-8, 2) for _ in range(20_000))
    cells = EMPTY[:]
    for each in times:
        cells[bucket_of(each)] += 1
    found = summed(cells)
    assert found.count == len(times)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99), (1, found.most)):
        assert value == pytest.approx(times[int(share * len(times)) - 1], rel=0.05)


def test_percentiles_without_values() -> None:
    """They are zero."""
    assert set(summed(EMPTY).as_dict().values()) == {0}


def test_memory_is_bounded() -> None:
    """All numbers after the first 256 share one histogram."""
    latencies = Latencies()
    for number in range(-100, 300):
        latencies.add(number, 0.001, 2)
    found = latencies.copies()
    assert len(found) == 257
    assert sum(found[-100]) == 2
    assert sum(found[OTHER]) == 2 * (400 - 256)


def test_copies_and_differences() -> None:
    """A copy in compact form can be subtracted from a later one."""
    first, second = dense({3: 5, 400: 1}), dense({3: 7, 9: 1, 400: 1})
    assert sparse(difference(second, first)) == {3: 2, 9: 1}
    assert sparse(difference(first, second)) == {}  # a histogram was removed
    assert sparse(merged([first, second])) == {3: 12, 9: 1, 400: 2}
    assert merged([]) == EMPTY


def test_the_exported_buckets() -> None:
    """Counts grow with the limit, values are below larger limits, and sums agree."""
    cells = EMPTY[:]
    for seconds in (3e-6, 0.9, 0.9, 1.1):
        cells[bucket_of(seconds)] += 1
    pairs, total = cumulated(cells, range(-18, 3, 2))
    assert pairs[0] == (2.0**-18, 1)
    assert pairs[-2:] == [(1.0, 3), (4.0, 4)]
    assert total == pytest.approx(2.9, rel=0.05)
