"""Contexts: cancellation reaches all descendants, values are inherited, nothing leaks."""

from __future__ import annotations

import gc
import math
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tao.errors import Cancelled, DeadlineExceeded
from tao.runtime.context import (
    NET_ID,
    SERVER,
    Context,
    RequestContext,
    background,
    context_with_message,
    context_with_net_id,
    message_from_context,
    net_id_from_context,
    server_from_context,
)
from tao.runtime.timing_wheel import shared_wheel
from tests.support import PATIENCE, ends, together, wait_until

#: A deadline later than the end of any test.
NEVER = 3600.0

descents: list[Callable[[Context], Context]] = [
    lambda context: context.with_cancel(),
    lambda context: context.with_value("key", 1),
    lambda context: context.with_timeout(NEVER),
    lambda context: RequestContext(context, "message"),
]


# -- the tree


def test_the_background_is_never_cancelled() -> None:
    """It is a singleton, has no values, and its errors say what to use instead."""
    root = background()
    assert root is background()
    assert (root.cancelled, root.error, root.wait(0), root.done.is_set()) == (False, None, 0, 0)
    assert (root.value("key"), root.message, root.net_id, root.server) == (None,) * 4
    with pytest.raises(RuntimeError, match=r"use background\(\)\.with_cancel\(\)"):
        root.cancel()


@pytest.mark.parametrize("descend", descents)
@pytest.mark.parametrize("asked_before", [True, False])
def test_cancellation_reaches_descendants(
    descend: Callable[[Context], Context], asked_before: bool
) -> None:
    """It reaches every kind of child and grandchild, created or asked before or after."""
    parent = background().with_cancel()
    child = descend(parent)
    grandchild = descend(child)
    if asked_before:
        assert not child.done.is_set() and not grandchild.wait(0)
    parent.cancel("enough")
    for context in (parent, child, grandchild, descend(grandchild)):
        assert context.cancelled and context.wait(0) and context.done.is_set()
        assert isinstance(context.error, Cancelled) and str(context.error) == "enough"


@pytest.mark.parametrize("descend", descents)
def test_cancellation_does_not_affect_parents_and_siblings(
    descend: Callable[[Context], Context],
) -> None:
    """They stay active, and can be cancelled later with their own reason."""
    parent = background().with_cancel()
    child, sibling = descend(parent), descend(parent)
    child.cancel("only this")
    assert str(child.error) == "only this"
    assert not parent.cancelled and not parent.done.is_set()
    assert not sibling.cancelled and not sibling.done.is_set()
    parent.cancel("all")
    assert (str(child.error), str(sibling.error)) == ("only this", "all")


def test_the_first_reason_stays() -> None:
    """A second cancellation has no effect; the default reason is generic."""
    context = background().with_cancel()
    context.cancel()
    context.cancel("too late")
    assert str(context.error) == "cancelled"
    assert not isinstance(context.error, DeadlineExceeded)


def test_waiting_threads_are_woken() -> None:
    """A thread that waits for a child returns when the parent is cancelled."""
    parent = background().with_cancel()
    child = parent.with_value("key", 1)
    waiting = threading.Event()

    def wait() -> bool:
        waiting.set()
        return child.wait(PATIENCE)

    assert together(wait, lambda: waiting.wait(PATIENCE) and parent.cancel()) == [True, None]
    assert background().with_cancel().wait(0.001) is False


def test_a_long_chain_is_cancelled() -> None:
    """The depth of the tree does not matter."""
    top = context = background().with_cancel()
    for _ in range(3_000):
        context = context.with_cancel()
        assert not context.done.is_set()
    top.cancel("deep")
    assert context.done.is_set() and str(context.error) == "deep"


def test_the_repr_of_contexts() -> None:
    """It shows the kind and the reason."""
    context = background().with_value("key", 1)
    assert repr(context) == "<ValueContext active>"
    context.cancel("no more")
    assert repr(context) == "<ValueContext cancelled: no more>"
    assert repr(background()) == "<Background active>"


# -- deadlines


def test_a_deadline_cancels() -> None:
    """The reason is a TimeoutError that names the deadline; the parent stays active."""
    parent = background().with_cancel()
    context = parent.with_timeout(0.01)
    child = context.with_cancel()
    assert child.wait(PATIENCE)
    for error in (context.error, child.error):
        assert isinstance(error, DeadlineExceeded) and isinstance(error, TimeoutError)
        assert str(error) == "deadline of 0.01 s exceeded"
    assert not parent.cancelled


def test_a_deadline_of_a_cancelled_context() -> None:
    """A context that is cancelled early keeps its reason, and its deadline needs no thread."""
    parent = background().with_cancel()
    own, above = parent.with_timeout(NEVER), parent.with_timeout(NEVER)
    assert "tao-timing-wheel" in [thread.name for thread in threading.enumerate()]
    own.cancel("own")
    parent.cancel("above")
    late = parent.with_timeout(NEVER)
    assert [str(c.error) for c in (own, above, late)] == ["own", "above", "above"]
    wait_until(lambda: "tao-timing-wheel" not in [t.name for t in threading.enumerate()])


