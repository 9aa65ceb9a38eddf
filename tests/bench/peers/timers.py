"""What it costs to add a timer and cancel it while many others are pending.

Prints ``{"us": microseconds for one add and one cancel}`` and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time

REPEATS = 20_000
BATCH = 100  # an event loop gets its turn between batches, as it would between two requests
SOONEST, LATEST = 60.0, 600.0  # seconds; nothing fires while the clock runs


def _delays(count: int) -> list[float]:
    chance = random.Random(1)
    return [chance.uniform(SOONEST, LATEST) for _ in range(count)]


def _nothing(*_: object) -> None:
    pass


def measure_tao(pending: int) -> float:
    """Return the seconds for one pair on tao's timing wheel, whose thread is running."""
    from tao.runtime.timing_wheel import TimingWheel

    wheel = TimingWheel(max_pending=pending + REPEATS)
    for delay in _delays(pending):
        wheel.run_after(delay, _nothing)
    delays = _delays(REPEATS)
    began = time.perf_counter()
    for delay in delays:
        wheel.cancel(wheel.run_after(delay, _nothing))
    spent = time.perf_counter() - began
    wheel.stop()
    return spent / REPEATS


async def measure_loop(pending: int) -> float:
    """Return the seconds for one pair on the running event loop."""
    loop = asyncio.get_running_loop()
    kept = [loop.call_later(delay, _nothing) for delay in _delays(pending)]
    delays = _delays(REPEATS)
    began = time.perf_counter()
    for start in range(0, REPEATS, BATCH):
        for delay in delays[start : start + BATCH]:
            loop.call_later(delay, _nothing).cancel()
        await asyncio.sleep(0)
    spent = time.perf_counter() - began
    for handle in kept:
        handle.cancel()
    return spent / REPEATS


def _measure_uvloop(pending: int) -> float:
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        seconds: float = loop.run_until_complete(measure_loop(pending))
        return seconds
    finally:
        loop.close()


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", help="ignored; every peer is given one")
    parser.add_argument("--kind", choices=("tao", "asyncio", "uvloop"), default="tao")
    parser.add_argument("--pending", type=int, default=100_000)
    options = parser.parse_args()
    if options.kind == "tao":
        seconds = measure_tao(options.pending)
    elif options.kind == "uvloop":
        seconds = _measure_uvloop(options.pending)
    else:
        seconds = asyncio.run(measure_loop(options.pending))
    print(json.dumps({"us": seconds * 1e6}))


if __name__ == "__main__":
    main()
