"""A worker as its supervisor sees it: a process, the socket to it, and its last report."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from time import monotonic
from typing import Any, Literal

from tao.cluster.hub.hub import HubMember
from tao.cluster.processes.channel import Channel
from tao.cluster.processes.settings import WorkerOrder

__all__ = ["WorkerProcess", "start_worker"]


class WorkerProcess:
    """One worker. Used by the supervisor's thread.

    Args:
        order: what it was told.
        process: runs it.
        channel: the socket to it.
        member: the same for what it publishes.
    """

    def __init__(
        self,
        order: WorkerOrder,
        process: subprocess.Popen[bytes],
        channel: Channel,
        member: HubMember,
    ) -> None:
        self.order = order
        self.process = process
        self.channel = channel
        self.member = member
        #: ``"booting"`` until it has told that it serves; ``"leaving"`` once it was asked to stop.
        self.state: Literal["booting", "ready", "leaving"] = "booting"
        #: Whether it was asked to stop before it served; then its status means nothing.
        self.unready: bool = False
        #: What it has told when it was ready.
        self.details: dict[str, Any] = {}
        #: Why it cannot serve, as it has told; may be empty.
        self.failure: str = ""
        #: The figures that it has told last.
        self.figures: Any = None
        #: How many connections it has.
        self.connections: int = 0
        #: When the last sign of life came, monotonic.
        self.heard: float = monotonic()
        #: Whether its stacks were dumped since then.
        self.dumped: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"worker {self.order.number} (process {self.process.pid})"

    @property
    def silence(self) -> float:
        """Seconds without a sign of life; 0 while it boots, which may take any time.

        A worker that has told its last gives none, so one that does not end then is found out.
        """
        boots = self.state == "booting" and not self.failure
        return 0.0 if boots else monotonic() - self.heard

    def alive(self) -> None:
        """Note a sign of life."""
        self.heard = monotonic()
        self.dumped = False

    def leave(self, spread: float | None = None, heir: WorkerProcess | None = None) -> None:
        """Ask it to stop gracefully, with its connections closed over so many seconds.

        Args:
            spread: None: at once.
            heir: goes on with its sessions.
        """
        self.unready = self.unready or self.state == "booting"
        self.state = "leaving"
        self.heard = monotonic()
        number = None if heir is None else heir.order.number
        drain = {"drain": spread, "heir": number}
        self.channel.send({"stop": True} if spread is None else drain)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        self.process.send_signal(number)

    @property
    def ending(self) -> str:
        """How it has ended, for people."""
        status = self.process.returncode
        if status >= 0:
            return f"ended with status {status}"
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"


def start_worker(command: Sequence[str], order: WorkerOrder) -> subprocess.Popen[bytes]:
    """Start a worker.

    It is in a session of its own, so that a Ctrl-C at the terminal reaches only the supervisor.

    Args:
        command: program and arguments.
        order: what it is told.

    Raises:
        OSError: it cannot be started.
    """
    environment = dict(order.environment())
    environment.pop("NOTIFY_SOCKET", None)  # only the supervisor tells systemd its state
    return subprocess.Popen(
        list(command),
        env=environment,
        pass_fds=order.descriptors,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
