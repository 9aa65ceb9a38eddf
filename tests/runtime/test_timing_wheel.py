"""The timing wheel: which timers fire, in which order, and what is left afterwards."""

from __future__ import annotations

import gc
import math
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import chain
from typing import Any

import pytest

from tao.errors import TooManyTimers
from tao.runtime.timing_wheel import SharedWheel, TimingWheel, delay_until
from tests.support import PATIENCE, ends, together, wait_until

#: A delay longer than any test.
NEVER = 3600.0


@pytest.fixture
def wheel() -> Iterator[TimingWheel]:
    """A wheel that is stopped at the end of the test."""
    made = TimingWheel("tao-test-wheel")
    yield made
    made.stop()


def heap_of(wheel: TimingWheel) -> list[tuple[float, int]]:
    """Return the heap of the wheel's thread."""
    heap = wheel._heap.get()
    assert heap is not None
    return heap.heap


class Callback:
    """A callback that records when it is freed, and calls a function then."""

    def __init__(self, last_will: Any = None) -> None:
        self.fired = threading.Event()
        self.last_will: Any = last_will

    def __call__(self, due: datetime) -> None:
        self.fired.set()

    def __del__(self) -> None:
        if self.last_will is not None:
            self.last_will()


# -- firing


def test_timers_fire_in_the_order_of_their_deadlines(wheel: TimingWheel) -> None:
    """The order in which they were added does not matter."""
    fired: queue.Queue[int] = queue.Queue()
    gate = threading.Event()
    wheel.run_after(0, lambda _: gate.wait(PATIENCE))
    # A pause between these lines may change the order of the deadlines; the heap has the order.
    timers = [
        wheel.run_after(delay / 1000, lambda _, n=number: fired.put(n))
        for number, delay in enumerate([30, 20, 0, 40, 10])
    ]
    due = sorted(timers, key=lambda timer: wheel._timers[timer].due)
    gate.set()
    assert [timers[fired.get(timeout=PATIENCE)] for _ in timers] == due


def test_an_earlier_timer_wakes_the_wheel(wheel: TimingWheel) -> None:
    """A wheel that sleeps until a later deadline fires an earlier timer in time."""
    far, near = Callback(), Callback()
    wheel.run_after(NEVER, far)
    wheel.run_after(0.01, near)
    assert near.fired.wait(PATIENCE)
    assert (far.fired.is_set(), wheel.size) == (False, 1)


def test_the_thread_starts_with_the_first_timer() -> None:
    """It has the wheel's name, runs the callbacks, and ends when the wheel is stopped."""
    wheel, names = TimingWheel("tao-named"), queue.Queue[str]()
    running = [thread.name for thread in threading.enumerate()]
    assert "tao-named" not in running
    wheel.run_after(0, lambda _: names.put(threading.current_thread().name))
    assert names.get(timeout=PATIENCE) == "tao-named"
    wheel.stop()
    assert "tao-named" not in [thread.name for thread in threading.enumerate()]


def test_a_callback_gets_the_due_time(wheel: TimingWheel) -> None:
    """It is an aware datetime in UTC, and not the time at which the callback runs."""
    got: queue.Queue[datetime] = queue.Queue()
    when = datetime.now(timezone(timedelta(hours=9))) + timedelta(seconds=0.05)
    wheel.run_at(when, got.put)
    due = got.get(timeout=PATIENCE)
    assert due.tzinfo is timezone.utc
    assert abs(due - when) < timedelta(seconds=5)
    assert datetime.now(timezone.utc) >= due - timedelta(seconds=1)


@pytest.mark.parametrize(
    "when",
    [
        datetime.now(timezone.utc),
        datetime(1960, 1, 1, tzinfo=timezone.utc),
        time.time() - 1,
        0,
        -5.5,
    ],
    ids=["now", "a date before the epoch", "a second ago", "the epoch", "before the epoch"],
)
def test_run_at_in_the_past_fires_at_once(wheel: TimingWheel, when: Any) -> None:
    """This includes datetimes and timestamps before the epoch."""
    callback = Callback()
    wheel.run_at(when, callback)
    assert callback.fired.wait(PATIENCE)


