"""`tao.serve`: what ``tao serve --processes`` does, for a program to call.

Nothing that it needs is imported before it is called.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from tao.cluster.processes.settings import SupervisorSettings
    from tao.cluster.processes.supervisor import Supervisor
    from tao.transport.addresses import Address

__all__ = ["LogLevel", "serve", "supervise"]

LogLevel = Literal["trace", "debug", "info", "success", "warning", "error", "critical"]


def serve(
    target: str,
    *,
    processes: int,
    address: Address | socket.socket | None = ("127.0.0.1", 12345),
    monitor: int | None = None,
    drain_spread: float = 30.0,
    worker_timeout: float = 60.0,
    max_crashes: int | None = None,
    reuse_port: bool = False,
    pid_file: str | None = None,
    log_level: LogLevel = "warning",
) -> int:
    """Serve a server with several processes until SIGTERM or Ctrl-C, and return the exit status.

    This process becomes the supervisor: it listens, starts the others, and replaces those that
    crash or hang, or all of them on SIGHUP. It never imports the module of the server. It logs to
    stderr. Call it in the main thread of a program, below ``if __name__ == "__main__":`` if the
    module of the server is the program itself.

    Args:
        target: ``"module:server"``, as ``tao serve`` takes it; workers find the module as this
            process does.
        processes: how many workers there are.
        address: where to listen, as for `Server.start`; None: at the sockets that systemd hands
            over.
        monitor: the port of a monitor of all processes on this machine; None: there is none.
        drain_spread: at a reload, seconds over which the closes of connections are spread.
        worker_timeout: seconds without a sign of life after which a worker is killed.
        max_crashes: so many crashes of workers in a minute end all; None: five for each process.
        reuse_port: give each worker a listening socket of its own, among which the kernel
            distributes connections.
        pid_file: where the number of this process is written.
        log_level: of the log, here and in the workers.

    Returns:
        0 if all processes have finished what they had begun, else another number, for ``sys.exit``.

    Raises:
        OSError: listening failed, or the pid file cannot be written.
        TypeError, ValueError: an argument is wrong; the text names it.
        RuntimeError: a worker has called this while it imports the module of the server.
    """
    from tao.cluster.processes.settings import SupervisorSettings, WorkerOrder
    from tao.cluster.processes.systemd import sockets_of_systemd
    from tao.safe_text import safe_repr

    if not isinstance(target, str):
        raise TypeError(f"target must be 'module:server', not {safe_repr(target)}")
    levels = get_args(LogLevel)
    if log_level not in levels:
        text = f"log_level must be one of {', '.join(levels)}, not {safe_repr(log_level)}"
        raise ValueError(text)
    if WorkerOrder.taken:
        raise RuntimeError(
            "a worker has called tao.serve() while it imports the server: call it below "
            'if __name__ == "__main__":'
        )
    addresses: Sequence[Any] = sockets_of_systemd() if address is None else [address]
    if not addresses:
        raise ValueError("address is None, but systemd has handed over no socket")
    options = ["--log-level", log_level]
    settings = SupervisorSettings(
        command=[sys.executable, "-m", "tao", "serve", "--supervised", *options, target],
        what=target,
        processes=processes,
        addresses=addresses,
        reuse_port=reuse_port,
        drain_spread=drain_spread,
        worker_timeout=worker_timeout,
        max_crashes=max_crashes,
        pid_file=pid_file,
        search_path=[each for each in sys.path if isinstance(each, str) and each],
    )
    return supervise(settings, monitor, log_level)


def supervise(settings: SupervisorSettings, monitor: int | None, log_level: str) -> int:
    """Supervise until the end, and return the exit status.

    Args:
        monitor: the port of the monitor; None: there is none.
        log_level: of the log, on stderr.

    Raises:
        OSError: listening failed, there or at an address, or the pid file cannot be written.
        TypeError, ValueError: an address is none.
    """
    from tao.cli.common import log_to_stderr
    from tao.cluster.processes.supervisor import Supervisor

    def serving(addresses: list[Any], details: dict[str, Any]) -> None:
        _announce(settings, addresses, details)

    supervisor = Supervisor(settings, serving, lambda: _say("tao: stopping"))
    log_to_stderr(log_level)
    with ExitStack() as cleanup:
        status = supervisor.run(lambda: _start_monitor(monitor, supervisor, cleanup))
    _say("tao: stopped")
    return status


def _start_monitor(port: int | None, supervisor: Supervisor, cleanup: ExitStack) -> None:
    """Start the monitor of all processes, if there is to be one."""
    if port is None:
        return
    from tao.monitor.monitor import Monitor
    from tao.monitor.workers import WorkersSource

    source = WorkersSource(supervisor)
    supervisor.on_gone = source.gone
    url = cleanup.enter_context(Monitor(port, source=source)).url
    _say(f"tao: live page at {url}, figures at {url}/debug/vars and /metrics, of all processes")


def _announce(settings: SupervisorSettings, addresses: list[Any], details: dict[str, Any]) -> None:
    from tao.transport.addresses import address_text
    from tao.version import __version__

    where = ", ".join(map(address_text, addresses))
    _say(f"tao {__version__}: {settings.what} listens at {where} ({details['how']})")
    _say(
        f"tao: {settings.processes} processes, each with {details['workers']} workers, "
        f"{details['max_connections']} connections at most"
    )
    _say("tao: SIGHUP reloads it, Ctrl-C stops it")


def _say(line: str) -> None:
    """Print a line, if anybody can still read it."""
    from tao.cli.common import say

    try:
        say(line)
    except OSError:
        pass  # the terminal was closed; the workers matter more
