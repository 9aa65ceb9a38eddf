"""The public API is typed: type checkers and ``help()`` see every option."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tao
import tao.testing
from tao.connection.options.definitions import ClientSettings, ServerSettings
from tao.connection.options.help import options_of, options_table
from tests.typed_options import PACKAGE, PLACES, generated

ROOT = Path(__file__).parent.parent
CASES = "tests/typing_cases.py"
TAKERS: list[tuple[Any, type[Any]]] = [
    (tao.Server, ServerSettings),
    (tao.ClientConn, ClientSettings),
    (tao.connect, ClientSettings),
    (tao.testing.serving, ServerSettings),
    (tao.testing.RecordingClient, ClientSettings),
    (tao.testing.MemoryClient, ClientSettings),
    (tao.testing.memory_pair, ClientSettings),
]


def mypy(*arguments: str) -> str:
    """Run mypy with the project's settings, and return its output."""
    # `make check` reports errors in tao itself.
    flags = ["--strict", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *flags, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_type_checker_accepts_right_and_refuses_wrong_uses() -> None:
    """Each marked error in the cases is found, and no other."""
    assert mypy(CASES).startswith("Success")


def test_the_wrong_uses_are_really_looked_at(tmp_path: Path) -> None:
    """A wrong use that mypy accepts fails the test above, because its mark is unused."""
    source = (ROOT / CASES).read_text(encoding="utf-8")
    (tmp_path / "cases.py").write_text(source.replace("queue_siz=5", "queue_size=5"))
    assert 'Unused "type: ignore" comment' in mypy(str(tmp_path / "cases.py"))


@pytest.mark.parametrize("name", PLACES)
def test_the_types_are_those_of_the_definition(name: str) -> None:
    """``python -m tests.typed_options`` updates the types after a change of the definition."""
    assert (PACKAGE / name).read_text(encoding="utf-8") == generated(name)


@pytest.mark.parametrize(("taker", "settings"), TAKERS)
def test_each_option_is_a_parameter(taker: Any, settings: type[Any]) -> None:
    """Introspection finds every option by name, with its default."""
    parameters = inspect.signature(taker).parameters
    for option in options_of(settings):
        parameter = parameters[option.name]
        assert parameter.kind is parameter.KEYWORD_ONLY
    assert not [each for each in parameters.values() if each.kind is each.VAR_KEYWORD]
    assert parameters["queue_size"].default == 256
    assert repr(parameters["codec"].default) in ("TypeLengthValueCodec()", "the server's")


@pytest.mark.parametrize(("taker", "settings"), TAKERS[:2])
def test_help_shows_type_unit_default_and_meaning(taker: Any, settings: type[Any]) -> None:
    """``help()`` describes every option in the words of its definition."""
    shown = " ".join(pydoc.plain(pydoc.render_doc(taker)).replace("|", " ").split())
    assert "heartbeat: float None, seconds; default 30.0. Send a heartbeat when nothing" in shown
    assert "slow_consumer: Literal['raise', 'drop_newest', " in shown
    for option in options_of(settings):
        assert " ".join(option.meaning.replace("|", " ").split()) in shown, option.name


@pytest.mark.parametrize("taker", [tao.Connection, tao.ClientConn])
def test_help_shows_what_is_for_users(taker: type[Any]) -> None:
    """``help()`` of a connection has its attributes, and nothing that is for tao alone."""
    shown = pydoc.plain(pydoc.render_doc(taker))
    names = set(re.findall(r"(?m)^ \|  (\w+)", shown))
    assert {"remote_address", "name", "context", "net_id", "state", "write"} <= names
    assert ("reconnects" in names) == (taker is tao.ClientConn)
    assert names.isdisjoint({"report", "undefined", "start_handler", "counts", "core"})


def test_the_types_have_the_options_of_the_settings() -> None:
    """The types are also correct at run time, for code that inspects them."""
    for types, settings in (
        (tao.ServerOptions, ServerSettings),
        (tao.ClientOptions, ClientSettings),
    ):
        names = {each.name for each in fields(settings)}
        assert types.__optional_keys__ == names and not types.__required_keys__
        given: Any = types(queue_size=5)  # type: ignore[operator]
        assert given == {"queue_size": 5}


def test_the_table_has_every_option_once() -> None:
    """The table in the guide has every option once."""
    table = options_table()
    for settings in (ServerSettings, ClientSettings):
        for option in options_of(settings):
            assert table.count(f"* - ``{option.name}``\n") == 1, option.name
            assert option.meaning and option.meaning[-1] in ".!", option.name
    assert "``int``, messages; default ``256``" in table
