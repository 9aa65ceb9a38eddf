"""The statistics in the text format of Prometheus; needs prometheus-client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from tao.monitor.ends import End
from tao.runtime.histogram import cumulated
from tao.safe_text import number_text

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["exposition"]

# Histograms have a bucket for every fourth power of two, from 4 microseconds to 16 seconds.
_OCTAVES: Final = range(-18, 5, 2)


class _Figure(NamedTuple):
    """The Prometheus name of a field of a snapshot."""

    field: str
    name: str  # a counter's without _total, which the format adds
    meaning: str


_COUNTERS: Final = (
    _Figure("messages_in", "tao_messages_in", "Messages received and decoded."),
    _Figure("bytes_in", "tao_bytes_in", "Bytes received."),
    _Figure("messages_out", "tao_messages_out", "Messages sent completely."),
    _Figure("bytes_out", "tao_bytes_out", "Bytes sent."),
    _Figure("handled", "tao_handled", "Messages and timer callbacks handled."),
    _Figure("handle_time", "tao_handle_seconds", "Seconds spent handling."),
    _Figure("errors", "tao_errors", "Exceptions of handlers, callbacks, codecs and sockets."),
    _Figure("undefined", "tao_undefined_messages", "Messages with an unregistered number."),
    _Figure("dropped", "tao_dropped_messages", "Messages dropped because of a slow consumer."),
    _Figure("unsent", "tao_unsent_messages", "Messages not sent before the connection ended."),
    _Figure("over_rate", "tao_over_rate", "Times that a peer exceeded its rate."),
    _Figure("frame_timeouts", "tao_frame_timeouts", "Connections closed by frame_timeout."),
    _Figure("overdue", "tao_overdue_handlers", "Handlers that ran longer than handler_warn_after."),
    _Figure("requests", "tao_replies", "Replies to requests of this side."),
    _Figure(
        "late_replies", "tao_late_replies", "Replies that arrived after their request had ended."
    ),
    _Figure("connections_total", "tao_connections", "Connections established."),
    _Figure("reconnects", "tao_reconnects", "Reconnections of clients."),
    _Figure("refused", "tao_refused_connections", "Connections refused."),
    _Figure("session_resumes", "tao_session_resumes", "Times that a session was resumed."),
    _Figure("sessions_lost", "tao_sessions_lost", "Sessions that could not be resumed."),
    _Figure("sessions_moved", "tao_sessions_moved", "Sessions given to the next process."),
    _Figure(
        "session_links_passed",
        "tao_session_links_passed",
        "Connections passed on to the process that has their session.",
    ),
    _Figure(
        "session_links_relayed",
        "tao_session_links_relayed",
        "Connections with TLS relayed to the process that has their session.",
    ),
    _Figure("accept_errors", "tao_accept_errors", "Failed attempts to accept a connection."),
    _Figure("accept_delays", "tao_accept_delays", "Pauses in accepting because of accept_rate."),
)
_GAUGES: Final = (
    _Figure("uptime", "tao_uptime_seconds", "Seconds since the server or client was created."),
    _Figure("connections", "tao_open_connections", "Connections open now."),
    _Figure("workers", "tao_workers", "Size of the worker pool."),
    _Figure("workers_busy", "tao_workers_busy", "Workers that run a handler now."),
    _Figure("timers", "tao_timers", "Timers pending."),
    _Figure("sessions", "tao_sessions", "Connections with a session."),
    _Figure(
        "sessions_lingering", "tao_sessions_lingering", "Sessions that wait to be resumed now."
    ),
    _Figure("sessions_lingering", "tao_sessions_waiting", "Deprecated: tao_sessions_lingering."),
    _Figure("session_bytes", "tao_session_bytes", "Bytes sent in sessions, not acknowledged."),
    _Figure("requests_in_flight", "tao_requests_in_flight", "Requests that wait for a reply."),
    _Figure("oldest_request", "tao_oldest_request_seconds", "How long the oldest one waits."),
)


_CLUSTER_COUNTERS: Final = (
    _Figure("published", "tao_cluster_published", "Publications passed on to the cluster."),
    _Figure("delivered", "tao_cluster_delivered", "Publications that came from the cluster."),
    _Figure("gaps", "tao_cluster_gaps", "Times that publications were missed."),
    _Figure("missing", "tao_cluster_missing", "Publications missed, as far as it is known."),
    _Figure("reconnects", "tao_cluster_reconnects", "Times that the cluster was reached again."),
)
_CLUSTER_GAUGES: Final = (
    _Figure("queue", "tao_cluster_queue", "Publications that wait to be passed on."),
    _Figure("lag", "tao_cluster_lag_seconds", "Seconds that a publication takes."),
)


def exposition(ends: Iterable[End]) -> tuple[str, bytes]:
    """Return the content type and the text.

    Args:
        ends: the servers and clients to show.

    Raises:
        ImportError: prometheus-client is not installed.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(list(ends)))
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Collector:
    """Passes the current figures to prometheus-client."""

    def __init__(self, ends: list[End]) -> None:
        self._ends = ends
        # Of every sample; there is a label for the process where there are several.
        self._names: list[str] = ["name", "process"] if any(e.process for e in ends) else ["name"]

    def _labels(self, end: End) -> list[str]:
        return [end.label or end.snapshot.name, end.process][: len(self._names)]

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        names = self._names
        for family, figures in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for figure in figures:
                metric = family(figure.name, figure.meaning, labels=names)
                for end in self._ends:
                    metric.add_metric(self._labels(end), getattr(end.snapshot, figure.field))
                yield metric
        states = GaugeMetricFamily(
            "tao_state", "1 for the current state.", labels=[*names, "state"]
        )
        kinds = CounterMetricFamily(
            "tao_errors_by_kind", "Exceptions by class.", labels=[*names, "kind"]
        )
        pending = GaugeMetricFamily(
            "tao_pending", "Messages that wait for their handler.", labels=names
        )
        queued = GaugeMetricFamily("tao_send_queue", "Messages that wait to be sent.", labels=names)
        for end in self._ends:
            labels = self._labels(end)
            states.add_metric([*labels, end.snapshot.state], 1)
            for kind, count in end.snapshot.error_kinds.items():
                kinds.add_metric([*labels, kind], count)
            pending.add_metric(labels, end.survey.pending)
            queued.add_metric(labels, end.survey.send_queue)
        yield from (states, kinds, pending, queued, self._latencies())
        yield self._request_times()
        yield from self._cluster()

    def _cluster(self) -> Iterator[Metric]:
        """The figures of those servers that are in a cluster."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        members = [end for end in self._ends if end.snapshot.cluster]
        if not members:
            return
        up = GaugeMetricFamily("tao_cluster_up", "1 if it is reached.", labels=self._names)
        for end in members:
            up.add_metric(self._labels(end), float(end.snapshot.cluster["state"] == "up"))
        yield up
        for family, figures in (
            (CounterMetricFamily, _CLUSTER_COUNTERS),
            (GaugeMetricFamily, _CLUSTER_GAUGES),
        ):
            for figure in figures:
                metric = family(figure.name, figure.meaning, labels=self._names)
                for end in members:
                    metric.add_metric(self._labels(end), end.snapshot.cluster[figure.field])
                yield metric

    def _request_times(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        metric = GaugeMetricFamily(
            "tao_request_seconds",
            "How long replies to requests took.",
            labels=[*self._names, "number", "quantile"],
        )
        for end in self._ends:
            for number, times in end.snapshot.request_latency.items():
                for quantile, name in (("0.5", "p50"), ("0.9", "p90"), ("0.99", "p99")):
                    metric.add_metric([*self._labels(end), number, quantile], times[name])
        return metric

    def _latencies(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        metric = HistogramMetricFamily(
            "tao_handler_seconds",
            "Run time of handlers in seconds; the sum is accurate to 3 %.",
            labels=[*self._names, "number"],
        )
        for end in self._ends:
            for number, cells in end.cells.items():
                pairs, total = cumulated(cells, _OCTAVES)
                buckets = [(f"{limit:.7g}", float(count)) for limit, count in pairs]
                buckets.append(("+Inf", float(sum(cells))))
                text = str(number) if end.process else number_text(number)  # is text already
                metric.add_metric([*self._labels(end), text], buckets, total)
        return metric
