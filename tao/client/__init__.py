"""The client: dialling, and connecting again when the connection is lost.

In order: ``client.py`` is what the application holds, ``reconnect.py`` its core, with
``start_claim.py`` and ``developer_warnings.py``; ``endpoints.py`` reads what it may connect to, and
``dialling.py`` and ``happy_eyeballs.py`` connect.
"""

from tao.client.client import ClientConn, connect

__all__ = ["ClientConn", "connect"]
