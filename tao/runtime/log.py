"""Logging through loguru, silent until the application calls ``logger.enable("tao")``.

tao adds no sink by itself, and writes no line per message above TRACE. It never logs the content of
a message: of a decoder's exception, only the place and the class are logged. A handler's exception
is logged as it is; its text is up to the application. Whether tracebacks show the values of
variables is an option of the sink (``diagnose``).

Guarantee: logging never raises into tao. A sink may raise (a full disk, a bug), and loguru raises
``RuntimeError`` when a finalizer or a signal handler logs on a thread that is inside a sink. During
tao's error handling, either would end a thread. Such a line goes to stderr instead. Only exceptions
meant for the caller pass: ``KeyboardInterrupt`` and the like, raised by a signal or a timeout
library in the main thread or another thread that is not tao's.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import loguru

if TYPE_CHECKING:
    from loguru import Message, Record

__all__ = ["Logger", "log_to_stdlib", "logger", "thread_marks"]

loguru.logger.disable("tao")

#: Has a true attribute ``marked`` in threads that work for tao. ``threads.py`` sets it; it is
#: defined here because logging needs it, and that module depends on logging.
thread_marks = threading.local()

# The number of frames from loguru to the caller of one of the methods below.
_DEPTH = 2


class Logger:
    """A logger that behaves like loguru's, except that writing a line never raises.

    Other methods (``add``, ``enable``...) are loguru's own. Every method may be called from any
    thread, finalizer or signal handler: it takes no lock.

    Args:
        target: the loguru logger, which finds the caller's frame by `_DEPTH`.
        exception: the exception to log with each line, or None.
    """

    __slots__ = ("_exception", "_target")

    def __init__(self, target: loguru.Logger, exception: Any = None) -> None:
        self._target = target
        self._exception = exception

    def bind(self, **extra: object) -> Logger:
        """Return a logger that adds ``extra`` to its lines."""
        return Logger(self._target.bind(**extra), self._exception)

    def opt(self, *, exception: Any = None) -> Logger:
        """Return a logger that adds an exception to its lines.

        Args:
            exception: the exception; a tuple of type, value and traceback; or True for the one
                being handled.
        """
        if exception is True:
            exception = sys.exc_info()[1]
        return Logger(self._target.opt(exception=exception, depth=_DEPTH), exception)

    def trace(self, text: str, *args: object) -> None:
        self._write("TRACE", text, args)

    def debug(self, text: str, *args: object) -> None:
        self._write("DEBUG", text, args)

    def info(self, text: str, *args: object) -> None:
        self._write("INFO", text, args)

    def success(self, text: str, *args: object) -> None:
        self._write("SUCCESS", text, args)

    def warning(self, text: str, *args: object) -> None:
        self._write("WARNING", text, args)

    def error(self, text: str, *args: object) -> None:
        self._write("ERROR", text, args)

    def critical(self, text: str, *args: object) -> None:
        self._write("CRITICAL", text, args)

    def exception(self, text: str, *args: object) -> None:
        """Write an ERROR line with the exception being handled."""
        self.opt(exception=True)._write("ERROR", text, args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def _write(self, level: str, text: str, args: tuple[object, ...]) -> None:
        try:
            self._target.log(level, text, *args)
        except BaseException as error:
            if _is_for_caller(error):
                raise
            self._rescue(level, text, args, error)

    def _rescue(
        self, level: str, text: str, args: tuple[object, ...], error: BaseException
    ) -> None:
        """Write a line in another way, because logging it has raised."""
        line = _formatted(text, args)
        try:
            if args and not _can_format(text, args):  # no sink has seen it yet
                deeper = self._target.opt(exception=self._exception, depth=_DEPTH + 1)
                deeper.log(level, "{}", line)
                return
        except BaseException as another:
            if _is_for_caller(another):
                raise
            error = another
        _write_to_stderr(level, line, self._exception, error)


def _is_for_caller(error: BaseException) -> bool:
    """Return whether an exception is meant for the calling thread, not the failure of a sink."""
    if isinstance(error, Exception):
        return False
    in_main_thread = threading.get_ident() == threading.main_thread().ident
    return in_main_thread or not getattr(thread_marks, "marked", False)


def _can_format(text: str, args: tuple[object, ...]) -> bool:
    try:
        text.format(*args)
    except BaseException as error:
        if _is_for_caller(error):
            raise
        return False
    return True


def _formatted(text: str, args: tuple[object, ...]) -> str:
    """Format a text with arguments; those that cannot be formatted are replaced."""
    try:
        return text.format(*map(_Safe, args)) if args else text
    except Exception:  # the text itself is wrong
        return " ".join([text, *(repr(_Safe(each)) for each in args)])


class _Safe:
    """Formats like the wrapped value, but never raises.

    (``safe_text.py`` is not used here, to keep ``import tao`` fast.)
    """

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        return self._convert(format, spec)

    def __str__(self) -> str:
        return self._convert(str)

    def __repr__(self) -> str:
        return self._convert(repr)

    def _convert(self, convert: Callable[..., str], *args: str) -> str:
        try:
            return convert(self._value, *args)
        except BaseException as error:
            if _is_for_caller(error):
                raise
            return f"<unprintable {type(self._value).__name__}: {type(error).__name__}>"


def _write_to_stderr(level: str, line: str, exception: Any, why: BaseException) -> None:
    try:
        lines = [
            f"tao cannot log the following ({type(why).__name__}: {_Safe(why)}):\n",
            f"{level} {line}\n",
        ]
        if isinstance(exception, tuple):
            lines += traceback.format_exception(*exception)
        elif isinstance(exception, BaseException):
            lines += traceback.format_exception(exception)
        if sys.stderr is not None:  # None in a program without a console
            sys.stderr.write("".join(lines))
    except BaseException as error:
        if _is_for_caller(error):
            raise
        # There is nowhere left to report it.


logger = Logger(loguru.logger.opt(depth=_DEPTH))

# The sink that log_to_stdlib added last.
_bridge: int | None = None


def log_to_stdlib(level: str | int = 0) -> int:
    """Send tao's log lines to the standard library's ``logging``, each to its module's logger.

    For programs that do not use loguru. It enables tao's lines and removes loguru's default sink,
    which would print them to stderr again. May be called from any thread; a second call replaces
    the first.

    It may be called before or after ``logging`` is configured. ``logging.config`` disables all
    existing loggers that the configuration does not name, unless it is given
    ``disable_existing_loggers=False``. tao's loggers are created with their first line, so the
    result would depend on what was logged before. Therefore their ``disabled`` is ignored.
    To silence tao, set a level: ``logging.getLogger("tao").setLevel("CRITICAL")``.

    Args:
        level: the lowest level sent, as a name or a number.

    Returns:
        the id of the sink, for ``loguru.logger.remove(id)``.
    """
    global _bridge
    # Forward in a filter, because loguru holds a lock while a sink runs. A finalizer may log on a
    # thread that holds the lock of a logging handler; that thread and another one that forwards a
    # line inside a sink would then deadlock.
    sink = loguru.logger.add(_nothing, level=level, format="", filter=_forward)
    before, _bridge = _bridge, sink
    for replaced in (0, before):
        try:
            if replaced is not None:
                loguru.logger.remove(replaced)
        except ValueError:
            pass  # the application has removed it already
    loguru.logger.enable("tao")
    return sink


def _nothing(message: Message) -> None:
    """Never called, as the filter `_forward` accepts no line."""


def _forward(record: Record) -> bool:
    """Pass a line of tao's to ``logging``, which formats tracebacks itself; return False."""
    name = str(record["name"])
    if name.partition(".")[0] == "tao":
        target = logging.getLogger(name)
        target.disabled = False  # see log_to_stdlib
        if target.isEnabledFor(record["level"].no):
            target.handle(_as_log_record(target, record))
    return False


def _as_log_record(target: logging.Logger, record: Record) -> logging.LogRecord:
    error = record["exception"]
    extra: dict[str, Any] = {"tao": dict(record["extra"])}
    return target.makeRecord(
        target.name,
        record["level"].no,
        record["file"].path,
        record["line"],
        record["message"],
        (),
        (error.type, error.value, error.traceback) if error and error.type else None,  # type: ignore[arg-type]
        record["function"],
        extra,
    )
