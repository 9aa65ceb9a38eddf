"""What the functions of an application raise that a cluster calls: it is told, and ends nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tao
from tao.cluster.link import ClusterLink
from tao.server.server import server_core_of
from tests.cluster.moving import Moving
from tests.cluster.test_link import Exchange
from tests.ends import Seen
from tests.session_pairs import READERS


class Unspeakable(Exception):
    """An exception with a text that raises."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


RAISED = [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, Unspeakable]
raised = pytest.mark.parametrize("error", RAISED)


class Shapeless:
    """What no text can be made of."""

    def __repr__(self) -> str:
        raise SystemExit("no text")


@raised
def test_on_gap(error: type[BaseException], log_lines: list[Any]) -> None:
    """The engine goes on; the log has the error, and the figures count it."""

    def on_gap(partition: int, missing: int | None) -> None:
        raise error

    Exchange.nodes = []
    server = tao.Server(on_gap=on_gap)
    ClusterLink("node", server_core_of(server), Exchange()).gap(0, 7)
    assert server.snapshot().error_kinds == {error.__name__: 1}
    assert "on_gap raised" in [line["message"] for line in log_lines]


def failing(move: Callable[..., Moving], readers: str, errors: Seen, **hooks: Any) -> Moving:
    """A session that is to move, with ``save`` or ``load`` replaced; both servers note errors."""
    noting = {"on_error": lambda conn, error: errors.add(type(error))}
    return move(readers, noting, kind=type("Failing", (Moving,), hooks), **noting)


@READERS
@raised
@pytest.mark.parametrize("what", ["save", "load"])
def test_a_session_that_cannot_move(
    move: Callable[..., Moving], readers: str, what: str, error: type[BaseException]
) -> None:
    """Both sides are told that it is lost, ``on_error`` of the error, and the client goes on."""

    def fail(*_: object) -> bytes:
        raise error

    errors = Seen()
    it = failing(move, readers, errors, **{what: fail})
    it.drain()
    assert errors.items == [error]
    assert it.old.wait(3)[-2:] == [("lost", []), "close"]
    assert it.client_events.wait(4)[1:] == [("lost", []), "close", "connect"]
    assert it.new.wait()[-1] == "connect"


@READERS
@pytest.mark.parametrize("value", [None, "text", Shapeless()])
def test_what_save_may_not_return(move: Callable[..., Moving], readers: str, value: object) -> None:
    """It is a TypeError, even if the value has no text."""
    errors = Seen()
    it = failing(move, readers, errors, save=lambda *_: value)
    it.drain()
    assert errors.items == [TypeError]
    assert it.old.wait(3)[-2:] == [("lost", []), "close"]
