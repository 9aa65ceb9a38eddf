"""The modules form storeys, and imports go down only: read from the source, not from running it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tao"

#: From the ground up. A module may import from below, and from its own storey if there is no cycle.
STOREYS = [
    {"errors", "safe_text", "atomic", "version", "lifecycle", "forks"},
    {"callables", "reloading", "message", "codec", "codec_checks", "proxy_protocol"},
    {
        *(
            "log",
            "threads",
            "timing",
            "context",
            "workers",
            "jobs",
            "late_threads",
            "thread_start",
            "greenlets",
            "turns",
            "agenda",
            "metrics",
        ),
        *("histogram", "handling", "failures", "wakeup", "deadline", "scope"),
        *("limits", "signals", "overdue", "addresses", "admission", "unix_sockets"),
        *("transport", "backlog", "variables", "send_queue", "inbox", "watch"),
    },
    {
        *(
            "tls",
            "connection",
            "options",
            "option_fields",
            "option_help",
            "option_types",
            "listener",
            "intake",
            "credentials",
            "core",
            "dispatch",
            "timers",
            "application",
        ),
        *("reader", "reporter", "keepalive", "ending", "outcomes", "first_bytes"),
        *("transport_access", "stopping", "holdings"),
        *("dialling", "errands", "happy_eyeballs", "places"),
    },
    {"server", "reception", "serverconn", "client", "reconnect"},
    {
        *("monitor", "monitor_http", "monitor_pages", "monitor_metrics", "monitor_live"),
        *("monitor_connections", "monitor_stacks", "monitor_answers", "monitor_health"),
        *("faults", "clock", "memory", "recording", "testing", "pytest_plugin"),
    },
    {
        *("cli_common", "cli_arguments", "cli_completion", "cli_values", "cli_load", "cli_figures"),
        *("cli_serve", "cli_reload", "cli_connect", "cli_bench", "cli_top", "cli_dev_cert"),
        *("cli", "cli_dialling", "__main__"),
    },
    {"api"},
    {"__init__"},
]
STOREY = {module: number for number, storey in enumerate(STOREYS) for module in storey}

#: What a storey without I/O has no use for: the world outside, threads, clocks and the log.
OUTSIDE = {
    *("asyncio", "multiprocessing", "os", "select", "selectors", "socket", "ssl", "subprocess"),
    *("_thread", "concurrent", "queue", "threading"),
    *("datetime", "sched", "time"),
    *("logging", "loguru", "warnings"),
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports below ``node``, also inside functions, but not those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for alternative in child.orelse:
                yield from statements(ast.Module([alternative], []))
        else:
            yield from statements(child)


def imports(source: str) -> Iterator[str]:
    """The full names of the modules that ``source``, a module of tao's, imports."""
    for statement in statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
            continue
        origin = ".".join(filter(None, ["tao" * bool(statement.level), statement.module]))
        if origin == "tao":  # its modules, or what __init__ gathers from them
            yield from (f"tao.{alias.name}" for alias in statement.names)
        else:
            yield origin


def own_imports(source: str) -> set[str]:
    """The modules of tao among them, by their bare names."""
    found = set()
    for name in imports(source):
        package, _, module = name.partition(".")
        if package == "tao":
            found.add(module if module in STOREY else "__init__")
    return found


def source_of(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def test_the_reading_of_imports() -> None:
    """Every way of writing one is understood, and only what is for type checkers is left out."""
    source = """
import tao
import tao.codec, socket as s
from tao import errors, Server
from tao.timing import TimingWheel
from . import log
from .context import Context
if TYPE_CHECKING:
    from tao.server import Server
else:
    import tao.send_queue
def late():
    if typing.TYPE_CHECKING:
        import tao.client
    try:
        from tao.tls import x
    except ImportError:
        pass
"""
    assert own_imports(source) == {
        *("__init__", "codec", "errors", "timing", "log", "context", "send_queue", "tls")
    }
    assert "socket" in set(imports(source))


def test_every_module_has_its_storey() -> None:
    """A new module is put into the table above, where its place is thought about."""
    assert not set(MODULES) - set(STOREY)
    assert len(STOREY) == sum(map(len, STOREYS))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """No module knows one of a storey above its own."""
    above = {other for other in own_imports(source_of(module)) if STOREY[other] > STOREY[module]}
    assert not above, f"{module} imports upward: {above}"


def test_there_is_no_cycle() -> None:
    """The modules can be read, and imported, one after another."""
    graph = {module: own_imports(source_of(module)) for module in MODULES}
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(MODULES)


@pytest.mark.parametrize("module", sorted(STOREYS[1]))
def test_the_wire_has_no_io(module: str) -> None:
    """Messages and framing are bytes in and bytes out: no socket, thread, clock or log."""
    used = {name.partition(".")[0] for name in imports(source_of(module))}
    assert not used & OUTSIDE
