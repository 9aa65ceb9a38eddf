"""The version of tao, in the one place that the package and setup.cfg read it from."""

__version__ = "1.0.0"
