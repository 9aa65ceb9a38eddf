"""Choose a few combinations of parameters, so that each two values of different ones meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["pairwise"]

Combination = tuple[Any, ...]


def pairwise(combinations: Sequence[Combination]) -> list[Combination]:
    """Return some of the combinations, in which all pairs of values occur that do in any.

    It is the greedy choice: each one taken has more new pairs than some others, by a fixed random
    order, that have a certain pair.
    """
    order = list(combinations)
    random.Random(0).shuffle(order)
    having: dict[Any, list[Combination]] = {}
    for each in order:
        for pair in _pairs(each):
            having.setdefault(pair, []).append(each)
    left, chosen = dict.fromkeys(having), []
    while left:
        some = having[next(iter(left))][:20]
        best = max(some, key=lambda each: sum(pair in left for pair in _pairs(each)))
        chosen.append(best)
        for pair in _pairs(best):
            left.pop(pair, None)
    return chosen


def _pairs(combination: Combination) -> Iterable[Any]:
    return itertools.combinations(enumerate(combination), 2)
