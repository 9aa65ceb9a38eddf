"""Ping-pong over TCP."""