def test_delay_until_a_time_of_day() -> None:
    """It is the difference to the clock in any time zone, and never negative."""
    in_an_hour = time.time() + 3600
    assert delay_until(in_an_hour) == pytest.approx(3600, abs=60)
    zone = timezone(timedelta(hours=-7))
    assert delay_until(datetime.fromtimestamp(in_an_hour, zone)) == pytest.approx(3600, abs=60)
    assert delay_until(in_an_hour - 7200) == 0


class Vague(tzinfo):
    """A time zone without an offset, which makes a datetime naive."""

    def utcoffset(self, when: datetime | None) -> None:
        return None


AWARE = datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("naive", [AWARE.replace(tzinfo=None), AWARE.replace(tzinfo=Vague())])
def test_run_at_needs_an_aware_datetime(wheel: TimingWheel, naive: datetime) -> None:
    """A datetime without a time zone is ambiguous, and refused."""
    with pytest.raises(ValueError, match="needs a datetime with a time zone, not datetime"):
        wheel.run_at(naive, print)
    assert wheel.size == 0


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        *(("soon", TypeError), (None, TypeError), (True, TypeError)),
        *((math.nan, ValueError), (math.inf, ValueError)),
    ],
)
def test_times_are_checked(wheel: TimingWheel, wrong: Any, error: type[Exception]) -> None:
    """Values that are not finite numbers are refused by name, and no timer is created."""
    with pytest.raises(error, match=f"when must be .*, not {wrong!r}"):
        wheel.run_at(wrong, print)
    with pytest.raises(error, match=f"delay must be .*, not {wrong!r}"):
        wheel.run_after(wrong, print)
    with pytest.raises(error, match=f"interval must be .*, not {wrong!r}"):
        wheel.run_every(wrong, print)
    assert wheel.size == 0


def test_delays_are_not_negative_and_intervals_not_zero(wheel: TimingWheel) -> None:
    """A delay of zero is allowed."""
    with pytest.raises(ValueError, match="delay must be zero or a positive number of seconds"):
        wheel.run_after(-0.1, print)
    with pytest.raises(ValueError, match="interval must be a positive number of seconds, not 0"):
        wheel.run_every(0, print)
    callback = Callback()
    wheel.run_after(0, callback)
    assert callback.fired.wait(PATIENCE)


def test_a_callback_must_be_callable(wheel: TimingWheel) -> None:
    """Other objects are refused when they are added."""
    with pytest.raises(TypeError, match="a timer's callback must be callable, not 5"):
        wheel.run_after(1, 5)  # type: ignore[arg-type]


def test_a_full_wheel() -> None:
    """Above ``max_pending``, adding raises until there is room again."""
    wheel = TimingWheel("tao-full", max_pending=2)
    first = wheel.run_after(NEVER, print)
    wheel.run_every(NEVER, print)
    with pytest.raises(TooManyTimers, match="tao-full has 2 timers pending already"):
        wheel.run_after(NEVER, print)
    assert wheel.cancel(first)
    wheel.run_after(NEVER, print)
    assert wheel.size == 2
    wheel.stop()


def test_a_very_long_delay(wheel: TimingWheel) -> None:
    """The wheel sleeps as long as the system permits, and wakes for other timers."""
    wheel.run_after(1e300, print)
    callback = Callback()
    wheel.run_after(0.001, callback)
    assert callback.fired.wait(PATIENCE)
    assert wheel.size == 1


@pytest.mark.parametrize("interval", [5e-324, 1e-12])
def test_a_very_short_or_long_interval(wheel: TimingWheel, interval: float) -> None:
    """Other timers still fire."""
    restless, other = Callback(), Callback()
    timer = wheel.run_every(interval, restless)
    wheel.run_after(0.005, other)
    assert restless.fired.wait(PATIENCE) and other.fired.wait(PATIENCE)
    assert wheel.cancel(timer)


# -- periodic timers


