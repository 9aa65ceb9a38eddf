"""Speed as connections and messages grow: one line for each server, four panels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.bench.load import Load
from tests.bench.model import Entry, Outcome, Row
from tests.bench.processes import last_cpu
from tests.bench.report import number
from tests.bench.rows import growth_contestants, one_by_one
from tests.bench.svg import Drawing
from tests.bench.workloads import LoadWorkload

CONNECTIONS = (1, 10, 100, 1000, 5000, 10_000)
SIZES = (16, 256, 4096, 65_536, 1 << 20)
BY_CONNECTIONS, BY_SIZE = "connections", "size"

WIDTH, PANEL_WIDTH, PANEL_HEIGHT, LEFT, GAP, TOP = 900, 350, 200, 70, 80, 112


def growth_rows() -> list[Row]:
    """Return a row for every point of both axes."""
    contestants = growth_contestants()
    rows = [
        Row(
            f"{BY_CONNECTIONS}-{count}",
            f"Growth: {count} connections x 1 outstanding, 64 bytes",
            one_by_one(last_cpu()) if count == 1 else LoadWorkload(Load("echo", count, 1)),
            contestants,
        )
        for count in CONNECTIONS
    ]
    return rows + [
        Row(
            f"{BY_SIZE}-{size}",
            f"Growth: messages of {_bytes(size)}, 10 connections x 4 outstanding",
            LoadWorkload(Load("echo", 10, 4, size)),
            contestants,
        )
        for size in SIZES
    ]


@dataclass(frozen=True)
class _Panel:
    title: str
    axis: str
    ticks: tuple[int, ...]
    tick_text: Callable[[int], str]
    figure: Callable[[Entry], float]


def _bytes(size: float) -> str:
    for unit, text in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {text}"
    return f"{size:g} B"


def _milliseconds(entry: Entry) -> float:
    return (entry.detail("p99_us") or 0.0) / 1000


def _rate(entry: Entry) -> float:
    return entry.median


PANELS = (
    _Panel("Messages per second, by connections", BY_CONNECTIONS, CONNECTIONS, str, _rate),
    _Panel("p99 latency in ms, by connections", BY_CONNECTIONS, CONNECTIONS, str, _milliseconds),
    _Panel("Messages per second, by message size", BY_SIZE, SIZES, _bytes, _rate),
    _Panel("p99 latency in ms, by message size", BY_SIZE, SIZES, _bytes, _milliseconds),
)


def growth_chart(outcomes: Iterable[Outcome], caption: str) -> str:
    """Return the four panels as SVG; both axes of each are logarithmic."""
    by_name = {outcome.row.name: outcome for outcome in outcomes}
    labels = [contestant.label for contestant in growth_contestants()]
    drawing = Drawing(WIDTH, "throughput and latency as connections and messages grow")
    drawing.text(20, 28, "As connections and messages grow", "title")
    drawing.text(20, 46, caption, "dim")
    for index, label in enumerate(labels):
        x, y = 26 + index % 3 * 240, 62 + index // 3 * 18
        drawing.dot(x, y, f"d{index}")
        drawing.text(x + 10, y + 4, label)
    for index, panel in enumerate(PANELS):
        x = LEFT + index % 2 * (PANEL_WIDTH + GAP)
        y = TOP + index // 2 * (PANEL_HEIGHT + GAP)
        _draw(drawing, panel, labels, by_name, x, y)
    return drawing.finish(TOP + 2 * (PANEL_HEIGHT + GAP) - 20)


@dataclass(frozen=True)
class _Frame:
    """The position of a panel, and its scales."""

    x: float
    y: float
    first: float
    last: float
    low: int  # powers of ten
    high: int

    def across(self, tick: float) -> float:
        share = math.log(tick / self.first) / math.log(self.last / self.first)
        return self.x + PANEL_WIDTH * share

    def down(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.y + PANEL_HEIGHT * (1 - share)


def _draw(
    drawing: Drawing,
    panel: _Panel,
    labels: list[str],
    by_name: dict[str, Outcome],
    x: float,
    y: float,
) -> None:
    """Draw one panel with its upper left corner at ``x``, ``y``."""
    lines: list[list[tuple[int, float]]] = []
    for label in labels:
        points = [(tick, by_name.get(f"{panel.axis}-{tick}")) for tick in panel.ticks]
        found = [(tick, outcome.entry(label)) for tick, outcome in points if outcome]
        lines.append([(tick, panel.figure(entry)) for tick, entry in found if entry])
    figures = [value for line in lines for _, value in line if value > 0]
    low = math.floor(math.log10(min(figures, default=1.0)))
    high = max(math.ceil(math.log10(max(figures, default=10.0))), low + 1)
    frame = _Frame(x, y, panel.ticks[0], panel.ticks[-1], low, high)
    _draw_axes(drawing, panel, frame)
    for index, line in enumerate(lines):
        places = [(frame.across(tick), frame.down(value)) for tick, value in line if value > 0]
        if places:
            drawing.line(places, f"line s{index}")
        for place in places:
            drawing.dot(*place, f"d{index}")


def _draw_axes(drawing: Drawing, panel: _Panel, frame: _Frame) -> None:
    x, bottom = frame.x, frame.y + PANEL_HEIGHT
    drawing.text(x, frame.y - 10, panel.title, "head")
    for power in range(frame.low, frame.high + 1):
        level = frame.down(10**power)
        drawing.line([(x, level), (x + PANEL_WIDTH, level)], "grid")
        drawing.text(x - 6, level + 4, _power(power), "dim", "end")
    for tick in panel.ticks:
        place = frame.across(tick)
        drawing.text(place, bottom + 16, panel.tick_text(tick), "dim", "middle")


def _power(power: int) -> str:
    return number(10.0**power) if power >= 3 else f"{10.0**power:g}"
