"""``tao --print-completion``: the scripts in the shells that are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tao.cli.main import main
from tests.programs import LONG

BASH = """
source tao.bash
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
_tao
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """Change to a directory with the script for each shell."""
    monkeypatch.chdir(tmp_path)
    for shell in ("bash", "zsh", "fish"):
        assert main(["--print-completion", shell]) == 0
        (tmp_path / f"tao.{shell}").write_text(capsys.readouterr().out, encoding="utf-8")
    return tmp_path


def run(*arguments: str) -> list[str]:
    if shutil.which(arguments[0]) is None:
        pytest.skip(f"there is no {arguments[0]}")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["tao", "se"], ["serve"]),
        (["tao", "--v"], ["--version"]),
        (["tao", "--print-completion", ""], ["bash", "zsh", "fish"]),
        (["tao", "serve", "--log-"], ["--log-level"]),
        (["tao", "serve", "x", "--dispatch", ""], ["auto", "pool", "inline"]),
        (["tao", "serve", "--tls-key", "tao.b"], ["tao.bash"]),
        (["tao", "serve", "--workers", ""], []),
        (["tao", "connect", ":1", "--c"], ["--codec", "--ca", "--cert"]),
        (["tao", "nonsense", "--"], []),
    ],
)
def test_bash(typed: list[str], offered: list[str]) -> None:
    """The script offers commands, options, choices and files where they are valid."""
    assert run("bash", "-c", BASH, *typed[:0], "bash", *typed) == offered


@pytest.mark.usefixtures("script")
def test_fish() -> None:
    """The shell accepts the script, and offers the options of a command."""
    command = "source tao.fish; complete -C 'tao bench --w'"
    assert run("fish", "--no-config", "-c", command)[0] == "--window"


@pytest.mark.usefixtures("script")
def test_zsh() -> None:
    """The shell can parse the script."""
    assert run("zsh", "-f", "-n", "tao.zsh") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_all_options_are_there(script: Path, shell: str) -> None:
    """Each command and each option is named, with its help if the shell shows that."""
    text = (script / f"tao.{shell}").read_text(encoding="utf-8")
    for word in ("serve", "dev-cert", "reload", "max-connections-per-host", "server-name"):
        assert word in text
    assert ("sends bytes" in text or "bytes of a value" in text) == (shell != "bash")
