"""Long-running programs that try to break tao.

- ``python -m tests.chaos``: clients that reconnect, through faulty proxies, with an account of
  each message. With ``--sessions`` each has to arrive once, and to be answered once.
- ``python -m tests.chaos.soak``: hours of ordinary traffic, to find growing memory use.
- ``python -m tests.chaos.fuzz``: malformed data for the decoder and a live server; streams that
  cause errors are saved in ``corpus``, which ``tests/wire/test_corpus.py`` replays.

All of them are seeded and print the seed, use only this machine, and exit with status 1 if a
guarantee was broken. (A seed repeats the plan, but not the scheduling of threads.)
"""
