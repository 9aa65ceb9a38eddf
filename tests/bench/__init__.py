"""The benchmark suite: tao beside other ways to write such servers.

Run it with ``python -m tests.bench``; ``README.rst`` in this folder says what each row measures.
Read the files in this order: ``rows`` (what is measured), ``contest`` (the schedule),
``processes`` (servers), ``load`` (the load generator), ``report`` and ``chart`` (the output).
"""
