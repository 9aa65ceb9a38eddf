"""Sessions, seen from a connection: a stream that outlives the transports below it.

The protocol itself is in `tao.session`, without I/O. ``stream.py`` takes the place of a transport,
above the ``linked_transport.py`` of the moment; ``sender.py`` is its sending half, ``receiver.py``
the receiving one, and ``host.py`` what it asks of its surroundings. ``agreeing.py`` agrees with the
peer, ``acknowledging.py`` tells it what was handled.
"""
