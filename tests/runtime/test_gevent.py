"""tao under gevent, where threads are greenlets: programs that run with all of that patched."""

from __future__ import annotations

import pytest

from tests.programs import Program

# Without the interpreter lock there is no gevent.
pytest.importorskip("gevent")


@pytest.mark.parametrize(
    "name",
    [
        "echo",
        "timers",
        "reconnect",
        "blocking_handlers",
        "fairness",
        "broadcast",
        "slow_readers",
        "half_close",
        "stop_under_load",
        "event_loop",
        "close_anywhere",
        "signals",
        "exit_without_stop",
    ],
)
def test_a_program_of_greenlets_works(name: str) -> None:
    """It does what its docstring says, and ends by itself without a word."""
    with Program("gevent.monkey", "--module", "tests.gevent_programs", name) as program:
        status = program.status()
        assert (status, program.output, program.errors) == (0, [], [])
