"""Runs the code in documents: finds the blocks, their order, and the packages they need.

A block that starts with ``.. code-block:: python`` is run, unless a comment before it says
otherwise::

    .. not run: the reason

    .. needs: msgpack

A block that needs a package is run if the package is installed.
"""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Any, NamedTuple


class Block(NamedTuple):
    """A block of Python code in a document."""

    path: Path
    line: int  # the number of its first line, from 1
    code: str
    needs: str | None  # the package that it needs
    not_run: str | None  # the reason why it is not run


_BLOCK = re.compile(
    r"""^(?:\.\.\ (?P<mark>not\ run|needs):\ (?P<said>.*(?:\n\ +\S.*)*)\n\n)?
        \.\.\ code-block::\ python\n
        (?:\ +:[a-z-]+:.*\n)*
        \n
        (?P<code>(?:\ +.*\n|\n)+)""",
    re.MULTILINE | re.VERBOSE,
)


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of Python code in a document, in their order."""
    text = path.read_text(encoding="utf-8") + "\n"
    return [
        Block(
            path,
            text.count("\n", 0, found.start("code")) + 1,
            textwrap.dedent(found["code"]),
            found["said"] if found["mark"] == "needs" else None,
            found["said"] if found["mark"] == "not run" else None,
        )
        for found in _BLOCK.finditer(text)
    ]


def run(blocks: list[Block], name: str, **known: Any) -> dict[str, Any]:
    """Run blocks one after another, as one program, and return its names.

    A traceback shows the lines of the document.

    Args:
        blocks: from one document or from several.
        name: the name of the module that the program becomes while it runs, because dataclasses
            look up their module.
        known: names that are defined at the start.
    """
    module = types.ModuleType(name)
    module.__dict__.update(known)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        for block in blocks:
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(block.path), "exec"), module.__dict__)
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    return module.__dict__
