"""The vocabulary of the suite: contestants, targets, rows, and results."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.workloads import Workload


@dataclass(frozen=True)
class Disturbance:
    """A peer that behaves badly while a contestant is under load."""

    kind: str  # its behaviour, see `tests.bench.disturber`
    elsewhere: bool = False  # it disturbs another server of the same kind


@dataclass(frozen=True)
class Contestant:
    """A server as a contestant in a row."""

    label: str
    peer: str  # module in tests.bench.peers
    switches: tuple[str, ...] = ()
    package: str | None = None  # the package that must be installed
    quick: bool = True  # whether it is part of a quick run
    disturbance: Disturbance | None = None

    @property
    def missing(self) -> str | None:
        """The missing package, or None."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return None
        return self.package


@dataclass(frozen=True)
class Target:
    """What must be reached.

    The subject's figure is divided by that of the opponent with the best median, round by round;
    the median of these ratios counts. Without opponents it is divided by ``unit``. With ``detail``
    the figure is not the main one but that detail, of which less is better. A target without a
    bound is shown and not judged.
    """

    subject: str
    against: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    unit: float = 1.0
    unit_text: str = ""
    detail: str | None = None

    @property
    def bounded(self) -> bool:
        """Whether the target has a bound."""
        return self.at_least is not None or self.at_most is not None


@dataclass(frozen=True)
class Row:
    """A workload, its contestants, and its targets."""

    name: str
    title: str
    workload: Workload
    contestants: tuple[Contestant, ...]
    targets: tuple[Target, ...] = ()
    quick: bool = True  # part of a quick run, if it has a target


@dataclass(frozen=True)
class Measurement:
    """One run: its main figure and further details."""

    value: float
    details: dict[str, float] = field(default_factory=dict)


@dataclass
class Entry:
    """All runs of one contestant in a row."""

    label: str
    runs: list[Measurement] = field(default_factory=list)
    missing: str | None = None  # a package that is not installed
    problem: str | None = None  # why it failed

    @property
    def values(self) -> list[float]:
        """The figures, in the order of the rounds."""
        return self.figures(None)

    def figures(self, detail: str | None) -> list[float]:
        """The main figures, or those of a detail, in the order of the rounds."""
        return [run.value if detail is None else run.details[detail] for run in self.runs]

    @property
    def median(self) -> float:
        """The middle figure, 0 without runs."""
        return statistics.median(self.values) if self.runs else 0.0

    def detail(self, name: str) -> float | None:
        """The median of a detail, None if it was not measured."""
        seen = [run.details[name] for run in self.runs if name in run.details]
        return statistics.median(seen) if seen else None


@dataclass(frozen=True)
class Verdict:
    """A target and its measurements; no ratios if one side has no figures."""

    text: str
    ratios: tuple[float, ...]
    at_least: float | None
    at_most: float | None

    @property
    def ratio(self) -> float | None:
        """The median of the ratios of all rounds."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def holds(self) -> bool | None:
        """Whether the target is reached; None if it has no bound or could not be measured."""
        if self.ratio is None or self.at_least is self.at_most is None:
            return None
        above = self.at_least is None or self.ratio >= self.at_least
        return above and (self.at_most is None or self.ratio <= self.at_most)


@dataclass
class Outcome:
    """Everything measured in one row; ``limit`` is the load generator's own.

    ``others`` is the share of the processors that other programs used meanwhile.
    """

    row: Row
    entries: list[Entry]
    limit: Entry | None = None
    others: float = 0.0

    def entry(self, label: str) -> Entry | None:
        """Return the entry of a label that has figures."""
        return next((e for e in self.entries if e.label == label and e.runs), None)

    def verdicts(self) -> list[Verdict]:
        """Judge every target of the row."""
        return [self._judge(target) for target in self.row.targets]

    def headroom(self) -> float | None:
        """How far the load generator's limit is above the fastest contestant."""
        fastest = max((entry.median for entry in self.entries), default=0.0)
        if self.limit is None or not self.limit.runs or not fastest:
            return None
        return self.limit.median / fastest

    def _judge(self, target: Target) -> Verdict:
        subject = self.entry(target.subject)
        opponents = [e for label in target.against if (e := self.entry(label))]
        best = self._best(opponents, target.detail)
        ratios: tuple[float, ...] = ()
        if subject and not target.against:
            ratios = tuple(value / target.unit for value in subject.figures(target.detail))
        elif subject and best:
            figures = (entry.figures(target.detail) for entry in (subject, best))
            pairs = zip(*figures, strict=False)
            ratios = tuple(ours / theirs for ours, theirs in pairs)
        text = _wording(target, best.label if best else None)
        return Verdict(text, ratios, target.at_least, target.at_most)

    def _best(self, entries: Sequence[Entry], detail: str | None) -> Entry | None:
        choose = max if self.row.workload.higher_is_better and detail is None else min
        return choose(
            entries, key=lambda entry: statistics.median(entry.figures(detail)), default=None
        )


def _wording(target: Target, best: str | None) -> str:
    """Describe a target, including the opponent that it was compared with."""
    bound = f"at least {target.at_least:g} " if target.at_least is not None else ""
    if target.at_most is not None:
        bound = f"at most {target.at_most:g} "
    if not target.against:
        return f"{target.subject}: {bound}{target.unit_text}".rstrip()
    if target.detail is not None:
        bound += f"{target.detail.removesuffix('_us')} "
    others = " and ".join(target.against)
    if len(target.against) > 3:
        others = "every peer"
    if len(target.against) > 1:
        others = f"the best of {others} ({best})" if best else f"the best of {others}"
    return f"{target.subject}: {bound}x {others}"
