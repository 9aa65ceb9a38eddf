"""The monitor: statistics over HTTP, a live page and thread stacks, also for Prometheus.

Read in this order: ``monitor.py`` has the public class, ``http.py`` serves its sockets,
``answers.py`` turns requests into responses, and ``pages.py`` selects a page of ``live.py`` (with
``dashboard.html``), ``connections.py``, ``stacks.py``, ``health.py`` or ``prometheus.py``. Their
content, as ``ends.py``, comes from one of the ``sources.py``: this process, or, in a supervisor,
all of its ``workers.py``.
"""

from tao.monitor.monitor import Monitor, monitor_on

__all__ = ["Monitor", "monitor_on"]
