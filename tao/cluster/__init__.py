"""More than one process: what supervises processes, and what carries messages between servers.

In order: ``supervisor.py`` owns the listening sockets (``listening.py``) and starts workers
(``process.py``) in slots (``slots.py``), by the rules of ``restarts.py`` and ``settings.py``.
``worker.py`` is a worker's side of it, joined by a ``channel.py``; ``load_table.py`` balances
connections among workers, and ``draining.py`` ends them. ``signals.py``, ``systemd.py`` and
``pid_file.py`` talk to the world outside, ``questions.py`` is for the monitor. By
``session_sockets.py`` workers pass links of sessions to each other, or relay those with TLS by
``session_relay.py``; ``session_handover.py`` gives a session itself to another process.

``engine.py`` defines how servers of a cluster exchange messages; ``link.py`` connects a server to
it, and ``publisher.py`` publishes from a program without a server. The processes of one supervisor
are joined by its ``hub.py``, to which each is connected by a ``hub_engine.py``; ``hub_wire.py`` has
the bytes between them, and ``hub_sockets.py`` the socket.

Servers of any machines are joined by a ``redis_engine.py``, with a ``redis_writer.py`` and a
``redis_reader.py``; ``presence.py`` knows the other nodes. ``redis_wire.py`` has the bytes,
``redis_scripts.py`` what Redis runs, ``redis_client.py`` the connections.
"""
