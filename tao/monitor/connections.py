"""The connections of this process, as the monitor shows them: a table and a list of problems."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from tao.connection.handling.slow_handlers import Running, running_in
from tao.connection.reports.statistics import Statistics, all_statistics
from tao.connection.sessions.agreeing import session_of
from tao.safe_text import number_value, safe_str
from tao.transport.addresses import address_text

__all__ = [
    "Survey",
    "WrongQuery",
    "name_of",
    "page_bounds",
    "page_of_connections",
    "peer_of",
    "survey",
]

# How many connections one response holds, by default and at most.
_LIMIT, _LIMIT_MOST = 1000, 10_000
# A handler that runs longer than this is reported, in seconds.
_LONG = 1.0
# How much of a name or an address is shown, in characters.
_LONGEST = 200
# A queue above this share of its limit is reported, in per cent.
_FULL = 50


class WrongQuery(ValueError):
    """The query is invalid; the text says why."""


class _Seen(NamedTuple):
    """A connection, its owner's name, and when it was established."""

    conn: Any
    owner: str
    since: float


class Survey(NamedTuple):
    """The state of all connections of an owner at one moment.

    Attributes:
        pending: messages that wait for a handler or are being handled.
        send_queue: messages that wait to be sent.
        slow: connections with a slow handler, as seconds and a text; the worst first.
        blocked: connections with a long send queue, as per cent of the limit and a text.
        behind: connections with many messages to handle, likewise.
    """

    pending: int
    send_queue: int
    slow: list[tuple[float, str]]
    blocked: list[tuple[float, str]]
    behind: list[tuple[float, str]]


def name_of(conn: Any) -> str:
    """Return the name that the application has given a connection, as a string.

    It never raises, even if ``str(conn.name)`` does.
    """
    return safe_str(conn.name)[:_LONGEST]


def peer_of(conn: Any) -> str:
    """Return the address of a peer as a string, also if the application has replaced it."""
    return address_text(conn.remote_address)[:_LONGEST]


def survey(statistics: Statistics) -> Survey:
    """Examine all connections of a server, or the connection of a client."""
    found = Survey(0, 0, [], [], [])
    pending = send_queue = 0
    everyone = _seen([statistics])
    running_now = _running(everyone)
    for conn, _, _ in everyone:
        waiting, running = conn.dispatcher.pending, running_now.get(conn)
        queue, limit = conn.send_queue.waiting, conn.settings.queue_size
        pending += waiting
        send_queue += queue
        subject = f"connection {conn.net_id}, {peer_of(conn)}"
        if running is not None and running.seconds >= _LONG:
            text = f"{subject}: handling {running.what} for {running.seconds:.0f} s"
            found.slow.append((running.seconds, text))
        if queue * 100 >= limit * _FULL:
            text = f"{subject}: {queue} messages wait to be sent (limit {limit})"
            found.blocked.append((queue * 100 / limit, text))
        if waiting * 100 >= limit * _FULL:
            text = f"{subject}: {waiting} messages wait for their handler"
            found.behind.append((waiting * 100 / limit, text))
    for worst in found[2:]:
        worst.sort(reverse=True)
    return found._replace(pending=pending, send_queue=send_queue)


