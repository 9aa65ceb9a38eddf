"""``tao frame``: prints an annotated dump of one frame."""

from __future__ import annotations

import argparse

from tao.cli.codecs import find_codec
from tao.cli.common import DONE, FAILED, WrongCall, quoted, say
from tao.safe_text import printable

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print the dump, and return the exit status: failed if something is wrong with the frame."""
    codec = find_codec(options.codec)
    explain = getattr(codec, "explain", None)
    if explain is None:
        raise WrongCall(f"{options.codec} cannot explain its frames")
    text = "".join(options.hex)
    try:
        data = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raise WrongCall(f"HEX wants pairs of hexadecimal digits, not {quoted(text)}") from None
    dump = explain(data)
    for line in dump.splitlines():
        say(printable(line))
    return FAILED if "! " in dump else DONE
