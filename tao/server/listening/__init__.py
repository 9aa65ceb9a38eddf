"""From an address to connections.

``binding.py`` makes sockets listen, and ``listener.py`` accepts from them, on threads of its own
(``threaded_listener.py``) or on those that read (``shared_listener.py``); ``listeners.py`` has all
of a server's. ``accepting.py`` makes connections of accepted sockets, within the limits of
``admission.py``.
"""
