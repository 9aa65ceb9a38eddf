"""The protocols for malformed data: each preset, with its golden frames as a start."""

from __future__ import annotations

import random
from typing import Any

from tao.wire.arrival import Arrival
from tests.chaos.target import cut
from tests.framing.golden import FRAMES
from tests.framing.streams import outcome, registry_of

#: By the name of the preset: the codec, its golden frames as a stream, and its numbers.
PROTOCOLS: dict[str, tuple[Any, bytes, set[Any]]] = {}
for each in FRAMES:
    codec, stream, numbers = PROTOCOLS.get(each.preset.__name__, (each.preset(), b"", set()))
    PROTOCOLS[each.preset.__name__] = (codec, stream + each.frame, numbers | {each.number})


def check_protocol(name: str, data: bytes, seed: int) -> None:
    """Check that a preset decodes a stream the same way in any pieces, and can explain it.

    Raises:
        AssertionError, or an unexpected exception of the decoder.
    """
    codec, _, numbers = PROTOCOLS[name]
    registry = registry_of(*numbers)
    whole, pieces = (
        outcome(codec.decoder(registry), each) for each in ([data], cut(random.Random(seed), data))
    )
    assert _shown(whole[0]) == _shown(pieces[0]), "where the stream is cut makes a difference"
    assert bool(whole[1]) == bool(pieces[1]), f"{whole[1]!r} or {pieces[1]!r}"
    codec.explain(data[:2000])


def _shown(batch: list[Any]) -> str:
    """Return messages in a form that can be compared."""
    shown = [
        (number, each.message, each.header) if isinstance(each, Arrival) else (number, each, None)
        for number, each in batch
    ]
    return repr(shown)