def page_of_connections(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of ``/connections``.

    Args:
        query: ``offset`` and ``limit``; ``server``, the name of a server or client; ``filter``, a
            text that the number, name, peer or server must contain, in upper or lower case;
            ``sort``, a field to sort by, with ``-`` before it for the highest first.

    Raises:
        WrongQuery: a value is out of range.
    """
    offset, limit = page_bounds(query)
    owners = [each for each in all_statistics() if query.get("server") in (None, "", each.name)]
    found = _seen(owners)
    wanted = query.get("filter", "").lower()
    if wanted:
        found = [each for each in found if wanted in _searched(each)]
    order = query.get("sort", "")
    if order:
        found.sort(key=_key(order.removeprefix("-"), found), reverse=order.startswith("-"))
    shown = found[offset : offset + limit]
    running = _running(shown)
    rows = [_row(each, running.get(each.conn)) for each in shown]
    return {"total": len(found), "offset": offset, "connections": rows}


def page_bounds(query: Mapping[str, str]) -> tuple[int, int]:
    """Return the first row to show, and how many.

    Raises:
        WrongQuery: a value is out of range, or there is an unknown one.
    """
    unknown = set(query) - {"offset", "limit", "server", "filter", "sort"}
    if unknown:
        raise WrongQuery(f"there is no {min(unknown)} to ask for")
    return _number(query, "offset", 0, 2**31), _number(query, "limit", _LIMIT, _LIMIT_MOST)


def _key(field: str, found: list[_Seen]) -> Callable[[_Seen], Any]:
    """Return the sort key for a field."""
    if field == "running_for":
        running = _running(found)
        return lambda seen: running[seen.conn].seconds if seen.conn in running else -1.0
    if field not in _KEYS:
        names = ", ".join([*_KEYS, "running_for"])
        raise WrongQuery(f"sort must be one of {names}, with or without a leading -")
    return _KEYS[field]


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise WrongQuery(f"{name} must be a number from 0 to {most}")
    return int(text)


def _seen(owners: list[Statistics]) -> list[_Seen]:
    """Return the established connections, by owner and number."""
    return [
        _Seen(conn, statistics.name, since)
        for statistics in owners
        for conn, since in sorted(statistics.living().items(), key=lambda item: item[0].net_id)
        if conn.lifecycle.status.on_close_owed
    ]


def _running(found: list[_Seen]) -> dict[Any, Running]:
    """Return the running handlers by connection; idle connections are left out."""
    running = running_in([each.conn.runner for each in found])
    return {each.conn: running[each.conn.runner] for each in found if each.conn.runner in running}


def _searched(seen: _Seen) -> str:
    conn = seen.conn
    words = (conn.net_id, name_of(conn), peer_of(conn), seen.owner)
    return " ".join(map(str, words)).lower()


def _heard(seen: _Seen) -> float:
    conn = seen.conn
    return float(conn.keep_alive.idle_time)


def _tls(conn: Any) -> str | None:
    transport = conn.transport
    return None if transport is None else transport.tls_version


def _session(conn: Any) -> dict[str, Any] | None:
    stream = session_of(conn.transport)
    return None if stream is None else stream.figures._asdict()


def _unacknowledged(conn: Any) -> int:
    """What neither side knows to be handled, in bytes."""
    found = _session(conn)
    return -1 if found is None else int(found["unacknowledged"] + found["unhandled"])


_KEYS: Final[dict[str, Callable[[_Seen], Any]]] = {
    "id": lambda seen: seen.conn.net_id,
    "server": lambda seen: seen.owner,
    "name": lambda seen: name_of(seen.conn),
    "peer": lambda seen: peer_of(seen.conn),
    "age": lambda seen: -seen.since,
    "messages_in": lambda seen: seen.conn.reader.messages_in,
    "messages_out": lambda seen: seen.conn.send_queue.frames_sent,
    "bytes_in": lambda seen: seen.conn.reader.bytes_in,
    "bytes_out": lambda seen: seen.conn.send_queue.bytes_sent,
    "send_queue": lambda seen: seen.conn.send_queue.waiting,
    "pending": lambda seen: seen.conn.dispatcher.pending,
    "requests": lambda seen: seen.conn.requests_now()[0],
    "oldest_request": lambda seen: seen.conn.requests_now()[1],
    "last_heartbeat": _heard,
    "tls": lambda seen: _tls(seen.conn) or "",
    "session": lambda seen: _unacknowledged(seen.conn),
}


def _row(seen: _Seen, running: Running | None) -> dict[str, Any]:
    conn = seen.conn
    in_flight, oldest = conn.requests_now()
    return {
        "id": conn.net_id,
        "server": seen.owner,
        "name": name_of(conn),
        "peer": peer_of(conn),
        "age": round(time.monotonic() - seen.since, 3),
        "messages_in": conn.reader.messages_in,
        "messages_out": conn.send_queue.frames_sent,
        "bytes_in": conn.reader.bytes_in,
        "bytes_out": conn.send_queue.bytes_sent,
        "send_queue": conn.send_queue.waiting,
        "send_queue_limit": conn.settings.queue_size,
        "pending": conn.dispatcher.pending,
        "requests": in_flight,
        "oldest_request": round(oldest, 3),
        "last_heartbeat": round(_heard(seen), 3),
        "tls": _tls(conn),
        "session": _session(conn),
        # None also while a timer's callback runs.
        "running": None
        if running is None or running.number is None
        else number_value(running.number),
        "running_for": 0.0 if running is None else round(running.seconds, 3),
    }
