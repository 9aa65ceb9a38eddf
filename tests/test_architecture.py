"""The architecture, checked in the source: imports go down, private names stay in their module.

``python tests/test_architecture.py`` lists all violations.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tao"

#: The flat modules that every package may import.
GROUND = {"atomic", "callables", "errors", "safe_text", "version"}
#: The packages that a package may import, besides itself and the flat modules.
BELOW: dict[str, set[str]] = {
    "wire": set(),
    "framing": {"wire"},
    "session": {"wire"},
    "runtime": set(),
    "transport": {"runtime"},
    "connection": {"session", "wire", "runtime", "transport"},
}
BELOW["server"] = BELOW["client"] = {*BELOW["connection"], "connection"}
BELOW["cluster"] = {*BELOW["server"], "server", "client"}
BELOW["monitor"] = {*BELOW["cluster"], "cluster"}
BELOW["testing"] = {*BELOW["monitor"], "monitor"}
BELOW["cli"] = {*BELOW["testing"], "testing", "framing"}

#: The rooms of packages that have some, from the ground up: each imports only those before it.
#: Modules that lie flat in the package, such as the core, may import any, and be imported by any.
ROOMS: dict[str, tuple[str, ...]] = {
    "connection": (
        *("options", "sending", "handling", "reports", "receiving", "shared_reading"),
        *("requests", "sessions"),
    ),
    "server": ("sessions", "membership", "listening"),
    "cluster": ("redis", "hub", "sessions", "processes"),
}
#: How many modules may lie side by side in a folder.
MOST_IN_A_ROOM = 25
#: Packages without I/O, which take bytes and return bytes.
PURE = {"wire", "framing", "session"}
#: Modules for I/O, threads, clocks and logging, which the pure packages must not import.
OUTSIDE = {
    *("asyncio", "multiprocessing", "os", "select", "selectors", "socket", "ssl", "subprocess"),
    *("_thread", "concurrent", "queue", "threading"),
    *("datetime", "sched", "time"),
    *("logging", "loguru", "warnings"),
}
#: Private names that a module may use from another one, with the reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}
#: Methods of named tuples, which are public despite their underscore.
OF_TUPLES = {"_asdict", "_fields", "_field_defaults", "_make", "_replace"}
#: Functions that take the name of an attribute.
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}

#: Imports that go up, with the reason. They are for type checkers only, and form no cycle.
UPWARD = {
    ("tao.wire.message", "tao.runtime.context"): "the type of a handler's first argument",
}

MOST_FLAT = 8
MOST_LINES = 500
MOST_LINES_OF_A_FUNCTION = 50


class Reach(NamedTuple):
    """A use of a private name of another module."""

    module: str
    line: int
    #: The expression before the name, as written in the source.
    of: str
    name: str
    #: The modules that define the name.
    owners: tuple[str, ...]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(tree: ast.AST, known: Iterable[str]) -> Iterator[str]:
    """Yield the full names of imported modules, also in functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the import with its full name"
            origin = node.module or ""
            for alias in node.names:  # either a name of the module, or a submodule of the package
                full = f"{origin}.{alias.name}"
                yield full if full in known else origin


def own_imports(module: str) -> set[str]:
    return {each for each in imports(tree_of(module), MODULES) if each in MODULES} - {module}


def package_of(module: str) -> str:
    """Return the package below ``tao``, or the name of a flat module."""
    return module.split(".")[1] if "." in module else ""


def room_of(module: str) -> str:
    """Return the folder of a package that a module is in, or an empty string."""
    path = MODULES[module]
    parts = module.split(".")
    inside = len(parts) - (path.name != "__init__.py")
    return parts[2] if inside > 2 else ""


