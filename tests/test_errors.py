"""The tree of error classes matches its docstring."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from tao import errors


def test_the_tree_is_as_drawn() -> None:
    """Each class in the drawing exists and derives from the class above it."""
    assert errors.__doc__ is not None
    path: list[str] = []
    drawn = set()
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if found is None:
            continue
        path[len(found[1]) // 4 :] = [found[2]]
        drawn.add(found[2])
        assert issubclass(getattr(errors, found[2]), getattr(errors, path[-2 if path[1:] else -1]))
    assert drawn == set(errors.__all__)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.BadData, ValueError),
        (errors.ConnectionClosed, ConnectionError),
        (errors.HandshakeFailed, OSError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_some_errors_are_builtin_ones_too(error: type[Exception], builtin: type[Exception]) -> None:
    """Some errors also derive from built-in ones, so that code can catch those."""
    with pytest.raises(builtin, match=r"^why$"):
        raise error("why")


def test_an_undefined_message_tells_its_number() -> None:
    """The number is in the text and in an attribute."""
    error = errors.UndefinedMessage(-7)
    assert (error.number, str(error)) == (-7, "message number -7 is not registered")


def every_error(kind: type[Exception] = errors.TaoError) -> list[type[Exception]]:
    """Return all error classes, whatever module they are in."""
    return [kind, *(each for below in kind.__subclasses__() for each in every_error(below))]


TIMES_TWO = [
    *(copy.copy, copy.deepcopy),
    *(
        lambda error, number=number: pickle.loads(pickle.dumps(error, number))
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_survives_copying_and_pickling(kind: type[Exception]) -> None:
    """Errors keep text, arguments and attributes when they are copied or pickled twice."""
    error = kind(7)
    error.note = "a note"  # type: ignore[attr-defined]
    for twice in TIMES_TWO:
        again = twice(twice(error))
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert str(kind(7)).count("7") == 1
