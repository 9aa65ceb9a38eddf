"""For tools that want a setup.py; everything is declared in setup.cfg."""

from setuptools import setup

setup()
