"""Malformed streams: those that once caused errors, and constructed ones."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.chaos.fuzz import CORPUS
from tests.chaos.nasty import STREAMS, mutate
from tests.chaos.protocols import PROTOCOLS, check_protocol
from tests.chaos.target import Target, check_decoder

CASES = {**STREAMS, **{path.name: path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))}}


@pytest.fixture(params=["own", "shared"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A server to send streams to, and a well-behaved peer that it serves meanwhile."""
    made = Target(request.param)
    yield made
    made.wait_idle()
    made.close()


@pytest.mark.parametrize("name", CASES)
def test_the_default_codec_gives_the_same_result_for_any_pieces(name: str) -> None:
    """Messages and error are the same wherever a stream is cut; the only error is BadData."""
    for seed in range(5):
        check_decoder(CASES[name], seed)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_presets_give_the_same_result_for_any_pieces(name: str) -> None:
    """This holds for streams that once broke a decoder, and for mutated frames of each preset."""
    chance = random.Random(name)
    own = [mutate(chance, [PROTOCOLS[name][1]]) for _ in range(50)]
    for data in [*CASES.values(), *own]:
        check_protocol(name, data[:5000], seed=1)


@pytest.mark.parametrize("way", ["plain", "tls", "raw"])
@pytest.mark.parametrize("name", CASES)
def test_a_server_survives(target: Target, name: str, way: str) -> None:
    """It closes the connection that sent the stream, and serves the others."""
    target.check(CASES[name], seed=1, way=way)
