"""Fixtures for the tests of clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tao.cluster.sessions.sockets import SessionNames
from tests.cluster.moving import Moving


@pytest.fixture
def move() -> Iterator[Callable[..., Moving]]:
    """Makes a client, its server, and one that is to have the session."""
    names, made = SessionNames(), []

    def make(*args: Any, kind: type[Moving] = Moving, **options: Any) -> Moving:
        made.append(kind(names, *args, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
    names.close()
