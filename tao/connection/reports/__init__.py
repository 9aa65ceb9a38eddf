"""What is told about a connection: to the log, to the figures, to the application.

Read ``error_reporting.py`` first; ``recent_errors.py`` and ``statistics.py`` keep the figures.
"""
