"""The command line: servers started as users would start them, and every kind of wrong call."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import struct
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loguru import logger

import tao
from tao.cli.main import main
from tao.runtime.threads import Doorbell
from tests.programs import LONG, Program
from tests.support import recv_exactly, wait_until

Run = Callable[..., int]

SERVERS = """
import threading
import tao

class Text:
    message_number = 1
    def __init__(self, data):
        self.data = data
    def serialize(self):
        return self.data
    @classmethod
    def deserialize(cls, data):
        return cls(data)

registry = tao.Registry()

@registry.handler(Text)
def echo(ctx, conn):
    if ctx.message.data == b"never":
        conn.write(ctx.message)
        threading.Event().wait()
    if ctx.message.data == b"raise":
        raise LookupError("not in the echo")
    conn.write(ctx.message)

server = tao.Server(registry=registry, drain_timeout=0.5)
number = 5

class Box:
    inside = tao.Server(registry=registry)

def make():
    return tao.Server(registry=registry)

def make_none():
    return None

def make_trouble():
    raise LookupError("no such luck")

class Lazy:
    @property
    def server(self):
        raise LookupError("not yet")

class Unprintable(Exception):
    def __str__(self):
        raise self

def make_unprintable():
    raise Unprintable

class Proxy:
    @property
    def __class__(self):
        raise RuntimeError("working outside of a request")

lazy, request = Lazy(), Proxy()

