"""The picture of a run: a group of horizontal bars for every row, each group on its own scale."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.model import Entry, Outcome, Verdict
from tests.bench.report import number
from tests.bench.svg import Drawing

WIDTH, MARGIN, LABELS, FIGURES = 900, 20, 200, 110
BAR, STEP, LINE = 13, 19, 17
BARS = WIDTH - 2 * MARGIN - LABELS - FIGURES


def bar_chart(outcomes: Sequence[Outcome], caption: str) -> str:
    """Return the chart as SVG; whiskers reach from the lowest to the highest round."""
    drawing = Drawing(WIDTH, "tao and its peers: medians of all rounds")
    drawing.text(MARGIN, 28, "tao and its peers", "title")
    drawing.text(MARGIN, 46, caption, "dim")
    y = 66.0
    for outcome in outcomes:
        y = _group(drawing, outcome, y) + 16
    return drawing.finish(y)


def _group(drawing: Drawing, outcome: Outcome, y: float) -> float:
    workload = outcome.row.workload
    direction = "more" if workload.higher_is_better else "less"
    y += LINE
    drawing.text(MARGIN, y, outcome.row.title, "head")
    unit = f"{workload.unit}, {direction} is better"
    drawing.text(WIDTH - MARGIN, y, unit, "dim", "end")
    y += 6
    entries = outcome.entries
    widest = max((max(entry.values) for entry in entries if entry.runs), default=1.0)
    for entry in entries:
        _bar(drawing, entry, y, BARS / widest)
        y += STEP
    for verdict in outcome.verdicts():
        words, style = _judgement(verdict)
        drawing.text(MARGIN + LABELS, y + 12, words, style)
        y += LINE
    return y


def _bar(drawing: Drawing, entry: Entry, y: float, scale: float) -> None:
    left, middle = MARGIN + LABELS, y + BAR / 2
    drawing.text(left - 8, y + BAR - 2, entry.label, "", "end")
    if not entry.runs:
        reason = f"{entry.missing} is not installed" if entry.missing else "failed"
        drawing.text(left, y + BAR - 2, reason, "dim")
        return
    style = "tao" if entry.label.startswith("tao") else "peer"
    drawing.box(left, y, entry.median * scale, BAR, style)
    low, high = left + min(entry.values) * scale, left + max(entry.values) * scale
    drawing.line([(low, middle), (high, middle)], "range")
    for x in (low, high):
        drawing.line([(x, middle - 3), (x, middle + 3)], "range")
    drawing.text(WIDTH - MARGIN, y + BAR - 2, number(entry.median), "", "end")


def _judgement(verdict: Verdict) -> tuple[str, str]:
    if verdict.ratio is None:
        return f"{verdict.text}: not measured", "dim"
    words = f"{verdict.text}: {verdict.ratio:.2f}"
    if verdict.holds is None:
        return words, "dim"
    return (f"{words}, holds", "holds") if verdict.holds else (f"{words}, does not hold", "fails")
