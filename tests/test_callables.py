"""Checks of callbacks: callables that accept tao's arguments are accepted, all others refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from tao.connection.options.definitions import ServerSettings
from tao.runtime.timing_wheel import TimingWheel
from tao.runtime.worker_pool import WorkerPool
from tao.wire.message import Registry
from tests.ends import End, Text, text

Function = Callable[..., Any]


def two(ctx: Any, conn: Any) -> None: ...
def three(ctx: Any, conn: Any, database: Any) -> None: ...
def keyword(ctx: Any, conn: Any, *, database: Any) -> None: ...
async def asynchronous(ctx: Any, conn: Any) -> None: ...


def with_database(function: Function) -> Function:
    """Pass one argument more than the wrapper gets."""

    @functools.wraps(function)
    def with_it(ctx: Any, conn: Any) -> Any:
        return function(ctx, conn, "database")

    return with_it


def passing_on(function: Function) -> Function:
    """Wrap a function with ``*args``, which accepts any arguments."""

    @functools.wraps(function)
    def pass_on(*args: Any, **keywords: Any) -> Any:
        return function(*args, **keywords)

    return pass_on


def of_one(function: Function) -> Function:
    """Wrap a function so that it cannot be called with two arguments."""

    @functools.wraps(function)
    def wrong(ctx: Any) -> None: ...

    return wrong


def pretending(function: Function) -> Function:
    """Like `passing_on`, but with the signature of another function."""
    wrapper = passing_on(function)
    wrapper.__signature__ = inspect.signature(three)  # type: ignore[attr-defined]
    return wrapper


class Service:
    """A class with methods of every kind, which is callable itself."""

    def method(self, ctx: Any, conn: Any) -> None: ...
    def of_one(self, ctx: Any) -> None: ...

    @classmethod
    def of_class(cls, ctx: Any, conn: Any) -> None: ...
    @staticmethod
    def static(ctx: Any, conn: Any) -> None: ...

    @with_database
    def decorated(self, conn: Any, database: Any) -> None: ...  # called with self and ctx

    ready = functools.partialmethod(lambda self, ctx, conn, more: None, more=1)
    __call__ = method


class Static:
    """A callable with a static ``__call__``."""

    @staticmethod
    def __call__(ctx: Any, conn: Any) -> None: ...


class Decorator:
    """A decorator that is a class."""

    def __init__(self, function: Function) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, ctx: Any) -> None: ...


def generates(ctx: Any, conn: Any) -> Iterator[int]:
    yield 1


async def streams(ctx: Any, conn: Any) -> AsyncIterator[int]:
    yield 1


TAKEN = [
    *(two, print, dict, mock.Mock(), lambda *args: None, lambda ctx, conn=None, *, more=1: None),
    *(with_database(three), passing_on(with_database(three)), passing_on(three)),
    passing_on(of_one(two)),  # the outer function might pass fewer arguments to the inner one
    *(pretending(two), functools.lru_cache(two), functools.singledispatch(two)),
    *(functools.partial(three, database=1), functools.partial(three, "first")),
    functools.partial(with_database(three)),
    *(Service().method, Service.of_class, Service().of_class, Service.static, Service()),
    *(Service().ready, Service().__call__, Static(), vars(Service)["static"]),
]
REFUSED = [
    (three, "three cannot be called as handler(ctx, conn): missing a required argument: 'databas"),
    (keyword, "keyword cannot be called as handler(ctx, conn): missing a required"),
    (of_one(two), "of_one.<locals>.wrong, which decorates two, cannot be called as handler("),
    (Decorator(two), "Decorator.__call__, which decorates two, cannot be called as handler("),
    (Service().of_one, "Service.of_one cannot be called"),
    (Service.method, "Service.method cannot be called as handler(ctx, conn): missing"),
    (functools.partial(two, 1), "cannot be called as handler(ctx, conn): too many"),
    (functools.partial(asynchronous), "is asynchronous"),
    (with_database, "with_database cannot be called"),
    (asynchronous, "asynchronous is asynchronous, but handler(ctx, conn) is called in a thread"),
    (streams, "streams is a generator function"),
    (generates, "generates is a generator function: handler(ctx, conn) would return a generator"),
    (functools.partial(generates), "is a generator function"),
    (vars(Service)["of_class"], "handler must be callable, not <classmethod"),
    ("two", "handler must be callable, not 'two'"),
]


@pytest.mark.parametrize("function", TAKEN, ids=range(len(TAKEN)))
def test_what_can_be_called_is_taken(function: Function) -> None:
    """Every kind of callable that takes the arguments is accepted, whatever decorators claim."""
    registry = Registry()
    assert registry.handler(Text)(function) is function
    registry.register(2, lambda data: data, function)


@pytest.mark.parametrize(("function", "why"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_called_is_refused(function: Any, why: str) -> None:
    """The error names the function that is called first, which may be a decorator's."""
    with pytest.raises(TypeError) as caught:
        Registry().handler(Text)(function)
    # Before CPython 3.11, code objects have no qualified name.
    assert why in str(caught.value) or why.rpartition(">.")[2] in str(caught.value)


def test_callbacks_and_options_are_judged_alike() -> None:
    """Arguments that a decorator adds are not expected from tao."""

    @with_database
    def on_error(conn: Any, error: Any, database: Any) -> None: ...

    assert ServerSettings(on_error=on_error).on_error is on_error
    with pytest.raises(TypeError, match=r"as on_close\(conn\): missing a required argument: 'conn"):
        ServerSettings(on_close=on_error)


def test_a_callable_with_a_raising_repr_is_refused() -> None:
    """The error still names the argument."""

    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    with pytest.raises(TypeError, match="handler must be callable, not <unprintable Odd"):
        Registry().register(1, len, Odd())  # type: ignore[arg-type]


def test_a_decorated_handler_handles(open_end: Callable[..., End]) -> None:
    """A decorated handler receives the argument that its decorator adds."""
    registry = Registry()

    @registry.handler(Text)
    @with_database
    def handle(ctx: Any, conn: Any, database: str) -> None:
        conn.write(Text(database))

    end = open_end(registry=registry)
    end.send(text("which?"))
    assert end.read_text() == "database"


def test_what_is_declared_often_is_judged_as_well(open_end: Callable[..., End]) -> None:
    """Timers and callbacks are refused when they are set, not when they are due."""
    conn = open_end().conn
    with pytest.raises(TypeError, match=r"two cannot be called as callback\(\)"):
        conn.context.after_cancel(two)  # type: ignore[arg-type]
    wheel = TimingWheel()
    for declare in (wheel.run_after, wheel.run_every):
        with pytest.raises(TypeError, match=r"two cannot be called as callback\(due\)"):
            declare(1, two)  # type: ignore[arg-type]
    for set_timer in (conn.run_after, conn.run_every):
        unrun = functools.partial(asynchronous), functools.partial(generates)
        for wrong in (three, asynchronous, Service().of_one, *unrun):
            with pytest.raises(TypeError, match=r"callback\(due, conn\)"):
                set_timer(1, wrong)
        set_timer(1, Service().method)
    with pytest.raises(TypeError, match=r"two cannot be called as initializer\(\)"):
        WorkerPool(1, two)  # type: ignore[arg-type]