def test_a_periodic_timer_keeps_its_phase_and_does_not_burst(wheel: TimingWheel) -> None:
    """After a delay it fires once for all missed times, and then at its regular times."""
    interval, dues = 0.04, queue.Queue[float]()
    wheel.run_every(interval, lambda due: dues.put(due.timestamp()))
    first = dues.get(timeout=PATIENCE)
    stalled: list[float] = []

    def stall(_: datetime) -> None:
        stalled.append(time.time())
        end = first + (math.ceil((stalled[0] - first) / interval) + 5.5) * interval
        wait_until(lambda: time.time() > end)
        stalled.append(time.time())

    wheel.run_after(0, stall)
    later = [dues.get(timeout=PATIENCE)]
    while not stalled[1:] or later[-1] < stalled[1] + 3 * interval:
        later.append(dues.get(timeout=PATIENCE))
    steps = [(due - first) / interval for due in later]
    assert all(abs(step - round(step)) < 0.3 for step in steps)
    assert len(set(map(round, steps))) == len(steps)
    assert sum(stalled[0] < due < stalled[1] for due in later) <= 1


def test_a_periodic_timer_goes_on_until_cancelled(wheel: TimingWheel) -> None:
    """It counts as one pending timer until it is cancelled."""
    ticks: queue.Queue[datetime] = queue.Queue()
    timer = wheel.run_every(0.001, ticks.put)
    for _ in range(5):
        ticks.get(timeout=PATIENCE)
        assert wheel.size == 1
    assert wheel.cancel(timer)
    assert (wheel.cancel(timer), wheel.size) == (False, 0)


# -- cancelling and memory


def test_cancel_returns_whether_the_timer_was_pending(wheel: TimingWheel) -> None:
    """It is True once for a pending timer, and False for a fired or unknown one."""
    timer = wheel.run_after(NEVER, print)
    assert [wheel.cancel(timer), wheel.cancel(timer), wheel.cancel(12345)] == [True, False, False]
    callback = Callback()
    timer = wheel.run_after(0, callback)
    assert callback.fired.wait(PATIENCE)
    assert not wheel.cancel(timer)


def test_cancelling_frees_the_callback_at_once(wheel: TimingWheel) -> None:
    """Its objects are freed before the due time."""
    callback = Callback()
    gone = weakref.ref(callback)
    timer = wheel.run_after(NEVER, callback)
    del callback
    gc.collect()
    assert gone() is not None
    wheel.cancel(timer)
    gc.collect()
    assert gone() is None


def test_a_fired_callback_is_freed(wheel: TimingWheel) -> None:
    """The wheel does not keep it while it sleeps until the next timer."""
    callback = Callback()
    gone, fired = weakref.ref(callback), callback.fired
    wheel.run_after(0, callback)
    del callback
    assert fired.wait(PATIENCE)
    wait_until(lambda: gc.collect() is not None and gone() is None)


def test_a_hundred_thousand_cancelled_timers_leave_nothing(wheel: TimingWheel) -> None:
    """Live timers among them are kept, and the heap shrinks before any of them is due."""
    wheel.run_after(NEVER, print)
    for _ in range(100_000):
        wheel.cancel(wheel.run_after(NEVER + 1, print))
    assert (wheel.size, len(heap_of(wheel)) < 100) == (1, True)
    for timer in [wheel.run_after(NEVER + 1, print) for _ in range(100_000)]:
        wheel.cancel(timer)
    wait_until(lambda: len(heap_of(wheel)) < 100)
    assert (wheel.size, heap_of(wheel)[0][1]) == (1, 1)


def test_live_timers_among_many_cancelled_ones_fire(wheel: TimingWheel) -> None:
    """Rebuilding the heap keeps them, each with its deadline."""
    fired: queue.Queue[int] = queue.Queue()
    gate = threading.Event()
    wheel.run_after(0, lambda _: gate.wait(PATIENCE))
    timers = [wheel.run_after(n / 1e6, lambda _, n=n: fired.put(n)) for n in range(1000)]
    for number, timer in enumerate(timers):
        if number % 10:
            assert wheel.cancel(timer)
    gate.set()
    assert [fired.get(timeout=PATIENCE) for _ in range(100)] == list(range(0, 1000, 10))


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_finalizer_of_a_callback_may_call_the_wheel(how: str) -> None:
    """It runs without the wheel's lock, so it can cancel, as can another thread meanwhile."""
    wheel = TimingWheel("tao-wills")
    other = wheel.run_after(NEVER, print)
    done: list[bool] = []
    will = Callback(lambda: done.append(ends(lambda: wheel.cancel(other))))
    timer = wheel.run_after(NEVER, will)
    del will
    assert ends((lambda: wheel.cancel(timer)) if how == "cancel" else wheel.stop)
    gc.collect()
    assert done == [True]
    wheel.stop()