def test_a_cancelled_deadline_is_freed() -> None:
    """Its timer is freed at once, even if others still use the wheel."""
    other, context = background().with_timeout(NEVER), background().with_timeout(NEVER)
    event = weakref.ref(context.done)
    context.cancel()
    del context
    gc.collect()
    assert event() is None
    other.cancel()


def test_the_earlier_deadline_counts() -> None:
    """A later deadline below an earlier one does not extend it."""
    near = background().with_timeout(0.01)
    far = near.with_timeout(NEVER)
    assert far.wait(PATIENCE)
    assert str(far.error) == "deadline of 0.01 s exceeded"


def test_a_deadline_of_zero_has_passed() -> None:
    """The context is cancelled even if the timer fires while it is being created."""
    for _ in range(50):
        context = background().with_timeout(0)
        assert context.wait(PATIENCE) and isinstance(context.error, DeadlineExceeded)


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_deadlines_are_checked(wrong: Any, error: type[Exception]) -> None:
    """An invalid one raises, and the shared wheel is released."""
    with pytest.raises(error, match=f"number of seconds, not {wrong!r}"):
        background().with_timeout(wrong)
    context = background().with_timeout(NEVER)
    context.cancel()
    wait_until(lambda: "tao-timing-wheel" not in [t.name for t in threading.enumerate()])


# -- callbacks


def test_callbacks_run_once_in_the_cancelling_thread() -> None:
    """They run in the order in which they were added, those of descendants first."""
    parent = background().with_cancel()
    child = parent.with_cancel()
    ran: list[Any] = []
    parent.after_cancel(lambda: ran.append(("parent", threading.current_thread())))
    child.after_cancel(lambda: ran.append(("child 1", child.error)))
    child.after_cancel(lambda: ran.append(("child 2", child.done.is_set())))
    parent.cancel("x")
    parent.cancel("y")
    child.cancel()
    here = threading.current_thread()
    assert ran == [("child 1", parent.error), ("child 2", True), ("parent", here)]


def test_a_callback_of_a_deadline_has_its_own_thread() -> None:
    """A slow callback does not delay other timers of the wheel."""
    names: queue.Queue[str] = queue.Queue()
    ready, gate = threading.Event(), threading.Event()
    shared_wheel.acquire("test").run_after(0, lambda due: ready.wait(PATIENCE))
    context = background().with_timeout(0)
    context.after_cancel(lambda: names.put(threading.current_thread().name))
    context.after_cancel(lambda: gate.wait(PATIENCE))
    ready.set()
    shared_wheel.release("test")
    assert names.get(timeout=PATIENCE) == "tao-after-cancel"
    assert background().with_timeout(0.001).wait(PATIENCE)
    assert [thread.name for thread in context.callback_threads()] == ["tao-after-cancel"]
    gate.set()
    wait_until(lambda: not context.callback_threads())


def test_a_callback_added_late_runs_at_once() -> None:
    """It cannot be removed any more."""
    context = background().with_cancel()
    context.cancel()
    ran: list[int] = []
    remove = context.with_cancel().after_cancel(lambda: ran.append(1))
    assert (ran, remove()) == ([1], False)


def test_a_callback_can_be_removed() -> None:
    """``remove`` returns True if the callback will never run, and False later or a second time."""
    context = background().with_cancel()
    ran: list[int] = []
    removes = [context.after_cancel(lambda n=n: ran.append(n)) for n in range(3)]
    assert (removes[1](), removes[1]()) == (True, False)
    context.cancel()
    assert (ran, removes[0]()) == ([0, 2], False)


@pytest.mark.parametrize("error", [ValueError("oh"), SystemExit("oh")])
def test_a_callback_that_raises_is_logged(error: BaseException, log_lines: list[Any]) -> None:
    """It is logged with its traceback; the other callbacks and the caller are not affected."""
    context = background().with_cancel()
    ran: list[int] = []

    def fail() -> None:
        raise error

    context.after_cancel(fail)
    context.after_cancel(lambda: ran.append(1))
    context.cancel()
    assert ran == [1]
    assert "after_cancel callback" in log_lines[0]["message"]
    assert log_lines[0]["exception"].value is error


def test_a_callback_must_be_callable() -> None:
    """Other objects are refused when they are added."""
    with pytest.raises(TypeError, match="after_cancel callback must be callable, not 5"):
        background().with_cancel().after_cancel(5)  # type: ignore[arg-type]


def test_callbacks_may_use_the_tree() -> None:
    """They can add, remove, derive and cancel without a deadlock."""
    parent = background().with_cancel()
    ran: list[str] = []

    def busy() -> None:
        parent.with_cancel().after_cancel(lambda: ran.append("at once"))
        remove()
        parent.cancel("again")
        ran.append(str(parent.with_timeout(NEVER).error))

    parent.after_cancel(busy)
    remove = parent.with_cancel().after_cancel(lambda: ran.append("removed"))
    remove()
    assert ends(lambda: parent.cancel("once"))
    assert ran == ["at once", "once"]


