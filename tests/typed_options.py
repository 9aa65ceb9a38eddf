"""Writes the types of the options, which type checkers and editors read, from their definition.

``python -m tests.typed_options`` does so after a change of ``tao/connection/options.py``. In each
of the files below, the class ends where its generated lines end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from tao.connection.option_help import type_of
from tao.connection.options import ClientSettings, ServerSettings, Settings

PACKAGE = Path(__file__).parent.parent / "tao"
#: The files with generated lines, each with the class and the options that belong into it.
PLACES: dict[str, tuple[str, type[Settings]]] = {
    "connection/option_types.py": ("CommonOptions", Settings),
    "server/server.py": ("ServerOptions", ServerSettings),
    "client/client.py": ("ClientOptions", ClientSettings),
}


def generated(name: str) -> str:
    """Return what a file should be."""
    class_name, settings = PLACES[name]
    source = (PACKAGE / name).read_text(encoding="utf-8")
    lines = "".join(
        f"    {each.name}: {type_of(settings, each)}\n".replace("'", '"')
        for each in own_options(settings)
    )
    pattern = rf'(class {class_name}\(.*?"""\n\n)(    [^\n]*\n)*'
    found = re.search(pattern, source, re.DOTALL)
    assert found is not None, f"{name} has no class {class_name}"
    return source[: found.start()] + found.group(1) + lines + source[found.end() :]


def own_options(settings: type[Settings]) -> Iterator[Field[Any]]:
    """The options that a class has beside those of its base.

    Callbacks are among them for each end, as each gets connections of its own kind.
    """
    shared = Settings.__dataclass_fields__
    for each in fields(settings):
        common = each.name in shared and not re.search(r"\bConn\b", str(shared[each.name].type))
        if common == (settings is Settings):
            yield each


def main() -> None:
    for name in PLACES:
        (PACKAGE / name).write_text(generated(name), encoding="utf-8")


if __name__ == "__main__":
    main()
