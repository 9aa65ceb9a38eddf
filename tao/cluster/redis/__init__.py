"""The engine of ``cluster="redis://..."``, which joins servers of any machines.

``engine.py`` publishes with a ``writer.py`` and receives with a ``reader.py``, a thread each;
``presence.py`` knows the other nodes. ``wire.py`` has the bytes, ``scripts.py`` what Redis runs,
and ``client.py`` a connection to it.
"""
