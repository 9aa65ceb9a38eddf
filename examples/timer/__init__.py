"""The time, every second."""
