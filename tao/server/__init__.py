"""The server: listening, accepting, its connections, and graceful shutdown.

In order: ``server.py`` is what users hold, ``core.py`` does its work, and ``state.py`` tells the
states of a server. The rooms:

- ``listening``: from an address to connections;
- ``membership``: groups, identities, and the cluster;
- ``sessions``: connections that outlive a lost transport.

``connection.py`` is a connection of a server, which begins with ``handshake.py``, and ``login.py``
says what is let through before a login; ``connection_owner.py`` says what a connection asks of its
server. ``schedules.py`` has the timers that run on every connection, ``stopping.py`` is the
graceful shutdown, and ``resources.py`` has what a running server holds. ``tls_reload.py`` replaces
certificates, and ``reports.py`` has the results that users get.
"""

from tao.server.connection import ServerConn
from tao.server.membership.groups import Group
from tao.server.reports import Broadcast, StopReport
from tao.server.server import Server

__all__ = ["Broadcast", "Group", "Server", "ServerConn", "StopReport"]
