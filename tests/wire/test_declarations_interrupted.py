"""Declaring, logging and reporting, interrupted at each bytecode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import loguru
import pytest

from tao.errors import AlreadyRegistered, NotRegistered
from tao.runtime.log import Logger, logger
from tao.wire.message import HEARTBEAT, Registry
from tests.ends import End, Text
from tests.injection import Interruption, opcodes
from tests.support import ends

pytestmark = pytest.mark.interrupted

NUMBERS = {HEARTBEAT, 1}


def handle(ctx: Any, conn: Any) -> None: ...


def declare(registry: Registry) -> None:
    registry.register(1, Text.deserialize)


def decorate(registry: Registry) -> None:
    registry.handler(Text)(handle)


def free() -> bool:
    """Whether another thread may declare something."""
    return ends(lambda: Registry().register(1, len))


@pytest.mark.parametrize("do", [declare, decorate])
def test_a_declaration_that_is_interrupted_can_be_repeated(do: Callable[[Registry], None]) -> None:
    """It has happened or has not; layers follow, at the latest with the repetition."""
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
        assert set(registry.entries) == set(layer.entries) == {HEARTBEAT}, moment.place
    assert free()


def test_giving_back_that_is_interrupted_can_be_repeated() -> None:
    """Likewise; what the layer inherits comes back."""
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


def test_a_declaration_in_the_midst_of_another() -> None:
    """A finalizer declares something, and makes a registry; both are complete."""
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


@pytest.fixture
def sink() -> Iterator[list[str]]:
    """Lines, by a sink that may raise."""
    lines: list[str] = []
    number = loguru.logger.add(lambda line: lines.append(str(line).strip()), format="{message}")
    loguru.logger.enable("tao")
    yield lines
    loguru.logger.disable("tao")
    loguru.logger.remove(number)


def test_a_line_in_the_midst_of_another(sink: list[str]) -> None:
    """Both arrive."""
    for moment in opcodes("tao.runtime.log"):
        sink.clear()
        with moment.calling(lambda: logger.warning("a finalizer's")):
            exec("Logger(target).info('a line')", {"Logger": _logger, "target": logger})
        assert set(sink) == ({"a line", "a finalizer's"} if moment.struck else {"a line"})


def _logger(target: Logger) -> Logger:
    return target.bind(connection=1)


def test_a_line_that_is_interrupted_says_so(sink: list[str]) -> None:
    """What a signal handler raises in the main thread is not taken for a sink's failure."""
    for moment in opcodes("tao.runtime.log"):
        raised = False
        try:
            with moment.raising():
                logger.bind(connection=1).info("a line")
        except Interruption:
            raised = True
        assert not raised  # it has passed through the line, to the block


@pytest.mark.parametrize("open_end", ["server"], indirect=True)
def test_an_error_in_the_midst_of_another_counts(open_end: Callable[..., End]) -> None:
    """So does each, and each reaches on_error."""
    heard: list[BaseException] = []
    conn = open_end(on_error=lambda conn, error: heard.append(error)).conn
    for moment in opcodes("tao.connection.error_reporting"):
        before = conn._core.counts().errors
        heard.clear()
        with moment.calling(lambda: conn._core.report(ValueError(), "in a finalizer")):
            conn._core.report(KeyError(), "in a test")
        assert conn._core.counts().errors - before == len(heard) == 1 + moment.struck, moment.place
