"""The command line, ``tao`` or ``python -m tao``.

In order: ``main.py`` chooses the command; ``arguments.py`` reads the options, with
``serve_arguments.py``, ``argument_types.py`` and ``help_texts.py``; ``common.py`` has what the
commands share. Then one module for each command (``serve.py`` with ``reload.py``,
``connect.py`` with ``values.py``, ``bench.py`` with ``load.py``, ``top.py`` with ``figures.py``,
``dev_cert.py``), ``dialling.py``, and ``completion.py`` for shells. Each is imported when it is
needed, so nothing is imported here.
"""
