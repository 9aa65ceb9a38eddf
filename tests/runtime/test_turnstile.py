"""A turnstile, which a crowd of threads passes one at a time."""

from __future__ import annotations

import threading

import pytest

from tao.runtime.threads import has_interpreter_lock
from tao.runtime.turnstile import Turnstile
from tests.injection import Interruption, opcodes
from tests.support import PATIENCE, ends, together

pytestmark = pytest.mark.skipif(
    not has_interpreter_lock(), reason="without the interpreter lock nobody has to wait"
)


def passing(turnstile: Turnstile) -> None:
    """Pass a turnstile."""
    try:
        turnstile.enter()
    finally:
        turnstile.leave()


def test_a_crowd_passes_one_at_a_time() -> None:
    """No thread is inside together with another one, and all get through."""
    turnstile, inside, most = Turnstile(0, PATIENCE), list[int](), list[int]()

    def run() -> None:
        for number in range(50):
            try:
                turnstile.enter()
                inside.append(number)
                most.append(len(inside))
                inside.pop()
            finally:
                turnstile.leave()

    together(*[run] * 20)
    assert (len(most), max(most)) == (1000, 1)


def test_nobody_waits_for_ever_for_one_that_is_stuck() -> None:
    """The others pass after a moment, and so does the one that was stuck."""
    turnstile, entered, freed = Turnstile(0, 0.01), threading.Event(), threading.Event()

    def stay() -> None:
        turnstile.enter()
        entered.set()
        freed.wait(PATIENCE)
        turnstile.leave()

    stuck = threading.Thread(target=stay)
    stuck.start()
    assert entered.wait(PATIENCE)
    together(*[lambda: passing(turnstile)] * 5)
    assert stuck.is_alive()
    freed.set()
    stuck.join(PATIENCE)
    assert ends(lambda: passing(turnstile))


def test_a_few_threads_are_no_crowd() -> None:
    """They are inside together, and none of them waits."""
    turnstile, met = Turnstile(2, PATIENCE), threading.Barrier(2)

    def meet() -> None:
        try:
            turnstile.enter()
            met.wait(PATIENCE)
        finally:
            turnstile.leave()

    together(meet, meet)


def test_only_the_thread_inside_lets_the_next_one_in() -> None:
    """A thread that leaves without having entered changes nothing."""
    turnstile, others = Turnstile(0, PATIENCE), list[threading.Thread]()
    turnstile.enter()
    together(turnstile.leave, turnstile.leave)
    others.append(threading.Thread(target=passing, args=(turnstile,)))
    others[0].start()
    others[0].join(0.05)
    assert others[0].is_alive()
    turnstile.leave()
    others[0].join(PATIENCE)
    assert not others[0].is_alive()


@pytest.mark.interrupted
def test_it_can_be_passed_after_an_interruption() -> None:
    """Whichever bytecode of a thread an exception strikes, other threads pass afterwards."""
    for moment in opcodes("tao.runtime.turnstile"):
        turnstile = Turnstile(0, 0.001)
        with moment.raising(Interruption):
            passing(turnstile)
        assert ends(lambda turnstile=turnstile: passing(turnstile)), moment  # type: ignore[misc]


@pytest.mark.interrupted
def test_one_that_waits_can_be_interrupted() -> None:
    """Whichever bytecode of its wait an exception strikes, others pass afterwards."""
    for moment in opcodes("tao.runtime.turnstile"):
        turnstile = Turnstile(0, 0.001)
        assert ends(turnstile.enter)  # by a thread that is gone, and has not left
        with moment.raising(Interruption):
            passing(turnstile)
        assert ends(lambda turnstile=turnstile: passing(turnstile)), moment  # type: ignore[misc]
