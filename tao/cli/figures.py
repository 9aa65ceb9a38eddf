"""The statistics that ``tao top`` shows, fetched from a monitor and formatted as tables.

Data from the network is not trusted: a value that is missing, of another type or out of range
is ignored, control characters in text are escaped, and one deadline covers a whole request.
"""

from __future__ import annotations

import http.client
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tao.cli.common import Failed, size_text
from tao.cli.dialling import reach
from tao.runtime.deadline import Deadline
from tao.safe_text import printable
from tao.transport.addresses import address_text
from tao.transport.error_text import explain

__all__ = ["GAP", "Frame", "Table", "Watch"]

# How long the monitor may take to answer, in seconds, and the longest response, in bytes.
_PATIENCE = 5.0
_MOST = 64 * 1024 * 1024
# How much is received at once, in bytes.
_PIECE = 64 * 1024
# How many connections are requested: the most that a monitor returns in one response.
_MOST_CONNECTIONS = 10_000
# Larger numbers are ignored, and longer texts are cut to this many characters.
_MOST_NUMBER, _WIDEST = 1e15, 80
# A handler that runs longer than this is highlighted, in seconds.
_LONG = 1.0

#: The separator of two columns.
GAP = "  "
# The columns that are dropped when the terminal is too narrow, the least important first.
_EXPENDABLE = (
    *(
        "TLS",
        "ASKED",
        "DROPPED",
        "B IN/s",
        "B OUT/s",
        "HEARD",
        "REFUSED",
        "UP",
        "AGE",
        "NAME",
        "OF",
    ),
    *("ERRORS", "HANDLED/s", "WORKERS", "RUNNING", "STATE", "ADDRESS", "ID", "OUT/s", "IN/s"),
)

Record = Mapping[str, Any]


class Table(NamedTuple):
    """Rows of text below a header.

    Attributes:
        header: the column titles.
        rows: as long as the header.
        bad: for each row, whether it is highlighted.
        left: how many columns are left-aligned text; the others are numbers.
    """

    header: list[str]
    rows: list[list[str]]
    bad: list[bool]
    left: int

    def widths(self) -> list[int]:
        """Return the width of each column."""
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def fitted(self, width: int) -> Table:
        """Return the table without those columns of `_EXPENDABLE` for which there is no room."""
        table = self
        for name in _EXPENDABLE:
            if sum(table.widths()) + len(GAP) * (len(table.header) - 1) <= width:
                break
            if name in table.header:
                table = table._without(table.header.index(name))
        return table

    def _without(self, index: int) -> Table:
        header, *rows = ([*row[:index], *row[index + 1 :]] for row in (self.header, *self.rows))
        return Table(header, rows, self.bad, self.left - (index < self.left))


class Frame(NamedTuple):
    """The content of the screen at one moment."""

    title: str
    tables: list[Table]
    note: str


