"""The Makefile in a fresh clone: each target installs what it runs and imports.

That is read from the commands and the sources, as installing would take minutes; ``.ci/run`` makes
the quick targets.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, re.MULTILINE)
#: The packages of this repository, and what comes with Python or with every virtual environment.
PRESENT = {"tao", "tests", "examples", *sys.stdlib_module_names, "pip", "setuptools"}
#: What a tool imports of this repository.
READ_BY = {
    "sphinx": ["tao/**/*.py", "examples/guide/conf.py"],
    "pytest": ["tests/**/test_*.py", "tests/conftest.py"],
    "mypy": ["tao/**/*.py", "examples/**/*.py"],
}
#: Distributions whose packages are called otherwise.
PACKAGES = {"protobuf": "google"}

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def commands(target: str) -> str:
    """Return what ``make target`` would run where nothing has been made yet."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    arguments = ["make", "-n", "--no-print-directory", target, "VENV=/nowhere", "PYTHON=python3"]
    done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def installed(text: str) -> set[str]:
    """Return the packages that the commands install, by the names under which they are imported."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    requirements = re.findall(r"pip .*install ([a-z].*)", text)
    for extras in re.findall(r"--editable '\.\[(.*)\]'", text):
        requirements += config["options"]["install_requires"].split("\n")
        waiting = extras.split(",")
        while waiting:
            wanted = config["options.extras_require"][waiting.pop()]
            requirements += wanted.split("\n")
            waiting += re.findall(r"tao-tcp\[(.*)\]", wanted)
    names = {re.split(r"[^\w.-]", each)[0].lower() for each in requirements if each}
    return {PACKAGES.get(name, name).replace("-", "_") for name in names}


def used(text: str) -> set[str]:
    """Return the packages that the commands, and what they import of this repository, need."""
    tools = set(re.findall(r"/nowhere/bin/(?!python)(\w+)", text))
    if "-m sphinx" in text:
        settings = (ROOT / "examples" / "guide" / "conf.py").read_text(encoding="utf-8")
        tools |= set(re.findall(r'^html_theme = "(\w+)"', settings, re.MULTILINE))
    modules = re.findall(r"python3? -m (?!pip )([\w.]+)", text)
    tools |= {module.partition(".")[0] for module in modules}
    patterns = [pattern for tool in tools for pattern in READ_BY.get(tool, [])]
    for module in modules:
        place = module.replace(".", "/")
        patterns += [f"{place}.py", f"{place}/**/*.py"]
    files = (path for pattern in patterns for path in ROOT.glob(pattern))
    return (tools | imported(files)) - PRESENT


def imported(files: Iterable[Path]) -> set[str]:
    """Return the packages that files import, and the files of this repository that they import."""
    found: set[str] = set()
    waiting, seen = list(files), set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for name in imports(path.read_text(encoding="utf-8")):
            found.add(name.partition(".")[0])
            place = ROOT / name.replace(".", "/")
            waiting += [place.with_suffix(".py"), place / "__init__.py"]
    return found


def imports(source: str) -> Iterator[str]:
    """The modules that a source cannot do without: those imported at the top of it."""
    optional = re.findall(r"importorskip\(\s*\"(\w+)", source)
    for statement in ast.parse(source).body:
        names: list[str] = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            names.append(statement.module)
        yield from (name for name in names if name.partition(".")[0] not in optional)


@pytest.mark.parametrize("target", [each for each in TARGETS if each != "test-free-threaded"])
def test_a_target_installs_what_it_needs(target: str) -> None:
    """The tools that it calls, and what these and the modules import."""
    text = commands(target)
    assert text
    assert used(text) <= installed(text)


def test_what_is_needed_is_found() -> None:
    """The reading of commands and sources misses nothing of what is known."""
    needs = {
        target: used(commands(target)) for target in ("docs", "check", "bench", "dist", "pairs")
    }
    assert {"sphinx", "furo", "pytest", "loguru", "cryptography"} <= needs["docs"]
    assert {"ruff", "mypy", "pytest"} <= needs["check"]
    assert {"gevent", "twisted", "uvloop"} <= needs["bench"]
    assert needs["dist"] == {"build"}
    assert {"hypothesis", "pytest"} <= needs["pairs"]


def test_ci_makes_every_target_that_is_quick() -> None:
    """Those left out take minutes; what they import is known from the sources."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    made = {word for line in re.findall(r"\bmake (.*)", script) for word in line.split()}
    slow = {"coverage", "soak", "test-all", "test-free-threaded", "bench-quick"}
    assert set(TARGETS) - slow <= made
