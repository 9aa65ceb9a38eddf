"""One connection: what both ends share, from the socket to the handler and back.

``connection.py`` is what users hold, ``core.py`` what does the work, ``lifecycle.py`` its states,
``roles.py`` its threads, which ``assembly.py`` gives to it, and ``application.py`` what the
application has given. The rooms, in the order in which a message passes them:

- ``receiving``: from the socket to batches, unless ``reading_gate.py`` is closed;
- ``shared_reading``: the threads of connections that share theirs;
- ``handling``: from batches to handlers, in order;
- ``sending``: from what is written to the socket;
- ``requests``: requests and replies over all that; ``correlation.py`` finds the request of a reply;
- ``sessions``: a stream that outlives the transports below it;
- ``reports``: what is told of it, its ``totals.py`` for one; ``options``: what users may choose.

``readiness.py`` and ``greetings.py`` (with ``reading_loan.py``) see to the beginning, ``timers.py``
and ``keepalive.py`` to the time between, ``shutdown.py`` and ``teardown.py`` to the end;
``socket_access.py`` and ``context_variables.py`` are for users.
"""

from tao.connection.connection import Connection
from tao.connection.options.definitions import Reconnect
from tao.connection.reports.statistics import Counts, Snapshot
from tao.connection.sending.ticket import Ticket

__all__ = ["Connection", "Counts", "Reconnect", "Snapshot", "Ticket"]
