"""One connection: what both ends share, from the socket to the handler and back.

In order: ``connection.py`` is what users hold, ``core.py`` what does the work, ``lifecycle.py`` its
states, and ``application.py`` what the application has given. ``reading.py`` and
``peer_limits.py`` take in bytes; ``inbox.py``, ``dispatcher.py`` and ``handler_trust.py`` bring
messages to handlers, watched by ``block_watch.py`` and ``slow_handlers.py``; ``send_queue.py`` and
``backlog.py`` send; ``timers.py``, ``keepalive.py`` and ``shutdown.py`` see to time. ``options.py``
has every option (with ``option_fields.py``, ``option_types.py`` and ``option_help.py``),
``socket_access.py`` and ``context_variables.py`` what users ask for, and ``error_reporting.py``,
``recent_errors.py`` and ``statistics.py`` what is told about it.
"""

from tao.connection.connection import Connection
from tao.connection.options import Reconnect
from tao.connection.send_queue import Ticket
from tao.connection.statistics import Counts, Snapshot

__all__ = ["Connection", "Counts", "Reconnect", "Snapshot", "Ticket"]
