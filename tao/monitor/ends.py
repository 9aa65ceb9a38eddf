"""The servers and clients that a monitor shows, each with all of its figures at one moment.

They are those of this process (`local_ends`), or come from others: `packed` turns one into what
JSON can hold, and `unpacked` back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tao.connection.reports.recent_errors import Failure
from tao.connection.reports.statistics import Snapshot, Statistics, all_statistics
from tao.monitor.connections import Survey, survey
from tao.runtime.histogram import dense, merged, sparse
from tao.safe_text import FORMATTING_ERRORS, number_value, safe_str

__all__ = ["KINDS", "End", "local_ends", "packed", "together", "unpacked"]

#: The kinds of ends.
KINDS: Final = ("server", "client")

# How many errors are kept of each.
_ERRORS = 20
# How much of a handler's name is shown, in characters.
_LONGEST_NAME = 100
# The figures that are summed up, besides the counts.
_ADDED = (
    *("connections", "connections_total", "refused", "accept_errors", "accept_delays"),
    *("workers", "workers_busy", "timers", "reconnects", "requests_in_flight"),
    *("sessions", "sessions_lingering", "session_resumes", "sessions_lost", "session_bytes"),
    *("sessions_moved", "session_links_passed", "session_links_relayed"),
)


@dataclass
class End:
    """One server or client, or several together, at one moment.

    Attributes:
        snapshot: its counts.
        survey: the state of its connections.
        cells: how long its handlers took: a histogram for each message number.
        failures: its last errors, each with its name.
        names: of its handlers, by message number.
        label: its name in its process, if ``snapshot.name`` says more than that.
        process: which of several processes it is in; empty if there is only one.
    """

    snapshot: Snapshot
    survey: Survey
    cells: dict[Hashable, list[int]]
    failures: list[tuple[str, Failure]]
    names: dict[Hashable, str]
    label: str = ""
    process: str = ""


def local_ends() -> list[End]:
    """Return the servers and clients of this process."""
    return [_end(statistics) for statistics in all_statistics()]


def _end(statistics: Statistics) -> End:
    failures = [(statistics.name, failure) for failure in statistics.failures.last()]
    cells = statistics.latencies.copies()
    names = _names(statistics, cells)
    found = survey(statistics)
    return End(statistics.snapshot(), found, cells, failures, names, label=statistics.name)


def _names(statistics: Statistics, numbers: Iterable[Hashable]) -> dict[Hashable, str]:
    """Return the names of the message handlers, as far as they are known."""
    conn = next(iter(statistics.living()), None)
    application = None if conn is None else conn.application.find()
    entries: dict[Any, Any] = {} if application is None else application.registry.entries
    handlers = {number: getattr(entries.get(number), "handler", None) for number in numbers}
    return {number: _called(handler) for number, handler in handlers.items() if handler is not None}


def _called(handler: object) -> str:
    try:
        return safe_str(getattr(handler, "__name__", type(handler).__name__))[:_LONGEST_NAME]
    except FORMATTING_ERRORS:  # raised by a computed attribute
        return type(handler).__name__


def together(ends: list[End], name: str, kind: str) -> End:
    """Sum up several ends under a name."""
    total = Snapshot(name=name, kind=kind)
    cells: dict[Hashable, list[int]] = {}
    names: dict[Hashable, set[str]] = {}
    for each in ends:
        for number, handler in each.names.items():
            names.setdefault(number, set()).add(handler)
        snapshot = each.snapshot
        total.add(snapshot)
        total.uptime = max(total.uptime, snapshot.uptime)
        total.oldest_request = max(total.oldest_request, snapshot.oldest_request)
        for figure in _ADDED:
            setattr(total, figure, getattr(total, figure) + getattr(snapshot, figure))
        for error, count in snapshot.error_kinds.items():
            total.error_kinds[error] = total.error_kinds.get(error, 0) + count
        for number, counts in each.cells.items():
            cells[number] = merged([cells[number], counts]) if number in cells else counts
    total.cluster = _cluster([each.snapshot.cluster for each in ends if each.snapshot.cluster])
    surveys = [each.survey for each in ends]
    looked = Survey(
        sum(each.pending for each in surveys),
        sum(each.send_queue for each in surveys),
        _worst(each.slow for each in surveys),
        _worst(each.blocked for each in surveys),
        _worst(each.behind for each in surveys),
    )
    failures = [failure for each in ends for failure in each.failures]
    failures.sort(key=lambda item: -item[1].time)
    told = {number: ", ".join(sorted(handlers)[:2]) for number, handlers in names.items()}
    return End(total, looked, cells, failures[:_ERRORS], told)


def _cluster(all_figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the figures of several members of a cluster; the state of the first that is not up."""
    total: dict[str, Any] = {}
    for figures in all_figures:
        for name, value in figures.items():
            if name == "state":
                total[name] = value if total.get(name, "up") == "up" else total[name]
            else:
                before = total.get(name, 0)
                total[name] = max(before, value) if name == "lag" else before + value
    return total


def _worst(lists: Iterable[list[tuple[float, str]]]) -> list[tuple[float, str]]:
    return sorted((item for each in lists for item in each), reverse=True)


# -- between processes


def packed(end: End) -> dict[str, Any]:
    """Return an end as what JSON can hold."""
    return {
        "snapshot": end.snapshot.as_dict(),
        "survey": end.survey._asdict(),
        "cells": [[number_value(key), sparse(cells)] for key, cells in end.cells.items()],
        "failures": [failure for _, failure in end.failures],
        "names": [[number_value(key), name] for key, name in end.names.items()],
    }


def unpacked(data: Mapping[str, Any], process: str) -> End:
    """Return the end that `packed` was given, in another process.

    Args:
        process: which one; it becomes part of the name.
    """
    snapshot = Snapshot(**data["snapshot"])
    label, snapshot.name = snapshot.name, f"{snapshot.name}@{process}"
    looked = Survey(**data["survey"])
    worst = [[(badness, text) for badness, text in each] for each in looked[2:]]
    cells = {
        key: dense({int(bucket): count for bucket, count in counts.items()})
        for key, counts in data["cells"]
    }
    failures = [(snapshot.name, Failure(*each)) for each in data["failures"]]
    return End(
        snapshot, Survey(*looked[:2], *worst), cells, failures, dict(data["names"]), label, process
    )
