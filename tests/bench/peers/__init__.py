"""Echo servers that speak tao's wire format, one per file, each written as an expert would.

Each is run as ``python -m tests.bench.peers.NAME --port 0`` and prints ``LISTENING <port>``.
"""