def stopped():
    made = tao.Server()
    made.stop()
    return made
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules; they are removed from ``sys.modules`` afterwards."""
    files = {
        "fine.py": SERVERS,
        "plain.py": "",
        "raises.py": "1 / 0",
        "exits.py": "import sys; sys.exit('enough')",
        "garbled.py": "def",
        "lacks.py": "import no_such_module_at_all",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)
    # The command has configured logging, which is meant for a process of its own.
    logger.remove()
    logger.disable("tao")


@pytest.fixture
def certificate(modules: Path) -> Path:
    """The files of a certificate, and a file that is not one, in the current directory."""
    tao.self_signed_certificate().write(modules / "cert.pem", modules / "key.pem")
    tao.self_signed_certificate().write(modules / "other.pem", modules / "other_key.pem")
    return modules / "cert.pem"


def complaint(capsys: pytest.CaptureFixture[str], arguments: str) -> str:
    """Return the error of a call that must fail: one line on stderr, nothing else."""
    assert main(arguments.split()) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("tao: ") and errors.count("\n") == 1
    return errors


# -- wrong calls


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nonsense", "nonsense"),
        ("serve", "MODULE:SERVER"),
        ("serve fine:server --nonsense", "--nonsense"),
        ("serve :server", "has no module name"),
        ("serve nowhere", "there is no module nowhere"),
        ("serve nowhere.at.all:server", "there is no module nowhere"),
        ("serve fine.py", "; write the module's name, fine, not its file"),
        ("serve below/fine.py:server", "; write the module's name, below.fine, not its file"),
        ("serve .fine", "TypeError"),
        ("serve fine:nothing", "module fine has no nothing; its servers: server"),
        ("serve fine:Box.nothing", "module fine has no Box.nothing"),
        ("serve plain", "module plain has no server; it defines no tao.Server"),
        (
            "serve fine:number",
            "fine:number is of type int, not tao.Server; its servers: server",
        ),
        ("serve fine:make_none", "fine:make_none() is of type NoneType, not tao.Server"),
        ("serve fine:make_trouble", "fine:make_trouble() failed: LookupError: no such luck"),
        ("serve fine:lazy.server", "fine:lazy.server failed: LookupError: not yet"),
        ("serve fine:make_unprintable", "failed: Unprintable: <unprintable Unprintable: "),
        ("serve fine:request", "fine:request is of type Proxy, not tao.Server"),
        ("serve fine:stopped", "cannot be started again"),
        ("serve raises", "raises cannot be imported: ZeroDivisionError: division by zero"),
        ("serve exits", "exits cannot be imported: SystemExit: enough"),
        ("serve garbled", "garbled cannot be imported: SyntaxError"),
        ("serve lacks", "lacks cannot be imported: ModuleNotFoundError"),
        ("serve fine --work 3", "--work"),
        ("serve fine --port many", "expected a port from 0 to 65535, not 'many'"),
        ("serve fine --port 65536", "expected a port from 0 to 65535, not '65536'"),
        ("serve fine --port -1", "expected a port from 0 to 65535, not '-1'"),
        ("serve fine --monitor ²", "expected a port from 0 to 65535, not '²'"),
        ("serve fine --host 192.0.2.1", "cannot listen at 192.0.2.1:12345"),
        ("serve fine --log-level loud", "loud"),
        ("serve fine --tls-key key.pem", "--tls-key needs --tls-cert"),
        ("serve fine --tls-client-ca ca.pem", "--tls-client-ca needs --tls-cert"),
        ("serve fine --tls-cert nowhere.pem", "nowhere.pem: no such file or directory"),
        ("serve fine --tls-cert fine.py", "fine.py: holds no readable PEM certificate"),
        ("serve fine --tls-cert cert.pem", "cert.pem: holds no readable PEM private key"),
        ("serve fine --tls-cert cert.pem --tls-key other_key.pem", "is not the key of"),
        ("serve fine --tls-cert cert.pem --tls-key nowhere.pem", "nowhere.pem: no such file"),
        (
            "serve fine --tls-cert cert.pem --tls-key key.pem --tls-client-ca plain.py",
            "plain.py: holds no readable PEM certificate",
        ),
        ("connect", "HOST:PORT"),
        ("connect nowhere", "the port is missing, as in nowhere:12345"),
        ("connect nowhere:", "expected a port from 0 to 65535, not ''"),
        ("connect ::1:80", "write an IPv6 address and a port as [::1]:80"),
        ("connect :0", "cannot connect to port 0"),
        ("connect :1 --ca ca.pem", "--ca needs --tls"),
        ("connect :1 --server-name x", "--server-name needs --tls"),
        ("connect :1 --tls --key key.pem", "--key needs --cert"),
        ("connect :1 --tls --ca nowhere.pem", "nowhere.pem: no such file or directory"),
        ("connect :1 --tls --ca cert.pem --insecure", "--ca and --insecure exclude each other"),
        ("connect :1 --messages nowhere", "there is no module nowhere"),
        ("connect :1 --messages plain", "module plain has no messages"),
        ("connect :1 --messages raises", "raises cannot be imported: ZeroDivisionError"),
        ("connect :1 --wait long", "expected a positive number of seconds, not 'long'"),
        ("bench :1 --connections 0", "expected a positive whole number, not '0'"),
        ("bench :1 --size 8388609", "expected a size from 0 to 8388608 bytes"),
        ("bench :1 --size 8388608 --window 100", "must not be more than 64 MiB"),
        ("bench :1 --number 2147483648", "expected a message number from"),
        ("bench :1 --duration inf", "expected a positive number of seconds, not 'inf'"),
        ("top /run/socket", "a monitor's address is HOST:PORT, not a path"),
        ("top :1 --sort beauty", "beauty"),
        ("dev-cert --days 0", "expected a number of days up to 3650, not '0'"),
        ("dev-cert --days many", "expected a number of days up to 3650, not 'many'"),
        ("dev-cert --name a..b", "not a hostname or an IP address: 'a..b'"),
        ("--print-completion csh", "csh"),
    ],
)
@pytest.mark.usefixtures("certificate")
def test_a_wrong_call(capsys: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    """The call prints one clear line on stderr, and its status is 2."""
    assert words in complaint(capsys, arguments)


@pytest.mark.parametrize("option", ["--port", "--monitor"])
@pytest.mark.usefixtures("modules")
def test_a_port_in_use(capsys: pytest.CaptureFixture[str], option: str) -> None:
    """The line names the address; a monitor that was already started is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        others = {"--port": 0, "--monitor": 0, option: port}
        arguments = " ".join(f"{name} {value}" for name, value in others.items())
        line = complaint(capsys, f"serve fine {arguments}")
    assert line == f"tao: cannot listen at 127.0.0.1:{port}: address already in use\n"


