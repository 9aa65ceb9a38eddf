"""More than one process: what supervises processes, and what carries messages between servers.

``engine.py`` defines how the servers of a cluster exchange messages; ``link.py`` connects a server
to an engine, and ``publisher.py`` publishes from a program without a server. The rooms:

- ``processes``: the supervisor of ``tao serve --processes``, and its workers;
- ``hub``: the engine that joins the processes of one supervisor;
- ``redis``: the engine that joins servers of any machines;
- ``sessions``: how processes of one supervisor pass sessions to each other.
"""
