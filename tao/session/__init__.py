"""Sessions: what both ends keep so that a connection outlives the transports that carry it.

Bytes and numbers only: no I/O, no threads, no clock. The threads are in ``tao/connection``.

Read in this order: ``frames.py`` lays out what the two ends tell each other, ``agreement.py`` has
the beginning of a transport, up to a new or a resumed session; then ``outgoing.py``, with
``retained.py``, keeps what was sent until it is acknowledged, and ``shared_room.py`` bounds what
all sessions keep; ``incoming.py`` knows what was received, decoded and handled. ``session.py`` puts
these together. ``moved.py`` has the state of one that is transferred to another process, and
``sessions.py`` is a server's table of them.
"""

from tao.session.sessions import Sessions

__all__ = ["Sessions"]
