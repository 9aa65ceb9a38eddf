"""The figures of all workers of a supervisor, as one monitor shows them.

Each worker answers with what it has (`answer`), and the supervisor's monitor puts that together
(`WorkersSource`). A worker that does not answer is shown as it was when it last did. What workers
have counted that are gone is added to what their successors count, so that no count ever falls.
Nothing is kept in files.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from tao.connection.reports.statistics import Snapshot
from tao.monitor.answers import TEXT, Answer
from tao.monitor.connections import Survey, WrongQuery, page_bounds, page_of_connections
from tao.monitor.ends import End, local_ends, packed, together, unpacked
from tao.monitor.health import health
from tao.monitor.stacks import stacks

__all__ = ["Supervising", "WorkersSource", "answer"]

# How long a worker may take to answer, in seconds.
_PATIENCE: Final = 2.0


class Supervising(Protocol):
    """What the monitor asks of a supervisor. Any thread may call any method."""

    def ask(self, what: str, query: dict[str, str], timeout: float) -> dict[int, Any]:
        """Ask all workers; return the answers by the workers' numbers."""
        ...

    def slots_of_workers(self) -> dict[int, int]:
        """Return the number of each worker, with that of its slot."""
        ...


def answer(what: str, query: dict[str, str]) -> Any:
    """In a worker: answer a question of the supervisor's monitor.

    Args:
        what: ``"figures"``, ``"connections"`` or ``"stacks"``.
        query: the details.
    """
    match what:
        case "figures":
            return [packed(end) for end in local_ends()]
        case "connections":
            try:
                return page_of_connections(query)
            except WrongQuery as error:
                return {"wrong": str(error)}
        case _:
            return stacks()


class WorkersSource:
    """See `Source`.

    Args:
        supervisor: has the workers.
    """

    def __init__(self, supervisor: Supervising) -> None:
        self._supervisor = supervisor
        # Workers that are gone: number, slot, and their last figures, if they have told them.
        # Changed in single steps.
        self._gone: deque[tuple[int, int, Any]] = deque()
        # Guards the fields below, and lets one thread at a time gather.
        self._lock = threading.Lock()
        # What each worker has told last: its slot and its ends.
        self._last: dict[int, tuple[int, list[End]]] = {}
        # What those have counted that are gone, by slot and name.
        self._base: dict[tuple[int, str], End] = {}

    def gone(self, number: int, slot: int, figures: Any) -> None:
        """A worker has ended; called by the supervisor's thread, which this does not hold up."""
        self._gone.append((number, slot, figures))

    def ends(self) -> list[End]:
        """See `Source`."""
        with self._lock:
            self._keep_what_is_gone()
            answers = self._supervisor.ask("figures", {}, _PATIENCE)
            slots = self._supervisor.slots_of_workers()
            for number, figures in answers.items():
                if figures is not None and number in slots:
                    self._last[number] = slots[number], _unpacked(figures, slots[number])
            return self._merged()

    def _keep_what_is_gone(self) -> None:
        while self._gone:
            number, slot, figures = self._gone[0]
            _, ends = self._last.get(number, (slot, []))
            kept: dict[tuple[int, str], End] = {}
            for end in ends if figures is None else _unpacked(figures, slot):
                key = slot, end.snapshot.name
                base = kept.get(key) or self._base.get(key)
                kept[key] = _joined([_without_gauges(end), *filter(None, [base])])
            # Last, as an error that comes before must not lose what is gone, nor count it twice.
            self._gone.popleft()
            self._last.pop(number, None)
            self._base.update(kept)

    def _merged(self) -> list[End]:
        """Return one end for each of the same name in each slot."""
        groups: dict[tuple[int, str], list[End]] = {}
        for number in sorted(self._last, reverse=True):  # the latest first: its state is shown
            slot, ends = self._last[number]
            for end in ends:
                groups.setdefault((slot, end.snapshot.name), []).append(end)
        for key, end in self._base.items():
            groups.setdefault(key, []).append(end)
        return [_joined(groups[key]) for key in sorted(groups)]

    def snapshots(self) -> list[Snapshot]:
        """See `Source`."""
        return [end.snapshot for end in self.ends()]

    def connections(self, query: Mapping[str, str]) -> dict[str, Any]:
        """See `Source`; a row has its ``process`` too."""
        offset, limit = page_bounds(query)
        order = query.get("sort", "")
        # Each worker might have all the rows that are wanted.
        asked = {**query, "offset": "0", "limit": str(min(offset + limit, 10_000))}
        server, _, wanted = asked.pop("server", "").rpartition("@")
        if server:
            asked["server"] = server
        answers = self._supervisor.ask("connections", asked, _PATIENCE)
        slots, total, rows = self._supervisor.slots_of_workers(), 0, []
        for number, found in sorted(answers.items()):
            slot = slots.get(number)
            if not found or slot is None or (wanted and wanted != str(slot)):
                continue
            if "wrong" in found:
                raise WrongQuery(found["wrong"])
            total += found["total"]
            for row in found["connections"]:
                rows.append({**row, "server": f"{row['server']}@{slot}", "process": slot})
        if order:
            rows.sort(key=_key(order.removeprefix("-")), reverse=order.startswith("-"))
        return {"total": total, "offset": offset, "connections": rows[offset : offset + limit]}

    def stacks(self) -> str:
        """See `Source`."""
        answers = self._supervisor.ask("stacks", {}, _PATIENCE)
        parts = []
        for number, slot in sorted(self._supervisor.slots_of_workers().items()):
            text = answers.get(number) or "no answer\n"
            parts.append(f"process {slot}, worker {number}\n\n{text}")
        return "\n".join(parts)

    def health(self, query: Mapping[str, str]) -> Answer:
        """See `Source`: whether any worker serves."""
        servers = [each for each in self.snapshots() if each.kind == "server"]
        if not servers:
            return Answer(503, TEXT, "no process serves yet\n")
        if any(each.state == "running" for each in servers):
            servers = [each for each in servers if each.state == "running"]
        return health(query, servers)


def _unpacked(figures: list[dict[str, Any]], slot: int) -> list[End]:
    return [unpacked(each, str(slot)) for each in figures]


def _joined(ends: list[End]) -> End:
    """Sum up the ends of one name in one slot, of which the first is the latest."""
    first = ends[0]
    total = together(ends, first.snapshot.name, first.snapshot.kind)
    total.label, total.process = first.label, first.process
    total.snapshot.state = first.snapshot.state
    total.snapshot.address = first.snapshot.address
    total.snapshot.uptime = first.snapshot.uptime
    total.snapshot.latency = first.snapshot.latency
    if total.snapshot.cluster:
        total.snapshot.cluster["state"] = first.snapshot.cluster.get("state", "closed")
    return total


def _without_gauges(end: End) -> End:
    """Return what stays of an end that is gone: what it has counted."""
    snapshot = end.snapshot
    snapshot.connections = snapshot.workers = snapshot.workers_busy = snapshot.timers = 0
    snapshot.state = "stopped"
    if snapshot.cluster:
        snapshot.cluster |= {"queue": 0, "lag": 0.0, "state": "closed"}
    end.survey = Survey(0, 0, [], [], [])
    return end


def _key(field: str) -> Callable[[dict[str, Any]], Any]:
    """Return the sort key of rows; the workers have sorted their own by the same field."""

    def key(row: dict[str, Any]) -> Any:
        value = row.get(field)
        return "" if value is None else value

    return key
