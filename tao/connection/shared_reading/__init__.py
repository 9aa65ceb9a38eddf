"""``readers="shared"``: a few threads read many connections.

``readers.py`` has the threads, each with its ``loop.py``, which waits for all of its connections,
with ``breaks.py``, so that none takes more than its share, and with ``departing.py``, so that the
ends of many do not keep the others waiting; ``roles.py`` are the roles of one of them,
``blocked_stay.py`` is what a thread does for one whose handler blocks it, and ``host.py`` is what
these ask of others.
"""
