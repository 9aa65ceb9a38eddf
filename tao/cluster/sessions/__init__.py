"""Sessions of several processes: a client may come back to any process of a supervisor.

By ``sockets.py`` workers pass links of sessions to the process that has the session, or relay those
with TLS by ``relay.py``; ``handover.py`` gives a session itself to another process.
"""
