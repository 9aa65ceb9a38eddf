"""What a supervisor is told, and what it tells its workers."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Final

from tao.callables import check_count
from tao.connection.options.fields import check_number

__all__ = ["SUPERVISED", "SupervisorSettings", "WorkerOrder"]

#: The environment variable in which a worker finds its `WorkerOrder`.
SUPERVISED: Final = "TAO_SUPERVISED"


@dataclass(frozen=True, kw_only=True)
class SupervisorSettings:
    """What a supervisor does.

    Attributes:
        command: starts a worker: program and arguments. Its environment has a `WorkerOrder`.
        what: is served, for people.
        processes: how many workers there are.
        addresses: where to listen, or sockets that are bound.
        backlog: how many connections may wait to be accepted.
        reuse_port: give each worker a listening socket of its own, among which the kernel
            distributes connections.
        drain_spread: seconds over which the closes of an old worker's connections are spread at a
            reload.
        worker_timeout: seconds without a sign of life after which a worker is killed. After half
            of them its stacks are dumped.
        max_crashes: so many crashes in a minute end the supervisor.
        pid_file: where the number of the supervisor's process is written; None: nowhere.
        search_path: where workers look for modules, besides their own search path.
    """

    command: Sequence[str]
    what: str = "the server"
    processes: int = 1
    addresses: Sequence[Any | socket.socket] = ()
    backlog: int = 1024
    reuse_port: bool = False
    drain_spread: float = 30.0
    worker_timeout: float = 60.0
    max_crashes: int | None = None
    pid_file: str | None = None
    search_path: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("processes", "backlog", "max_crashes"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        for name in ("drain_spread", "worker_timeout"):
            check_number(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """What a worker is told when it is started.

    Attributes:
        number: of the worker; each worker of a supervisor has another one.
        slot: which one of the processes it is, from 1.
        control, hub, load: descriptors of the control socket, of the socket to the hub and of the
            load table.
        row: its own row of the load table.
        listening: descriptors of the listening sockets.
        sessions: how the names of the sockets begin by which links of sessions are passed on.
        beat: seconds between two signs of life.
        search_path: more places to look for modules.
    """

    #: Whether this process is a worker.
    taken: ClassVar[bool] = False

    number: int
    slot: int
    control: int
    hub: int
    load: int
    row: int
    listening: list[int]
    sessions: str
    beat: float
    search_path: list[str] = field(default_factory=list)

    @property
    def descriptors(self) -> list[int]:
        """Those that the worker inherits."""
        return [self.control, self.hub, self.load, *self.listening]

    def environment(self) -> Mapping[str, str]:
        """Return the environment of the worker."""
        return {**os.environ, SUPERVISED: json.dumps(asdict(self))}

    @classmethod
    def take(cls) -> WorkerOrder | None:
        """In a worker: return its order, once; in other processes return None."""
        text = os.environ.pop(SUPERVISED, "")
        cls.taken = bool(text)
        return cls(**json.loads(text)) if text else None
