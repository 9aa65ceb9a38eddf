"""Tests of ``tao/server/``."""
