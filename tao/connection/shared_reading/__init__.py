"""``readers="shared"``: a few threads read many connections.

``readers.py`` has the threads, each with its ``loop.py``, which waits for all of its connections.
``member.py`` is one of these threads, and sends together what a few turns have left. The loop has
``breaks.py``, so that none takes more than its share, and ``departing.py``, so that the
ends of many do not keep the others waiting; ``roles.py`` are the roles of one of them,
``blocked_stay.py`` is what a thread does for one whose handler blocks it, and ``host.py`` is what
these ask of others.
"""
