"""The options of both ends: declared once, checked, and shown to people and to type checkers.

``fields.py`` says how an option is declared, ``common.py`` and ``definitions.py`` declare all of
them; ``given.py`` takes what users write, ``types.py`` and ``help.py`` tell editors and people what
they can write; ``reconnecting.py`` and ``cluster_url.py`` are two options that need more.
"""
