"""The log: silent until it is enabled, and the bridge to the standard library's logging."""

from __future__ import annotations

import logging
import logging.config
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tao.runtime.log import log_to_stdlib, logger


def say(code: str, module: str = "tao.made_up", **names: Any) -> None:
    """Run ``code`` as if it were in a module of tao, because loguru uses the module's name."""
    exec(compile(code, "made_up.py", "exec"), {"__name__": module, "logger": logger, **names})


class Collector(logging.Handler):
    """Keeps the records that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def stdlib() -> Iterator[list[Any]]:
    """The records at the standard library's logger ``tao``, with every level enabled."""
    target, collector = logging.getLogger("tao"), Collector()
    before = target.level
    target.setLevel(1)
    target.addHandler(collector)
    yield collector.records
    target.removeHandler(collector)
    target.setLevel(before)


@pytest.fixture
def bridge() -> Iterator[int]:
    """Set up the bridge; afterwards loguru is restored."""
    sink = log_to_stdlib()
    yield sink
    logger.disable("tao")
    try:
        logger.remove(sink)
    except ValueError:
        pass  # the test has replaced it


def test_silent_until_enabled() -> None:
    """An application with its own sinks sees no line of tao until it enables them."""
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    try:
        say("logger.error('not yet')")
        logger.enable("tao")
        say("logger.error('now')")
    finally:
        logger.disable("tao")
        logger.remove(sink)
    assert lines == ["now\n"]


def test_a_line_keeps_its_origin(stdlib: list[Any], bridge: int) -> None:
    """Logger, level, text and location are those of the line in tao."""
    say("def f():\n    logger.warning('{} of {}', 1, 2)\nf()")
    (record,) = stdlib
    assert (record.name, record.levelno, record.levelname) == ("tao.made_up", 30, "WARNING")
    assert record.getMessage() == "1 of 2"
    assert (record.filename, record.lineno, record.funcName) == ("made_up.py", 2, "f")
    assert (record.exc_info, record.tao) == (None, {})


def test_percent_signs_and_braces_are_text(stdlib: list[Any], bridge: int) -> None:
    """A message is not formatted a second time."""
    say("logger.info('{}', '100 %s {x} <red>')")
    assert stdlib[0].getMessage() == "100 %s {x} <red>"


def test_bound_values_are_passed_on(stdlib: list[Any], bridge: int) -> None:
    """They are in the record's attribute ``tao``, for formatters and filters."""
    say("logger.bind(net_id=3, peer='10.0.0.1:99').info('hello')")
    assert stdlib[0].tao == {"net_id": 3, "peer": "10.0.0.1:99"}


def test_a_traceback_is_passed_on_once(stdlib: list[Any], bridge: int) -> None:
    """It is in ``exc_info``, formatted by logging; values of variables are not evaluated."""
    asked: list[str] = []

    class Secret:
        def __repr__(self) -> str:
            asked.append("what are you?")
            return "secret"

    def fail(secret: Secret) -> None:
        raise LookupError(secret is None)

    say("try:\n    f(x)\nexcept LookupError:\n    logger.exception('oh')", f=fail, x=Secret())
    (record,) = stdlib
    assert (record.getMessage(), record.exc_info[0]) == ("oh", LookupError)
    text = logging.Formatter().format(record)
    assert text.count("Traceback") == 1 and "in fail" in text
    assert asked == []


def test_opt_exception_without_one_is_a_plain_line(stdlib: list[Any], bridge: int) -> None:
    """Requesting a traceback without an exception has no effect."""
    say("logger.opt(exception=True).info('nothing wrong')")
    assert stdlib[0].exc_info is None


def test_the_levels_of_both_sides_apply(stdlib: list[Any]) -> None:
    """A line must reach the level of the bridge and that of the logger."""
    sink = log_to_stdlib(level="INFO")
    try:
        say("logger.debug('below the bridge'); logger.info('one'); logger.success('two')")
        logging.getLogger("tao.made_up").setLevel("ERROR")
        say("logger.warning('below the logger'); logger.critical('three')")
    finally:
        logging.getLogger("tao.made_up").setLevel("NOTSET")
        logger.remove(sink)
        logger.disable("tao")
    assert [record.getMessage() for record in stdlib] == ["one", "two", "three"]


def test_lines_of_others_are_not_passed_on(stdlib: list[Any], bridge: int) -> None:
    """Lines of the application, or of a module with a similar name, do not cross the bridge."""
    seen = Collector()
    logging.getLogger().addHandler(seen)
    try:
        say("logger.error('mine')", module="application")
        say("logger.error('mine')", module="taoism")
        say("logger.error('tao itself')", module="tao")
    finally:
        logging.getLogger().removeHandler(seen)
    assert [record.getMessage() for record in seen.records] == ["tao itself"]


def test_a_wrong_level_changes_nothing(log_lines: list[Any]) -> None:
    """The error is raised before anything is enabled or removed."""
    logger.disable("tao")
    with pytest.raises(ValueError, match="NO SUCH"):
        log_to_stdlib(level="NO SUCH")
    say("logger.error('still silent')")
    assert log_lines == []


def test_the_bridge_replaces_logurus_default_sink() -> None:
    """In a program that uses only logging, a line is printed once, in that program's format."""
    program = (
        "import logging; logging.basicConfig(format='%(name)s|%(message)s')\n"
        "from tao.runtime.log import log_to_stdlib; log_to_stdlib()\n"
        "from tao.runtime.threads import Deadline, gather, spawn; import threading\n"
        "stop = threading.Event(); t = spawn(stop.wait, name='tao-x'); t.start()\n"
        "gather([t], Deadline(0)); stop.set(); t.join()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == "tao.runtime.threads|thread tao-x does not end in time\n"


@pytest.mark.parametrize("module", ["tao.made_up", "tao.not_seen_yet"])
def test_configuring_logging_later_disables_nothing(
    stdlib: list[Any], bridge: int, module: str
) -> None:
    """By default it would disable existing loggers; a level is still respected."""
    say("logger.warning('before')")
    root = {"level": logging.getLogger().level, "handlers": []}
    logging.config.dictConfig({"version": 1, "root": root, "disable_existing_loggers": True})
    say("logger.warning('after')", module=module)
    logging.getLogger("tao.not_seen_yet").setLevel("CRITICAL")
    say("logger.warning('below the level')", module="tao.not_seen_yet")
    logging.getLogger("tao.not_seen_yet").setLevel("NOTSET")
    assert [record.getMessage() for record in stdlib] == ["before", "after"]


def test_a_second_bridge_replaces_the_first(stdlib: list[Any], bridge: int) -> None:
    """No line arrives twice, and the last level applies."""
    again = log_to_stdlib(level="ERROR")
    say("logger.info('below'); logger.error('once')")
    logger.remove(again)
    assert [record.getMessage() for record in stdlib] == ["once"]
