"""The way to the log: loguru, silent until the application says ``logger.enable("tao")``.

Nothing here or elsewhere in tao adds a sink, and no line is written per message above TRACE. Nor is
the content of one: of what a decoder raises, only where and of what kind is told. An exception of a
handler is logged as it is; what its text says is the application's choice, and whether a traceback
shows the values of variables is that of who adds a sink (``diagnose``).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    import loguru

__all__ = ["log_to_stdlib", "logger"]

logger.disable("tao")


def log_to_stdlib(level: str | int = 0) -> int:
    """Send tao's log lines to the standard library's ``logging``, each to its module's logger.

    For programs that know nothing of loguru. It enables tao's lines and removes loguru's default
    sink, which would print them to stderr a second time. Call it once, from any thread.

    Args:
        level: lines below it are not sent, as a name or a number.

    Returns:
        the id of the sink, for ``loguru.logger.remove(id)``.
    """
    # Formatting a traceback is left to logging; loguru's way would call repr on its variables too.
    sink = logger.add(
        _forward, level=level, format="{message}", filter="tao", backtrace=False, diagnose=False
    )
    try:
        logger.remove(0)
    except ValueError:
        pass  # the application has its own sinks already
    logger.enable("tao")
    return sink


def _forward(message: loguru.Message) -> None:
    record = message.record
    error = record["exception"]
    name = str(record["name"])
    target = logging.getLogger(name)
    if not target.isEnabledFor(record["level"].no):
        return
    extra: dict[str, Any] = {"tao": dict(record["extra"])}
    target.handle(
        target.makeRecord(
            name,
            record["level"].no,
            record["file"].path,
            record["line"],
            record["message"],
            (),
            (error.type, error.value, error.traceback) if error and error.type else None,  # type: ignore[arg-type]
            record["function"],
            extra,
        )
    )
