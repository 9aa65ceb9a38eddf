"""The resources of a process, and whether they grow."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from tests.support import wait_until

# Specific to glibc: returns free memory to the system.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


@dataclass
class Holding:
    """The resources of this process at one moment.

    Attributes:
        memory: resident, in KiB, after the C library has returned unused memory. Fragments remain,
            so it rises for minutes before it is stable.
        blocks: allocated by Python's own allocator, mostly objects: these must not grow.
    """

    threads: int
    descriptors: int
    memory: int
    blocks: int

    @classmethod
    def now(cls) -> Holding:
        if _TRIM is not None:
            _TRIM(0)
        status = Path("/proc/self/status").read_text()
        memory = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return cls(
            threading.active_count(),
            len(os.listdir("/proc/self/fd")),
            int(memory.split()[1]),
            sys.getallocatedblocks(),
        )

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in asdict(self).items())


def settled(before: Holding, patience: float = 5.0) -> Holding:
    """Return the resources once threads and descriptors are back to normal, or after a timeout."""

    def back() -> bool:
        gc.collect()
        now = Holding.now()
        return now.threads <= before.threads and now.descriptors <= before.descriptors

    try:
        wait_until(back, patience)
    except AssertionError:
        pass  # the caller compares
    return Holding.now()


class Curve:
    """Samples of the resources, and their slopes."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, Holding]] = []

    def add(self) -> None:
        self.samples.append((time.monotonic(), Holding.now()))

    def trends(self, warm_up: float) -> dict[str, tuple[float, float, float]]:
        """Return for each resource its mean after the warm-up, its mean at the end, and its slope.

        Args:
            warm_up: the share of the samples that is ignored.

        Returns:
            means of the first and the last fifth of the rest, and the slope per minute by the
            method of least squares.
        """
        rest = self.samples[int(len(self.samples) * warm_up) :]
        fifth = max(1, len(rest) // 5)
        times = [when for when, _ in rest]
        result = {}
        for position, field in enumerate(fields(Holding)):
            values = [astuple(holding)[position] for _, holding in rest]
            first, last = values[:fifth], values[-fifth:]
            result[field.name] = (
                sum(first) / len(first),
                sum(last) / len(last),
                60 * _slope(times, values),
            )
        return result


def _slope(times: list[float], values: list[int]) -> float:
    middle, level = sum(times) / len(times), sum(values) / len(values)
    spread = sum((when - middle) ** 2 for when in times)
    if not spread:
        return 0.0
    rise = sum((a - middle) * (b - level) for a, b in zip(times, values, strict=True))
    return rise / spread
