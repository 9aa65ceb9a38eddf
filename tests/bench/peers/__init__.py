"""Echo servers that speak tao's wire format, one file each, written as their experts would.

Every one is run as ``python -m tests.bench.peers.NAME --port 0`` and prints ``LISTENING <port>``.
"""
