"""Streams that nobody should send: whatever once broke something, and what was made to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.fuzz import CORPUS
from tests.chaos.nasty import STREAMS
from tests.chaos.target import Target, check_decoder

CASES = {**STREAMS, **{path.name: path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))}}


@pytest.fixture
def target() -> Iterator[Target]:
    """A server to send streams to, and a good peer that it has to serve meanwhile."""
    made = Target()
    yield made
    made.wait_idle()
    made.close()


@pytest.mark.parametrize("name", CASES)
def test_the_decoder_does_not_mind_cuts(name: str) -> None:
    """The same messages and the same error, wherever a stream is cut, and nothing but BadData."""
    for seed in range(5):
        check_decoder(CASES[name], seed)


@pytest.mark.parametrize("way", ["plain", "tls", "raw"])
@pytest.mark.parametrize("name", CASES)
def test_a_server_survives(target: Target, name: str, way: str) -> None:
    """It ends the connection of whoever sent this, and serves the others."""
    target.check(CASES[name], seed=1, way=way)
