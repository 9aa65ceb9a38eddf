"""A peer that behaves badly, in a process of its own, beside the load on a server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

from tests.bench.load import LoadFailed
from tests.bench.model import Contestant
from tests.bench.processes import ROOT, ServerProcess, peer_command, running

END_PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL


@contextlib.contextmanager
def disturbed(
    contestant: Contestant, server: ServerProcess, cpu: int, seconds: float
) -> Iterator[dict[str, float]]:
    """Let a contestant's disturber do its work for the time of a ``with`` block.

    Args:
        contestant: who is disturbed; without a disturbance nothing is done.
        server: the contestant's.
        cpu: where the disturber runs, and the other server if it disturbs that.
        seconds: after which the disturber ends in any case.

    Yields:
        what the disturber did, known after the block.
    """
    doings: dict[str, float] = {}
    disturbance = contestant.disturbance
    if disturbance is None:
        yield doings
        return
    with contextlib.ExitStack() as stack:
        if disturbance.elsewhere:
            another = peer_command(contestant.peer, contestant.switches)
            server = stack.enter_context(running(another, cpu))
        process = stack.enter_context(_disturber(disturbance.kind, server.port, cpu, seconds))
        yield doings
        process.terminate()
        try:
            output, _ = process.communicate(timeout=END_PATIENCE)
            doings.update(json.loads(output))
        except (subprocess.TimeoutExpired, ValueError):
            raise LoadFailed(f"the disturber ({disturbance.kind}) did not end in order") from None


@contextlib.contextmanager
def _disturber(kind: str, port: int, cpu: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Start a disturber, wait until it has begun, and see that it is gone in the end."""
    command = [sys.executable, "-m", "tests.bench.disturber", kind]
    with subprocess.Popen(
        [*command, "--port", str(port), "--seconds", str(seconds)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            os.sched_setaffinity(process.pid, {cpu})
            assert process.stdout is not None
            if not process.stdout.readline():
                raise LoadFailed(f"the disturber ({kind}) did not begin")
            yield process
        finally:
            process.kill()
