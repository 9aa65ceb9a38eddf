"""Tests of framing: bytes in, messages out."""
