"""Tests of ``tao/session/``."""
