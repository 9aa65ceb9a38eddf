"""Options: a wrong one is refused by name when the server or client is created."""

from __future__ import annotations

import dataclasses
import ssl
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options.definitions import (
    ClientSettings,
    Reconnect,
    ServerSettings,
    Settings,
)
from tao.connection.options.given import make_settings
from tao.runtime.worker_pool import WorkerPool
from tao.server.server import Server
from tao.session.sessions import Sessions
from tao.transport.certificates import load_client_tls_config, self_signed_certificate
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import Registry
from tests.ends import Number

SECONDS = ["handshake_timeout", "drain_timeout", "heartbeat", "idle_timeout", "write_timeout"]


@pytest.mark.parametrize("name", SECONDS)
def test_seconds(name: str) -> None:
    """Times are positive, finite numbers; some may be None."""
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
            Server(**{name: wrong})
    for wrong in ("1", True, [1]):
        with pytest.raises(TypeError, match=f"{name} must be a number"):
            Server(**{name: wrong})
    if name not in ("handshake_timeout", "drain_timeout"):
        assert getattr(ServerSettings(**{name: None}), name) is None


@pytest.mark.parametrize("name", ["queue_size", "workers", "max_connections", "backlog"])
def test_counts(name: str) -> None:
    """Counts are integers of at least 1."""
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        Server(**{name: 0})
    for wrong in (1.5, "1", True, None):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            Server(**{name: wrong})
    assert ServerSettings(max_connections_per_host=None).max_connections_per_host is None


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("codec", object(), TypeError),
        ("registry", {}, TypeError),
        ("tls", True, TypeError),
        ("on_connect", "print", TypeError),
        ("on_error", 1, TypeError),
        ("worker_initializer", 1, TypeError),
        ("slow_consumer", "drop", ValueError),
        ("cluster", 1, TypeError),
        ("cluster", "somewhere", ValueError),
        ("on_gap", 1, TypeError),
        ("dispatch", "quick", ValueError),
    ],
)
def test_the_error_names_the_option(name: str, wrong: Any, error: type[Exception]) -> None:
    """The error names the option, whatever is wrong."""
    with pytest.raises(error, match=name):
        Server(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("reconnect", 5, TypeError),
        ("connect_timeout", 0, ValueError),
        ("server_hostname", 5, TypeError),
        ("workers", 5, TypeError),
    ],
)
def test_a_clients_options(name: str, wrong: Any, error: type[Exception]) -> None:
    """A client checks its own options, and refuses those of a server."""
    with pytest.raises(error, match=name):
        ClientConn(("localhost", 1), **{name: wrong})


def test_an_option_of_the_other_end() -> None:
    """The error says which end has the option, and suggests no similar one."""
    with pytest.raises(
        TypeError, match=r"Server has no option 'reconnect'; it is an option of a Client"
    ):
        Server(reconnect=True)
    with pytest.raises(
        TypeError, match=r"has no option 'max_connections'; it is an option of a Server$"
    ):
        ClientConn(("localhost", 1), max_connections=3)


def test_a_codec_is_an_object() -> None:
    """A class instead of an object is refused, and the error names what is missing."""
    with pytest.raises(TypeError, match=r"not a class; write TypeLengthValueCodec\(\)"):
        Server(codec=TypeLengthValueCodec)


def test_invalid_tls_contexts() -> None:
    """The error says how to create one; the repr of a certificate is not shown."""
    for wrong in (True, ("cert.pem", "key.pem"), self_signed_certificate()):
        with pytest.raises(TypeError, match=r"as load_tls_config\(\) and") as raised:
            Server(tls=wrong)
        assert str(raised.value).endswith(f"not {type(wrong).__name__}")


def test_contexts_are_for_one_end() -> None:
    """A context for the wrong end is refused at once, not at the first connection."""
    with pytest.raises(ValueError, match="a server cannot use a client's context"):
        Server(tls=load_client_tls_config())
    with pytest.raises(ValueError, match="a client cannot use a server's context"):
        ClientConn(("localhost", 1), tls=self_signed_certificate().server_config())
    either = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert ClientSettings(tls=either).tls is either


