"""Figures over HTTP, a live page, and the threads' stacks, for people and for Prometheus.

In order: ``monitor.py`` is what users start, ``http.py`` serves its sockets, ``answers.py`` makes
responses of requests, and ``pages.py`` chooses among ``live.py`` (with ``dashboard.html``),
``connections.py``, ``stacks.py``, ``health.py`` and ``prometheus.py``.
"""

from tao.monitor.monitor import Monitor, monitor_on

__all__ = ["Monitor", "monitor_on"]
