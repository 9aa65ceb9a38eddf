"""A Redis for the time of a run."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.load import LoadFailed
from tests.cluster.redis_program import program

PATIENCE = 10.0  # seconds until it must have made its socket


@contextlib.contextmanager
def redis_running(*options: str) -> Iterator[str]:
    """Start a Redis with options of its command line; give its URL."""
    path = program()
    if path is None:
        raise LoadFailed("neither redis-server nor valkey-server is installed")
    with tempfile.TemporaryDirectory(prefix="tao-redis-") as folder:
        place = Path(folder) / "s"
        words = ["--port", "0", "--unixsocket", str(place), "--dir", folder, "--save", "", *options]
        with subprocess.Popen([path, *words], stdout=subprocess.DEVNULL) as process:
            try:
                end = time.monotonic() + PATIENCE
                while not place.exists():
                    if process.poll() is not None or time.monotonic() > end:
                        raise LoadFailed(f"{path} does not start")
                    time.sleep(0.005)
                yield f"unix://{place}"
            finally:
                process.kill()
