"""``tao serve --processes``: the supervisor, which never imports the application."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tao.cli.common import WrongCall, reason_of
from tao.cli.serve import address_of
from tao.cli.serving import supervise
from tao.cluster.processes.settings import SupervisorSettings
from tao.cluster.processes.systemd import sockets_of_systemd

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Supervise processes as the command line says, and return the exit status."""
    if options.reload:
        raise WrongCall("--reload is for one process: with --processes, send SIGHUP to reload")
    given = {
        name: getattr(options, name)
        for name in ("drain_spread", "worker_timeout", "max_crashes", "backlog")
        if getattr(options, name, None) is not None
    }
    words = options.words[options.words.index("serve") + 1 :]
    settings = SupervisorSettings(
        command=[sys.executable, "-m", "tao", "serve", "--supervised", *words],
        what=options.target,
        processes=options.processes,
        addresses=_addresses(options),
        reuse_port=options.reuse_port,
        pid_file=options.pid_file,
        **given,
    )
    try:
        return supervise(settings, options.monitor, options.log_level)
    except (OSError, TypeError, ValueError) as error:
        raise WrongCall(reason_of(error)) from error


def _addresses(options: argparse.Namespace) -> list[Any]:
    """Return where to listen: at what systemd hands over, unless an address is given."""
    given = any(getattr(options, name) is not None for name in ("host", "port", "unix"))
    return (not given and sockets_of_systemd()) or [address_of(options)]
