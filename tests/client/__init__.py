"""Tests of ``tao/client/``."""
