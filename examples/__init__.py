"""Programs to read and to try: each has a server and a client, run with ``python -m``."""
