"""The atomic types: return values, wrap-around, and no lost updates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from tao.atomic import AtomicBoolean, AtomicInt32, AtomicInt64
from tests.support import together

both_widths = pytest.mark.parametrize("integer", [AtomicInt32, AtomicInt64])


@pytest.fixture
def hectic() -> Iterator[None]:
    """Make threads switch far more often than usual, so that a lost update becomes visible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@both_widths
def test_operations_return_the_value_before_or_after(integer: Any) -> None:
    """Each method returns the value that its name says: before or after the change."""
    value = integer(5)
    assert (value.add_and_get(3), value.get()) == (8, 8)
    assert (value.get_and_add(-2), value.get()) == (8, 6)
    assert (value.increment_and_get(), value.get()) == (7, 7)
    assert (value.get_and_increment(), value.get()) == (7, 8)
    assert (value.decrement_and_get(), value.get()) == (7, 7)
    assert (value.get_and_decrement(), value.get()) == (7, 6)
    assert (value.get_and_set(1), value.get()) == (6, 1)
    value.set(-4)
    assert (int(value), repr(value)) == (-4, f"{integer.__name__}(-4)")
    assert integer().get() == 0


@both_widths
def test_compare_and_set_replaces_only_what_is_expected(integer: Any) -> None:
    """It returns whether it replaced the value, and leaves any other value unchanged."""
    value = integer(1)
    assert value.compare_and_set(1, 2)
    assert not value.compare_and_set(1, 3)
    assert value.get() == 2


@pytest.mark.parametrize(("integer", "bits"), [(AtomicInt32, 32), (AtomicInt64, 64)])
def test_integers_wrap_around(integer: Any, bits: int) -> None:
    """Every operation wraps around at the largest and the smallest value."""
    smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    value = integer(largest)
    assert value.increment_and_get() == smallest
    assert value.decrement_and_get() == largest
    value.set(largest + 1)
    assert value.get_and_set(2**bits + 7) == smallest
    assert value.get_and_add(2**bits) == 7
    assert value.compare_and_set(2**bits + 7, -(2**bits) - 1)
    assert value.get() == -1


@both_widths
@pytest.mark.parametrize("wrong", [1.5, "1", None])
def test_only_integers_go_in(integer: Any, wrong: Any) -> None:
    """Any other type is a TypeError, and the value does not change."""
    with pytest.raises(TypeError, match="integer"):
        integer(wrong)
    value = integer(1)
    with pytest.raises(TypeError, match="integer"):
        value.set(wrong)
    with pytest.raises(TypeError):
        value.add_and_get(wrong)
    assert value.get() == 1


@both_widths
def test_no_update_is_lost(integer: Any, hectic: None) -> None:
    """Eight threads that increment and decrement reach the expected value."""
    value = integer()

    def count() -> None:
        for _ in range(2_000):
            value.increment_and_get()
            value.get_and_add(3)
            value.get_and_decrement()

    together(*[count] * 8)
    assert value.get() == 8 * 2_000 * 3


def test_every_number_is_handed_out_once(hectic: None) -> None:
    """A shared counter gives each number to one thread only."""
    value = AtomicInt64()
    taken = together(*[lambda: [value.get_and_increment() for _ in range(2_000)]] * 4)
    assert sorted(chain(*taken)) == list(range(8_000))


def test_compare_and_set_has_one_winner(hectic: None) -> None:
    """Of several threads that expect the same value, exactly one replaces it."""
    for round_number in range(100):
        value, flag = AtomicInt32(round_number), AtomicBoolean()
        won = together(
            *[lambda v=value, n=round_number: v.compare_and_set(n, n + 1)] * 3,
            *[lambda f=flag: f.compare_and_set(False, True)] * 3,
        )
        assert (sum(won[:3]), sum(won[3:])) == (1, 1)


def test_booleans() -> None:
    """A flag starts as false, holds the value that is set, and is usable as a condition."""
    flag = AtomicBoolean()
    assert (bool(flag), flag.get(), repr(flag)) == (False, False, "AtomicBoolean(False)")
    flag.set(True)
    assert flag
    assert flag.get_and_set(False) is True
    assert not flag.compare_and_set(True, True)
    assert flag.compare_and_set(False, True)
    assert flag.get() is True
