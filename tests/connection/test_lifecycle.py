"""The state machine of a connection: every event in every phase, without a connection."""

from __future__ import annotations

import itertools

import pytest

from tao.connection.lifecycle import TRANSITIONS, Event, Lifecycle, Phase, Status, after
from tests.support import together

ENDING = (Phase.DRAINING, Phase.CLOSING, Phase.TEARDOWN, Phase.CLOSED)


def run(*events: Event) -> Status:
    """Return the status after these events; each has its own name as the reason."""
    life = Lifecycle()
    for event in events:
        life.apply(event, event.name)
    return life.status


def test_the_life_of_a_servers_connection() -> None:
    """It goes through all phases, from the transport to the end."""
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


def test_a_connection_that_is_declared_ready() -> None:
    """It opens once ``on_connect`` has accepted and it is ready, again after each reconnection."""
    life, greeting = Lifecycle(manual=True), (Event.ATTACH, Event.SECURED)
    for steps, phase in (
        ((Event.ACCEPT,), Phase.LOGIN),
        ((Event.READY, Event.READY), Phase.OPEN),
        ((Event.LOSE, *greeting), Phase.LOST),
        ((Event.READY, Event.DIAL, *greeting, Event.ACCEPT), Phase.LOGIN),
        ((Event.LOSE, Event.DIAL, *greeting, Event.READY), Phase.GREETING),
        ((Event.ACCEPT,), Phase.OPEN),
    ):
        for event in (*greeting, *steps) if life.phase is Phase.NEW else steps:
            life.apply(event)
            if event is Event.LOSE:
                life.on_close_called()
        assert life.phase is phase and life.status.released is (phase is Phase.OPEN)
        assert life.open is (phase is Phase.OPEN)


def test_ready_while_it_drains() -> None:
    """Messages received after the login are handled, until the send queue is sealed."""
    for end, ready in ((Event.DRAIN, True), (Event.CLOSE, False)):
        life = Lifecycle(manual=True)
        for event in (Event.ATTACH, Event.SECURED, Event.ACCEPT, end, Event.READY):
            life.apply(event, "why")
        assert life.status.ready is ready and life.phase in ENDING


def test_a_peer_is_heard_from_the_greeting_on() -> None:
    """Data that a lost client receives is discarded only until the next ``on_connect``."""
    life = Lifecycle()
    for event in (Event.ATTACH, Event.SECURED, Event.ACCEPT, Event.LOSE, Event.DIAL, Event.ATTACH):
        life.apply(event, "lost")
    assert life.ended and life.status.disconnect_reason == "lost"
    assert not life.apply(Event.SECURED)[1].ended and not life.ended
    assert life.apply(Event.LOSE, "again")[1].disconnect_reason == "again" and life.ended


def test_a_client_reconnects() -> None:
    """It stays lost after a failed attempt; a successful one clears the reason."""
    up = (Event.DIAL, Event.ATTACH, Event.SECURED, Event.ACCEPT)
    lost = run(*up, Event.LOSE)
    assert (lost.phase, lost.disconnect_reason, lost.ended) == (Phase.LOST, "LOSE", True)
    failed = run(*up, Event.LOSE, Event.DIAL, Event.ATTACH, Event.FAIL)
    assert (failed.phase, failed.disconnect_reason) == (Phase.LOST, "LOSE")
    back = run(*up, Event.LOSE, *up)
    assert back.open and not back.ended and back.disconnect_reason is None


def test_a_failed_first_attempt_leaves_it_new() -> None:
    """It can be started again."""
    assert run(Event.DIAL, Event.FAIL) == Status()
    assert run(Event.DIAL, Event.ATTACH, Event.SECURED, Event.FAIL) == Status()


@pytest.mark.parametrize("event", [Event.CLOSE, Event.DRAIN])
@pytest.mark.parametrize("phase", Phase)
def test_it_can_be_closed_in_every_phase(phase: Phase, event: Event) -> None:
    """The first reason counts, and no later event opens it again."""
    closed = after(Status(phase), event, "first")
    assert closed.phase in ENDING and closed.close_reason == "first"
    for later in itertools.permutations(Event, 2):
        status = after(after(closed, later[0], "later"), later[1], "later")
        assert status.phase in ENDING and status.close_reason == "first" and status.ended


def test_on_close_is_owed_after_on_connect() -> None:
    """``on_close`` is owed if ``on_connect`` accepted, even if it was closed meanwhile."""
    assert run(Event.ATTACH, Event.SECURED, Event.CLOSE, Event.ACCEPT).on_close_owed
    assert not run(Event.ATTACH, Event.SECURED, Event.CLOSE).on_close_owed
    life = Lifecycle()
    life.apply(Event.ACCEPT)
    life.on_close_called()
    assert not life.status.on_close_owed


def test_events_outside_the_table_change_nothing() -> None:
    """An event that is too late or too early has no effect."""
    for phase, event in itertools.product(Phase, Event):
        if (phase, event) not in TRANSITIONS:
            status = Status(phase, close_reason="why" if phase in ENDING else None)
            assert after(status, event, "late").phase is phase


def test_events_of_several_threads_are_applied_in_sequence() -> None:
    """Of several concurrent closes one is the first, and all return its reason."""
    life = Lifecycle()
    closers = [lambda n=n: life.apply(Event.CLOSE, str(n)) for n in range(8)]
    statuses = together(*closers)
    (reason,) = {now.close_reason for _, now in statuses}
    assert sum(before.close_reason is None for before, _ in statuses) == 1
    assert life.close_reason == reason
