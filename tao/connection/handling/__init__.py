"""Handling: from decoded batches to the handlers of the application.

``inbox.py``, ``dispatcher.py`` (or ``shared_dispatcher.py``) with its ``dispatch_figures.py``,
``handler_runner.py`` and ``handler_trust.py`` bring messages to handlers, each with its
``request_context.py``;
``replies.py`` takes what handlers write; ``block_watch.py`` and ``slow_handlers.py`` watch them.
"""