def test_concurrent_callbacks_run_once_or_are_removed() -> None:
    """Concurrent adding, removing and cancelling loses no callback and runs none twice."""
    for _ in range(20):
        parent, ran = background().with_cancel(), queue.Queue[int]()

        def use(first: int, parent: Context = parent, ran: queue.Queue[int] = ran) -> set[int]:
            removes = {}
            for number in range(first, first + 50):
                context = parent if number % 2 else parent.with_cancel()
                removes[number] = context.after_cancel(lambda n=number: ran.put(n))
            return {number for number, remove in removes.items() if number % 3 and remove()}

        uses = [lambda first=first: use(first) for first in (0, 50, 100)]
        *removed, _, _ = together(*uses, parent.cancel, parent.cancel)
        seen = [ran.get_nowait() for _ in range(ran.qsize())]
        assert sorted([*seen, *set().union(*removed)]) == list(range(150))


def test_children_may_be_freed_during_a_cancellation() -> None:
    """Other threads may create and drop children while the tree is traversed."""
    for _ in range(20):
        parent = background().with_cancel()
        kept = [parent.with_cancel() for _ in range(50)]
        assert not any(child.done.is_set() for child in kept)

        def churn(parent: Context = parent) -> None:
            while not parent.cancelled:
                [parent.with_cancel().done for _ in range(20)]

        together(churn, churn, parent.cancel)
        assert all(child.done.is_set() for child in kept)


def test_concurrent_requests_get_the_same_event() -> None:
    """Two threads that both create the event get the same one."""
    for _ in range(100):
        parent = background().with_cancel()
        contexts = [parent.with_cancel() for _ in range(20)]
        asks = [lambda made=contexts: [context.done for context in made]] * 3
        first, second, third = together(*asks)
        assert all(a is b is c for a, b, c in zip(first, second, third, strict=True))
        assert first == [context.done for context in contexts]


# -- memory


def test_a_dropped_child_is_freed() -> None:
    """The parent does not keep it, whether or not its event was requested."""
    parent = background().with_cancel()
    child = parent.with_cancel().with_value("key", 1)
    event = weakref.ref(child.done)
    assert event() is not None
    del child
    gc.collect()
    assert event() is None


def test_a_done_event_outlives_its_context() -> None:
    """A thread that has only the event is woken, even if the context was dropped."""
    parent = background().with_cancel()
    done = RequestContext(parent, "message").with_cancel().done
    gc.collect()
    parent.cancel()
    assert done.is_set()


def test_a_dropped_child_with_callbacks_is_kept() -> None:
    """Its callbacks run on cancellation; then it is freed."""
    parent = background().with_cancel()
    ran: list[int] = []
    child = parent.with_cancel().with_value("key", 1)
    child.after_cancel(lambda: ran.append(1))
    event = weakref.ref(child.done)
    del child
    gc.collect()
    parent.cancel()
    gc.collect()
    assert (ran, event()) == ([1], None)


def test_removing_the_callbacks_frees_the_child() -> None:
    """It is freed with its last callback, not earlier."""
    parent = background().with_cancel()
    child = parent.with_cancel()
    removes = [child.with_cancel().after_cancel(print), child.after_cancel(print)]
    event = weakref.ref(child.done)
    del child
    for number, remove in enumerate(removes, 1):
        gc.collect()
        assert event() is not None
        assert remove()
        removes[number - 1] = remove = print  # it refers to the context
    gc.collect()
    assert event() is None


def test_a_finalizer_of_a_callback_may_use_the_tree() -> None:
    """A removed callback is freed outside the lock, so its finalizer may wait for a canceller."""
    parent = background().with_cancel()
    done: list[bool] = []

    class Callback:
        def __call__(self) -> None: ...

        def __del__(self) -> None:
            done.append(ends(lambda: parent.with_cancel().cancel()))

    remove = parent.after_cancel(Callback())
    assert ends(remove)
    gc.collect()
    assert done == [True]


# -- values


def test_values_are_inherited() -> None:
    """The nearest value counts; parents do not see it, and a missing value is None."""
    parent = background().with_value("a", 1)
    child = parent.with_cancel().with_value("a", 2).with_timeout(NEVER)
    assert (child.value("a"), parent.value("a"), child.value("b")) == (2, 1, None)
    assert parent.with_value("a", None).value("a") is None
    assert parent.with_value((1, "x"), 3).value((1, "x")) == 3
    child.cancel()
    assert child.value("a") == 2


def test_a_request_context_has_its_message() -> None:
    """It has the message as attribute and value, for descendants too; the rest is inherited."""
    connection = context_with_net_id(background().with_value(SERVER, "server"), 7)
    request = RequestContext(connection, "hello")
    below = request.with_value("key", 1)
    for context in (request, below):
        assert (context.message, message_from_context(context)) == ("hello", "hello")
        assert (context.net_id, net_id_from_context(context)) == (7, 7)
        assert (context.server, server_from_context(context)) == ("server", "server")
        assert context.value(NET_ID) == 7
    assert (connection.message, message_from_context(connection)) == (None, None)
    assert message_from_context(context_with_message(below, "other")) == "other"
