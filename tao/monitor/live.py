"""The data of the live page: once per second, the current state of the servers and clients.

Nothing runs while no page is open. Otherwise an update is made once per second, by the first thread
that needs it, and all pages get the same one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tao.monitor.answers import as_json
from tao.monitor.ends import KINDS, End, local_ends, together
from tao.runtime.histogram import Latency, dense, difference, merged, sparse, summed
from tao.safe_text import number_value
from tao.version import __version__

__all__ = ["PERIOD", "Feed"]

#: Seconds between two updates.
PERIOD = 1.0
# How long readings are kept for comparison, and points for the charts, in seconds.
_READINGS, _HISTORY = 60, 300
# The period that percentiles cover, in seconds.
_WINDOW = 10
# How many servers, and how many clients, are shown separately; the rest is summed up.
_APART = 16
# How many message numbers and similar problems are shown for each.
_NUMBERS, _ALIKE = 40, 3
# Fewer errors than this in ten seconds are not reported as rising.
_RISING = 5

#: The name for all servers and clients together.
EVERYTHING: Final = "everything"

# The figures shown per second.
_RATES = ("messages_in", "messages_out", "bytes_in", "bytes_out", "handled", "errors")
# A histogram without the empty buckets.
_Sparse = dict[int, int]


@dataclass
class _Reading:
    """The figures of an end at one moment, kept for comparison."""

    when: float
    figures: dict[str, float]
    cells: dict[Hashable, _Sparse]


class Feed:
    """Makes the updates. Methods may be called from any thread.

    Args:
        ends: returns the servers and clients to show.
    """

    def __init__(self, ends: Callable[[], list[End]] = local_ends) -> None:
        self._ends = ends
        # Guards the fields below, and lets one thread at a time make the update.
        self._lock = threading.Lock()
        self._made: float = float("-inf")  # when, monotonic
        self._news: str = ""
        self._readings: dict[str, deque[_Reading]] = {}
        self._history: deque[dict[str, Any]] = deque(maxlen=_HISTORY)

    def news(self) -> str:
        """Return the latest update as JSON; make a new one if it is a second old."""
        with self._lock:
            now = time.monotonic()
            if now - self._made >= 0.9 * PERIOD:
                self._made = now
                self._news = as_json(self._make(now))
            return self._news

    def history(self) -> str:
        """Return the history for the charts of a new page, as JSON."""
        with self._lock:
            return as_json(list(self._history))

    def _make(self, now: float) -> dict[str, Any]:
        ends = _ends(self._ends())
        self._readings = {
            name: kept
            for name, kept in self._readings.items()
            if any(each.snapshot.name == name for each in ends)
        }
        shown = [self._figures(each, now) for each in ends]
        wall = time.time()
        self._history.append(
            {"time": wall, "points": {each["name"]: _point(each) for each in shown}}
        )
        return {
            "time": wall,
            "version": __version__,
            "pid": os.getpid(),
            "ends": shown,
            "concerns": [
                concern
                for each, figures in zip(ends, shown, strict=True)
                if each.snapshot.name != EVERYTHING
                for concern in _concerns(each, figures)
            ],
        }

    def _figures(self, end: End, now: float) -> dict[str, Any]:
        """Return the figures of an end, and keep a reading of them."""
        snapshot = end.snapshot
        figures = snapshot.as_dict()
        del figures["latency"]
        numbers = {
            name: value for name, value in figures.items() if isinstance(value, (int, float))
        }
        reading = _Reading(now, numbers, {key: sparse(cells) for key, cells in end.cells.items()})
        kept = self._readings.setdefault(snapshot.name, deque())
        kept.append(reading)
        while now - kept[0].when > _READINGS + PERIOD / 2:
            kept.popleft()
        before = kept[-2] if len(kept) > 1 else kept[-1]
        window = next(each for each in kept if now - each.when <= _WINDOW + PERIOD / 2)
        for each in kept:
            if each.when < window.when:
                each.cells = {}  # not compared with any more
        recent = {
            key: difference(cells, dense(window.cells.get(key, {})))
            for key, cells in end.cells.items()
        }
        span = max(now - window.when, PERIOD)
        return figures | {
            "pending": end.survey.pending,
            "send_queue": end.survey.send_queue,
            "rates": {name: _rate(before, reading, name) for name in _RATES},
            "minute": {
                name: max(0, figures[name] - kept[0].figures.get(name, 0))
                for name in ("errors", "dropped", "refused", "accept_errors", "reconnects")
            },
            "rising": _rising(kept, window),
            "latency": _rounded(summed(merged(recent.values()))),
            "handlers": _handlers(end, recent, span),
            "failures": [{"end": name} | failure._asdict() for name, failure in end.failures],
        }


def _rate(before: _Reading, now: _Reading, name: str) -> float:
    span = now.when - before.when
    growth = now.figures[name] - before.figures.get(name, 0)
    return round(max(0.0, growth / span), 2) if span > 0 else 0.0


def _rising(kept: deque[_Reading], window: _Reading) -> bool:
    """Return whether errors occur at more than twice the rate of the minute before."""
    now = kept[-1]
    lately, before = (
        (end.figures["errors"] - start.figures["errors"], end.when - start.when)
        for start, end in ((window, now), (kept[0], window))
    )
    return lately[0] >= _RISING and lately[0] * before[1] > 2 * before[0] * lately[1]


def _rounded(latency: Latency) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in latency.as_dict().items()}


def _handlers(end: End, recent: dict[Hashable, list[int]], span: float) -> list[dict[str, Any]]:
    """Return a row for each message number, the busiest first."""
    rows = []
    for number, counts in end.cells.items():
        latest = summed(recent[number])
        row: dict[str, Any] = {"number": number_value(number), "name": end.names.get(number, "")}
        row |= {"total": sum(counts), "rate": round(latest.count / span, 2)}
        rows.append(row | _rounded(latest))
    rows.sort(key=lambda row: (-row["rate"], -row["total"]))
    return rows[:_NUMBERS]


def _point(figures: dict[str, Any]) -> list[float]:
    """Return the chart values of an end, in the order that the page expects."""
    rates, latency = figures["rates"], figures["latency"]
    return [
        *(rates["messages_in"], rates["messages_out"], figures["connections"]),
        *(latency["p50"], latency["p99"], figures["pending"], figures["send_queue"]),
    ]


# -- gathering


def _ends(found: list[End]) -> list[End]:
    """Return all ends to show: the total, servers, clients."""
    groups = [[each for each in found if each.snapshot.kind == kind] for kind in KINDS]
    ends: list[End] = []
    for kind, group in zip(KINDS, groups, strict=True):
        ends += group[:_APART]
        if len(group) > _APART:
            name = f"{len(group) - _APART} other {kind}s"
            ends.append(together(group[_APART:], name, kind))
    return [together(ends, EVERYTHING, ""), *ends]


# -- problems


def _concerns(end: End, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the problems of an end, the worst first; ``bad`` marks serious ones."""
    snapshot, minute = end.snapshot, figures["minute"]

    def concern(text: str, bad: bool = False) -> dict[str, Any]:
        return {"end": snapshot.name, "bad": bad, "text": text}

    if snapshot.state in ("failed", "stopping", "stopped"):
        yield concern(f"is {snapshot.state}", bad=True)
    if snapshot.cluster.get("state") == "down":
        yield concern("cannot reach its cluster; it serves its own connections", bad=True)
    if snapshot.state == "connecting":
        yield concern("is not connected, and is trying to connect")
    for worst, bad_from in (
        (end.survey.slow, 10),
        (end.survey.blocked, 90),
        (end.survey.behind, 100),
    ):
        for badness, text in worst[:_ALIKE]:
            yield concern(text, bad=badness >= bad_from)
        if len(worst) > _ALIKE:
            yield concern(f"and {len(worst) - _ALIKE} more such connections")
    if 0 < snapshot.workers <= snapshot.workers_busy:
        yield concern(f"all {snapshot.workers} workers are busy")
    if minute["errors"]:
        often = next(iter(snapshot.error_kinds), "")
        errors = "1 error" if minute["errors"] == 1 else f"{minute['errors']} errors"
        text = f"{errors} in the last minute, most often {often}"
        yield concern(text, bad=figures["rising"])
    for name, text in (
        ("dropped", "messages dropped for slow consumers"),
        ("refused", "connections refused"),
        ("accept_errors", "failed attempts to accept a connection"),
    ):
        if minute[name]:
            yield concern(f"{text} in the last minute: {minute[name]}")
