"""A process that ``tao serve --processes`` has started: serves, and reports to its supervisor."""

from __future__ import annotations

import argparse
import threading

from tao.cli.common import DONE, FAILED, WRONG_CALL, WrongCall, complain, leave, reason_of
from tao.cli.serve import how_secured, prepare
from tao.cluster.processes.settings import WorkerOrder
from tao.cluster.processes.worker import Supervised
from tao.errors import TaoError
from tao.monitor.workers import answer
from tao.server.reports import StopReport
from tao.server.server import Server, server_core_of
from tao.transport.addresses import address_text

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Serve until the supervisor says otherwise, and return the exit status."""
    order = WorkerOrder.take()
    if order is None:
        raise WrongCall("--supervised is for the processes that tao serve --processes starts")
    link = Supervised(order)
    link.answer = answer
    try:
        server, how = _start(options, link)
    except BaseException as error:
        link.failed(reason_of(error))  # the supervisor logs it
        status = WRONG_CALL if isinstance(error, WrongCall) else FAILED
        if _other_threads():
            leave(status)  # the interpreter would wait for what the module has started
        if status == WRONG_CALL:
            return status
        raise
    settings = server_core_of(server).settings
    workers = settings.workers if isinstance(settings.workers, int) else settings.workers.size
    server.serve_forever(
        handle_signals=True,
        ready=lambda _: link.ready(
            {
                "how": how,
                "workers": workers,
                "max_connections": settings.max_connections,
                "drain_timeout": settings.drain_timeout,
            }
        ),
    )
    return _end(server.stop(), link)


def _start(options: argparse.Namespace, link: Supervised) -> tuple[Server, str]:
    tls, server = prepare(options)
    if server_core_of(server).state != "new":
        raise WrongCall("the server was started by its module: with --processes, tao starts it")
    link.adopt(server)
    try:
        for sock in link.take_sockets():
            server.start(sock, tls=tls)
    except (OSError, TaoError, ValueError) as error:
        raise WrongCall(reason_of(error)) from error
    return server, how_secured(tls, server)


def _other_threads() -> bool:
    """Whether there are threads that the end of the interpreter waits for."""
    found = set(threading.enumerate()) - {threading.main_thread()}
    return any(not each.daemon for each in found)


def _end(report: StopReport, link: Supervised) -> int:
    for conn, unhandled, unsent in report.abandoned:
        peer = address_text(conn.remote_address)
        complain(f"cut off {peer}: {unhandled} messages not handled, {unsent} not sent")
    if report.unpublished:
        complain(f"{report.unpublished} messages not published")
    link.stopped()
    if report.threads:
        leave(FAILED)  # the interpreter would wait for workers whose handlers never return
    return DONE if report.clean else FAILED
