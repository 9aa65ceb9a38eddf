"""From the keyword arguments that users write to checked options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from tao.connection.options.definitions import ClientSettings, ServerSettings, Settings
from tao.runtime.worker_pool import WorkerPool

__all__ = ["make_settings"]

SettingsT = TypeVar("SettingsT", bound=Settings)


def make_settings(kind: type[SettingsT], owner: str, given: Mapping[str, Any]) -> SettingsT:
    """Check keyword arguments and make settings of them; ``owner`` is named in errors.

    Raises:
        TypeError, ValueError: naming the option, and its likely spelling if it is unknown.
    """
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            for other, place in ((ServerSettings, "a Server"), (ClientSettings, "a ClientConn")):
                if name in other.__dataclass_fields__:
                    hint = f"; it is an option of {place}"
            raise TypeError(f"{owner} has no option {name!r}{hint}")
    if "dispatch" not in given and _prepares_workers(given):
        given = {**given, "dispatch": "pool"}
    return kind(**given)


def _prepares_workers(given: Mapping[str, Any]) -> bool:
    """Return whether handlers may depend on the workers' initializer."""
    workers = given.get("workers")
    if isinstance(workers, WorkerPool):
        return workers.initializer is not None
    return given.get("worker_initializer") is not None
