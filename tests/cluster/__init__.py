"""Tests of ``tao/cluster/``."""
