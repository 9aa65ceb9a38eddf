"""The benchmark suite: tao beside the ways people write such servers today.

Run it with ``python -m tests.bench``; ``README.rst`` in this folder says what each row measures.
The files read in this order: ``rows`` (what is measured), ``contest`` (who runs when),
``processes`` (servers), ``load`` (the load generator), ``report`` and ``chart`` (what comes out).
"""
