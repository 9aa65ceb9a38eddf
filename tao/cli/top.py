"""``tao top``: shows the activity of a process that has a monitor, updated continuously."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tao.cli.common import DONE, Failed, has_rich, say
from tao.cli.figures import GAP, Frame, Table, Watch

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["run"]

_CLEAR = "\x1b[H\x1b[J"


def run(options: argparse.Namespace) -> int:
    """Show one frame, or a new one every interval, and return the exit status."""
    watch = Watch(options.address, options.sort, options.limit)
    frame = watch.read()
    if options.once:
        _print(frame)
        return DONE
    with _screen() as show:
        while True:
            show(frame)
            time.sleep(options.interval)
            try:
                frame = watch.read()
            except Failed as error:  # the monitor may come back
                frame = frame._replace(note=f"not updated: {error}")


def _print(frame: Frame) -> None:
    if sys.stdout.isatty() and has_rich():
        from rich.console import Console

        console = Console()
        console.print(_drawn(_fitted(frame, console.width)))
    else:
        say("\n".join(_lines(frame)))


@contextmanager
def _screen() -> Iterator[Callable[[Frame], object]]:
    """Yield a function that shows a frame: on a terminal in place of the previous, else below."""
    if not sys.stdout.isatty():
        yield lambda frame: say("\n".join([*_lines(frame), ""]))
    elif has_rich():
        from rich.live import Live

        with Live(screen=True, auto_refresh=False) as live:
            yield lambda frame: live.update(
                _drawn(_fitted(frame, live.console.width)), refresh=True
            )
    else:
        yield _replace


def _replace(frame: Frame) -> None:
    width, height = shutil.get_terminal_size()
    lines = [line[:width] for line in _lines(_fitted(frame, width))][: height - 1]
    say(_CLEAR + "\n".join(lines))


def _fitted(frame: Frame, width: int) -> Frame:
    return frame._replace(tables=[table.fitted(width) for table in frame.tables])


def _lines(frame: Frame) -> list[str]:
    """Format a frame as plain text."""
    lines = [frame.title]
    for table in frame.tables:
        widths = table.widths()
        lines.append("")
        for row in (table.header, *table.rows):
            cells = [
                cell.ljust(width) if index < table.left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(GAP.join(cells).rstrip())
    if frame.note:
        lines += ["", frame.note]
    return lines


def _drawn(frame: Frame) -> Group:
    """Draw a frame with rich, in ``Text`` objects, because rich would interpret markup in a str."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    def drawn(table: Table) -> RichTable:
        result = RichTable(box=None, header_style="reverse", padding=(0, 1), pad_edge=False)
        for index, name in enumerate(table.header):
            justify = "left" if index < table.left else "right"
            result.add_column(Text(name), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row, bad in zip(table.rows, table.bad, strict=True):
            result.add_row(*map(Text, row), style="bold yellow" if bad else "")
        return result

    parts: list[Text | RichTable] = [Text(frame.title, style="bold")]
    for table in frame.tables:
        parts += [Text(""), drawn(table)]
    if frame.note:
        parts += [Text(""), Text(frame.note, style="dim")]
    return Group(*parts)
