"""The states of a connection: every event in every phase, without any connection."""

from __future__ import annotations

import itertools

import pytest

from tao.connection.lifecycle import TRANSITIONS, Event, Lifecycle, Phase, Status, after
from tests.support import together

ENDING = (Phase.DRAINING, Phase.CLOSING, Phase.TEARDOWN, Phase.CLOSED)


def run(*events: Event) -> Status:
    """The status after these events, each with its own name as the reason."""
    life = Lifecycle()
    for event in events:
        life.apply(event, event.name)
    return life.status


def test_the_life_of_a_servers_connection() -> None:
    """From the transport to the end."""
    life, phases = Lifecycle(), []
    for event in (
        Event.ATTACH, Event.SECURED, Event.ACCEPT, Event.DRAIN, Event.SEAL, Event.TEAR_DOWN,
        Event.END,
    ):  # fmt: skip
        phases.append(life.apply(event, "why")[1].phase)
    assert phases == [
        Phase.HANDSHAKE, Phase.GREETING, Phase.OPEN, Phase.DRAINING, Phase.CLOSING, Phase.TEARDOWN,
        Phase.CLOSED,
    ]  # fmt: skip


def test_a_client_is_lost_and_comes_back() -> None:
    """A failed attempt in between leaves it lost; the next that succeeds forgets why."""
    up = (Event.DIAL, Event.ATTACH, Event.SECURED, Event.ACCEPT)
    lost = run(*up, Event.LOSE)
    assert (lost.phase, lost.disconnect_reason, lost.ended) == (Phase.LOST, "LOSE", True)
    failed = run(*up, Event.LOSE, Event.DIAL, Event.ATTACH, Event.FAIL)
    assert (failed.phase, failed.disconnect_reason) == (Phase.LOST, "LOSE")
    back = run(*up, Event.LOSE, *up)
    assert back.open and not back.ended and back.disconnect_reason is None


def test_a_first_attempt_that_fails_leaves_it_new() -> None:
    """So it can be started again."""
    assert run(Event.DIAL, Event.FAIL) == Status()
    assert run(Event.DIAL, Event.ATTACH, Event.SECURED, Event.FAIL) == Status()


@pytest.mark.parametrize("event", [Event.CLOSE, Event.DRAIN])
@pytest.mark.parametrize("phase", Phase)
def test_it_can_be_closed_in_every_phase(phase: Phase, event: Event) -> None:
    """The first reason counts, and it never opens again, whatever comes."""
    closed = after(Status(phase), event, "first")
    assert closed.phase in ENDING and closed.close_reason == "first"
    for later in itertools.permutations(Event, 2):
        status = after(after(closed, later[0], "later"), later[1], "later")
        assert status.phase in ENDING and status.close_reason == "first" and status.ended


def test_who_agreed_in_on_connect_is_owed_on_close() -> None:
    """Also if the connection was closed while on_connect ran; otherwise nobody is."""
    assert run(Event.ATTACH, Event.SECURED, Event.CLOSE, Event.ACCEPT).on_close_owed
    assert not run(Event.ATTACH, Event.SECURED, Event.CLOSE).on_close_owed
    life = Lifecycle()
    life.apply(Event.ACCEPT)
    life.on_close_called()
    assert not life.status.on_close_owed


def test_what_is_not_in_the_table_changes_no_phase() -> None:
    """An event that comes too late, or too early, is harmless."""
    for phase, event in itertools.product(Phase, Event):
        if (phase, event) not in TRANSITIONS:
            status = Status(phase, close_reason="why" if phase in ENDING else None)
            assert after(status, event, "late").phase is phase


def test_events_of_several_threads_are_applied_one_after_another() -> None:
    """Of many that close, one is the first, and all of them learn its reason."""
    life = Lifecycle()
    closers = [lambda n=n: life.apply(Event.CLOSE, str(n)) for n in range(8)]
    statuses = together(*closers)
    (reason,) = {now.close_reason for _, now in statuses}
    assert sum(before.close_reason is None for before, _ in statuses) == 1
    assert life.close_reason == reason
