"""Threads, time and cancellation: what everything above is built on.

In order: ``log.py``; ``deadline.py`` and ``wakeup.py`` for waiting; ``threads.py``, which makes all
threads, on ``thread_start.py`` and ``native_threads.py``; ``timing_wheel.py`` with its
``agenda.py``; ``cancel_scope.py`` and ``context.py``; the ways to run work, ``worker_pool.py`` with
its ``jobs.py``, ``leader_followers.py`` and ``helper_threads.py``; at last ``rate_limits.py``,
``histogram.py``, ``signals.py`` and ``forks.py``. What differs under gevent is in ``greenlets.py``.

Nothing is imported here, because ``import tao`` needs ``log.py`` and no more.
"""
