"""Ping, pong, and so on."""