@pytest.mark.usefixtures("modules")
def test_debugging_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--log-level debug``, the traceback of a module that raises is printed."""
    assert main(["serve", "raises", "--log-level", "debug"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors and 'raises.py", line 1' in errors
    assert errors.splitlines()[-1] == "tao: module raises cannot be imported"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_explaining(capsys: pytest.CaptureFixture[str], option: str) -> None:
    """Help and version are printed on stdout."""
    with pytest.raises(SystemExit) as ending:
        main([option])
    assert ending.value.code == 0
    output, errors = capsys.readouterr()
    assert ("serve" in output or tao.__version__ in output) and errors == ""


@pytest.mark.parametrize("command", ["serve", "connect", "bench", "top", "frame", "dev-cert"])
def test_the_help_of_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """The help has examples, explains the exit status, and fits on a terminal."""
    with pytest.raises(SystemExit) as ending:
        main([command, "--help"])
    assert ending.value.code == 0
    output = capsys.readouterr().out
    assert f"  tao {command}" in output and "exit status:\n  0  success" in output
    assert max(map(len, output.splitlines())) <= 90


def test_serving_imports_nothing_new(modules: Path) -> None:
    """Serving does not import modules that only other commands need."""
    names = ("rich", "readline", "tao.cli.connect", "tao.cli.bench", "tao.cli.top")
    source = f"import sys\nprint('loaded', [name for name in {names} if name in sys.modules])\n"
    (modules / "spy.py").write_text(f"{source}from fine import server\n", encoding="utf-8")
    with Program("tao", "serve", "spy", "--port", 0, cwd=modules) as program:
        program.prints(r"loaded \[\]")
        program.prints("press Ctrl-C to stop")
        program.send(signal.SIGINT)
        assert program.status() == 0


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command, the help is printed."""
    assert main([]) == 0
    assert "serve" in capsys.readouterr().out


# -- serving


def interrupt_when_it_serves(number: signal.Signals = signal.SIGINT) -> threading.Thread:
    """Send this process a signal as soon as it handles that signal."""
    before = signal.getsignal(number)

    def send() -> None:
        wait_until(lambda: signal.getsignal(number) is not before)
        signal.raise_signal(number)

    thread = threading.Thread(target=send, name="test-signal")
    thread.start()
    return thread


