"""The server: listening, accepting, its connections, and graceful shutdown.

In order: ``server.py`` is what users hold, ``core.py`` does its work, and ``state.py`` tells the
states of a server. ``binding.py`` makes sockets listen, and ``listener.py`` accepts from them, on
threads of its own (``threaded_listener.py``) or on those that read (``shared_listener.py``);
``listeners.py`` has them all. ``accepting.py`` makes connections of accepted sockets, within the
limits of ``admission.py``; ``connection.py`` is one of them, which begins with ``handshake.py``
and, with sessions, ``resumption.py``; ``session_links.py`` leads to sessions of other processes,
and ``session_moves.py`` moves sessions to the process that replaces this one in a reload.
``login.py`` says what is let through before a login. What a connection asks of its server,
``connection_owner.py`` says. ``groups.py`` has the groups of connections, of which
``group_index.py`` keeps account, ``identities.py`` says which connection a peer has, ``names.py``
checks the names of both, and ``schedules.py`` has the timers that run on every connection.
``stopping.py`` is the graceful shutdown, and ``resources.py`` has what a running server holds.
``cluster_member.py`` makes a server a member of a cluster. ``tls_reload.py`` replaces certificates,
and ``reports.py`` has the results that users get.
"""

from tao.server.connection import ServerConn
from tao.server.groups import Group
from tao.server.reports import Broadcast, StopReport
from tao.server.server import Server

__all__ = ["Broadcast", "Group", "Server", "ServerConn", "StopReport"]
