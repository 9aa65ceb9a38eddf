"""The server: listening, accepting, its set of connections, and stopping.

In order: ``server.py``, ``listener.py``, ``accepting.py`` with ``admission.py`` and
``first_bytes.py``, ``connection.py`` for one accepted connection, ``stopping.py``, and what these
use: ``resources.py``, ``tls_reload.py``, ``reports.py``.
"""

from tao.server.connection import ServerConn
from tao.server.reports import Broadcast, StopReport
from tao.server.server import Server

__all__ = ["Broadcast", "Server", "ServerConn", "StopReport"]