def test_a_pool_has_its_own_initializer() -> None:
    """An initializer beside a pool is refused, because it would never be called."""
    pool = WorkerPool(1)
    with pytest.raises(ValueError, match="belongs to the WorkerPool"):
        Server(workers=pool, worker_initializer=print)
    pool.stop()


def test_an_initializer_keeps_handlers_on_workers() -> None:
    """With an initializer, handlers run on workers, unless ``dispatch`` says otherwise."""
    pools = [WorkerPool(1), WorkerPool(1, initializer=print)]
    for options, dispatch in (
        ({}, "auto"),
        ({"worker_initializer": None}, "auto"),
        ({"worker_initializer": print}, "pool"),
        ({"worker_initializer": print, "dispatch": "auto"}, "auto"),
        ({"workers": pools[0]}, "auto"),
        ({"workers": pools[1]}, "pool"),
    ):
        assert make_settings(ServerSettings, "Server", dict(options)).dispatch == dispatch, options
    for pool in pools:
        pool.stop()


def test_defaults_are_not_shared() -> None:
    """Options can be created without arguments, and each object has its own codec."""
    made = make_settings(Settings, "Thing", {"registry": Registry()})
    assert isinstance(made.codec, TypeLengthValueCodec)
    with pytest.raises(TypeError, match=r"Thing has no option 'x'$"):
        make_settings(Settings, "Thing", {"x": 1})


def test_back_off_grows_to_its_maximum() -> None:
    """Without jitter, the waits match the formula for any number of attempts."""
    how = Reconnect(initial=0.5, maximum=5, factor=2, jitter=0)
    assert [how.delay(n) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert how.delay(10**6) == 5
    assert Reconnect(initial=1, maximum=9, factor=1, jitter=0).delay(10**6) == 1


def test_jitter_shortens_waits() -> None:
    """A wait is shortened by at most the configured share, by varying amounts."""
    how = Reconnect(initial=1, maximum=1, jitter=0.25)
    waits = {how.delay(1) for _ in range(200)}
    assert all(0.75 <= wait <= 1 for wait in waits)
    assert len(waits) > 100


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("initial", 0), ("maximum", -1), ("factor", 0.5), ("jitter", 1.5), ("attempts", 0)],
)
def test_an_invalid_back_off_is_refused(name: str, wrong: float) -> None:
    """The error names the option of `Reconnect`."""
    with pytest.raises(ValueError, match=name):
        Reconnect(**{name: wrong})  # type: ignore[arg-type]


def test_what_was_given_may_change_later() -> None:
    """Options are copied, with what is inside, so that tao's threads do not see the change."""
    level = bytearray(b"\1\0\0\0")
    given: dict[str, Any] = {
        "socket_options": [[1, 9, level]],
        "login": [Number],
        "cluster_key": [b"sixteen bytes..."],
        "cpu_affinity": {0},
    }
    kinds = {"socket_options": ClientSettings}
    made = {
        name: make_settings(kinds.get(name, ServerSettings), "It", {name: value})
        for name, value in given.items()
    }
    level[0] = 2
    for value in given.values():
        value.clear()
    assert {name: getattr(each, name) for name, each in made.items()} == {
        "socket_options": ((1, 9, b"\1\0\0\0"),),
        "login": (Number,),
        "cluster_key": (b"sixteen bytes...",),
        "cpu_affinity": {0},
    }


class Shapeless:
    """What no text can be made of."""

    def __repr__(self) -> str:
        raise SystemExit("no text")


def options_of(kind: Any) -> list[tuple[Any, str]]:
    return [(kind, field.name) for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [*options_of(ServerSettings), *options_of(ClientSettings), *options_of(Reconnect)]
    + [(Sessions, name) for name in ("linger", "maximum", "per_host", "retain", "total_bytes")]
    + [(WorkerPool, "workers")],
)
def test_a_value_without_a_text(kind: Any, name: str) -> None:
    """It is refused by the name of the option like any other, although it cannot be shown."""
    with pytest.raises((TypeError, ValueError), match=name):
        kind(**{name: Shapeless()})


def test_an_address_without_a_text() -> None:
    """So is one to connect to, or to listen at."""
    with pytest.raises(TypeError, match="an address is"):
        ClientConn(Shapeless())
    with Server(registry=Registry()) as server, pytest.raises(TypeError, match="an address is"):
        server.start(Shapeless())  # type: ignore[arg-type]
