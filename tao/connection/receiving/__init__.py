"""Receiving: from the socket to decoded batches.

``reading.py`` is the reading role, which ``peer_limits.py`` holds to the limits of the peer. Where
many connections share it, ``shared_reading.py`` has the threads, each with its ``reading_loop.py``.
"""
