"""Tests of ``tao/wire/``."""
