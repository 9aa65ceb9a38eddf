"""Tests of ``tao/connection/``."""
