"""One connection: what both ends share, from the socket to the handler and back.

In order:

- ``connection.py`` is what users hold, ``core.py`` what does the work, ``lifecycle.py`` its states,
  ``roles.py`` its threads, and ``application.py`` what the application has given;
- ``reading.py`` and ``peer_limits.py`` take in bytes, unless ``reading_gate.py`` is closed;
- ``inbox.py``, ``dispatcher.py``, ``handler_runner.py`` and ``handler_trust.py`` bring messages to
  handlers, watched by ``block_watch.py`` and ``slow_handlers.py``;
- ``send_queue.py`` sends: ``intake.py`` and ``send_limits.py`` let frames into ``backlog.py``,
  ``transmitter.py`` and ``writer.py`` empty it; ``ticket.py`` tracks one submitted message;
- ``greetings.py`` calls ``on_connect`` and ``on_close``; ``timers.py``, ``keepalive.py``,
  ``shutdown.py`` and ``teardown.py`` see to time and to the end;
- ``options.py`` has every option (with ``option_fields.py``, ``option_types.py`` and
  ``option_help.py``), ``socket_access.py`` and ``context_variables.py`` what users ask for, and
  ``error_reporting.py``, ``recent_errors.py`` and ``statistics.py`` what is told about it.
"""

from tao.connection.connection import Connection
from tao.connection.options import Reconnect
from tao.connection.statistics import Counts, Snapshot
from tao.connection.ticket import Ticket

__all__ = ["Connection", "Counts", "Reconnect", "Snapshot", "Ticket"]
