"""The guide is correct: its code runs, and the names in it exist."""

from __future__ import annotations

import ast
import errno
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import loguru
import pytest

import tao
import tao.testing
from tao.connection.options.definitions import ClientSettings, Reconnect, ServerSettings
from tao.testing import FaultProxy, memory_pair
from tao.wire.message import Registry
from tests.documents import Block, blocks_of, run
from tests.ends import text
from tests.programs import LONG, Program
from tests.support import recv_exactly, wait_until

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "examples" / "guide"
PAGES = sorted(path.stem for path in GUIDE.glob("*.rst"))
#: Pages without code to run.
WITHOUT = ["choosing", "index", "limits"]
BLOCKS = {page: blocks_of(GUIDE / f"{page}.rst") for page in PAGES}
NEEDS = [
    (page, package)
    for page in PAGES
    for package in sorted({block.needs for block in BLOCKS[page] if block.needs})
]
OPTIONS = ServerSettings.__dataclass_fields__ | ClientSettings.__dataclass_fields__
#: Runs a program with a socket, the first argument, as descriptor 3.
AS_SYSTEMD_DOES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, sys.argv[2]])
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each page its own default registry, and undo its changes to logging."""
    fresh = Registry()
    for module in ("server.server", "client.client", "testing.recording_client"):
        monkeypatch.setattr(f"tao.{module}.default_registry", fresh)
    yield
    loguru.logger.disable("tao")
    loguru.logger.remove()


def source(page: str) -> str:
    return (GUIDE / f"{page}.rst").read_text(encoding="utf-8")


def names_after(page: str, needs: str | None = None) -> dict[str, Any]:
    """Run the blocks of a page that need no package except ``needs``; return their names."""
    blocks = [each for each in BLOCKS[page] if not each.not_run and each.needs in (None, needs)]
    return run(blocks, f"guide_{page}")


def block(page: str, containing: str) -> Block:
    (found,) = [each for each in BLOCKS[page] if containing in each.code]
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITHOUT])
def test_a_page_runs(page: str) -> None:
    """All code of a page runs in order as one program, and there is some."""
    assert any(each.not_run is None and each.needs is None for each in BLOCKS[page])
    names_after(page)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("page", "package"), NEEDS)
def test_a_page_runs_with(page: str, package: str) -> None:
    """The blocks that need another package run as well, if it is installed."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    names_after(page, package)


def test_all_code_is_known_as_such() -> None:
    """Every Python block is found, and only listed ones are not run."""
    for page in PAGES:
        written = re.findall(r"^ *\.\. code-block:: python", source(page), re.MULTILINE)
        assert len(written) == len(BLOCKS[page]), page
        assert all(each.not_run is None or len(each.not_run) > 10 for each in BLOCKS[page])
        for each in BLOCKS[page]:
            ast.parse(each.code)
            assert max(map(len, each.code.splitlines())) <= 100, page
        if page in WITHOUT:
            assert not BLOCKS[page]


def test_the_index_has_every_page() -> None:
    """The index lists every page with one line."""
    index = source("index")
    assert re.findall(r"^   (\w+)$", index, re.MULTILINE) == re.findall(
        r"^:doc:`(\w+)`\n    \S", index, re.MULTILINE
    )
    assert set(re.findall(r"^:doc:`(\w+)`", index, re.MULTILINE)) == {*PAGES} - {"index"}


def test_the_reference_has_every_public_name() -> None:
    """The reference has all names of tao and tao.testing, and the fixtures."""
    pages = "".join(path.read_text(encoding="utf-8") for path in GUIDE.glob("reference/*.rst"))
    documented = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (?:tao\.)?([\w.]+)", pages, re.MULTILINE))
    assert set(tao.__all__) <= documented
    assert set(tao.testing.__all__) <= documented
    for fixture in ("server", "client", "clock", "no_leaks"):
        assert f"testing.pytest_plugin.tao_{fixture}" in documented


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    """Names of tao, and options written with their value, exist."""
    prose = re.sub(r"(?m)^\.\. code-block::.*\n(?:\n|    .*\n)+", "", source(page))
    prose = prose.split("From Go Tao")[0]  # this part has names of Go as well
    for name in re.findall(r"``tao\.(\w+)", prose):
        assert hasattr(tao, name) or (ROOT / "tao" / name).is_dir(), name
    owners: tuple[type, ...] = (tao.Server, tao.ServerConn, tao.ClientConn, tao.Context)
    owners += (tao.testing.RecordingClient,)
    for name in re.findall(r"``(?:server|conn|client|ctx)\.(\w+)", prose):
        assert any(hasattr(each, name) for each in owners) or name == "context", name


