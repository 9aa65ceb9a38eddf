"""A Redis of the tests' own, started for real on a Unix socket."""

from __future__ import annotations

import re
import signal
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

import redis

from tests.cluster.redis_program import program
from tests.support import PATIENCE, wait_until

__all__ = ["RedisServer", "program"]


class RedisServer:
    """A Redis that can be stopped and started again with the same data. Use it in a ``with`` block.

    Args:
        folder: for its data and its socket.
        options: for its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.socket = folder / "s"
        words = [
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--dir",
            str(folder),
        ]
        self._command = [str(program()), *words, "--appendonly", "no", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Any = redis.Redis(unix_socket_path=str(self.socket))

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it has ended, because it does not know an option for instance.
        """
        if self.version < 7:
            self._check_data()
        with (self._folder / "log").open("ab") as log:
            process = self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(lambda: self._answers() or process.poll() is not None)
        if process.poll() is not None:
            raise RuntimeError((self._folder / "log").read_text())

    def _check_data(self) -> None:
        """Remove a transaction that was half written when Redis was killed, as the guide advises.

        Redis before 7.0 writes what a script does as a transaction, and itself cuts only the
        command that is incomplete off. What it writes from then on would belong to the transaction
        that has begun, and would be lost in part when it is read again.
        """
        for file in self._folder.glob("appendonly.aof"):
            with (self._folder / "log").open("ab") as log:
                subprocess.run(  # the server's program, by the name of its tool
                    ["redis-check-aof", "--fix", str(file)],
                    executable=self._command[0],
                    input=b"y\n",
                    stdout=log,
                    stderr=log,
                    check=False,
                    timeout=PATIENCE,
                )

    @cached_property
    def version(self) -> int:
        """The first number of its version."""
        shown = subprocess.run([self._command[0], "--version"], capture_output=True, check=True)
        found = re.search(rb"v=(\d+)", shown.stdout)
        assert found, shown.stdout
        return int(found[1])

    @property
    def log_of_writes(self) -> Path:
        """The file to which it appends what it writes; from Redis 7.0 on."""
        (path,) = (self._folder / "appendonlydir").glob("*.incr.aof")
        return path

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self.client.close()
        self._process.kill()
        self._process.wait(PATIENCE)

    close = kill

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
