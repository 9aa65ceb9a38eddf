"""Declarations, log lines and reports, interrupted at each bytecode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import loguru
import pytest

from tao.errors import AlreadyRegistered, NotRegistered
from tao.runtime.log import Logger, logger
from tao.wire.message import Registry
from tests.ends import End, Text
from tests.injection import Interruption, opcodes
from tests.support import ends

pytestmark = pytest.mark.interrupted

NUMBERS = {1}


def handle(ctx: Any, conn: Any) -> None: ...


def declare(registry: Registry) -> None:
    registry.register(1, Text.deserialize)


def decorate(registry: Registry) -> None:
    registry.handler(Text)(handle)


def free() -> bool:
    """Return whether another thread can declare something."""
    return ends(lambda: Registry().register(1, len))


@pytest.mark.parametrize("do", [declare, decorate])
def test_a_declaration_that_is_interrupted_can_be_repeated(do: Callable[[Registry], None]) -> None:
    """It has taken place or not; after the repetition, all layers have it."""
    for moment in opcodes("tao.wire.message"):
        registry = Registry()
        layer = Registry(registry)
        with moment.raising():
            do(registry)
        try:
            do(registry)
        except AlreadyRegistered:
            assert moment.place
        assert set(registry.entries) == set(layer.entries) == NUMBERS, moment.place
        registry.unregister(1)
        assert set(registry.entries) == set(layer.entries) == set(), moment.place
    assert free()


def test_an_interrupted_unregister_can_be_repeated() -> None:
    """After the repetition, a layer has the inherited entry again."""
    for moment in opcodes("tao.wire.message"):
        registry = Registry()
        layer = Registry(registry)
        registry.register(1, len)
        layer.register(1, Text.deserialize)
        with moment.raising():
            layer.unregister(1)
        try:
            layer.unregister(1)
        except NotRegistered:
            pass
        assert layer.lookup(1) is registry.lookup(1), moment.place
    assert free()


def test_nested_declarations() -> None:
    """A finalizer declares a message and creates a registry; both are complete."""
    for moment in opcodes("tao.wire.message"):
        registry, made = Registry(), []

        def finalize(registry: Registry = registry, made: list[Registry] = made) -> None:
            registry.register(2, len)
            made.append(Registry(registry))

        with moment.calling(finalize):
            declare(registry)
            registry.unregister(1)
            decorate(registry)
        expected = NUMBERS | ({2} if moment.struck else set())
        assert all(set(each.entries) == expected for each in (registry, *made)), moment.place


def middleware(ctx: Any, conn: Any, call_next: Any) -> None:
    conn.append("middleware")
    call_next(ctx, conn)


def calls_of(registry: Registry) -> list[str]:
    """What is called for a message of number 1: by middleware and handler, in order."""
    calls: list[str] = []
    handler = registry.lookup(1).handler
    assert handler is not None
    handler(None, calls)
    return calls


def test_middleware_that_is_interrupted_can_be_repeated() -> None:
    """It is around the handlers of all layers then, once."""
    for moment in opcodes("tao.wire.message"):
        registry = Registry()
        layer = Registry(registry)
        registry.handler(Text)(lambda ctx, conn: conn.append("handler"))
        with moment.raising():
            registry.use(middleware)
        try:
            registry.use(middleware)
        except AlreadyRegistered:
            assert moment.place
        assert calls_of(registry) == calls_of(layer) == ["middleware", "handler"], moment.place
    assert free()


def test_a_handler_in_the_midst_of_middleware() -> None:
    """A finalizer declares one, or makes a layer; it has the middleware, too."""
    for moment in opcodes("tao.wire.message"):
        registry, made = Registry(), list[Registry]()

        def finalize(registry: Registry = registry, made: list[Registry] = made) -> None:
            registry.handler(Text)(lambda ctx, conn: conn.append("handler"))
            made.append(Registry(registry))

        with moment.calling(finalize):
            registry.use(middleware)
        if moment.struck:
            for each in (registry, *made):
                assert calls_of(each) == ["middleware", "handler"], moment.place


@pytest.fixture
def sink() -> Iterator[list[str]]:
    """The lines of a sink that may raise."""
    lines: list[str] = []
    number = loguru.logger.add(lambda line: lines.append(str(line).strip()), format="{message}")
    loguru.logger.enable("tao")
    yield lines
    loguru.logger.disable("tao")
    loguru.logger.remove(number)


def test_nested_log_lines(sink: list[str]) -> None:
    """Both lines arrive."""
    for moment in opcodes("tao.runtime.log"):
        sink.clear()
        with moment.calling(lambda: logger.warning("a finalizer's")):
            exec("Logger(target).info('a line')", {"Logger": _logger, "target": logger})
        assert set(sink) == ({"a line", "a finalizer's"} if moment.struck else {"a line"})


def _logger(target: Logger) -> Logger:
    return target.bind(connection=1)


def test_an_interrupted_log_line_raises(sink: list[str]) -> None:
    """An exception of a signal handler in the main thread is not treated as a sink's failure."""
    for moment in opcodes("tao.runtime.log"):
        raised = False
        try:
            with moment.raising():
                logger.bind(connection=1).info("a line")
        except Interruption:
            raised = True
        assert not raised  # it has passed through the logger to the block


@pytest.mark.parametrize("open_end", ["server"], indirect=True)
def test_nested_errors_are_counted(open_end: Callable[..., End]) -> None:
    """Each is counted, and passed to ``on_error``."""
    heard: list[BaseException] = []
    conn = open_end(on_error=lambda conn, error: heard.append(error)).conn
    for moment in opcodes("tao.connection.reports.error_reporting"):
        before = conn._core.counts().errors
        heard.clear()
        with moment.calling(lambda: conn._core.report(ValueError(), "in a finalizer")):
            conn._core.report(KeyError(), "in a test")
        assert conn._core.counts().errors - before == len(heard) == 1 + moment.struck, moment.place
