"""The version of tao, read by the package and by setup.cfg."""

__version__ = "1.0.0"
