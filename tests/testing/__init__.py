"""Tests of ``tao/testing/``."""
