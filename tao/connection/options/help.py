"""What people are shown of options: signatures and docstrings for ``help()``, tables for the guide.

All of it is made from the classes in ``definitions.py``. The functions that take options as keyword
arguments are marked with `takes_options`; what type checkers know of them is in
``options/types.py``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from tao.connection.options.definitions import ClientSettings, Reconnect, ServerSettings, Settings

__all__ = ["OptionHelp", "Shown", "options_of", "options_table", "takes_options", "type_of"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_INDENT = 8 * " "  # of a meaning as it is declared


class OptionHelp:
    """An option, described.

    Attributes:
        name: as it is written in a call.
        type: in the notation of Python.
        default: what counts if it is not given.
        unit: of numbers, such as ``"seconds"``; else empty.
        meaning: sentences in reStructuredText, on one or several lines.
    """

    def __init__(self, settings: type[Any], declared: Field[Any]) -> None:
        factory: Any = declared.default_factory
        about = declared.metadata
        choices = list(about["choices"])
        self.name: str = declared.name
        self.type: str = f"Literal{choices}" if choices else type_of(settings, declared)
        self.default: Any = (
            declared.default if factory is MISSING else Shown(f"{factory.__name__}()")
        )
        self.unit: str = about["unit"]
        self.meaning: str = about["meaning"].replace("\n" + _INDENT, "\n")


class Shown:
    """Stands for a default that is made anew each time, or found out."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def options_of(settings: type[Any]) -> list[OptionHelp]:
    """Describe the options of `ServerSettings`, `ClientSettings`, `Settings` or `Reconnect`."""
    return [OptionHelp(settings, each) for each in fields(settings)]


def type_of(settings: type[Any], declared: Field[Any]) -> str:
    """Return the type of an option, with the class of connections that its callbacks get."""
    conn_type = getattr(settings, "conn_type", "Connection")
    return re.sub(r"\bConn\b", conn_type, str(declared.type))


def takes_options(
    settings: type[Settings], *, explain: bool = False, **defaults: Any
) -> Callable[[FunctionT], FunctionT]:
    """Have ``help()`` show every option of a function that takes them as ``**options``.

    Args:
        settings: the class of the options.
        explain: whether the docstring is to say what each means.
        defaults: those that this function has instead.
    """

    def decorate(function: FunctionT) -> FunctionT:
        own = inspect.signature(function)
        before = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        options = [each for each in options_of(settings) if each.name not in own.parameters]
        taken = [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(each.name, each.default),
                annotation=each.type,
            )
            for each in options
        ]
        documented: Any = function
        documented.__signature__ = own.replace(parameters=[*before, *taken])
        if explain and function.__doc__ is not None:  # which python -OO leaves out
            documented.__doc__ += "".join(_entries(options))
        return function

    return decorate


def _entries(options: list[OptionHelp]) -> Iterator[str]:
    """The part of a docstring that describes options."""
    yield f"\n\n{_INDENT}Args:\n"
    for each in options:
        meaning = each.meaning.replace("\n", "\n" + 2 * _INDENT)
        unit = f", {each.unit}" if each.unit else ""
        kind = f"{each.type}{unit}; default {each.default!r}"
        yield f"{_INDENT}    {each.name}: {kind}.\n{2 * _INDENT}{meaning}\n"


def options_table() -> str:
    """Return every option with type, unit, default and meaning, in reStructuredText.

    There is a table each for what servers and clients share, what only either has, and for
    `Reconnect`.
    """
    shared = {each.name for each in fields(Settings)}
    tables = [("Servers and clients", options_of(Settings))]
    for title, settings in (("Servers only", ServerSettings), ("Clients only", ClientSettings)):
        own = [each for each in options_of(settings) if each.name not in shared]
        tables.append((title, own))
    tables.append(("Reconnect", options_of(Reconnect)))
    return "\n".join(_table(title, options) for title, options in tables)


def _table(title: str, options: list[OptionHelp]) -> str:
    rows = "".join(
        f"   * - ``{each.name}``\n     - {_cell(each)}\n     - {_indented(each.meaning)}\n"
        for each in options
    )
    return (
        f".. list-table:: {title}\n   :header-rows: 1\n   :widths: 20 25 55\n\n"
        f"   * - Option\n     - Type, unit and default\n     - Meaning\n{rows}"
    )


def _cell(option: OptionHelp) -> str:
    unit = f", {option.unit}" if option.unit else ""
    return f"``{option.type}``{unit}; default ``{option.default!r}``"


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + 7 * " ")
