"""What one connection has counted so far, collected from its parts."""

from __future__ import annotations

from typing import Any, Protocol

from tao.connection.handling.dispatcher import Dispatcher
from tao.connection.handling.handler_runner import HandlerRunner
from tao.connection.receiving.reading import Reader
from tao.connection.reports.error_reporting import ErrorReports
from tao.connection.requests.exchange import Exchange
from tao.connection.sending.send_queue import SendQueue

__all__ = ["CountingParts", "totals_of"]


class CountingParts(Protocol):
    """The parts of a connection that count, of its core."""

    dispatcher: Dispatcher
    error_reports: ErrorReports
    exchange: Exchange
    left_over: int
    reader: Reader
    runner: HandlerRunner
    send_queue: SendQueue
    unsent: int


def totals_of(conn: CountingParts) -> tuple[Any, ...]:
    """Return the counts of a connection, in the order of the fields of `Counts`."""
    reader, sent, reports = conn.reader, conn.send_queue.transmitter, conn.error_reports
    runner, limits, requests = conn.runner, reader.limits, conn.exchange.requests_so_far
    replies, late = (0, 0) if requests is None else (requests.replies, requests.late_replies)
    return (
        reader.messages_in - conn.dispatcher.too_late + replies,
        reader.bytes_in,
        sent.frames_sent,
        sent.bytes_sent,
        runner.handled,
        runner.busy_time,
        reports.errors,
        reports.undefined,
        conn.send_queue.dropped,
        conn.unsent + conn.left_over,
        0 if limits is None else limits.over_rate,
        0 if limits is None else limits.frame_timeouts,
        reports.overdue,
        replies,
        late,
    )
