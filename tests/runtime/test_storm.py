"""A program of its own that is struck at random, for a moment; ``make storm`` does so for long."""

from __future__ import annotations

import pytest

from tests.injection import skip_if_traced
from tests.programs import Program


@pytest.mark.parametrize("kind", ["signals", "threads", "finalizers"])
def test_nothing_is_left_after_a_storm(kind: str) -> None:
    """Newcomers are served, the server stops, no thread, descriptor or lease of the wheel stays."""
    skip_if_traced()
    with Program("tests.chaos.storm", "--seconds", 1, "--kinds", kind) as program:
        assert program.status() == 0, program.output + program.errors
