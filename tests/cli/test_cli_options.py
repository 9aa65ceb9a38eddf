"""``tao serve``: the options that change the server."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from tao.cli.arguments import make_parser
from tao.cli.main import main
from tao.connection.options.definitions import ServerSettings
from tao.server.server import server_core_of
from tests.programs import LONG, Program

SERVER = """
import tao
server = tao.Server(registry=tao.Registry(), workers=7, idle_timeout=90, max_connections=5)
"""
PROBLEMS = """
import atexit
import tao
pool = tao.WorkerPool(1)
atexit.register(pool.stop)
shared = tao.Server(workers=pool)

def started():
    server = tao.Server(on_close=None)
    server.start(("127.0.0.1", 0))
    made.append(server)
    return server

made = []
"""

#: Options that cannot be written as text, and those with another name on the command line.
OTHERS = {"codec", "registry", "tls", "worker_initializer"}
OTHERS |= {"on_connect", "on_message", "on_close", "on_error", "on_gap", "login", "on_unready"}
OTHERS |= {"on_resume", "on_session_lost", "sessions"}
OTHERS |= {"correlation"}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a module; removed from ``sys.modules`` afterwards."""
    (tmp_path / "one.py").write_text(SERVER, encoding="utf-8")
    (tmp_path / "problems.py").write_text(PROBLEMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("one", "problems"):
        module = sys.modules.pop(name, None)
        if name == "problems" and module is not None:
            module.pool.stop()
            for server in module.made:
                server.stop()
    logger.remove()
    logger.disable("tao")


def test_every_option_of_a_server_is_there() -> None:
    """Every option that can be written as text exists on the command line, under the same name."""
    parser = make_parser()
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    assert commands.choices is not None
    serve: Any = dict(commands.choices)["serve"]  # type: ignore[call-overload]
    known = {action.dest for action in serve._actions}
    wanted = {field.name for field in dataclasses.fields(ServerSettings)} - OTHERS
    assert wanted <= known


def served(arguments: str) -> ServerSettings:
    """Serve until a signal that is sent once the server is ready; return its settings."""
    words = ["serve", "one", "--port", "0", *arguments.split()]

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tao.cli.serve._announce", interrupt)
        assert main(words) == 0
    options: ServerSettings = server_core_of(sys.modules["one"].server).settings
    return options


#: Values that a user or a script might pass where a number is expected.
EXTREMES = [
    "",
    "-1",
    "0",
    "1e300",
    "1e-300",
    "nan",
    "inf",
    "9" * 25,
    "9" * 5000,
    "\udcff",
    "\u0661",
]


@pytest.mark.parametrize("text", EXTREMES, ids=range(len(EXTREMES)))
def test_any_value_of_any_option(text: str) -> None:
    """Each command accepts the value or reports in one line what is expected."""
    parser = make_parser()
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    for command in dict(commands.choices).values():  # type: ignore[arg-type]
        for action in command._actions:  # type: ignore[attr-defined]
            if action.type is None:
                continue
            try:
                value = action.type(text)
            except argparse.ArgumentTypeError as error:
                assert len(str(error)) < 300
            else:
                assert not isinstance(value, (int, float)) or abs(value) <= 1e300
                if "SECONDS" in str(action.metavar):
                    assert value <= threading.TIMEOUT_MAX


def test_given_options_replace_the_modules() -> None:
    """Options that are not given keep the module's values."""
    before = sys.getswitchinterval()
    options = served("--workers 3 --queue-size 9 --slow-consumer close --dispatch pool")
    assert sys.getswitchinterval() == before
    assert (options.workers, options.queue_size) == (3, 9)
    assert (options.slow_consumer, options.dispatch) == ("close", "pool")
    assert (options.idle_timeout, options.max_connections) == (90, 5)


def test_times_and_limits() -> None:
    """Times are in seconds; those that may be None can be switched off."""
    options = served(
        "--heartbeat off --idle-timeout off --write-timeout 2.5 --drain-timeout 3 "
        "--handshake-timeout 4 --max-connections 6 --max-connections-per-host 2 --backlog 8 "
        "--reply-timeout 5 --half-close --half-close-timeout 6"
    )
    assert (options.reply_timeout, options.half_close, options.half_close_timeout) == (5, True, 6)
    assert (options.heartbeat, options.idle_timeout, options.write_timeout) == (None, None, 2.5)
    assert (options.drain_timeout, options.handshake_timeout, options.backlog) == (3, 4, 8)
    assert (options.max_connections, options.max_connections_per_host) == (6, 2)


def test_rates_and_sizes() -> None:
    """Rates and queue sizes are applied."""
    options = served(
        "--message-rate 2.5 --message-burst 9 --byte-rate 1e6 --byte-burst off --over-rate close "
        "--accept-rate 50 --accept-burst 60 --queue-bytes 4096 --frame-timeout 7 "
        "--handler-warn-after off"
    )
    assert (options.message_rate, options.message_burst, options.over_rate) == (2.5, 9, "close")
    assert (options.byte_rate, options.byte_burst, options.queue_bytes) == (1e6, None, 4096)
    assert (options.accept_rate, options.accept_burst) == (50, 60)
    assert (options.frame_timeout, options.handler_warn_after) == (7, None)


@pytest.mark.skipif(sys.platform != "linux", reason="threads can be pinned on Linux only")
@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("off", None), ("0", (0,)), ("0-0,0", (0, 0))],
)
def test_cpus(text: str, value: object) -> None:
    """CPUs can be one, several, a range, or ``auto``."""
    assert served(f"--cpu-affinity {text}").cpu_affinity == value


