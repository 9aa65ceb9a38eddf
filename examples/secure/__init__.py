"""Mutual TLS: both ends present certificates."""