@pytest.mark.parametrize("target", ["fine", "fine:server", "fine:Box.inside", "fine:make"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("modules")
def test_targets(capsys: pytest.CaptureFixture[str], target: str, number: signal.Signals) -> None:
    """A target is a server, an attribute or a factory; a signal shuts it down gracefully."""
    thread = interrupt_when_it_serves(number)
    assert main(["serve", target, "--port", "0"]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert f": {target} listens at 127.0.0.1:" in lines[0] and lines[0].endswith("(no TLS)")
    assert lines[1:] == [
        "tao: 20 workers, 1000 connections at most",
        "tao: press Ctrl-C to stop",
        "tao: stopping",
        "tao: stopped",
    ]


@pytest.mark.usefixtures("modules")
def test_a_signal_at_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal also counts if it arrives between the last check and the wait."""

    class Late(Doorbell):
        def wait(self) -> None:
            signal.raise_signal(signal.SIGINT)
            super().wait()

    monkeypatch.setattr("tao.server.core.Doorbell", Late)
    assert main(["serve", "fine", "--port", "0"]) == 0


@pytest.mark.usefixtures("modules")
def test_a_server_that_stops_by_itself() -> None:
    """The command ends when the server stops by itself."""
    path = Path("ends.py")
    path.write_text(
        "import tao\nserver = tao.Server(on_connect=lambda conn: server.stop())\n", encoding="utf-8"
    )
    with Program("tao", "serve", "ends", "--port", 0, cwd=Path.cwd()) as program:
        socket.create_connection(address_of(program), LONG).close()
        assert program.status() == 0
        assert program.output[-1] == "tao: stopped"


def address_of(program: Program) -> tuple[str, int]:
    return "127.0.0.1", int(program.prints(r"listens at 127\.0\.0\.1:(\d+) \(")[1])


def frame(data: bytes) -> bytes:
    return struct.pack("<iI", 1, len(data)) + data


def echoes(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(frame(data))
    return recv_exactly(sock, len(frame(data))) == frame(data)


def test_serving_for_real(modules: Path) -> None:
    """A child process serves clients and the monitor until Ctrl-C."""
    with Program("tao", "serve", "fine", "--port", 0, "--monitor", 0, cwd=modules) as program:
        with socket.create_connection(address_of(program), LONG) as sock:
            url = program.prints(r"figures at (http://[^/]+)/debug/vars")[1]
            program.prints("press Ctrl-C to stop")
            assert echoes(sock, b"hello")
            with urllib.request.urlopen(f"{url}/debug/vars", timeout=LONG) as page:
                assert json.load(page)["TotalConn"] == 1
            program.send(signal.SIGINT)
            assert sock.recv(1) == b""
        assert program.status() == 0
    assert program.output[-2:] == ["tao: stopping", "tao: stopped"]
    assert program.errors == []


def test_errors_of_handlers_are_logged(modules: Path) -> None:
    """By default, exceptions of handlers are logged on stderr with their traceback."""
    with Program("tao", "serve", "fine", "--port", 0, cwd=modules) as program:
        with socket.create_connection(address_of(program), LONG) as sock:
            sock.sendall(frame(b"raise"))
            assert echoes(sock, b"still there")
        program.send(signal.SIGTERM)
        assert program.status() == 0
    assert any("LookupError: not in the echo" in line for line in program.errors)


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(certificate: Path, modules: Path, mutual: bool) -> None:
    """The server presents the given certificate, and refuses clients without one if it must."""
    arguments: list[object] = ["--tls-cert", certificate, "--tls-key", modules / "key.pem"]
    if mutual:
        arguments += ["--tls-client-ca", modules / "other.pem"]
    context = tao.load_client_tls_config(ca=certificate)
    with Program("tao", "serve", "fine", "--port", 0, *arguments, cwd=modules) as program:
        address = address_of(program)
        program.prints(r"\(TLS\)$")
        with socket.create_connection(address, LONG) as sock:
            try:
                with context.wrap_socket(sock, server_hostname="localhost") as secure:
                    served = echoes(secure, b"hello")
            except (ssl.SSLError, ConnectionError):
                served = False
        assert served is not mutual
        program.send(signal.SIGINT)
        assert program.status() == 0


def test_a_handler_that_never_returns(modules: Path) -> None:
    """The connection is aborted and named after ``drain_timeout``; the process exits with 1."""
    with Program("tao", "serve", "fine", "--port", 0, cwd=modules) as program:
        with socket.create_connection(address_of(program), LONG) as sock:
            assert echoes(sock, b"never")
            program.send(signal.SIGINT)
            assert program.status() == 1
        program.prints(r"aborted 127\.0\.0\.1:\d+: 1 messages not handled, 0 not sent")
        assert program.output[-1] == "tao: stopped before all work was finished"


def test_a_second_ctrl_c(modules: Path) -> None:
    """A second Ctrl-C ends the process at once."""
    text = SERVERS.replace("drain_timeout=0.5", "drain_timeout=3600")
    (modules / "patient.py").write_text(text, encoding="utf-8")
    with (
        Program("tao", "serve", "patient", "--port", 0, cwd=modules) as program,
        socket.create_connection(address_of(program), LONG) as sock,
    ):
        assert echoes(sock, b"never")
        program.send(signal.SIGINT)
        program.prints("tao: stopping")
        assert program.interrupt() == 130
    assert program.errors[-1] == "tao: stopped at once"