class Watch:
    """Reads one monitor repeatedly, to show rates.

    Args:
        address: host and port of the monitor.
        sort: which connections come first: ``"queue"``, ``"running"``, ``"rate"`` or ``"age"``.
        limit: how many connections are shown.
    """

    def __init__(self, address: tuple[str, int], sort: str, limit: int) -> None:
        self._address = address
        self._sort = sort
        self._limit = limit
        self._before: dict[Any, Record] = {}

    def read(self) -> Frame:
        """Query the monitor.

        Raises:
            Failed: it does not answer, or is not a tao monitor.
        """
        variables = self._get("/debug/vars")
        if not isinstance(variables, dict) or "TotalConn" not in variables:
            raise Failed(f"{address_text(self._address)} is not a tao monitor")
        known = self._get(f"/connections?limit={_MOST_CONNECTIONS}")
        now: dict[Any, Record] = {}
        tables = []
        for kind in ("server", "client"):
            records = _records(_dict(variables.get(f"{kind}s")).values())
            now |= {(kind, _text(each.get("name"))): each for each in records}
            if records or kind == "server":
                tables.append(self._ends(kind, records))
        note = "this monitor does not list connections"
        if isinstance(known, dict):
            records = _records(known.get("connections"))
            now |= {_key(each): each for each in records}
            records.sort(key=lambda each: self._badness(each), reverse=True)
            tables.append(self._connections(records[: self._limit]))
            total = max(int(_number(known.get("total"))), len(records))
            shown = min(self._limit, len(records))
            note = f"{shown} of {total} connections" if shown < total else ""
        self._before = now
        title = (
            f"{address_text(self._address)}  {time.strftime('%H:%M:%S')}  "
            f"{_number(variables['TotalConn']):.0f} connections, "
            f"{_rate_text(_number(variables.get('QPS')))} messages handled per second"
        )
        return Frame(title, tables, note)

    def _get(self, path: str) -> Any:
        """Return the JSON at a path; None if there is no such page."""
        where = address_text(self._address)
        try:
            data = _received(self._address, path, Deadline(_PATIENCE))
        except (OSError, ValueError) as error:  # ValueError: the host is not a valid name
            raise Failed(f"cannot reach {where}: {explain(error)}") from error
        try:
            response = http.client.HTTPResponse(_Read(data))  # type: ignore[arg-type]
            response.begin()
            if response.status not in (200, 404):
                raise Failed(f"{where} answers {path} with {response.status}")
            return json.loads(response.read()) if response.status == 200 else None
        # OverflowError: http.client reads as many bytes as the response announces.
        except (http.client.HTTPException, ValueError, RecursionError, OverflowError) as error:
            raise Failed(f"{where} is not a tao monitor") from error

    # -- tables

    def _ends(self, kind: str, records: list[Record]) -> Table:
        header = [kind.upper(), "STATE", "ADDRESS", "CONNS", "IN/s", "OUT/s", "B IN/s"]
        header += ["B OUT/s", "HANDLED/s", "WORKERS", "ERRORS", "REFUSED", "DROPPED", "UP"]
        rows, bad = [], []
        for each in records:
            rate = self._rates((kind, _text(each.get("name"))), each, "uptime")
            busy, workers = (_number(each.get(name)) for name in ("workers_busy", "workers"))
            rows.append(
                [_text(each.get("name")), _text(each.get("state")), _text(each.get("address"))]
                + [f"{_number(each.get('connections')):.0f}"]
                + [_rate_text(rate(name)) for name in ("messages_in", "messages_out")]
                + [size_text(rate(name)) for name in ("bytes_in", "bytes_out")]
                + [_rate_text(rate("handled")), f"{busy:.0f}/{workers:.0f}" if workers else "-"]
                + [f"{_number(each.get(name)):.0f}" for name in ("errors", "refused", "dropped")]
                + [_duration(_number(each.get("uptime")))]
            )
            full = bool(workers) and busy >= workers
            bad.append(full or each.get("state") not in ("running", "connected", "new"))
        return Table(header, rows, bad, 3)

    def _connections(self, records: list[Record]) -> Table:
        header = ["ID", "OF", "NAME", "PEER", "RUNNING", "FOR", "QUEUE", "PENDING"]
        header += ["ASKED", "IN/s", "OUT/s", "B IN/s", "B OUT/s", "HEARD", "AGE", "TLS"]
        rows, bad = [], []
        for each in records:
            rate = self._rates(_key(each), each, "age")
            running = _number(each.get("running_for"))
            waiting = [_number(each.get(name)) for name in ("send_queue", "pending")]
            rows.append(
                [_text(each.get(name)) for name in ("id", "server", "name", "peer", "running")]
                + [_duration(running) if running or each.get("running") is not None else "-"]
                + [f"{count:.0f}" for count in (*waiting, _number(each.get("requests")))]
                + [_rate_text(rate(name)) for name in ("messages_in", "messages_out")]
                + [size_text(rate(name)) for name in ("bytes_in", "bytes_out")]
                + [_duration(_number(each.get("last_heartbeat")))]
                + [_duration(_number(each.get("age"))), _text(each.get("tls") or "-")]
            )
            bad.append(running >= _LONG or any(waiting))
        return Table(header, rows, bad, 5)

    def _rates(self, key: Any, record: Record, clock: str) -> Callable[[str], float]:
        """Return a function for the growth per second of a counter, by the record's own clock."""
        before = self._before.get(key, {})
        if _number(before.get(clock)) >= _number(record.get(clock)):
            before = {}  # a new object with the same name
        seconds = _number(record.get(clock)) - _number(before.get(clock))

        def rate(name: str) -> float:
            growth = _number(record.get(name)) - _number(before.get(name))
            return max(0.0, growth / seconds) if seconds > 0 else 0.0

        return rate

    def _badness(self, record: Record) -> tuple[float, ...]:
        """Return the sort key of a connection; the greatest is shown first."""
        waiting = _number(record.get("send_queue")) + _number(record.get("pending"))
        running, age = _number(record.get("running_for")), _number(record.get("age"))
        if self._sort == "queue":
            return waiting, running, age
        if self._sort == "running":
            return running, waiting, age
        if self._sort == "age":
            return (age,)
        rate = self._rates(_key(record), record, "age")
        return (rate("messages_in") + rate("messages_out"),)


def _key(record: Record) -> Any:
    return tuple(_text(record.get(name)) for name in ("server", "id", "name", "peer"))


class _Read:
    """Received data in the form that `http.client.HTTPResponse` needs."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _received(address: tuple[str, int], path: str, deadline: Deadline) -> bytes:
    """Request a page, and return the complete response.

    Raises:
        OSError, ValueError: the request failed or timed out.
    """
    host = address_text(address)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    received = bytearray()
    with reach(address, max(0.001, deadline.remaining() or 0.0)) as sock:
        sock.settimeout(deadline.remaining() or 0.001)
        sock.sendall(request.encode())
        while len(received) < _MOST and not deadline.expired:
            sock.settimeout(deadline.remaining() or 0.001)
            data = sock.recv(_PIECE)
            if not data:
                return bytes(received)
            received += data
    raise TimeoutError("timed out" if deadline.expired else f"received more than {_MOST} bytes")


# -- formatting of untrusted values


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _records(values: Any) -> list[Record]:
    if not isinstance(values, Iterable):
        return []
    return [each for each in values if isinstance(each, dict)]


def _number(value: Any) -> float:
    """Return a number; 0 for other types and numbers that are out of range."""
    try:
        number = float(value) if isinstance(value, (int, float)) else 0.0
    except OverflowError:
        return 0.0
    return number if abs(number) < _MOST_NUMBER else 0.0


def _text(value: Any) -> str:
    """Return a short, printable text for a cell."""
    if not isinstance(value, (str, int, float)) or value == "":
        return "-"
    text = printable(str(value))
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}..."


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"


def _duration(seconds: float) -> str:
    """Format seconds in about five characters: ``0.25s``, ``12s``, ``3m04s``, ``5h12m``."""
    if seconds < 10:
        return f"{seconds:.2f}s" if seconds < 1 else f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"
