"""The load generator: built from ``load.c`` where there is a C compiler, else written in Python.

It is a process of its own and must not be the bottleneck.  How much it can do is measured like any
contestant, against a sink that sends back bytes without looking at them (``sink.c``).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import ROOT

SOURCES = Path(__file__).resolve().parent
PATIENCE = 45.0  # seconds that a run may take beyond the time it measures


class LoadFailed(Exception):
    """The load generator reported an error: the server closed, stalled or sent wrong bytes."""


@dataclass(frozen=True)
class Load:
    """What is asked of a server; the modes are described in ``load.c``."""

    mode: str = "echo"
    connections: int = 1
    window: int = 1  # messages outstanding on each connection
    size: int = 64  # bytes of a message's value
    tls: bool = False
    touch: bool = False  # hold: one echo on every connection
    limit: int = 0  # churn: end after so many connections
    cpu: int = -1  # where the generator runs; anywhere if negative

    def arguments(self) -> list[str]:
        """Return the load as the generator's command line has it."""
        numbers = {
            "connections": self.connections,
            "window": self.window,
            "size": self.size,
            "tls": int(self.tls),
            "touch": int(self.touch),
            "limit": self.limit,
            "cpu": self.cpu,
        }
        return [self.mode, *(f"{key}={value}" for key, value in numbers.items())]


class Generator:
    """How to run the load generator and its sink."""

    def __init__(self, plain: Path | None, tls: Path | None) -> None:
        self._plain = plain  # a folder with the programs `load` and `sink`, or None
        self._tls = tls  # the same, built with OpenSSL

    @classmethod
    def build(cls, folder: Path) -> Generator:
        """Compile what can be compiled into a folder."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            return cls(None, None)
        tls = _compile(compiler, folder / "tls", "-DWITH_TLS", "-lssl", "-lcrypto")
        return cls(tls or _compile(compiler, folder / "plain"), tls)

    def describe(self) -> str:
        """Say what the generator is made of."""
        if self._plain is None:
            return "Python (no C compiler found)"
        return "C" if self._tls else "C, for TLS Python (no OpenSSL headers found)"

    def _program(self, name: str, tls: bool) -> list[str]:
        folder = self._tls if tls else self._plain
        if folder is None:
            return [sys.executable, "-m", f"tests.bench.{name}_python"]
        return [str(folder / name)]

    def sink_command(self, load: Load, certificate: tuple[str, str] | None) -> list[str]:
        """Return the command of the server that shows the generator's own limit."""
        command = self._program("sink", load.tls)
        if load.mode == "broadcast":
            command.append("broadcast=1")
        if load.tls and certificate is not None:
            command += [f"cert={certificate[0]}", f"key={certificate[1]}"]
        return command

    def _command(self, load: Load, port: int) -> list[str]:
        return [*self._program("load", load.tls), *load.arguments(), f"port={port}"]

    def run(self, load: Load, port: int, seconds: float, warmup: float) -> dict[str, float]:
        """Put a load on a server and return the figures; raise `LoadFailed` if it goes wrong."""
        command = [*self._command(load, port), f"seconds={seconds}", f"warmup={warmup}"]
        try:
            done = subprocess.run(
                command,
                check=False,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + warmup + PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise LoadFailed("the load generator did not end") from None
        if done.returncode:
            raise LoadFailed(done.stderr.strip().rpartition("\n")[2])
        figures: dict[str, float] = json.loads(done.stdout)
        return figures

    @contextlib.contextmanager
    def hold(self, load: Load, port: int) -> Iterator[None]:
        """Keep connections open for the time of a ``with`` block."""
        process = subprocess.Popen(
            self._command(load, port),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdin and process.stdout and process.stderr
            if not process.stdout.readline():
                raise LoadFailed(process.stderr.read().strip())
            yield
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
            process.kill()
            process.wait()


def _compile(compiler: str, folder: Path, *options: str) -> Path | None:
    """Build both programs into a folder; return it, or None if that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("load", "sink"):
        source, program = str(SOURCES / f"{name}.c"), str(folder / name)
        command = [compiler, "-O2", "-o", program, source, *options]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return None
    return folder
