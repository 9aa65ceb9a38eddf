"""Threads, time and cancellation: the basis of the packages above.

Read in this order: ``log.py``; ``snapshots.py``, a rule for all of tao; ``deadline.py`` and
``wakeup.py`` for waiting; ``combining.py``, a critical section that no thread waits for, and
``turnstile.py``, which lets a crowd of threads pass one at a time; ``threads.py``, which makes all
threads, with ``thread_start.py`` and ``native_threads.py``; ``timing_wheel.py`` with
``timer_heap.py``, and ``watchdog.py``, a timer for threads that make no progress;
``cancel_scope.py`` and ``context.py``; then the ways to run work: ``worker_pool.py`` with
``jobs.py``, ``leader_followers.py`` and ``helper_threads.py``; finally ``rate_limits.py``,
``histogram.py``, ``signals.py``, ``forks.py`` and ``thread_stacks.py``. ``greenlets.py`` adapts to
gevent.

Nothing is imported here, because ``import tao`` needs only ``log.py``.
"""
