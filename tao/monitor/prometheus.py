"""The statistics in the text format of Prometheus; needs prometheus-client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from tao.connection.statistics import tallies
from tao.monitor.connections import survey
from tao.runtime.histogram import cumulated

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
    _Figure("messages_out", "tao_messages_out", "Messages wholly sent."),
    _Figure("bytes_out", "tao_bytes_out", "Bytes sent."),
    _Figure("handled", "tao_handled", "Messages and timer callbacks handled."),
    _Figure("handle_time", "tao_handle_seconds", "Seconds spent handling."),
    _Figure("errors", "tao_errors", "Exceptions of handlers, callbacks, codecs and sockets."),
    _Figure("undefined", "tao_undefined_messages", "Messages with an unregistered number."),
    _Figure("dropped", "tao_dropped_messages", "Messages a slow consumer did not get."),
    _Figure("unsent", "tao_unsent_messages", "Messages not sent before the connection ended."),
    _Figure("over_rate", "tao_over_rate", "Times that a peer exceeded its rate."),
    _Figure("frame_timeouts", "tao_frame_timeouts", "Connections whose message was not whole."),
    _Figure("overdue", "tao_overdue_handlers", "Handlers that ran for long."),
    _Figure("connections_total", "tao_connections", "Connections established."),
    _Figure("reconnects", "tao_reconnects", "Times that a client came back."),
    _Figure("refused", "tao_refused_connections", "Connections turned away."),
    _Figure("accept_errors", "tao_accept_errors", "Failures to accept a connection."),
    _Figure("accept_delays", "tao_accept_delays", "Pauses in accepting because of its rate."),
)
_GAUGES: Final = (
    _Figure("uptime", "tao_uptime_seconds", "Seconds since it was made."),
    _Figure("connections", "tao_open_connections", "Connections open now."),
    _Figure("workers", "tao_workers", "Size of the worker pool."),
    _Figure("workers_busy", "tao_workers_busy", "Workers that run a handler now."),
    _Figure("timers", "tao_timers", "Timers pending."),
)


def exposition() -> tuple[str, bytes]:
    """Return the content type and the text.

    Raises:
        ImportError: prometheus-client is not installed.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector())
    return CONTENT_TYPE_LATEST, generate_latest(registry)


class _Collector:
    """Passes the current figures to prometheus-client."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = [(tally, tally.snapshot()) for tally in tallies()]
        for family, figures in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for figure in figures:
                metric = family(figure.name, figure.meaning, labels=["name"])
                for _, each in found:
                    metric.add_metric([each.name], getattr(each, figure.field))
                yield metric
        states = GaugeMetricFamily("tao_state", "1 for its state.", labels=["name", "state"])
        kinds = CounterMetricFamily(
            "tao_errors_by_kind", "Exceptions by class.", labels=["name", "kind"]
        )
        pending = GaugeMetricFamily("tao_pending", "Messages to be handled.", labels=["name"])
        queued = GaugeMetricFamily("tao_send_queue", "Messages to be sent.", labels=["name"])
        for tally, each in found:
            states.add_metric([each.name, each.state], 1)
            for kind, count in each.error_kinds.items():
                kinds.add_metric([each.name, kind], count)
            looked = survey(tally)
            pending.add_metric([each.name], looked.pending)
            queued.add_metric([each.name], looked.send_queue)
        yield from (states, kinds, pending, queued, self._latencies())

    def _latencies(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        metric = HistogramMetricFamily(
            "tao_handler_seconds",
            "How long handlers took; the sum is exact to 3 %.",
            labels=["name", "number"],
        )
        for tally in tallies():
            for number, cells in tally.latencies.copies().items():
                pairs, total = cumulated(cells, _OCTAVES)
                buckets = [(f"{limit:.7g}", float(count)) for limit, count in pairs]
                buckets.append(("+Inf", float(sum(cells))))
                metric.add_metric([tally.name, str(number)], buckets, total)
        return metric
