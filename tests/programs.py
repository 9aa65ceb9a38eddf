"""Run programs as child processes: start them, exchange lines, and always end them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
#: The timeout for an expected event, in seconds. It includes the start of the program, which on a
#: busy machine takes a hundred times as long as on an idle one.
LONG = 180.0


class Program:
    """``python -m`` something, and its output so far. Use it in a ``with`` block."""

    def __init__(self, *arguments: object, cwd: Path = ROOT) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell makes its background jobs ignore SIGINT, and children inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        # Guards the two lists; notified for each line and at the end of each stream.
        self._changed = threading.Condition()
        self.output: list[str] = []
        self.errors: list[str] = []
        self._open: int = 2
        self._readers = [
            threading.Thread(target=self._read, args=stream, name="test-reader", daemon=True)
            for stream in ((self._process.stdout, self.output), (self._process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def prints(self, pattern: str) -> re.Match[str]:
        """Wait for an output line that matches the pattern."""

        def found() -> re.Match[str] | None:
            return next(
                (match for line in self.output if (match := re.search(pattern, line))), None
            )

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._open, LONG)
            match = found()
        assert match, f"no {pattern!r} in {self.output}, {self.errors}"
        return match

    def type(self, line: str) -> None:
        """Send a line to the program's standard input."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def end_input(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def interrupt(self) -> int:
        """Send SIGINT until the program ends, and return its exit status.

        Python may miss a signal that arrives just before a blocking call.
        """
        for _ in range(36):
            self.send(signal.SIGINT)
            try:
                self._process.wait(LONG / 36)
                break
            except subprocess.TimeoutExpired:
                pass
        return self.status()

    def status(self) -> int:
        """Wait until the program has ended and its output is complete; return its exit status."""
        status = self._process.wait(LONG)
        for reader in self._readers:
            reader.join(LONG)
        return status

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self.status()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream
            try:
                stream.close()
            except BrokenPipeError:
                pass  # the program did not read the last line