# -- callbacks that use the wheel


def test_callbacks_may_add_timers(wheel: TimingWheel) -> None:
    """A chain of timers, each added by the previous one, fires completely."""
    done = threading.Event()

    def step(left: int) -> None:
        if left:
            wheel.run_after(0, lambda _: step(left - 1))
        else:
            done.set()

    step(50)
    assert done.wait(PATIENCE)
    wait_until(lambda: wheel.size == 0)


def test_a_callback_may_cancel_its_own_timer(wheel: TimingWheel) -> None:
    """A periodic timer does not fire again; a single one is not pending any more."""
    told: queue.Queue[bool] = queue.Queue()
    ids: queue.Queue[int] = queue.Queue()

    def cancel_own(_: datetime) -> None:
        told.put(wheel.cancel(ids.get(timeout=PATIENCE)))

    ids.put(wheel.run_every(0.001, cancel_own))
    assert told.get(timeout=PATIENCE) is True
    ids.put(wheel.run_after(0.001, cancel_own))
    assert told.get(timeout=PATIENCE) is False
    assert told.empty() and wheel.size == 0


def test_a_callback_may_cancel_timers_due_at_the_same_time(wheel: TimingWheel) -> None:
    """Of several timers due together, the first cancels the others."""
    gate, last = threading.Event(), Callback()
    told: list[bool] = []
    others = [Callback(), Callback()]
    wheel.run_after(0, lambda _: gate.wait(PATIENCE))
    wheel.run_after(0.001, lambda _: told.extend(map(wheel.cancel, timers)))
    timers = [wheel.run_after(0.002, others[0]), wheel.run_every(0.002, others[1])]
    wheel.run_after(0.003, last)
    due = time.monotonic() + 0.003
    wait_until(lambda: time.monotonic() > due)
    gate.set()
    assert last.fired.wait(PATIENCE)
    assert (told, [other.fired.is_set() for other in others]) == ([True, True], [False, False])


def test_a_callback_may_stop_the_wheel(log_lines: list[Any]) -> None:
    """It does not wait for itself, no timer fires afterwards, and the thread ends."""
    wheel, stopped, late = TimingWheel("tao-stops-itself"), threading.Event(), Callback()
    gate = threading.Event()

    def stop(_: datetime) -> None:
        gate.wait(PATIENCE)
        wheel.stop(timeout=None)
        stopped.set()

    wheel.run_after(0, stop)
    wheel.run_after(0.001, late)
    gate.set()
    assert stopped.wait(PATIENCE)
    wait_until(lambda: "tao-stops-itself" not in [thread.name for thread in threading.enumerate()])
    assert (late.fired.is_set(), wheel.size, log_lines) == (False, 0, [])


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit("oh")])
def test_a_callback_that_raises_is_logged(
    wheel: TimingWheel, error: BaseException, log_lines: list[Any]
) -> None:
    """It is logged with its traceback; a periodic timer continues, and others are not affected."""
    calls: queue.Queue[datetime] = queue.Queue()

    def fail(due: datetime) -> None:
        calls.put(due)
        raise error

    timer = wheel.run_every(0.001, fail)
    for _ in range(3):
        calls.get(timeout=PATIENCE)
    wheel.cancel(timer)
    assert "fail" in log_lines[0]["message"] and "raised" in log_lines[0]["message"]
    assert log_lines[0]["exception"].value is error
    other = Callback()
    wheel.run_after(0, other)
    assert other.fired.wait(PATIENCE)


# -- stopping and concurrency


