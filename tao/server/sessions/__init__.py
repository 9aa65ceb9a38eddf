"""The server's side of sessions.

``resumption.py`` creates sessions and resumes them; ``links.py`` leads to sessions of other
processes, and ``moves.py`` moves sessions to the process that replaces this one in a reload.
"""
