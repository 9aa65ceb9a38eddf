"""Programs that try to break tao for longer than a test may take.

- ``python -m tests.chaos``: clients that come back, through proxies that break everything, and an
  account of each message.
- ``python -m tests.chaos.soak``: hours of ordinary life; does anything grow?
- ``python -m tests.chaos.fuzz``: garbage for the decoder and a live server; what breaks them is
  saved in ``corpus``, which ``tests/wire/test_corpus.py`` replays.

All of it is seeded and prints its seed, stays on this machine, and ends with status 1 if a promise
was broken. (Threads take turns as they like: a seed repeats the plan, not each switch.)
"""
