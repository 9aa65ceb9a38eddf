"""The command line, ``tao`` or ``python -m tao``.

Read the files in this order: ``main.py`` selects the command; ``arguments.py`` parses the options,
with ``serve_arguments.py``, ``argument_types.py`` and ``help_texts.py``; ``common.py`` contains
what the commands share. Each command has its own module (``serve.py`` with ``reload.py``,
``connect.py`` with ``values.py``, ``bench.py`` with ``load.py``, ``top.py`` with ``figures.py``,
``dev_cert.py``, and ``frame.py``, which prints a dump of one frame). ``codecs.py`` finds the codec
that ``--codec`` names. For ``tao serve --processes``, ``processes.py`` and ``serving.py`` start the
supervisor, and ``worker.py`` is what that starts. ``dialling.py`` connects to an address, and
``completion.py`` generates shell scripts. Each module is imported when it is needed, so nothing is
imported here.
"""