def test_order_is_promised_within_a_connection_only() -> None:
    """The guide promises order only within a connection, and this page explains why."""
    readme = (ROOT / "README.rst").read_text(encoding="utf-8")
    pages = [readme, source("heartbeats_and_reconnecting"), source("handlers_order_threads")]
    for promise in (*pages, tao.ClientConn.__doc__ or "", tao.Connection.write.__doc__ or ""):
        plain = re.sub(r"[*\s]+", " ", promise)
        assert re.search("within a connection|of one connection", plain)
        assert re.search("still (be )?handl", plain)
        assert not re.search(
            r"order[^.]*,? over reconnections too|overtake[^.]*reconnections", plain
        )


def test_defaults_are_right() -> None:
    """Each default that the guide gives for an option, in a table or in brackets, is correct."""
    options = vars(ClientSettings()) | vars(ServerSettings())
    found = 0
    for page in PAGES:
        pattern = r"``(\w+)``,?  +(off|\d+(?: s)?) |``(\w+)`` \((off|\d+(?: s)?)\)"
        for match in re.finditer(pattern, source(page)):
            name, value = [each for each in match.groups() if each]
            if name in OPTIONS:
                default = options[name]
                assert default == (None if value == "off" else float(value.split()[0])), name
                found += 1
    assert found > 10
    assert (Reconnect().initial, Reconnect().maximum, Reconnect().factor) == (0.1, 30, 2)


def test_the_limits_are_right() -> None:
    """Each default on the page of limits is correct."""
    page, options = source("limits"), vars(ClientSettings()) | vars(ServerSettings())
    given = re.findall(r"``(\w+)``,? \((\d+)(?: s)?\)", page)
    given += re.findall(r"\(``(\w+)``, (\d+)\)", page)
    given += re.findall(r"``(\w+)`` \((off)\)", page)
    assert len(given) > 15
    for name, value in given:
        assert options[name] == (None if value == "off" else float(value)), name
    assert tao.TypeLengthValueCodec().max_bytes == 8 * 1024 * 1024


def test_the_names_of_go_are_translated() -> None:
    """Each name in the right column of the table exists, as a name, a method or an option."""
    table = source("moving_over").split("From Go Tao")[1].split("What is different")[0]
    right = " ".join(line[42:] for line in table.splitlines())
    names = re.findall(r"``@?(?:server\.|conn\.|ctx\.)?([A-Za-z_]\w*)", right)
    assert len(names) > 30
    owners = (tao, tao.Server, tao.ClientConn, tao.Context)
    for name in names:
        assert name in OPTIONS or any(hasattr(each, name) for each in owners), name


def test_the_drawings_take_the_colours_of_the_page() -> None:
    """The drawings are inlined, their classes do not affect the page, and their ids are unique."""
    drawings = sorted(GUIDE.glob("diagrams/*.svg"))
    assert len(drawings) == 3
    ids: list[str] = []
    for path in drawings:
        drawing = path.read_text(encoding="utf-8")
        style = drawing.split("<style>")[1].split("</style>")[0]
        assert "var(--color-foreground-primary" in style
        for selector in re.findall(r"^ *([^-@}\s][^{\n]*) \{", style, re.MULTILINE):
            assert selector.startswith(".diagram"), selector
        ids += re.findall(r' id="([^"]+)"', drawing)
        shown = [page for page in PAGES if f":: diagrams/{path.name}" in source(page)]
        assert shown, path.name
    assert len(ids) == len(set(ids))


