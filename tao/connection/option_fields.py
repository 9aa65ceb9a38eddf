"""How an option is declared: default, unit and meaning, and the check of what is given for it.

A declaration is a field of a dataclass, and its metadata hold what a plain field has no place for.
An option whose type ends in ``| None`` may be None; a check sees other values only. It raises a
``TypeError`` or ``ValueError`` that names the option.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from typing import Any, TypeVar, get_args

from tao.callables import check_callable
from tao.runtime.threads import usable_cpus
from tao.transport.addresses import parse

__all__ = [
    "callback",
    "check_count",
    "check_cpus",
    "check_each",
    "check_socket_options",
    "check_source",
    "choice",
    "count",
    "instance",
    "made_by",
    "number",
    "option",
]

T = TypeVar("T")
Check = Callable[[str, Any], object]


def option(default: T, meaning: str, *, unit: str = "", check: Check | None = None) -> T:
    """Declare an option.

    Args:
        default: what counts if nothing is given.
        meaning: for people; indented as it stands in the class.
        unit: what numbers count, if they do.
        check: called with the name of the option and what was given.

    Returns:
        a field for a dataclass, which type checkers are to take for the default.
    """
    declared: Any = field(default=default, metadata=_metadata(meaning, unit, check))
    return declared  # type: ignore[no-any-return]


def made_by(factory: Callable[[], T], meaning: str) -> T:
    """Declare an option whose default is made anew each time."""
    declared: Any = field(default_factory=factory, metadata=_metadata(meaning, "", None))
    return declared  # type: ignore[no-any-return]


def count(default: T, unit: str, meaning: str) -> T:
    """Declare a number of things, at least one."""
    return option(default, meaning, unit=unit, check=check_count)


def number(default: T, unit: str, meaning: str) -> T:
    """Declare a quantity, such as seconds: a positive number."""
    return option(default, meaning, unit=unit, check=_check_number)


def choice(default: T, kind: Any, meaning: str) -> T:
    """Declare one of several words, those of a ``Literal``."""
    choices = get_args(kind)

    def check(name: str, value: object) -> None:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")

    declared: Any = field(default=default, metadata=_metadata(meaning, "", check, choices))
    return declared  # type: ignore[no-any-return]


def callback(meaning: str, *arguments: str) -> Any:
    """Declare something to be called with these arguments; None, the default: nothing is."""
    return option(None, meaning, check=lambda name, value: check_callable(name, value, *arguments))


def instance(default: T, meaning: str, *kinds: type) -> T:
    """Declare something that is of one of these types."""
    expected = " or ".join(kind.__name__ for kind in kinds)

    def check(name: str, value: object) -> None:
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {expected}, not {value!r}")

    return option(default, meaning, check=check)


def check_each(options: Any) -> None:
    """Check every option of an object by itself.

    Raises:
        TypeError, ValueError: one is wrong; the text names it.
    """
    kind: Any = type(options)
    for name, check, optional in _checks(kind):
        value = getattr(options, name)
        if not (optional and value is None):
            check(name, value)


@functools.cache
def _checks(kind: Any) -> list[tuple[str, Check, bool]]:
    """The options of a class that have a check, each with that and whether it may be None."""
    return [
        (each.name, each.metadata["check"], may_be_none(each))
        for each in fields(kind)
        if each.metadata["check"] is not None
    ]


def may_be_none(declared: Field[Any]) -> bool:
    """Tell whether an option may be None, as its type says."""
    return str(declared.type).endswith("| None")


def _metadata(
    meaning: str, unit: str, check: Check | None, choices: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {"meaning": meaning, "unit": unit, "check": check, "choices": choices}


# -- checks


def check_count(name: str, value: object) -> None:
    """Check a number of things."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, not {value!r}")


def check_source(name: str, address: object) -> None:
    """Check where a connection is to come from."""
    if not isinstance(address, tuple):
        raise TypeError(f"{name} must be (host, port), not {address!r}")
    try:
        parse(address, listening=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def check_socket_options(name: str, options: object) -> None:
    """Check what is to be given to ``socket.setsockopt``."""
    if not isinstance(options, Collection) or isinstance(options, (str, bytes)):
        raise TypeError(f"{name} must be a list of (level, name, value), not {options!r}")
    for each in options:
        if not (
            isinstance(each, (tuple, list))
            and len(each) == 3
            and all(isinstance(number, int) for number in each[:2])
            and isinstance(each[2], (int, bytes, bytearray))
        ):
            raise TypeError(f"{name} must hold (level, name, value), not {each!r}")


def check_cpus(name: str, wanted: Any) -> None:
    """Check which CPUs threads are to be pinned to."""
    if not usable_cpus():
        raise ValueError(f"{name}: this platform cannot pin threads to CPUs")
    if wanted == "auto":
        return
    several = isinstance(wanted, Collection) and not isinstance(wanted, str) and len(wanted) > 0
    cpus = wanted if several else (wanted,)
    if not all(isinstance(cpu, int) and not isinstance(cpu, bool) for cpu in cpus):
        raise TypeError(f"{name} must be 'auto', a CPU number or several, not {wanted!r}")
    if not usable_cpus() >= set(cpus):
        raise ValueError(f"{name}: of {sorted(cpus)} only {sorted(usable_cpus())} can be used here")
