"""Requests and replies, over one connection and both ways.

``exchange.py`` joins the parts: ``asking.py`` waits for a reply, ``making.py`` has the table of the
requests that were made (each a ``pending.py``), whose ``clock.py`` rings when one is due,
``callbacks.py`` calls the callbacks of their futures, ``responding.py`` answers those of the peer,
and ``negotiation.py`` finds out whether the peer knows requests. ``host.py`` is what they ask of
the connection.
"""