def test_the_symptoms_are_what_tao_says() -> None:
    """Each text in the tables of reasons and symptoms occurs in tao's source."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tao").glob("**/*.py"))
    code = re.sub(r'"\s+f?"', "", re.sub(r"\{[^{}\n]*\}", "...", code))
    tables = source("debugging").split("Why did it end?")[1]
    texts = re.findall(r"^(?:   \* - .*?)?``([a-z][^`]* [^`]*)``", tables, re.MULTILINE)
    assert len(texts) > 15
    systems = (os.strerror(errno.EMFILE).lower(), os.strerror(errno.EADDRINUSE).lower())
    for each in texts:
        for piece in re.split(r"\.\.\.|: |; |, |is not registered", each):
            said = piece.strip(" ,()")
            assert said in code or said in systems, each


def test_the_json_lines_blame_the_peer() -> None:
    """Every malformed line is BadData, which is not reported as a bug of this side."""
    names = names_after("messages_and_codecs")
    registry = Registry()
    registry.register(4, names["Move"].deserialize)
    for line in (b"x", b"[1]", b"2", b"{}", b'{"number": []}', b'{"number": 4}', b"[" * 60000):
        with pytest.raises(tao.BadData):
            names["JsonLines"]().decoder(registry).feed(line + b"\n", [])


def test_no_result_is_lost_to_a_slow_peer() -> None:
    """Threads of the program wait until the peer reads, so that no result is lost."""
    first = block("embedding", "def work()")
    # Smaller than its job queue, from which all results may arrive at once.
    first = first._replace(code=first.code.replace("workers=8", "workers=8, queue_size=20"))
    names = run([first, block("embedding", "class Urgent")], "guide_embedding")
    tickets: queue.Queue[int] = queue.Queue()
    reads = threading.Event()

    def receive(ctx: Any, conn: Any) -> None:
        assert reads.wait(LONG)
        tickets.put(ctx.message.ticket)

    known = Registry()
    known.register(2, names["Result"].deserialize, receive)
    worker = threading.Thread(target=names["work"], daemon=True)
    with memory_pair(names["server"], capacity=64, registry=known, queue_size=8) as pair:
        for ticket in range(60):
            pair.client.write(names["Urgent"](ticket, 4.0), timeout=LONG)
        wait_until(lambda: names["jobs"].qsize() == 60)
        worker.start()
        wait_until(lambda: pair.conn.send_queue_length == 20)
        reads.set()
        assert [tickets.get(timeout=LONG) for _ in range(60)] == list(range(60))
    names["jobs"].put(None)
    worker.join(LONG)


def test_a_web_process_does_no_job_twice() -> None:
    """Jobs repeated where that is safe, across failing servers, are done at most once."""
    names = names_after("asking")
    done, results, doubtful = Counter[float](), set[float](), set[float]()
    orders = iter(range(400))
    server = tao.Server(registry=Registry())

    @server.handler(names["Job"])
    def do(ctx: Any, conn: Any) -> None:
        done[ctx.message.value] += 1
        ctx.reply(names["Result"](ctx.message.value))

    def order() -> None:
        for value in map(float, orders):
            while value not in results | doubtful:
                _, status = names["ask"](proxy.address, value)
                if status != 503:
                    (results if status == 200 else doubtful).add(value)

    with server, FaultProxy(server.start(("127.0.0.1", 0))) as proxy:
        names["clients"].clear()
        threads = [threading.Thread(target=order, name=f"test-order-{n}") for n in range(8)]
        for thread in threads:
            thread.start()
        for wanted in (50, 100, 150):
            wait_until(lambda wanted=wanted: len(results) >= wanted)
            proxy.refuse()
            proxy.reset()
            proxy.accept()
        for thread in threads:
            thread.join(LONG)
        names["peer"](proxy.address).close()
    assert results | doubtful == set(map(float, range(400)))
    assert all(count == 1 for count in done.values()) and results <= set(done)


def test_the_service_under_systemd(tmp_path: Path) -> None:
    """The service serves on the inherited socket, reports readiness, and shuts down gracefully."""
    program = tmp_path / "gateway.py"
    program.write_text(block("deploying", "def sockets_of_systemd").code, encoding="utf-8")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notes,
    ):
        notes.bind(str(tmp_path / "notify"))
        notes.settimeout(LONG)
        number = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD_DOES, str(number), str(program)],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "LISTEN_FDS": "1",
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "MONITOR_PORT": "0",
            },
            pass_fds=[number],
            stderr=subprocess.PIPE,
        )
        try:
            assert notes.recv(100) == b"READY=1"
            with socket.create_connection(listener.getsockname(), LONG) as sock:
                sock.sendall(text("hello"))
                assert recv_exactly(sock, 13) == text("hello")
                process.send_signal(signal.SIGTERM)
                assert notes.recv(100) == b"STOPPING=1"
                assert sock.recv(100) == b""
            assert process.wait(LONG) == 0
        finally:
            process.kill()
            process.communicate()


def test_the_rooms_of_several_processes(tmp_path: Path) -> None:
    """A group reaches its members in all of them."""
    (tmp_path / "rooms.py").write_text(block("growing", "def enter").code, encoding="utf-8")
    options = ("--port", 0, "--processes", 2)
    with (
        Program("tao", "serve", "rooms:server", *options, cwd=tmp_path) as program,
        ExitStack() as end,
    ):
        port = int(program.prints(r"listens at 127\.0\.0\.1:(\d+) ")[1])
        socks = [
            end.enter_context(socket.create_connection(("127.0.0.1", port), LONG)) for _ in range(8)
        ]

        def hears(sock: socket.socket) -> bool:
            """Whether a member has joined by now, and gets what another one says."""
            socks[0].sendall(text("hello"))
            sock.settimeout(0.1)
            try:
                return recv_exactly(sock, 13) == text("hello")
            except TimeoutError:
                return False

        for sock in socks[1:]:
            wait_until(lambda: hears(sock), LONG)  # noqa: B023
        program.send(signal.SIGTERM)
        assert program.status() == 0


def test_the_program_with_a_signal_handler(tmp_path: Path) -> None:
    """A signal during a broadcast stops the program gracefully, and no message is truncated."""
    program = tmp_path / "program.py"
    program.write_text(block("embedding", "def terminate").code, encoding="utf-8")
    with Program("program", cwd=tmp_path) as running, ExitStack() as here:
        port = int(running.prints(r"127\.0\.0\.1 (\d+)")[1])
        connect = (socket.create_connection(("127.0.0.1", port), LONG) for _ in range(3))
        socks = [here.enter_context(sock) for sock in connect]
        for sock in socks:
            assert recv_exactly(sock, 8) == b"\1" + bytes(7)
        running.send(signal.SIGTERM)
        for sock in socks:
            assert len(b"".join(iter(lambda sock=sock: sock.recv(65536), b""))) % 8 == 0
        assert (running.status(), running.errors) == (0, [])


def test_the_page_on_testing_under_pytest(tmp_path: Path) -> None:
    """The tests on the page pass, including those that use fixtures."""
    page = "\n\n".join(each.code for each in BLOCKS["testing"] if not each.needs)
    (tmp_path / "test_page.py").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{page.count('def test_')} passed" in done.stdout


def test_the_guide_and_the_reference_build(tmp_path: Path) -> None:
    """The guide builds without warnings: every marked name in a docstring exists."""
    pytest.importorskip("sphinx", reason="sphinx is not installed")
    pytest.importorskip("furo", reason="furo is not installed")
    arguments = ["-W", "--keep-going", "--quiet", "--doctree-dir", tmp_path / "trees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *map(str, arguments), str(GUIDE), str(tmp_path / "html")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "html" / "handlers_order_threads.html").read_text(encoding="utf-8")
    assert page.count('<svg xmlns="http://www.w3.org/2000/svg" class="diagram"') == 2


def test_the_pages_of_the_monitor_exist() -> None:
    """All pages of the monitor that the guide names exist."""
    names = set(re.findall(r"``(/[a-z/]*)``", source("deploying").split("Monitoring\n---")[1]))
    assert len(names) > 5
    with tao.monitor_on(0) as monitor:
        for name in names - {"/healthz"}:  # this one reports the servers of earlier tests
            with urllib.request.urlopen(monitor.url + name, timeout=LONG) as page:
                assert page.status == 200, name
        with urllib.request.urlopen(monitor.url + "/metrics", timeout=LONG) as page:
            figures = page.read().decode()
        with urllib.request.urlopen(monitor.url + "/debug/vars", timeout=LONG) as page:
            json.load(page)
    for name in set(re.findall(r"``(tao_\w+)``", source("deploying"))):
        assert f"# TYPE {name} " in figures, name