def test_the_interpreters_switch_interval() -> None:
    """It is set for the whole process."""
    before = sys.getswitchinterval()
    try:
        served("--switch-interval 0.02")
        assert sys.getswitchinterval() == pytest.approx(0.02)
    finally:
        sys.setswitchinterval(before)


def test_load_balancers() -> None:
    """The networks of load balancers are separated by commas."""
    assert served("--proxy-protocol 10.0.0.0/8,::1").proxy_protocol == ("10.0.0.0/8", "::1")


OLD, NEW = b"old" * 9 + b"\n", b"new" * 9


@pytest.mark.parametrize(
    ("cluster", "arguments", "keys"),
    [
        ("local", "", NEW),
        ("redis://:secret@there", "--cluster local --cluster-key-file old", (OLD,)),
        ("local", "--cluster-key-file old --cluster-key-file new", (OLD, NEW)),
    ],
)
def test_secrets(
    modules: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, arguments: str, keys: object
) -> None:
    """A key is in a file or, as the URL may be, in the environment; the command line counts."""
    (modules / "old").write_bytes(OLD)
    (modules / "new").write_bytes(NEW)
    monkeypatch.setenv("TAO_CLUSTER", cluster)
    monkeypatch.setenv("TAO_CLUSTER_KEY", NEW.decode())
    options = served(arguments)
    assert (options.cluster, options.cluster_key) == ("local", keys)


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("TAO_CLUSTER", "http://:secret@there", "TAO_CLUSTER: URL: must be"),
        ("TAO_CLUSTER_KEY", "secret", "TAO_CLUSTER_KEY: cluster_key: a key must have 16 bytes"),
    ],
)
def test_wrong_secrets(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    text: str,
    words: str,
) -> None:
    """What is wrong in the environment is told, and not shown."""
    monkeypatch.setenv(variable, text)
    assert main(["serve", "one"]) == 2
    errors = capsys.readouterr().err
    assert words in errors and "secret" not in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    "limit", ["--max-connections 1", "--max-connections-per-host 1", "--proxy-protocol fd00::/8"]
)
def test_limits_hold(limit: str) -> None:
    """Options take effect, including those that a server reads when it is created."""
    said: list[bytes] = []

    def look(server: Any, *_: object) -> None:
        with socket.create_connection(server.address, LONG):
            with socket.create_connection(server.address, LONG) as second:
                said.append(second.recv(1))
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tao.cli.serve._announce", look)
        assert main(["serve", "one", "--port", "0", *limit.split()]) == 0
    assert said == [b""]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("one --workers 0", "expected a positive whole number, not '0'"),
        ("one --workers many", "expected a positive whole number, not 'many'"),
        ("one --queue-size -1", "--queue-size"),
        ("one --idle-timeout 0", "expected a positive number of seconds, not '0'"),
        ("one --heartbeat never", "expected a positive number of seconds, not 'never'"),
        ("one --drain-timeout off", "expected a positive number of seconds, not 'off'"),
        ("one --write-timeout nan", "expected a positive number of seconds, not 'nan'"),
        ("one --max-connections-per-host x", "expected a positive whole number, not 'x'"),
        ("one --message-rate 0", "expected a positive number, not '0'"),
        ("one --slow-consumer wait", "--slow-consumer: invalid choice: 'wait'"),
        ("one --dispatch there", "--dispatch: invalid choice: 'there'"),
        ("one --cpu-affinity 3-1", "or CPUs such as 0,2 or 0-3, not '3-1'"),
        ("one --cpu-affinity x", "or CPUs such as 0,2 or 0-3, not 'x'"),
        ("one --bogus 3", "tao serve does not know --bogus 3 (see tao serve --help)"),
        ("one --unix /tmp/tao.sock --port 5", "--unix and --port exclude each other"),
        ("one --unix /tmp/tao.sock --host ::1", "--unix and --host exclude each other"),
        ("one --unix @", "the address of a Unix socket must not be empty"),
        ("one --switch-interval 0", "expected a positive number of seconds, not '0'"),
        ("one --switch-interval 20", "expected at most 1 second, not '20'"),
        ("one --proxy-protocol nowhere", "'nowhere' is no network"),
        ("one --cluster-key-file none", "cannot read 'none': No such file or directory"),
        ("one --cluster-key-file /dev/zero", "'/dev/zero' is too long for a key"),
        ("problems:started --workers 3", "cannot change --workers: the module has already"),
        ("problems:shared --workers 3", "cannot apply --workers: the server uses a shared"),
    ],
)
def test_a_wrong_option(capsys: pytest.CaptureFixture[str], arguments: str, words: str) -> None:
    """The call prints one clear line on stderr, and its status is 2."""
    assert main(["serve", *arguments.split()]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and words in errors and errors.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads can be pinned on Linux only")
def test_options_that_the_server_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """The server's own error is shown, with the option's name on the command line."""
    assert main(["serve", "one", "--cpu-affinity", "65535"]) == 2
    assert capsys.readouterr().err.startswith("tao: --cpu-affinity: of [65535] only ")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_unix_socket(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written with @, as it is displayed; a client accepts this form too."""
    name = f"@tao-test-{os.getpid()}"
    with Program("tao", "serve", "one", "--unix", name, cwd=modules) as program:
        program.prints(rf": one listens at {name} \(no TLS\)")
        program.prints("press Ctrl-C to stop")
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        assert main(["connect", name]) == 0
        program.send(signal.SIGTERM)
        assert program.status() == 0


def test_a_unix_socket(modules: Path) -> None:
    """The server listens at the path instead of host and port, and the banner shows it."""
    arguments = ("tao", "serve", "one", "--unix", "here.sock", "--workers", 2)
    with Program(*arguments, cwd=modules) as program:
        program.prints(r": one listens at here\.sock \(no TLS\)")
        program.prints("tao: 2 workers, 5 connections at most")
        program.prints("press Ctrl-C to stop")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LONG)
            sock.connect(str(modules / "here.sock"))
            program.send(signal.SIGTERM)
            assert sock.recv(1) == b""
        assert program.status() == 0
