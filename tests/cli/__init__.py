"""Tests of ``tao/cli/``."""
