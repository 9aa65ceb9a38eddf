"""Thousands of peers that leave together, and one that comes meanwhile."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.bench.load import Load, LoadFailed
from tests.bench.model import Contestant, Measurement
from tests.bench.processes import ServerProcess
from tests.bench.workloads import Settings

HOST = "127.0.0.1"
PATIENCE = 60.0  # seconds until the last must be gone, and a newcomer be answered
LOOK = 0.005  # seconds between two looks at the server's descriptors
NEWCOMERS = 4  # descriptors that the newcomers may hold at the moment
MESSAGE = struct.pack("<iI", 1, 64) + bytes(64)


@dataclass
class Newcomers:
    """Connects, exchanges a message, and leaves, again and again; notes the longest it took."""

    port: int
    longest: float = 0.0
    failed: str = ""
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Come again and again for the time of a ``with`` block."""
        thread = threading.Thread(target=self._come, name="newcomers")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _come(self) -> None:
        while not self._over.wait(0.001):
            began = time.monotonic()
            try:
                self._ask()
            except OSError as error:
                self.failed = str(error)
                return
            self.longest = max(self.longest, time.monotonic() - began)

    def _ask(self) -> None:
        with socket.create_connection((HOST, self.port), PATIENCE) as sock:
            sock.sendall(MESSAGE)
            left = len(MESSAGE)
            while left:
                received = len(sock.recv(left))
                if not received:
                    raise ConnectionResetError("the server closed before it echoed")
                left -= received


@dataclass(frozen=True)
class DepartureWorkload:
    """How long until a server is rid of connections that their peers have closed at once.

    Or, with ``newcomer``, the longest that a new peer has waited for its echo meanwhile.
    """

    connections: int = 5000
    newcomer: bool = False
    higher_is_better: bool = False
    needs_server: bool = True
    fresh: bool = True
    load: Load | None = None
    server_cpu: int | None = None

    @property
    def unit(self) -> str:
        """The unit of the figures."""
        return "ms" if self.newcomer else "s"

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """Echo once, which brings in what is loaded lazily."""
        with settings.generator.hold(Load("hold", touch=True), server.port):
            pass

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Open the connections, use each once, and end the process that has them."""
        assert server is not None
        server.wait_quiet()
        before, newcomers = server.descriptors(), Newcomers(server.port)
        load = Load("hold", connections=self.connections, touch=True)
        with contextlib.ExitStack() as stack:
            with settings.generator.hold(load, server.port):
                stack.enter_context(newcomers.coming())
                began = time.monotonic()
            while server.descriptors() > before + NEWCOMERS:
                if time.monotonic() - began > PATIENCE:
                    raise LoadFailed("the last connection was not gone in time")
                time.sleep(LOOK)
            took = time.monotonic() - began
        if newcomers.failed:
            raise LoadFailed(newcomers.failed)
        details = {"seconds": took, "newcomer_ms": newcomers.longest * 1000}
        return Measurement(newcomers.longest * 1000 if self.newcomer else took, details)
