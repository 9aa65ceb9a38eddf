"""The engine of ``cluster="local"``, which joins the processes of one supervisor.

``hub.py`` is in the supervisor; each server is connected to it by an ``engine.py``. ``wire.py`` has
the bytes between them, and ``sockets.py`` the socket that a process is given at its start.
"""
