"""Tests of ``tao/transport/``."""
