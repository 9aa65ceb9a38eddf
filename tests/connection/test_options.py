"""Options: what is wrong with one is said when the server or client is made, by name."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.connection.options import (
    ClientSettings,
    Reconnect,
    ServerSettings,
    Settings,
    make_settings,
)
from tao.runtime.worker_pool import WorkerPool
from tao.server.server import Server
from tao.transport.certificates import load_client_tls_config, self_signed_certificate
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.message import Registry

SECONDS = ["handshake_timeout", "drain_timeout", "heartbeat", "idle_timeout", "write_timeout"]


@pytest.mark.parametrize("name", SECONDS)
def test_seconds(name: str) -> None:
    """Times are positive, finite numbers; those that may be off may be None."""
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
    """Numbers of things are integers from 1 on."""
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
        ("dispatch", "quick", ValueError),
    ],
)
def test_the_error_names_the_option(name: str, wrong: Any, error: type[Exception]) -> None:
    """Whatever is wrong with it."""
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
    """A client checks its own, and has no options of a server's."""
    with pytest.raises(error, match=name):
        ClientConn(("localhost", 1), **{name: wrong})


def test_an_option_of_the_other_end() -> None:
    """It is said whose it is, and nothing like it is proposed."""
    with pytest.raises(TypeError, match=r"Server has no option 'reconnect'; it is one of a Client"):
        Server(reconnect=True)
    with pytest.raises(TypeError, match=r"has no option 'max_connections'; it is one of a Server$"):
        ClientConn(("localhost", 1), max_connections=3)


def test_a_codec_is_an_object() -> None:
    """Its class is refused, with what is missing."""
    with pytest.raises(TypeError, match=r"not a class; write TypeLengthValueCodec\(\)"):
        Server(codec=TypeLengthValueCodec)


def test_what_is_no_context() -> None:
    """It is said where to get one; a certificate, which has one, is not spread out."""
    for wrong in (True, ("cert.pem", "key.pem"), self_signed_certificate()):
        with pytest.raises(TypeError, match=r"as load_tls_config\(\) and") as raised:
            Server(tls=wrong)
        assert str(raised.value).endswith(f"not {type(wrong).__name__}")


def test_contexts_are_for_one_end() -> None:
    """A TLS context of the wrong end is refused at once, not at the first connection."""
    with pytest.raises(ValueError, match="a server cannot use a client's context"):
        Server(tls=load_client_tls_config())
    with pytest.raises(ValueError, match="a client cannot use a server's context"):
        ClientConn(("localhost", 1), tls=self_signed_certificate().server_config())
    either = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert ClientSettings(tls=either).tls is either


def test_a_pool_brings_its_own_initializer() -> None:
    """An initializer beside a pool would never be called, so it is refused."""
    pool = WorkerPool(1)
    with pytest.raises(ValueError, match="belongs to the WorkerPool"):
        Server(workers=pool, worker_initializer=print)
    pool.stop()


def test_handlers_stay_where_they_are_prepared() -> None:
    """With an initializer they run on the workers, unless that is said otherwise."""
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


def test_defaults_are_not_shared_by_accident() -> None:
    """Options can be made without arguments, and each has a codec."""
    made = make_settings(Settings, "Thing", {"registry": Registry()})
    assert isinstance(made.codec, TypeLengthValueCodec)
    with pytest.raises(TypeError, match=r"Thing has no option 'x'$"):
        make_settings(Settings, "Thing", {"x": 1})


def test_back_off_grows_to_its_maximum() -> None:
    """Without jitter the waits are exactly those of the formula, however many."""
    how = Reconnect(initial=0.5, maximum=5, factor=2, jitter=0)
    assert [how.delay(n) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert how.delay(10**6) == 5
    assert Reconnect(initial=1, maximum=9, factor=1, jitter=0).delay(10**6) == 1


def test_jitter_takes_off_a_share() -> None:
    """It shortens a wait, by at most its share, and not always by the same."""
    how = Reconnect(initial=1, maximum=1, jitter=0.25)
    waits = {how.delay(1) for _ in range(200)}
    assert all(0.75 <= wait <= 1 for wait in waits)
    assert len(waits) > 100


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("initial", 0), ("maximum", -1), ("factor", 0.5), ("jitter", 1.5), ("attempts", 0)],
)
def test_a_wrong_back_off_is_named(name: str, wrong: float) -> None:
    """An option of Reconnect that makes no sense is an error that names it."""
    with pytest.raises(ValueError, match=name):
        Reconnect(**{name: wrong})  # type: ignore[arg-type]
