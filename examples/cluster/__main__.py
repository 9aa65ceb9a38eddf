"""Start a Redis and two servers with two processes each, as if each were a machine of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import sleep

from examples._shared import arguments


def start_redis(folder: Path) -> subprocess.Popen[bytes]:
    """Start a Redis of its own on a Unix socket; wait until it listens."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        sys.exit("error: neither redis-server nor valkey-server is installed")
    words = [
        "--port",
        "0",
        "--unixsocket",
        str(folder / "redis"),
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    # In a session of its own Ctrl-C does not reach it: the servers end first.
    redis = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, start_new_session=True)
    while not (folder / "redis").exists():
        if redis.poll() is not None:
            sys.exit(f"error: {program} has ended")
        sleep(0.01)
    return redis


def start_server(port: int, url: str) -> subprocess.Popen[bytes]:
    """Start what one machine would run."""
    words = ["serve", "examples.chat.server:server", "--port", str(port), "--processes", "2"]
    words += ["--cluster", url]
    return subprocess.Popen([sys.executable, "-m", "tao", *words], start_new_session=True)


def main() -> int:
    """Run until Ctrl-C or SIGTERM; return the exit status."""
    options = arguments(__doc__, 12345).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        redis = start_redis(Path(folder))
        url = f"unix://{folder}/redis?prefix=chat"
        ports = (options.port, options.port + 1 if options.port else 0)
        print(f"cluster at {url}; Ctrl-C ends it", flush=True)
        servers = [start_server(port, url) for port in ports]
        try:
            with suppress(KeyboardInterrupt):
                for server in servers:
                    server.wait()
            for server in servers:
                server.terminate()
            return max(server.wait() for server in servers)
        finally:
            redis.terminate()
            redis.wait()


if __name__ == "__main__":
    sys.exit(main())
