"""Tests of ``tao/runtime/``."""
