"""Receiving: from the socket to decoded batches.

``reading.py`` is the reading role, which ``peer_limits.py`` holds to the limits of the peer.
"""
