"""What a session costs: two processes of tao that echo, with one and without."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.bench.load import PATIENCE, Load, LoadFailed
from tests.bench.model import Contestant, Measurement
from tests.bench.processes import ROOT, ServerProcess
from tests.bench.workloads import Settings


@dataclass(frozen=True)
class SessionWorkload:
    """Processor time of both ends for each message, there and back, under `streaming.py`.

    Both ends do the work of a session, so both count; processor time, as the rate depends on who
    has a processor at the moment.
    """

    connections: int = 10
    window: int = 64
    unit: str = "us of processor time per message, both ends"
    higher_is_better: bool = False
    load: Load | None = None
    needs_server: bool = True
    fresh: bool = False
    server_cpu: int | None = None

    def prepare(self, settings: Settings, server: ServerProcess) -> None:
        """Nothing: the client warms the server up itself."""

    def run(
        self, settings: Settings, contestant: Contestant, server: ServerProcess | None
    ) -> Measurement:
        """Echo for a while."""
        assert server is not None
        session = "yes" if "--sessions" in contestant.switches else "no"
        words = [f"port={server.port}", f"connections={self.connections}", f"session={session}"]
        words += [f"window={self.window}", f"seconds={settings.seconds}"]
        client = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.streaming", *words, f"warmup={settings.warmup}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with client:
            try:
                figures, used = _followed(client, server)
            finally:
                client.kill()
        server.wait_quiet()
        messages = figures["messages"]
        each = {"rate": figures["rate"], "server_cpu_us": used / messages * 1e6}
        return Measurement((used + figures["cpu"]) / messages * 1e6, each)


def _followed(client: Any, server: ServerProcess) -> tuple[dict[str, float], float]:
    """Return the client's figures, and the processor time of the server between both lines."""
    if client.stdout.readline() != "STARTED\n":
        raise LoadFailed((client.stderr.read().strip().splitlines() or ["the client failed"])[-1])
    before = server.cpu_seconds()
    line = client.stdout.readline()
    used = server.cpu_seconds() - before
    client.communicate(timeout=PATIENCE)
    return json.loads(line), used