def test_stopping_drops_all_timers() -> None:
    """Their callbacks are freed, adding raises, and a second stop is harmless."""
    wheel, callback = TimingWheel("tao-stopped"), Callback()
    gone = weakref.ref(callback)
    wheel.run_every(NEVER, callback)
    del callback
    wheel.stop()
    gc.collect()
    assert (wheel.size, gone()) == (0, None)
    with pytest.raises(RuntimeError, match="the timing wheel tao-stopped is stopped"):
        wheel.run_after(0, print)
    wheel.stop()
    assert not wheel.cancel(1)


def test_stopping_an_unused_wheel() -> None:
    """A wheel without timers has no thread to join."""
    wheel = TimingWheel("tao-unused")
    wheel.stop(timeout=None)
    with pytest.raises(RuntimeError):
        wheel.run_every(1, print)


def test_stopping_drops_timers_that_are_due() -> None:
    """Timers that became due during a slow callback do not fire."""
    wheel, started, gate, late = TimingWheel(), threading.Event(), threading.Event(), Callback()

    def slow(_: datetime) -> None:
        started.set()
        gate.wait(PATIENCE)

    wheel.run_after(0, slow)
    assert started.wait(PATIENCE)
    wheel.run_after(0, late)
    wheel.stop(timeout=0)
    gate.set()
    wait_until(lambda: "tao-timing-wheel" not in [t.name for t in threading.enumerate()])
    assert not late.fired.is_set()


def test_a_thread_that_cannot_be_started(
    wheel: TimingWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding raises, and works again once threads can be started."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            wheel.run_after(0, print)
    assert wheel.size == 0
    callback = Callback()
    wheel.run_after(0, callback)
    assert callback.fired.wait(PATIENCE)


def test_concurrent_use_of_a_wheel(wheel: TimingWheel) -> None:
    """Each timer either fires once or was cancelled, never both and never neither."""
    fired: queue.Queue[tuple[int, int]] = queue.Queue()

    def use(user: int) -> list[tuple[int, int]]:
        kept = []
        for number in range(200):
            me = (user, number)
            timer = wheel.run_after(number % 5 / 1000, lambda _, me=me: fired.put(me))
            if number % 2 or not wheel.cancel(timer):
                kept.append(me)
        return kept

    kept = [*chain(*together(*[lambda user=user: use(user) for user in range(6)]))]
    assert sorted(fired.get(timeout=PATIENCE) for _ in kept) == sorted(kept)
    wait_until(lambda: wheel.size == 0)
    assert fired.empty()


# -- the shared wheel


def test_the_shared_wheel_ends_with_its_last_user() -> None:
    """Its thread ends with the last release; a later user gets a new wheel."""
    shared = SharedWheel()
    first, second = shared.acquire("first"), shared.acquire("second")
    assert first is second is shared.wheel
    first.run_after(NEVER, print)
    shared.release("first")
    assert first.size == 1
    shared.release("second")
    assert "tao-timing-wheel" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(RuntimeError, match="the shared timing wheel is stopped"):
        _ = shared.wheel
    third = shared.acquire("third")
    assert third is not first
    third.run_after(NEVER, print)
    shared.release("third")
    assert third.size == 0


def test_releasing_without_acquiring() -> None:
    """Releasing twice, or without having acquired, does not affect other users."""
    shared = SharedWheel()
    shared.release("nobody")
    wheel = shared.acquire("one")
    shared.release("other")
    assert shared.acquire("one") is wheel
    shared.release("one")
    shared.release("one")
    with pytest.raises(RuntimeError):
        wheel.run_after(0, print)


def test_the_last_user_may_be_a_callback() -> None:
    """Releasing the wheel in its own thread ends it as well."""
    shared = SharedWheel()
    shared.acquire("me").run_after(0, lambda _: shared.release("me"))
    wait_until(lambda: "tao-timing-wheel" not in [t.name for t in threading.enumerate()])


def test_concurrent_users_of_the_shared_wheel() -> None:
    """Each user can use the wheel; in the end, no thread is left."""
    shared = SharedWheel()

    def use() -> None:
        for _ in range(20):
            user, callback = object(), Callback()
            shared.acquire(user).run_after(0, callback)
            assert callback.fired.wait(PATIENCE)
            shared.release(user)

    together(*[use] * 4)