def upward() -> Iterator[tuple[str, str]]:
    """Yield the imports of packages that are not below the importing one."""
    for module in MODULES:
        package = package_of(module)
        for other in sorted(own_imports(module)):
            target = package_of(other)
            if package in BELOW:
                allowed = target in BELOW[package] | GROUND | {package}
            elif package in GROUND:
                allowed = target in GROUND
            else:  # __init__, __main__ and api are the public face, which is above everything
                allowed = package != target or not package
            if not allowed:
                yield module, other


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules in a cycle: strongly connected components (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def module_graph() -> dict[str, set[str]]:
    return {module: own_imports(module) for module in MODULES}


def package_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {package: set() for package in BELOW}
    for module in MODULES:
        if package_of(module) in BELOW:
            others = {package_of(other) for other in own_imports(module)}
            graph[package_of(module)] |= (others & graph.keys()) - {package_of(module)}
    return graph


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(tree: ast.AST) -> set[str]:
    """Return the private names that a module defines, including attributes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            found |= set(ast.literal_eval(node.value))
    return {name for name in found if isinstance(name, str) and is_private(name)}


def is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_uses(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield uses of private names on anything but ``self`` or ``cls``: line, expression, name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_own(node.value):
            yield node.lineno, ast.unparse(node.value), node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tao":
            for alias in node.names:
                if is_private(alias.name):
                    yield node.lineno, node.module or "", alias.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            of, name = [*node.args, ast.Constant(None), ast.Constant(None)][:2]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and not is_own(of):
                yield node.lineno, ast.unparse(of), str(name.value)


def reaches() -> Iterator[Reach]:
    """Yield uses of private names that another module of tao defines, and this one does not."""
    made = {module: defined(tree_of(module)) for module in MODULES}
    for module in MODULES:
        for line, of, name in sorted(set(private_uses(tree_of(module)))):
            owners = tuple(other for other in MODULES if name in made[other])
            if owners and name not in made[module] | OF_TUPLES and (module, name) not in EXCEPTIONS:
                yield Reach(module, line, of, name, owners)


def flat() -> list[str]:
    return sorted(path.name for path in PACKAGE.glob("*.py"))


def long_modules() -> dict[str, int]:
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
    }
    return {module: length for module, length in lengths.items() if length > MOST_LINES}


def long_functions() -> dict[str, int]:
    """Return the functions that are too long, not counting their docstrings."""
    found = {}
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if length > MOST_LINES_OF_A_FUNCTION:
                    found[f"{module}.{node.name}, line {node.lineno}"] = length
    return found


def impure(module: str) -> set[str]:
    """Return the modules for I/O, threads, clocks and logging that a module imports."""
    return {each.partition(".")[0] for each in imports(tree_of(module), MODULES)} & OUTSIDE


def test_the_reading_of_imports() -> None:
    """Every form of import is found, also inside functions and for type checkers only."""
    source = """
import tao, tao.wire.codec
from tao.wire import message, Registry
if TYPE_CHECKING:
    from tao.server.server import Server
def late():
    import tao.client
"""
    known = {"tao.wire.message", "tao.wire.codec"}
    assert set(imports(ast.parse(source), known)) == {
        *("tao", "tao.wire.codec", "tao.wire.message", "tao.wire", "tao.server.server"),
        "tao.client",
    }


def test_the_reading_of_private_names() -> None:
    """A private name of another object is found; one of ``self`` is not."""
    source = """
from tao.wire.codec import _check
self._own + cls._too + other._theirs + self.part._deep + getattr(other, "_named") + other.__dict__
"""
    names = {name for _, _, name in private_uses(ast.parse(source))}
    assert names == {"_check", "_theirs", "_deep", "_named"}


def test_the_finding_of_cycles() -> None:
    """Each group of modules that import each other is found once."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "e"}, "e": {"d"}, "f": set()}
    assert cycles(graph) == [["b", "c"], ["d", "e"]]


def test_every_package_has_its_place() -> None:
    """Every package is listed in the table above, so a new package needs a decision."""
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(BELOW)


def test_every_package_says_what_it_is_for() -> None:
    """The ``__init__`` of every package has a docstring."""
    for module, path in MODULES.items():
        assert path.name != "__init__.py" or ast.get_docstring(tree_of(module)), module


def test_every_package_names_its_modules() -> None:
    """The docstring of a package names each of its modules, so that a reader finds the place."""
    for package, path in MODULES.items():
        if path.name == "__init__.py" and package != "tao":
            words = ast.get_docstring(tree_of(package)) or ""
            files = {each.name for each in path.parent.glob("*.py")} - {path.name}
            assert not {each for each in files if f"``{each}``" not in words}, package


def test_imports_go_down() -> None:
    """No package imports one that is not below it, except for the listed imports."""
    assert set(upward()) == set(UPWARD)


def test_there_is_no_cycle_between_packages() -> None:
    """No packages import each other in a cycle."""
    assert not cycles(package_graph())


def test_rooms_import_downwards() -> None:
    """Each room of a package is listed, and imports only those below it."""
    found: dict[str, set[str]] = {}
    for module in filter(room_of, MODULES):
        package, room = package_of(module), room_of(module)
        found.setdefault(package, set()).add(room)
        for other in own_imports(module):
            if package_of(other) == package and room_of(other):
                order = ROOMS[package]
                assert order.index(room_of(other)) <= order.index(room), (module, other)
    assert found == {package: set(rooms) for package, rooms in ROOMS.items()}


def test_no_room_is_a_corridor() -> None:
    """Only so many modules lie side by side in a folder, as a reader can survey."""
    folders = {path.parent for path in MODULES.values()}
    counts = {folder: len(list(folder.glob("*.py"))) - 1 for folder in folders}
    assert not {folder: count for folder, count in counts.items() if count > MOST_IN_A_ROOM}


def test_there_is_no_cycle_between_modules() -> None:
    """No modules import each other in a cycle, including imports for type checkers."""
    assert not cycles(module_graph())


def test_private_names_stay_in_their_module() -> None:
    """No module uses a private name of another one."""
    assert not list(reaches())


def test_the_exceptions_are_few_and_needed() -> None:
    """Each exception is still needed, and there are only a few."""
    used = {(m, name) for m in MODULES for _, _, name in private_uses(tree_of(m))}
    assert set(EXCEPTIONS) <= used
    assert len(EXCEPTIONS) <= 5


@pytest.mark.parametrize("module", [each for each in MODULES if package_of(each) in PURE])
def test_the_wire_has_no_io(module: str) -> None:
    """``wire`` imports no module for I/O, threads, clocks or logging."""
    assert not impure(module)


def test_few_modules_lie_flat() -> None:
    """The flat modules are the public face, and modules that every package may import."""
    assert len(flat()) <= MOST_FLAT, flat()


def test_modules_are_short() -> None:
    """No module is longer than the limit."""
    assert not long_modules()


def test_functions_are_short() -> None:
    """No function is longer than the limit."""
    assert not long_functions()


def report() -> Iterator[str]:
    """Yield all violations as text."""
    up, rings, found = list(upward()), cycles(module_graph()), list(reaches())
    yield f"imports that do not go down: {len(up)}"
    yield from (f"  {module} -> {other}" for module, other in up)
    yield f"cycles between packages: {cycles(package_graph())}"
    yield f"cycles between modules: {len(rings)}"
    yield from (f"  {', '.join(group)}" for group in rings)
    yield f"uses of another module's private names: {len(found)}"
    for each in found:
        makers = ", ".join(each.owners)
        yield f"  {each.module}:{each.line}: {each.of}.{each.name} (made in {makers})"
    unclean = [module for module in MODULES if package_of(module) in PURE and impure(module)]
    yield f"modules of {', '.join(sorted(PURE))} with I/O: {unclean}"
    yield f"flat modules: {len(flat())}, {', '.join(flat())}"
    yield f"long modules: {long_modules()}"
    yield f"long functions: {long_functions()}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in report())
