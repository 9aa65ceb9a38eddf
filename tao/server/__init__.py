"""The server: listening, accepting, its connections, and graceful shutdown.

In order: ``server.py`` is what users hold, ``core.py`` does its work, and ``state.py`` tells the
states of a server. ``listeners.py`` and ``listener.py`` listen; ``accepting.py`` makes connections
of accepted sockets, within the limits of ``admission.py``; ``connection.py`` is one of them, which
begins with ``first_bytes.py``. ``schedules.py`` has the timers that run on every connection,
``stopping.py`` the graceful shutdown, and ``resources.py`` what a running server holds.
``tls_reload.py`` replaces certificates, and ``reports.py`` has the results that users get.
"""

from tao.server.connection import ServerConn
from tao.server.reports import Broadcast, StopReport
from tao.server.server import Server

__all__ = ["Broadcast", "Server", "ServerConn", "StopReport"]
