"""Server processes: start, wait, measure from outside, and always end.

A server is any command that prints ``LISTENING <port>``. Its stderr goes to a temporary file and is
shown only if the server fails.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
START_PATIENCE = 60.0  # seconds until LISTENING must have come
END_PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL


class ServerFailed(Exception):
    """A server did not start, or ended while it was measured."""


def peer_command(peer: str, switches: tuple[str, ...] = ()) -> list[str]:
    """Return the command that runs a peer on a port of the system's choice."""
    return [sys.executable, "-m", f"tests.bench.peers.{peer}", "--port", "0", *switches]


class ServerProcess:
    """One server under measurement."""

    def __init__(self, command: list[str], cpu: int | None = None) -> None:
        self.port = 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        if cpu is not None:
            os.sched_setaffinity(self.pid, {cpu})  # threads created later inherit it

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_listening(self) -> None:
        """Read the port; raise `ServerFailed` if none comes in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_PATIENCE)
        words = self._process.stdout.readline().split() if ready else []
        if len(words) != 2 or words[0] != b"LISTENING":
            raise ServerFailed(self.last_words() or f"not listening after {START_PATIENCE:.0f} s")
        self.port = int(words[1])

    def last_words(self) -> str:
        """Return the last line the server wrote to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def cpu_seconds(self) -> float:
        """Return the processor time that the server has used, user and system, with its workers."""
        ticks = 0
        for pid in (self.pid, *self._children()):
            with contextlib.suppress(OSError, ValueError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _children(self) -> list[int]:
        """Return the process ids of its child processes."""
        found: list[int] = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                found += map(int, task.read_text().split())
        return found

    def wait_quiet(self, idle: float = 0.03, patience: float = 20.0) -> None:
        """Wait until the server is done with its last connections: idle for so many seconds."""
        end, last = time.monotonic() + patience, self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(idle)
            if (used := self.cpu_seconds()) == last:
                return
            last = used

    def resident_kb(self) -> float:
        """Return the resident memory in KiB, read page by page where the kernel offers it."""
        for name, key in (("smaps_rollup", "Rss:"), ("status", "VmRSS:")):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self.pid}/{name}").read_text().splitlines():
                    if line.startswith(key):
                        return float(line.split()[1])
        raise ServerFailed(f"no memory figures for process {self.pid}")

    def settled_kb(self, patience: float = 5.0) -> float:
        """Return the resident memory once it has stopped growing, or after ``patience`` seconds."""
        end, last = time.monotonic() + patience, self.resident_kb()
        while time.monotonic() < end:
            time.sleep(0.3)
            current = self.resident_kb()
            if abs(current - last) < 64:
                return current
            last = current
        return last

    def descriptors(self) -> int:
        """Return how many descriptors the server has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        """Return how many threads the server has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def end(self) -> None:
        """End the process; a second call does nothing."""
        if self._errors.closed:
            return
        self._process.terminate()
        try:
            self._process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


@contextlib.contextmanager
def running(command: list[str], cpu: int | None = None) -> Iterator[ServerProcess]:
    """Run a server for the time of a ``with`` block, on one processor only if given."""
    server = ServerProcess(command, cpu)
    try:
        server.wait_listening()
        yield server
    finally:
        server.end()


class OtherLoad:
    """The share of the processors that other programs have used since this was created.

    It is the load of the whole system, without this process and its ended children.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._foreign = _foreign_seconds()

    def share(self) -> float:
        """Return the share of all processors, from 0 to 1."""
        capacity = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, _foreign_seconds() - self._foreign) / capacity


def _foreign_seconds() -> float:
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        busy -= used.ru_utime + used.ru_stime
    return busy


def first_cpu() -> int:
    """Return the first processor that this process may use."""
    return min(os.sched_getaffinity(0))


def last_cpu() -> int:
    """Return the last processor that this process may use."""
    return max(os.sched_getaffinity(0))


def raise_descriptor_limit() -> int:
    """Allow this process and its children as many descriptors as the system lets them have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
