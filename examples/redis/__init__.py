"""A server that Redis clients can talk to: ``python -m examples.redis.server``."""
