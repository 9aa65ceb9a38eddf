"""The Makefile in a fresh clone: each target installs the packages that it runs and imports.

The test reads the commands and sources, because installing would take minutes; ``.ci/run`` runs
the quick targets.
"""

from __future__ import annotations

import ast
import configparser
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, re.MULTILINE)
#: The packages of this repository, and those that come with Python or a virtual environment.
PRESENT = {"tao", "tests", "examples", *sys.stdlib_module_names, "pip", "setuptools"}
#: The modules of this repository that a tool imports.
READ_BY = {
    "sphinx": ["tao/**/*.py", "examples/guide/conf.py"],
    "pytest": ["tests/**/test_*.py", "tests/conftest.py"],
    "mypy": ["tao/**/*.py", "examples/**/*.py"],
}
#: Distributions with packages of another name.
PACKAGES = {
    "pyro5": "Pyro5",
    "grpcio": "grpc",
    "protobuf": "google",
    "python-socketio": "socketio",
}

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def commands(target: str) -> str:
    """Return the commands that ``make target`` runs in a fresh clone."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    arguments = ["make", "-n", "--no-print-directory", target, "VENV=/nowhere", "PYTHON=python3"]
    done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def installed(text: str) -> set[str]:
    """Return the packages that the commands install, by their import names."""
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
    """Return the packages that the commands and the modules imported by them need."""
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
    """Return the packages and the files of this repository that files import."""
    found: set[str] = set()
    waiting, seen = list(files), set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for name in imports(path):
            found.add(name.partition(".")[0])
            place = ROOT / name.replace(".", "/")
            waiting += [place.with_suffix(".py"), place / "__init__.py"]
    return found


@functools.cache
def imports(path: Path) -> list[str]:
    """Return the modules that a source imports at the top, and therefore always needs."""
    source = path.read_text(encoding="utf-8")
    found: list[str] = []
    optional = re.findall(r"importorskip\(\s*\"(\w+)", source)
    for statement in ast.parse(source).body:
        names: list[str] = []
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            names.append(statement.module)
        found += [name for name in names if name.partition(".")[0] not in optional]
    return found


@pytest.mark.parametrize("target", [each for each in TARGETS if each != "test-free-threaded"])
def test_a_target_installs_what_it_needs(target: str) -> None:
    """A target installs its tools, and the packages that they and the modules import."""
    text = commands(target)
    assert text
    assert used(text) <= installed(text)


def test_what_is_needed_is_found() -> None:
    """The analysis finds all known requirements."""
    needs = {
        target: used(commands(target)) for target in ("docs", "check", "bench", "dist", "pairs")
    }
    assert {"sphinx", "furo", "pytest", "loguru", "cryptography"} <= needs["docs"]
    assert {"ruff", "mypy", "pytest"} <= needs["check"]
    assert {"gevent", "twisted", "uvloop"} <= needs["bench"]
    assert needs["dist"] == {"build"}
    assert {"hypothesis", "pytest"} <= needs["pairs"]


def test_ci_makes_every_target_that_is_quick() -> None:
    """CI runs every quick target; the others take minutes."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    made = {word for line in re.findall(r"\bmake (.*)", script) for word in line.split()}
    slow = {"coverage", "soak", "test-all", "test-free-threaded", "bench-quick"}
    assert set(TARGETS) - slow <= made
