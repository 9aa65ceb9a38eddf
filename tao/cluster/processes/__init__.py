"""Several processes that serve as one: a supervisor and its workers.

In order: ``supervisor.py`` owns the listening sockets (``listening.py``) and starts workers
(``process.py``) in slots (``slots.py``), by the rules of ``restarts.py`` and ``settings.py``.
``worker.py`` is a worker's side of it, joined by a ``channel.py``; ``load_table.py`` balances
connections among workers, and ``draining.py`` ends them. ``signals.py``, ``systemd.py`` and
``pid_file.py`` talk to the world outside, ``questions.py`` is for the monitor.
"""
