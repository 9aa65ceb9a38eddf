"""The client: connecting, and reconnecting when the connection is lost.

Read in this order: ``client.py`` has the public class, ``reconnect.py`` its core, with
``start_claim.py``, ``renewal.py``, ``back_off.py``, ``usefulness.py`` and
``developer_warnings.py``; ``endpoints.py`` parses the addresses to connect to, and ``dialling.py``
and ``happy_eyeballs.py`` make the connections. ``resuming.py`` asks for a session and resumes it
when its link is lost, and ``leaving.py`` leaves a server that is about to stop.
"""

from tao.client.client import ClientConn, connect

__all__ = ["ClientConn", "connect"]
