"""tao under gevent, with threads as greenlets: programs that run with everything patched."""

from __future__ import annotations

import pytest

from tests.programs import Program

# gevent does not support builds without the interpreter lock.
pytest.importorskip("gevent")


@pytest.mark.parametrize(
    "name",
    [
        "echo",
        "timers",
        "reconnect",
        "sessions",
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
def test_a_gevent_program(name: str) -> None:
    """It does what its docstring says, prints nothing, and ends by itself."""
    with Program("gevent.monkey", "--module", "tests.gevent_programs", name) as program:
        status = program.status()
        assert (status, program.output, program.errors) == (0, [], [])
