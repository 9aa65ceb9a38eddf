"""Tests of ``tao/monitor/``."""
