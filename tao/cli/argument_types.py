"""Converters for the values of options, for ``type`` of `argparse.ArgumentParser.add_argument`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, Final

from tao.cli.common import parse_seconds, parse_whole, quoted
from tao.connection.options.fields import check_cluster, check_cluster_key

__all__ = [
    "or_off",
    "or_zero",
    "parse_cluster",
    "parse_cluster_key",
    "parse_cpus",
    "parse_days",
    "parse_interval",
    "parse_key_file",
    "parse_size",
]

# No key is longer, in bytes.
_LONGEST_KEY: Final = 4096
# More than any machine has.
_MAX_CPU: Final = 65535


def or_off(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a converter that accepts ``off`` as well, and makes it None."""
    return lambda text: None if text == "off" else kind(text)


def or_zero(text: str) -> float:
    """Convert seconds, 0 included."""
    return 0.0 if text == "0" else parse_seconds(text)


def parse_interval(text: str) -> float:
    """Convert a positive number of seconds up to 1."""
    seconds = parse_seconds(text)
    if seconds > 1:
        raise argparse.ArgumentTypeError(f"expected at most 1 second, not {quoted(text)}")
    return seconds


def parse_size(text: str) -> int:
    """Convert a number of bytes up to 8 MiB."""
    return parse_whole(text, 0, 8 * 1024 * 1024, "expected a size from 0 to 8388608 bytes")


def parse_cluster(text: str) -> str:
    """Check ``local`` or the URL of a Redis."""
    try:
        check_cluster("URL", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def parse_cluster_key(text: str) -> bytes:
    """Convert a key that is text."""
    return _checked_key(os.fsencode(text))


def parse_key_file(path: str) -> bytes:
    """Read a key from a file, all of it, as the program's own ``open(path, "rb").read()`` does."""
    try:
        with open(path, "rb") as file:
            key = file.read(_LONGEST_KEY + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot read {quoted(path)}: {why}") from None
    if len(key) > _LONGEST_KEY:
        raise argparse.ArgumentTypeError(f"{quoted(path)} is too long for a key")
    return _checked_key(key)


def _checked_key(key: bytes) -> bytes:
    try:
        check_cluster_key("cluster_key", key)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return key


def parse_days(text: str) -> float:
    """Convert a positive number of days up to ten years."""
    try:
        days = float(text)
    except ValueError:
        days = 0
    if not 0 < days <= 3650:
        raise argparse.ArgumentTypeError(
            f"expected a number of days up to 3650, not {quoted(text)}"
        )
    return days


def parse_cpus(text: str) -> str | list[int] | None:
    """Convert ``auto``, ``off`` (to None), or CPUs such as ``0,2`` or ``0-3``."""
    if text in ("auto", "off"):
        return text if text == "auto" else None
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        named = range(0)
        if all(re.fullmatch("[0-9]{1,9}", number) for number in (first, last)):
            named = range(int(first), min(int(last), _MAX_CPU) + 1)
        if not named:
            raise argparse.ArgumentTypeError(
                f'expected "auto", "off", or CPUs such as 0,2 or 0-3, not {quoted(text)}'
            )
        cpus += named
    return cpus
