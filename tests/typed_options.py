"""Generates the types of the options, for type checkers and editors, from their definition.

Run ``python -m tests.typed_options`` after a change of ``tao/connection/options``. In each
of the files below, the class ends with the generated lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from tao.connection.options.definitions import ClientSettings, ServerSettings, Settings
from tao.connection.options.help import type_of

PACKAGE = Path(__file__).parent.parent / "tao"
#: The files with generated lines, each with its class and the options that belong to it.
PLACES: dict[str, tuple[str, type[Settings]]] = {
    "connection/options/types.py": ("CommonOptions", Settings),
    "server/server.py": ("ServerOptions", ServerSettings),
    "client/client.py": ("ClientOptions", ClientSettings),
}


def generated(name: str) -> str:
    """Return the content that a file should have."""
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
    """Return the options that a class adds to those of its base.

    They include the callbacks, because their connections are of a different type at each end.
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
